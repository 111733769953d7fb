"""Golden archives written by BioNeMo-SCDL 0.1.1, 0.1.3 and head are read correctly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from places import GOLDEN
from reading import assert_counts, assert_rows, assert_same, row_of

import scdl

VERSIONS = ["v011", "v013", "head"]


def load(file: str) -> sp.csr_array:
    with np.load(GOLDEN / file) as saved:
        parts = (saved["data"], saved["indices"], saved["indptr"])
        matrix = sp.csr_array(parts, shape=tuple(saved["shape"]))
    matrix.sort_indices()
    return matrix


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> Iterator[str]:
    before = contents(GOLDEN)
    yield request.param
    assert contents(GOLDEN) == before, "reading must not write"


def contents(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(directory.rglob("*"))}


def test_rows_that_are_stored_unsorted_read_sorted(version: str) -> None:
    ds = scdl.open(GOLDEN / f"pbmc68k_{version}")
    expected = load(f"pbmc68k_{version}.expected.npz")
    assert_same(ds, expected)
    assert any(np.diff(ds.col_index[: ds.row_index[1]].astype(int)) < 0), "stored sorted after all"


def test_rows_in_any_order(version: str) -> None:
    ds = scdl.open(GOLDEN / f"pbmc68k_{version}")
    expected = load(f"pbmc68k_{version}.expected.npz")
    rows = np.random.default_rng(0).integers(0, 700, 2_000)
    batch = ds.read_rows(rows)
    np.testing.assert_array_equal(batch.to_scipy().toarray(), expected.toarray()[rows])
    within = np.diff(np.repeat(np.arange(2_000), np.diff(batch.indptr))) == 0
    assert (np.diff(batch.indices.astype(int))[within] > 0).all()


def test_graph(version: str) -> None:
    ds = scdl.open(GOLDEN / f"neighbors_{version}")
    expected = load(f"neighbors_{version}.expected.npz")
    assert_same(ds, expected.astype(ds.dtypes["data.npy"]))
    graph = load(f"neighbors_{version}.graph.npz")
    for i in range(20):
        weights, neighbors = row_of(graph, i)
        np.testing.assert_array_equal(ds.get_neighbor_indices_for_cell(i), neighbors)
        np.testing.assert_array_equal(ds.get_neighbor_weights_for_cell(i), weights)
    assert ds.get_neighbor_stats()["total_connections"] == graph.nnz


def test_documented_dtypes(version: str) -> None:
    ds = scdl.open(GOLDEN / f"neighbors_{version}")
    data, columns, offsets = ("f4", "u4", "u8") if version == "v011" else ("u1", "u1", "u1")
    assert ds.dtypes["data.npy"] == ds.data.dtype == data
    assert ds.dtypes["col_ptr.npy"] == ds.col_index.dtype == columns
    assert ds.dtypes["row_ptr.npy"] == ds.row_index.dtype == offsets


def test_ragged_rows(version: str) -> None:
    ds = scdl.open(GOLDEN / f"ragged_{version}")
    expected = load(f"ragged_{version}.expected.npz")
    assert ds.shape() == (12, [12, 9])
    assert ds.number_of_values() == 7 * 12 + 5 * 9
    assert ds.number_nonzero_values() == expected.nnz
    for i in range(12):
        values, columns = row_of(expected, i)
        (found, ids), _ = ds.get_row(i)
        np.testing.assert_array_equal(found, values)
        np.testing.assert_array_equal(ids, columns)
        width = 12 if i < 7 else 9
        np.testing.assert_array_equal(ds.get_row_padded(i)[0], expected.toarray()[i, :width])
    with pytest.raises(scdl.errors.GeneError, match="genes="):
        ds.read_rows(slice(None)).to_dense()
    own = ds.read_rows(slice(None), genes="own")
    np.testing.assert_array_equal(own.to_dense(), expected.toarray())


def test_ragged_features(version: str) -> None:
    ds = scdl.open(GOLDEN / f"ragged_{version}")
    wide, narrow = ([f"GENE{i}" for i in span] for span in (range(12), range(4, 13)))
    for i in range(12):
        genes = wide if i < 7 else narrow
        _, (ids,) = ds.get_row(i, return_features=True, feature_vars=["feature_id"])
        assert ids.tolist() == genes
        (ids, titles), label = ds.var_features().lookup(i)
        assert ids.tolist() == genes
        assert titles.tolist() == [gene.lower() for gene in genes]
        assert Path(label).name == ("a.h5ad" if i < 7 else "b.h5ad")
        assert ds.var_features().number_vars_at_row(i) == len(genes)
    assert ds.var_features().column_dims() == [12, 9]
    assert ds.var_features().number_of_rows() == 12
    with pytest.raises(scdl.errors.GeneError):
        _ = ds.var


@pytest.mark.parametrize("version", ["v013", "head"])
def test_ragged_obs(version: str) -> None:
    ds = scdl.open(GOLDEN / f"ragged_{version}")
    cell_type = ["T", "B", "T", "NK", "B", "T", "T", "B", "B", "B", "B", "B"]
    assert ds.obs["cell_type"].tolist() == cell_type
    assert ds.obs["age"].tolist()[:7] == list(range(7))
    assert ds.obs["age"].isna().tolist() == [False] * 7 + [True] * 5
    assert ds.obs_features()[3][0] == ["NK", 3]
    # obs is one table: columns that a block lacks are null.
    cell_type, age = ds.obs_features()[8][0]
    assert cell_type == "B"
    assert np.isnan(age)
    (first, second), labels = ds.obs_features()[5:9]
    assert {name: column.tolist() for name, column in first.items()} == {
        "cell_type": ["T", "T"],
        "age": [5, 6],
    }
    assert second["cell_type"].tolist() == ["B", "B"]
    assert np.isnan(second["age"]).all()
    assert [Path(label).name for label in labels] == ["a.h5ad", "b.h5ad"]
    assert ds.read_rows([11, 0], obs=["cell_type"]).obs["cell_type"].tolist() == ["B", "T"]


def test_names_that_are_not_stored(version: str) -> None:
    """The reference drops names if there are columns; a column must replace them."""
    ds = scdl.open(GOLDEN / f"ragged_{version}")
    asked: list[Callable[[], object]] = [
        lambda: ds.select_genes(["GENE4", "GENE11"]),
        lambda: ds.select_genes("union"),
        lambda: ds.read_rows([0], genes=["GENE4"]),
        lambda: scdl.open(GOLDEN / f"pbmc68k_{version}").var_names,
        lambda: scdl.SingleCellCollection([GOLDEN / f"pbmc68k_{version}"]).var_names,
    ]
    for ask in asked:
        with pytest.raises(
            scdl.errors.FeatureNotFoundError, match=r"names of the genes are not .*gene_column="
        ):
            ask()
    view = ds.select_genes(["GENE4", "GENE11"], gene_column="feature_id")
    assert view.var_names.tolist() == ["GENE4", "GENE11"]
    assert view.read_rows(slice(None)).to_dense().shape == (12, 2)
    with pytest.raises(scdl.errors.FeatureNotFoundError, match="it has: feature_id, "):
        ds.select_genes("union", gene_column="symbol")
    if version != "v011":
        with pytest.raises(scdl.errors.FeatureNotFoundError, match="names of the cells are not"):
            _ = ds.obs_names


def test_tokenizers_need_names(version: str) -> None:
    pytest.importorskip("torch")
    path = GOLDEN / f"neighbors_{version}"

    def tokens(cells: object, genes: object) -> object:
        return genes

    with pytest.raises(scdl.errors.FeatureNotFoundError, match="gene_column="):
        next(iter(scdl.SingleCellLoader(scdl.open(path), 4, tokenizer=tokens)))
    named = scdl.open(path).select_genes("union", gene_column="feature_id")
    batch = next(iter(scdl.SingleCellLoader(named, 4, tokenizer=tokens)))
    assert list(batch.tokens) == scdl.open(path).var["feature_id"].tolist()


def test_archives_of_0_1_1_have_no_obs() -> None:
    ds = scdl.open(GOLDEN / "ragged_v011")
    with pytest.raises(scdl.errors.FeatureNotFoundError, match="obs"):
        ds.read_rows([0], obs=["cell_type"])


def test_archive_without_header(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    source = GOLDEN / "neighbors_v011"
    for path in source.rglob("*"):
        if path.is_file() and path.name != "header.sch":
            target = archive / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    ds = scdl.open(archive)
    expected = load("neighbors_v011.expected.npz")
    assert_counts(ds, expected)
    assert_rows(ds, expected)
