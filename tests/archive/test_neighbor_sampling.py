"""Sampling neighbours of a batch: what may be drawn, how often, from which graph, what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import twins
from hypothesis import given
from hypothesis import strategies as st
from reading import rewritten
from sources import Cells, Encoding, random_cells, write_h5ad

import scdl
from scdl.errors import NeighborError, RowIndexError, ScdlWarning, SourceError
from scdl.kernels import choice as choice_kernels

N = 30
STRATEGIES = list(scdl.NeighborSamplingStrategy)


def graph(seed: int, **changes: Any) -> Cells:
    """Weights above 0; cell 3 has no neighbours."""
    drawn = random_cells(N, N, density=0.2, seed=seed, **changes)
    kept = drawn.rows != 3
    return Cells(drawn.rows[kept], drawn.columns[kept], abs(drawn.values[kept]), (N, N))


GRAPHS = {"connectivities": graph(1), "distances": graph(2), "spatial 50 µm": graph(3)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("graphs")
    csc = Encoding(layout="csc")
    cells = random_cells(N, 8, seed=7)
    return write_h5ad(place / "a.h5ad", cells, obsp=GRAPHS, obsp_encoding=csc)


@pytest.fixture(scope="module", params=["memmap", "zarr"])
def archive(request: pytest.FixtureRequest, source: Path) -> Path:
    path = source.with_name(f"archive.{request.param}")
    scdl.convert(source, path, backend=request.param, neighbor_key=list(GRAPHS))
    return path


def expected(key: str) -> sp.csr_array:
    return GRAPHS[key].csr()


class TestKernel:
    @given(st.data())
    def test_is_its_twin(self, data: st.DataObject) -> None:
        dtype = data.draw(st.sampled_from(["f4", "f8", "u1", "i8"]))
        counts = data.draw(st.lists(st.integers(0, 5), max_size=8))
        indptr = np.append(0, np.cumsum(counts)).astype(np.int64)
        special = [0.0] * 3 + ([np.nan, -1.0, np.inf] if dtype.startswith("f") else [])
        one = st.one_of(st.floats(0.125, 100), st.sampled_from(special))
        size = int(indptr[-1])
        weights = np.array(data.draw(st.lists(one, min_size=size, max_size=size)), dtype)
        k = data.draw(st.integers(1, 4))
        number = st.one_of(st.floats(0, 1, exclude_max=True), st.just(np.nextafter(1.0, 0)))
        flat = data.draw(st.lists(number, min_size=k * len(counts), max_size=k * len(counts)))
        draws = np.array(flat, np.float64).reshape(len(counts), k)
        ours, twin = np.full((2, *draws.shape), -7)
        bad = choice_kernels.choose_by_weight(weights, indptr, draws, ours)
        assert bad == twins.choose_by_weight(weights, indptr, draws, twin)
        if bad >= 0:
            assert not 0 <= weights[bad] < np.inf
            return
        np.testing.assert_array_equal(ours, twin)
        rows = np.arange(len(counts))[:, None]
        chosen = ours >= 0
        assert (weights[(indptr[rows] + ours)[chosen]] > 0).all()
        assert (ours < np.array(counts, np.int64)[:, None]).all()


@given(
    st.sampled_from(STRATEGIES),
    st.lists(st.integers(-N, N - 1), max_size=12),
    st.integers(1, 5),
    st.sampled_from(list(GRAPHS)),
)
def test_every_draw_is_a_neighbor(
    archive: Path, strategy: str, rows: list[int], k: int, key: str
) -> None:
    ds = scdl.open(archive, neighbor_sampling_strategy=strategy)
    drawn = ds.sample_neighbors(rows, k, rng=np.random.default_rng(0), key=key)
    assert drawn.dtype == np.int64
    assert drawn.shape == (len(rows), k)
    again = ds.sample_neighbors(rows, k, rng=np.random.default_rng(0), key=key)
    np.testing.assert_array_equal(drawn, again)
    matrix = expected(key)
    for row, found in zip(rows, drawn, strict=True):
        own = matrix[[row % N]].indices
        if len(own) == 0:
            assert set(found) == {row % N}
        elif strategy == "first":
            assert set(found) == {own[0]}
        else:
            assert set(found) <= set(own)


@pytest.mark.parametrize("strategy", ["random", "weighted"])
def test_frequencies(archive: Path, strategy: str) -> None:
    """Within five standard deviations of the binomial, for every neighbour of every cell."""
    ds = scdl.open(archive, neighbor_key="distances", neighbor_sampling_strategy=strategy)
    k = 4_000
    drawn = ds.sample_neighbors(slice(None), k, rng=np.random.default_rng(1))
    weights = expected("distances").toarray()
    if strategy == "random":
        weights = (weights > 0).astype(float)
    totals = weights.sum(axis=1)
    for row in np.flatnonzero(totals):
        shares = weights[row] / totals[row]
        counts = np.bincount(drawn[row], minlength=N)
        bound = 5 * np.sqrt(k * shares * (1 - shares)) + 1e-9
        assert (abs(counts - k * shares) <= bound).all()


def test_one_neighbor_is_one_of_the_batch(archive: Path) -> None:
    ds = scdl.open(archive, neighbor_key="distances", neighbor_sampling_strategy="weighted")
    for row in range(N):
        one = ds.sample_neighbor_index(row, rng=np.random.default_rng(row))
        assert one == ds.sample_neighbors(row, rng=np.random.default_rng(row))[0, 0]


def test_seeds_and_names_of_strategies(archive: Path) -> None:
    for name in ("RANDOM", "random", scdl.NeighborSamplingStrategy.RANDOM):
        ds = scdl.open(archive, neighbor_key="distances", neighbor_sampling_strategy=name)
        found = ds.sample_neighbors([3, 1, 2], k=5, rng=7)
        again = ds.sample_neighbors([3, 1, 2], k=5, rng=np.random.default_rng(7))
        np.testing.assert_array_equal(found, again)
    for rng in ("seven", -1, 0.5):
        with pytest.raises(NeighborError, match=f"a seed, not {rng!r}"):
            ds.sample_neighbors([3], rng=rng)
    for options in ({"neighbor_sampling_strategy": "nearest"}, {"neighbor_sampling_strategy": 3}):
        with pytest.raises(NeighborError, match="choose one of: random, first, weighted"):
            scdl.open(archive, **options)


class TestKeys:
    def test_each_method_takes_one(self, archive: Path) -> None:
        ds = scdl.open(archive, neighbor_key="distances", neighbor_sampling_strategy="first")
        assert set(ds.neighbor_keys) == set(GRAPHS)
        busy = 0
        for key in (None, *GRAPHS):
            matrix = expected(key or "distances")
            own = matrix[[busy]]
            found = ds.get_neighbor_indices_for_cell(busy, key=key)
            np.testing.assert_array_equal(found, own.indices)
            weights = ds.get_neighbor_weights_for_cell(busy, key=key)
            np.testing.assert_array_equal(weights, own.data)
            assert ds.sample_neighbor_index(busy, key=key) == own.indices[0]
            assert ds.get_row_with_neighbor(busy, key=key)["next_cell_index"] == own.indices[0]
            padded = ds.get_row_padded_with_neighbor(busy, key=key)
            assert padded["next_cell_index"] == own.indices[0]
            assert ds.get_neighbor_stats(key=key)["total_connections"] == matrix.nnz

    def test_unknown(self, archive: Path) -> None:
        ds = scdl.open(archive)
        for use in (ds.sample_neighbors, ds.get_neighbor_indices_for_cell):
            with pytest.raises(NeighborError, match=r"'umap'.*connectivities, distances"):
                use(0, key="umap")
        with pytest.raises(NeighborError, match=r"choose one of connectivities, distances"):
            ds.sample_neighbors(0)

    def test_a_dataset_opened_without_neighbors_has_none(self, archive: Path) -> None:
        ds = scdl.open(archive, load_neighbors=False)
        assert ds.neighbor_keys == []
        with pytest.raises(NeighborError, match="load_neighbors=True"):
            ds.sample_neighbors(0, key="distances")

    @pytest.mark.parametrize("backend", ["memmap", "zarr"])
    def test_what_is_absent_is_told_by_name(
        self, source: Path, tmp_path: Path, backend: str
    ) -> None:
        keys = ["distances", "absent"]
        with pytest.warns(ScdlWarning, match="obsp/absent"):
            scdl.convert(source, tmp_path / "a", backend=backend, neighbor_key=keys)
        assert "distances" in scdl.open(tmp_path / "a").neighbor_keys


class TestWrong:
    def test_k(self, archive: Path) -> None:
        with pytest.raises(NeighborError, match="at least 1, not 0"):
            scdl.open(archive).sample_neighbors(0, 0, key="distances")

    def test_row(self, archive: Path) -> None:
        with pytest.raises(RowIndexError):
            scdl.open(archive).sample_neighbors([0, N], key="distances")

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_no_neighbors_and_no_identity(self, archive: Path, strategy: str) -> None:
        ds = scdl.open(archive, neighbor_sampling_strategy=strategy, fallback_to_identity=False)
        with pytest.raises(NeighborError, match=r"'distances': cell 3 has no neighbours"):
            ds.sample_neighbors([0, 3], 2, key="distances")

    @pytest.mark.parametrize("weight", [np.nan, -0.5, np.inf])
    def test_weight(self, archive: Path, tmp_path: Path, weight: float) -> None:
        weights = expected("distances").data.copy()
        cell = 7
        weights[expected("distances").indptr[cell]] = weight
        path = rewritten(archive, tmp_path / "bad", {"graphs/distances/data": weights})
        ds = scdl.open(path, neighbor_key="distances", neighbor_sampling_strategy="weighted")
        with pytest.raises(NeighborError, match=f"'distances': cell 7 has .* weight {weight}"):
            ds.sample_neighbors([0, cell, cell])
        ds.sample_neighbors([0, 8])
        # Where weights are not used, they may be anything.
        scdl.open(path, neighbor_key="distances").sample_neighbors(cell)

    def test_weights_of_zero_choose_nobody(self, archive: Path, tmp_path: Path) -> None:
        zeros = np.zeros_like(expected("distances").data)
        path = rewritten(archive, tmp_path / "bad", {"graphs/distances/data": zeros})
        options = {"neighbor_key": "distances", "neighbor_sampling_strategy": "weighted"}
        assert scdl.open(path, **options).sample_neighbors([4, 5], 2).tolist() == [[4, 4], [5, 5]]
        with pytest.raises(NeighborError, match="cell 4 has no neighbours of a weight above 0"):
            scdl.open(path, **options, fallback_to_identity=False).sample_neighbors([4, 5])

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_outside(self, archive: Path, tmp_path: Path, strategy: str) -> None:
        neighbors = expected("distances").indices.astype(np.uint32)
        first, last = expected("distances").indptr[5:7]
        neighbors[first:last] = N
        path = rewritten(archive, tmp_path / "bad", {"graphs/distances/indices": neighbors})
        ds = scdl.open(path, neighbor_key="distances", neighbor_sampling_strategy=strategy)
        for use in (ds.sample_neighbors, ds.sample_neighbor_index, ds.get_row_with_neighbor):
            with pytest.raises(NeighborError, match=f"'distances': cell 5 has the neighbour {N}"):
                use(5)
        with pytest.raises(NeighborError, match="cell 5"):
            ds.get_neighbor_indices_for_cell(5)

    def test_not_square(self, archive: Path) -> None:
        offsets = expected("distances").indptr.astype(np.uint64)
        short = np.append(offsets[:-3], offsets[-1:])
        path = rewritten(archive, f"ram:{archive.name}", {"graphs/distances/indptr": short})
        ds = scdl.open(path, neighbor_key="distances")
        with pytest.raises(NeighborError, match=r"'distances' is 28 x 30, expected 30 x 30"):
            ds.sample_neighbors(0)
        ds.sample_neighbors(0, key="connectivities")

    def test_not_square_as_anndata_states_it(self, archive: Path, tmp_path: Path) -> None:
        if archive.suffix != ".zarr":
            pytest.skip("only AnnData states the shape of a graph")
        shutil.copytree(archive, tmp_path / "bad.zarr")
        root = tmp_path / "bad.zarr" / "zarr.json"
        metadata = json.loads(root.read_text())
        nodes = metadata["consolidated_metadata"]["metadata"]
        nodes["obsp/distances"]["attributes"]["shape"] = [N, N + 2]
        root.write_text(json.dumps(metadata))
        with pytest.raises(NeighborError, match=r"'distances' is 30 x 32, expected 30 x 30"):
            scdl.open(tmp_path / "bad.zarr").sample_neighbors(0, key="distances")

    @pytest.mark.parametrize("backend", ["memmap", "zarr"])
    def test_not_square_in_the_source(self, tmp_path: Path, backend: str) -> None:
        wide = random_cells(N, N + 2, seed=4)
        cells = random_cells(N, 8)
        source = write_h5ad(tmp_path / "a.h5ad", cells, obsp={"wide": wide})
        with pytest.raises(SourceError, match=r"obsp/wide.*\(30, 32\)"):
            scdl.convert(source, tmp_path / "archive", backend=backend, neighbor_key="wide")
        assert not (tmp_path / "archive").exists()


@pytest.fixture(scope="module")
def paths(source: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Archives with none of the graphs, all and some of them."""
    place = tmp_path_factory.mktemp("members")
    some = ["distances", "spatial 50 µm"]
    scdl.convert(source, place / "none")
    scdl.convert(source, place / "all", neighbor_key=list(GRAPHS))
    scdl.convert(source, place / "some.zarr", neighbor_key=some, only_matrix=True)
    return [place / "none", place / "all", place / "some.zarr"]


