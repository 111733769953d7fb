"""Neighbour graphs: from obsp in every encoding, and the documented methods over them."""

from __future__ import annotations

import pickle
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from reading import row_of
from sources import Cells, Encoding, cells, encodings, random_cells, write_h5ad

import scdl
from scdl.archive.requests import StoredMatrix
from storage_backends import registry
from storage_backends.errors import ArrayNotFoundError
from storage_backends.testing import small_archive

N = 30
#: Cell 3 has no neighbours.
_DRAWN = random_cells(N, N, density=0.1, seed=6)
_KEPT = _DRAWN.rows != 3
GRAPH = Cells(_DRAWN.rows[_KEPT], _DRAWN.columns[_KEPT], abs(_DRAWN.values[_KEPT]), (N, N))
EXPECTED = GRAPH.csr()
CELLS = random_cells(N, 8, seed=7)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("neighbors")
    source = write_h5ad(place / "a.h5ad", CELLS, obsp={"next_cell_ids": GRAPH})
    scdl.convert(source, place / "archive", neighbor_key="next_cell_ids")
    return place / "archive"


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("without")
    scdl.convert(write_h5ad(place / "a.h5ad", CELLS), place / "archive")
    return place / "archive"


def assert_graph(ds: Any, expected: sp.csr_array) -> None:
    for i in range(expected.shape[0]):
        weights, neighbors = row_of(expected, i)
        found = ds.get_neighbor_indices_for_cell(i)
        order = np.argsort(found)
        np.testing.assert_array_equal(found[order], neighbors)
        np.testing.assert_array_equal(ds.get_neighbor_weights_for_cell(i)[order], weights)


@given(
    cells(square=True, unique=True, dtypes=("<f4", "<f8", ">f8", "<i4", "?")),
    encodings(("csr", "csc", "coo")),
    st.sampled_from([1, 5, 1 << 20]),
)
def test_every_encoding_of_obsp(graph: Cells, encoding: Encoding, block_values: int) -> None:
    matrix = random_cells(graph.shape[0], 5)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        source = write_h5ad(place / "a.h5ad", matrix, obsp={"knn": graph}, obsp_encoding=encoding)
        scdl.convert(source, place / "archive", neighbor_key="knn", block_values=block_values)
        assert_graph(scdl.open(place / "archive", neighbor_key="knn"), graph.csr())


def test_types(archive: Path) -> None:
    ds = scdl.open(archive)
    assert_graph(ds, EXPECTED)
    assert ds.get_neighbor_indices_for_cell(0).dtype == np.uint32
    assert ds.get_neighbor_weights_for_cell(0).dtype == np.float32
    assert len(ds.get_neighbor_indices_for_cell(3)) == len(ds.get_neighbor_weights_for_cell(3)) == 0
    assert type(ds.sample_neighbor_index(0)) is int


def test_documented_files(archive: Path) -> None:
    indptr = np.fromfile(archive / "neighbor_indptr.npy", np.uint64)
    np.testing.assert_array_equal(indptr, EXPECTED.indptr)
    indices = np.fromfile(archive / "neighbor_indices.npy", np.uint32)
    np.testing.assert_array_equal(indices, EXPECTED.indices)
    weights = np.fromfile(archive / "neighbor_values.npy", np.float32)
    np.testing.assert_array_equal(weights, EXPECTED.data)


def test_stats(archive: Path, without: Path) -> None:
    counts = np.diff(EXPECTED.indptr)
    stats = scdl.open(archive).get_neighbor_stats()
    assert stats == {
        "has_neighbors": True,
        "total_connections": EXPECTED.nnz,
        "min_neighbors_per_cell": 0,
        "max_neighbors_per_cell": counts.max(),
        "avg_neighbors_per_cell": pytest.approx(counts.mean()),
        "cells_with_no_neighbors": (counts == 0).sum(),
    }
    assert scdl.open(without).get_neighbor_stats() == {"has_neighbors": False}


@pytest.mark.parametrize("strategy", ["random", "first", *scdl.NeighborSamplingStrategy])
def test_sampling(archive: Path, strategy: str) -> None:
    ds = scdl.open(archive, neighbor_sampling_strategy=strategy)
    busiest = int(np.argmax(np.diff(EXPECTED.indptr)))
    neighbors = row_of(EXPECTED, busiest)[1].tolist()
    drawn = Counter(ds.sample_neighbor_index(busiest) for _ in range(100 * len(neighbors)))
    if strategy == "first":
        assert set(drawn) == {neighbors[0]}
    elif strategy == "weighted":
        assert set(drawn) <= set(neighbors)
    else:
        # Five standard deviations of the binomial, rounded up.
        assert all(50 < drawn[neighbor] < 160 for neighbor in neighbors)
        assert set(drawn) == set(neighbors)


def test_unknown_strategy(archive: Path) -> None:
    with pytest.raises(ValueError, match="nearest"):
        scdl.open(archive, neighbor_sampling_strategy="nearest")


