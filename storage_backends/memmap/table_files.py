"""The tables of an archive: their files, and reading them without the rest of the archive."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from storage_backends.compute import steps
from storage_backends.compute.caching import cached_property
from storage_backends.directory import files as archive_files
from storage_backends.directory.mapped_file import MappedFile
from storage_backends.errors import COPY_AGAIN, ArchiveChangedError, ArchiveFormatError, ScdlError
from storage_backends.memmap import features, layout

if TYPE_CHECKING:
    import pyarrow as pa

    from storage_backends.compute.steps import Steps
    from storage_backends.memmap.tables import ParquetTable

#: Directory of the table of cells.
OBS = "obs_features"


class TableFiles:
    """Files of the tables of an archive; the small ones are read when they are needed.

    Parameters
    ----------
    path
        Path of the archive.
    n_obs
        Number of cells.
    manifest
        The manifest of the archive; empty if it has none.
    """

    def __init__(self, path: str, n_obs: int, manifest: Mapping[str, Any]) -> None:
        self.path = path
        self._n_obs, self._manifest = n_obs, manifest

    @cached_property
    def var_directory(self) -> str:
        """Directory of the tables of genes."""
        for name in ("var_features", "features"):
            if os.path.isdir(os.path.join(self.path, name)):
                return name
        raise ArchiveFormatError(f"{self.path}: the directory var_features is missing")

    @cached_property
    def var_stops(self) -> list[int]:
        """The row at which each feature block ends."""
        return self._read_stops(self.var_directory)

    @cached_property
    def obs_stops(self) -> list[int] | None:
        """The row at which each file of the table of cells ends; None without the table."""
        has_obs = os.path.isdir(os.path.join(self.path, OBS))
        return self._read_stops(OBS) if has_obs else None

    def _read_stops(self, directory: str) -> list[int]:
        key = f"{directory}/{features.BOUNDARIES}"
        data = archive_files.read_file(self.path, key)
        stops = features.parse_stops(data, os.path.join(self.path, key))
        n_rows = stops[-1] if stops else 0
        if n_rows != self._n_obs:
            raise ArchiveFormatError(
                f"{self.path}: {directory} describes {n_rows} rows, but the archive has "
                f"{self._n_obs}"
            )
        return stops

    def check_blocks(self, stops: Sequence[int]) -> None:
        """Raise ArchiveFormatError unless the feature blocks end at `stops`."""
        if self.var_stops != stops:
            raise ArchiveFormatError(
                f"{self.path}: the blocks of {self.var_directory} end at {self.var_stops}, "
                f"but the manifest lists others; {COPY_AGAIN}"
            )

    @property
    def names(self) -> list[str]:
        """Names of the tables."""
        cells = [] if self.obs_stops is None else ["obs"]
        return [*cells, *map("var/{}".format, range(len(self.var_stops)))]

    def of(self, name: str) -> tuple[list[str], dict[str, str]]:
        """Files of a table: those of its blocks, and those in ``scdl/`` by their part."""
        if name == "obs" and self.obs_stops is not None:
            directory, n_blocks = OBS, len(self.obs_stops)
            first, last = 0, n_blocks
        else:
            directory, n_blocks = self.var_directory, len(self.var_stops)
            first = int(name.removeprefix("var/"))
            last = first + 1
        columns, own = [], {}
        for block in range(first, last):
            file = f"{directory}/{layout.dataframe(block, n_blocks)}"
            columns.append(archive_files.file_path(self.path, file))
        entry = self._entry(name)
        parts = [layout.names_part(i) for i in range(self._n_parts(entry, columns))]
        for part in (*(parts if entry.get("names") else ()), "categories"):
            if part != "categories" or entry.get(part):
                file = layout.side_file("", name, part)
                own[part] = archive_files.file_path(self.path, file)
        return columns, own

    def _entry(self, name: str) -> Mapping[str, Any]:
        """Entry of a table in the manifest; empty if there is none."""
        entry: Mapping[str, Any] = self._manifest.get("tables", {}).get(name, {})
        return entry

    @staticmethod
    def _n_parts(entry: Mapping[str, Any], columns: Sequence[str]) -> int:
        """Number of files of names: one, or as many as files of columns if the archive grew."""
        parts = entry.get("parts", 1)
        return len(columns) if parts == len(columns) else 1

    def open(
        self, name: str, mapped: Mapping[str, MappedFile] = MappingProxyType({})
    ) -> ParquetTable:
        """A table; files in `mapped` are read instead of those on disk."""
        from storage_backends.memmap.tables import ParquetTable

        n_rows: int | None = self._n_obs
        if name != "obs":
            block = int(name.removeprefix("var/"))
            n_rows = self._manifest["attrs"]["blocks"][block]["n_vars"] if self._manifest else None
        columns, own = self.of(name)
        entry = self._entry(name)
        return ParquetTable(
            f"{self.path}: the table {name}",
            columns,
            n_rows,
            names=[file for part, file in own.items() if part != "categories"],
            are_alike=self._n_parts(entry, columns) > 1,
            categories=own.get("categories"),
            only_names=entry.get("only_names"),
            index_name=entry.get("index_name"),
            nullable=entry.get("nullable", ()),
            mapped=mapped,
            # The number of cells is known from the offsets, which are not compressed.
            bounded=name != "obs",
        )


class OnlyTables:
    """The tables of an archive that is not open otherwise.

    Parameters
    ----------
    files
        The files of the tables.
    is_current
        Whether the archive at the path is still the one whose files these are.
    """

    def __init__(self, files: TableFiles, is_current: Callable[[], bool]) -> None:
        self.path = files.path
        self._files, self._is_current = files, is_current
        self._tables: dict[str, ParquetTable] = {}

    def _table(self, name: str) -> ParquetTable:
        if name not in self._tables:
            self._tables[name] = self._files.open(name)
        return self._tables[name]

    def table_schema(self, name: str, /) -> pa.Schema:
        """Names and types of the columns of a table."""
        with self._current():
            return self._table(name).schema

    def read_table(self, name: str, /, columns: Sequence[str] | None = None) -> pa.Table:
        """Some or all columns of a table; ArchiveChangedError if the archive was replaced."""
        return steps.result(self.reading(name, columns))

    def reading(self, name: str, /, columns: Sequence[str] | None = None) -> Steps[pa.Table]:
        """As :meth:`read_table`, in steps."""
        with self._current():
            table = self._table(name)
            yield
            return (yield from table.reading(columns, 0, None))

    def table_fingerprint(self, name: str, /) -> str:
        """Hash of the files of a table."""
        with self._current():
            return self._table(name).fingerprint

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Raise ArchiveChangedError if the archive was replaced, whatever else this led to."""
        try:
            yield
        except (ScdlError, ValueError):
            self._check_current()
            raise
        self._check_current()

    def _check_current(self) -> None:
        if not self._is_current():
            raise ArchiveChangedError(
                f"{self.path}: the archive was replaced while its tables were read; open it again"
            )
