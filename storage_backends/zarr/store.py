"""Backend ``zarr``: compressed archives, each of which is a Zarr v3 store and an AnnData.

Any other AnnData in a Zarr store, of format 2 or 3, opens too if its matrix is in CSR form. See
``layout`` for the names.

Sources: Zarr v3 specification; anndata's on-disk format specification.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from storage_backends.base import ColumnNames, Contents
from storage_backends.capabilities import Examination, RowsRead, Sparse
from storage_backends.checks import check_ranges, check_rows
from storage_backends.compute.caching import LazyMapping, cached_property
from storage_backends.contents import Positions
from storage_backends.directory.files import file_sizes, identity_of
from storage_backends.directory.store import DirectoryStore
from storage_backends.encoded import Allocate, EncodedRows
from storage_backends.errors import (
    COPY_AGAIN,
    ArchiveClosedError,
    ArchiveFormatError,
    OutputError,
    RangeError,
)
from storage_backends.zarr import BACKEND, detection, gene_order, layout, upkeep
from storage_backends.zarr import remote as remote_files
from storage_backends.zarr.chunks import reading, rows
from storage_backends.zarr.chunks.files import Files, LocalFiles
from storage_backends.zarr.chunks.reading import ZarrArray
from storage_backends.zarr.codecs.profiles import ANS, OF, PACKED, PROFILES, SAME
from storage_backends.zarr.contents import GroupContents
from storage_backends.zarr.detection import METADATA_FILES
from storage_backends.zarr.nodes import array_at, describe, shard_keys
from storage_backends.zarr.opening import Nodes, local_nodes, nodes, unreadable
from storage_backends.zarr.zipped import ZippedFiles

if TYPE_CHECKING:
    import pyarrow as pa

    from storage_backends.base import ArrayWriter
    from storage_backends.zarr.tables.reading import ZarrTable


#: Codecs of this package.
_CODECS = (ANS, OF, PACKED, SAME)


class ZarrStore(DirectoryStore):
    """A committed archive, or any AnnData in a Zarr store."""

    markers = BACKEND.markers
    checksums = detection.CHECKSUMS

    def __init__(self, path: str, files: Files, found: Nodes) -> None:
        self.path = path
        self.files = files
        self.group = GroupContents(path, found, files)
        self._in_root = found.in_root
        self._closed = False
        #: Elements whose files are known to exist.
        self._complete: set[str] = set()

    @classmethod
    def open(cls, path: str, *, hold: bool = True, **options: Any) -> Self:
        if not os.path.isdir(path) and detection.is_url(path):
            with unreadable(path), layout.ignore_zarr_warnings():
                root, remote = remote_files.open_group(path, options.get("cache"))
                store = cls(path, remote, nodes(path, root, remote))
                if hold and store.group.is_archive:
                    # Fail here if the server cannot be read from, such as without range requests.
                    store.group.array("indptr")
                return store
        if os.path.isfile(path):
            path = os.path.realpath(path)
            with unreadable(path), layout.ignore_zarr_warnings():
                files = ZippedFiles(path)
                return cls(path, files, nodes(path, files.group(), files))
        return super().open(path, hold=hold, **options)

    @classmethod
    def _open(cls, path: str, before_reading: Callable[[str], None] | None = None) -> Self:
        before = identity_of(path, cls.markers)
        files = LocalFiles(path, before_reading)
        files.is_current = lambda: identity_of(path, cls.markers) == before
        return cls(path, files, local_nodes(path, files))

    def _hold(self) -> None:
        """Map all files now, those of the matrix first."""
        assert isinstance(self.files, LocalFiles)
        first, rest = list(METADATA_FILES), list[str]()
        for key in file_sizes(self.path):
            # If the root has all metadata, other metadata files are not read.
            if not (self._in_root and key.endswith(METADATA_FILES)):
                (first if key.startswith(f"{self.group.matrix}/") else rest).append(key)
        self.files.hold(first + rest)

    # -- arrays ----------------------------------------------------------------------------

    def _opened(self) -> None:
        if self._closed:
            raise ArchiveClosedError(f"{self.path}: the archive was closed; open it again")

    @cached_property
    def contents(self) -> Contents:
        self._opened()
        schemas = LazyMapping(
            self, self.group.table_paths, lambda store, name: store._table(name).schema
        )
        specs, attrs = MappingProxyType(self.group.specs), MappingProxyType(self.group.attrs)
        return Contents(specs, schemas, attrs)

    def read_ranges(
        self, name: str, starts: Positions, stops: Positions, out: NDArray[Any]
    ) -> None:
        self.read_across((self,), name, np.zeros(len(starts), np.int64), starts, stops, out)

    @classmethod
    def read_across(
        cls,
        stores: Sequence[Any],
        name: str,
        which: Positions,
        starts: Positions,
        stops: Positions,
        out: NDArray[Any],
    ) -> None:
        specs = [store.spec(name) for store in stores]
        longest = max(specs, key=lambda spec: spec.length)
        check_ranges(f"{stores[0].path}: {name}", longest, starts, stops, out)
        arrays = cls._checked_arrays(stores, name, which, starts, stops)
        if len({spec.dtype for spec in specs}) > 1:
            raise OutputError(f"{stores[0].path}: {name} has another dtype than in other archives")
        # uint64 may be stored as int64, which has the same bits.
        same, stored = out.dtype == longest.dtype, arrays[0].spec.dtype
        reading.read(arrays, which, starts, stops, out.view(stored) if same else out)

    @classmethod
    def read_rows_across(
        cls,
        stores: Sequence[Any],
        prefix: str,
        which: Positions,
        starts: Positions,
        stops: Positions,
        out: tuple[NDArray[Any], NDArray[Any]],
        *,
        ordered: bool,
    ) -> RowsRead:
        if not stores[0].group.array(f"{prefix}data").reader.framed:
            return RowsRead.NOTHING
        values, ids = (
            cls._checked_arrays(stores, prefix + part, which, starts, stops)
            for part in ("data", "indices")
        )
        return rows.read(values, ids, which, starts, stops, out, ordered=ordered)

    @classmethod
    def encoded_rows_across(
        cls,
        stores: Sequence[Any],
        prefix: str,
        which: Positions,
        starts: Positions,
        stops: Positions,
        allocate: Allocate,
    ) -> EncodedRows | None:
        # Remote chunks are fetched for many rows at once, of which these may be a part.
        if stores[0].request_bytes or not stores[0].group.array(f"{prefix}data").reader.framed:
            return None
        values, ids = (
            cls._checked_arrays(stores, prefix + part, which, starts, stops)
            for part in ("data", "indices")
        )
        return rows.encoded(values, ids, which, starts, stops, allocate)

    @property
    def request_bytes(self) -> int:
        return self.files.request_bytes

    def will_need(self, name: str, starts: Positions, stops: Positions) -> Any:
        which = np.zeros(len(starts), np.int64)
        return self.will_need_across((self,), name, which, starts, stops)

    @classmethod
    def will_need_across(
        cls, stores: Sequence[Any], name: str, which: Positions, starts: Positions, stops: Positions
    ) -> Any:
        arrays = cls._checked_arrays(stores, name, which, starts, stops)
        return reading.will_need(arrays, which, starts, stops)

    @staticmethod
    def _checked_arrays(
        stores: Sequence[Any], name: str, which: Positions, starts: Positions, stops: Positions
    ) -> list[ZarrArray]:
        """An array of each archive; RangeError if a range ends after its array."""
        lengths = np.array([store.spec(name).length for store in stores])
        beyond = stops > lengths[which]
        if beyond.any():
            bad = int(beyond.argmax())
            raise RangeError(
                f"{stores[which[bad]].path}: {name}: range [{starts[bad]}, {stops[bad]}) is not "
                f"within [0, {lengths[which[bad]]}]"
            )
        return [store.group.array(name) for store in stores]

    def chunk_length(self, name: str) -> int:
        self.spec(name)
        array = self.group.array(name)
        # Items in frames are read with those of their frame; remote chunks are fetched whole.
        return 1 if not self.request_bytes and array.reader.framed else array.chunk_rows

    # -- tables ----------------------------------------------------------------------------

    def _table(self, name: str) -> ZarrTable:
        self._opened()
        if name not in self.group.table_paths:
            raise self.no_table(name)
        self._check_chunks(self.group.table_paths[name])
        table = self.group.frame(self.group.table_paths[name])
        blocks = self.group.attrs["blocks"]
        expected = blocks[-1]["stop"] if name == "obs" else blocks[int(name[4:])]["n_vars"]
        if table.num_rows != expected:
            raise ArchiveFormatError(
                f"{self.path}: the table {name} has {table.num_rows} rows, expected {expected}"
            )
        return table

    def _check_chunks(self, path: str) -> None:
        """Check once that the files of an element exist, as zarr reads missing ones as zeros."""
        if not self.group.scdl_attrs or detection.is_url(self.path) or path in self._complete:
            return
        below = [n for key, n in self.group.nodes.items() if f"{key}/".startswith(f"{path}/")]
        for file in itertools.chain(*map(shard_keys, below)):
            if self.files.size(file) is None:
                raise ArchiveFormatError(f"{self.path}: {file} is missing; {COPY_AGAIN}")
        self._complete.add(path)

    def read_table(
        self, name: str, columns: ColumnNames = None, start: int = 0, stop: int | None = None
    ) -> pa.Table:
        table = self._table(name)
        if self.group.order is None or name == "obs":
            return table.read(columns, start, stop)
        whole = table.read(columns, 0, None)
        stop = check_rows(f"{self.path}: {name}", whole.num_rows, start, stop)
        return whole.take(np.argsort(self.group.order)).slice(start, stop - start)

    # -- the rest of an AnnData ------------------------------------------------------------

    @property
    def sparse(self) -> Mapping[str, Sparse]:
        self._opened()
        named = {
            layout.interface_name(f"{path}/data", self.group.sparse).removesuffix("/data"): matrix
            for path, matrix in self.group.sparse.items()
            if path != self.group.matrix or matrix.format == "csc"
        }
        return MappingProxyType(named)

    @property
    def unread(self) -> Sequence[str]:
        known = {"X", "obs", "var", "raw", *layout.MAPPINGS}
        tables = [(path, self.group.frame(path)) for path in self.group.table_paths.values()]
        columns = [f"{path}/{column}" for path, table in tables for column in table.unread]
        return [
            path for path in self.group.nodes if "/" not in path and path not in known
        ] + columns

    @property
    def elements(self) -> Sequence[str]:
        self._opened()
        return self.group.element_paths

    def read_element(self, name: str) -> Any:
        if name not in self.elements:
            return super().read_element(name)
        from storage_backends.zarr import elements as stored_elements

        self._check_chunks(name)
        with unreadable(f"{self.path}: {name}"), layout.ignore_zarr_warnings():
            value = stored_elements.read(self.group.nodes[name].opened())
        aligned = gene_order.aligned(self.group.matrix, follows=self.group.follows)
        if self.group.order is not None and name.startswith(aligned):
            value = gene_order.permute(name, value, np.argsort(self.group.order))
        return value

    # -- sizes -----------------------------------------------------------------------------

    @property
    def stored_bytes(self) -> Mapping[str, int]:
        self._opened()
        paths = {**self.group.paths, **self.group.table_paths}
        return {name: self.files.total(self.group.nodes[at].path) for name, at in paths.items()}

    @property
    def nbytes(self) -> int:
        return self.files.total("")

    @property
    def options(self) -> Mapping[str, Any]:
        compression = self.group.scdl_attrs.get("compression")
        return {"compression": compression} if compression in PROFILES else {}

    @property
    def requires(self) -> Sequence[str]:
        self._opened()
        grids = (node.array.grid for node in self.group.nodes.values() if node.array is not None)
        codecs = {str(codec["name"]) for grid in grids if grid for codec in grid.codecs}
        packages = {"numcodecs.pcodec": "pcodec", **dict.fromkeys(_CODECS, "scdl-store")}
        found = (package for codec, package in packages.items() if codec in codecs)
        return list(dict.fromkeys(found))

    def describe(self, name: str) -> str:
        self.spec(name)
        return describe(array_at(self.group.nodes[self.group.paths[name]]))

    # -- growing -------------------------------------------------------------------------

    def grow(self) -> ArrayWriter | None:
        from storage_backends.directory.growing import checksums_of
        from storage_backends.zarr.growing import ZarrGrower

        self._opened()
        is_local = isinstance(self.files, LocalFiles) and os.path.isdir(self.path)
        if not is_local or not self.group.scdl_attrs or not self.options:
            return None
        self.check_current()
        before = checksums_of(self, detection.CHECKSUMS)
        return None if before is None else ZarrGrower.begin(self, before, **self.options)

    # -- verification -------------------------------------------------------------------

    @classmethod
    def examine(cls, path: str) -> Examination:
        # Files are compared with their checksums before they are read.
        return upkeep.examine(path, lambda path, check: cls.open(path, before_reading=check))

    @classmethod
    def add_checksums(cls, path: str) -> int:
        upkeep.check_changeable(path)
        return super().add_checksums(path)

    @classmethod
    def repair(cls, path: str) -> Sequence[str]:
        return upkeep.repair(path)

    def close(self) -> None:
        self._closed = True
        self.__dict__.pop("contents", None)
        self.group.forget_chunks()
        self.files.close()