def test_a_cell_without_neighbors(archive: Path) -> None:
    assert scdl.open(archive).sample_neighbor_index(3) == 3
    with pytest.raises(scdl.errors.NeighborError, match="3"):
        scdl.open(archive, fallback_to_identity=False).sample_neighbor_index(3)


@pytest.mark.parametrize("padded", [False, True])
def test_row_with_neighbor(archive: Path, padded: bool) -> None:
    ds = scdl.open(archive, neighbor_sampling_strategy="first")
    get = ds.get_row_padded_with_neighbor if padded else ds.get_row_with_neighbor
    row = ds.get_row_padded if padded else ds.get_row
    for i in (0, 3, -1):
        pair = get(i)
        assert set(pair) == {
            "current_cell",
            "next_cell",
            "current_cell_index",
            "next_cell_index",
            "features",
        }
        assert pair["current_cell_index"] == i % N
        assert pair["next_cell_index"] == ds.sample_neighbor_index(i)
        assert pair["features"] is None
        for cell, index in (("current_cell", i), ("next_cell", pair["next_cell_index"])):
            np.testing.assert_array_equal(
                np.concatenate(pair[cell], None), np.concatenate(row(index)[0], None)
            )
    (genes,) = get(0, return_features=True)["features"]
    assert genes.tolist() == [f"gene{j}" for j in range(8)]
    (genes,) = get(0, return_features=True, feature_vars=["feature_id"])["features"]
    assert len(genes) == 8


def test_both_names_of_features(archive: Path) -> None:
    """A pair has those of 0.1.1 as its keys, and answers to those of 0.1.3; or the reverse."""
    ds = scdl.open(archive)
    pair = ds.get_row_with_neighbor(0, True)
    again = pickle.loads(pickle.dumps(pair))
    assert pair["var_features"] is pair["features"]
    assert again["var_features"][0].tolist() == pair["features"][0].tolist()
    assert pair["obs_features"] is None
    newer = ds.get_row_with_neighbor(0, return_var_features=True, return_obs_features=True)
    assert newer["features"] is newer["var_features"]
    assert newer["obs_features"] == ["cell0"]
    assert "features" not in newer
    for missing in (pair, newer):
        with pytest.raises(KeyError, match="nope"):
            missing["nope"]


