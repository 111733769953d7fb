"""Nothing is lost: whole AnnData objects through archives of every kind and back."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anndata
import h5py
import numcodecs
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from anndata.io import write_elem
from anndata.tests.helpers import assert_equal
from annotated import annotated, reordered, same, write, written
from budget import sample, whole_only
from reading import assert_rows, assert_same
from sources import Cells, names, random_cells, write_h5ad

import scdl
from scdl.cli.main import main
from scdl.conversion.export import export
from scdl.errors import ArchiveExistsError, ArchiveWriteError, SourceError
from storage_backends.zarr.codecs.profiles import PROFILES

# zarr and anndata: of what anndata reads and writes
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "Consolidated metadata is currently not part",
        "Numcodecs codecs are not in the Zarr",
        "zarr v3 autosharding:UserWarning",
        "Writing zarr v2 data:UserWarning",
        "The codec `vlen-utf8` is currently not part",
        "This setting will be removed in 0.14",
        "zarr v3 will become the only option in 0.14",
        "The data type .* does not have a Zarr V3 spec",
    )
]

KINDS = {
    "csr": {},
    "csc": {"X": sp.csc_matrix},
    "dense": {"X": lambda x: x.toarray()},
    "integers": {"X": lambda x: x.astype(np.int64)},
    "raw": {"raw": True},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, anndata.AnnData]]:
    """Files of every kind of matrix, and what anndata reads of each."""
    place = tmp_path_factory.mktemp("files")
    found = {}
    for kind, options in KINDS.items():
        path = place / f"{kind}.h5ad"
        found[kind] = path, written(annotated(**options), path)
    return found


def exported(archive: Path) -> anndata.AnnData:
    """What anndata reads of an archive that was exported."""
    target = archive.with_suffix(".exported.h5ad")
    ds = scdl.open(archive)
    export(ds.store, target, replace=True)
    return anndata.read_h5ad(target)


class TestFiles:
    @pytest.mark.parametrize(
        ("kind", "profile"),
        sample(
            [
                ("csr", "archive"),
                ("csc", "balanced"),
                ("dense", "fast"),
                ("integers", "portable"),
                ("raw", "archive"),
            ],
            2,
        ),
    )
    def test_there_and_back(
        self, files: dict[str, Any], tmp_path: Path, kind: str, profile: str
    ) -> None:
        source, expected = files[kind]
        report = scdl.convert(source, tmp_path / "a.zarr", compression=profile)
        assert report.not_carried == ()
        assert report.backend == "zarr"
        same(exported(tmp_path / "a.zarr"), expected)
        same(scdl.open(tmp_path / "a.zarr").to_anndata(), expected)
        read = anndata.read_zarr(tmp_path / "a.zarr")
        found, given = (a.var_names if a.raw is None else a.raw.var_names for a in (read, expected))
        assert (list(found) != list(given)) is PROFILES[profile].by_detection
        same(read, reordered(expected, found))

    # An index of no names, and a column of missing text, come back as another kind of string.
    @pytest.mark.xfail(int(pd.__version__.split(".")[0]) >= 3, reason="kinds of text in pandas 3")
    @pytest.mark.parametrize("shape", sample([(0, 3), (3, 0), (1, 1)], 2))
    def test_shapes_at_the_edge(self, tmp_path: Path, shape: tuple[int, int]) -> None:
        expected = written(annotated(*shape), tmp_path / "a.h5ad")
        scdl.convert(tmp_path / "a.h5ad", tmp_path / "a.zarr", compression="archive")
        same(exported(tmp_path / "a.zarr"), expected)
        same(anndata.read_zarr(tmp_path / "a.zarr"), expected)

    @pytest.mark.parametrize("dtype", sample(["i1", "i8", "u8", "f8", ">i2"], 2))
    def test_types_of_values(self, tmp_path: Path, dtype: str) -> None:
        cells = random_cells(9, 5, dtype=dtype, is_sorted=False, repeated=True)
        layer = random_cells(9, 5, dtype=dtype, seed=1)
        write_h5ad(tmp_path / "a.h5ad", cells, layers={"l": layer})
        native = np.dtype(dtype).newbyteorder("=")
        for profile in ("fast", "archive"):
            scdl.convert(tmp_path / "a.h5ad", tmp_path / f"{profile}.zarr", compression=profile)
            read = scdl.open(tmp_path / f"{profile}.zarr").to_anndata()
            assert read.X.dtype == read.layers["l"].dtype == native
            assert (read.X.toarray() == cells.csr(native).toarray()).all()
            assert (read.layers["l"].toarray() == layer.csr(native).toarray()).all()

    def test_a_sum_that_does_not_fit(self, tmp_path: Path) -> None:
        cells = random_cells(1, 1, density=1, dtype="i1")
        twice = type(cells)(np.zeros(2, int), np.zeros(2, int), np.full(2, 100, "i1"), (1, 1))
        write_h5ad(tmp_path / "a.h5ad", twice)
        with pytest.raises(scdl.errors.CastError):
            scdl.convert(tmp_path / "a.h5ad", tmp_path / "a.zarr")

    def test_cells_packaged_with_scanpy(self, tmp_path: Path) -> None:
        """A file that an early release wrote, with raw and graphs in uns."""
        # Not imported: it needs packages that are not here.
        if (scanpy := find_spec("scanpy")) is None or scanpy.origin is None:
            pytest.skip("scanpy is not installed")
        source = Path(scanpy.origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"
        expected = anndata.read_h5ad(source)
        report = scdl.convert(source, tmp_path / "a.zarr", compression="archive")
        assert report.not_carried == ()
        assert_equal(exported(tmp_path / "a.zarr"), expected)
        read = anndata.read_zarr(tmp_path / "a.zarr")
        assert_equal(read, reordered(expected, read.raw.var_names))

    def test_what_is_left_out_is_told(self, files: dict[str, Any], tmp_path: Path) -> None:
        source, adata = files["raw"]
        kept = scdl.convert(source, tmp_path / "a.zarr")
        assert "not carried" not in str(kept)
        report = scdl.convert(source, tmp_path / "b.zarr", only_matrix=True)
        expected = {"X", "uns", "var", "raw/varm"}
        for mapping in ("layers", "obsm", "varm", "obsp", "varp"):
            # anndata 0.13 has a layer of no name, which is X.
            expected |= {f"{mapping}/{key}" for key in getattr(adata, mapping) if key is not None}
        assert set(report.not_carried) == expected
        assert "not carried over: X, uns" in str(report)
        # The same of the archive that has it all.
        again = scdl.convert(tmp_path / "a.zarr", tmp_path / "c.zarr", only_matrix=True)
        dense = {f"obsm/{k}" for k in ("X_pca", "cube", "none", "zeros")}
        expected |= {f"raw/varm/{key}" for key in adata.raw.varm}
        assert set(again.not_carried) == expected - {"raw/varm", "obsp/graph"} - dense
        only = anndata.read_zarr(tmp_path / "b.zarr")
        assert_equal(only[:, adata.raw.var_names].X, adata.raw.X)
        assert_equal(only.var.loc[adata.raw.var_names], adata.raw.var)

    def test_what_cannot_be_read_is_told(self, files: dict[str, Any], tmp_path: Path) -> None:
        write(files["csr"][1], tmp_path / "a.h5ad")
        with h5py.File(tmp_path / "a.h5ad", "r+") as file:
            file["obs/float"].attrs["encoding-type"] = "array"
            file["extra/part"] = np.arange(3)
            del file["obs/text"]
            file.create_group("obs/text").attrs["encoding-type"] = "novel"
        report = scdl.convert(tmp_path / "a.h5ad", tmp_path / "a.zarr")
        assert set(report.not_carried) == {"extra", "obs/text"}

    def test_any_matrix_may_be_the_one(self, files: dict[str, Any], tmp_path: Path) -> None:
        """All of the AnnData is there, and training reads the matrix that was asked for."""
        source, expected = files["raw"]
        for step, name in enumerate(("layers/csr", "raw/X", "X")):
            # The first from the file, then from one archive to another.
            target = tmp_path / f"{step}.zarr"
            scdl.convert(source, target, matrix=name, compression=["archive", "fast"][step % 2])
            ds = scdl.open(target)
            assert_equal(ds.to_anndata(), expected)
            taken = {"X": expected.X, "raw/X": expected.raw.X}.get(name, expected.layers["csr"])
            assert_equal(ds.read_rows(slice(None)).to_scipy(), sp.csr_matrix(taken))
            genes = expected.raw.var_names if name == "raw/X" else expected.var_names
            assert list(ds.var.index) == list(genes)
            source = target
        with pytest.raises(SourceError, match="there is no matrix layers/none; the archive has: "):
            scdl.convert(source, tmp_path / "none.zarr", matrix="layers/none")


def bits_of(path: Path) -> dict[str, Any]:
    """Types and bytes of all arrays of an archive."""
    store = scdl.open(path).store
    return {
        name: (spec.dtype, spec.item_shape, store.read(name).tobytes())
        for name, spec in store.arrays.items()
    }


@pytest.fixture(scope="module")
def memmaps(files: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Archives of files: with graphs and vectors, of raw, of two feature blocks."""
    place = tmp_path_factory.mktemp("memmaps")
    one, two = place / "one.h5ad", place / "two.h5ad"
    for path, n_vars in ((one, 300), (two, 70_000)):
        rng = np.random.default_rng(n_vars)
        adata = anndata.AnnData(
            sp.random(20, n_vars, 0.01, format="csr", dtype=np.float32, rng=rng),
            obsm={"X_pca": rng.random((20, 3)), "u": rng.integers(0, 9, (20, 2), np.uint8)},
            obsp={"next": sp.random(20, 20, 0.2, format="csr", rng=rng)},
        )
        write(adata, path)
    options = {"neighbor_key": "next", "obsm": ["X_pca", "u"]}
    scdl.convert(one, place / "graphs", **options)
    scdl.convert([one, two, one], place / "blocks", data_dtype="float16", **options)
    scdl.convert(files["raw"][0], place / "raw")
    return {name: place / name for name in ("graphs", "blocks", "raw")}


