"""Tables that wait in a temporary file until they are written together."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import BinaryIO

import pyarrow as pa

from scdl.archive.tables import NoTable, TableSource


class StagedTables:
    """Rows of tables in a temporary file, so that only their categories are in memory.

    Parameters
    ----------
    file
        The temporary file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._shared: dict[str, pa.Array] = {}
        #: The tables, in pieces.
        self.pieces: list[TableSource] = []

    def add(self, table: TableSource) -> None:
        """Append the rows of a table."""
        if not table.schema.names:
            self.pieces.append(NoTable(table.num_rows))
            return
        for name, values in table.categories.items():
            # Consecutive tables often have equal categories; keep them only once.
            if name not in self._shared or not self._shared[name].equals(values):
                self._shared[name] = values
        categories = {name: self._shared[name] for name in table.categories}
        batches = [*table.batches()] or [table.read(0, 0)]
        self.pieces += [_Piece(self._file, batch, categories) for batch in batches]


class _Piece(TableSource):
    """A batch in the file."""

    def __init__(
        self, file: BinaryIO, batch: pa.RecordBatch, categories: Mapping[str, pa.Array]
    ) -> None:
        self.num_rows, self.schema, self.categories = batch.num_rows, batch.schema, categories
        self._file, self._start = file, file.seek(0, io.SEEK_END)
        with pa.ipc.new_stream(file, batch.schema) as stream:
            stream.write_batch(batch)

    def read(self, start: int, stop: int) -> pa.RecordBatch:
        self._file.seek(self._start)
        with pa.ipc.open_stream(self._file) as stream:
            return stream.read_next_batch().slice(start, stop - start)
