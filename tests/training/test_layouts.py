"""Custom layouts: functions of cells, registered under a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sources import random_cells, write_h5ad

import scdl

torch = pytest.importorskip("torch")

from scdl.training.layouts import LAYOUTS, Layout, LayoutOptions

CELLS = random_cells(50, 12)


def detected(cells: scdl.CellBatch, options: LayoutOptions) -> dict[str, Any]:
    """The genes of all cells, and the offset of each cell."""
    return {"x": torch.from_numpy(cells.indices.astype("i8")), "lengths": cells.indptr[:-1]}


@pytest.fixture
def ds(tmp_path: Path) -> scdl.SingleCellDataset:
    scdl.convert(write_h5ad(tmp_path / "a.h5ad", CELLS), tmp_path / "a")
    return scdl.open(tmp_path / "a")


@pytest.mark.parametrize("options", [{"takes_length": False}, {"is_large": True}])
def test_loaders_take_it_by_name(ds: Any, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYOUTS, "detected", Layout(detected, **options))
    expected = CELLS.csr()
    for batch in scdl.SingleCellLoader(ds, 16, layout="detected", order="sequential"):
        rows = expected[batch.rows.numpy()]
        rows.sort_indices()
        np.testing.assert_array_equal(batch.x.numpy(), rows.indices)


def test_its_length(ds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYOUTS, "first", Layout(LAYOUTS["padded"].make, takes_length=True))
    with pytest.raises(
        scdl.errors.LoaderError, match="required for the layout 'padded' or 'first'"
    ):
        scdl.SingleCellLoader(ds, 16, layout="first")
    (batch, *_) = scdl.SingleCellLoader(ds, 16, layout="first", length=3)
    assert batch.x.shape == (16, 3)


def test_unknown_layout_lists_known_ones(ds: Any) -> None:
    with pytest.raises(scdl.errors.LoaderError, match="csr, coo, dense, padded"):
        scdl.SingleCellLoader(ds, 16, layout="rows")
