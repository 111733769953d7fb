"""Loom files of both versions, as anndata's reader gives them."""

from __future__ import annotations

import tracemalloc
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from annotated import counts
from budget import examples
from hypothesis import given, settings
from hypothesis import strategies as st

import scdl
from scdl.errors import ConversionFailedError, OptionError, SourceError
from scdl.sources import loom
from scdl.sources.matrices import Bounds
from scdl.sources.transposed import Columns

loompy = pytest.importorskip("loompy")

N_CELLS, N_GENES = 150, 70


def made(path: Path, version: int = 3, **changed: Any) -> Path:
    """A file as loompy writes it; `changed` replaces attributes of cells."""
    rng = np.random.default_rng(0)
    matrix = counts(N_GENES, N_CELLS, rng).toarray()
    cells = {
        "CellID": np.array([f"cell{i}" for i in range(N_CELLS)]),
        "Tissue": np.array([["hj&#228;rna", "a &amp; b", "x<y"][i % 3] for i in range(N_CELLS)]),
        "Age": rng.random(N_CELLS),
        "Cluster": rng.integers(0, 5, N_CELLS),
        "PCA": rng.random((N_CELLS, 4)),
        "Narrow": rng.random((N_CELLS, 1)),
        **changed,
    }
    genes = {
        "Gene": np.array([f"G{i % 60}" for i in range(N_GENES)]),
        "Accession": np.array([f"ENSG{i}" for i in range(N_GENES)]),
        "Loadings": rng.random((N_GENES, 2)),
    }
    layers = {"": matrix, "spliced": sp.coo_matrix(matrix // 2), "other": matrix.astype("i2") * 3}
    with warnings.catch_warnings(action="ignore"):
        loompy.create(str(path), layers, genes, cells, file_attrs={"title": "made"})
        with loompy.connect(str(path)) as file:
            file.col_graphs["KNN"] = sp.random(N_CELLS, N_CELLS, 0.05, rng=rng)
            file.row_graphs["genes"] = sp.random(N_GENES, N_GENES, 0.05, rng=rng)
    if version == 2:
        with h5py.File(path, "a") as file:
            for group in ("col_attrs", "row_attrs"):
                for name, values in file[group].items():
                    if values.dtype.kind == "O":
                        fixed = np.array(list(values), "S")
                        del file[group][name]
                        file[group][name] = fixed
            file.attrs.update({"title": "made", "LOOM_SPEC_VERSION": "2.0.1"})
            del file["attrs"]
    return path


def read(path: Path, **options: Any) -> anndata.AnnData:
    with warnings.catch_warnings(action="ignore"):
        return anndata.io.read_loom(path, X_name="", validate=False, **options)


def values(path: Any) -> np.ndarray:
    return scdl.open(path).read_rows(slice(None)).to_dense()


def same_frames(ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(
        ours[theirs.columns], theirs, check_dtype=False, check_index_type=False
    )
    assert set(ours) == set(theirs)


@pytest.mark.parametrize("version", [2, 3])
def test_what_anndata_reads(tmp_path: Path, version: int) -> None:
    source = made(tmp_path / "a.loom", version)
    expected = read(source)
    report = scdl.convert(source, tmp_path / "a.scdl", obsm="PCA", neighbor_key="KNN")
    ds = scdl.open(tmp_path / "a.scdl")
    np.testing.assert_array_equal(values(report.path), expected.X.toarray())
    same_frames(ds.obs, expected.obs)
    same_frames(ds.var, expected.var)
    assert ds.obs["Tissue"].tolist()[:3] == ["hjärna", "a & b", "x<y"]
    pca = ds.read_rows(slice(None), obsm="PCA").obsm["PCA"]
    np.testing.assert_array_equal(pca, expected.obsm["PCA"])
    lost = {"layers/other", "layers/spliced", "varm/Loadings", "varp/genes", "attrs/title"}
    assert set(report.not_carried) == lost
    assert (report.matrices, report.n_obs, report.n_vars) == (["X"], N_CELLS, [N_GENES])


def test_text_that_is_not_ascii(tmp_path: Path) -> None:
    """Which anndata's reader leaves out."""
    source = made(tmp_path / "a.loom")
    with h5py.File(source, "a") as file:
        del file["col_attrs/Tissue"]
        file["col_attrs/Tissue"] = ["hjärna"] * N_CELLS
    scdl.convert(source, tmp_path / "a")
    assert set(scdl.open(tmp_path / "a").obs["Tissue"]) == {"hjärna"}


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_all_is_kept_in_zarr(tmp_path: Path) -> None:
    source = made(tmp_path / "a.loom")
    report = scdl.convert(source, tmp_path / "a.zarr")
    assert report.not_carried == ("attrs/title",)
    adata, expected = scdl.open(tmp_path / "a.zarr").to_anndata(), read(source)
    for name in ("other", "spliced"):
        np.testing.assert_array_equal(adata.layers[name].toarray(), expected.layers[name].toarray())
        assert adata.layers[name].dtype == {"other": np.int16, "spliced": np.float32}[name]
    np.testing.assert_array_equal(adata.obsm["PCA"], expected.obsm["PCA"])
    np.testing.assert_array_equal(adata.varm["Loadings"], expected.varm["Loadings"])
    with loompy.connect(str(source), "r", validate=False) as file:
        graphs = file.col_graphs["KNN"].toarray(), file.row_graphs["genes"].toarray()
    np.testing.assert_array_equal(adata.obsp["KNN"].toarray(), graphs[0])
    np.testing.assert_array_equal(adata.varp["genes"].toarray(), graphs[1])


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_layers(tmp_path: Path) -> None:
    source = made(tmp_path / "a.loom")
    expected = read(source)
    report = scdl.convert(source, tmp_path / "a", matrix="layers/spliced")
    np.testing.assert_array_equal(values(report.path), expected.layers["spliced"].toarray())
    assert report.matrices == ["layers/spliced"]
    report = scdl.convert(source, tmp_path / "a.zarr", matrix="layers/spliced")
    np.testing.assert_array_equal(
        scdl.open(report.path).to_anndata().X.toarray(), expected.X.toarray()
    )
    with pytest.raises(SourceError, match=r"matrix raw/X; the file has: X, layers/other, layers/"):
        scdl.convert(source, tmp_path / "b", matrix="raw/X")


def test_names(tmp_path: Path) -> None:
    source = made(tmp_path / "a.loom")
    scdl.convert(source, tmp_path / "a", obs_names="Cluster", var_names="Accession")
    ds = scdl.open(tmp_path / "a")
    expected = read(source, obs_names="Cluster", var_names="Accession")
    assert list(ds.obs_names) == list(map(str, expected.obs_names))
    same_frames(ds.var, expected.var)
    with pytest.raises(OptionError, match=r"no attribute 'x'; row_attrs has: Accession, Gene, Loa"):
        scdl.convert(source, tmp_path / "b", var_names="x")
    with pytest.raises(SourceError, match="'PCA' is missing, or not a column of text or numbers"):
        scdl.convert(source, tmp_path / "b", obs_names="PCA")
    assert not (tmp_path / "b").exists()
    with h5py.File(source, "a") as file:
        file["row_attrs"].move("Gene", "var_names")
        del file["col_attrs/CellID"]
    scdl.convert(source, tmp_path / "c")
    ds = scdl.open(tmp_path / "c")
    assert list(ds.var_names) == list(read(source, var_names="var_names").var_names)
    assert list(ds.obs_names) == list(read(source).obs_names) == list(map(str, range(N_CELLS)))


@given(st.data())
@settings(max_examples=examples(20))
def test_any_layout(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Of any chunks, contiguous or not, in blocks of any size, and with several workers."""
    place = tmp_path_factory.mktemp("layout")
    n_genes, n_cells = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 40))
    chunks = data.draw(st.none() | st.tuples(st.integers(1, n_genes), st.integers(1, n_cells)))
    dtype = data.draw(st.sampled_from(["f4", ">f8", "u2", "i1"]))
    matrix = counts(n_genes, n_cells, np.random.default_rng(data.draw(st.integers(0, 9))))
    with h5py.File(place / "a.loom", "w") as file:
        file.create_dataset("matrix", data=matrix.toarray().astype(dtype), chunks=chunks)
        for name in ("row_attrs", "col_attrs"):
            file.create_group(name)
    options = {"block_values": data.draw(st.integers(1, 900))}
    expected = matrix.toarray().T.astype("f4")
    with pytest.MonkeyPatch.context() as patch:
        if data.draw(st.booleans()):
            # Chunks of the same cells do not fit into memory together.
            patch.setattr("scdl.sources.loom._LARGEST_BAND", 0)
        scdl.convert(place / "a.loom", place / "a", **options)
        divided = {"workers": 2, "use_processes": False, "split_bytes": 700}
        scdl.convert_in_parts(place / "a.loom", place / "b", **divided, **options)
    np.testing.assert_array_equal(values(place / "a"), expected)
    np.testing.assert_array_equal(values(place / "b"), expected)


class Recorded:
    """A dataset that counts how often each chunk is read."""

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.reads = dataset, np.zeros(dataset.shape[1], int)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)

    def __getitem__(self, key: Any) -> Any:
        self.reads[key[1]] += 1
        return self.dataset[key]


def test_the_index_of_chunks_takes_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "many.loom"
    with h5py.File(path, "w") as file:
        file.create_dataset("matrix", (150, 200), "u1", chunks=(1, 1), data=np.ones((150, 200)))
        file["col_attrs/CellID"] = np.arange(200).astype("S")
        file["row_attrs/Gene"] = np.arange(150).astype("S")
    with ExitStack() as stack:
        (source,) = loom.open_sources(str(path), None, stack)
        assert sum(len(block.data) for block in source.matrix.blocks(Bounds(1 << 12))) == 30_000
        most, _, held, _ = source._file.id.get_mdc_size()
        assert held <= most == loom._INDEX_BYTES


@given(st.integers(1, 9), st.integers(1, 30))
def test_chunks_are_read_once(tmp_path_factory: Any, width: int, step: int) -> None:
    path = tmp_path_factory.mktemp("chunks") / "a"
    with h5py.File(path, "w") as file:
        expected = np.arange(3 * 30).reshape(3, 30)
        recorded = Recorded(file.create_dataset("m", data=expected, chunks=(2, width)))
        columns = Columns(recorded)
        rows = [columns.read(i, min(i + step, 30)) for i in range(0, 30, step)]
    assert (np.concatenate(rows) == expected.T).all()
    assert (recorded.reads == 1).all()


def test_memory_does_not_grow_with_cells(tmp_path: Path) -> None:
    peaks = []
    for n in (4_000, 40_000):
        with h5py.File(tmp_path / f"{n}.loom", "w") as file:
            file.create_dataset(
                "matrix", (100, n), "f4", chunks=(64, 64), compression="gzip", fillvalue=1
            )
            for name in ("row_attrs", "col_attrs"):
                file.create_group(name)
        tracemalloc.start()
        scdl.convert(tmp_path / f"{n}.loom", tmp_path / f"{n}", block_values=1 << 15)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The names, which are positions here, take some bytes for each cell.
    assert peaks[1] < peaks[0] + 36_000 * 40


def test_directories_and_commands(tmp_path: Path, run_command: Callable[..., Any]) -> None:
    (tmp_path / "in").mkdir()
    source = made(tmp_path / "in" / "a.loom")
    report = scdl.convert_directory(tmp_path / "in", tmp_path / "out", workers=1)
    np.testing.assert_array_equal(values(report.archives[str(source)]), read(source).X.toarray())
    target = str(tmp_path / "command")
    options = ("--matrix", "layers/other", "--var-names", "Accession")
    done = run_command("scdl", "convert", str(source), target, *options)
    assert done.returncode == 0, done.stderr
    assert scdl.open(target).var_names[0] == "ENSG0"


def test_logical_values_of_r(tmp_path: Path) -> None:
    """Their type has two bits, which HDF5 is not asked to convert."""
    source = made(tmp_path / "x.loom")
    with h5py.File(source, "r+") as file:
        two_bits = h5py.h5t.STD_U8LE.copy()
        two_bits.set_precision(2)
        logical = h5py.h5t.enum_create(two_bits)
        for value, name in enumerate((b"FALSE", b"TRUE", b"NA")):
            logical.enum_insert(name, value)
        table = h5py.h5t.create(h5py.h5t.COMPOUND, 1)
        table.insert(b"regulon", 0, logical)
        space = h5py.h5s.create_simple((N_GENES,))
        for name, type_ in ((b"Seen", logical), (b"Regulons", table)):
            h5py.h5d.create(file["row_attrs"].id, name, type_, space)
    report = scdl.convert(source, tmp_path / "a")
    assert {"var/Seen", "var/Regulons"} <= {*report.not_carried}
    assert report.n_obs == N_CELLS


def test_those_of_another_name(tmp_path: Path) -> None:
    source = made(tmp_path / "a.h5")
    assert scdl.convert(source, tmp_path / "a").n_obs == N_CELLS
    with pytest.raises(SourceError, match=r"a\.h5ad: this is a Loom file.* name it \.loom"):
        scdl.convert(source.rename(tmp_path / "a.h5ad"), tmp_path / "b")


def edit(change: Callable[[h5py.File], object]) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        with h5py.File(path, "a") as file:
            change(file)

    return harm


def replaced(name: str, values: Any) -> Callable[[Path], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = values

    return edit(change)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "truncated"),
        (lambda path: path.write_text("text"), "not an HDF5 file"),
        (edit(lambda file: file.__delitem__("col_attrs")), "not a complete Loom file: expected a"),
        (edit(lambda file: file.__delitem__("matrix")), "not a complete Loom file"),
        (replaced("matrix", np.arange(3)), "not a complete Loom file"),
        (replaced("matrix", np.zeros((N_GENES, N_CELLS), "S1")), "expected numbers"),
        (replaced("matrix", np.zeros((N_CELLS, N_GENES))), "CellID has 150 values, expected 70"),
        (replaced("col_attrs/CellID", [b"a", b"b"]), "CellID has 2 values, expected 150"),
        (replaced("col_attrs/Age", np.arange(3)), "column 'Age' has 3 rows, expected 150"),
        (replaced("row_attrs/Gene", np.array([b"\xff"] * N_GENES)), "is not valid UTF-8"),
    ],
)
def test_what_is_wrong(tmp_path: Path, harm: Callable[[Path], object], message: str) -> None:
    source = made(tmp_path / "a.loom")
    harm(source)
    with pytest.raises(SourceError, match=message) as caught:
        scdl.convert(source, tmp_path / "a")
    assert str(source) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [source]
    with pytest.raises(ConversionFailedError, match="1 of 1"):
        scdl.convert_directory(tmp_path, tmp_path / "out", workers=1)


@pytest.mark.parametrize(
    ("harm", "matrix", "message"),
    [
        (replaced("layers/other", np.zeros((3, 3))), "layers/other", r"has shape \(3, 3\), expect"),
        (edit(lambda file: file.create_group("layers/g")), "layers/g", "found a group"),
    ],
)
def test_layers_that_do_not_fit(
    tmp_path: Path, harm: Callable[[Path], None], matrix: str, message: str
) -> None:
    source = made(tmp_path / "a.loom")
    harm(source)
    with pytest.raises(SourceError, match=message):
        scdl.convert(source, tmp_path / "a", matrix=matrix)
    # Other matrices are converted.
    scdl.convert(source, tmp_path / "b")


def test_vectors_and_graphs_that_do_not_fit(tmp_path: Path) -> None:
    source = made(tmp_path / "a.loom")
    replaced("col_attrs/PCA", np.zeros((3, 2)))(source)
    replaced("col_graphs/KNN/a", np.full(3, 200))(source)
    with pytest.raises(SourceError, match="PCA has 3 rows, expected 150"):
        scdl.convert(source, tmp_path / "a", obsm="PCA")
    with pytest.raises(SourceError, match="obsm/none is missing"):
        scdl.convert(source, tmp_path / "a", obsm="none")
    with pytest.raises(SourceError, match="w, a, b differ in length"):
        scdl.convert(source, tmp_path / "a", neighbor_key="KNN")
    assert list(tmp_path.iterdir()) == [source]
