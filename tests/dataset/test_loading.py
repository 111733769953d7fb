"""Training: DataLoader with the documented collate functions, and batches as tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from budget import sample
from sources import Cells, random_cells, write_h5ad

import scdl

torch = pytest.importorskip("torch")
pytestmark = [
    # Newer Pythons warn of any fork beside threads, torch's among them.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

N_OBS, N_VARS = 37, 12
#: No cell has the last two genes.
CELLS = random_cells(N_OBS, N_VARS - 2, seed=3)
EXPECTED = np.pad(CELLS.csr().toarray(), ((0, 0), (0, 2)))
GRAPH = random_cells(N_OBS, N_OBS, density=0.1, seed=4)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("loading")
    wide = Cells(CELLS.rows, CELLS.columns, CELLS.values, (N_OBS, N_VARS))
    source = write_h5ad(place / "a.h5ad", wide, obsp={"next_cell_ids": GRAPH})
    scdl.convert(source, place / "archive", neighbor_key="next_cell_ids")
    return place / "archive"


def loader(ds: Any, **options: Any) -> Any:
    return torch.utils.data.DataLoader(
        ds, batch_size=8, collate_fn=scdl.collate_sparse_matrix_batch, **options
    )


@pytest.mark.parametrize(
    ("num_workers", "context"), sample([(0, None), (2, "spawn"), (2, "fork")], 2), ids=str
)
def test_data_loader(archive: Path, num_workers: int, context: str | None) -> None:
    ds = scdl.SingleCellMemMapDataset(archive)
    batches = list(loader(ds, num_workers=num_workers, multiprocessing_context=context))
    assert all(batch.layout == torch.sparse_csr for batch in batches)
    assert [tuple(batch.shape) for batch in batches] == [(8, N_VARS)] * 4 + [(5, N_VARS)]
    dense = torch.cat([batch.to_dense() for batch in batches]).numpy()
    np.testing.assert_array_equal(dense, EXPECTED)


def test_shuffled(archive: Path) -> None:
    torch.manual_seed(0)
    batches = list(loader(scdl.open(archive), shuffle=True))
    dense = torch.cat([batch.to_dense() for batch in batches]).numpy()
    assert not np.array_equal(dense, EXPECTED)
    np.testing.assert_array_equal(np.sort(dense, axis=0), np.sort(EXPECTED, axis=0))


def test_batch_of_one_without_collating(archive: Path) -> None:
    rows = list(torch.utils.data.DataLoader(scdl.open(archive), batch_size=1))
    assert len(rows) == N_OBS
    for row, expected in zip(rows, EXPECTED, strict=True):
        values, columns = row[0]
        np.testing.assert_array_equal(values, expected[columns.int()])
        assert len(values) == np.count_nonzero(expected)


def test_plain_tensors_are_as_wide_as_their_largest_column() -> None:
    rows = [torch.tensor([[1.0, 2.0], [0.0, 4.0]]), torch.tensor([[3.0], [2.0]]), torch.empty(2, 0)]
    batch = scdl.collate_sparse_matrix_batch(rows)
    assert batch.layout == torch.sparse_csr
    assert batch.to_dense().tolist() == [[1, 0, 0, 0, 2], [0, 0, 3, 0, 0], [0, 0, 0, 0, 0]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pairs_of_neighbors(archive: Path, num_workers: int) -> None:
    ds = scdl.SingleCellMemMapDataset(
        archive, load_neighbors=True, neighbor_sampling_strategy="first"
    )
    (batch, *_) = torch.utils.data.DataLoader(
        Pairs(ds),
        batch_size=8,
        num_workers=num_workers,
        multiprocessing_context="fork" if num_workers else None,
        collate_fn=scdl.collate_neighbor_sparse_matrix_batch,
    )
    assert set(batch) == {
        "current_cells",
        "next_cells",
        "current_cell_indices",
        "next_cell_indices",
        "batch_size",
    }
    assert batch["batch_size"] == 8
    following = [ds.sample_neighbor_index(i) for i in range(8)]
    assert batch["current_cell_indices"] == list(range(8))
    assert batch["next_cell_indices"] == following
    for name, rows in (("current_cells", range(8)), ("next_cells", following)):
        assert batch[name].layout == torch.sparse_csr
        np.testing.assert_array_equal(batch[name].to_dense().numpy(), EXPECTED[list(rows)])


class Pairs(torch.utils.data.Dataset):
    """What a user writes to train on pairs."""

    def __init__(self, ds: Any) -> None:
        self.ds = ds

    def __len__(self) -> int:
        return len(self.ds)

    def __getitem__(self, i: int) -> Any:
        return self.ds.get_row_with_neighbor(i)


@pytest.mark.parametrize(
    "dtype", ["uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
)
@pytest.mark.parametrize("layout", ["csr", "coo", "dense"])
def test_batches_as_tensors(tmp_path: Path, dtype: str, layout: str) -> None:
    cells = random_cells(9, 6, dtype="<u2", seed=5)
    write_h5ad(tmp_path / "a.h5ad", cells)
    scdl.convert(tmp_path / "a.h5ad", tmp_path / "archive", data_dtype=dtype)
    ds = scdl.open(tmp_path / "archive")
    rows = [8, 0, 0, -2]
    tensor = ds.read_rows(rows).to_torch(layout)
    expected = {"csr": torch.sparse_csr, "coo": torch.sparse_coo, "dense": torch.strided}[layout]
    assert tensor.layout == expected
    assert tuple(tensor.shape) == (4, 6)
    assert tensor.is_floating_point() == dtype.startswith("float")
    np.testing.assert_array_equal(tensor.to_dense().double(), cells.csr().toarray()[rows])
    values, columns = ds[1]
    np.testing.assert_array_equal(values.double(), cells.csr()[[1]].toarray()[0][columns.int()])
    batch = next(iter(loader(ds)))
    assert tuple(batch.shape) == (8, 6)
    np.testing.assert_array_equal(batch.to_dense().double(), cells.csr().toarray()[:8])


def test_unknown_layout(archive: Path) -> None:
    with pytest.raises(ValueError, match="rowwise"):
        scdl.open(archive).read_rows([0]).to_torch("rowwise")


def test_tensors_do_not_share_memory_with_the_archive(archive: Path) -> None:
    ds = scdl.open(archive)
    ds[0].zero_()
    ds.read_rows(slice(None)).to_torch("csr").values().zero_()
    np.testing.assert_array_equal(scdl.open(archive).read_rows(slice(None)).to_dense(), EXPECTED)


def test_column_ids_stay_exact_beside_narrow_values(tmp_path: Path) -> None:
    """float16 counts to 2,048 only, and a row is one tensor of values and column ids."""
    columns = np.array([2_049, 2_999])
    cells = Cells(np.zeros(2, int), columns, np.ones(2, "f4"), (1, 3_000))
    write_h5ad(tmp_path / "a.h5ad", cells)
    scdl.convert(tmp_path / "a.h5ad", tmp_path / "archive", data_dtype="float16")
    ds = scdl.open(tmp_path / "archive")
    assert ds[0][1].tolist() == columns.tolist()
    batch = scdl.collate_sparse_matrix_batch([ds[0], ds[0]])
    assert batch.col_indices().tolist() == columns.tolist() * 2
