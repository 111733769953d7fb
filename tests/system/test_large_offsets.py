"""More than 2**31 stored values, in sparse files of which only the end is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from scdl.sources.hdf5 import RowReader
from scdl.sources.matrices import Bounds, compressed_ranges

HOLE = 2**31 + 7


@pytest.fixture(params=[None, "gzip", "lzf"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A dataset of HOLE + 5 values that has chunks only at the end."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset(
            "data", (HOLE + 5,), "f4", chunks=(1 << 16,), compression=request.param, fillvalue=0.5
        )
        dataset[HOLE:] = np.arange(1, 6)
        yield dataset


def test_values_behind_the_hole(stored: h5py.Dataset) -> None:
    reader = RowReader(stored)
    assert reader.read(HOLE, HOLE + 5).tolist() == [1, 2, 3, 4, 5]
    assert reader.read(HOLE - 2, HOLE + 2).tolist() == [0.5, 0.5, 1, 2]
    assert reader.read(2**31 - 3, 2**31 + 3).tolist() == [0.5] * 6


@pytest.mark.parametrize("dtype", ["<i8", ">i8", "<u4", "<u8"])
def test_ranges_of_rows(tmp_path: Path, dtype: str) -> None:
    """Rows are grouped by 64-bit offsets; a row longer than a block is a group of its own."""
    offsets = np.array([0, HOLE, HOLE + 2, HOLE + 2, HOLE + 5, 2**32 - 1])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["indptr"] = offsets.astype(dtype)
        ranges = list(
            compressed_ranges("X", RowReader(file["indptr"]), 5, 2**32 - 1, Bounds(values=10))
        )
    assert [(start, stop) for start, stop, _ in ranges] == [(0, 1), (1, 4), (4, 5)]
    for start, stop, found in ranges:
        assert found.dtype == np.int64
        assert found.tolist() == offsets[start : stop + 1].tolist()