@pytest.fixture(scope="module")
def flat(paths: list[Path]) -> Path:
    target = paths[0].with_name("flat")
    scdl.SingleCellCollection(paths).flatten(target)
    return target


class TestCollection:
    """What is true of one archive is true of many: the oracle is the archive made of them."""

    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("key", list(GRAPHS))
    def test_draws_are_those_of_one_archive(
        self, paths: list[Path], flat: Path, strategy: str, key: str
    ) -> None:
        rows = np.random.default_rng(0).integers(-3 * N, 3 * N, 200)
        drawn = [
            cells.sample_neighbors(rows, 5, rng=np.random.default_rng(1), key=key)
            for opened in (scdl.SingleCellCollection(paths, neighbor_sampling_strategy=strategy),
                           scdl.open(flat, neighbor_sampling_strategy=strategy))
            for cells in (opened, opened.select_genes("union"))
        ]  # fmt: skip
        for other in drawn[1:]:
            np.testing.assert_array_equal(drawn[0], other)

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_draws_of_mapped_graphs_are_those_of_each_member(
        self, paths: list[Path], tmp_path: Path, strategy: str
    ) -> None:
        """Read at once, they are the same as member by member; what is wrong is found, too."""
        options = {"neighbor_key": "distances", "neighbor_sampling_strategy": strategy}
        again = rewritten(paths[1], tmp_path / "again", {})
        graph = scdl.SingleCellCollection([paths[1], again], **options).graph
        rows, draws = np.random.default_rng(0).integers(0, 2 * N, 200), np.empty((200, 3))
        np.random.default_rng(1).random(out=draws)
        found = graph._sample_mapped(rows, draws)
        np.testing.assert_array_equal(found, graph._sample_by_member(rows, draws))
        np.testing.assert_array_equal(found, graph.sample_many(rows, draws))
        ids = expected("distances").indices.astype(np.uint32)
        ids[expected("distances").indptr[7] :] = N
        bad = rewritten(paths[1], tmp_path / "bad", {"graphs/distances/indices": ids})
        many = scdl.SingleCellCollection([paths[1], bad], **options)
        with pytest.raises(NeighborError, match=f"^{bad}: .*cell 7 has the neighbour {N}, "):
            many.sample_neighbors([7, N + 7])
        assert many.graph._sample_mapped(np.zeros(0, np.int64), np.zeros((0, 1))) is None
        assert many.sample_neighbors([], 2).shape == (0, 2)

    def test_each_method_takes_a_key(self, paths: list[Path], flat: Path) -> None:
        options = {"neighbor_key": "distances", "neighbor_sampling_strategy": "first"}
        many, one = scdl.SingleCellCollection(paths, **options), scdl.open(flat, **options)
        assert set(many.neighbor_keys) == set(one.neighbor_keys) == set(GRAPHS)
        for key in (None, *GRAPHS):
            assert many.get_neighbor_stats(key=key) == one.get_neighbor_stats(key=key)
            for row in range(0, 3 * N, 7):
                for method in (
                    "get_neighbor_indices_for_cell",
                    "get_neighbor_weights_for_cell",
                    "sample_neighbor_index",
                ):
                    found, expected = (getattr(c, method)(row, key=key) for c in (many, one))
                    np.testing.assert_array_equal(found, expected)
                pair = many.get_row_padded_with_neighbor(row, key=key)
                assert pair["next_cell_index"] == one.sample_neighbor_index(row, key=key)

    def test_which_graph_is_meant(self, source: Path, paths: list[Path], tmp_path: Path) -> None:
        """One of each archive, where nobody named any, as long as it is the same."""
        for name, key in (("a", "distances"), ("b", "connectivities"), ("c", "distances")):
            scdl.convert(source, tmp_path / name, neighbor_key=key)
        same = scdl.SingleCellCollection([tmp_path / "a", paths[0], tmp_path / "c"])
        assert same.graph.key == "distances"
        assert same.get_neighbor_stats()["total_connections"] == 2 * expected("distances").nnz
        different = scdl.SingleCellCollection([tmp_path / "a", tmp_path / "b"])
        assert different.graph is None
        with pytest.raises(NeighborError, match="choose one of distances, connectivities"):
            different.sample_neighbors(0)
        assert different.sample_neighbors(N, key="distances").tolist() == [[N]]
        with pytest.raises(NeighborError, match=r"no neighbour graph 'umap'.*distances"):
            _ = scdl.SingleCellCollection(paths, load_neighbors=True, neighbor_key="umap").graph
        different.add(paths[0])
        assert different.neighbor_keys == ["distances", "connectivities"]

    def test_what_is_wrong_names_the_member(self, paths: list[Path], tmp_path: Path) -> None:
        weights = expected("distances").data.copy()
        weights[expected("distances").indptr[7]] = np.nan
        bad = rewritten(paths[1], tmp_path / "bad", {"graphs/distances/data": weights})
        options = {"neighbor_key": "distances", "neighbor_sampling_strategy": "weighted"}
        many = scdl.SingleCellCollection([paths[1], bad, paths[0]], **options)
        many.sample_neighbors([7, N + 8])
        with pytest.raises(NeighborError, match=f"^{bad}: .* cell 7 has a neighbour of"):
            many.sample_neighbors([7, N + 7])
        alone = scdl.SingleCellCollection(paths, **options, fallback_to_identity=False)
        for row, where in ((2, paths[0]), (N + 3, paths[1])):
            for sample in (alone.sample_neighbors, alone.sample_neighbor_index):
                with pytest.raises(NeighborError, match=f"^{where}: .*cell {row % N} has no"):
                    sample(row)
        with pytest.raises(NeighborError, match=r"'umap'.*connectivities, distances"):
            many.get_neighbor_indices_for_cell(0, key="umap")
        with pytest.raises(RowIndexError):
            many.sample_neighbors(3 * N)
        assert scdl.SingleCellCollection(paths, load_neighbors=False).neighbor_keys == []
