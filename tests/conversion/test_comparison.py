"""Nothing is removed before its copy has all of it: whatever differs is found and named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from ragged import write_member
from reading import rewritten

import scdl
from scdl.conversion.comparison import check_copied
from scdl.errors import CollectionError, NeighborError
from storage_backends.base import ArrayStore

N = 6


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three members, of which the one in the middle is looked at."""
    place = tmp_path_factory.mktemp("copied")
    paths = [write_member(place, name, [*range(9)], N, 2 * i)[0] for i, name in enumerate("abc")]
    scdl.SingleCellCollection(paths).flatten(place / "flat")
    return place


def changed(values: np.ndarray, at: int) -> np.ndarray:
    values = values.copy()
    values[at] += 1
    return values


def with_column(table: pa.Table, name: str, at: int, value: Any) -> pa.Table:
    frame = table.to_pandas()
    frame[name] = frame[name].astype(object)
    frame.loc[at, name] = value
    return table.set_column(
        table.schema.get_field_index(name), table.schema.field(name),
        pa.chunked_array([pa.array(frame[name], table.schema.field(name).type)]),
    )  # fmt: skip


def value(store: ArrayStore) -> dict[str, Any]:
    middle = int(store.read("indptr")[N + 1])
    return {"data": changed(store.read("data"), middle)}


def gene(store: ArrayStore) -> dict[str, Any]:
    indices, middle = store.read("indices"), int(store.read("indptr")[N])
    indices[middle] = next(i for i in range(9) if i not in indices[middle : middle + 2])
    return {"indices": indices}


def length(store: ArrayStore) -> dict[str, Any]:
    return {"indptr": changed(store.read("indptr"), N + 2)}


def genes(store: ArrayStore) -> dict[str, Any]:
    table = store.read_table("var/0")
    return {"var/0": with_column(table, "_index", 4, "another")}


def names(store: ArrayStore) -> dict[str, Any]:
    return {"obs": with_column(store.read_table("obs"), "_index", N + 1, "another")}


def category(store: ArrayStore) -> dict[str, Any]:
    table = store.read_table("obs")
    was = table["type"][N + 3].as_py()
    return {"obs": with_column(table, "type", N + 3, "NK" if was == "T" else "T")}


def column(store: ArrayStore) -> dict[str, Any]:
    return {"obs": store.read_table("obs").drop_columns(["type"])}


def vectors(store: ArrayStore) -> dict[str, Any]:
    return {"obsm/X_pca": changed(store.read("obsm/X_pca"), N)}


def no_vectors(store: ArrayStore) -> dict[str, Any]:
    return {"obsm/X_pca": None}


def graph(part: str) -> Callable[[ArrayStore], dict[str, Any]]:
    def change(store: ArrayStore) -> dict[str, Any]:
        name, middle = f"graphs/next_cell_ids/{part}", N + 2
        if part != "indptr":
            middle = int(store.read("graphs/next_cell_ids/indptr")[N + 1])
        return {name: changed(store.read(name), middle)}

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (value, "data: "),
        (gene, "indices: "),
        (length, "rows: "),
        (genes, "genes of feature block 0"),
        (names, "names of cells"),
        (category, "obs column 'type'"),
        (column, "columns are missing"),
        (vectors, "obsm/X_pca"),
        (no_vectors, "left out: obsm/X_pca"),
        (graph("data"), "graph 'next_cell_ids'"),
        (graph("indices"), "graph 'next_cell_ids'"),
        (graph("indptr"), "graph 'next_cell_ids'"),
    ],
    ids=["value", "gene", "length", "genes", "names", "category", "column", "vectors",
         "no vectors", "weight", "neighbor", "neighbors"],
)  # fmt: skip
def test_what_differs_is_found(archive: Path, tmp_path: Path, change: Any, told: str) -> None:
    original, member = scdl.open(archive / "flat").store, scdl.open(archive / "b").store
    check_copied(member, original, N)
    path = rewritten(archive / "flat", tmp_path / "other", change(original))
    with pytest.raises(CollectionError, match=rf"other: .*{archive / 'b'} .*{told}.*not removed"):
        check_copied(member, scdl.open(path).store, N)
    with pytest.raises(CollectionError, match="cells: expected 20 or more, found 18"):
        check_copied(member, original, 2 * N + 2)


def test_values_that_equal_nothing(tmp_path: Path) -> None:
    """NaN and nulls of obs, and columns whose types differ from archive to archive."""
    for i, ages in enumerate(([1, 2], [0.5, np.nan])):
        obs = pd.DataFrame({"age": ages, "ok": pd.array([True, None], "boolean")})
        obs.index = [f"c{i}-{j}" for j in range(2)]
        adata = anndata.AnnData(np.eye(2, dtype="f4"), obs, pd.DataFrame(index=["a", "b"]))
        adata.write_h5ad(tmp_path / f"{i}.h5ad")
        scdl.convert(tmp_path / f"{i}.h5ad", tmp_path / f"{i}")
    made = scdl.SingleCellCollection([tmp_path / "0", tmp_path / "1"])
    made.flatten(tmp_path / "flat.zarr", destroy_on_copy=True, cell_names="prefix")
    assert not (tmp_path / "1").exists()
    assert scdl.open(tmp_path / "flat.zarr").obs_names.tolist() == [
        "0-c0-0",
        "0-c0-1",
        "1-c1-0",
        "1-c1-1",
    ]


class TestConcat:
    @pytest.fixture
    def pair(self, archive: Path, tmp_path: Path) -> list[scdl.SingleCellDataset]:
        for name in "ab":
            shutil.copytree(archive / name, tmp_path / name)
        return [scdl.open(tmp_path / name) for name in "ab"]

    @pytest.mark.parametrize("output", [None, "result"])
    def test_removes_what_it_copied(self, pair: Any, tmp_path: Path, output: str | None) -> None:
        target = tmp_path / output if output else None
        pair[0].concat(pair[1], output_path=target, destroy_on_copy=True)
        assert not (tmp_path / "b").exists()
        assert scdl.open(target or tmp_path / "a").n_obs == 2 * N

    def test_keeps_what_was_left_out(self, archive: Path, pair: Any, tmp_path: Path) -> None:
        """A vector that not all have has no place in the result."""
        bare = rewritten(archive / "a", tmp_path / "bare", {"obsm/X_pca": None})
        with pytest.raises(CollectionError, match=r"obsm/X_pca is left out.*destroy_on_copy"):
            scdl.open(bare).concat(pair[1], destroy_on_copy=True)
        assert scdl.open(tmp_path / "b").n_obs == scdl.open(bare).n_obs == N

    def test_a_graph_that_points_outside(self, archive: Path, pair: Any, tmp_path: Path) -> None:
        """Shifted, it would name cells of another archive."""
        name = "graphs/next_cell_ids/indices"
        neighbors = np.full_like(pair[1].store.read(name), N)
        bad = rewritten(archive / "b", tmp_path / "bad", {name: neighbors})
        with pytest.raises(NeighborError, match=r"bad: .*'next_cell_ids': a cell has the neigh"):
            pair[0].concat(scdl.open(bad))
        assert pair[0].n_obs == scdl.open(tmp_path / "a").n_obs == N
