"""obs, var and names: what pandas has in the file is what it has in the archive."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from budget import sample
from columns import COLUMNS, N, with_times
from hypothesis import given
from hypothesis import strategies as st
from places import GOLDEN
from reading import assert_same
from sources import Cells, names, random_cells, write_h5ad, write_matrix, writing_strings

import scdl
from scdl.archive.tables import Encoded, as_array, encode
from scdl.errors import FeatureNotFoundError
from storage_backends.memmap import parquet, table_writer


def convert(directory: Path, obs: pd.DataFrame, var: pd.DataFrame | None = None) -> Any:
    cells = random_cells(len(obs), 4 if var is None else len(var))
    source = write_h5ad(directory / "a.h5ad", cells, obs=obs, var=var)
    scdl.convert(source, directory / "archive")
    return scdl.open(directory / "archive")


def assert_column(found: pd.Series, expected: pd.Series) -> None:
    """Equal values and nulls, equal kinds; strings may be of any of pandas' string types."""
    if isinstance(expected.dtype, pd.CategoricalDtype):
        assert isinstance(found.dtype, pd.CategoricalDtype)
        assert found.cat.categories.tolist() == expected.cat.categories.tolist()
        assert found.cat.ordered == expected.cat.ordered
        assert found.cat.codes.tolist() == expected.cat.codes.tolist()
        return
    if not pd.api.types.is_numeric_dtype(expected):
        assert found.isna().tolist() == expected.isna().tolist()
        assert found.dropna().tolist() == expected.dropna().tolist()
        return
    pd.testing.assert_series_equal(found, expected)


@pytest.mark.parametrize("name", sample(COLUMNS, 4))
def test_column_of_obs_alone(tmp_path: Path, name: str) -> None:
    obs = pd.DataFrame({name: COLUMNS[name]}, index=names("cell", N))
    ds = convert(tmp_path, obs)
    assert ds.obs.columns.tolist() == [name]
    assert ds.obs.index.tolist() == ds.obs_names.tolist() == obs.index.tolist()
    assert_column(ds.obs[name], obs[name])
    assert_column(ds.obs[name], anndata.read_h5ad(tmp_path / "a.h5ad").obs[name])
    alone = ds.read_obs(name, index=False)
    assert alone.index.tolist() == [*range(N)]
    assert_column(alone[name], ds.obs[name].reset_index(drop=True))
    arrow = ds.read_obs([name], arrow_strings=True)
    assert arrow.index.tolist() == obs.index.tolist()
    assert_column(arrow[name].reset_index(drop=True), alone[name])


