"""SingleCellCollection: many archives read as one."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from budget import whole_only
from hypothesis import given
from hypothesis import strategies as st
from places import GOLDEN
from ragged import Ragged, write_member, write_members
from scipy import sparse
from sources import names, random_cells, write_h5ad

import scdl
from scdl.collection import discovery, member
from scdl.errors import (
    ArchiveChangedError,
    ArchiveExistsError,
    ArchiveFormatError,
    ArchiveNotFoundError,
    CastError,
    CollectionError,
    ColumnTypeError,
    ConversionFailedError,
    FeatureNotFoundError,
    NeighborError,
    OutputError,
    RowIndexError,
    ScdlWarning,
    SourceNotFoundError,
)
from storage_backends import registry
from storage_backends.compute import read_ahead
from storage_backends.compute.caching import LRUCache
from storage_backends.memmap.store import MemmapStore
from storage_backends.testing.archives import small_archive
from storage_backends.zarr.codecs.profiles import PROFILES
from storage_backends.zarr.store import ZarrStore


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Ragged:
    return write_members(tmp_path_factory.mktemp("ragged") / "members")


@pytest.fixture(scope="module")
def collection(ragged: Ragged) -> scdl.SingleCellCollection:
    return scdl.SingleCellCollection(ragged.paths)


@pytest.fixture
def copied(ragged: Ragged, tmp_path: Path) -> Ragged:
    """The members in a directory of the test."""
    shutil.copytree(ragged.paths[0].parent, tmp_path / "members")
    return Ragged([tmp_path / "members" / path.name for path in ragged.paths], ragged.parts)


def obs_of(ragged: Ragged) -> pd.DataFrame:
    frames = [part.obs.astype({"type": object}) for part in ragged.parts]
    return pd.concat(frames)


class TestReading:
    def test_shape(self, collection: Any, ragged: Ragged) -> None:
        n_obs = sum(part.n_obs for part in ragged.parts)
        n_vars = [part.n_vars for part in ragged.parts]
        assert len(collection) == collection.n_obs == collection.number_of_rows() == n_obs
        assert collection.number_of_variables() == n_vars
        assert collection.shape() == (n_obs, n_vars)
        assert collection.number_of_values() == sum(p.n_obs * p.n_vars for p in ragged.parts)
        assert collection.number_nonzero_values() == sum(part.X.nnz for part in ragged.parts)
        assert 0 < collection.sparsity() < 1
        assert collection.version() == scdl.__version__

    @given(data=st.data())
    def test_rows_are_those_of_the_sources(
        self, collection: Any, ragged: Ragged, data: st.DataObject
    ) -> None:
        rows = data.draw(st.lists(st.integers(-len(collection), len(collection) - 1), max_size=60))
        at = [row % len(collection) for row in rows]
        ordered = data.draw(st.booleans())
        batch = collection.read_rows(rows, ordered=ordered, genes="own")
        assert batch.rows.tolist() == at
        assert batch.data.dtype == np.float64
        assert batch.indices.dtype == np.uint16
        np.testing.assert_array_equal(batch.to_dense(), ragged.dense(at))
        if ordered:
            for i in range(len(at)):
                assert (np.diff(batch[i : i + 1].indices.astype(int)) > 0).all()

    def test_one_cell(self, collection: Any, ragged: Ragged) -> None:
        for row in range(0, len(collection), 7):
            cell = ragged.cell(row)
            stored = np.flatnonzero(cell)
            (values, columns), (ids,) = collection.get_row(row, True, ["feature_id"])
            assert values.tolist() == cell.iloc[stored].tolist()
            assert columns.tolist() == stored.tolist()
            assert ids.tolist() == cell.index.tolist()
            padded, (symbols,) = collection.get_row_padded(row, True, ["symbol"])
            assert padded.tolist() == cell.tolist()
            assert symbols.tolist() == [f"S{name[1:]}" for name in cell.index]
            for column in range(len(cell)):
                assert collection.get_row_column(row, column) == cell.iloc[column]
        with pytest.raises(RowIndexError, match="out of range"):
            collection.get_row(len(collection))
        with pytest.raises(RowIndexError, match="a row must be an integer, not 'm0'"):
            collection["m0"]

    def test_obs_is_united(self, collection: Any, ragged: Ragged) -> None:
        expected = obs_of(ragged)
        found = collection.obs
        assert found.index.tolist() == expected.index.tolist()
        assert found["type"].tolist() == expected["type"].tolist()
        assert set(found["type"].cat.categories) == {"B", "NK", "T"}
        pd.testing.assert_series_equal(
            found["age"].astype("float64"), expected["age"].astype("float64"), check_names=False
        )
        batch = collection.read_rows([100, 3, 60], obs=["type", "age"])
        assert batch.obs["type"].tolist() == expected["type"].iloc[[100, 3, 60]].tolist()
        assert collection.obs_names.tolist() == expected.index.tolist()
        assert collection.obs_features()[100][0][0] == expected["type"].iloc[100]
        with pytest.raises(FeatureNotFoundError, match="nonsense"):
            collection.read_rows([0], obs=["nonsense"])

    def test_numbers_that_one_member_lacks(self, tmp_path: Path) -> None:
        large = 2**53 + 1
        columns = {"small": [1, 2, 3], "large": [large, -5, 0], "truth": [True, False, True]}
        coded = {f"{name} of few": pd.Categorical(columns[name]) for name in columns}
        for i, obs in enumerate(
            [pd.DataFrame(columns | coded), pd.DataFrame({"other": [1, 2, 3]})]
        ):
            obs.index = names(f"c{i}", 3)
            write_h5ad(tmp_path / "x.h5ad", random_cells(3, 4, seed=i), obs=obs)
            scdl.convert(tmp_path / "x.h5ad", tmp_path / f"{i}.scdl")
        atlas = scdl.open(tmp_path)
        for rows in [0, 1, 5], [0, 1], [5]:
            found = atlas.read_rows(rows, obs=list(columns)).obs
            expected = [[columns[n][r] if r < 3 else None for r in rows] for n in columns]
            small = np.array([np.nan if v is None else v for v in expected[0]])
            np.testing.assert_array_equal(found["small"], small)
            # What a batch has of them does not depend on which cells it has.
            assert [found[name].dtype.char for name in columns] == ["d", "O", "O"]
            assert [found["large"].tolist(), found["truth"].tolist()] == expected[1:]
            again = atlas.read_rows(rows, obs=list(coded)).obs
            for name in columns:
                np.testing.assert_array_equal(again[f"{name} of few"], found[name], strict=True)
        assert atlas.obs["large"].dtype == "Int64"
        assert atlas.obs["large"].iloc[0] == large
        pytest.importorskip("torch")
        with pytest.raises(ColumnTypeError, match=r"'large' holds integers beyond 2\^53"):
            scdl.SingleCellLoader(atlas, 2, obs=["large"])
        (batch,) = scdl.SingleCellLoader(atlas, 6, order="sequential", obs=["small", "truth"])
        assert batch.obs["small"][:3].tolist() == [1, 2, 3]
        assert batch.obs["truth"].tolist() == [1, 0, 1, -1, -1, -1]

    @pytest.mark.parametrize(
        ("lists", "united"),
        [
            (["lmh", "lmh"], "lmh"),
            (["lh", "lmh", "m"], "lmh"),
            (["lmh", "", "h"], "lmh"),
            (["lm", "mh"], None),
            (["lmh", "hl"], None),
        ],
    )
    def test_ordered_categories(self, tmp_path: Path, lists: list[str], united: str | None) -> None:
        """An order is kept where one member knows all of it."""
        for i, categories in enumerate(lists):
            values = pd.Categorical(list(categories) or [None], list(categories), ordered=True)
            obs = pd.DataFrame({"level": values}, index=names(f"c{i}", len(values)))
            write_h5ad(tmp_path / "x.h5ad", random_cells(len(values), 4, seed=i), obs=obs)
            scdl.convert(tmp_path / "x.h5ad", tmp_path / f"{i}.scdl")
        told = pytest.warns(ScdlWarning, match=r"level \(the categories are no longer ordered\)")
        with nullcontext() if united else told:
            found = scdl.open(tmp_path).obs["level"]
        assert found.astype(object).fillna("-").tolist() == [
            c for text in lists for c in text or "-"
        ]
        assert found.cat.ordered == (united is not None)
        assert "".join(found.cat.categories) == (united or "lmh")

    def test_vectors(self, collection: Any, ragged: Ragged) -> None:
        expected = np.concatenate([part.obsm["X_pca"] for part in ragged.parts])
        rows = [100, 3, 60, 3]
        found = collection.read_rows(rows, obsm=["X_pca"]).obsm["X_pca"]
        np.testing.assert_array_equal(found, expected[rows])
        assert collection.read_rows([], obsm=["X_pca"]).obsm["X_pca"].shape == (0, 3)
        with pytest.raises(FeatureNotFoundError, match="X_umap"):
            collection.read_rows([0], obsm=["X_umap"])

    def test_wider_ids(self, collection: Any, ragged: Ragged) -> None:
        batch = collection.read_rows([1, 90], index_dtype=np.int32, genes="own")
        assert batch.indices.dtype == np.int32
        np.testing.assert_array_equal(batch.to_dense(), ragged.dense([1, 90]))
        with pytest.raises(OutputError, match="uint8"):
            collection.read_rows([1], index_dtype=np.uint8)

    def test_consecutive_members_of_the_same_genes_share_a_block(self, tmp_path: Path) -> None:
        paths = [
            write_member(tmp_path, name, [*range(n)], 5, seed)[0]
            for seed, (name, n) in enumerate([("a", 4), ("b", 4), ("c", 6), ("d", 4)])
        ]
        found = scdl.SingleCellCollection(paths)
        assert found.shape() == (20, [4, 6, 4])
        found.flatten(tmp_path / "flat")
        assert scdl.open(tmp_path / "flat").shape() == found.shape()
        assert [origin.block for origin in found.origins()] == [0, 0, 1, 2]

    def test_members_without_cells(self, ragged: Ragged, tmp_path: Path) -> None:
        empty = write_member(tmp_path, "empty", [*range(5)], 0, 2)[0]
        paths = [empty, ragged.paths[0], empty.parent / "again", ragged.paths[1]]
        shutil.copytree(empty, paths[2])
        found = scdl.SingleCellCollection(paths)
        batch = found.read_rows(slice(None), genes="own")
        np.testing.assert_array_equal(batch.to_dense()[:, :12], ragged.dense(range(41))[:, :12])
        assert found.select_genes("union", missing="zero").shape()[0] == 41
        assert found.get_neighbor_stats()["cells_with_no_neighbors"] >= 21

    def test_members_that_take_turns_to_be_open(self, ragged: Ragged) -> None:
        """Threads read while others close what they read from."""
        pytest.importorskip("torch")
        narrow = scdl.SingleCellCollection(ragged.paths, max_open=1)
        for epoch in range(3):
            loader = scdl.SingleCellLoader(
                narrow, 8, order="random", seed=epoch, neighbors=1, genes="own"
            )
            for batch in loader:
                for part in (batch, batch.neighbors):
                    expected = ragged.dense(part.rows.tolist())
                    np.testing.assert_array_equal(part.x.to_dense().numpy(), expected)
        assert len(narrow._members._open) == 1

    @pytest.mark.parametrize("wide", [False, True])
    def test_members_of_many_codecs_and_types(self, tmp_path: Path, wide: bool) -> None:
        """Chunks of all members are read together, whatever their codecs, types and backend."""
        options: list[dict[str, Any]] = [
            *({"compression": name} for name in PROFILES), {}, {"compression": "balanced"}
        ]  # fmt: skip
        offsets, ids = ("uint32", "uint64", "uint16"), ("uint16", "uint32")
        dense, paths = [], []
        for i in range(3 * len(options)):
            chosen = options[i % len(options)]
            backend = registry.backend("zarr" if chosen else "memmap")
            # Only the last members have wider types, so that they do not come first.
            n = i % 3 if wide else 0
            cells = small_archive(20 + i, 60, dtypes=("float32", ids[n % 2], offsets[n]))
            cells.arrays["data"] = np.arange(1, len(cells.arrays["data"]) + 1).astype("float32")
            paths.append(str(tmp_path / f"m{i}"))
            with backend.writer.open(paths[-1], **chosen) as writer:
                cells.write(writer)
                writer.commit(cells.attrs)
            parts = [cells.arrays[name] for name in ("data", "indices", "indptr")]
            dense.append(sparse.csr_matrix(tuple(parts), shape=(20 + i, 60)).toarray())
        expected = np.concatenate(dense)
        found = scdl.SingleCellCollection(paths)
        rng = np.random.default_rng(0)
        for rows in (np.arange(len(expected)), rng.integers(0, len(expected), 300), [3], [3, 25]):
            found.will_need(np.asarray(rows))
            np.testing.assert_array_equal(found.read_rows(rows).to_dense(), expected[rows])
        pytest.importorskip("torch")
        loader = scdl.SingleCellLoader(found, 16, block=4, buffer=64)
        for batch in loader:
            np.testing.assert_array_equal(batch.x.to_dense().numpy(), expected[batch.rows.tolist()])

    @pytest.mark.parametrize(("answer", "n_rows"), [(None, 4_000), (True, 4_000), (False, 33)])
    def test_rows_are_announced_unless_a_sample_is_in_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bool | None, n_rows: int
    ) -> None:
        """All rows are announced if a backend does not say what is in memory."""
        path = str(tmp_path / "a.zarr")
        cells = small_archive(4_000, 8)
        with registry.backend("zarr").writer.open(path) as writer:
            cells.write(writer)
            writer.commit(cells.attrs)
        announced: list[int] = []

        def will_need(cls: Any, stores: Any, name: str, *ranges: Any) -> bool | None:
            announced.append(int((ranges[2] - ranges[1]).sum()) if name == "data" else 0)
            return answer

        monkeypatch.setattr(ZarrStore, "will_need_across", classmethod(will_need))
        found = scdl.open(path)
        found.will_need(np.arange(4_000))
        total, per_row = len(cells.arrays["data"]), len(cells.arrays["data"]) / 4_000
        assert max(announced) == pytest.approx(n_rows * per_row, rel=0.5)
        assert (max(announced) == total) == (answer is not False)

    def test_without_obs(self, ragged: Ragged) -> None:
        """Archives of BioNeMo-SCDL 0.1.1 have none."""
        golden = GOLDEN
        bare = scdl.SingleCellCollection([golden / "ragged_v011"])
        assert bare.obs_features() is None
        with pytest.raises(FeatureNotFoundError, match="no obs"):
            bare.read_rows([0], obs=["age"])
        both = scdl.SingleCellCollection([golden / "ragged_v011", ragged.paths[0]])
        assert both.shape() == (32, [12, 9, 12])
        assert both.obs["type"].isna().tolist() == [True] * 12 + [False] * 20
        assert [*both.read_rows([3, 20], obs=["type"]).obs["type"]] == [
            None, ragged.parts[0].obs["type"].iloc[8]
        ]  # fmt: skip
        expected = scdl.open(golden / "ragged_v011").read_rows([3, 9], genes="own").to_dense()
        found = both.read_rows([3, 9], genes="own").to_dense()
        np.testing.assert_array_equal(found, expected)

    def test_splits(self, collection: Any, tmp_path: Path) -> None:
        splits = scdl.split(collection, {"train": 0.8, "test": 0.2}, by="type", seed=0)
        assert sum(len(splits[name]) for name in ("train", "test")) == len(collection)

    def test_cold_rows_are_read_ahead(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        backends = ("memmap", "memmap", "zarr")
        paths = [
            write_member(tmp_path, f"m{i}", [0, 1, 2], 20, 1, backend=backend)[0]
            for i, backend in enumerate(backends)
        ]
        found = scdl.SingleCellCollection(paths)
        ranges: list[tuple[int, int]] = []
        of_zarr: list[str] = []
        monkeypatch.setattr(
            read_ahead, "will_need", lambda begin, end: ranges.extend(zip(begin, end, strict=True))
        )
        announce = classmethod(lambda cls, stores, name, *_: of_zarr.append(name))
        monkeypatch.setattr(ZarrStore, "will_need_across", announce)
        found.will_need(np.arange(40))
        assert ranges == []
        monkeypatch.setattr(read_ahead, "are_cold", lambda addresses: True)
        found.will_need(np.arange(40))
        data, indices, indptr = found.fname_to_mmap[paths[0]].matrix_of().views
        assert len(ranges) == 40 + 2 * 40
        n_bytes = sum(end - begin for begin, end in ranges[:40])
        assert n_bytes == 40 * 2 * indptr.itemsize
        assert sum(end - begin for begin, end in ranges[40:]) == 2 * (data.nbytes + indices.nbytes)
        # Rows that are not mapped are left to their backend.
        assert of_zarr == []
        found.will_need(np.array([45, 0]))
        assert of_zarr == ["indptr", "data", "indices"]


class TestNeighbors:
    def test_graphs_are_shifted(self, collection: Any, ragged: Ragged) -> None:
        stats = collection.get_neighbor_stats()
        graphs = [part.obsp.get("next_cell_ids") for part in ragged.parts]
        assert stats["total_connections"] == sum(g.nnz for g in graphs if g is not None)
        for number, (start, graph) in enumerate(zip(ragged.starts, graphs, strict=False)):
            for i in range(0, ragged.parts[number].n_obs, 5):
                found = collection.get_neighbor_indices_for_cell(int(start) + i)
                expected = [] if graph is None else (graph[[i]].indices + start).tolist()
                assert sorted(found.tolist()) == sorted(expected)
                weights = collection.get_neighbor_weights_for_cell(int(start) + i)
                assert sorted(weights) == ([] if graph is None else sorted(graph[[i]].data))
                sampled = collection.sample_neighbor_index(int(start) + i)
                assert sampled in (expected or [start + i])

    def test_many_at_once(self, collection: Any) -> None:
        rows = np.random.default_rng(0).integers(0, len(collection), 200)
        draws = np.random.default_rng(1).random((200, 3))
        sampled = collection.graph.sample_many(rows, draws)
        one = collection.graph.sample_batch(rows, np.random.default_rng(2))
        for row, found, single in zip(rows, sampled, one, strict=True):
            known = collection.get_neighbor_indices_for_cell(row).tolist() or [row]
            assert set(found) | {single} <= set(known)

    def test_a_cell_and_its_neighbor(self, collection: Any, ragged: Ragged) -> None:
        pair = collection.get_row_with_neighbor(2)
        cell = ragged.cell(pair["next_cell_index"])
        assert pair["next_cell"][0].tolist() == cell[cell != 0].tolist()

    def test_members_without_a_graph(self, ragged: Ragged) -> None:
        alone = scdl.SingleCellCollection(ragged.paths, fallback_to_identity=False)
        row = int(ragged.starts[1])
        for sample in (
            lambda: alone.sample_neighbor_index(row),
            lambda: alone.graph.sample_many(np.array([row]), np.zeros((1, 1))),
            lambda: alone.graph.sample_batch(np.array([row])),
        ):
            with pytest.raises(NeighborError, match="fallback_to_identity"):
                sample()
        none = scdl.SingleCellCollection(ragged.paths, load_neighbors=False)
        assert none.graph is None
        assert scdl.SingleCellCollection(ragged.paths[1:2]).graph is None


class TestTorch:
    def test_cells_and_batches(self, collection: Any, ragged: Ragged) -> None:
        torch = pytest.importorskip("torch")
        assert collection[40].shape == (2, int((ragged.cell(40) != 0).sum()))
        loader = torch.utils.data.DataLoader(
            collection, batch_size=16, shuffle=False, collate_fn=scdl.collate_sparse_matrix_batch
        )
        with pytest.raises(scdl.errors.GeneError, match="different genes"):
            list(loader)
        view = collection.select_genes("union", missing="zero")
        loader = torch.utils.data.DataLoader(
            view, batch_size=16, collate_fn=scdl.collate_sparse_matrix_batch
        )
        found = np.concatenate([batch.to_dense().numpy() for batch in loader])
        expected = ragged.dense(range(len(collection)), view.gene_names.tolist())
        np.testing.assert_array_equal(found, expected)

    @pytest.mark.parametrize("order", ["block", "random"])
    def test_loader(self, collection: Any, ragged: Ragged, order: str) -> None:
        pytest.importorskip("torch")
        loader = scdl.SingleCellLoader(
            collection, 16, order=order, obs=["type"], obsm=["X_pca"], neighbors=2, genes="own"
        )
        expected = obs_of(ragged)["type"].tolist()
        seen = []
        for batch in loader:
            rows = batch.rows.tolist()
            np.testing.assert_array_equal(batch.x.to_dense().numpy(), ragged.dense(rows))
            names = loader.vocabulary["type"]
            assert [names[c] for c in batch.obs["type"]] == [expected[row] for row in rows]
            seen += rows
        assert sorted(seen) == [*range(len(collection))]

    @whole_only
    def test_loader_in_a_spawned_worker(self, collection: Any, ragged: Ragged) -> None:
        torch = pytest.importorskip("torch")
        loader = scdl.SingleCellLoader(
            collection, 40, order="sequential", layout="dense", genes="own"
        )
        batches = torch.utils.data.DataLoader(
            loader.dataset(), batch_size=None, num_workers=1, multiprocessing_context="spawn"
        )
        found = np.concatenate([batch.x.numpy() for batch in batches])
        np.testing.assert_array_equal(found, ragged.dense(range(len(collection))))


def read_elsewhere(collection: Any, rows: list[int]) -> np.ndarray:
    return collection.read_rows(rows, genes="own").to_dense()


class TestPickling:
    def test_carries_paths_only(self, collection: Any) -> None:
        collection.read_rows(slice(None), obs=["type"])
        assert len(pickle.dumps(collection)) < 4_000

    def test_reads_in_another_process(self, collection: Any, ragged: Ragged) -> None:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(read_elsewhere, (collection, [100, 0, 50]))
        np.testing.assert_array_equal(found, ragged.dense([100, 0, 50]))


class TestManifest:
    def test_a_directory_opens_as_a_collection(self, copied: Ragged) -> None:
        directory = copied.paths[0].parent
        found = scdl.open(directory)
        assert isinstance(found, scdl.SingleCellCollection)
        assert len(found) == len(scdl.SingleCellCollection(copied.paths))
        assert found.member_names == [path.name for path in copied.paths]
        assert isinstance(scdl.open(copied.paths[0]), scdl.SingleCellDataset)

    def test_is_reopened_without_opening_members(
        self, copied: Ragged, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        directory = copied.paths[0].parent
        first = scdl.open(directory)
        first.save_manifest()
        opened: list[str] = []
        original = registry.open_archive

        def count(path: str, **options: Any) -> Any:
            opened.append(path)
            return original(path, **options)

        monkeypatch.setattr(registry, "open_archive", count)
        again = scdl.open(directory)
        assert again.shape() == first.shape()
        assert again.number_nonzero_values() == first.number_nonzero_values()
        assert opened == []
        again.get_row(50)
        assert len(set(opened)) == 1
        again.check()

    def test_moves_with_its_members(self, copied: Ragged, tmp_path: Path) -> None:
        scdl.open(copied.paths[0].parent).save_manifest()
        shutil.move(tmp_path / "members", tmp_path / "elsewhere")
        found = scdl.open(tmp_path / "elsewhere")
        cells = found.read_rows([0, 100], genes="own")
        np.testing.assert_array_equal(cells.to_dense(), copied.dense([0, 100]))

    def test_stands_apart_from_its_members(self, copied: Ragged, tmp_path: Path) -> None:
        made = scdl.SingleCellCollection(copied.paths[::-1])
        made.save_manifest(tmp_path / "new" / "place")
        entries = json.loads((tmp_path / "new" / "place" / "collection.json").read_text())
        assert entries["members"][0]["path"] == "../../members/m5"
        found = scdl.open(tmp_path / "new" / "place")
        assert found.data_path == str(tmp_path / "new" / "place")
        np.testing.assert_array_equal(
            found.read_rows([0]).to_dense(), made.read_rows([0]).to_dense()
        )

    def test_is_extended(self, copied: Ragged, tmp_path: Path) -> None:
        made = scdl.SingleCellCollection(copied.paths[:2])
        made.save_manifest(tmp_path / "new")
        made.add(copied.paths[2])
        made.add(copied.paths[3:])
        assert len(scdl.open(tmp_path / "new")) == sum(part.n_obs for part in copied.parts)
        assert [p.name for p in (tmp_path / "new").iterdir()] == ["collection.json"]

    def test_a_failed_write_leaves_the_old_one(
        self, copied: Ragged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = scdl.SingleCellCollection(copied.paths[:2])
        made.save_manifest(tmp_path / "new")

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(scdl.errors.ArchiveWriteError, match="No space left"):
            made.add(copied.paths[2])
        assert [p.name for p in (tmp_path / "new").iterdir()] == ["collection.json"]
        assert len(scdl.open(tmp_path / "new")) == 41

    def test_genes_are_read_when_they_are_needed(
        self, copied: Ragged, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They take longer than all the rest of opening many archives with different genes."""
        original, read = member._genes, []

        def counted(store: Any, block: int, may_read: Callable[[], bool]) -> Any:
            found = original(store, block, may_read)
            if found is not None:
                read.append(os.path.basename(store.path))
            return found

        monkeypatch.setattr(member, "_genes", counted)
        monkeypatch.setattr(member, "_genes_of", LRUCache[str, Any](10))
        monkeypatch.setattr(discovery, "_MOST_TABLES", 0)
        made = scdl.open(copied.paths[0].parent)
        assert len(made) == copied.starts[-1]
        for rows in ([0, 5], [41, 42]):
            dense = made.read_rows(rows).to_dense()
            np.testing.assert_array_equal(dense, copied.dense(rows)[:, : dense.shape[1]])
        made.flatten(copied.paths[0].parents[1] / "flat")
        assert read == []
        # No two consecutive members have as many genes.
        assert made.n_vars == [part.n_vars for part in copied.parts]
        assert read == []
        made.save_manifest()
        assert sorted(read) == made.member_names

    def test_members_are_opened_once_for_it(
        self, copied: Ragged, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        originals, opened = (registry.open_archive, MemmapStore.open_tables.__func__), []

        def opening(path: str, **options: Any) -> Any:
            opened.append(path)
            return originals[0](path, **options)

        def reading(cls: Any, path: str, *more: Any) -> Any:
            opened.append(path)
            return originals[1](cls, path, *more)

        monkeypatch.setattr(registry, "open_archive", opening)
        monkeypatch.setattr(MemmapStore, "open_tables", classmethod(reading))
        made = scdl.SingleCellCollection(copied.paths[0].parent)
        made.save_manifest()
        counts = [opened.count(str(path)) for path in copied.paths if path.is_dir()
                  and registry.detect(path).name == "memmap"]  # fmt: skip
        assert counts == [1] * len(counts) != []
        saved = scdl.open(copied.paths[0].parent)._members.records
        assert all(record.genes and record.spaces for record in saved)

    def test_a_thousand_members(self, tmp_path: Path) -> None:
        path, part = write_member(tmp_path, "one", [*range(6)], 3, 1)
        made = scdl.SingleCellCollection([path])
        (record,) = made._members.records
        (tmp_path / "many").mkdir()
        made.save_manifest(tmp_path / "many")
        file = tmp_path / "many" / "collection.json"
        entries = json.loads(file.read_text())
        (entry,) = entries["members"]
        for i in range(1_000):
            (tmp_path / "many" / f"{i}").symlink_to(path)
        entries["members"] = [entry | {"path": f"{i}"} for i in range(1_000)]
        file.write_text(json.dumps(entries))
        # CPU time of this process, the least of three: other processes slow it too.
        times = []
        for _ in range(3):
            began = time.process_time()
            found = scdl.open(tmp_path / "many")
            times.append(time.process_time() - began)
        assert min(times) < 0.5
        assert found.shape() == (3_000, [6])
        files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        batch = found.read_rows(np.arange(0, 3_000, 15))
        np.testing.assert_array_equal(batch.to_dense(), np.tile(part.X[[0]].toarray(), (200, 1)))
        del batch
        if files:
            assert len(os.listdir("/proc/self/fd")) - files < 12
        assert record.n_obs == 3


class TestFlatten:
    @pytest.mark.parametrize("name", ["flat", "flat.zarr"])
    def test_is_what_the_collection_is(
        self, collection: Any, ragged: Ragged, tmp_path: Path, name: str
    ) -> None:
        collection.flatten(tmp_path / name)
        flat = scdl.open(tmp_path / name)
        assert flat.shape() == collection.shape()
        rows = [*range(len(flat))]
        found = flat.read_rows(rows, genes="own").to_dense()
        np.testing.assert_array_equal(found, ragged.dense(rows))
        pd.testing.assert_frame_equal(flat.obs, collection.obs)
        vectors = [
            cells.read_rows(rows, obsm=["X_pca"]).obsm["X_pca"] for cells in (flat, collection)
        ]
        np.testing.assert_array_equal(*vectors)
        for row in rows:
            assert flat.get_neighbor_indices_for_cell(row).tolist() == (
                collection.get_neighbor_indices_for_cell(row).tolist()
            )
            _, (ids,) = flat.get_row(row, True, ["feature_id"])
            assert ids.tolist() == ragged.cell(row).index.tolist()
        assert all(path.exists() for path in ragged.paths)

    def test_more_than_nine_members_keep_their_genes(self, tmp_path: Path) -> None:
        for i in range(12):
            write_member(tmp_path / "x", f"m{i:02}", [*range(i, i + 4)], 3, i) if i else (
                (tmp_path / "x").mkdir(), write_member(tmp_path / "x", "m00", [*range(4)], 3, 0)
            )  # fmt: skip
        scdl.open(tmp_path / "x").flatten(tmp_path / "flat")
        flat = scdl.open(tmp_path / "flat")
        for row in range(36):
            _, (ids,) = flat.get_row(row, True, ["feature_id"])
            assert ids.tolist() == [f"g{row // 3 + j}" for j in range(4)]

    def test_one_member_is_copied(self, copied: Ragged, tmp_path: Path) -> None:
        scdl.SingleCellCollection(copied.paths[:1]).flatten(tmp_path / "flat")
        assert copied.paths[0].exists()
        np.testing.assert_array_equal(
            scdl.open(tmp_path / "flat").read_rows([5]).to_dense(),
            scdl.open(copied.paths[0]).read_rows([5]).to_dense(),
        )

    def test_sources_go_when_the_result_is_verified(self, copied: Ragged, tmp_path: Path) -> None:
        made = scdl.open(copied.paths[0].parent)
        made.save_manifest()
        made.flatten(tmp_path / "flat", destroy_on_copy=True)
        assert not any(path.exists() for path in copied.paths)
        rows = [0, 50, 100]
        flat = scdl.open(tmp_path / "flat")
        found = flat.read_rows(rows, genes="own").to_dense()
        np.testing.assert_array_equal(found, copied.dense(rows))
        assert len(made) == 0
        assert made.shape() == (0, [0])

    @pytest.mark.parametrize("change", ["value", "gene", "rows"])
    def test_sources_stay_when_it_is_not(
        self, copied: Ragged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
    ) -> None:
        from scdl.conversion import joined_rows

        original = joined_rows.clean_rows

        def damaged(*arguments: Any, **options: Any) -> Any:
            for rows in original(*arguments, **options):
                data, indices, indptr = rows.data.copy(), rows.indices.copy(), rows.indptr.copy()
                if change == "value":
                    data[3] += 1
                elif change == "gene":
                    indices[0] = 0 if indices[0] else 1
                else:
                    indptr[1] += 1
                yield rows._replace(data=data, indices=indices, indptr=indptr)

        monkeypatch.setattr(joined_rows, "clean_rows", damaged)
        with pytest.raises(CollectionError, match="sources were not removed"):
            scdl.SingleCellCollection(copied.paths[:1]).flatten(
                tmp_path / "flat", destroy_on_copy=True
            )
        assert copied.paths[0].exists()

    def test_names_that_the_result_cannot_have_are_left_out(self, tmp_path: Path) -> None:
        adata = anndata.AnnData(np.eye(3, dtype="f4"))
        adata.obsp["__graph"] = sparse.csr_matrix(np.eye(3, dtype="f4"))
        adata.obsm["__vectors"] = np.eye(3, dtype="f4")
        adata.write_h5ad(tmp_path / "cells.h5ad")
        paths = [tmp_path / "a", tmp_path / "b"]
        for path in paths:
            scdl.convert(tmp_path / "cells.h5ad", path, neighbor_key="__graph", obsm="__vectors")
        made = scdl.SingleCellCollection(paths)
        with pytest.raises(CollectionError, match="obsp/__graph is left out"):
            made.flatten(tmp_path / "flat", backend="zarr", destroy_on_copy=True)
        assert not (tmp_path / "flat").exists()
        with pytest.warns(ScdlWarning, match=r"left out: the backend") as told:
            made.flatten(tmp_path / "flat", backend="zarr")
        for name in ("obsp/__graph", "obsm/__vectors"):
            assert sum(name in str(one.message) for one in told) == 1
        np.testing.assert_array_equal(
            scdl.open(tmp_path / "flat").read_rows([0, 5]).to_dense(), np.eye(3)[[0, 2]]
        )

    def test_names(self, copied: Ragged, tmp_path: Path) -> None:
        shutil.copytree(copied.paths[0], tmp_path / "again")
        made = scdl.SingleCellCollection([copied.paths[0], tmp_path / "again"])
        made.flatten(tmp_path / "kept")
        assert scdl.open(tmp_path / "kept").obs_names.tolist() == made.obs_names.tolist()
        with pytest.raises(CollectionError, match=r"'m0-0' is in .*m0 and in .*again"):
            made.flatten(tmp_path / "unique", cell_names="unique")
        assert not (tmp_path / "unique").exists()
        made.flatten(tmp_path / "prefixed", cell_names="prefix")
        names = scdl.open(tmp_path / "prefixed").obs_names.tolist()
        assert names[0] == "m0-m0-0"
        assert names[-1] == "again-m0-19"
        scdl.SingleCellCollection(copied.paths).flatten(tmp_path / "u", cell_names="unique")
        # "a" has a cell "b-c", and "a-b" a cell "c".
        for name, cell in ("a", "b-c"), ("a-b", "c"):
            adata = anndata.AnnData(np.ones((1, 2), np.float32), obs=pd.DataFrame(index=[cell]))
            adata.write_h5ad(tmp_path / "one.h5ad")
            scdl.convert(tmp_path / "one.h5ad", tmp_path / name)
        clash = scdl.SingleCellCollection([tmp_path / "a", tmp_path / "a-b"])
        with pytest.raises(CollectionError, match=r"'a-b-c' is in .*/a and .*rename"):
            clash.flatten(tmp_path / "x", cell_names="prefix")
        with pytest.raises(CollectionError, match="'keep', 'unique' or 'prefix'"):
            made.flatten(tmp_path / "x", cell_names="other")  # type: ignore[arg-type]

    def test_members_that_are_links(self, copied: Ragged, tmp_path: Path) -> None:
        (tmp_path / "links").mkdir()
        for path in copied.paths[:2]:
            (tmp_path / "links" / path.name).symlink_to(path)
        made = scdl.open(tmp_path / "links")
        made.save_manifest()
        assert len(scdl.open(tmp_path / "links")) == len(made)

    def test_archives_that_were_put_there_since(self, copied: Ragged, tmp_path: Path) -> None:
        """A manifest that leaves them out would hide them."""
        place = copied.paths[0].parent
        made = scdl.open(place)
        shutil.copytree(copied.paths[0], place / "later")
        write_h5ad(tmp_path / "x.h5ad", random_cells(3, 4))
        for save in made.save_manifest, lambda: made.load_h5ad(tmp_path / "x.h5ad"):
            with pytest.raises(ArchiveChangedError, match="later: this archive was added"):
                save()
        assert not (place / "x").exists()
        made.add(place / "later")
        made.load_h5ad(tmp_path / "x.h5ad")
        assert len(scdl.open(place).fname_to_mmap) == len(copied.paths) + 2

    def test_targets_that_cannot_be(self, copied: Ragged, tmp_path: Path) -> None:
        directory = copied.paths[0].parent
        made = scdl.open(directory)
        with pytest.raises(CollectionError, match="a member of the collection itself"):
            made.flatten(directory / "flat")
        with pytest.raises(CollectionError, match="inside the member"):
            made.flatten(copied.paths[0] / "flat")
        made.save_manifest()
        made.flatten(directory / "flat")
        assert len(scdl.open(directory)) == len(made)
        with pytest.raises(ArchiveExistsError):
            made.flatten(directory / "flat")
        with pytest.raises(CollectionError, match="no members"):
            scdl.SingleCellCollection(tmp_path / "nothing").flatten(tmp_path / "flat")


class TestDocumentedNames:
    def test_load_h5ad(self, tmp_path: Path) -> None:
        for folder in "ab":
            (tmp_path / folder).mkdir()
            write_h5ad(tmp_path / folder / "x.h5ad", random_cells(5, 4, seed=ord(folder)))
        made = scdl.SingleCellCollection(tmp_path / "made")
        assert (len(made), made.shape()) == (0, (0, [0]))
        made.load_h5ad(tmp_path / "a" / "x.h5ad")
        made.load_h5ad(tmp_path / "b" / "x.h5ad")
        assert made.member_names == ["x", "x-2"]
        assert list(made.fname_to_mmap) == [tmp_path / "made" / "x", tmp_path / "made" / "x-2"]
        expected = random_cells(5, 4, seed=ord("b")).csr().toarray()
        np.testing.assert_array_equal(made.read_rows(slice(5, None)).to_dense(), expected)
        member = made.fname_to_mmap[tmp_path / "made" / "x-2"]
        np.testing.assert_array_equal(member.read_rows(slice(None)).to_dense(), expected)
        assert len(scdl.open(tmp_path / "made")) == 10

    def test_load_h5ad_multi(self, tmp_path: Path) -> None:
        (tmp_path / "in" / "deep").mkdir(parents=True)
        write_h5ad(tmp_path / "in" / "b.h5ad", random_cells(5, 4))
        write_h5ad(tmp_path / "in" / "deep" / "b.h5ad", random_cells(6, 4))
        made = scdl.SingleCellCollection(tmp_path / "made")
        made.load_h5ad_multi(tmp_path / "in", 2, False, "float64", 1_000, 2, True)
        assert made.shape() == (11, [4])
        assert made.data_dtype == np.float64
        made.load_h5ad(tmp_path / "in" / "b.h5ad", 1_000, 2, True)
        assert scdl.open(tmp_path / "made" / "b-3").data_dtype == np.float32
        assert scdl.open(tmp_path / "made" / "b-3").info.matrices == ("X",)
        with pytest.raises(SourceNotFoundError, match=r"no \*\.h5ad"):
            made.load_h5ad_multi(tmp_path / "made")
        (tmp_path / "in" / "broken.h5ad").write_bytes(b"this is no HDF5")
        again = scdl.SingleCellCollection(tmp_path / "again")
        with pytest.raises(ConversionFailedError, match=r"broken\.h5ad") as caught:
            again.load_h5ad_multi(tmp_path / "in")
        assert isinstance(caught.value, RuntimeError)
        assert len(again) == len(scdl.open(tmp_path / "again")) == 11

    def test_a_list_of_paths_takes_no_files(self, collection: Any, tmp_path: Path) -> None:
        write_h5ad(tmp_path / "a.h5ad", random_cells(2, 2))
        with pytest.raises(CollectionError, match="a directory"):
            collection.load_h5ad(tmp_path / "a.h5ad")
        with pytest.raises(CollectionError, match="save_manifest"):
            collection.save_manifest()


class TestBadInput:
    def test_no_archive(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("nothing")
        with pytest.raises(ArchiveNotFoundError, match="no archive in this directory"):
            scdl.SingleCellCollection(tmp_path)
        with pytest.raises(ArchiveFormatError):
            scdl.open(tmp_path)
        with pytest.raises(ArchiveNotFoundError, match="missing"):
            scdl.SingleCellCollection([tmp_path / "missing"])

    def test_an_archive_is_no_collection(self, ragged: Ragged) -> None:
        with pytest.raises(CollectionError, match="this is an archive"):
            scdl.SingleCellCollection(ragged.paths[0])

    def test_a_damaged_member(self, copied: Ragged) -> None:
        with (copied.paths[0] / "data.npy").open("r+b") as file:
            file.truncate(6)
        with pytest.raises(ArchiveFormatError, match=r"m0.data\.npy"):
            scdl.open(copied.paths[0].parent)

    def test_a_damaged_member_of_zarr(self, tmp_path: Path) -> None:
        """Its metadata describes it, as that of a thousand in a second; it is looked at then."""
        path, _ = write_member(tmp_path, "m0", [*range(6)], 3, 1, backend="zarr")
        (shard,) = (path / "X" / "indptr" / "c").iterdir()
        shard.write_bytes(bytes(len(shard.read_bytes())))
        found = scdl.open(path.parent)
        assert len(found) == 3
        with pytest.raises(ArchiveFormatError, match="m0: indptr"):
            found.read_rows([0])

    def test_a_member_that_cannot_be_read(
        self, copied: Ragged, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = scdl.SingleCellCollection(copied.paths)

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(MemmapStore, "open", refuse)
        for read in (lambda: made.read_rows([0]), lambda: scdl.SingleCellCollection(copied.paths)):
            with pytest.raises(
                CollectionError, match=r"m0: .* cannot be read: .*Permission denied"
            ):
                read()

    def test_a_member_of_a_newer_version(self, copied: Ragged) -> None:
        file = copied.paths[0] / "scdl" / "manifest.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
        with pytest.raises(ArchiveFormatError, match="upgrade"):
            scdl.SingleCellCollection(copied.paths)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"format": 99, "members": []}', "upgrade"),
            ("[]", "not a valid manifest"),
            ("{", "not a valid manifest"),
            ('{"format": 1, "members": [{"path": "m0"}]}', "not a valid manifest"),
        ],
    )
    def test_a_manifest_that_cannot_be_read(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "collection.json").write_text(text)
        with pytest.raises(ArchiveFormatError, match=message):
            scdl.open(tmp_path)

    def test_a_member_that_changed(self, copied: Ragged) -> None:
        directory = copied.paths[0].parent
        scdl.open(directory).save_manifest()
        scdl.open(copied.paths[1]).concat(scdl.open(copied.paths[1]))
        found = scdl.open(directory)
        assert len(found.read_rows(slice(0, 20))) == 20
        with pytest.raises(CollectionError, match="m1: the archive changed"):
            found.read_rows([25])
        with pytest.raises(CollectionError, match="m1: the archive changed"):
            found.check()
        found.refresh()
        assert len(scdl.open(directory)) == len(found) == copied.starts[-1] + 21

    def test_genes_of_a_member_that_changed(self, copied: Ragged, tmp_path: Path) -> None:
        directory = copied.paths[0].parent
        scdl.open(directory).save_manifest()
        shutil.rmtree(copied.paths[2])
        part = copied.parts[2].copy()
        part.var_names = [f"other{i}" for i in range(part.n_vars)]
        part.write_h5ad(tmp_path / "m2.h5ad")
        options: dict[str, Any] = {"obsm": ["X_pca"], "neighbor_key": "next_cell_ids"}
        scdl.convert(tmp_path / "m2.h5ad", copied.paths[2], data_dtype="float32", **options)
        # All that is cheap to compare is the same.
        file = directory / "collection.json"
        entries = json.loads(file.read_text())
        entries["members"][2]["labels"] = [str(tmp_path / "m2.h5ad")]
        file.write_text(json.dumps(entries))
        found = scdl.open(directory)
        view = found.select_genes("union", missing="zero")
        with pytest.raises(CollectionError, match=r"m2: the archive changed .*: genes was"):
            view.read_rows([45])
        with pytest.raises(CollectionError, match=r"m2: the archive changed .*: genes was"):
            found.check()

    @pytest.mark.parametrize("backend", ["memmap", "zarr"])
    def test_values_of_a_member_that_changed(self, tmp_path: Path, backend: str) -> None:
        """Nothing but the values: as many, of the same type, of the same genes."""
        cells = random_cells(9, 5, density=0.5, seed=1)
        source, path = write_h5ad(tmp_path / "a.h5ad", cells), tmp_path / "members" / "a"
        path.parent.mkdir()
        scdl.convert(source, path, backend=backend)
        scdl.open(path.parent).save_manifest()
        for values in (cells.values, cells.values[::-1].copy()):
            shutil.rmtree(path)
            write_h5ad(source, replace(cells, values=values))
            scdl.convert(source, path, backend=backend)
            found = scdl.open(path.parent)
            if values is cells.values:
                found.check()
                assert len(found.read_rows([0])) == 1
                continue
            for use in (found.check, lambda found=found: found.read_rows([0])):
                with pytest.raises(
                    CollectionError, match=r"a: the archive changed .*: content was"
                ):
                    use()

    def test_a_member_that_was_given_checksums(self, copied: Ragged) -> None:
        directory = copied.paths[0].parent
        (copied.paths[0] / "scdl" / "checksums.bin").unlink()
        scdl.open(directory).save_manifest()
        assert scdl.verify(copied.paths[0], add_checksums=True).verdict == 0
        found = scdl.open(directory)
        found.check()
        assert len(found.read_rows([0])) == 1

    def test_a_removed_member_that_is_mapped_stays_readable(self, tmp_path: Path) -> None:
        paths = [write_member(tmp_path, name, [0, 1, 2], 3, 1)[0] for name in ("m0", "m1")]
        found = scdl.SingleCellCollection(paths, max_open=1)
        before = found.read_rows(range(6)).to_dense()
        shutil.rmtree(paths[0])
        np.testing.assert_array_equal(found.read_rows(range(6)).to_dense(), before)

    def test_genes_of_a_member_that_was_replaced_while_it_was_closed(self, tmp_path: Path) -> None:
        for name in ("m0", "m1"):
            write_member(tmp_path, name, [0, 1, 2], 3, 1)
        found = scdl.SingleCellCollection(tmp_path, max_open=1)
        view = found.select_genes("union")
        # Opening one closes the other.
        assert found.fname_to_mmap[tmp_path / "m1"].n_obs == 3
        shutil.rmtree(tmp_path / "m0")
        write_member(tmp_path, "m0", [2, 1, 0], 3, 1)
        with pytest.raises(CollectionError, match="m0: the archive changed"):
            view.read_rows([0])

    @pytest.mark.parametrize("backend", ["memmap", "zarr"])
    def test_integers_with_and_without_a_sign(self, tmp_path: Path, backend: str) -> None:
        dtypes = ("uint16", "int64", "uint64")
        for dtype in dtypes:
            # memmap archives have no place for what is negative.
            kind = "u" if backend == "memmap" else dtype[0]
            cells = random_cells(4, 5, dtype=f"<{kind}8", density=0.5, seed=2).astype(dtype)
            write_h5ad(tmp_path / f"{dtype}.h5ad", cells)
            scdl.convert(
                tmp_path / f"{dtype}.h5ad", tmp_path / dtype, backend="zarr",
                data_dtype=None if dtype == "int64" else dtype,
            )  # fmt: skip
        found = scdl.SingleCellCollection([tmp_path / "uint16", tmp_path / "int64"])
        assert found.read_rows([0, 5]).data.dtype == np.int64
        found.flatten(tmp_path / "flat", backend=backend, destroy_on_copy=False)
        flat = scdl.open(tmp_path / "flat")
        np.testing.assert_array_equal(
            flat.read_rows(slice(None)).to_dense(), found.read_rows(slice(None)).to_dense()
        )
        with pytest.raises(CastError, match=r"uint64 has uint64, .*int64 has int64"):
            scdl.SingleCellCollection([tmp_path / "uint64", tmp_path / "int64"])

    def test_a_member_that_is_gone(self, copied: Ragged) -> None:
        directory = copied.paths[0].parent
        scdl.open(directory).save_manifest()
        made = scdl.open(directory)
        shutil.rmtree(copied.paths[1])
        with pytest.raises(ArchiveNotFoundError, match=r"m1: this member .* is missing"):
            made.read_rows([25])
        with pytest.raises(ArchiveNotFoundError, match=r"m1: this member .* is missing"):
            scdl.open(directory)

    def test_listed_twice(self, ragged: Ragged, collection: Any) -> None:
        with pytest.raises(CollectionError, match="listed twice"):
            scdl.SingleCellCollection([ragged.paths[0], ragged.paths[0].parent / "." / "m0"])
        with pytest.raises(CollectionError, match="listed twice"):
            collection.add(ragged.paths[0])

    def test_a_collection_inside_a_collection(self, copied: Ragged, tmp_path: Path) -> None:
        with pytest.raises(CollectionError, match="list its members"):
            scdl.SingleCellCollection([copied.paths[0].parent])
        made = scdl.open(copied.paths[0].parent)
        for path in (made.data_path, tmp_path):
            with pytest.raises(CollectionError, match="inside itself"):
                made.add(path)
        assert len(made.member_names) == 6

    def test_integers_and_floats(self, ragged: Ragged, tmp_path: Path) -> None:
        counts = write_member(tmp_path, "counts", [1, 2], 3, 1, data_dtype="uint16")[0]
        with pytest.raises(CastError, match="cast_data_to_dtype"):
            scdl.SingleCellCollection([ragged.paths[0], counts])

    def test_vectors_of_other_widths(self, ragged: Ragged, tmp_path: Path) -> None:
        source = write_h5ad(tmp_path / "a.h5ad", random_cells(3, 4), obsm={"X_pca": np.eye(3, 2)})
        scdl.convert(source, tmp_path / "narrow", obsm=["X_pca"], data_dtype="float32")
        made = scdl.SingleCellCollection([ragged.paths[0], tmp_path / "narrow"])
        with pytest.raises(CollectionError, match="different widths"):
            made.read_rows([0, 21], obsm=["X_pca"])


def test_flattened_is_what_anndata_concatenates(ragged: Ragged, tmp_path: Path) -> None:
    """The union of genes, read from a flattened archive, against anndata's outer join."""
    expected = anndata.concat(
        [anndata.AnnData(p.X, obs=p.obs, var=p.var[[]]) for p in ragged.parts],
        join="outer", fill_value=0,
    )  # fmt: skip
    scdl.SingleCellCollection(ragged.paths).flatten(tmp_path / "flat")
    for cells in (scdl.open(tmp_path / "flat"), scdl.SingleCellCollection(ragged.paths)):
        view = cells.select_genes("union", missing="zero")
        at = expected.var_names.get_indexer(view.gene_names)
        assert sorted(at) == [*range(expected.n_vars)]
        found = view.read_rows(slice(None)).to_scipy()
        assert abs(found - expected.X[:, at]).max() == 0
