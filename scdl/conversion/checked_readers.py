"""Readers that check the arrays of sparse elements while reading them."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from scdl.errors import SourceError
from scdl.sources.matrices import Reader


class CheckedReader:
    """Wraps a reader and checks the numbers that are read."""

    item_shape: tuple[int, ...] = ()

    def __init__(self, where: str, reader: Reader) -> None:
        self._where, self._reader = where, reader
        self.dtype = reader.dtype

    def __len__(self) -> int:
        return len(self._reader)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Read numbers ``[start, stop)``."""
        raise NotImplementedError


class RisingOffsets(CheckedReader):
    """Offsets; reading raises SourceError if they decrease."""

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Read offsets ``[start, stop)``."""
        offsets = self._reader.read(max(start - 1, 0), stop)
        if (offsets[1:] < offsets[:-1]).any():
            raise SourceError(
                f"{self._where}: its offsets decrease between positions {start} and {stop}; the "
                "source is damaged"
            )
        return offsets[start - max(start - 1, 0) :]


class BoundedIndices(CheckedReader):
    """Indices; reading raises SourceError if one is out of range."""

    def __init__(self, where: str, reader: Reader, below: int) -> None:
        super().__init__(where, reader)
        self._below = below

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Read indices ``[start, stop)``."""
        indices = self._reader.read(start, stop)
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < self._below:
            outside = int(indices.min()) if indices.min() < 0 else int(indices.max())
            raise SourceError(
                f"{self._where}: found index {outside}, expected indices in [0, {self._below}); "
                "the source is damaged"
            )
        return indices
