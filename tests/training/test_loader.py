"""SingleCellLoader: contents and order of batches, and invalid arguments."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import zarr
from budget import examples, sample
from columns import with_times
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import Cells, names, random_cells, write_h5ad

torch = pytest.importorskip("torch")

from training import (
    ALONE,
    ARCHIVES,
    CELLS,
    DENSE,
    EMPTY,
    GENES,
    GRAPH,
    N_OBS,
    N_VARS,
    OBS,
    VECTORS,
    X,
    normalized,
    padded,
)

import scdl
from scdl.errors import (
    ArchiveClosedError,
    ColumnTypeError,
    FeatureNotFoundError,
    LoaderError,
    NeighborError,
    OrderError,
    ResumeError,
    RowIndexError,
    ScdlError,
)
from scdl.training import grouped_orders, orders
from scdl.training.loader import SingleCellLoader, TrainingBatch
from scdl.training.transforms import Log1p, NormalizeTotal
from storage_backends import registry

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)

FORMATS = {
    "csr": torch.sparse_csr,
    "coo": torch.sparse_coo,
    "dense": torch.strided,
    "padded": torch.strided,
}


@pytest.fixture(scope="module", params=ARCHIVES)
def ds(archives: dict[str, Path], request: pytest.FixtureRequest) -> scdl.SingleCellDataset:
    """The same cells in an archive of every backend."""
    return scdl.open(archives[request.param])


@pytest.fixture(scope="module")
def memmap(archives: dict[str, Path]) -> scdl.SingleCellDataset:
    return scdl.open(archives["memmap"])


def in_order(ds: Any, **options: Any) -> SingleCellLoader:
    return SingleCellLoader(ds, 64, order="sequential", **options)


def dense_of(batch: TrainingBatch) -> np.ndarray:
    """Expression of a batch of any layout, as a dense array."""
    assert batch.x is not None
    if batch.genes is None:
        return np.asarray(batch.x.to_dense().double())
    wide = torch.zeros(len(batch), N_VARS + 1, dtype=torch.float64)
    return np.asarray(wide.scatter_(1, batch.genes, batch.x.double())[:, :N_VARS])


def all_of(loader: Any) -> np.ndarray:
    """Expression of all batches, concatenated."""
    return np.concatenate([dense_of(batch) for batch in loader])


def rows_of(loader: Any) -> list[list[int]]:
    return [batch.rows.tolist() for batch in loader]


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


def same(one: Any, other: Any) -> None:
    """Check that two lists of batches are bitwise equal."""
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.rows, b.rows)
        assert a.x.dtype == b.x.dtype
        assert torch.equal(a.x.to_dense(), b.x.to_dense())
        assert a.obs.keys() == b.obs.keys()
        for name in a.obs:
            assert torch.equal(a.obs[name], b.obs[name])
        assert (a.neighbors is None) == (b.neighbors is None)
        if a.neighbors is not None:
            same([a.neighbors], [b.neighbors])


class TestLayouts:
    @pytest.mark.parametrize("layout", FORMATS)
    def test_cells_are_those_of_the_source(self, ds: Any, layout: str) -> None:
        length = N_VARS if layout == "padded" else None
        batches = list(in_order(ds, layout=layout, length=length))
        assert all(batch.x.layout == FORMATS[layout] for batch in batches)
        assert all(batch.x.dtype == torch.float32 for batch in batches)
        assert [len(batch) for batch in batches] == [64] * 15 + [N_OBS - 64 * 15]
        assert all(batch.x.shape == (len(batch), N_VARS) for batch in batches)
        np.testing.assert_array_equal(np.concatenate(list(map(dense_of, batches))), DENSE)

    def test_cells_are_those_that_anndata_reads(self, archives: dict[str, Path]) -> None:
        expected = anndata.read_h5ad(archives["h5ad"])
        loader = SingleCellLoader(scdl.open(archives["memmap"]), order="random", obs=["type"])
        for batch in loader:
            cells = expected[batch.rows.numpy()]
            np.testing.assert_array_equal(dense_of(batch), cells.X.toarray())
            assert [loader.vocabulary["type"][code] for code in batch.obs["type"]] == [
                *cells.obs["type"]
            ]

    def test_sparse_tensors_are_valid(self, ds: Any) -> None:
        for layout in ("csr", "coo"):
            for batch in SingleCellLoader(ds, layout=layout, order="random"):
                x = batch.x
                if layout == "csr":
                    parts = x.crow_indices(), x.col_indices(), x.values()
                    torch._validate_sparse_csr_tensor_args(*parts, x.shape)
                else:
                    assert x.is_coalesced()
                    again = torch.sparse_coo_tensor(x.indices(), x.values(), x.shape).coalesce()
                    assert torch.equal(again.indices(), x.indices())

    @pytest.mark.parametrize("layout", FORMATS)
    @pytest.mark.parametrize("dtype", ["bfloat16", torch.float16, torch.float64, torch.int16])
    def test_dtypes(self, memmap: Any, layout: str, dtype: Any) -> None:
        length = N_VARS if layout == "padded" else None
        batches = list(in_order(memmap, layout=layout, length=length, dtype=dtype))
        expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        assert {batch.x.dtype for batch in batches} == {expected}
        np.testing.assert_array_equal(np.concatenate(list(map(dense_of, batches))), DENSE)

    @pytest.mark.parametrize("layout", FORMATS)
    @pytest.mark.parametrize(
        ("stored", "given"),
        [
            ("uint8", "uint8"),
            ("uint16", "int32"),
            ("uint64", "int64"),
            ("float32", "float32"),
            ("float64", "float64"),
        ],
    )
    def test_stored_dtype(self, tmp_path: Path, layout: str, stored: str, given: str) -> None:
        cells = random_cells(9, N_VARS, dtype="<u2", seed=5)
        write_h5ad(tmp_path / "a.h5ad", cells)
        scdl.convert(tmp_path / "a.h5ad", tmp_path / "archive", data_dtype=stored)
        length = N_VARS if layout == "padded" else None
        options = {"layout": layout, "length": length, "order": "sequential"}
        (batch,) = SingleCellLoader(scdl.open(tmp_path / "archive"), 9, dtype=None, **options)
        assert batch.x.dtype == getattr(torch, given)
        np.testing.assert_array_equal(dense_of(batch), cells.csr().toarray())

    @pytest.mark.parametrize("layout", FORMATS)
    @pytest.mark.parametrize(("dtype", "value"), [("uint8", 256), ("float16", 70_000.0)])
    def test_a_dtype_that_cannot_hold_the_values(
        self, tmp_path: Path, layout: str, dtype: str, value: float
    ) -> None:
        cells = Cells(np.array([0, 1]), np.array([1, 2]), np.array([1, value]), (2, N_VARS))
        write_h5ad(tmp_path / "a.h5ad", cells)
        scdl.convert(tmp_path / "a.h5ad", tmp_path / "archive")
        length = 5 if layout == "padded" else None
        archive = scdl.open(tmp_path / "archive")
        loader = SingleCellLoader(archive, 2, dtype=dtype, layout=layout, length=length)
        with pytest.raises(scdl.errors.CastError, match=dtype):
            list(loader)

    def test_batches_may_be_written_to(self, memmap: Any) -> None:
        for layout in ("csr", "dense"):
            for batch in in_order(memmap, layout=layout):
                (batch.x if layout == "dense" else batch.x.values()).mul_(0)
        np.testing.assert_array_equal(all_of(in_order(memmap)), DENSE)

    def test_batches_do_not_change_later(self, ds: Any) -> None:
        """Memory is reused, but never that of a batch that is still referenced."""
        kept = list(SingleCellLoader(ds, 256, layout="dense", order="random"))
        list(SingleCellLoader(ds, 256, layout="dense", order="random", seed=1))
        for batch in kept:
            np.testing.assert_array_equal(batch.x, DENSE[batch.rows])

    def test_to_another_dtype(self, memmap: Any) -> None:
        batch = next(iter(in_order(memmap, neighbors=1))).to(torch.float64)
        assert batch.x.dtype == batch.neighbors.x.dtype == torch.float64


class TestPadded:
    @pytest.mark.parametrize("by_value", [False, True])
    @pytest.mark.parametrize("length", [1, 7, N_VARS, N_VARS + 5])
    def test_values_and_genes(self, ds: Any, length: int, by_value: bool) -> None:
        loader = in_order(ds, layout="padded", length=length, by_value=by_value)
        for batch in loader:
            values, genes = padded(DENSE[batch.rows], length, by_value)
            np.testing.assert_array_equal(batch.x, values)
            np.testing.assert_array_equal(batch.genes, genes)
            stored = (DENSE[batch.rows] != 0).sum(axis=1)
            np.testing.assert_array_equal(batch.lengths, np.minimum(stored, length))
            assert batch.genes.dtype == batch.lengths.dtype == torch.int64

    def test_largest_normalized_values_come_first(self, memmap: Any) -> None:
        options = {"length": 5, "by_value": True, "transforms": [NormalizeTotal(), Log1p()]}
        for batch in in_order(memmap, layout="padded", **options):
            cells = np.log1p(normalized(DENSE[batch.rows], 1e4))
            np.testing.assert_allclose(batch.x, padded(cells, 5, True)[0], rtol=1e-5)
            assert (np.diff(batch.x) <= 0).all()


TRANSFORMS: dict[str, tuple[list[Any], Callable[[np.ndarray], np.ndarray]]] = {
    "normalized": ([NormalizeTotal()], lambda x: normalized(x, 1e4)),
    "to one": ([NormalizeTotal(1.0)], lambda x: normalized(x, 1.0)),
    "log": ([Log1p()], np.log1p),
    "both": ([NormalizeTotal(500), Log1p()], lambda x: np.log1p(normalized(x, 500))),
}


class TestTransforms:
    @pytest.mark.parametrize("layout", FORMATS)
    @pytest.mark.parametrize("name", TRANSFORMS)
    def test_as_scanpy_defines_them(self, ds: Any, layout: str, name: str) -> None:
        transforms, define = TRANSFORMS[name]
        length = N_VARS if layout == "padded" else None
        found = all_of(in_order(ds, layout=layout, length=length, transforms=transforms))
        np.testing.assert_allclose(found, define(DENSE.astype(np.float64)), rtol=1e-5)

    @pytest.mark.parametrize("stored", sample(["uint8", "uint64", "float16", "float64"], 2))
    def test_of_any_stored_dtype(self, tmp_path: Path, stored: str) -> None:
        cells = random_cells(9, 6, dtype="<u2", seed=5)
        write_h5ad(tmp_path / "a.h5ad", cells)
        scdl.convert(tmp_path / "a.h5ad", tmp_path / "archive", data_dtype=stored)
        loader = SingleCellLoader(
            scdl.open(tmp_path / "archive"), 9, order="sequential", dtype=None,
            transforms=[NormalizeTotal(), Log1p()],
        )  # fmt: skip
        (batch,) = loader
        expected = np.log1p(normalized(cells.csr(np.float64).toarray(), 1e4))
        assert batch.x.dtype == (torch.float64 if stored == "float64" else torch.float32)
        np.testing.assert_allclose(batch.x.to_dense(), expected, rtol=1e-5)

    def test_neighbors_are_transformed_too(self, memmap: Any) -> None:
        for batch in in_order(memmap, neighbors=2, transforms=[NormalizeTotal()]):
            beside = batch.neighbors
            expected = normalized(DENSE[beside.rows].astype(np.float64), 1e4)
            np.testing.assert_allclose(dense_of(beside), expected, rtol=1e-5)

    def test_functions_come_after_in_their_order(self, memmap: Any) -> None:
        transforms = [
            NormalizeTotal(1.0),
            lambda batch: batch.x.sum(),
            lambda total: [total.item()],
        ]
        found = list(in_order(memmap, layout="dense", transforms=transforms))
        stored = (DENSE != 0).any(axis=1)
        np.testing.assert_allclose(
            np.ravel(found), [stored[i : i + 64].sum() for i in range(0, N_OBS, 64)], rtol=1e-5
        )

    @pytest.mark.parametrize("total", [0, -1, np.nan, np.inf])
    def test_totals_are_positive_numbers(self, total: float) -> None:
        with pytest.raises(ScdlError, match="positive"):
            NormalizeTotal(total)


class TestColumns:
    LABELS = ("type", "guide", "donor", "perhaps")
    NUMBERS = ("line", "age", "small", "score", "half", "flag")

    def test_labels_become_codes(self, ds: Any) -> None:
        loader = SingleCellLoader(ds, order="random", obs=self.LABELS)
        for batch in loader:
            for name in self.LABELS:
                vocabulary = loader.vocabulary[name]
                codes = batch.obs[name]
                assert codes.dtype == torch.int64
                labels = [None if code < 0 else vocabulary[code] for code in codes.tolist()]
                expected = OBS[name].iloc[batch.rows.numpy()]
                assert labels == [None if pd.isna(label) else label for label in expected]

    def test_vocabulary_is_of_the_whole_dataset(self, ds: Any) -> None:
        loader = SingleCellLoader(ds, 2, rows=[0, 1], obs=["type", "donor", "perhaps", "age"])
        assert loader.vocabulary == {
            "type": ("NK", "unused", "B", "T"),
            "donor": tuple(f"d{i}" for i in range(9)),
            "perhaps": (False, True),
        }

    def test_numbers_stay(self, ds: Any) -> None:
        for batch in SingleCellLoader(ds, order="random", obs=self.NUMBERS):
            expected = OBS.iloc[batch.rows.numpy()]
            for name in self.NUMBERS:
                np.testing.assert_array_equal(batch.obs[name], expected[name], err_msg=name)

    def test_types_of_numbers(self, ds: Any) -> None:
        (batch,) = SingleCellLoader(ds, 1, rows=[5], obs=self.NUMBERS)
        assert {name: column.dtype for name, column in batch.obs.items()} == {
            "line": torch.int64,
            "age": torch.int64,
            "small": torch.int64,
            "score": torch.float64,
            "half": torch.float32,
            "flag": torch.bool,
        }

    def test_dense_vectors(self, ds: Any) -> None:
        for batch in SingleCellLoader(ds, order="random", obsm=["X_pca"]):
            np.testing.assert_array_equal(batch.obsm["X_pca"], VECTORS[batch.rows])

    def test_archive_without_obs(self, tmp_path: Path) -> None:
        write_archive(tmp_path, "obs", None)
        with pytest.raises(FeatureNotFoundError, match="obs"):
            SingleCellLoader(scdl.open(tmp_path / "archive"), obs=["age"])


class TestNeighbors:
    def test_are_neighbors_in_the_graph(self, ds: Any) -> None:
        graph = GRAPH.csr().toarray() != 0
        for batch in SingleCellLoader(ds, order="random", neighbors=3, obs=["age"]):
            beside = batch.neighbors
            assert len(beside) == 3 * len(batch)
            for cell, neighbors in zip(batch.rows, beside.rows.reshape(-1, 3), strict=True):
                if graph[cell].any():
                    assert graph[cell, neighbors].all()
                else:
                    assert (neighbors == cell).all()
            np.testing.assert_array_equal(dense_of(beside), DENSE[beside.rows])
            np.testing.assert_array_equal(beside.obs["age"], OBS["age"].iloc[beside.rows])

    def test_are_equally_likely(self, memmap: Any) -> None:
        graph = GRAPH.csr()
        cell = int(np.argmax(np.diff(graph.indptr)))
        neighbors = graph.indices[graph.indptr[cell] : graph.indptr[cell + 1]]
        loader = SingleCellLoader(memmap, 50, rows=[cell] * 50, neighbors=40)
        (batch,) = loader
        drawn = batch.neighbors.rows.numpy()
        assert set(drawn) <= set(neighbors.tolist())
        counts = np.bincount(np.searchsorted(neighbors, drawn), minlength=len(neighbors))
        assert scipy.stats.chisquare(counts).pvalue > 1e-4

    def test_change_from_epoch_to_epoch(self, memmap: Any) -> None:
        loader = in_order(memmap, neighbors=2)
        one, other = ([b.neighbors.rows.tolist() for b in loader] for _ in range(2))
        assert one != other

    def test_first_ones(self, archives: dict[str, Path]) -> None:
        ds = scdl.open(archives["memmap"], neighbor_sampling_strategy="first")
        for batch in in_order(ds, neighbors=1):
            assert batch.neighbors.rows.tolist() == [
                ds.sample_neighbor_index(int(row)) for row in batch.rows
            ]

    def test_cell_without_any(self, archives: dict[str, Path]) -> None:
        ds = scdl.open(archives["memmap"], fallback_to_identity=False)
        with pytest.raises(NeighborError, match=str(ALONE[0])):
            list(in_order(ds, neighbors=1))


class TestTokenizer:
    def test_takes_cells_and_gene_names(self, ds: Any) -> None:
        def tokenize(cells: scdl.CellBatch, genes: np.ndarray) -> list[list[str]]:
            assert isinstance(cells, scdl.CellBatch)
            return [genes[part].tolist() for part in np.split(cells.indices, cells.indptr[1:-1])]

        for batch in SingleCellLoader(ds, order="random", tokenizer=tokenize):
            assert batch.x is None
            assert batch.tokens == [GENES[DENSE[row] != 0].tolist() for row in batch.rows]

    def test_values_are_transformed(self, memmap: Any) -> None:
        loader = in_order(
            memmap, transforms=[NormalizeTotal(), Log1p()], tokenizer=lambda cells, genes: cells
        )
        for batch in loader:
            expected = np.log1p(normalized(DENSE[batch.rows], 1e4))
            np.testing.assert_allclose(batch.tokens.to_dense(), expected, rtol=1e-5)


class TestOrders:
    @pytest.mark.crossed
    @pytest.mark.parametrize("order", ["block", "random", "sequential"])
    @pytest.mark.parametrize("size", [7, 64, 1_000, N_OBS])
    def test_each_cell_once(self, ds: Any, order: str, size: int) -> None:
        options = {"buffer": 300} if order == "block" else {}
        loader = SingleCellLoader(ds, size, order=order, **options)
        batches = rows_of(loader)
        assert len(batches) == len(loader) == -(-N_OBS // size)
        assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
        assert sorted(flat(batches)) == list(range(N_OBS))

    @pytest.mark.parametrize("drop_last", [False, True])
    def test_last_batch(self, memmap: Any, drop_last: bool) -> None:
        loader = SingleCellLoader(memmap, 100, drop_last=drop_last)
        sizes = [len(batch) for batch in loader]
        assert sizes == [100] * 10 + ([] if drop_last else [9])
        assert len(loader) == len(sizes)

    def test_cells_come_as_the_order_says(self, ds: Any) -> None:
        for name, order in {
            "random": orders.Random(),
            "block": orders.Block(5, 200),
            "sequential": orders.Sequential(),
        }.items():
            options = {"block": 5, "buffer": 200} if name == "block" else {}
            loader = SingleCellLoader(ds, order=name, seed=4, **options)
            loader.set_epoch(3)
            assert flat(rows_of(loader)) == order.positions(N_OBS, 4, 3)[0:N_OBS].tolist()

    def test_custom_orders(self, ds: Any) -> None:
        class Backwards:
            def positions(self, n: int, seed: int, epoch: int) -> np.ndarray:
                return np.arange(n)[::-1][epoch:]

        loader = SingleCellLoader(ds, order=Backwards())
        assert flat(rows_of(loader)) == list(range(N_OBS))[::-1]
        assert flat(rows_of(loader)) == list(range(N_OBS))[::-1][1:]

    def test_weighted(self, memmap: Any) -> None:
        weights = np.zeros(N_OBS)
        weights[[4, 40]] = 1, 3
        rows = flat(rows_of(SingleCellLoader(memmap, order="weighted", weights=weights)))
        assert len(rows) == N_OBS
        assert set(rows) == {4, 40}
        assert rows.count(40) == pytest.approx(0.75 * N_OBS, rel=0.1)

    @pytest.mark.parametrize("by", ["type", "line", "guide"])
    def test_balanced(self, ds: Any, by: str) -> None:
        labels = OBS[by].iloc[flat(rows_of(SingleCellLoader(ds, order="balanced", by=by)))]
        assert not labels.isna().any()
        counts = labels.value_counts()
        assert scipy.stats.chisquare(counts[counts > 0]).pvalue > 1e-4
        assert set(labels) == set(OBS[by].dropna())

    def test_grouped(self, ds: Any) -> None:
        loader = SingleCellLoader(ds, 16, order="grouped", by="guide")
        batches = rows_of(loader)
        counts = OBS["guide"].value_counts()
        assert len(batches) == len(loader) == (counts // 16).sum()
        for batch in batches:
            assert len(batch) == 16
            assert OBS["guide"].iloc[batch].nunique() == 1
        assert len(set(flat(batches))) == len(flat(batches))

    def test_grouped_with_matched_controls(self, ds: Any) -> None:
        options = {"by": "guide", "control": "control", "match": "line", "obs": ["guide"]}
        loader = SingleCellLoader(ds, 16, order="grouped", **options)
        for batch in loader:
            treated, controls = (OBS.iloc[part] for part in batch.rows.numpy().reshape(2, 8))
            assert treated["guide"].nunique() == 1
            assert set(controls["guide"]) == {"control"}
            assert "control" not in set(treated["guide"])
            assert treated["line"].tolist() == controls["line"].tolist()

    def test_sizes_of_blocks_follow_from_memory(self, memmap: Any) -> None:
        small, large = (SingleCellLoader(memmap, 8, memory_mb=mb).order for mb in (0.03, 256.0))
        assert (large.block, large.buffer) == (1, N_OBS)
        assert 8 <= small.buffer < N_OBS
        assert small.buffer * memmap.bytes_per_cell * 2 <= 0.03e6

    @pytest.mark.parametrize("backend", ["memmap", "zarr"])
    @pytest.mark.parametrize("memory", ["default", "for an eighth of the cells"])
    def test_entropy_of_labels(self, tmp_path: Path, backend: str, memory: str) -> None:
        """Batches of data sorted by label are nearly as mixed as those of single random cells."""
        n = 16_000
        labels = np.sort(np.random.default_rng(0).choice(list("abcdefghij"), n))
        frame = pd.DataFrame({"label": pd.Categorical(labels)}, index=names("cell", n))
        write_h5ad(tmp_path / "a.h5ad", random_cells(n, 4), obs=frame)
        scdl.convert(tmp_path / "a.h5ad", tmp_path / "archive", backend=backend)
        ds = scdl.open(tmp_path / "archive")

        def entropy(order: str, **options: float) -> float:
            loader = SingleCellLoader(ds, 64, order=order, obs=["label"], **options)
            return float(
                np.mean([
                    scipy.stats.entropy(np.bincount(batch.obs["label"])) for batch in loader
                ])
            )  # fmt: skip

        random = entropy("random")
        assert random > 2
        assert entropy("sequential") < 0.1
        few = {"memory_mb": n / 8 * ds.bytes_per_cell * 2 / 1e6}
        assert entropy("block", **({} if memory == "default" else few)) >= 0.98 * random


def write_archive(place: Path, part: str, value: Any) -> None:
    """A small archive with one part replaced, or removed if it is None."""
    from storage_backends.testing import small_archive

    contents = small_archive(parts={} if value is None else {part: value})
    if value is None:
        del contents.tables[part]
    with registry.create(place / "archive", registry.backend("memmap")) as writer:
        contents.write(writer)
        writer.commit(contents.attrs)


MASK = np.arange(N_OBS) % 3 == 0


class TestSubsets:
    @pytest.mark.parametrize(
        "rows",
        [
            [5, 3, 900, 3],
            slice(900, 100, -7),
            MASK,
            OBS["donor"] == "d1",
            np.array([-1, 0], np.int16),
            range(4, 90),
        ],
        ids=["list", "slice", "mask", "series", "negative", "range"],
    )
    def test_cells_of_a_subset(self, ds: Any, rows: Any) -> None:
        selected = np.arange(N_OBS)[list(rows) if isinstance(rows, range) else rows]
        size = min(64, len(selected))
        options = {"order": "sequential", "obs": ["age"]}
        batches = list(SingleCellLoader(ds, size, rows=rows, **options))
        assert flat([batch.rows.tolist() for batch in batches]) == selected.tolist()
        np.testing.assert_array_equal(np.concatenate(list(map(dense_of, batches))), DENSE[selected])
        ages = torch.cat([batch.obs["age"] for batch in batches])
        assert ages.tolist() == OBS["age"].iloc[selected].tolist()

    @pytest.mark.parametrize("order", ["block", "random"])
    def test_shuffled(self, ds: Any, order: str) -> None:
        rows = flat(rows_of(SingleCellLoader(ds, rows=MASK, order=order)))
        assert rows != sorted(rows)
        assert sorted(rows) == np.flatnonzero(MASK).tolist()

    def test_weights_are_of_the_dataset_or_of_the_subset(self, memmap: Any) -> None:
        weights = np.arange(N_OBS) + 1.0
        found = [
            rows_of(SingleCellLoader(memmap, order="weighted", rows=MASK, weights=chosen))
            for chosen in (weights, weights[MASK])
        ]
        assert found[0] == found[1]
        assert set(flat(found[0])) <= set(np.flatnonzero(MASK).tolist())

    def test_balanced_within_a_subset(self, memmap: Any) -> None:
        rows = np.flatnonzero(OBS["type"] != "T")
        labels = OBS["type"].iloc[
            flat(rows_of(SingleCellLoader(memmap, rows=rows, order="balanced", by="type")))
        ]
        counts = labels.value_counts()
        assert counts["T"] == 0
        assert scipy.stats.chisquare(counts[["B", "NK"]]).pvalue > 1e-4

    def test_grouped_within_a_subset(self, memmap: Any) -> None:
        options = {"by": "guide", "control": "control", "match": "line"}
        rows = np.flatnonzero(OBS["guide"] != "A")
        batches = rows_of(SingleCellLoader(memmap, 8, order="grouped", rows=rows, **options))
        assert batches
        for batch in batches:
            treated = set(OBS["guide"].iloc[batch[:4]])
            assert treated in ({"B"}, {"C"})

    def test_parts_of_a_split(self, memmap: Any) -> None:
        splits = scdl.split(memmap, (0.8, 0.2))
        for rows in splits.values():
            found = flat(rows_of(SingleCellLoader(memmap, rows=rows)))
            assert sorted(found) == rows.tolist()


#: Little memory, so that a buffer holds only some of the cells.
FEW = {"obs": ["type", "age"], "neighbors": 2, "memory_mb": 0.03, "seed": 9}


def second_epoch(ds: Any, **options: Any) -> list[TrainingBatch]:
    loader = SingleCellLoader(ds, 48, **FEW, **options)
    loader.set_epoch(1)
    return list(loader)


@pytest.fixture(scope="module")
def expected(memmap: Any) -> list[TrainingBatch]:
    return second_epoch(memmap, block=5, threads=1, prefetch=1)


class TestReproducible:
    @pytest.mark.parametrize(
        "options",
        [{}, {"threads": 5, "prefetch": 17}, {"threads": 1, "prefetch": 9}, {"workers": 2}],
        ids=str,
    )
    def test_for_any_threads_and_workers(
        self, memmap: Any, expected: list[TrainingBatch], options: dict[str, Any]
    ) -> None:
        same(second_epoch(memmap, block=5, **options), expected)

    @pytest.mark.parametrize("layout", ["coo", "dense"])
    def test_for_any_layout(self, memmap: Any, expected: list[TrainingBatch], layout: str) -> None:
        same(second_epoch(memmap, block=5, layout=layout), expected)

    def test_on_every_backend(self, ds: Any, expected: list[TrainingBatch]) -> None:
        same(second_epoch(ds, block=5), expected)

    @pytest.mark.parametrize("kind", ["fast", "balanced"])
    def test_defaults_do_not_depend_on_the_backend(
        self, archives: dict[str, Path], memmap: Any, kind: str
    ) -> None:
        same(second_epoch(scdl.open(archives[kind])), second_epoch(memmap))

    def test_each_iteration_is_the_next_epoch(self, memmap: Any) -> None:
        loader = SingleCellLoader(memmap)
        epochs = [rows_of(loader) for _ in range(3)]
        assert epochs[0] != epochs[1] != epochs[2]
        loader.set_epoch(1)
        assert rows_of(loader) == epochs[1]
        assert rows_of(loader) == epochs[2]

    def test_an_abandoned_epoch_counts(self, memmap: Any) -> None:
        whole = SingleCellLoader(memmap)
        epochs = [rows_of(whole) for _ in range(2)]
        loader = SingleCellLoader(memmap)
        assert next(iter(loader)).rows.tolist() == epochs[0][0]
        assert rows_of(loader) == epochs[1]

    def test_seeds_differ(self, memmap: Any) -> None:
        one, other = (rows_of(SingleCellLoader(memmap, seed=seed)) for seed in (0, 1))
        assert one != other


class TestRanks:
    @settings(max_examples=examples(15))
    @given(world_size=st.integers(1, 7), size=st.integers(1, 200), data=st.data())
    def test_each_cell_once(
        self, memmap: Any, world_size: int, size: int, data: st.DataObject
    ) -> None:
        n = data.draw(st.integers(max(world_size, size), 400))
        rows = np.arange(n)
        ranks = [
            rows_of(SingleCellLoader(memmap, size, rows=rows, rank=rank, world_size=world_size))
            for rank in range(world_size)
        ]
        assert len({len(batches) for batches in ranks}) == 1
        found = [row for batches in ranks for row in flat(batches)]
        assert set(found) == set(range(n))
        assert len(found) - n < world_size

    def test_drop_last(self, memmap: Any) -> None:
        ranks = [
            rows_of(SingleCellLoader(memmap, 100, drop_last=True, rank=rank, world_size=3))
            for rank in range(3)
        ]
        assert [[len(batch) for batch in batches] for batches in ranks] == [[100] * 3] * 3
        assert len({row for batches in ranks for row in flat(batches)}) == 900


OTHERS: dict[str, dict[str, Any]] = {
    "seed": {"seed": 1},
    "batch_size": {"batch_size": 99},
    "order": {"order": "random"},
    "blocks": {"block": 7},
    "buffer": {"buffer": 500},
    "drop_last": {"drop_last": True},
    "world_size": {"rank": 0, "world_size": 2},
    "subset": {"rows": np.arange(N_OBS)[::-1]},
}


EVEN = np.ones(N_OBS)


class TestResume:
    def whole(self, ds: Any, **options: Any) -> list[list[list[int]]]:
        loader = SingleCellLoader(ds, 100, **options)
        return [rows_of(loader) for _ in range(3)]

    @pytest.mark.parametrize(
        ("order", "options"),
        [
            ("block", {}),
            ("random", {}),
            ("weighted", {"weights": np.arange(N_OBS) + 1.0}),
            ("balanced", {"by": ["type", "line"]}),
            ("grouped", {"by": "type"}),
            ("grouped", {"by": "guide", "remainder": "smaller"}),
            ("grouped", {"by": "guide", "control": "A", "match": "line", "remainder": "fill"}),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("taken", [1, 2])
    def test_resumes_with_the_remaining_batches(
        self, ds: Any, order: str, options: dict[str, Any], taken: int
    ) -> None:
        options = {"order": order, **options}
        epochs = self.whole(ds, **options)
        loader = SingleCellLoader(ds, 100, **options)
        list(loader)
        batches = iter(loader)
        for _ in range(taken):
            next(batches)
        state = loader.state_dict()
        resumed = SingleCellLoader(ds, 100, **options)
        resumed.load_state_dict(state)
        assert rows_of(resumed) == epochs[1][taken:]
        assert rows_of(resumed) == epochs[2]

    def test_state_is_plain(self, memmap: Any) -> None:
        loader = SingleCellLoader(memmap, 100)
        next(iter(loader))
        state = loader.state_dict()
        assert json.loads(json.dumps(state)) == state
        loader.load_state_dict(json.loads(json.dumps(state)))

    def test_before_the_first_batch(self, memmap: Any) -> None:
        resumed = SingleCellLoader(memmap, 100)
        resumed.load_state_dict(SingleCellLoader(memmap, 100).state_dict())
        assert rows_of(resumed) == self.whole(memmap)[0]

    def test_after_the_last_batch(self, memmap: Any) -> None:
        """Also if the loop has not yet requested another batch."""
        epochs = self.whole(memmap)
        loader = SingleCellLoader(memmap, 100)
        *_, last = (loader.state_dict() for _ in loader)
        for state in last, loader.state_dict():
            resumed = SingleCellLoader(memmap, 100)
            resumed.load_state_dict(state)
            assert rows_of(resumed) == epochs[1]

    def test_resumes_twice(self, memmap: Any) -> None:
        expected = self.whole(memmap)[0]
        state, found = SingleCellLoader(memmap, 100).state_dict(), []
        for _ in expected:
            loader = SingleCellLoader(memmap, 100)
            loader.load_state_dict(state)
            found.append(next(iter(loader)).rows.tolist())
            state = loader.state_dict()
        assert found == expected

    def test_with_other_threads_and_workers(self, memmap: Any) -> None:
        epochs = self.whole(memmap)
        loader = SingleCellLoader(memmap, 100, workers=2)
        batches = iter(loader)
        found = [next(batches).rows.tolist() for _ in range(3)]
        state = loader.state_dict()
        batches.close()
        resumed = SingleCellLoader(memmap, 100, threads=3, prefetch=9)
        resumed.load_state_dict(state)
        assert found + rows_of(resumed) == epochs[0]

    def test_on_another_backend(self, archives: dict[str, Path]) -> None:
        loader = SingleCellLoader(scdl.open(archives["memmap"]), 100, block=1)
        next(iter(loader))
        resumed = SingleCellLoader(scdl.open(archives["balanced"]), 100, block=1)
        resumed.load_state_dict(loader.state_dict())
        assert rows_of(resumed) == self.whole(scdl.open(archives["memmap"]))[0][1:]

    def test_state_of_one_rank_serves_all(self, memmap: Any) -> None:
        """Trainers save only that of rank 0; all ranks have yielded equally many batches."""
        loaders = [SingleCellLoader(memmap, 100, rank=r, world_size=2) for r in (0, 0, 1, 1)]
        expected = rows_of(loaders[2])
        next(iter(loaders[0]))
        for resumed in loaders[1], loaders[3]:
            resumed.load_state_dict(loaders[0].state_dict())
        assert rows_of(loaders[3]) == expected[1:]

    @pytest.mark.parametrize("what", OTHERS)
    def test_state_of_another_loader(self, memmap: Any, what: str) -> None:
        state = SingleCellLoader(memmap, 100).state_dict()
        other = SingleCellLoader(memmap, **{"batch_size": 100, **OTHERS[what]})
        with pytest.raises(ResumeError, match="another loader") as caught:
            other.load_state_dict(state)
        one_sentence(caught.value)

    @pytest.mark.parametrize(
        ("order", "one", "other"),
        [
            ("balanced", {"by": "type"}, {"by": "line"}),
            ("grouped", {"by": "type"}, {"by": "line"}),
            ("weighted", {"weights": np.ones(N_OBS)}, {"weights": np.arange(N_OBS)}),
            ("weighted", {"weights": EVEN}, {"weights": np.where(np.arange(N_OBS) == 9, 2, EVEN)}),
            ("balanced", {"by": "type"}, {"by": ["type", "line"]}),
            ("grouped", {"by": "type"}, {"by": "type", "remainder": "fill"}),
            ("grouped", {"by": "guide"}, {"by": "guide", "control": "A"}),
            (
                "grouped",
                {"by": "guide", "control": "A", "match": "line"},
                {"by": "guide", "control": "A", "match": "flag"},
            ),
            ("block", {"block": 5}, {"block": 6}),
            ("block", {"buffer": 500}, {"buffer": 501}),
        ],
    )
    def test_state_of_another_order_of_the_name(
        self, memmap: Any, order: str, one: Any, other: Any
    ) -> None:
        state = SingleCellLoader(memmap, order=order, **one).state_dict()
        with pytest.raises(ResumeError, match="order"):
            SingleCellLoader(memmap, order=order, **other).load_state_dict(state)

    def test_state_of_another_custom_order(self, memmap: Any) -> None:
        """Also if it differs late or in later epochs; a method `fingerprint` takes precedence."""

        class Swapped:
            def __init__(self, at: int, epoch: int = 0) -> None:
                self.at, self.epoch = at, epoch

            def positions(self, n: int, seed: int, epoch: int) -> np.ndarray:
                found = np.arange(n)
                if epoch >= self.epoch:
                    found[[self.at, 0]] = found[[0, self.at]]
                return found

        class Named(Swapped):
            def fingerprint(self) -> str:
                return f"swapped {self.at} {self.epoch}"

        one = SingleCellLoader(memmap, order=Swapped(5)).state_dict()
        SingleCellLoader(memmap, order=Swapped(5)).load_state_dict(one)
        for other in (Swapped(1_008), Swapped(5, epoch=1), Named(5)):
            with pytest.raises(ResumeError, match="order was"):
                SingleCellLoader(memmap, order=other).load_state_dict(one)
        state = SingleCellLoader(memmap, order=Named(5, 10)).state_dict()
        with pytest.raises(ResumeError, match=r"swapped 5 10.*swapped 5 11"):
            SingleCellLoader(memmap, order=Named(5, 11)).load_state_dict(state)

    def test_state_of_another_dataset(self, memmap: Any, tmp_path: Path) -> None:
        write_h5ad(tmp_path / "a.h5ad", random_cells(N_OBS, N_VARS))
        scdl.convert(tmp_path / "a.h5ad", tmp_path / "archive")
        other = SingleCellLoader(scdl.open(tmp_path / "archive"), order="random")
        with pytest.raises(ResumeError, match="data"):
            other.load_state_dict(SingleCellLoader(memmap, order="random").state_dict())

    @pytest.mark.parametrize(
        "change", [{"epoch": -1}, {"batch": -1}, {"batch": "x"}, {"epoch": None}, {"loader": None}]
    )
    def test_invalid_state(self, memmap: Any, change: dict[str, Any]) -> None:
        loader = SingleCellLoader(memmap)
        with pytest.raises(ResumeError):
            loader.load_state_dict({**loader.state_dict(), **change})
        with pytest.raises(ResumeError):
            loader.load_state_dict({})


def loader_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("scdl-loader")]


def slow(batch: TrainingBatch) -> TrainingBatch:
    time.sleep(0.01)
    return batch


class TestThreads:
    def test_no_threads_after_an_epoch(self, ds: Any) -> None:
        list(SingleCellLoader(ds, threads=3))
        assert loader_threads() == []

    @pytest.mark.parametrize("taken", [0, 1, 5])
    def test_no_threads_after_abandoning(self, ds: Any, taken: int) -> None:
        for number, _ in enumerate(SingleCellLoader(ds, 100, threads=3, transforms=[slow])):
            assert loader_threads()
            if number == taken:
                break
        assert loader_threads() == []

    def test_no_threads_after_an_error_of_the_consumer(self, memmap: Any) -> None:
        def train() -> None:
            for _ in SingleCellLoader(memmap, 8):
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            train()
        assert loader_threads() == []

    @pytest.mark.parametrize("at", ["waiting", "computing"])
    def test_no_threads_after_an_interrupt(self, ds: Any, at: str) -> None:
        def interrupt(batch: TrainingBatch) -> TrainingBatch:
            if at == "waiting" and batch.rows[0] == 500:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.2)
            return batch

        loader = SingleCellLoader(ds, 50, order="sequential", threads=3, transforms=[interrupt])

        def train() -> None:
            for number, _ in enumerate(loader):
                if at == "computing" and number == 3:
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(20)

        with pytest.raises(KeyboardInterrupt):
            train()
        # A thread that was being started is not joined, and ends by itself.
        deadline = time.monotonic() + 60
        while loader_threads() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert loader_threads() == []

    def test_errors_come_with_their_traceback(self, ds: Any) -> None:
        def divides(batch: TrainingBatch) -> TrainingBatch:
            if batch.rows[0] == 640:
                raise ZeroDivisionError("in a thread")
            return batch

        loader = in_order(ds, transforms=[divides])
        with pytest.raises(ZeroDivisionError, match="in a thread") as caught:
            list(loader)
        assert "divides" in [frame.name for frame in traceback.extract_tb(caught.tb)]
        assert loader_threads() == []

    def test_errors_of_a_tokenizer(self, memmap: Any) -> None:
        def fails(cells: scdl.CellBatch, genes: np.ndarray) -> None:
            raise LookupError(f"no token for {genes[0]}")

        with pytest.raises(LookupError, match=f"no token for {GENES[0]}"):
            list(in_order(memmap, tokenizer=fails))

    def test_errors_of_an_order(self, memmap: Any) -> None:
        class Outside:
            def positions(self, n: int, seed: int, epoch: int) -> np.ndarray:
                return np.arange(n) + 900

        with pytest.raises(OrderError, match=str(N_OBS - 1)):
            list(SingleCellLoader(memmap, order=Outside()))

    def test_goes_on_after_an_error(self, memmap: Any) -> None:
        failing = [True]

        def fails(batch: TrainingBatch) -> TrainingBatch:
            if failing[0]:
                raise ZeroDivisionError
            return batch

        loader = in_order(memmap, transforms=[fails])
        with pytest.raises(ZeroDivisionError):
            list(loader)
        failing[0] = False
        np.testing.assert_array_equal(all_of(loader), DENSE)

    def test_reads_ahead_and_not_too_far(self, memmap: Any) -> None:
        assembled = []

        def count(batch: TrainingBatch) -> TrainingBatch:
            assembled.append(len(batch))
            return batch

        # Batches so large that each is a separate task.
        rows = np.arange(N_OBS).repeat(100)
        loader = SingleCellLoader(
            memmap, 1_024, order="sequential", rows=rows, prefetch=3, threads=1, transforms=[count]
        )
        batches = iter(loader)
        next(batches)
        deadline = time.monotonic() + 60
        while len(assembled) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert 4 <= len(assembled) <= 5
        batches.close()


class TestStats:
    def test_counts(self, ds: Any) -> None:
        loader = SingleCellLoader(ds, 100)
        list(loader)
        stats = loader.stats()
        assert (stats.cells, stats.batches) == (N_OBS, 11)
        assert stats.nbytes == pytest.approx(N_OBS * ds.bytes_per_cell, abs=1)
        assert 0 < stats.waited <= stats.seconds
        assert stats.cells_per_second == pytest.approx(N_OBS / stats.seconds)
        assert stats.wait_share == pytest.approx(stats.waited / stats.seconds)

    def test_are_those_of_the_epoch_so_far(self, memmap: Any) -> None:
        loader = SingleCellLoader(memmap, 100)
        assert loader.stats().cells == loader.stats().cells_per_second == 0
        list(loader)
        batches = iter(loader)
        next(batches)
        next(batches)
        assert (loader.stats().cells, loader.stats().batches) == (200, 2)

    def test_a_slow_loader_is_waited_for(self, memmap: Any) -> None:
        loader = SingleCellLoader(memmap, 100, threads=1, transforms=[slow])
        list(loader)
        assert loader.stats().wait_share > 0.5

    def test_a_slow_consumer_hardly_waits(self, memmap: Any) -> None:
        loader = SingleCellLoader(memmap, 100)
        for _ in loader:
            time.sleep(0.03)
        assert loader.stats().wait_share < 0.9


class TestReplaced:
    @pytest.mark.parametrize("kind", ARCHIVES)
    def test_goes_on_with_the_old(
        self, archives: dict[str, Path], tmp_path: Path, kind: str
    ) -> None:
        path = tmp_path / "archive"
        shutil.copytree(archives[kind], path)
        loader = in_order(scdl.open(path), obs=["type"], prefetch=1, threads=1, memory_mb=0.03)
        batches: Iterator[TrainingBatch] = iter(loader)
        found = [next(batches)]
        write_h5ad(tmp_path / "b.h5ad", random_cells(N_OBS - 3, 7))
        scdl.convert(tmp_path / "b.h5ad", path, replace=True, **ARCHIVES[kind])
        found += batches
        np.testing.assert_array_equal(np.concatenate(list(map(dense_of, found))), DENSE)
        np.testing.assert_array_equal(all_of(loader), DENSE)
        assert len(flat(rows_of(SingleCellLoader(scdl.open(path))))) == N_OBS - 3

    def test_workers_that_start_later_refuse_the_new(
        self, archives: dict[str, Path], tmp_path: Path
    ) -> None:
        """A pickled loader contains paths, and must not read a replaced archive."""
        path = tmp_path / "archive"
        shutil.copytree(archives["memmap"], path)
        pickled = pickle.dumps(in_order(scdl.open(path)).dataset())
        write_h5ad(tmp_path / "b.h5ad", random_cells(N_OBS, N_VARS))
        scdl.convert(tmp_path / "b.h5ad", path, replace=True)
        with pytest.raises(ScdlError, match="replaced") as caught:
            list(pickle.loads(pickled))
        one_sentence(caught.value)

    def test_closed(self, archives: dict[str, Path]) -> None:
        ds = scdl.open(archives["memmap"])
        loader = SingleCellLoader(ds)
        ds.close()
        with pytest.raises(ArchiveClosedError):
            list(loader)


def one_sentence(error: BaseException) -> None:
    """Check that an error is typed and its message is one sentence."""
    assert isinstance(error, ScdlError)
    text = str(error)
    assert text
    assert "\n" not in text
    assert ". " not in text
    assert not text.endswith(".")


BAD: dict[str, tuple[dict[str, Any], type[ScdlError], str]] = {
    "unknown obs column": ({"obs": ["colour"]}, FeatureNotFoundError, "colour.*type"),
    "unknown obsm": ({"obsm": ["X_umap"]}, FeatureNotFoundError, "X_umap.*X_pca"),
    "batch larger than the data": (
        {"batch_size": 1_010}, LoaderError, "1010.*more than the 1009 cells",
    ),
    "an order for other batches": (
        {"batch_size": 10, "order": grouped_orders.Grouped(np.zeros(N_OBS, int), 8)}, LoaderError,
        "8 cells, not of 10",
    ),
    "batches larger than the ranks' data": (
        {"batch_size": 400, "drop_last": True, "rank": 0, "world_size": 3}, LoaderError, "3 ranks",
    ),
    "batches without cells": ({"batch_size": 0}, LoaderError, "batch_size.*0"),
    "empty subset": ({"rows": []}, LoaderError, "no cells"),
    "empty mask": ({"rows": np.zeros(N_OBS, bool)}, LoaderError, "no cells"),
    "mask of wrong length": ({"rows": np.ones(5, bool)}, RowIndexError, "1009"),
    "rows outside": ({"rows": [0, N_OBS]}, RowIndexError, "1009"),
    "rows of floats": ({"rows": [0.5]}, RowIndexError, "float"),
    "no weights": ({"order": "weighted"}, LoaderError, "weights"),
    "weights of wrong length": (
        {"order": "weighted", "weights": np.ones(5)}, OrderError, r"5.*1009",
    ),
    "negative weights": (
        {"order": "weighted", "weights": np.arange(N_OBS) - 3.0}, OrderError, "-3",
    ),
    "NaN weights": ({"order": "weighted", "weights": np.full(N_OBS, np.nan)}, OrderError, "nan"),
    "infinite weights": (
        {"order": "weighted", "weights": np.full(N_OBS, np.inf)}, OrderError, "inf",
    ),
    "zero weights": ({"order": "weighted", "weights": np.zeros(N_OBS)}, OrderError, "zero"),
    "weights of another order": (
        {"order": "random", "weights": np.ones(N_OBS)}, LoaderError, "random.*weights.*weighted",
    ),
    "weights of text": ({"weights": np.full(N_OBS, "1")}, OrderError, "weights.*<U1"),
    "weights of two dimensions": ({"weights": np.ones((N_OBS, 2))}, OrderError, "2"),
    "by of no order": ({"by": "type"}, LoaderError, "by=.*'balanced'.*'grouped'"),
    "by of nothing": ({"by": "nope"}, LoaderError, "by="),
    "by of another order": ({"order": "random", "by": "type"}, LoaderError, "by="),
    "block of another order": ({"order": "random", "block": 5}, LoaderError, "block="),
    "buffer of another order": ({"order": "sequential", "buffer": 5}, LoaderError, "buffer="),
    "control of another order": (
        {"order": "balanced", "by": "type", "control": "T"}, LoaderError, "control=.*'grouped'",
    ),
    "match of another order": (
        {"order": "balanced", "by": "type", "match": "line"}, LoaderError, "match=",
    ),
    "match without controls": (
        {"order": "grouped", "by": "type", "match": "line"}, LoaderError, "control=",
    ),
    "block of a custom order": (
        {"order": orders.Random(), "block": 5}, LoaderError, "custom.*block=",
    ),
    "remainder of another order": ({"remainder": "fill"}, LoaderError, "remainder=.*'grouped'"),
    "unknown remainder": (
        {"order": "grouped", "by": "type", "remainder": "x"}, OrderError, "smaller.*x",
    ),
    "smaller batches that are left out": (
        {"order": "grouped", "by": "type", "remainder": "smaller", "drop_last": True}, LoaderError,
        "drop_last",
    ),
    "groups smaller than a batch": (
        {"order": "grouped", "by": "type", "batch_size": 200}, OrderError, "'NK'.*109|'NK'.*200",
    ),
    "a class for an order": ({"order": orders.Random}, LoaderError, "object.*Random"),
    "missing genes of no gene space": ({"missing": "zero"}, LoaderError, "missing=.*genes="),
    "duplicates of no gene space": ({"duplicates": "sum"}, LoaderError, "duplicates=.*genes="),
    "gene column of no gene space": ({"gene_column": "x"}, LoaderError, "gene_column=.*genes="),
    "choice of no padding": ({"choose": "random"}, LoaderError, "choose.*padded"),
    "unknown choice": (
        {"layout": "padded", "length": 5, "choose": "best"}, LoaderError, "random.*best",
    ),
    "two choices": (
        {"layout": "padded", "length": 5, "choose": "first", "by_value": True}, LoaderError,
        "by_value.*first",
    ),
    "layout of a tokenizer": (
        {"layout": "dense", "tokenizer": lambda cells, genes: 0}, LoaderError, "tokenizer.*dense",
    ),
    "no tokenizer": ({"tokenizer": "words"}, LoaderError, "tokenizer.*words"),
    "no transform": ({"transforms": ["log"]}, LoaderError, "transforms.*log"),
    "a class for a transform": ({"transforms": [Log1p]}, LoaderError, "transforms.*Log1p"),
    "half a cell": ({"batch_size": 2.5}, LoaderError, "batch_size.*2.5"),
    "half a seed": ({"seed": 1.5}, LoaderError, "seed.*1.5"),
    "threads as text": ({"threads": "2"}, LoaderError, "threads.*'2'"),
    "threads as truth": ({"threads": True}, LoaderError, "threads.*True"),
    "memory as text": ({"memory_mb": "1"}, LoaderError, "memory_mb.*'1'"),
    "memory beyond any": ({"memory_mb": np.nan}, LoaderError, "memory_mb.*nan"),
    "obs that are no names": ({"obs": [1]}, LoaderError, "obs.*1"),
    "obsm that is no name": ({"obsm": 1}, LoaderError, "obsm.*1"),
    "dtype of text": ({"dtype": "str"}, LoaderError, "dtype.*str"),
    "dtype of objects": ({"dtype": object}, LoaderError, "dtype.*object"),
    "complex dtype": ({"dtype": "complex64"}, LoaderError, "dtype.*complex64"),
    "unknown order": ({"order": "shuffled"}, LoaderError, "random.*shuffled"),
    "no order": ({"order": 5}, LoaderError, "order.*5"),
    "unknown layout": ({"layout": "csc"}, LoaderError, "padded.*csc"),
    "unknown option": ({"colour": 1}, LoaderError, "colour.*layout"),
    "unknown dtype": ({"dtype": "float31"}, LoaderError, "float31"),
    "no dtype": ({"dtype": "nn"}, LoaderError, "nn"),
    "padded to no length": ({"layout": "padded"}, LoaderError, "length"),
    "padded to nothing": ({"layout": "padded", "length": 0}, LoaderError, "length.*0"),
    "length of no padding": ({"length": 5}, LoaderError, "padded"),
    "sorted by value": ({"by_value": True}, LoaderError, "padded"),
    "no threads": ({"threads": 0}, LoaderError, "threads.*0"),
    "no batches ahead": ({"prefetch": 0}, LoaderError, "prefetch.*0"),
    "workers below none": ({"workers": -1}, LoaderError, "workers.*-1"),
    "no memory": ({"memory_mb": -1.0}, LoaderError, "memory_mb"),
    "neighbors below none": ({"neighbors": -1}, LoaderError, "neighbors.*-1"),
    "blocks of nothing": ({"block": 0}, LoaderError, "block.*0"),
    "buffers of nothing": ({"buffer": 0}, LoaderError, "buffer.*0"),
    "rank alone": ({"rank": 0}, LoaderError, "world_size"),
    "ranks alone": ({"world_size": 2}, LoaderError, "rank"),
    "rank outside": ({"rank": 2, "world_size": 2}, LoaderError, "2"),
    "balanced by nothing": ({"order": "balanced"}, LoaderError, "by="),
    "balanced by no column": ({"order": "balanced", "by": "x"}, FeatureNotFoundError, "x"),
    "grouped by nothing": ({"order": "grouped"}, LoaderError, "by="),
    "groups too small": (
        {"order": "grouped", "by": "donor", "batch_size": 500}, OrderError, "500",
    ),
    "unknown control": (
        {"order": "grouped", "by": "guide", "control": "none"}, LoaderError, "none.*guide",
    ),
    "matched by no column": (
        {"order": "grouped", "by": "guide", "control": "A", "match": "x"},
        FeatureNotFoundError, "x",
    ),
    "controls and an odd size": (
        {"order": "grouped", "by": "guide", "control": "A", "batch_size": 7}, OrderError, "7",
    ),
    "controls that match nobody": (
        {"order": "grouped", "by": "type", "control": "T", "match": "type", "batch_size": 2},
        OrderError, "control",
    ),
    "logarithms first": ({"transforms": [Log1p(), NormalizeTotal()]}, LoaderError, "order"),
    "logarithms twice": ({"transforms": [Log1p(), Log1p()]}, LoaderError, "once"),
    "functions first": ({"transforms": [len, Log1p()]}, LoaderError, "followed by functions"),
    "logarithms as integers": (
        {"transforms": [Log1p()], "dtype": torch.int32}, LoaderError, "int32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(memmap: Any, case: str) -> None:
    options, kind, told = BAD[case]
    with pytest.raises(kind, match=told) as caught:
        SingleCellLoader(memmap, **options)
    one_sentence(caught.value)


class Positions:
    """A custom order with given positions."""

    def __init__(self, found: Any) -> None:
        self.found = found

    def positions(self, n: int, seed: int, epoch: int) -> Any:
        return self.found


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (np.arange(N_OBS) % 3 == 0, "bool"),
        (np.arange(N_OBS) + 0.5, "float64"),
        (np.arange(N_OBS).reshape(-1, 1), "shape"),
        (np.arange(N_OBS).astype(str), "integers"),
        (np.arange(N_OBS) + 1_000_000, "1000000"),
        (iter(range(9)), "length"),
    ],
    ids=["mask", "floats", "two dimensions", "text", "outside", "no length"],
)
def test_invalid_positions(memmap: Any, found: Any, told: str) -> None:
    with pytest.raises(OrderError, match=told) as caught:
        SingleCellLoader(memmap, order=Positions(found))
    one_sentence(caught.value)


def test_positions_of_any_integers(memmap: Any) -> None:
    for found in (list(range(90)), torch.arange(90), np.arange(90, dtype=np.uint8)):
        assert flat(rows_of(SingleCellLoader(memmap, order=Positions(found)))) == list(range(90))


def test_out_of_memory_says_what_takes_less(memmap: Any) -> None:
    def grow(batch: Any) -> Any:
        return np.empty(1 << 60, np.uint8)

    with pytest.raises(MemoryError, match="Unable to allocate") as raised:
        next(iter(scdl.SingleCellLoader(memmap, 16, transforms=[grow])))
    (note,) = raised.value.__notes__
    assert "several batches of 16 cells" in note
    assert "prefetch=1" in note


class TestNames:
    """A single name is accepted where several names are."""

    def test_of_loaders(self, memmap: Any) -> None:
        (batch,) = SingleCellLoader(memmap, 2, rows=[3, 4], obs="type", obsm="X_pca")
        assert batch.obs.keys() == {"type"}
        assert batch.obsm.keys() == {"X_pca"}

    def test_of_reads(self, memmap: Any) -> None:
        cells = memmap.read_rows([3, 4], obs="type", obsm="X_pca")
        assert cells.obs.keys() == {"type"}
        assert cells.obsm.keys() == {"X_pca"}
        assert len(memmap.get_row(0, True, "_index")[1]) == 1

    def test_of_conversions(self, archives: dict[str, Path], tmp_path: Path) -> None:
        options = {"obsm": "X_pca", "neighbor_key": "next_cell_ids"}
        scdl.convert(archives["h5ad"], tmp_path / "archive", **options)
        data = scdl.open(tmp_path / "archive")
        assert data.read_rows([0], obsm="X_pca").obsm["X_pca"].shape == (1, 3)
        assert data.graph is not None

    def test_invalid_names(self, memmap: Any) -> None:
        with pytest.raises(scdl.errors.OptionError, match="obs must be"):
            memmap.read_rows([0], obs=[5])


class TestSeveralColumns:
    def test_balanced(self, memmap: Any) -> None:
        rows = flat(rows_of(SingleCellLoader(memmap, order="balanced", by=["type", "line"])))
        counts = OBS.iloc[rows].groupby(["type", "line"], observed=True).size()
        assert len(counts) == 6
        assert scipy.stats.chisquare(counts).pvalue > 1e-4

    def test_grouped_and_matched(self, memmap: Any) -> None:
        options = {"by": ["guide", "line"], "control": ("control", 7), "match": ["flag", "type"]}
        rows = np.flatnonzero((OBS["type"] == "T") & (OBS["line"] == 7))
        loader = SingleCellLoader(memmap, 8, order="grouped", rows=rows, **options)
        for batch in loader:
            treated, controls = (OBS.iloc[part] for part in batch.rows.numpy().reshape(2, 4))
            assert treated["guide"].nunique() == 1
            assert set(controls["guide"]) == {"control"}
            assert treated["flag"].tolist() == controls["flag"].tolist()

    def test_cells_without_a_value_are_of_no_group(self, memmap: Any) -> None:
        options = {"by": ["guide", "perhaps"], "remainder": "smaller"}
        rows = flat(rows_of(SingleCellLoader(memmap, 8, order="grouped", **options)))
        known = OBS["guide"].notna() & OBS["perhaps"].notna()
        assert sorted(rows) == np.flatnonzero(known).tolist()


class TestSmallGroups:
    OPTIONS: ClassVar[dict[str, Any]] = {"order": "grouped", "by": "donor", "batch_size": 100}

    def test_come_smaller(self, ds: Any) -> None:
        loader = SingleCellLoader(ds, **self.OPTIONS, remainder="smaller")
        batches = rows_of(loader)
        assert len(batches) == len(loader)
        assert sorted(flat(batches)) == list(range(N_OBS))
        for batch in batches:
            assert OBS["donor"].iloc[batch].nunique() == 1

    def test_come_filled(self, ds: Any) -> None:
        batches = rows_of(SingleCellLoader(ds, **self.OPTIONS, remainder="fill", drop_last=True))
        assert {len(batch) for batch in batches} == {100}
        assert set(flat(batches)) == set(range(N_OBS))
        for batch in batches:
            assert OBS["donor"].iloc[batch].nunique() == 1

    def test_are_left_out_where_that_is_meant(self, memmap: Any) -> None:
        options = {"order": "grouped", "by": "type", "batch_size": 200}
        loader = SingleCellLoader(memmap, **options, remainder="drop")
        assert set(OBS["type"].iloc[flat(rows_of(loader))]) == {"T", "B"}

    @pytest.mark.parametrize("remainder", ["smaller", "fill"])
    def test_with_controls(self, memmap: Any, remainder: str) -> None:
        options = {"by": "guide", "control": "control", "match": "line", "remainder": remainder}
        loader = SingleCellLoader(memmap, 300, order="grouped", **options)
        treated: list[int] = []
        for batch in loader:
            half = len(batch) // 2
            one, other = (OBS.iloc[part] for part in batch.rows.numpy().reshape(2, half))
            assert one["guide"].nunique() == 1
            assert set(other["guide"]) == {"control"}
            assert one["line"].tolist() == other["line"].tolist()
            treated += batch.rows[:half].tolist()
        expected = np.flatnonzero(OBS["guide"].isin(["A", "B", "C"]))
        assert set(treated) == set(expected.tolist())
        assert remainder == "fill" or len(treated) == len(expected)

    @pytest.mark.parametrize("world_size", [1, 2, 3, 5])
    def test_on_several_ranks(self, memmap: Any, world_size: int) -> None:
        ranks = [
            rows_of(
                SingleCellLoader(
                    memmap, **self.OPTIONS, remainder="smaller", rank=rank, world_size=world_size
                )
            )
            for rank in range(world_size)
        ]
        assert len({len(batches) for batches in ranks}) == 1
        assert {row for batches in ranks for row in flat(batches)} == set(range(N_OBS))
        for batch in (batch for batches in ranks for batch in batches):
            assert OBS["donor"].iloc[batch].nunique() == 1

    def test_for_any_threads_and_workers(self, ds: Any) -> None:
        one, other = (
            rows_of(SingleCellLoader(ds, **self.OPTIONS, remainder="smaller", **options))
            for options in ({"threads": 1}, {"workers": 2})
        )
        assert one == other


class TestArgumentsAreCopied:
    """Later changes of arguments by the caller have no effect."""

    def test_arrays(self, memmap: Any) -> None:
        rows, weights, obs = np.arange(100), np.ones(100), ["type"]
        weights[50:] = 0
        loader = SingleCellLoader(memmap, 25, rows=rows, weights=weights, obs=obs)
        rows += 500
        weights[:] = 1
        obs.append("nope")
        found = flat(rows_of(pickle.loads(pickle.dumps(loader))))
        assert set(found) <= set(range(50))

    def test_weights_imply_the_order_weighted(self, memmap: Any) -> None:
        weights = np.arange(N_OBS) + 1.0
        one, other = (
            rows_of(SingleCellLoader(memmap, weights=weights, **options))
            for options in ({}, {"order": "weighted"})
        )
        assert one == other

    @pytest.mark.parametrize(
        ("dtype", "expected"),
        [
            (np.float32, torch.float32),
            (np.dtype("f8"), torch.float64),
            (float, torch.float64),
            ("torch.bfloat16", torch.bfloat16),
            ("uint8", torch.uint8),
            (np.int32, torch.int32),
            (">f4", LoaderError),
        ],
        ids=str,
    )
    def test_types_of_numpy(self, memmap: Any, dtype: Any, expected: Any) -> None:
        if expected is LoaderError:
            with pytest.raises(LoaderError, match="dtype"):
                SingleCellLoader(memmap, dtype=dtype)
            return
        assert next(iter(SingleCellLoader(memmap, dtype=dtype))).x.dtype == expected

    def test_one_transform(self, memmap: Any) -> None:
        found = all_of(in_order(memmap, transforms=Log1p()))
        np.testing.assert_allclose(found, np.log1p(DENSE), rtol=1e-5)


class TestOtherObjects:
    @pytest.mark.parametrize(
        ("make", "told"),
        [
            (lambda path: str(path), r"the path.*scdl\.open"),
            (lambda path: path, r"the path.*scdl\.open"),
            (lambda path: anndata.AnnData(DENSE), r"anndata\.AnnData.*scdl\.convert"),
            (lambda path: zarr.group(), r"zarr\.Group.*scdl\.open"),
            (lambda path: DENSE, r"numpy\.ndarray.*scdl\.open"),
            (lambda path: SingleCellLoader(scdl.open(path)), "SingleCellLoader"),
        ],
        ids=["text", "path", "AnnData", "Zarr group", "array", "loader"],
    )
    @pytest.mark.parametrize("use", [SingleCellLoader, lambda data: scdl.split(data, (0.5, 0.5))])
    def test_are_not_datasets(
        self, archives: dict[str, Path], make: Any, told: str, use: Callable[[Any], Any]
    ) -> None:
        with pytest.raises(scdl.errors.DatasetTypeError, match=told) as caught:
            use(make(archives["fast"]))
        assert isinstance(caught.value, TypeError)
        one_sentence(caught.value)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_loader_is_no_dataset_of_items(self, memmap: Any, workers: int) -> None:
        loader = torch.utils.data.DataLoader(SingleCellLoader(memmap), num_workers=workers)
        with pytest.raises(LoaderError, match=r"loader\.dataset\(\), batch_size=None"):
            next(iter(loader))


def test_repr(memmap: Any) -> None:
    options = {"obs": ["type", "age"], "neighbors": 2, "rows": MASK}
    text = repr(SingleCellLoader(memmap, 50, order="random", seed=7, dtype="bfloat16", **options))
    first, *others = text.splitlines()
    assert first.startswith("SingleCellLoader of 337 cells of SingleCellDataset(")
    assert others == [
        "  batches: 7 per epoch of 50 cells",
        "  order: random, seed 7, epoch 0",
        "  gives: csr bfloat16, obs 'type' (4 labels), obs 'age', 2 neighbours a cell",
    ]
    ranks = SingleCellLoader(memmap, 50, drop_last=True, rank=1, world_size=2, dtype=None)
    assert "not whole, rank 1 of 2" in repr(ranks)
    assert "csr as stored" in repr(ranks)


def test_column_of_unsupported_type(tmp_path: Path) -> None:
    obs = pd.DataFrame({"n": range(9)}, index=names("cell", 9))
    source = write_h5ad(tmp_path / "a.h5ad", random_cells(9, 4), obs=obs)
    scdl.convert(source, tmp_path / "archive")
    with_times(tmp_path / "archive", "obs")
    for options in ({"obs": ["time"]}, {"order": "balanced", "by": "time"}):
        with pytest.raises(ColumnTypeError, match=r"time.*timestamp") as caught:
            SingleCellLoader(scdl.open(tmp_path / "archive"), 8, **options)
        one_sentence(caught.value)


def test_neighbors_without_a_graph(archives: dict[str, Path]) -> None:
    ds = scdl.open(archives["memmap"], load_neighbors=False)
    with pytest.raises(LoaderError, match="graph") as caught:
        SingleCellLoader(ds, neighbors=1)
    one_sentence(caught.value)


def test_cells_without_values() -> None:
    """Cells without values in the first, the last and a middle batch."""
    assert not DENSE[EMPTY].any()
    assert np.diff(X.indptr).min() == 0
    assert len(CELLS.rows) == X.nnz
