"""Backend ``memory``: archives in the memory of this process; the executable specification.

Paths have the form ``ram:NAME``. An archive exists until the process ends. Other processes cannot
open it, except those forked later.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from storage_backends.base import ArraySpec, ArrayStore, ArrayWriter, Backend, Contents
from storage_backends.checks import check_columns, check_ranges, check_rows, little_endian
from storage_backends.errors import (
    ArchiveClosedError,
    ArchiveExistsError,
    ArchiveNotFoundError,
    ArchiveWriteError,
    OutputError,
)
from storage_backends.paths import RAM

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass
class _Content:
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    tables: dict[str, pa.Table] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    #: Identifies this archive among archives at the same path.
    token: object = field(default_factory=object)


_committed: dict[str, _Content] = {}


class MemoryStore(ArrayStore):
    """A committed archive in memory."""

    def __init__(self, path: str, content: _Content) -> None:
        self.path = path
        self._content: _Content | None = content
        self._token = content.token

    @classmethod
    def open(cls, path: str, *, hold: bool = True) -> Self:
        if path not in _committed:
            raise ArchiveNotFoundError(f"{path}: there is no archive here in this process")
        return cls(path, _committed[path])

    @property
    def identity(self) -> Any:
        return self._token

    @property
    def is_current(self) -> bool:
        committed = _committed.get(self.path)
        return committed is not None and committed.token is self._token

    def check_removable(self) -> None:
        self.check_current()

    def remove(self) -> None:
        self.check_current()
        self.close()
        del _committed[self.path]

    def _open_content(self) -> _Content:
        if self._content is None:
            raise ArchiveClosedError(f"{self.path}: the archive was closed; open it again")
        return self._content

    @property
    def contents(self) -> Contents:
        content = self._open_content()
        specs = {
            name: ArraySpec(array.dtype, len(array), array.shape[1:])
            for name, array in content.arrays.items()
        }
        schemas = {name: table.schema for name, table in content.tables.items()}
        return Contents(specs, schemas, copy.deepcopy(content.attrs))

    @property
    def stored_bytes(self) -> Mapping[str, int]:
        content = self._open_content()
        sizes = {name: array.nbytes for name, array in content.arrays.items()}
        return sizes | {name: table.nbytes for name, table in content.tables.items()}

    def read_ranges(
        self, name: str, starts: NDArray[np.int64], stops: NDArray[np.int64], out: NDArray[Any]
    ) -> None:
        check_ranges(f"{self.path}: {name}", self.spec(name), starts, stops, out)
        source = self._open_content().arrays[name]
        position = 0
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            out[position : position + stop - start] = source[start:stop]
            position += stop - start

    def read_table(
        self,
        name: str,
        columns: Sequence[str] | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> pa.Table:
        table = self._table(name)
        where, names = f"{self.path}: {name}", table.column_names
        stop = check_rows(where, table.num_rows, start, stop, names=names, columns=columns)
        table = table.slice(start, stop - start)
        return table if columns is None else table.select(list(columns))

    def _table(self, name: str) -> pa.Table:
        try:
            return self._open_content().tables[name]
        except KeyError:
            raise self.no_table(name) from None

    def view(self, name: str) -> NDArray[Any] | None:
        self.spec(name)
        return self._open_content().arrays[name]

    def close(self) -> None:
        self._content = None


class MemoryWriter(ArrayWriter):
    """Writes an archive into memory."""

    def __init__(self, path: str, *, replace: bool) -> None:
        self.path = path
        self._replace = replace
        self._pieces: dict[str, list[NDArray[Any]]] | None = {}
        self._tables: dict[str, pa.Table] = {}

    @classmethod
    def open(cls, path: str, *, replace: bool = False) -> Self:
        if not path.startswith(RAM):
            raise ArchiveWriteError(f"{path}: the path of an archive in memory must be {RAM}NAME")
        if path in _committed and not replace:
            raise ArchiveExistsError(
                f"{path}: an archive of this name exists already; give replace=True (--overwrite) "
                "to replace it, or choose another name"
            )
        return cls(path, replace=replace)

    def _open_pieces(self) -> dict[str, list[NDArray[Any]]]:
        if self._pieces is None:
            raise ArchiveClosedError(f"{self.path}: the archive was already committed or aborted")
        return self._pieces

    def append(self, name: str, values: NDArray[Any]) -> None:
        values = little_endian(f"{self.path}: {name}", values).copy()
        pieces = self._open_pieces().setdefault(name, [])
        if pieces and (pieces[0].dtype, pieces[0].shape[1:]) != (values.dtype, values.shape[1:]):
            raise OutputError(
                f"{self.path}: {name}: expected items {pieces[0].dtype} {pieces[0].shape[1:]}, "
                f"found {values.dtype} {values.shape[1:]}"
            )
        pieces.append(values)

    def write_table(self, name: str, table: pa.Table | pa.RecordBatchReader) -> None:
        import pyarrow as pa

        self._open_pieces()
        if name in self._tables:
            raise OutputError(f"{self.path}: the table {name} was already written")
        check_columns(f"{self.path}: {name}", table.schema)
        table = table if isinstance(table, pa.Table) else table.read_all()
        self._tables[name] = table.replace_schema_metadata(None)

    def commit(self, attrs: Mapping[str, Any]) -> None:
        arrays = {name: np.concatenate(pieces) for name, pieces in self._open_pieces().items()}
        for array in arrays.values():
            array.flags.writeable = False
        if self.path in _committed and not self._replace:
            raise ArchiveExistsError(f"{self.path}: an archive of this name exists already")
        _committed[self.path] = _Content(arrays, self._tables, json.loads(json.dumps(attrs)))
        self._pieces = None

    def abort(self) -> None:
        self._pieces = None


BACKEND = Backend("memory", MemoryStore, MemoryWriter, elsewhere=_committed.__contains__)
