"""Experiments of TileDB-SOMA, as tiledbsoma gives them as AnnData."""

from __future__ import annotations

import builtins
import shutil
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
from annotated import counts
from budget import examples
from hypothesis import given, settings
from hypothesis import strategies as st

import scdl
from scdl.errors import MissingPackageError, OptionError, SourceError
from scdl.sources import soma
from scdl.sources.matrices import Bounds
from scdl.sources.soma_arrays import SomaMatrix, joinids

tiledbsoma = pytest.importorskip("tiledbsoma")
tiledbsoma_io = pytest.importorskip("tiledbsoma.io")

N_CELLS, N_GENES = 60, 15
UNS = {
    "title": "made",
    "type_colors": np.array(["#111", "#222", "#333", "#444"], object),
    "grid": np.array([["a", "b"], ["c", "d"], ["e", "f"]], object),
    "pca": {"variance": np.arange(4.0), "params": {"n": 3, "ratio": 0.5, "empty": {}}},
    "markers": pd.DataFrame({"p": [0.5, 0.1], "gene": ["g1", "g0"]}, index=["up", "down"]),
}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def cells(n_obs: int = N_CELLS, n_vars: int = N_GENES) -> anndata.AnnData:
    rng = np.random.default_rng(0)
    obs = {
        "type": pd.Categorical(rng.choice(["B", "NK", "T"], n_obs), ["T", "NK", "B", "none"]),
        "n": rng.integers(0, 9, n_obs),
        "score": rng.random(n_obs).astype("f4"),
        "good": rng.random(n_obs) < 0.5,
        "text": [f"é{i % 4}" for i in range(n_obs)],
    }
    names = [f"cell{i}" for i in range(n_obs)]
    return anndata.AnnData(
        counts(n_obs, n_vars, rng),
        pd.DataFrame(obs, index=names),
        pd.DataFrame({"long": np.arange(n_vars)}, index=[f"g{i}" for i in range(n_vars)]),
        layers={"twice": counts(n_obs, n_vars, rng) * 2},
        obsm={"X_pca": rng.random((n_obs, 3))},
        varm={"PCs": rng.random((n_vars, 3))},
        obsp={"near": sp.random(n_obs, n_obs, 0.1, "csr", rng=rng)},
        varp={"corr": sp.random(n_vars, n_vars, 0.3, "csr", rng=rng)},
        uns=UNS,
    )


def written(path: Path, adata: anndata.AnnData, name: str = "RNA", **options: Any) -> Path:
    with warnings.catch_warnings(action="ignore"):
        tiledbsoma_io.from_anndata(str(path), adata, measurement_name=name, **options)
    return path


