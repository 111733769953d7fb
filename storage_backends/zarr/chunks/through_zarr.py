"""Reading chunks of any codec, Zarr format and grid through zarr-python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from storage_backends.errors import ArchiveFormatError, ScdlError, one_line
from storage_backends.zarr.chunks.fetching import ChunkReader, Chunks


class ZarrReader(ChunkReader):
    """Reads chunks of any codec, Zarr format and grid through zarr-python."""

    def __init__(self, where: str, array: zarr.Array[Any], chunk_rows: int) -> None:
        self.where, self._array, self._rows = where, array, chunk_rows
        self.dtype = np.dtype(array.dtype).newbyteorder("=")
        self.kind = self

    @staticmethod
    def fetch(
        readers: Sequence[ZarrReader], which: NDArray[np.int64], chunks: NDArray[np.int64]
    ) -> Chunks:
        (reader,) = readers
        return _ZarrChunks(reader, chunks)

    @staticmethod
    def will_need(
        readers: Sequence[ZarrReader], which: NDArray[np.int64], chunks: NDArray[np.int64]
    ) -> bool:
        """Do nothing, as zarr-python cannot read ahead."""
        return False

    def read(self, chunk: int) -> NDArray[Any]:
        """The numbers of a chunk; the last chunk of the array may be shorter."""
        start = chunk * self._rows
        try:
            return np.asarray(self._array[start : start + self._rows])
        except ScdlError:
            raise
        except Exception as error:
            raise ArchiveFormatError(
                f"{self.where}: zarr cannot read chunk {chunk}: {one_line(error)}"
            ) from error


class _ZarrChunks(Chunks):
    def __init__(self, reader: ZarrReader, chunks: NDArray[np.int64]) -> None:
        self._reader, self._chunks = reader, chunks

    def decode(self, start: int, stop: int, needed: NDArray[np.int64], out: NDArray[Any]) -> None:
        for chunk, row in zip(self._chunks[start:stop].tolist(), out, strict=True):
            values = self._reader.read(chunk)
            row[: values.size] = values.reshape(-1)
