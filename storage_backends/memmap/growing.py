"""Adding cells to an archive of the memmap format.

Values, column ids and vectors grow in place. Offsets are written anew, as readers take the number
of cells from the size of their file. The table of cells gets a further file.
"""

from __future__ import annotations

import contextlib
import os
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage_backends.directory.growing import GrowingWriter
from storage_backends.errors import OutputError, refused_write
from storage_backends.memmap import layout, table_writer
from storage_backends.memmap.table_files import OBS
from storage_backends.memmap.writer import MemmapWriter

if TYPE_CHECKING:
    from storage_backends.memmap.store import MemmapStore

#: Items of offsets that are written at once.
_AT_ONCE = 1 << 20


class MemmapGrower(GrowingWriter, MemmapWriter):
    """Adds cells to an archive in the documented format."""

    marker = layout.GROWING
    _store: MemmapStore

    def _resume(self) -> None:
        super()._resume()
        store, manifest = self._store, self._store.manifest
        # The manifest lists arrays in the order of the numbers of their files.
        names = [*layout.MATRIX, *(entry["name"] for entry in manifest["arrays"])]
        self.specs = {name: store.spec(name) for name in names}
        self._files = {n: self._staged(path) for n, path in store.array_files.items()}
        self._side_files = deepcopy(dict(manifest["tables"]))
        self._sparse = dict(store.sparse)
        #: The row at which each file of the table of cells ends.
        self._stops = list(store.table_files.obs_stops or ())
        #: Number of files of the tables of cells and genes, after which they are named.
        self._n_tables = {OBS: len(self._stops), "var_features": len(manifest["attrs"]["blocks"])}

    def _staged(self, path: str) -> str:
        """The path in the new archive of a file of the old one."""
        return os.path.join(self.directory, os.path.relpath(path, self._store.path))

    # -- arrays ------------------------------------------------------------------------------

    def append(self, name: str, values: NDArray[Any]) -> None:
        _ = self.directory
        if name not in self._files:
            raise OutputError(f"{self.path}: the archive has no {name} to append to")
        if name not in self._arrays:
            with refused_write(self.path):
                self._open_array(name, values.dtype)
        super().append(name, values)

    def restart(
        self, name: str, dtype: np.dtype[Any], item_shape: tuple[int, ...] | None = None
    ) -> None:
        self._restarted(name, dtype, item_shape)
        with refused_write(self.path):
            self._arrays[name] = self.recorder.create(self._files[name])

    def _open_array(self, name: str, dtype: np.dtype[Any]) -> None:
        path = self._files[name]
        if name.rpartition("/")[2] != "indptr":
            self._arrays[name] = self.grow_file(path)
            return
        self._widen_offsets(name, dtype)
        spec = self.specs[name]
        file = self._arrays[name] = self.recorder.create(path)
        # A view, as reading would import compiled code.
        stored = np.asarray(self._store.view(name))
        for start in range(0, spec.length, _AT_ONCE):
            piece = stored[start : start + _AT_ONCE].astype(spec.dtype, copy=False)
            file.write(piece.view(np.uint8).data)

    def _move_documented_graph(self, directory: str) -> str | None:
        graph: str | None = self._store.manifest.get("documented_graph")
        return graph

    # -- tables ------------------------------------------------------------------------------

    def write_table(self, name: str, table: pa.Table | pa.RecordBatchReader) -> None:
        if name != "obs":
            raise OutputError(f"{self.path}: the table {name} of the archive cannot be replaced")
        self.table_rows.pop(name, None)
        self.recorder.remove(os.path.join(self.directory, OBS))
        for i in range(len(self._stops)):
            self._remove(self._names_file(i))
        self._remove(layout.side_file(self.directory, name, "categories"))
        self._n_tables[OBS] = 0
        super().write_table(name, table)
        self._stops = [self.table_rows[name]]

    def extend_table(self, name: str, table: pa.RecordBatchReader) -> None:
        if name not in self.table_rows or name != "obs":
            raise OutputError(f"{self.path}: the archive has no table {name} to extend")
        first = self._stops[-2] if len(self._stops) > 1 else 0
        part, n_before = len(self._stops), self.table_rows[name]
        if n_before - first < table_writer.ROW_GROUP:
            # Join a short last file, so that many appends do not leave many files.
            part -= 1
            table = self._joined(name, first, table)
            self._remove(self._written_table(os.path.join(self.directory, OBS), part))
        else:
            first = n_before
        n_rows, entry = table_writer.write(
            table,
            os.path.join(self.directory, OBS, f"{part}.parquet"),
            names=self._names_file(part),
            categories=layout.side_file(self.directory, name, "categories"),
            only_names="obs_feature_id",
            create=self.recorder.create,
        )
        self._side_files[name] = {**entry, "parts": part + 1}
        self.table_rows[name] = first + n_rows
        self._stops = [*self._stops[:part], first + n_rows]

    def _names_file(self, part: int) -> str:
        return layout.side_file(self.directory, "obs", layout.names_part(part))

    def _remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self.recorder.forget(os.path.relpath(path, self.directory).replace(os.sep, "/"))

    def _obs_stops(self, n_obs: int) -> list[int]:
        return self._stops

    def _written_table(self, path: str, block: int) -> str:
        written = super()._written_table(path, block)
        if os.path.exists(written):
            return written
        return os.path.join(path, layout.dataframe(block, self._n_tables[os.path.basename(path)]))