class TestArchives:
    @pytest.mark.filterwarnings("ignore::scdl.errors.ScdlWarning")
    @pytest.mark.parametrize(
        ("kind", "profile"),
        [*(("graphs", name) for name in PROFILES), ("blocks", "balanced"), ("raw", "archive")],
    )
    def test_memmap_there_and_back(
        self, memmaps: dict[str, Path], tmp_path: Path, kind: str, profile: str
    ) -> None:
        source = memmaps[kind]
        scdl.convert(source, tmp_path / "a.zarr", compression=profile)
        report = scdl.convert(tmp_path / "a.zarr", tmp_path / "back")
        assert (report.backend, report.not_carried) == ("memmap", ())
        assert bits_of(tmp_path / "back") == bits_of(source)
        ours, theirs = scdl.open(tmp_path / "back"), scdl.open(source)
        assert ours.info == theirs.info
        assert ours.obs.equals(theirs.obs)
        for name in ("data.npy", "row_ptr.npy", "col_ptr.npy"):
            assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()
        if kind == "graphs":
            read = anndata.read_zarr(tmp_path / "a.zarr")
            assert_equal(theirs.to_anndata().obsp["next"], read.obsp["next"])

    @whole_only
    def test_between_profiles(self, files: dict[str, Any], tmp_path: Path) -> None:
        source, expected = files["csr"]
        for target in ("archive", "portable"):
            report = scdl.convert(source, tmp_path / f"{target}.zarr", compression=target)
            source = tmp_path / f"{target}.zarr"
            assert report.not_carried == ()
        same(exported(source), expected)
        scdl.convert(files["csr"][0], tmp_path / "direct.zarr", compression="portable")
        assert bits_of(source) == bits_of(tmp_path / "direct.zarr")

    @pytest.mark.parametrize("kind", ["graphs", "raw"])
    def test_memmap_as_a_file(self, memmaps: dict[str, Path], tmp_path: Path, kind: str) -> None:
        """An export has what the archive holds."""
        ds = scdl.open(memmaps[kind])
        export(ds.store, tmp_path / "a.h5ad", gzip=None)
        read = anndata.read_h5ad(tmp_path / "a.h5ad")
        assert_equal(read.X, ds.read_rows(slice(None)).to_scipy())
        assert_equal(read, ds.to_anndata())
        # Back again, with the values as they were.
        scdl.convert(
            tmp_path / "a.h5ad",
            tmp_path / "again",
            neighbor_key="next" if kind == "graphs" else None,
            obsm=list(read.obsm),
        )
        assert bits_of(tmp_path / "again") == bits_of(memmaps[kind])
        with pytest.raises(ArchiveExistsError):
            export(ds.store, tmp_path / "a.h5ad")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5ad", "again"]

    def test_blocks_have_no_common_var(self, memmaps: dict[str, Path], tmp_path: Path) -> None:
        ds = scdl.open(memmaps["blocks"])
        with pytest.raises(SourceError, match="3 feature blocks"):
            export(ds.store, tmp_path / "a.h5ad")
        with pytest.raises(SourceError, match="end at 20, 40, 60"):
            ds.to_anndata([19, 20])
        part = ds.to_anndata(slice(20, 40))
        assert part.shape == (20, 70_000)
        assert_equal(part.X, ds.read_rows(slice(20, 40)).to_scipy().astype(np.float32))
        assert not list(tmp_path.iterdir())


