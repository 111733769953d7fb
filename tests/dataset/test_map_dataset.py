"""Datasets are torch's as soon as there is torch, and cells come by slices and lists."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sources import random_cells, write_h5ad

import scdl
from scdl.dataset import map_dataset
from scdl.dataset.reader import CellReader
from scdl.errors import RowIndexError

torch = pytest.importorskip("torch")
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler

N_OBS, N_VARS = 12, 7
DENSE = random_cells(N_OBS, N_VARS).csr().toarray()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("map")
    graph = random_cells(N_OBS, N_OBS, density=0.3)
    source = write_h5ad(place / "a.h5ad", random_cells(N_OBS, N_VARS), obsp={"knn": graph})
    scdl.convert(source, place / "a", neighbor_key="knn")
    return place


def open_view(path: Path) -> Any:
    return scdl.open(path).select_genes("union")


#: All that reads cells.
READERS: dict[str, Callable[[Path], Any]] = {
    "dataset": scdl.open,
    "documented": scdl.SingleCellMemMapDataset,
    "collection": lambda path: scdl.SingleCellCollection([path]),
    "view": open_view,
}


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest, place: Path) -> Any:
    return READERS[request.param](place / "a")


CHECKS: dict[str, Callable[[Any], bool]] = {
    "instance": lambda ds: isinstance(ds, Dataset),
    "sum": lambda ds: isinstance(ds + ds, ConcatDataset) and len(ds + ds) == 2 * N_OBS,
    "pickle": lambda ds: len(pickle.loads(pickle.dumps(ds))) == N_OBS,
    "copy": lambda ds: len(copy.copy(ds)) == N_OBS,
    "name": lambda ds: ds.__class__.__name__ == type(ds).__name__,
    "class": lambda ds: issubclass(ds.__class__, Dataset) and issubclass(ds.__class__, type(ds)),
    "first cell": lambda ds: torch.equal(ds[0], ds[0:1][0]),
    "loader": lambda ds: len(next(iter(DataLoader(ds)))) == 1,
    "ours": lambda ds: isinstance(ds, CellReader) and not isinstance(ds, list | Sampler),
}


class TestTorchComesLater:
    @pytest.fixture
    def before(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """As it is before torch is imported."""
        monkeypatch.delitem(sys.modules, "torch.utils.data")
        map_dataset.MapDataset.__bases__ = (map_dataset._Base,)
        yield
        map_dataset.MapDataset.__bases__ = (Dataset,)

    @pytest.mark.parametrize("check", CHECKS)
    def test_whatever_is_asked_first(self, before: None, reader: Any, check: str) -> None:
        assert reader.__class__ is type(reader)
        assert not isinstance(reader, Dataset)
        sys.modules["torch.utils.data"] = torch.utils.data
        assert CHECKS[check](reader)
        assert isinstance(reader, Dataset)
        assert issubclass(type(reader), Dataset)
        assert reader.__class__ is type(reader)

    def test_in_a_process_of_its_own(self, place: Path, run_python: Any) -> None:
        (place / "pickle").write_bytes(pickle.dumps(scdl.open(place / "a")))
        code = f"""
import pickle, sys, scdl
with open({str(place / "pickle")!r}, "rb") as file:
    again = pickle.load(file)
ds = scdl.open({str(place / "a")!r}, neighbor_key="knn")
made = [again, ds, scdl.SingleCellCollection([ds.data_path]), ds.select_genes("union")]
assert len(again) == len(ds.neighbor_pairs()) == {N_OBS}
assert "torch" not in sys.modules
import torch
for data in (*made, ds.neighbor_pairs()):
    assert isinstance(data, torch.utils.data.Dataset)
assert len(ds + again) == {2 * N_OBS}
"""
        done = run_python("-c", code)
        assert done.returncode == 0, done.stderr


def test_every_reader_is_one(reader: Any) -> None:
    assert isinstance(reader, Dataset)
    assert isinstance(copy.copy(reader), Dataset)
    both = reader + reader
    assert torch.equal(both[N_OBS], reader[0])
    assert torch.equal((torch.utils.data.TensorDataset(torch.ones(1)) + reader)[1], reader[0])


def test_a_subclass_of_ones_own(place: Path) -> None:
    class Labelled(scdl.SingleCellDataset):
        def __getitem__(self, index: Any) -> Any:
            found = super().__getitem__(index)
            return found if isinstance(found, list) else (found, int(index))

    ds = Labelled(place / "a")
    assert isinstance(ds, Dataset)
    assert ds[3][1] == 3
    assert [label for _, label in ds[2:5]] == [2, 3, 4]


ROWS = {
    "slice": slice(2, 9, 3),
    "all": slice(None),
    "backwards": slice(None, None, -1),
    "list": [5, 0, 5, -1],
    "one": [3],
    "none": [],
    "array": np.array([1, 2]),
    "array of one": np.array([1]),
    "tensor": torch.tensor([4, 2]),
    "tensor of one": torch.tensor([4]),
    "mask": np.arange(N_OBS) % 2 == 0,
    "range": range(3, 6),
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_several_cells_are_a_list(reader: Any, rows: Any) -> None:
    expected = np.arange(N_OBS)[rows.numpy() if isinstance(rows, torch.Tensor) else rows]
    found = reader[rows]
    assert isinstance(found, list)
    assert len(found) == len(expected)
    for tensor, row in zip(reader[rows], expected, strict=True):
        assert torch.equal(tensor, reader[int(row)])
    batch = scdl.collate_sparse_matrix_batch(reader[rows])
    np.testing.assert_array_equal(batch.to_dense(), DENSE[expected].reshape(-1, batch.shape[1]))


@pytest.mark.parametrize("row", [3, -1, np.int8(3), np.array(3), torch.tensor(3)], ids=repr)
def test_one_cell_is_a_tensor(reader: Any, row: Any) -> None:
    values, columns = reader[row]
    np.testing.assert_array_equal(values, DENSE[int(row)][columns.int()])


@pytest.mark.parametrize("row", ["a", 1.5, None, (1, 2), ["a"], [[1]], np.ones(3, bool), N_OBS])
def test_what_is_no_row(reader: Any, row: Any) -> None:
    with pytest.raises(RowIndexError):
        reader[row]


def test_a_row_and_a_gene_are_told_what_to_use(reader: Any) -> None:
    with pytest.raises(RowIndexError, match=r"not \(1, 2\); select several rows with a list"):
        reader[1, 2]


def test_subsets_and_batches_of_rows(reader: Any) -> None:
    """As torch asks for several: a list of rows, from a subset or a batch sampler."""
    data = torch.utils.data
    subset = data.Subset(reader, [7, 3, 5])
    assert [tensor.shape for tensor in subset[[0, 2]]] == [reader[7].shape, reader[5].shape]
    batches = data.BatchSampler(data.SequentialSampler(reader), 5, drop_last=False)
    loader = data.DataLoader(
        reader, sampler=batches, batch_size=None, collate_fn=scdl.collate_sparse_matrix_batch
    )
    dense = torch.cat([batch.to_dense() for batch in loader])
    np.testing.assert_array_equal(dense, DENSE)