def read(path: Path, name: str = "RNA", **options: Any) -> anndata.AnnData:
    with warnings.catch_warnings(action="ignore"), tiledbsoma.Experiment.open(str(path)) as found:
        return tiledbsoma_io.to_anndata(found, name, **options)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment that tests only read."""
    return written(tmp_path_factory.mktemp("shared") / "x.soma", cells())


@pytest.fixture
def source(shared: Path, tmp_path: Path) -> Path:
    """An experiment that a test may change."""
    return Path(shutil.copytree(shared, tmp_path / "x.soma"))


def values(path: Any) -> np.ndarray:
    return scdl.open(path).read_rows(slice(None)).to_dense()


def dense(x: Any) -> np.ndarray:
    return x.toarray() if sp.issparse(x) else np.asarray(x)


def test_what_tiledbsoma_reads(shared: Path, tmp_path: Path) -> None:
    expected = read(shared)
    report = scdl.convert(
        shared, tmp_path / "a", obsm="X_pca", neighbor_key="near", block_values=100
    )
    ds = scdl.open(tmp_path / "a")
    np.testing.assert_array_equal(values(tmp_path / "a"), dense(expected.X))
    pd.testing.assert_frame_equal(ds.obs, expected.obs, check_categorical=True)
    pd.testing.assert_frame_equal(ds.var, expected.var)
    pca = ds.read_rows(slice(None), obsm="X_pca").obsm["X_pca"]
    np.testing.assert_array_equal(pca, expected.obsm["X_pca"])
    assert (report.n_obs, report.n_vars, report.matrices) == (N_CELLS, [N_GENES], ["X"])
    assert report.rows_sorted == 0
    assert set(report.not_carried) == {"layers/twice", "varm/PCs", "varp/corr", "uns"}


def same_uns(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            same_uns(ours[key], theirs[key])
    elif isinstance(theirs, pd.DataFrame):
        pd.testing.assert_frame_equal(ours, theirs)
    else:
        np.testing.assert_array_equal(ours, theirs)
        assert np.ndim(ours) == np.ndim(theirs)


def test_all_is_kept_in_zarr(shared: Path, tmp_path: Path) -> None:
    expected = read(shared, extra_X_layer_names=["twice"])
    report = scdl.convert(shared, tmp_path / "a.zarr")
    assert report.not_carried == ()
    adata = scdl.open(tmp_path / "a.zarr").to_anndata()
    np.testing.assert_array_equal(dense(adata.X), dense(expected.X))
    np.testing.assert_array_equal(dense(adata.layers["twice"]), dense(expected.layers["twice"]))
    np.testing.assert_array_equal(dense(adata.obsp["near"]), dense(expected.obsp["near"]))
    np.testing.assert_array_equal(dense(adata.varp["corr"]), dense(expected.varp["corr"]))
    np.testing.assert_array_equal(adata.obsm["X_pca"], expected.obsm["X_pca"])
    np.testing.assert_array_equal(adata.varm["PCs"], expected.varm["PCs"])
    pd.testing.assert_frame_equal(adata.obs, expected.obs)
    same_uns(adata.uns, expected.uns)


def test_entries_of_uns_that_anndata_cannot_have(source: Path, tmp_path: Path) -> None:
    with tiledbsoma.Experiment.open(str(source), "w") as experiment:
        pca = experiment.ms["RNA"]["uns"]["pca"]
        pca.add_new_sparse_ndarray("coordinates", type=pa.float32(), shape=(3, 3))
    report = scdl.convert(source, tmp_path / "a.zarr")
    assert report.not_carried == ("uns/pca/coordinates",)
    same_uns(scdl.open(tmp_path / "a.zarr").to_anndata().uns["pca"], UNS["pca"])


def test_chosen_genes_and_cells(shared: Path, tmp_path: Path) -> None:
    expected = read(shared)
    wanted = expected[expected.obs["type"] == "B", expected.var["long"] > 4]
    scdl.convert(shared, tmp_path / "a.zarr", where="type == 'B'", genes_where="long > 4")
    adata = scdl.open(tmp_path / "a.zarr").to_anndata()
    np.testing.assert_array_equal(dense(adata.X), dense(wanted.X))
    np.testing.assert_array_equal(adata.varm["PCs"], wanted.varm["PCs"])
    np.testing.assert_array_equal(dense(adata.varp["corr"]), dense(wanted.varp["corr"]))


def test_directories(shared: Path, tmp_path: Path) -> None:
    """Experiments are found wherever they are; collections and arrays are none."""
    inside = tmp_path / "in" / "census"
    for name in ("mouse", "human.soma"):
        shutil.copytree(shared, inside / name)
    tiledbsoma.Collection.create(str(tmp_path / "in" / "empty")).close()
    shutil.copytree(shared / "obs", tmp_path / "in" / "frame")
    (inside / "again").symlink_to(inside)
    report = scdl.convert_directory(tmp_path / "in", tmp_path / "out", workers=1)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "census_mouse.scdl", "census_human.scdl"
    }  # fmt: skip
    assert sorted(report.archives) == sorted(map(str, (inside / "human.soma", inside / "mouse")))
    for path in report.archives.values():
        np.testing.assert_array_equal(values(path), dense(cells().X))


def test_layers(shared: Path, tmp_path: Path) -> None:
    report = scdl.convert(shared, tmp_path / "a", matrix="layers/twice")
    assert report.matrices == ["layers/twice"]
    np.testing.assert_array_equal(values(report.path), dense(cells().layers["twice"]))
    report = scdl.convert(shared, tmp_path / "b", matrix="layers/data")
    assert report.matrices == ["X"]
    with pytest.raises(SourceError, match="matrix raw/X; the experiment has: X, layers/twice"):
        scdl.convert(shared, tmp_path / "c", matrix="raw/X")
    assert not (tmp_path / "c").exists()


def test_as_the_census_is(tmp_path: Path) -> None:
    """Counts are the layer raw, genes have ids, cells have no names."""
    adata = cells()
    adata.var.index.name = "feature_id"
    written(tmp_path / "census", adata, X_layer_name="raw")
    with tiledbsoma.Experiment.open(str(tmp_path / "census"), "w") as experiment:
        for frame in (experiment.obs, experiment.ms["RNA"].var):
            frame.metadata["soma_dataframe_original_index_name"] = "null"
    scdl.convert(tmp_path / "census", tmp_path / "a")
    assert list(scdl.open(tmp_path / "a").var_names) == list(adata.var_names)
    np.testing.assert_array_equal(values(tmp_path / "a"), dense(adata.X))


QUERIES = {
    "type == 'B'": lambda obs: obs["type"] == "B",
    "type in ['B', 'T'] and n > 4": lambda obs: obs["type"].isin(["B", "T"]) & (obs["n"] > 4),
    "good == True": lambda obs: obs["good"],
    "n > 100": lambda obs: obs["n"] > 100,
}


@pytest.mark.parametrize("query", QUERIES)
def test_queries(shared: Path, tmp_path: Path, query: str) -> None:
    adata = read(shared)
    expected = adata[QUERIES[query](adata.obs).to_numpy()]
    options: dict[str, Any] = {"obsm": "X_pca", "neighbor_key": "near", "block_rows": 7}
    report = scdl.convert(shared, tmp_path / "a", obs_query=query, **options)
    ds = scdl.open(report.path)
    assert list(ds.obs_names) == list(expected.obs_names)
    assert list(ds.obs["type"]) == list(expected.obs["type"])
    np.testing.assert_array_equal(values(report.path), dense(expected.X))
    rows = ds.read_rows(slice(None), obsm="X_pca")
    np.testing.assert_array_equal(rows.obsm["X_pca"], expected.obsm["X_pca"])
    scdl.convert(shared, tmp_path / "a.zarr", obs_query=query)
    whole = scdl.open(tmp_path / "a.zarr").to_anndata()
    np.testing.assert_array_equal(dense(whole.obsp["near"]), dense(expected.obsp["near"]))


@pytest.mark.parametrize("query", ["nothing == 3", "type ==", "type == 'B' +"])
def test_queries_that_are_not_valid(shared: Path, tmp_path: Path, query: str) -> None:
    with pytest.raises(OptionError, match="cannot be applied to obs, which has the columns obs_id"):
        scdl.convert(shared, tmp_path / "a", obs_query=query)
    assert list(tmp_path.iterdir()) == []


def test_measurements(source: Path, tmp_path: Path) -> None:
    with tiledbsoma.Experiment.open(str(source), "w") as experiment:
        experiment.ms.add_new_collection("prot", tiledbsoma.Measurement)
    report = scdl.convert(source, tmp_path / "a")
    assert "ms/prot" in report.not_carried
    with pytest.raises(OptionError, match="no measurement 'ATAC'; the experiment has: RNA, prot"):
        scdl.convert(source, tmp_path / "b", measurement="ATAC")
    alone = written(tmp_path / "y.soma", cells(9, 4), "ADT")
    assert scdl.convert(alone, tmp_path / "c").n_obs == 9
    with tiledbsoma.Experiment.open(str(alone), "w") as experiment:
        experiment.ms.add_new_collection("prot", tiledbsoma.Measurement)
    with pytest.raises(SourceError, match="with measurement=: ADT, prot"):
        scdl.convert(alone, tmp_path / "d")
    assert scdl.convert(alone, tmp_path / "d", measurement="ADT").n_obs == 9


@given(st.data())
@settings(max_examples=examples(15))
def test_ids_with_gaps(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    place = tmp_path_factory.mktemp("gaps")
    rows = sorted(data.draw(st.sets(st.integers(0, 30), min_size=1)))
    columns = sorted(data.draw(st.sets(st.integers(0, 12), min_size=1)))
    whole = counts(31, 13, np.random.default_rng(data.draw(st.integers(0, 9)))).toarray()
    kind = data.draw(st.sampled_from([tiledbsoma.SparseNDArray, tiledbsoma.DenseNDArray]))
    with kind.create(str(place / "x"), type=pa.float32(), shape=(31, 13)) as array:
        if kind is tiledbsoma.DenseNDArray:
            array.write((slice(0, 31), slice(0, 13)), pa.Tensor.from_numpy(whole))
        else:
            row, column = whole.nonzero()
            parts = row.astype("i8"), column.astype("i8"), whole[row, column]
            names = ("soma_dim_0", "soma_dim_1", "soma_data")
            array.write(pa.table(dict(zip(names, parts, strict=True))))
    with tiledbsoma.open(str(place / "x")) as array:
        matrix = SomaMatrix("x", array, np.array(rows), np.array(columns))
        bounds = Bounds(data.draw(st.integers(1, 50)), data.draw(st.integers(1, 9)))
        blocks = [
            sp.csr_matrix((b.data, b.indices, b.indptr), (len(b.indptr) - 1, len(columns)))
            for b in matrix.blocks(bounds)
        ]
    found = sp.vstack(blocks).toarray()
    np.testing.assert_array_equal(found, whole[np.ix_(rows, columns)])


def test_ids_of_frames(tmp_path: Path) -> None:
    """Rows are in the order of their ids, whatever the data frame is sorted by."""
    schema = pa.schema([("soma_joinid", pa.int64()), ("name", pa.large_string())])
    table = pa.table({"soma_joinid": [7, 2, 5], "name": ["a", "b", "c"]}, schema)
    with tiledbsoma.DataFrame.create(
        str(tmp_path / "f"), schema=schema, index_column_names=["name"], domain=[None]
    ) as frame:
        frame.write(table)
    with tiledbsoma.open(str(tmp_path / "f")) as frame:
        ids = joinids(frame)
        assert ids.tolist() == [2, 5, 7]
        found = soma.SomaTable("f", frame, ids, ("name",)).read(1, 3)
    assert found.to_pydict() == {"_index": ["c", "a"]}


def test_memory_does_not_grow_with_cells(tmp_path: Path) -> None:
    largest = []
    for n in (1_000, 10_000):
        adata = anndata.AnnData(sp.csr_matrix(np.ones((n, 20), "f4")))
        source = written(tmp_path / f"{n}.soma", adata)
        with tiledbsoma.Experiment.open(str(source)) as experiment:
            ids = np.arange(n)
            matrix = SomaMatrix("x", experiment.ms["RNA"].X["data"], ids, np.arange(20))
            tracemalloc.start()
            n_values = sum(len(block.data) for block in matrix.blocks(Bounds(1 << 10)))
            largest.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert n_values == 20 * n
    assert largest[1] < 1.5 * largest[0]


def test_commands(shared: Path, tmp_path: Path, run_command: Callable[..., Any]) -> None:
    target = str(tmp_path / "a")
    options = ("--measurement", "RNA", "--obs-query", "type == 'B'")
    done = run_command("scdl", "convert", str(shared), target, *options)
    assert done.returncode == 0, done.stderr
    assert set(scdl.open(target).obs["type"]) == {"B"}


def test_without_the_package(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def absent(name: str, *rest: Any, **options: Any) -> Any:
        if name == "tiledbsoma":
            raise ImportError(name)
        return original(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingPackageError, match=r"pip install 'scdl-store\[soma\]'"):
        scdl.convert(shared, tmp_path / "a")


@pytest.mark.parametrize(
    ("path", "is_it"),
    [
        ("tiledb://space/experiment", True),
        ("s3://bucket/cell-census/2025-01-30/soma/census_data/homo_sapiens", True),
        ("s3://bucket/x.soma/", True),
        ("s3://bucket/x.zarr", False),
        ("/nowhere/x.soma", False),
    ],
)
def test_detection(path: str, is_it: bool) -> None:
    assert soma.is_soma(path) == is_it


def test_what_is_no_experiment(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="expected a SOMA experiment, found a SOMADataFrame"):
        scdl.convert(shared / "obs", tmp_path / "a")
    with pytest.raises(SourceError, match=r"found a SOMACollection; give the path of one in it: R"):
        scdl.convert(shared / "ms", tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def without_fragments(path: Path) -> None:
    for fragment in (path / "ms/RNA/X/data/__fragments").iterdir():
        for file in fragment.iterdir():
            file.write_bytes(file.read_bytes()[:10])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (without_fragments, "tiledbsoma cannot read it"),
        (lambda path: shutil.rmtree(path / "obs"), "tiledbsoma cannot read it"),
        (lambda path: shutil.rmtree(path / "ms/RNA/X/data"), "tiledbsoma cannot read it"),
        (lambda path: shutil.rmtree(path / "ms/RNA/var/__schema"), "tiledbsoma cannot read it"),
    ],
)
def test_what_is_damaged(source: Path, harm: Callable[[Path], object], message: str) -> None:
    harm(source)
    with pytest.raises(SourceError, match=message) as caught:
        scdl.convert(source, source.parent / "a")
    assert str(source) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(source.parent.iterdir()) == [source]