def scaled(dtype: str) -> dict[str, Any]:
    settings = {"scale": 4, "offset": 0, "dtype": dtype}
    return {"name": "numcodecs.fixedscaleoffset", "configuration": settings}


#: Format, and how an array of a dtype is stored.
ODD_STORES: list[tuple[int, Callable[[str], dict[str, Any]]]] = [
    (3, lambda _: {"shards": 6, "compressors": zarr.codecs.BloscCodec(cname="zstd")}),
    (3, lambda _: {"compressors": [zarr.codecs.GzipCodec(), zarr.codecs.Crc32cCodec()]}),
    (3, lambda _: {"serializer": zarr.codecs.BytesCodec(endian="big"), "compressors": None}),
    (3, lambda dtype: {"filters": [scaled(dtype)]}),
    (3, lambda _: {"chunk_key_encoding": {"name": "v2", "separator": "."}}),
    (2, lambda _: {"compressors": numcodecs.LZMA()}),
    (2, lambda dtype: {"filters": [numcodecs.Delta(dtype)], "compressors": numcodecs.LZ4()}),
    (2, lambda _: {"compressors": None, "chunk_key_encoding": {"name": "v2", "separator": "/"}}),
]


class TestForeignStores:
    """AnnData in Zarr stores that others wrote."""

    @pytest.mark.parametrize(
        ("kind", "zarr_format"), sample([("raw", 3), ("csc", 3), ("dense", 2), ("csr", 2)], 1)
    )
    def test_written_by_anndata(
        self, files: dict[str, Any], tmp_path: Path, kind: str, zarr_format: int
    ) -> None:
        with anndata.settings.override(zarr_write_format=zarr_format):
            expected = written(files[kind][1], tmp_path / "a.zarr")
        matrix = expected.X if kind != "raw" else expected.raw.X
        if kind in ("csr", "raw"):
            ds = scdl.open(tmp_path / "a.zarr")
            assert_equal(ds.read_rows([3, 1, 3]).to_dense(), matrix[[3, 1, 3]].toarray())
            same(ds.to_anndata(), expected)
        else:
            with pytest.raises(scdl.errors.ArchiveFormatError, match="CSR form"):
                scdl.open(tmp_path / "a.zarr")
        report = scdl.convert(tmp_path / "a.zarr", tmp_path / "b.zarr", compression="archive")
        assert report.not_carried == ()
        same(scdl.open(tmp_path / "b.zarr").to_anndata(), expected)
        report = scdl.convert(tmp_path / "a.zarr", tmp_path / "c")
        assert "uns" in report.not_carried
        assert_equal(scdl.open(tmp_path / "c").read_rows(slice(None)).to_scipy(),
                     sp.csr_matrix(matrix))  # fmt: skip

    @pytest.mark.parametrize(("zarr_format", "options"), sample(ODD_STORES, 5))
    def test_compressed_as_it_may_be(
        self, tmp_path: Path, zarr_format: Any, options: Callable[[str], Any]
    ) -> None:
        """Rows out of order, repeated genes, int32 ids, no consolidated metadata."""
        cells = random_cells(9, 7, dtype="f4", is_sorted=False, repeated=True)
        write_store(tmp_path / "a.zarr", cells, zarr_format, options)
        ds = scdl.open(tmp_path / "a.zarr")
        assert ds.store.spec("indices").dtype == np.int32
        assert_rows(ds, cells.csr())
        target = tmp_path / "a.h5ad"
        export(ds.store, target)
        assert_equal(anndata.read_h5ad(target).X, sp.csr_matrix(cells.csr()))
        assert_equal(anndata.read_h5ad(target), ds.to_anndata())
        scdl.convert(tmp_path / "a.zarr", tmp_path / "b")
        assert_same(scdl.open(tmp_path / "b"), cells.csr())

    def test_chunks_of_zeros_need_not_be_there(self, tmp_path: Path) -> None:
        cells = random_cells(9, 7, dtype="f4")
        write_store(tmp_path / "a.zarr", cells, 3, lambda _: {})
        first = cells.csr()
        array = zarr.open_array(tmp_path / "a.zarr" / "X" / "data", mode="r+")
        array[:4] = 0
        first.data[:4] = 0
        assert not (tmp_path / "a.zarr/X/data/c/0").exists()
        assert_rows(scdl.open(tmp_path / "a.zarr"), first)

    def test_what_cannot_be_read_is_told(self, files: dict[str, Any], tmp_path: Path) -> None:
        write(files["csr"][1], tmp_path / "a.zarr")
        root = zarr.open_group(tmp_path / "a.zarr", use_consolidated=False)
        root["obs/truth"].attrs["encoding-type"] = "novel"
        root.create_group("extra")
        zarr.consolidate_metadata(root.store)
        for target in ("b.zarr", "c"):
            report = scdl.convert(tmp_path / "a.zarr", tmp_path / target)
            assert {"obs/truth", "extra"} <= set(report.not_carried)
        assert set(report.not_carried) > {"obs/truth", "extra", "uns"}


