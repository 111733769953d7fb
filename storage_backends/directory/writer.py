"""Base class of writers of archives that are local directories."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from numpy.typing import NDArray

from storage_backends.base import ArraySpec, ArrayWriter
from storage_backends.checks import check_columns, little_endian
from storage_backends.directory.recorder import Recorder
from storage_backends.directory.staging import Staging
from storage_backends.errors import ArchiveClosedError, OutputError, refused_write

if TYPE_CHECKING:
    import pyarrow as pa

_MATRIX = ("data", "indices", "indptr")


class DirectoryWriter(ArrayWriter):
    """Writes files to a hidden directory, which becomes the archive when it is committed.

    A subclass writes its files to :attr:`directory` through ``recorder``, which records their
    checksums, and the last files in ``_complete``.

    Examples
    --------
    >>> from storage_backends import registry
    >>> from storage_backends.directory.writer import DirectoryWriter
    >>> issubclass(registry.backend("memmap").writer, DirectoryWriter)
    True
    """

    #: Name of the file with the checksums of all others.
    checksums: ClassVar[str]

    def __init__(self, path: str, *, replace: bool) -> None:
        self._staging: Staging | None = Staging.create(path, replace=replace)
        self.path = self._staging.target
        self.recorder = Recorder(self._staging.path)
        #: Arrays written so far, and the number of rows of each table written so far.
        self.specs: dict[str, ArraySpec] = {}
        self.table_rows: dict[str, int] = {}
        self._last_offset: int | None = None

    @classmethod
    def open(cls, path: str, *, replace: bool = False, **options: Any) -> Self:
        """Begin an archive."""
        writer = cls(path, replace=replace, **options)
        try:
            with refused_write(writer.path):
                writer._begin()
        except BaseException:
            writer.abort()
            raise
        return writer

    @property
    def directory(self) -> str:
        """Directory of the new files; ArchiveClosedError after the commit."""
        if self._staging is None:
            raise ArchiveClosedError(f"{self.path}: the archive was already committed or aborted")
        return self._staging.path

    def _checked(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        """Values to append, in stored byte order; OutputError if dtype or item shape change."""
        _, where = self.directory, f"{self.path}: {name}"
        values = little_endian(where, values)
        spec = self.specs.get(name) or ArraySpec(values.dtype, 0, values.shape[1:])
        if (values.dtype, values.shape[1:]) != (spec.dtype, spec.item_shape):
            raise OutputError(
                f"{where}: expected items {spec.dtype} {spec.item_shape}, "
                f"found {values.dtype} {values.shape[1:]}"
            )
        self.specs[name] = replace(spec, length=spec.length + len(values))
        if name == "indptr" and values.shape == (len(values),) and len(values):
            self._last_offset = int(values[-1])
        return values

    def _check_table(self, name: str, schema: pa.Schema) -> None:
        """Raise OutputError if a table name is invalid, or the table was already written."""
        _ = self.directory
        kind, _, block = name.partition("/")
        known = (kind, block.isdecimal()) in (("obs", False), ("var", True))
        if not known or name in self.table_rows:
            raise OutputError(
                f"{self.path}: cannot write a table {name!r}: the names are obs, var/0, var/1 and "
                "so on, each written once"
            )
        check_columns(f"{self.path}: {name}", schema)

    def _begin(self) -> None:
        """Write the initial files."""

    @abstractmethod
    def _complete(self, attrs: Mapping[str, Any]) -> None:
        """Write the remaining files, before the archive is published."""

    def _close(self) -> None:
        """End what is under way before the files are removed; those of `recorder` get closed."""

    def commit(self, attrs: Mapping[str, Any]) -> None:
        """Complete the archive and publish it, durably and atomically."""
        directory = self.directory
        _check_complete(self.path, self.specs, self._last_offset, self.table_rows, attrs)
        self._complete(attrs)
        with refused_write(self.path):
            self.recorder.close()
            with open(os.path.join(directory, self.checksums), "xb") as stream:
                stream.write(self.recorder.table().to_bytes())
            assert self._staging is not None
            self._staging.publish()
        self._staging = None

    def abort(self) -> None:
        """Remove all files written; does nothing after a commit."""
        if self._staging is not None:
            self._close()
            self.recorder.discard()
            self._staging.discard()
            self._staging = None


def _check_complete(
    path: str,
    specs: Mapping[str, ArraySpec],
    last_offset: int | None,
    table_rows: Mapping[str, int],
    attrs: Mapping[str, Any],
) -> None:
    """Raise OutputError if arrays, tables and attributes disagree."""
    missing = [name for name in _MATRIX if name not in specs]
    if missing:
        raise OutputError(f"{path}: cannot commit: {', '.join(missing)} not written")
    lengths = {name: specs[name].length for name in _MATRIX}
    n_obs, nnz = lengths["indptr"] - 1, lengths["data"]
    stops = [block["stop"] for block in attrs.get("blocks", [])]
    tables = [f"var/{i}" for i in range(len(stops))]
    rows = {name: n for name, n in table_rows.items() if name != "obs"}
    if n_obs < 0 or not last_offset == nnz == lengths["indices"]:
        problem = (
            f"offsets end at {last_offset}, but there are {nnz} values and {lengths['indices']} "
            "column ids"
        )
    elif not stops or stops[-1] != n_obs:
        problem = f"blocks end at {stops}, but there are {n_obs} cells"
    elif sorted(rows) != sorted(tables):
        problem = f"blocks need the tables {tables}, but {sorted(rows)} were written"
    elif [rows[table] for table in tables] != [b["n_vars"] for b in attrs["blocks"]]:
        problem = f"var tables have {rows} rows, expected those of the blocks {attrs['blocks']}"
    elif table_rows.get("obs", n_obs) != n_obs:
        problem = f"obs has {table_rows['obs']} rows, but there are {n_obs} cells"
    else:
        return
    raise OutputError(f"{path}: cannot commit: {problem}")
