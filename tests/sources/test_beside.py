"""Tables of cells and genes beside a matrix, joined by name."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from tenx import BARCODES, NAMES, h5_of_version_3

import scdl
from scdl.errors import OptionError, SourceError, SourceNotFoundError

TABLE = pd.DataFrame(
    {
        "donor": ["D1", "D2", "D1"],
        "age": [31, 42, 53],
        "score": [0.5, np.nan, -0.0],
        "type": pd.Categorical(["B", "T", "B"], ["T", "B", "NK"]),
    },
    index=["c3", "c1", "elsewhere"],
)
CELLS = ["c1", "c2", "c3"]


def cells(names: list[str] = CELLS, genes: int = 2) -> anndata.AnnData:
    X = sp.csr_matrix(np.arange(len(names) * genes, dtype="f4").reshape(-1, genes))
    obs = pd.DataFrame({"n": range(len(names))}, index=names)
    return anndata.AnnData(X, obs, pd.DataFrame(index=[f"g{i}" for i in range(genes)]))


def written(table: pd.DataFrame, path: Path) -> Path:
    text = table.to_csv(sep="," if ".csv" in path.name else "\t")
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv", "t.txt", "t.parquet", "", "arrow"])
@pytest.mark.parametrize("target", ["a", "a.zarr"])
def test_obs(tmp_path: Path, name: str, target: str) -> None:
    table: Any = written(TABLE, tmp_path / name) if name not in ("", "arrow") else TABLE
    if name == "arrow":
        table = pa.Table.from_pandas(TABLE)
    report = scdl.convert(cells(), tmp_path / target, obs=table)
    where = "the table obs=" if name in ("", "arrow") else str(table)
    assert report.unmatched == (f"2 of 3 cells are in {where}, and 1 of its 3 rows are of no cell",)
    assert report.unmatched[0] in str(report)
    found = scdl.open(tmp_path / target).obs
    expected = cells().obs.join(TABLE)
    assert list(found.columns) == list(expected.columns)
    for column in found:
        missing = expected[column].isna().to_numpy()
        assert (found[column].isna() == missing).all()
        assert (found[column][~missing] == expected[column][~missing]).all()
    if name.endswith(".parquet") or not name:
        assert found["type"].cat.categories.tolist() == ["T", "B", "NK"]


def test_var_of_cell_ranger(tmp_path: Path) -> None:
    source = h5_of_version_3(tmp_path / "m.h5")
    genes = pd.DataFrame({"chromosome": ["17", "4"]}, index=["TP53", "GENE"])
    obs = pd.DataFrame({"n": range(9)}, index=BARCODES[::-1])
    report = scdl.convert(
        source, tmp_path / "a", var=genes, obs=written(obs, tmp_path / "o.csv"), feature_types="all"
    )
    assert report.unmatched == (
        "3 of 6 genes are in the table var=, and 0 of its 2 rows are of no gene",
    )
    ds = scdl.open(tmp_path / "a")
    assert ds.obs["n"].tolist() == [*range(9)][::-1]
    # A gene that is there twice has both rows.
    found = ds.var["chromosome"]
    assert found[:3].tolist() == ["17", "4", "4"]
    assert found[3:].isna().all()
    assert ds.var_names.tolist() == NAMES


@given(st.permutations([*range(6)]), st.sets(st.integers(0, 5)))
def test_any_order_is_pandas_join(order: list[int], left_out: set[int]) -> None:
    adata = cells([f"c{i}" for i in order])
    kept = [i for i in range(6) if i not in left_out]
    table = pd.DataFrame({"x": np.array(kept, "f8")}, index=[f"c{i}" for i in kept])
    from scdl.sources.anndata_object import AnnDataObject
    from scdl.sources.beside import Beside

    if not kept:
        return
    obs = Beside(table, None).joined(AnnDataObject(adata)).obs
    found = obs.column("x", 1, 5).to_numpy(zero_copy_only=False)
    np.testing.assert_array_equal(found, adata.obs.join(table)["x"][1:5])


def test_names_keep_their_zeros_and_headers_of_R(tmp_path: Path) -> None:
    adata = cells(["001", "1", "NA"])
    for text in ('"x"\n"001",5\n"NA",6\n', '"","x"\n"001",5\n"NA",6\n'):
        (tmp_path / "r.csv").write_text(text)
        scdl.convert(adata, tmp_path / "a", obs=tmp_path / "r.csv", replace=True)
        assert scdl.open(tmp_path / "a").obs["x"].fillna(-1).tolist() == [5, -1, 6]


def test_several_sources_and_a_directory(tmp_path: Path) -> None:
    sources = {"one": cells(["a", "b"]), "two": cells(["c"])}
    table = pd.DataFrame({"x": [1, 2, 3]}, index=["c", "b", "a"])
    scdl.convert(sources, tmp_path / "a", obs=table, label="from")
    assert scdl.open(tmp_path / "a").obs["x"].tolist() == [3, 2, 1]
    (tmp_path / "in").mkdir()
    for name, adata in sources.items():
        adata.write_h5ad(tmp_path / "in" / f"{name}.h5ad")
    path = written(table, tmp_path / "t.csv")
    report = scdl.convert_directory(tmp_path / "in", tmp_path / "out", obs=path, workers=1)
    archives = [scdl.open(one.path) for one in report.reports.values()]
    assert [ds.obs["x"].tolist() for ds in archives] == [[3, 2], [1]]


def test_command(tmp_path: Path, run_command: Callable[..., Any]) -> None:
    cells().write_h5ad(tmp_path / "a.h5ad")
    path = written(TABLE, tmp_path / "t.csv")
    found = run_command("scdl", "convert", tmp_path / "a.h5ad", tmp_path / "a", "--obs", path)
    assert "joined: 2 of 3 cells are in" in found.stdout
    assert scdl.open(tmp_path / "a").obs["donor"].tolist()[0] == "D2"


BAD = [
    ({"x": [1]}, ["zz"], SourceError, "none of its cells, such as 'c1', is in .* such as 'zz'"),
    ({"x": [1, 2]}, ["c1", "c1"], OptionError, "the name 'c1' occurs 2 times"),
    ({"n": [1]}, ["c1"], OptionError, "obs has n already"),
]


@pytest.mark.parametrize(("columns", "names", "error", "message"), BAD)
def test_bad_tables(
    tmp_path: Path, columns: Any, names: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        scdl.convert(cells(), tmp_path / "a", obs=pd.DataFrame(columns, index=names))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "a,b\n1,2,3,4\n5\n6,7,8,9,10,11\n", "cannot be read as a table"),
        ("t.csv", "", "cannot be read as a table"),
        ("t.csv.gz", "a,b\n", "cannot be read as a table"),
        ("t.parquet", "PAR1", "cannot be read as a table"),
        ("t.xlsx", "", "expected a table in a file that ends in one of .csv"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(SourceError, match=f"{re.escape(str(path))}: {message}"):
        scdl.convert(cells(), tmp_path / "a", obs=path)
    path.unlink()
    if not name.endswith("xlsx"):
        with pytest.raises(SourceNotFoundError, match="does not exist"):
            scdl.convert(cells(), tmp_path / "a", obs=path)
    assert not any(tmp_path.iterdir())


def test_damaged_description_by_pandas(tmp_path: Path) -> None:
    table = pa.table({"name": ["c1"], "x": [1]}).replace_schema_metadata({"pandas": "{"})
    scdl.convert(cells(), tmp_path / "a", obs=table)
    assert scdl.open(tmp_path / "a").obs["x"].fillna(0).tolist() == [1, 0, 0]


def test_columns_that_archives_cannot_have_are_listed(tmp_path: Path) -> None:
    table = pd.DataFrame({"day": pd.to_datetime(["2020-01-01"]), "x": [1]}, index=["c1"])
    assert "obs/day" in scdl.convert(cells(), tmp_path / "a", obs=table).not_carried
    table.to_parquet(tmp_path / "t.parquet")
    report = scdl.convert(cells(), tmp_path / "b", obs=tmp_path / "t.parquet")
    assert "obs/day" in report.not_carried
    assert "x" in scdl.open(tmp_path / "b").obs