def write_store(path: Path, cells: Cells, zarr_format: Any, options: Callable[[str], Any]) -> None:
    """An AnnData of nothing but X, whose arrays are stored with some options."""
    root = zarr.create_group(path, zarr_format=zarr_format)
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    obs, var = (pd.DataFrame(index=names(*a)) for a in (("c", 9), ("g", 7)))
    write_elem(root, "obs", obs)
    write_elem(root, "var", var)
    group = root.create_group("X")
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
    group.attrs["shape"] = list(cells.shape)
    order = np.argsort(cells.rows, kind="stable")
    indptr = np.append(0, np.cumsum(np.bincount(cells.rows, minlength=cells.shape[0])))
    parts = {"data": cells.values[order], "indices": cells.columns[order], "indptr": indptr}
    for part, values in parts.items():
        values = values if part == "data" else values.astype(np.int32)
        group.create_array(part, data=values, chunks=(3,), **options(values.dtype.str))


class TestToAnnData:
    @pytest.mark.parametrize("kind", sample(["raw", "csr"], 1))
    def test_rows(self, files: dict[str, Any], tmp_path: Path, kind: str) -> None:
        source, whole = files[kind]
        scdl.convert(source, tmp_path / "a.zarr", compression="archive")
        ds = scdl.open(tmp_path / "a.zarr")
        mask = np.arange(30) % 3 == 1
        with anndata.settings.override(remove_unused_categories=False):
            for rows in ([4, 1, -1], slice(5, 20, 3), mask, np.array([], int), 7):
                at = [rows] if isinstance(rows, int) else rows
                expected = whole[at].copy()
                found = ds.to_anndata(rows)
                same(found, expected)
        with pytest.raises(IndexError):
            ds.to_anndata([30])

    def test_rows_of_a_memmap_archive(self, files: dict[str, Any], tmp_path: Path) -> None:
        source, whole = files["csr"]
        scdl.convert(source, tmp_path / "a", neighbor_key="graph", obsm=["X_pca"])
        found = scdl.open(tmp_path / "a").to_anndata([4, 1])
        assert_equal(found.X, whole.X[[4, 1]])
        assert_equal(found.obsm["X_pca"], whole.obsm["X_pca"][[4, 1]])
        expected = whole.obsp["graph"][[4, 1]][:, [4, 1]].astype(np.float32)
        assert_equal(found.obsp["graph"], expected)
        assert list(found.obs_names) == ["cell4", "cell1"]


