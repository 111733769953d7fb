"""The feature tables of an archive: one for the genes of each block, and one for the cells."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from storage_backends.compute.caching import cached_property
from storage_backends.directory import files as archive_files
from storage_backends.directory.mapped_file import MappedFile
from storage_backends.errors import ArchiveFormatError
from storage_backends.memmap import features, layout

if TYPE_CHECKING:
    from storage_backends.memmap.tables import ParquetTable


class FeatureTables:
    """Finds the tables of an archive and their files.

    Parameters
    ----------
    path
        The archive.
    manifest
        Its manifest; empty if there is none.
    n_obs
        Number of cells.

    Raises
    ------
    ArchiveFormatError
        The directory of var is missing, or the blocks of a directory do not have `n_obs` rows.
    """

    def __init__(self, path: str, manifest: Mapping[str, Any], n_obs: int) -> None:
        self._path, self._manifest, self._n_obs = path, manifest, n_obs
        known = ("var_features", "features", "obs_features")
        found = [name for name in known if os.path.isdir(os.path.join(path, name))]
        obs = [name for name in found if name == "obs_features"]
        if found == obs:
            raise ArchiveFormatError(f"{path}: the directory var_features is missing")
        self.var_directory = found[0]
        #: The directory of var, and that of obs if there is one.
        self.directories = [self.var_directory, *obs]
        self._stops = {name: features.read_stops(path, name) for name in self.directories}
        for name, stops in self._stops.items():
            n_rows = stops[-1] if stops else 0
            if n_rows != n_obs:
                raise ArchiveFormatError(
                    f"{path}: {name} describes {n_rows} rows, but the archive has {n_obs}"
                )

    @property
    def var_stops(self) -> list[int]:
        """Row at which each feature block ends."""
        return self._stops[self.var_directory]

    @property
    def names(self) -> list[str]:
        """Names of the tables."""
        obs = ["obs"] if "obs_features" in self._stops else []
        return [*obs, *(f"var/{i}" for i in range(len(self.var_stops)))]

    @cached_property
    def labels(self) -> list[str | None]:
        """Label of each feature block."""
        return features.read_labels(self._path, self.var_directory, len(self.var_stops))

    def open(self, name: str, mapped: Mapping[str, MappedFile]) -> ParquetTable:
        """Open a table; files in `mapped` are read instead of those on disk."""
        from storage_backends.memmap.tables import ParquetTable

        n_rows: int | None = self._n_obs
        if name != "obs":
            block = int(name.removeprefix("var/"))
            n_rows = self._manifest["attrs"]["blocks"][block]["n_vars"] if self._manifest else None
        entry = self._entry(name)
        return ParquetTable(
            f"{self._path}: the table {name}",
            self._column_files(name),
            n_rows,
            names=self._side_file(name, "names"),
            categories=self._side_file(name, "categories"),
            only_names=entry.get("only_names"),
            index_name=entry.get("index_name"),
            nullable=entry.get("nullable", ()),
            mapped=mapped,
            # The number of cells is known from the offsets, which are not compressed.
            bounded=name != "obs",
        )

    def _column_files(self, name: str) -> list[str]:
        directory = "obs_features" if name == "obs" else self.var_directory
        n_blocks = len(self._stops[directory])
        blocks = range(n_blocks) if name == "obs" else [int(name.removeprefix("var/"))]
        names = [layout.dataframe(i, n_blocks) for i in blocks]
        return [archive_files.file_path(self._path, f"{directory}/{name}") for name in names]

    def files(self, name: str) -> list[str]:
        """Paths of all files of a table."""
        own = [self._side_file(name, part) for part in ("names", "categories")]
        return [*self._column_files(name), *filter(None, own)]

    def _entry(self, table: str) -> Mapping[str, Any]:
        """Entry of the manifest for a table's files in ``scdl/``."""
        entry: Mapping[str, Any] = self._manifest.get("tables", {}).get(table, {})
        return entry

    def _side_file(self, table: str, part: str) -> str | None:
        if not self._entry(table).get(part):
            return None
        return archive_files.file_path(self._path, layout.side_file("", table, part))