def test_pairs_of_different_genes_are_not_mixed(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    for i in range(2):
        var = pd.DataFrame(index=[f"{i}-{j}" for j in range(8)])
        source = write_h5ad(tmp_path / f"{i}.h5ad", CELLS, var=var, obsp={"next_cell_ids": GRAPH})
        scdl.convert(source, tmp_path / str(i), neighbor_key="next_cell_ids")
    ds = scdl.SingleCellCollection([tmp_path / "0", tmp_path / "1"])
    pairs = [pickle.loads(pickle.dumps(ds.get_row_with_neighbor(i))) for i in (0, N)]
    read = ds.neighbor_pairs().__getitems__
    for chosen in (pairs, read([0, N]), list(read([0, N]))):
        with pytest.raises(scdl.errors.GeneError):
            scdl.collate_neighbor_sparse_matrix_batch(chosen)
    batch = scdl.collate_neighbor_sparse_matrix_batch(pairs[1:])
    assert batch["current_cells"].shape == (1, 8)


class Backwards(scdl.SingleCellDataset):
    """Samples as its user wants it, with the documented signature."""

    def sample_neighbor_index(self, cell_index: int) -> int:  # type: ignore[override]
        return N - 1 - cell_index


class FirstValue(scdl.SingleCellDataset):
    """Gives other rows, with the documented signature."""

    def get_row(self, index: Any, *features: Any, **named: Any) -> Any:
        (values, columns), *rest = super().get_row(index, *features, **named)
        return (values[:1], columns[:1]), *rest


class TestOverridden:
    def test_sampling(self, archive: Path) -> None:
        ds = Backwards(archive)
        for get in (ds.get_row_with_neighbor, ds.get_row_padded_with_neighbor):
            assert [get(i)["next_cell_index"] for i in range(N)] == list(range(N))[::-1]
            # Only what was given goes on.
            with pytest.raises(TypeError, match="rng"):
                get(0, rng=1)
            with pytest.raises(TypeError, match="key"):
                get(0, key="next_cell_ids")

    def test_pairs_read_at_once(self, archive: Path) -> None:
        pairs = Backwards(archive).neighbor_pairs()
        assert [pair["next_cell_index"] for pair in pairs.__getitems__([1, 4])] == [N - 2, N - 5]
        ds = scdl.open(archive)
        ds.sample_neighbor_index = lambda cell_index: 2  # type: ignore[method-assign]
        assert [pair["next_cell_index"] for pair in ds.neighbor_pairs().__getitems__([1, 4])] == [
            2,
            2,
        ]

    def test_rows(self, archive: Path) -> None:
        ds = FirstValue(archive)
        (pair,) = ds.neighbor_pairs().__getitems__([0])
        for cell in (pair, ds.get_row_with_neighbor(0)):
            assert len(cell["current_cell"][0]) <= 1
            assert len(cell["next_cell"][0]) <= 1


@pytest.mark.parametrize("row", [N, -N - 1, np.int64(N)])
def test_out_of_range(archive: Path, row: int) -> None:
    ds = scdl.open(archive)
    for method in (
        ds.get_neighbor_indices_for_cell,
        ds.get_neighbor_weights_for_cell,
        ds.sample_neighbor_index,
        ds.get_row_with_neighbor,
        ds.get_row_padded_with_neighbor,
    ):
        with pytest.raises(scdl.errors.RowIndexError):
            method(row)


def test_negative_rows_count_from_the_end(archive: Path) -> None:
    ds = scdl.open(archive)
    for i in range(N):
        np.testing.assert_array_equal(
            ds.get_neighbor_indices_for_cell(i - N), row_of(EXPECTED, i)[1]
        )


class TestAbsent:
    def test_use_is_an_error(self, without: Path) -> None:
        for ds in (scdl.open(without), scdl.SingleCellMemMapDataset(without)):
            for use in (
                ds.sample_neighbor_index,
                ds.get_neighbor_indices_for_cell,
                ds.get_neighbor_weights_for_cell,
                ds.get_row_with_neighbor,
                ds.get_row_padded_with_neighbor,
            ):
                with pytest.raises(ValueError, match="neighbo"):
                    use(0)

    def test_asked_for_at_conversion_is_a_warning(self, tmp_path: Path) -> None:
        source = write_h5ad(tmp_path / "a.h5ad", CELLS, obsp={"other": GRAPH})
        with pytest.warns(scdl.errors.ScdlWarning, match="next_cell_ids"):
            ds = scdl.SingleCellMemMapDataset(tmp_path / "archive", source, load_neighbors=True)
        with pytest.raises(scdl.errors.NeighborError):
            ds.sample_neighbor_index(0)
        assert ds.get_neighbor_stats() == {"has_neighbors": False}

    def test_not_asked_for(self, archive: Path) -> None:
        ds = scdl.open(archive, load_neighbors=False)
        with pytest.raises(scdl.errors.NeighborError):
            ds.sample_neighbor_index(0)
        # As documented, the documented class has to be asked.
        ds = scdl.SingleCellMemMapDataset(archive)
        with pytest.raises(ValueError, match="neighbo"):
            ds.sample_neighbor_index(0)
        assert_graph(scdl.SingleCellMemMapDataset(archive, load_neighbors=True), EXPECTED)

    def test_not_carried_unless_asked_for(self, archive: Path, tmp_path: Path) -> None:
        report = scdl.convert(archive.parent / "a.h5ad", tmp_path / "archive")
        assert report.not_carried == ("obsp/next_cell_ids",)
        assert not list((tmp_path / "archive").glob("neighbor_*"))


def test_other_keys(tmp_path: Path) -> None:
    transposed = Cells(GRAPH.columns, GRAPH.rows, GRAPH.values, GRAPH.shape)
    obsp = {"next_cell_ids": GRAPH, "connectivities": transposed}
    source = write_h5ad(tmp_path / "a.h5ad", CELLS, obsp=obsp)
    ds = scdl.SingleCellMemMapDataset(
        tmp_path / "archive", source, load_neighbors=True, neighbor_key="connectivities"
    )
    assert_graph(ds, transposed.csr())
    again = scdl.open(tmp_path / "archive", neighbor_key="connectivities")
    assert_graph(again, transposed.csr())


def test_options_survive_pickling(archive: Path) -> None:
    ds = scdl.open(archive, neighbor_sampling_strategy="first", fallback_to_identity=False)
    ds.sample_neighbor_index(0)
    again = pickle.loads(pickle.dumps(ds))
    neighbors = row_of(EXPECTED, 0)[1]
    assert {again.sample_neighbor_index(0) for _ in range(20)} == {neighbors[0]}
    with pytest.raises(scdl.errors.NeighborError):
        again.sample_neighbor_index(3)


@pytest.mark.parametrize("name", ["indices", "indptr", "values"])
@pytest.mark.parametrize("change", ["missing", "short", "long"])
def test_damaged_graph(archive: Path, tmp_path: Path, name: str, change: str) -> None:
    shutil.copytree(archive, tmp_path / "archive")
    path = tmp_path / "archive" / f"neighbor_{name}.npy"
    content = path.read_bytes()
    if change == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-8] if change == "short" else content + bytes(8))
    with pytest.raises(scdl.errors.ArchiveFormatError, match="neighbor_"):
        scdl.open(tmp_path / "archive").get_neighbor_indices_for_cell(0)


@pytest.mark.parametrize("backend", ["memmap", "memory", "zarr"])
def test_a_matrix_without_its_arrays_is_an_error(tmp_path: Path, backend: str) -> None:
    path = "ram:cells" if backend == "memory" else str(tmp_path / "cells")
    contents = small_archive()
    with registry.create(path, registry.backend(backend)) as writer:
        contents.write(writer)
        writer.commit(contents.attrs)
    with pytest.raises(ArrayNotFoundError, match="there is no array 'graphs/none/data'"):
        StoredMatrix.of(registry.open_archive(path), "graphs/none/", is_sorted=False)
