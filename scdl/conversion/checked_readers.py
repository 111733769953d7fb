"""Readers of the arrays of sparse elements, which are checked on the way."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from scdl.errors import SourceError
from scdl.sources.matrices import Reader


class CheckedReader:
    """Numbers as a reader, which checks them as they are read."""

    item_shape: tuple[int, ...] = ()

    def __init__(self, where: str, reader: Reader) -> None:
        self._where, self._reader = where, reader
        self.dtype = reader.dtype

    def __len__(self) -> int:
        return len(self._reader)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Numbers ``[start, stop)``."""
        raise NotImplementedError


class RisingOffsets(CheckedReader):
    """Offsets, which raise SourceError where they fall."""

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Offsets ``[start, stop)``."""
        ahead = self._reader.read(max(start - 1, 0), stop)
        if (ahead[1:] < ahead[:-1]).any():
            raise SourceError(
                f"{self._where}: its offsets fall between {start} and {stop}; it is damaged"
            )
        return ahead[start - max(start - 1, 0) :]


class BoundedIndices(CheckedReader):
    """Indices, which raise SourceError for one outside."""

    def __init__(self, where: str, reader: Reader, below: int) -> None:
        super().__init__(where, reader)
        self._below = below

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Indices ``[start, stop)``."""
        found = self._reader.read(start, stop)
        if len(found) and not 0 <= int(found.min()) <= int(found.max()) < self._below:
            outside = int(found.min()) if found.min() < 0 else int(found.max())
            raise SourceError(
                f"{self._where}: it has the index {outside}, expected [0, {self._below}); it is "
                "damaged, or of other cells"
            )
        return found