class TestCommands:
    def test_export_and_info(
        self, files: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source, expected = files["csr"]
        archive = str(tmp_path / "a.zarr")

        def run(*arguments: object) -> int:
            with pytest.raises(SystemExit) as ended:
                main([str(argument) for argument in arguments])
            return ended.value.code

        assert run("convert", source, archive, "--compression", "balanced") == 0
        assert "not carried" not in capsys.readouterr().out
        assert run("export", archive, tmp_path / "a.h5ad") == 0
        same(anndata.read_h5ad(tmp_path / "a.h5ad"), expected)
        capsys.readouterr()
        assert run("info", archive) == 0
        told = " ".join(capsys.readouterr().out.split())
        for part in (
            "backend zarr",
            "of a memmap archive's",
            "bits per stored value",
            "astype <u2 + ",
            " + crc32c, chunks of ",
            "shards of",
            "obsm X_pca",
            "element obsm/sparse",
            "array obsm/X_pca",
            "element uns",
        ):
            assert part in told
        assert run("export", archive, tmp_path / "a.h5ad") == 1
        assert "something exists here" in capsys.readouterr().err
        assert run("convert", archive, tmp_path / "b.zarr", "--only-matrix") == 0
        assert "not carried over: " in capsys.readouterr().out
        assert run("convert", archive, tmp_path / "memmap") == 0
        assert run("export", tmp_path / "memmap", tmp_path / "b.h5ad") == 0
        assert_equal(anndata.read_h5ad(tmp_path / "b.h5ad").X, expected.X)


PIPELINE = """
import sys, anndata, zarr, zarrs, warnings
warnings.simplefilter("ignore")
zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
from anndata.tests.helpers import assert_equal
expected = anndata.read_h5ad(sys.argv[2])
read = anndata.read_zarr(sys.argv[1])
with anndata.settings.override(remove_unused_categories=False):
    assert_equal(read[:, expected.var_names].copy(), expected)
"""


@pytest.mark.parametrize("profile", ["fast", "balanced", "portable"])
def test_read_with_zarrs(files: dict[str, Any], tmp_path: Path, profile: str) -> None:
    """The codecs are those that others have, too."""
    python = os.environ.get("SCDL_ZARRS_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import zarrs"], capture_output=True).returncode:
        pytest.skip("zarrs is not installed")
    scdl.convert(files["csr"][0], tmp_path / "a.zarr", compression=profile)
    done = subprocess.run(
        [python, "-c", PIPELINE, tmp_path / "a.zarr", files["csr"][0]],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["dense", "csc"])
