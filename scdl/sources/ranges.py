"""Reading chosen rows of an array: near ones together, far ones each for itself."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

#: Numbers between two ranges that are read with them: skipping them takes as long.
GAP = 1 << 14

_Positions = NDArray[np.int64]


@runtime_checkable
class Reader(Protocol):
    """Reads rows of a numeric array."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Stored dtype of the numbers."""

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one row."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``[start, stop)``."""


@dataclass(frozen=True)
class RangeReader:
    """Reads rows of numbers with a function of the first row and the end.

    Parameters
    ----------
    read, length, dtype, item_shape
        The function, and what :class:`Reader` says.
    read_ranges
        Fills its last argument with many half-open ranges, given their starts and stops; None: each
        range is read for itself.
    """

    read: Callable[[int, int], NDArray[Any]]
    length: int
    dtype: np.dtype[Any]
    item_shape: tuple[int, ...]
    read_ranges: Callable[[_Positions, _Positions, NDArray[Any]], None] | None = None

    def __len__(self) -> int:
        return self.length


def read_ranges(
    reader: Reader, starts: _Positions, stops: _Positions, most: int, gap: int | None = None
) -> NDArray[Any]:
    """Read half-open ranges of rows, one after the other.

    Parameters
    ----------
    starts, stops
        The ranges, in ascending order; they do not overlap.
    most
        Largest number of rows to read at once, if no range is longer.
    gap
        Ranges that are not farther apart, in rows, are read at once. Default: so that no chunk of a
        file is decompressed twice, and there are few requests.
    """
    lengths = stops - starts
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    if total and int(stops[-1] - starts[0]) == total:
        return reader.read(int(starts[0]), int(stops[-1]))
    out = np.empty((total, *reader.item_shape), reader.dtype)
    if not total:
        return out
    if (many := getattr(reader, "read_ranges", None)) is not None:
        many(starts, stops, out)
        return out
    if gap is None:
        few = GAP // max(math.prod(reader.item_shape), 1)
        gap = max(few, getattr(reader, "chunk_rows", 1))
    for first, last in _runs(starts, stops, most, gap):
        values = reader.read(int(starts[first]), int(stops[last - 1]))
        place = out[ends[first] - lengths[first] : ends[last - 1]]
        if len(values) == len(place):
            place[:] = values
        else:
            place[:] = values[within(starts[first:last] - starts[first], lengths[first:last])]
    return out


def within(starts: _Positions, lengths: _Positions) -> _Positions:
    """The positions in ranges, one range after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)


def _runs(starts: _Positions, stops: _Positions, most: int, gap: int) -> Iterator[tuple[int, int]]:
    """Divide ranges into those that are read at once."""
    breaks = np.flatnonzero(starts[1:] - stops[:-1] > gap) + 1
    edges = np.concatenate([[0], breaks, [len(starts)]]).tolist()
    for first, last in itertools.pairwise(edges):
        while first < last:
            fits = int(np.searchsorted(stops[first:last], starts[first] + most, side="right"))
            yield first, first + max(fits, 1)
            first += max(fits, 1)
