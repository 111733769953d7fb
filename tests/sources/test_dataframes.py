"""obs and var of files as other programs and old releases write them, and as few would."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from anndata.io import write_elem
from sources import names, random_cells, write_h5ad, writing_strings

import scdl
from scdl.conversion.export import export
from scdl.errors import ColumnTypeError, SourceError

N = 6
TEXT = h5py.string_dtype()
LABELS = ["T", "naïve", "NK"]
TARGETS = pytest.mark.parametrize("target", ["x", "x.zarr"])
TABLES = pytest.mark.parametrize("table", ["obs", "var"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    columns = {"kind": pd.Categorical(np.take(LABELS, [0, 1, 2] * 2), LABELS), "n": range(N)}
    obs = pd.DataFrame(columns, index=names("cell", N))
    var = pd.DataFrame(columns, index=names("gene", N))
    return write_h5ad(tmp_path / "a.h5ad", random_cells(N, N), obs=obs, var=var)


def changed(source: Path, change: Callable[[h5py.File], object]) -> None:
    with h5py.File(source, "r+") as file, writing_strings():
        change(file)


def replace(file: h5py.File, name: str, **options: Any) -> None:
    attributes = dict(file[name].attrs) if name in file else {}
    if name in file:
        del file[name]
    file.create_dataset(name, **options).attrs.update(attributes)


def add(file: h5py.File, table: str, name: str) -> None:
    """List a column, which the file may have or not."""
    listed = [*file[table].attrs["column-order"], name]
    file[table].attrs["column-order"] = np.array(listed, TEXT)


def frame(path: Path, table: str) -> pd.DataFrame:
    data = scdl.open(path)
    return data.obs if table == "obs" else data.var


def converted(source: Path, target: str, table: str) -> tuple[pd.DataFrame, scdl.ConversionReport]:
    report = scdl.convert(source, source.with_name(target))
    return frame(source.with_name(target), table), report


class TestLabels:
    """Categories that stand elsewhere than anndata has them."""

    @TARGETS
    @TABLES
    @pytest.mark.parametrize("dtype", ["i4", "i1", "f8"])
    @pytest.mark.parametrize("ordered", [False, True])
    def test_beside_the_table(
        self, source: Path, target: str, table: str, dtype: str, *, ordered: bool
    ) -> None:
        """SeuratDisk leaves them there, without a reference; its missing value is -2^31."""
        missing = {"i4": -(2**31), "i1": -1, "f8": np.nan}[dtype]

        def change(file: h5py.File) -> None:
            del file[table]["kind"]
            file[table]["kind"] = np.array([0, 1, 2, 0, missing, 2], dtype)
            file[f"{table}/__categories/kind"] = np.array(LABELS, TEXT)
            if ordered:
                file[f"{table}/__categories/kind"].attrs["ordered"] = True

        changed(source, change)
        found, report = converted(source, target, table)
        assert found["kind"].cat.categories.tolist() == LABELS
        assert found["kind"].cat.codes.tolist() == [0, 1, 2, 0, -1, 2]
        assert found["kind"].cat.ordered == ordered
        assert not [name for name in report.not_carried if name.startswith(table)]

    @TABLES
    @pytest.mark.parametrize("values", [[0, 1, 2, 0, 1, 3], [0.5, 1, 2, 0, 1, 2]])
    def test_that_are_none_of_the_numbers(
        self, source: Path, table: str, values: list[float]
    ) -> None:
        def change(file: h5py.File) -> None:
            del file[table]["kind"]
            file[table]["kind"] = values
            file[f"{table}/__categories/kind"] = np.array(LABELS, TEXT)

        changed(source, change)
        found, report = converted(source, "x", table)
        assert found["kind"].tolist() == values
        assert f"{table}/__categories/kind" in report.not_carried

    @TARGETS
    @TABLES
    def test_of_a_factor_of_r(self, source: Path, target: str, table: str) -> None:
        def change(file: h5py.File) -> None:
            del file[table]["kind"]
            file[f"{table}/kind/levels"] = np.array(LABELS, TEXT)
            file[f"{table}/kind/values"] = np.array([1, 2, 3, 1, -(2**31), 3], "i4")

        changed(source, change)
        found, _ = converted(source, target, table)
        assert found["kind"].cat.categories.tolist() == LABELS
        assert found["kind"].cat.codes.tolist() == [0, 1, 2, 0, -1, 2]

    @TARGETS
    @TABLES
    @pytest.mark.parametrize("categories", [LABELS, ["T", None, "NK"]])
    def test_as_nullable_strings(
        self, source: Path, target: str, table: str, categories: list[str | None]
    ) -> None:
        """anndata 0.12.0 to 0.12.7 wrote them so."""

        def change(file: h5py.File) -> None:
            del file[table]["kind/categories"]
            write_elem(file[table]["kind"], "categories", pd.array(categories, dtype="string"))

        changed(source, change)
        found, report = converted(source, target, table)
        expected = [categories[i % 3] for i in range(N)]
        assert found["kind"].astype(object).where(found["kind"].notna(), None).tolist() == expected
        assert found["kind"].cat.categories.tolist() == [c for c in categories if c is not None]
        assert "kind" not in str(report.not_carried)

    @TARGETS
    @TABLES
    def test_that_are_missing_or_repeat(self, source: Path, target: str, table: str) -> None:
        def change(file: h5py.File) -> None:
            replace(file, f"{table}/kind/categories", data=[2.5, np.nan, 2.5])

        changed(source, change)
        found, _ = converted(source, target, table)
        assert found["kind"].cat.categories.tolist() == [2.5]
        assert found["kind"].cat.codes.tolist() == [0, -1, 0] * 2
        pytest.importorskip("torch")
        if table == "obs":
            loader = scdl.SingleCellLoader(
                scdl.open(source.with_name(target)), N, obs=["kind"], order="sequential"
            )
            (batch,) = loader
            assert batch.obs["kind"].tolist() == [0, -1, 0] * 2
            assert loader.vocabulary == {"kind": (2.5,)}

    def test_that_an_archive_has_missing(self, source: Path, tmp_path: Path) -> None:
        """Releases before wrote NaN among categories of Zarr archives, which pandas refuses."""
        scdl.convert(source, tmp_path / "x.zarr")
        store = scdl.open(tmp_path / "x.zarr").store
        table = store.read_table("obs")
        codes = pa.array([0, 1, 0, 1, 0, 1], pa.int32())
        kinds = pa.DictionaryArray.from_arrays(codes, pa.array([1.5, np.nan]))
        at = table.schema.get_field_index("kind")
        from storage_backends import registry

        with registry.create(tmp_path / "y.zarr", registry.backend("zarr")) as writer:
            for name in store.arrays:
                writer.append(name, store.read(name))
            writer.write_table("obs", table.set_column(at, "kind", kinds))
            writer.write_table("var/0", store.read_table("var/0"))
            writer.commit(store.attrs)
        data = scdl.open(tmp_path / "y.zarr")
        assert data.obs["kind"].cat.codes.tolist() == [0, -1] * 3
        scdl.convert(tmp_path / "y.zarr", tmp_path / "z")
        assert scdl.open(tmp_path / "z").obs["kind"].cat.categories.tolist() == [1.5]


class TestText:
    @TARGETS
    @TABLES
    @pytest.mark.parametrize("fixed", [False, True])
    def test_utf8_that_calls_itself_ascii(
        self, source: Path, target: str, table: str, *, fixed: bool
    ) -> None:
        encoded = [label.encode() for label in LABELS]
        dtype = h5py.string_dtype("ascii", 8 if fixed else None)
        kind = "S8" if fixed else object

        def change(file: h5py.File) -> None:
            index = file[table].attrs["_index"]
            replace(file, f"{table}/kind/categories", data=np.array(encoded, kind), dtype=dtype)
            text = np.array(encoded * 2, kind)
            for name in (index, "text"):
                replace(file, f"{table}/{name}", data=text, dtype=dtype)
            add(file, table, "text")

        changed(source, change)
        found, report = converted(source, target, table)
        assert found["kind"].tolist() == found["text"].tolist() == LABELS * 2
        assert found.index.tolist() == LABELS * 2
        assert not [name for name in report.not_carried if name.startswith(table)]

    @TARGETS
    @TABLES
    @pytest.mark.parametrize("charset", ["ascii", "utf-8"])
    def test_what_is_no_utf8_is_left_out(
        self, source: Path, target: str, table: str, charset: str
    ) -> None:
        latin = np.array([label.encode("latin-1") for label in LABELS], object)

        def change(file: h5py.File) -> None:
            dtype = h5py.string_dtype(charset)
            replace(file, f"{table}/kind/categories", data=latin, dtype=dtype)
            replace(file, f"{table}/text", data=np.tile(latin, 2), dtype=dtype)
            add(file, table, "text")

        changed(source, change)
        found, report = converted(source, target, table)
        assert found.columns.tolist() == ["n"]
        assert {f"{table}/kind", f"{table}/text"} <= set(report.not_carried)

    @TABLES
    def test_an_index_that_is_no_utf8(self, source: Path, tmp_path: Path, table: str) -> None:
        latin = np.array([label.encode("latin-1") for label in LABELS * 2], object)
        changed(
            source,
            lambda file: replace(
                file, f"{table}/{file[table].attrs['_index']}", data=latin, dtype=TEXT
            ),
        )
        with pytest.raises(
            SourceError, match=rf"a.h5ad: {table}: its index .* not valid UTF-8 text"
        ):
            scdl.convert(source, tmp_path / "x")
        assert not (tmp_path / "x").exists()


def unknown(file: h5py.File, name: str) -> None:
    file.create_group(name).attrs.update({"encoding-type": "of-tomorrow", "encoding-version": "1"})


ODD: dict[str, Callable[[h5py.File, str], object]] = {
    "extended precision": lambda f, n: f.__setitem__(n, np.linspace(0, 1, N).astype("g")),
    "complex": lambda f, n: f.__setitem__(n, np.zeros(N, complex)),
    "records": lambda f, n: f.__setitem__(n, np.zeros(N, [("a", "i4"), ("b", "f4")])),
    "references": lambda f, n: f.create_dataset(n, (N,), h5py.ref_dtype),
    "lists": lambda f, n: f.create_dataset(n, (N,), h5py.vlen_dtype("i4")),
    "two dimensions": lambda f, n: f.__setitem__(n, np.zeros((N, 2))),
    "one number": lambda f, n: f.__setitem__(n, 5),
    "an unknown encoding": unknown,
    "no mask": lambda f, n: (
        f.create_dataset(f"{n}/values", data=np.arange(N)),
        f[n].attrs.__setitem__("encoding-type", "nullable-integer"),
    ),
    "no codes": lambda f, n: (
        f.create_dataset(f"{n}/categories", data=np.arange(N)),
        f[n].attrs.__setitem__("encoding-type", "categorical"),
    ),
    "a link to another file": lambda f, n: f.__setitem__(n, h5py.ExternalLink("b.h5ad", "/x")),
    "a link to nothing": lambda f, n: f.__setitem__(n, h5py.SoftLink("/nowhere")),
    "nothing": lambda f, n: None,
}  # fmt: skip


@TARGETS
@TABLES
@pytest.mark.parametrize("what", ODD)
def test_columns_that_are_left_out(source: Path, target: str, table: str, what: str) -> None:
    """The others come, and the report tells which did not."""

    def change(file: h5py.File) -> None:
        add(file, table, "odd")
        ODD[what](file, f"{table}/odd")

    changed(source, change)
    found, report = converted(source, target, table)
    assert found.columns.tolist() == ["kind", "n"]
    assert f"{table}/odd" in report.not_carried
    assert f"{table}/odd" in str(report)


@pytest.mark.parametrize("matrix", ["X", "raw/X"])
def test_genes_that_the_matrix_does_not_have(tmp_path: Path, matrix: str) -> None:
    """Of a whole AnnData, both tables of genes are kept, as far as they can be read."""
    genes = pd.DataFrame({"n": range(4)}, index=names("gene", 4))
    cells = random_cells(3, 4)
    source = write_h5ad(tmp_path / "a.h5ad", cells, var=genes, raw=(cells, genes))

    def change(file: h5py.File) -> None:
        for table in ("var", "raw/var"):
            add(file, table, "odd")
            file[f"{table}/odd"] = np.zeros(4, "g")

    changed(source, change)
    report = scdl.convert(source, tmp_path / "x.zarr", matrix=matrix)
    assert {"var/odd", "raw/var/odd"} <= set(report.not_carried)
    back = scdl.open(tmp_path / "x.zarr").to_anndata()
    for found in (back.var, back.raw.var):
        pd.testing.assert_frame_equal(found, genes)
    # What an archive has no place for is not looked at.
    report = scdl.convert(source, tmp_path / "x", matrix=matrix)
    other = "raw/var" if matrix == "X" else "var"
    assert not [name for name in report.not_carried if name.startswith(f"{other}/")]


@TARGETS
def test_tables_without_an_encoding(source: Path, tmp_path: Path, target: str) -> None:
    """SeuratDisk writes some: without a list of columns, all that is there are some."""

    def change(file: h5py.File) -> None:
        for name in list(file.attrs):
            del file.attrs[name]
        file.copy("X", file.require_group("raw"), "X")
        for table in ("var", "raw/var"):
            if table in file:
                del file[table]
            file[f"{table}/_index"] = np.array([f"gene{i}" for i in range(N)], TEXT)
            file[table].attrs["_index"] = "_index"
            file[f"{table}/score"] = np.arange(N)
            file[f"{table}/kind"] = np.array([0, 1, 2] * 2, "i4")
            file[f"{table}/__categories/kind"] = np.array(LABELS, TEXT)

    changed(source, change)
    found, _ = converted(source, target, "var")
    assert found.index.tolist() == [f"gene{i}" for i in range(N)]
    assert found["score"].tolist() == list(range(N))
    assert found["kind"].tolist() == LABELS * 2
    report = scdl.convert(source, tmp_path / f"other-{target}", matrix="X")
    assert report.n_vars == [N]
    if target == "x.zarr":
        back = scdl.open(tmp_path / f"other-{target}").to_anndata()
        assert back.raw.var["kind"].tolist() == LABELS * 2


class TestNames:
    @TARGETS
    @TABLES
    @pytest.mark.parametrize(
        ("stored", "expected"),
        [
            (np.arange(6.0), list("012345")),
            (np.array([0.5, 1, 2, 3, 4, 5]), ["0.5", *"12345"]),
            (np.arange(6, dtype="u2"), list("012345")),
            (np.array([True, False] * 3), ["True", "False"] * 3),
        ],
    )
    def test_numbers(
        self, source: Path, target: str, table: str, stored: Any, expected: list[str]
    ) -> None:
        changed(
            source,
            lambda file: replace(file, f"{table}/{file[table].attrs['_index']}", data=stored),
        )
        found, _ = converted(source, target, table)
        assert found.index.tolist() == expected

    @TABLES
    def test_without_the_attribute(self, source: Path, table: str) -> None:
        def change(file: h5py.File) -> None:
            group = file[table]
            named = group.attrs["_index"]
            if named != "index":
                group.move(named, "index")
            del group.attrs["_index"]

        changed(source, change)
        found, _ = converted(source, "x", table)
        assert found.index.tolist() == names("cell" if table == "obs" else "gene", N).tolist()

    @TARGETS
    @TABLES
    def test_that_are_missing(self, source: Path, tmp_path: Path, target: str, table: str) -> None:
        """As anndata writes and reads them: an archive of such gives them back."""

        def change(file: h5py.File) -> None:
            index = file[table].attrs["_index"]
            del file[table][index]
            missing = pd.array(["a", None, "c", "d", "e", None], dtype="string")
            write_elem(file[table], index, missing)

        changed(source, change)
        found, _ = converted(source, target, table)
        expected = ["a", None, "c", "d", "e", None]

        def listed(index: pd.Index) -> list[str | None]:
            return [None if pd.isna(name) else name for name in index]

        assert listed(found.index) == expected
        data = scdl.open(tmp_path / target)
        assert listed(data.obs_names if table == "obs" else data.var_names) == expected
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adata = data.to_anndata()
            assert listed(getattr(adata, f"{table}_names")) == expected
            export(data.store, tmp_path / "back.h5ad")
            adata = anndata.read_h5ad(tmp_path / "back.h5ad")
            assert listed(getattr(adata, f"{table}_names")) == expected
            if target == "x.zarr":
                adata = anndata.read_zarr(tmp_path / target)
                assert listed(getattr(adata, f"{table}_names")) == expected
        scdl.convert(tmp_path / "back.h5ad", tmp_path / "again.zarr")
        assert listed(frame(tmp_path / "again.zarr", table).index) == expected


@TARGETS
def test_what_an_index_is_called_and_types_for_nulls(tmp_path: Path, target: str) -> None:
    """Also without a null, also in archives that are made of such."""
    obs = pd.DataFrame(
        {
            "ints": pd.array([1, 2, 3], "Int32"),
            "bools": pd.array([True, False, True], "boolean"),
            "text": pd.array(["a", "b", "c"], "string"),
            "plain": [1, 2, 3],
        },
        index=pd.Index(["a", "b", "c"], name="barcode"),
    )
    var = pd.DataFrame(index=pd.Index(list("wxyz"), name="symbol"))
    source = write_h5ad(tmp_path / "a.h5ad", random_cells(3, 4), obs=obs, var=var)
    scdl.convert(source, tmp_path / target)
    scdl.SingleCellCollection([tmp_path / target]).flatten(tmp_path / f"flat-{target}")
    shutil.copytree(tmp_path / target, tmp_path / f"cast-{target}")
    scdl.open(tmp_path / f"cast-{target}").cast_data_to_dtype("float64")
    for path in (target, f"flat-{target}", f"cast-{target}"):
        data = scdl.open(tmp_path / path)
        assert data.obs.index.name == "barcode"
        assert data.var.index.name == "symbol"
        kinds = [str(dtype) for dtype in data.obs.dtypes]
        assert kinds == ["Int32", "boolean", "string", "int64"]
        for table in ("obs", "var/0"):
            schema = data.store.table_schema(table)
            assert data.store.read_table(table).schema.equals(schema, check_metadata=True)


def test_numbers_beyond_those_of_tensors(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    obs = pd.DataFrame(
        {"hash": np.array([2**64 - 1, 0, 2**64 - 1, 3], "u8")}, index=names("cell", 4)
    )
    source = write_h5ad(tmp_path / "a.h5ad", random_cells(4, 3), obs=obs)
    scdl.convert(source, tmp_path / "x")
    data = scdl.open(tmp_path / "x")
    told = "obs column 'hash' holds 18446744073709551615, which exceeds int64.* convert the column"
    with pytest.raises(ColumnTypeError, match=told):
        scdl.SingleCellLoader(data, 2, obs=["hash"])
    # They make labels, and batches of arrays.
    loader = scdl.SingleCellLoader(data, 2, order="balanced", by="hash")
    assert len(list(loader)) == 2
    assert data.read_rows([0], obs=["hash"]).obs["hash"].tolist() == [2**64 - 1]


def test_blocks_of_cells_whose_columns_differ(tmp_path: Path) -> None:
    """Archives of other programs may have a table of cells for each block."""
    for i, kinds in enumerate(([np.nan] * 3, ["a", "a", "b"])):
        obs = pd.DataFrame({"kind": kinds, "n": [i, 1, 2]}, index=names(f"c{i}", 3))
        var = pd.DataFrame({"symbol": list("wxyz")}, index=names(f"g{i}-", 4))
        write_h5ad(tmp_path / f"{i}.h5ad", random_cells(3, 4), obs=obs, var=var)
    scdl.convert([tmp_path / "0.h5ad", tmp_path / "1.h5ad"], tmp_path / "x")
    shutil.rmtree(tmp_path / "x" / "scdl")
    index = tmp_path / "x" / "obs_features"
    for i, column in enumerate((pa.array([np.nan] * 3), pa.array(["a", None, "b"]))):
        flags = pa.array([True, False, True]) if i else pa.array([7, 8, 9])
        table = pa.table({"kind": column, "flag": flags})
        pq.write_table(table, index / f"dataframe_{i}.parquet")
    shutil.copy(
        tmp_path / "x" / "var_features" / "cumulative_sum_index.npy",
        index / "cumulative_sum_index.npy",
    )
    (index / "labels.json").write_text('["a", "b"]')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = scdl.open(tmp_path / "x")
    obs = data.obs
    assert [None if pd.isna(v) else v for v in obs["kind"]] == [None] * 3 + ["a", None, "b"]
    assert obs["flag"].tolist() == [7, 8, 9, 1, 0, 1]
    assert data.read_rows([1, 5], obs=["kind"]).obs["kind"].tolist() == [None, "b"]


def test_a_store_of_zarr_leaves_columns_out(tmp_path: Path) -> None:
    adata = anndata.AnnData(
        random_cells(3, 2).csr(),
        pd.DataFrame({"a": [1, 2, 3], "b": list("xyz")}, index=list("pqr")),
        pd.DataFrame(index=list("st")),
    )
    with anndata.settings.override(zarr_write_format=3), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_zarr(tmp_path / "x.zarr")
        obs = zarr.open_group(tmp_path / "x.zarr", mode="r+")["obs"]
        obs.create_array("odd", shape=(3,), dtype="c16")
        obs.attrs["column-order"] = ["a", "odd", "gone", "b"]
        zarr.consolidate_metadata(tmp_path / "x.zarr")
    report = scdl.convert(tmp_path / "x.zarr", tmp_path / "x")
    assert {"obs/odd", "obs/gone"} <= set(report.not_carried)
    assert scdl.open(tmp_path / "x").obs.columns.tolist() == ["a", "b"]
