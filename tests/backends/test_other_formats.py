"""What is not an AnnData file or an archive: one sentence that says what it is and what to do."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
import zarr
from budget import sample
from sources import names, random_cells, write_h5ad

import scdl
from scdl.conversion.export import export
from scdl.errors import (
    ArchiveFormatError,
    ArchiveNotFoundError,
    BackendOptionError,
    PathError,
    ScdlError,
    SourceError,
    SourceNotFoundError,
)
from storage_backends import other_formats, registry
from storage_backends.capabilities import Verdict

Run = Callable[..., subprocess.CompletedProcess[str]]
CELLS = random_cells(40, 12, dtype="<u2", seed=1)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an h5ad file and an archive of it."""
    path = tmp_path_factory.mktemp("written")
    obs = pd.DataFrame({"type": pd.Categorical(list("AB") * 20)}, index=names("cell", 40))
    write_h5ad(path / "x.h5ad", CELLS, obs=obs)
    scdl.convert(path / "x.h5ad", path / "x.zarr")
    return path


@pytest.fixture
def place(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with an h5ad file, where we are."""
    shutil.copy(written / "x.h5ad", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def text(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(content) and None


def packed(path: Path) -> None:
    path.write_bytes(gzip.compress(Path("x.h5ad").read_bytes()))


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.write("x.h5ad")


def hdf5(*groups: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            for group in groups:
                file.create_group(group)

    return write


def spatial(path: Path) -> None:
    root = zarr.open_group(path, mode="w")
    root.create_group("images")
    with warnings.catch_warnings(action="ignore"):
        ad.io.write_elem(root.create_group("tables"), "cells", ad.read_h5ad("x.h5ad"))


def mudata_zarr(path: Path) -> None:
    root = zarr.open_group(path, mode="w", zarr_format=2)
    with warnings.catch_warnings(action="ignore"):
        for name in ("rna", "atac"):
            ad.io.write_elem(root.require_group("mod"), name, ad.read_h5ad("x.h5ad"))


def images(path: Path) -> None:
    zarr.open_group(path, mode="w").attrs["multiscales"] = [{}]


def matrix_market(path: Path) -> None:
    path.mkdir()
    scipy.io.mmwrite(path / "matrix.mtx", sp.eye(3))
    (path / "barcodes.tsv").write_text("a\nb\nc\n")


def directory(*files: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        for name in files:
            (path / name).write_text("{}")

    return make


#: Name, what makes it, and what is said of it.
OTHERS: list[tuple[str, Callable[[Path], None], tuple[str, ...]]] = [
    ("x.h5mu", hdf5("mod/rna", "mod/atac"), ("MuData", "modality=: atac, rna")),
    ("renamed.h5ad", hdf5("mod/rna"), ("MuData", "name it .h5mu")),
    ("x.loom", hdf5("row_attrs", "col_attrs", "layers"), ("Loom", "expected a matrix")),
    ("filtered.h5", hdf5("matrix/features"), ("10x", "scdl.convert")),
    ("old_10x.h5", hdf5("GRCh38/barcodes", "GRCh38/genes"), ("10x", "scdl.convert")),
    ("molecule_info.h5", hdf5("barcode_idx", "barcodes"), ("molecules", "feature_bc_matrix")),
    ("x.h5seurat", hdf5("assays", "cell.names"), ("Seurat", "h5ad")),
    ("x.rds", packed, ("R", "h5ad")),
    ("x.RData", packed, ("R", "h5ad")),
    ("counts.csv", text("gene,a\nx,1\n"), ("text table", "write_h5ad")),
    ("counts.tsv.gz", packed, ("text table", "write_h5ad")),
    ("counts.txt", text("gene\ta\n"), ("text table", "write_h5ad")),
    ("x.parquet", text("PAR1abc"), ("columnar table", "scdl.convert")),
    ("x.feather", text("ARROW1abc"), ("columnar table", "scdl.convert")),
    ("matrix.mtx", text("%%MatrixMarket matrix"), ("Matrix Market", "scdl.convert")),
    ("matrix.mtx.gz", packed, ("Matrix Market", "scdl.convert")),
    ("x.npz", zipped, ("arrays", "write_h5ad")),
    ("x.pkl", text("\x80\x04"), ("pickle", "write_h5ad")),
    ("x.h5ad.gz", packed, ("compressed", "unpack")),
    ("packed.h5ad", packed, ("compressed", "unpack")),
    ("x.h5ad.zip", zipped, ("zip file", "unpack")),
    ("x.tar", text("ustar"), ("compressed", "unpack")),
    ("lfs.h5ad", text("version https://git-lfs.github.com/spec/v1\n"), ("Git LFS", "git lfs pull")),
    ("page.h5ad", text("<!DOCTYPE html><html>"), ("web page", "download")),
    ("error.h5ad", text("<?xml version='1.0'?><Error/>"), ("web page", "download")),
    ("empty.h5ad", text(""), ("empty", "copy or download")),
    ("spatial.zarr", spatial, ("SpatialData", "tables/cells")),
    ("mudata.zarr", mudata_zarr, ("MuData", "rna")),
    ("images.zarr", images, ("images", "no table")),
    ("outs", matrix_market, ("Matrix Market", "scdl.convert")),
    ("cellranger", directory("filtered_feature_bc_matrix.h5"), ("10x", "scdl.convert")),
    ("x.soma", directory("__tiledb_group.tdb"), ("soma",)),
    ("dataset", directory("dataset_info.json", "data.arrow"), ("data set", "scdl.convert")),
    ("tables", directory("a.parquet", "b.parquet"), ("columnar tables", "scdl.convert")),
]


#: Those that can be converted, if they are complete.
CONVERTIBLE = {"filtered.h5", "old_10x.h5", "matrix.mtx", "matrix.mtx.gz", "outs"}
CONVERTIBLE |= {"x.parquet", "x.feather", "tables"}


@pytest.mark.parametrize(
    ("name", "make", "told"),
    [one for one in OTHERS if one[0] not in CONVERTIBLE],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_as_sources(
    place: Path, name: str, make: Callable[[Path], None], told: tuple[str, ...]
) -> None:
    make(place / name)
    with pytest.raises(SourceError) as caught:
        scdl.convert(["x.h5ad", name], "made")
    said = str(caught.value)
    assert all(part in said for part in told), said
    assert name in said
    assert "damaged" not in said
    assert not os.path.lexists("made")


#: Where `scdl.open` looks for archives in a directory, and finds none.
PLACES = {"outs", "cellranger", "x.soma", "dataset", "tables"}


@pytest.mark.parametrize(
    ("name", "make", "told"),
    [one for one in OTHERS if one[1].__qualname__ != "hdf5.<locals>.write"],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_as_archives(
    place: Path, name: str, make: Callable[[Path], None], told: tuple[str, ...]
) -> None:
    make(place / name)
    for call in (registry.open_archive, *((scdl.open,) if name not in PLACES else ())):
        with pytest.raises(ArchiveFormatError) as caught:
            call(name)
        said = str(caught.value)
        assert all(part in said for part in told), said
        assert "damaged" not in said


@pytest.mark.parametrize("name", ["x.h5ad", "x.h5mu", "cells", "x.loom"])
def test_hdf5_files_as_archives(place: Path, name: str) -> None:
    hdf5("mod/rna")(place / name) if name != "x.h5ad" else None
    for call in (scdl.open, scdl.verify, registry.open_archive):
        with pytest.raises(ArchiveFormatError, match=r"found an HDF5 file.*convert it first"):
            call(name)


@pytest.mark.parametrize(
    "url",
    [
        "https://host/x.h5ad",
        "http://host/x.h5ad?download=1",
        "s3://bucket/x.h5ad",
        "gs://bucket/dir/x.h5mu",
        "https://host/x.loom",
        "https://host/matrix.mtx.gz",
        "https://host/x.zarr.zip",
        "https://host/x.csv",
    ],
)
def test_files_by_url(place: Path, url: str) -> None:
    for call, kind in ((lambda u: scdl.convert(u, "made"), SourceError), (scdl.open, ScdlError)):
        with pytest.raises(kind, match="download it") as caught:
            call(url)
        assert str(caught.value).startswith(url)


def test_urls_that_nothing_reads(place: Path) -> None:
    with pytest.raises(ArchiveNotFoundError, match="supported schemes: s3"):
        scdl.open("dropbox://x.zarr")


@pytest.mark.parametrize("name", ["x.h5ad", "absent", "a:b.h5mu", "nowhere/x.rds", "x.zarr.zip"])
def test_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceNotFoundError, match="there is no such file"):
        scdl.convert(name, "made")
    with pytest.raises(ArchiveNotFoundError):
        scdl.open(name)


def test_directories_that_are_no_source(place: Path) -> None:
    scdl.convert("x.h5ad", "many/x.scdl" if os.path.isdir("many") else "x.scdl")
    (place / "many").mkdir()
    os.rename("x.scdl", "many/x.scdl")
    with pytest.raises(SourceError, match=r"a directory of archives.*flatten"):
        scdl.convert("many", "made")
    with pytest.raises(ArchiveFormatError, match=r"a directory of archives.*scdl flatten many"):
        scdl.SingleCellDataset("many")
    with pytest.raises(SourceError, match=r"a directory of h5ad files.*convert_directory"):
        scdl.convert(".", "made")
    for path, told in (
        ("many", "no \\*.h5ad file"),
        ("many/x.scdl", "an archive already"),
        ("x.h5ad", "this is a file"),
        ("absent", "no such file"),
    ):
        with pytest.raises(SourceNotFoundError, match=told):
            scdl.convert_directory(path, "made")


NAMES = [
    *("out.h5ad", "out.H5AD", "out.h5", "out.hdf5", "out.h5mu", "out.loom", "out.txt"),
    *("out.csv", "out.csv.gz", "out.zarr.zip", "out.zip", "out.tar.gz", "out.parquet"),
    *("out.rds", "out.npz", "out.json", "out.mtx", "out.h5ad/"),
]


class TestTargets:
    @pytest.mark.parametrize("name", NAMES)
    def test_names_of_files(self, place: Path, name: str) -> None:
        before = set(os.listdir())
        for call in (
            lambda: scdl.convert("x.h5ad", name),
            lambda: scdl.convert_in_parts(["x.h5ad"], name, workers=1, use_processes=False),
            lambda: scdl.convert_directory(".", name, workers=1, use_processes=False),
            lambda: scdl.SingleCellDataset(name, "x.h5ad"),
        ):
            with pytest.raises(PathError, match="an archive is a directory"):
                call()
        assert set(os.listdir()) == before

    def test_what_to_do(self, place: Path) -> None:
        with pytest.raises(PathError, match="scdl export"):
            scdl.convert("x.h5ad", "out.h5ad")
        with pytest.raises(PathError, match="zip it"):
            scdl.convert("x.h5ad", "out.zarr.zip")
        with pytest.raises(PathError, match=r"\.scdl or \.zarr"):
            scdl.convert("x.h5ad", "out.txt")

    def test_other_writers(self, place: Path) -> None:
        scdl.convert("x.h5ad", "a.scdl")
        data = scdl.open("a.scdl")
        collection = scdl.SingleCellCollection(["a.scdl"])
        for call in (
            lambda: data.save("b.h5ad"),
            lambda: data.concat(data, output_path="b.txt"),
            lambda: collection.flatten("b.h5"),
        ):
            with pytest.raises(PathError, match="an archive is a directory"):
                call()

    @pytest.mark.parametrize("name", ["out", "out.scdl", "out.v2", "a.b.c", "2024.01", "out.zarr"])
    def test_names_of_archives(self, place: Path, name: str) -> None:
        assert scdl.convert("x.h5ad", name).n_obs == 40

    def test_an_archive_of_such_a_name_can_be_changed(self, place: Path) -> None:
        scdl.convert("x.h5ad", "a.scdl")
        os.rename("a.scdl", "a.h5ad")
        data = scdl.open("a.h5ad")
        data.cast_data_to_dtype("float64")
        assert scdl.open("a.h5ad").data_dtype == "float64"

    def test_compression_without_a_backend_that_has_it(self, place: Path) -> None:
        with pytest.raises(BackendOptionError, match=r"ends in \.zarr"):
            scdl.convert("x.h5ad", "a.scdl", compression="fast")


class TestExport:
    @pytest.mark.parametrize("backend", ["memmap", "zarr"])
    def test_to_zarr(self, place: Path, backend: str) -> None:
        scdl.convert("x.h5ad", "archive", backend=backend, data_dtype="float32")
        with registry.open_archive("archive") as store:
            export(store, "out.zarr")
        given, back = ad.read_h5ad("x.h5ad"), ad.read_zarr("out.zarr")
        assert np.array_equal(back.X.toarray(), given.X.toarray())
        assert list(back.obs["type"]) == list(given.obs["type"])
        assert list(back.obs_names) == list(given.obs_names)
        assert list(back.var_names) == list(given.var_names)
        with registry.open_archive("out.zarr") as store:
            assert not store.requires, "every reader of Zarr v3 decodes it"

    def test_of_files_whose_var_differs(self, place: Path) -> None:
        for name, column in (("a.h5ad", "n_cells"), ("b.h5ad", "highly_variable")):
            given = ad.read_h5ad("x.h5ad")
            given.var[column] = range(12)
            given.obs_names = name + given.obs_names
            given.write_h5ad(name)
        scdl.convert(["a.h5ad", "b.h5ad"], "archive")
        with registry.open_archive("archive") as store, warnings.catch_warnings(action="ignore"):
            export(store, "out.zarr")
        back = ad.read_zarr("out.zarr")
        assert np.array_equal(back.X.toarray(), np.vstack([CELLS.csr().toarray()] * 2))
        assert list(back.var_names) == list(ad.read_h5ad("x.h5ad").var_names)

    @pytest.mark.parametrize(
        "name", ["out", "out.h5", "out.zarr.zip", "out.txt", "s3://bucket/out.h5ad"]
    )
    def test_other_names(self, place: Path, name: str) -> None:
        scdl.convert("x.h5ad", "archive")
        with registry.open_archive("archive") as store, pytest.raises(PathError, match="ends in"):
            export(store, name)
        assert not os.path.lexists(name)


def write_zip(path: str, directory: str, compression: int, prefix: str = "") -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for above, _, files in os.walk(directory):
            for file in files:
                whole = os.path.join(above, file)
                archive.write(whole, prefix + os.path.relpath(whole, directory))


ZIP_FILES = ["stored", "deflated", "in a directory", "AnnData", "named .zip"]


@pytest.fixture(params=ZIP_FILES)
def zip_file(request: pytest.FixtureRequest, written: Path, place: Path) -> str:
    shutil.copytree(written / "x.zarr", "x.zarr")
    if request.param == "AnnData":
        store = zarr.storage.ZipStore("x.zarr.zip", mode="w")
        with warnings.catch_warnings(action="ignore"):
            ad.read_h5ad("x.h5ad").write_zarr(store)
        store.close()
        return "x.zarr.zip"
    name = "x.zip" if request.param == "named .zip" else "x.zarr.zip"
    compression = zipfile.ZIP_STORED if request.param == "stored" else zipfile.ZIP_DEFLATED
    write_zip(name, "x.zarr", compression, "x.zarr/" if request.param == "in a directory" else "")
    return name


class TestZipFiles:
    def test_reads_as_the_store_does(self, zip_file: str) -> None:
        expected = CELLS.csr().toarray()
        data = scdl.open(zip_file)
        assert np.array_equal(data.read_rows(slice(None)).to_dense(), expected)
        assert np.array_equal(data.read_rows([7, 3, 7]).to_dense(), expected[[7, 3, 7]])
        assert list(data.obs["type"]) == ["A", "B"] * 20
        assert np.array_equal(data.to_anndata().X.toarray(), expected)

    def test_trains_as_the_store_does(self, zip_file: str) -> None:
        pytest.importorskip("torch")
        expected, data = CELLS.csr().toarray(), scdl.open(zip_file)
        for batch in scdl.SingleCellLoader(data, 8, order="sequential", layout="dense"):
            assert np.array_equal(batch.x.numpy(), expected[batch.rows.numpy()])

    def test_is_a_source(self, zip_file: str) -> None:
        scdl.convert(zip_file, "made.scdl")
        scdl.convert([zip_file, "x.h5ad"], "both.scdl")
        assert scdl.open("both.scdl").n_obs == 80
        given = scdl.open("made.scdl").read_rows(slice(None)).to_dense()
        assert np.array_equal(given, CELLS.csr().toarray())

    def test_is_a_member(self, zip_file: str) -> None:
        os.mkdir("many")
        os.rename(zip_file, "many/x.zarr.zip")
        for collection in (scdl.open("many"), scdl.SingleCellCollection(["many/x.zarr.zip"])):
            assert collection.n_obs == 40
            assert collection.read_rows([3]).to_dense().sum() == CELLS.csr()[3].sum()

    def test_verify(self, zip_file: str) -> None:
        assert scdl.verify(zip_file).is_sound
        report = scdl.verify(zip_file, deep=True)
        assert report.is_sound
        assert report.nbytes
        for change in ("repair", "add_checksums"):
            with pytest.raises(BackendOptionError, match="unpack it first"):
                scdl.verify(zip_file, **{change: True})

    def test_is_not_changed(self, zip_file: str) -> None:
        before = Path(zip_file).read_bytes()
        with pytest.raises(PathError, match="a zip file cannot be changed"):
            scdl.open(zip_file).cast_data_to_dtype("float64")
        with pytest.raises(ScdlError):
            scdl.convert("x.h5ad", zip_file, replace=True)
        assert Path(zip_file).read_bytes() == before

    @pytest.mark.parametrize("zip_file", sample(ZIP_FILES, 1), indirect=True)
    def test_after_a_fork(self, zip_file: str, run_python: Run) -> None:
        code = f"""
import scdl, multiprocessing
data = scdl.open({zip_file!r})
data.read_rows([0])
def total(rows):
    return float(data.read_rows(rows).data.sum())
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(3) as pool:
        print(sum(pool.map(total, [[i] for i in range(40)] * 5)))
"""
        done = run_python("-c", code)
        assert done.stdout.split() == [str(float(5 * CELLS.csr().sum()))], done.stderr

    def test_pickles(self, zip_file: str) -> None:
        import pickle

        again = pickle.loads(pickle.dumps(scdl.open(zip_file)))
        assert np.array_equal(again.read_rows([5]).to_dense(), CELLS.csr()[[5]].toarray())


class TestDamagedZipFiles:
    @pytest.fixture
    def stored(self, place: Path) -> Path:
        scdl.convert("x.h5ad", "x.zarr")
        write_zip("x.zarr.zip", "x.zarr", zipfile.ZIP_STORED)
        return place / "x.zarr.zip"

    def test_flipped_bytes(self, stored: Path) -> None:
        content = bytearray(stored.read_bytes())
        with zipfile.ZipFile(stored) as archive:
            infos = [info for info in archive.infolist() if info.file_size > 8]
        for info in infos:
            start = info.header_offset + 30 + len(info.filename.encode())
            damaged = bytearray(content)
            damaged[start + info.file_size // 2] ^= 4
            stored.write_bytes(damaged)
            report = scdl.verify(stored, deep=True)
            assert report.verdict is Verdict.DAMAGED, info.filename
            assert any(info.filename in finding.message for finding in report.findings)

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
    def test_truncated(self, stored: Path, share: float) -> None:
        content = stored.read_bytes()
        stored.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ArchiveFormatError, match="truncated or damaged"):
            scdl.open(stored)
        assert scdl.verify(stored).verdict is Verdict.DAMAGED
        with pytest.raises(SourceError, match="truncated or damaged"):
            scdl.convert(stored, "made")

    def test_other_compressions(self, place: Path) -> None:
        scdl.convert("x.h5ad", "x.zarr")
        write_zip("x.zarr.zip", "x.zarr", zipfile.ZIP_BZIP2)
        with pytest.raises(ArchiveFormatError, match="other than DEFLATE; unpack"):
            scdl.open("x.zarr.zip")

    def test_something_else_of_that_name(self, place: Path) -> None:
        zipped(place / "x.zarr.zip")
        with pytest.raises(ArchiveFormatError, match="expected a Zarr store in the zip file"):
            scdl.open("x.zarr.zip")

    def test_what_unpacks_to_more_than_it_says(self, place: Path) -> None:
        scdl.convert("x.h5ad", "x.zarr")
        write_zip("x.zarr.zip", "x.zarr", zipfile.ZIP_DEFLATED)
        content = Path("x.zarr.zip").read_bytes()
        with zipfile.ZipFile("x.zarr.zip") as archive:
            size = archive.getinfo("zarr.json").file_size.to_bytes(4, "little")
        for lie in (1, 1 << 31):
            Path("x.zarr.zip").write_bytes(content.replace(size, lie.to_bytes(4, "little")))
            with pytest.raises(ArchiveFormatError, match="damaged"):
                scdl.open("x.zarr.zip")


def test_ends_of_names() -> None:
    for path, suffix in {
        "a.zarr.zip": ".zarr.zip",
        "a.h5ad.gz": ".gz",
        "a.csv.gz": ".csv.gz",
        "a.H5AD": ".h5ad",
        "https://h/a.h5ad?x=1.y": ".h5ad",
        "a/": "",
        "a.b/": ".b",
    }.items():
        assert other_formats.suffix_of(path) == suffix


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anywhere")
def test_a_directory_that_cannot_be_read(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0)
    with pytest.raises(ArchiveFormatError, match="another directory"):
        scdl.SingleCellDataset(closed)