def test_some_columns_of_obs(tmp_path: Path) -> None:
    obs = pd.DataFrame(
        {"a": [1, 2], "b": ["x", "y"], "c": pd.Categorical(["u", "v"])}, index=["one", "two"]
    )
    obs.index.name = "barcode"
    ds = convert(tmp_path, obs)
    both = scdl.SingleCellCollection([tmp_path / "archive"])
    for cells in ds, both, both.select_genes("union"):
        found = cells.read_obs(["c", "a"])
        pd.testing.assert_frame_equal(found, obs[["c", "a"]])
        found["a"] = 0
        found.loc["one", "a"] = 7  # what is returned can be changed
        assert cells.read_obs("a", index=False)["a"].tolist() == [1, 2]
        assert cells.read_obs([], index=True).index.tolist() == ["one", "two"]
        assert len(cells.read_obs([], index=False)) == 2
        with pytest.raises(FeatureNotFoundError, match="has no column 'd'; it has: a, b, c"):
            cells.read_obs(["a", "d"])
    arrow = ds.read_obs(arrow_strings=True)
    assert str(arrow["b"].dtype) == str(arrow.index.dtype) == "str"


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All columns, of obs and of var."""
    obs, var = (pd.DataFrame(COLUMNS, index=names(prefix, N)) for prefix in ("cell", "gene"))
    return convert(tmp_path_factory.mktemp("together"), obs, var)


def test_columns_of_obs(together: Any) -> None:
    source = anndata.read_h5ad(Path(together.data_path).with_name("a.h5ad"))
    whole, alone = together.obs, together.read_obs(list(COLUMNS), index=False)
    arrow = together.read_obs(list(COLUMNS), arrow_strings=True)
    cells = names("cell", N).tolist()
    assert whole.index.tolist() == arrow.index.tolist() == together.obs_names.tolist() == cells
    assert alone.index.tolist() == [*range(N)]
    for name, values in COLUMNS.items():
        assert_column(whole[name], pd.Series(values, cells, name=name))
        assert_column(whole[name], source.obs[name])
        assert_column(alone[name], whole[name].reset_index(drop=True))
        assert_column(arrow[name].reset_index(drop=True), alone[name])


def test_columns_of_var(together: Any) -> None:
    found = together.var
    assert found.index.tolist() == together.var_names.tolist() == names("gene", N).tolist()
    for name, values in COLUMNS.items():
        assert_column(found[name], pd.Series(values, names("gene", N), name=name))


def test_columns_in_a_batch(together: Any) -> None:
    """One value a cell, in the order of the batch; categories come as what they stand for."""
    rows = [4, 1, 1, -1]
    for name, values in COLUMNS.items():
        found = together.read_rows(rows, obs=[name]).obs[name]
        assert isinstance(found, np.ndarray)
        assert found.shape == (4,)
        expected = pd.Series(values).iloc[rows]
        assert pd.isna(found).tolist() == expected.isna().tolist(), name
        assert found[~pd.isna(found)].tolist() == expected.dropna().tolist(), name


@pytest.mark.parametrize("name", sample(COLUMNS, 4))
def test_column_in_features(tmp_path: Path, name: str) -> None:
    obs = pd.DataFrame({name: COLUMNS[name], "other": np.arange(N)}, index=names("cell", N))
    features = convert(tmp_path, obs).obs_features()
    for i in range(N):
        (value, other), _ = features[i]
        assert other == i
        expected = obs[name].iloc[i]
        assert pd.isna(value) if pd.isna(expected) else value == expected
    ((block,), (label,)) = features[1:4]
    assert list(block) == [name, "other"]
    assert block["other"].tolist() == [1, 2, 3]
    assert str(label).endswith("a.h5ad")


def test_all_columns_keep_their_order(tmp_path: Path) -> None:
    obs = pd.DataFrame(COLUMNS, index=names("cell", N))
    ds = convert(tmp_path, obs)
    assert ds.obs.columns.tolist() == list(COLUMNS)
    batch = ds.read_rows([2], obs=["ints", "floats"])
    assert list(batch.obs) == ["ints", "floats"]


def test_no_columns_no_cells_and_no_genes(tmp_path: Path) -> None:
    for i, (n_obs, n_vars) in enumerate([(3, 4), (0, 4), (3, 0)]):
        (tmp_path / str(i)).mkdir()
        obs = pd.DataFrame(index=names("cell", n_obs))
        ds = convert(tmp_path / str(i), obs, pd.DataFrame(index=names("gene", n_vars)))
        assert ds.obs.shape == (n_obs, 0)
        assert ds.var.shape == (n_vars, 0)
        assert ds.obs_names.tolist() == obs.index.tolist()
        assert ds.var_names.tolist() == [f"gene{i}" for i in range(n_vars)]


def test_names_are_the_feature_where_there_is_no_column(tmp_path: Path) -> None:
    ds = convert(tmp_path, pd.DataFrame(index=names("cell", 3)))
    genes = [f"gene{i}" for i in range(4)]
    assert [column.tolist() for column in ds.get_row(0, return_features=True)[1]] == [genes]
    assert ds.get_row(0, True, ["feature_id"])[1][0].tolist() == genes
    assert ds.features().lookup(0, ["var_feature_id"])[0][0].tolist() == genes
    assert ds.obs_features()[2][0] == ["cell2"]


@pytest.mark.parametrize("target", ["x", "x.zarr"])
def test_times_of_earlier_releases(tmp_path: Path, target: str) -> None:
    """They are read, and left out of what is made of the archive."""
    frames = [pd.DataFrame({"n": range(n)}, index=names("n", n)) for n in (3, 4)]
    convert(tmp_path, *frames)
    for table in ("obs", "var"):
        with_times(tmp_path / "archive", table)
    ds = scdl.open(tmp_path / "archive")
    for frame in (ds.obs, ds.var):
        assert frame["time"].astype("int64").tolist() == list(range(len(frame)))
    report = scdl.convert(tmp_path / "archive", tmp_path / target)
    assert report.not_carried == ("obs/time", "var/time")
    ds = scdl.open(tmp_path / target)
    assert (ds.obs.columns.tolist(), ds.var.columns.tolist()) == (["n"], ["n"])


def test_duplicate_names(tmp_path: Path) -> None:
    obs = pd.DataFrame({"age": [1, 2, 3]}, index=pd.Index(["same", "same", ""]))
    var = pd.DataFrame({"chromosome": ["1", "1", "X"]}, index=pd.Index(["g", "g", "h"]))
    ds = convert(tmp_path, obs, var)
    assert ds.obs.index.tolist() == ["same", "same", ""]
    assert ds.var_names.tolist() == ["g", "g", "h"]
    assert ds.var["chromosome"].tolist() == ["1", "1", "X"]


@pytest.mark.parametrize("name", ["feature_id", "obs_feature_id", "var_feature_id", "index"])
def test_columns_called_like_an_index(tmp_path: Path, name: str) -> None:
    obs = pd.DataFrame({name: ["a", "b", "c"]}, index=names("cell", 3))
    var = pd.DataFrame({name: list("wxyz")}, index=names("gene", 4))
    ds = convert(tmp_path, obs, var)
    assert ds.obs[name].tolist() == ["a", "b", "c"]
    assert ds.obs_names.tolist() == ["cell0", "cell1", "cell2"]
    assert ds.var[name].tolist() == list("wxyz")
    assert ds.get_row(0, True, [name])[1][0].tolist() == list("wxyz")


def test_column_called_index_with_an_underscore(tmp_path: Path) -> None:
    """Which anndata cannot write, but a file may have."""
    source = write_h5ad(tmp_path / "a.h5ad", random_cells(3, 4))
    with h5py.File(source, "r+") as file:
        del file["obs"]
        obs = file.create_group("obs")
        obs.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0"})
        obs.attrs.update({"_index": "names", "column-order": ["_index"]})
        obs["names"] = ["a", "b", "c"]
        obs["_index"] = np.arange(3)
    report = scdl.convert(source, tmp_path / "archive")
    ds = scdl.open(tmp_path / "archive")
    assert ds.obs_names.tolist() == ["a", "b", "c"]
    assert report.not_carried == ("obs/_index",)


@pytest.mark.parametrize("name", ["ä", " ", "a.b", "...", "x" * 300, "'; drop", "0", "%", "a\nb"])
def test_odd_column_names(tmp_path: Path, name: str) -> None:
    ds = convert(tmp_path, pd.DataFrame({name: [1, 2, 3]}, index=names("cell", 3)))
    assert ds.obs[name].tolist() == [1, 2, 3]


def test_column_names_with_slashes(tmp_path: Path) -> None:
    """HDF5 takes these for paths."""
    source = write_h5ad(tmp_path / "a.h5ad", random_cells(3, 4))
    with h5py.File(source, "r+") as file:
        file["obs"].attrs["column-order"] = ["a/b"]
        file["obs"].create_group("a")["b"] = np.arange(3)
    scdl.convert(source, tmp_path / "archive")
    assert scdl.open(tmp_path / "archive").obs["a/b"].tolist() == [0, 1, 2]


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5), max_size=8)
)
def test_any_text(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        obs = pd.DataFrame(
            {"text": np.array(texts, dtype=object), "category": pd.Categorical(texts)},
            index=pd.Index(texts, dtype=object),
        )
        ds = convert(Path(place), obs)
        assert ds.obs_names.tolist() == texts
        assert ds.obs["text"].tolist() == texts
        assert ds.obs["category"].tolist() == texts


def test_unknown_column_names_those_there_are(tmp_path: Path) -> None:
    obs = pd.DataFrame({"age": [1], "sex": ["f"]}, index=names("cell", 1))
    var = pd.DataFrame({"symbol": ["a"], "chromosome": ["b"]}, index=names("gene", 1))
    ds = convert(tmp_path, obs, var)
    for ask in (
        lambda: ds.get_row(0, True, ["nope"]),
        lambda: ds.get_row_padded(0, True, ["symbol", "nope"]),
        lambda: ds.var_features().lookup(0, ["nope"]),
    ):
        with pytest.raises(scdl.errors.FeatureNotFoundError, match=r"nope.*symbol.*chromosome"):
            ask()
    with pytest.raises(scdl.errors.FeatureNotFoundError, match=r"nope.*age.*sex"):
        ds.read_rows([0], obs=["nope"])


class TestLegacy:
    """What anndata wrote before 0.7, and 0.7 itself."""

    cells = random_cells(4, 3, density=0.7)

    def sparse(self, file: h5py.File, name: str, cells: Cells) -> None:
        write_matrix(file, name, cells)
        for attribute in ("encoding-type", "encoding-version", "shape"):
            del file[name].attrs[attribute]
        file[name].attrs["h5sparse_format"] = "csr"
        file[name].attrs["h5sparse_shape"] = np.array(cells.shape)

    def test_compound_tables(self, tmp_path: Path) -> None:
        raw = random_cells(4, 5, seed=9)
        with h5py.File(tmp_path / "a.h5ad", "w") as file:
            file["X"] = self.cells.csr().toarray()
            self.sparse(file, "raw.X", raw)
            obs = [(b"c0", 1, 0.5), (b"c1", 0, 1.5), (b"c2", -1, 2.5), (b"c3", 1, 3.5)]
            fields = [("index", "S2"), ("type", "i1"), ("score", "f4")]
            file["obs"] = np.array(obs, dtype=fields)
            var = [(b"g0", True), (b"g1", False), (b"g2", True)]
            file["var"] = np.array(var, dtype=[("index", "S2"), ("variable", "?")])
            file["raw.var"] = np.array([(f"r{i}".encode(),) for i in range(5)], [("index", "S2")])
            file["uns/type_categories"] = np.array([b"B", b"T"])
            file["obsm"] = np.array([([i, i],) for i in range(4)], dtype=[("X_pca", "f4", (2,))])
        report = scdl.convert(tmp_path / "a.h5ad", tmp_path / "raw")
        assert report.matrices == ["raw/X"]
        ds = scdl.open(tmp_path / "raw")
        assert_same(ds, raw.csr())
        assert ds.var_names.tolist() == [f"r{i}" for i in range(5)]
        assert ds.obs_names.tolist() == ["c0", "c1", "c2", "c3"]
        assert ds.obs.columns.tolist() == ["type", "score"]
        assert_column(ds.obs["type"], pd.Series(pd.Categorical(["T", "B", None, "T"])))
        assert ds.obs["score"].tolist() == [0.5, 1.5, 2.5, 3.5]
        scdl.convert(tmp_path / "a.h5ad", tmp_path / "x", matrix="X", obsm=["X_pca"])
        ds = scdl.open(tmp_path / "x")
        assert_same(ds, self.cells.csr())
        assert ds.var["variable"].tolist() == [True, False, True]
        vectors = ds.read_rows([3, 0], obsm=["X_pca"]).obsm["X_pca"]
        assert vectors.tolist() == [[3, 3], [0, 0]]

    def test_categories_beside_the_columns(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5ad", "w") as file, writing_strings():
            write_matrix(file, "X", self.cells)
            for table, n in (("obs", 4), ("var", 3)):
                group = file.create_group(table)
                group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.1.0"})
                group.attrs.update({"_index": "names", "column-order": ["type"]})
                group["names"] = [f"{table}{i}" for i in range(n)]
                categories = group.create_group("__categories")
                categories["type"] = ["hi", "lo", "mid"]
                categories["type"].attrs["ordered"] = table == "obs"
                group["type"] = np.array([1, 0, -1, 1][:n], "i1")
                group["type"].attrs["categories"] = categories["type"].ref
        scdl.convert(tmp_path / "a.h5ad", tmp_path / "archive")
        ds = scdl.open(tmp_path / "archive")
        assert_same(ds, self.cells.csr())
        expected = pd.Categorical(["lo", "hi", None, "lo"], ["hi", "lo", "mid"], ordered=True)
        assert_column(ds.obs["type"], pd.Series(expected))
        assert ds.obs_names.tolist() == ["obs0", "obs1", "obs2", "obs3"]
        assert ds.var["type"].tolist()[:2] == ["lo", "hi"]

    def test_fixed_width_strings(self, tmp_path: Path) -> None:
        source = write_h5ad(tmp_path / "a.h5ad", self.cells)
        with h5py.File(source, "r+") as file:
            for table, n in (("obs", 4), ("var", 3)):
                index = file[table].attrs["_index"]
                attributes = dict(file[table][index].attrs)
                del file[table][index]
                file[table][index] = np.array([f"{table}{i}".encode() for i in range(n)])
                file[table][index].attrs.update(attributes)
        scdl.convert(source, tmp_path / "archive")
        ds = scdl.open(tmp_path / "archive")
        assert ds.obs_names.tolist() == ["obs0", "obs1", "obs2", "obs3"]
        assert ds.var_names.tolist() == ["var0", "var1", "var2"]

    def test_the_file_that_scanpy_ships(self, tmp_path: Path) -> None:
        from importlib import metadata

        try:
            located = metadata.distribution("scanpy").locate_file(
                "scanpy/datasets/10x_pbmc68k_reduced.h5ad"
            )
        except metadata.PackageNotFoundError:
            pytest.skip("scanpy is not installed")
        report = scdl.convert(located, tmp_path / "archive")
        assert report.matrices == ["raw/X"]
        assert report.rows_sorted > 0
        ds = scdl.open(tmp_path / "archive")
        golden = scdl.open(GOLDEN / "pbmc68k_v013")
        expected = golden.read_rows(slice(None))
        assert_same(ds, expected.to_scipy())
        assert ds.obs["bulk_labels"].cat.categories.size == 10
        assert ds.obs["bulk_labels"].tolist() == golden.obs["bulk_labels"].tolist()
        assert ds.obs.columns.tolist() == golden.obs.columns.tolist()
        assert ds.obs_names[0] == "AAAGCCTGGCTAAC-1"


def test_a_large_table_is_read_in_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a table, of as many columns as there are kinds, are those of the whole."""
    monkeypatch.setattr(table_writer, "ROW_GROUP", 10)
    obs = pd.DataFrame(
        {
            "number": np.arange(75),
            "kind": pd.Categorical([f"k{i % 7}" for i in range(75)]),
            "text": [f"t{i}" for i in range(75)],
        },
        index=names("c", 75),
    )
    write_h5ad(tmp_path / "x.h5ad", random_cells(75, 3, seed=1), obs=obs)
    store = scdl.SingleCellDataset(tmp_path / "x", tmp_path / "x.h5ad").store
    alone = store.read_table("obs")
    monkeypatch.setattr(parquet, "_MOST_ALONE", 0)
    calls = []
    real = parquet.ParquetFile._read_groups
    monkeypatch.setattr(
        parquet.ParquetFile,
        "_read_groups",
        lambda self, *arguments: calls.append(arguments) or real(self, *arguments),
    )
    for start, stop in (0, 75), (5, 6), (9, 11), (12, 69), (70, 75), (30, 30):
        for columns in None, ["kind"], ["text", "number"]:
            found = store.read_table("obs", columns, start, stop)
            expected = alone if columns is None else alone.select(columns)
            assert found.equals(expected.slice(start, stop - start))
    assert calls


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
@pytest.mark.parametrize("target", sample(["x", "x.zarr"], 1))
def test_no_thread_of_arrow_reads(tmp_path: Path, target: str) -> None:
    """One may let go of memory that Python knows while Python ends: 'terminate called'."""
    obs = pd.DataFrame(
        {name: pd.Categorical(list("abcabc")) for name in "abc"} | {"n": range(6)},
        index=names("c", 6),
    )
    write_h5ad(tmp_path / "x.h5ad", random_cells(6, 3, seed=1), obs=obs)
    scdl.convert(tmp_path / "x.h5ad", tmp_path / target)
    code = f"""
import os, threading
import pyarrow.parquet, numba, scipy.linalg, pandas, scdl
from storage_backends.memmap import parquet
parquet._MOST_ALONE = 0
def native():
    names = [open(f"/proc/self/task/{{n}}/comm").read() for n in os.listdir("/proc/self/task")]
    return len([n for n in names if "jemalloc" not in n]) - threading.active_count()
before = native()
data = scdl.open({str(tmp_path / target)!r})
scdl.verify(data.data_path, deep=True)
data.obs, data.obs_names, data.read_rows([1, 2], obs=["a", "n"])
assert native() == before, (before, native())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


_LABELS = st.sampled_from(["a", "b", "c", None])


@given(
    categories=st.lists(st.lists(_LABELS, min_size=1, max_size=5), min_size=1, max_size=3),
    code_type=st.sampled_from(["int8", "uint8", "int32", "uint16"]),
    data=st.data(),
)
def test_encoded_columns_have_the_values_of_the_columns(
    categories: list[list[str | None]], code_type: str, data: st.DataObject
) -> None:
    """Also with repeated and missing categories, missing codes, and lists known from others."""
    known: dict[bytes, Any] = {}
    lists: dict[tuple[str | None, ...], Any] = {}
    for labels in categories * 2:
        codes = data.draw(st.lists(st.none() | st.integers(0, len(labels) - 1), max_size=9))
        column = pa.DictionaryArray.from_arrays(
            pa.array(codes, code_type), pa.array(labels, pa.string())
        )
        text = column.dictionary_decode()
        for chunks in ([column], [text], [text[:2], text[2:]]):
            alone, shared = (encode(pa.chunked_array(chunks), k) for k in (None, known))
            for found in (alone, shared):
                assert isinstance(found, Encoded)
                assert as_array(found).to_pylist() == text.to_pylist()
                assert found.labels.null_count == 0
                assert len(found.labels.unique()) == len(found.labels)
        shared = encode(pa.chunked_array([column]), known)
        assert isinstance(shared, Encoded)
        assert lists.setdefault(tuple(labels), shared.labels) is shared.labels


@given(st.lists(st.integers(-1, 3), max_size=9), st.permutations(range(4)))
def test_recoded_labels(codes: list[int], positions: list[int]) -> None:
    column = Encoded(np.array(codes, "i1"), pa.array(list("abcd")), pa.string())
    out = np.empty(len(codes), "i2")
    column.recoded(np.array(positions), out)
    assert out.tolist() == [positions[code] if code >= 0 else -1 for code in codes]