def test_a_graph_that_is_named_is_stored_by_rows(tmp_path: Path, kind: str) -> None:
    graph = sp.random(6, 6, 0.5, "csr", random_state=1)
    cells = anndata.AnnData(sp.random(6, 4, 0.5, "csr", dtype="f4", random_state=0))
    cells.obsp["next"] = graph.toarray() if kind == "dense" else graph.asformat(kind)
    cells.write_h5ad(tmp_path / "a.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells.write_zarr(tmp_path / "theirs.zarr")
    sources = [tmp_path / "a.h5ad", tmp_path / "a.zarr", tmp_path / "theirs.zarr"]
    for i, source in enumerate(sources):
        target = tmp_path / f"{'a' if i == 0 else i}.zarr"
        scdl.convert(source, target, neighbor_key="next")
        ds = scdl.open(target)
        assert ds.neighbor_keys == ["next"]
        assert (ds.to_anndata().obsp["next"] != graph).nnz == 0


@pytest.mark.parametrize("key", ["next", None])
@pytest.mark.parametrize("outside", [-1, 6, 99])
def test_a_graph_that_points_outside(tmp_path: Path, outside: int, key: str | None) -> None:
    cells = anndata.AnnData(sp.random(6, 4, 0.5, "csr", dtype="f4", random_state=0))
    cells.obsp["next"] = sp.random(6, 6, 0.5, "csr", random_state=1)
    cells.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        file["obsp/next/indices"][2] = outside
    with pytest.raises(SourceError, match="obsp/next: "):
        scdl.convert(tmp_path / "a.h5ad", tmp_path / "a.zarr", neighbor_key=key)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5ad"]


def test_an_export_replaces_no_directory(tmp_path: Path) -> None:
    scdl.convert(write_h5ad(tmp_path / "a.h5ad", random_cells(5, 4)), tmp_path / "archive")
    (tmp_path / "out.h5ad").mkdir()
    (tmp_path / "out.h5ad" / "kept").write_text("")
    with pytest.raises(ArchiveWriteError, match=r"out\.h5ad"):
        export(scdl.open(tmp_path / "archive").store, tmp_path / "out.h5ad", replace=True)
    assert [path.name for path in (tmp_path / "out.h5ad").iterdir()] == ["kept"]
    assert sorted(os.listdir(tmp_path)) == ["a.h5ad", "archive", "out.h5ad"]
