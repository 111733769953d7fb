"""Backend ``memmap``: the documented format of BioNeMo-SCDL, raw memory-mapped arrays.

An archive is a directory. The documented files hold the expression matrix, one neighbour graph
and the feature tables. Everything else is in the directory ``scdl/``, which other readers ignore::

    header.sch  data.npy  col_ptr.npy  row_ptr.npy          the matrix; no headers in spite of .npy
    neighbor_indices.npy  neighbor_indptr.npy  neighbor_values.npy
    var_features/  obs_features/                            tables, see `features`
    metadata.json  version.json
    scdl/manifest.json                                      contents of scdl/, and the attributes
    scdl/arrays/<i>.bin                                     other arrays: obsm, graphs, layers
    scdl/<table>.names.parquet  scdl/<table>.categories.parquet
    scdl/checksums.bin                                      checksums of all other files

The documented format itself stores one attribute, ``blocks``: a list of ``{"stop", "n_vars",
"label"}``, the consecutive rows that share a table ``var/<i>``.

Source: schema document of BioNeMo-SCDL, format 0.1.0, and archives written by its releases 0.1.1,
0.1.3 and head. The manifest is used only if it agrees with the documented files, so that other
programs may change these.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from storage_backends.base import ArraySpec, ColumnNames, Contents
from storage_backends.capabilities import Sparse
from storage_backends.checks import check_ranges
from storage_backends.compute.caching import LazyMapping, cached_property
from storage_backends.compute.claims import check_claim
from storage_backends.directory import files as archive_files
from storage_backends.directory import integrity
from storage_backends.directory.mapped_file import MappedFile, map_files
from storage_backends.directory.staging import remove_leftovers
from storage_backends.directory.store import DirectoryStore
from storage_backends.errors import ArchiveChangedError, ArchiveClosedError
from storage_backends.memmap import BACKEND, features, layout, manifest
from storage_backends.memmap.header import Header, HeaderIndex
from storage_backends.memmap.table_files import OBS, OnlyTables, TableFiles

if TYPE_CHECKING:
    import pyarrow as pa

    from storage_backends.base import ArrayWriter
    from storage_backends.capabilities import Examination, TableStore
    from storage_backends.memmap.tables import ParquetTable


class MemmapStore(DirectoryStore):
    """A committed archive in the documented format."""

    markers = BACKEND.markers
    checksums = layout.CHECKSUMS
    reads = staticmethod(layout.reads)

    def __init__(self, path: str) -> None:
        self.path = path
        self.remarks: list[str] = []
        self._specs: dict[str, ArraySpec] = {}
        self._sparse: dict[str, Sparse] = {}
        #: Path of each array.
        self.array_files: dict[str, str] = {}
        self._mapped: dict[str, NDArray[Any]] | None = {}
        self._parquet: dict[str, ParquetTable] = {}
        #: Mapped files of tables, which stay readable when the archive is replaced.
        self._mapped_tables: dict[str, MappedFile] = {}
        header = layout.read_header(path)
        stated = manifest.read(path)
        matrix = layout.matrix_files(path, header, stated)
        self._n_obs, nnz = matrix["indptr"].spec.length - 1, matrix["data"].spec.length
        self._map(matrix)
        #: What the archive has besides the documented files; empty if that is unknown.
        self.manifest = manifest.current(path, stated, self._n_obs, nnz, self.remarks)
        self._sparse = {
            name: Sparse("csr", (self._n_obs, width))
            for name, width in self.manifest.get("sparse", {}).items()
        }
        self._map(layout.other_files(path, self.manifest))
        self.table_files = TableFiles(path, self._n_obs, self.manifest)
        self._contents = self._describe_tables()
        self.stale = header is not None and self._is_stale(header)

    @classmethod
    def _open(cls, path: str) -> Self:
        return cls(path)

    @classmethod
    def open_tables(
        cls, path: str, fingerprint: str, n_obs: int, n_values: int
    ) -> TableStore | None:
        """The tables, without mapping the arrays."""
        identity = archive_files.identity_of(path, cls.markers)
        if identity is None or integrity.fingerprint(path, cls.checksums) != fingerprint:
            return None
        remarks: list[str] = []
        stated = manifest.read(path)
        current = manifest.current(path, stated, n_obs, n_values, remarks)
        if remarks:
            return None
        files = TableFiles(path, n_obs, current)
        return OnlyTables(files, lambda: archive_files.identity_of(path, cls.markers) == identity)

    def _map(self, files: layout.Files) -> None:
        """Map arrays, and check those of sparse matrices."""
        mapped = self._open_arrays()
        for name, file in files.items():
            self._specs[name], mapped[name] = file.spec, layout.map_file(*file)
            self.array_files[name] = file.path
        for name in files:
            is_graph = name.startswith("graphs/") and name.endswith("/indptr")
            if name == "indptr" or is_graph or name.removesuffix("/indptr") in self._sparse:
                layout.check_offsets(self.path, files, name, mapped[name], self._n_obs)

    def _describe_tables(self) -> Contents:
        """Find the tables, and check that their blocks have the right number of rows."""
        files = self.table_files
        attrs: Mapping[str, Any]
        if self.manifest:
            attrs = self.manifest["attrs"]
            widths = [sparse.shape[1] for sparse in self._sparse.values()]
            for width in [*(block["n_vars"] for block in attrs["blocks"]), *widths]:
                check_claim(f"{self.path}: genes", (width,), 8, lambda: self.nbytes)
            files.check_blocks([block["stop"] for block in attrs["blocks"]])
        else:
            attrs = LazyMapping(self, ["blocks"], lambda store, _: store._documented_blocks)
        schemas = LazyMapping(self, files.names, lambda store, name: store._table(name).schema)
        return Contents(MappingProxyType(self._specs), schemas, MappingProxyType(attrs))

    def _is_stale(self, header: Header) -> bool:
        lengths = {}
        for name, documented in layout.MATRIX.items():
            lengths[documented.header_name] = self._specs[name].length
        for array in header.arrays:
            if lengths.get(array.name, array.length) != array.length:
                self.remarks.append(
                    f"{self.path}: the lengths in the header disagree with the files, which agree "
                    "with each other and are used; update the header with `scdl verify --repair` "
                    "or scdl.open(path).save()"
                )
                return True
        return False

    def _open_arrays(self) -> dict[str, NDArray[Any]]:
        if self._mapped is None:
            raise ArchiveClosedError(f"{self.path}: the archive was closed; open it again")
        return self._mapped

    @property
    def contents(self) -> Contents:
        self._open_arrays()
        return self._contents

    def _hold(self) -> None:
        """Map the files of tables, and read the labels, which are otherwise read later."""
        files: list[str] = []
        for name in self._contents.tables:
            columns, own = self.table_files.of(name)
            files += [*columns, *own.values()]
        self._mapped_tables = map_files(files, MappedFile)
        if not self.manifest:
            _ = self._labels

    @cached_property
    def _labels(self) -> list[str | None]:
        return features.read_labels(
            self.path, self.table_files.var_directory, len(self.table_files.var_stops)
        )

    @cached_property
    def _documented_blocks(self) -> list[dict[str, Any]]:
        return [
            {"stop": stop, "n_vars": self._table(f"var/{i}").num_rows, "label": label}
            for i, (stop, label) in enumerate(
                zip(self.table_files.var_stops, self._labels, strict=True)
            )
        ]

    @property
    def sparse(self) -> Mapping[str, Sparse]:
        return MappingProxyType(self._sparse)

    @property
    def stored_bytes(self) -> Mapping[str, int]:
        sizes = {name: spec.nbytes for name, spec in self.arrays.items()}
        return sizes | {name: self._table(name).nbytes for name in self.tables}

    @property
    def nbytes(self) -> int:
        return sum(archive_files.file_sizes(self.path).values())

    def view(self, name: str) -> NDArray[Any] | None:
        self.spec(name)
        return self._open_arrays()[name]

    def read_ranges(
        self, name: str, starts: NDArray[np.int64], stops: NDArray[np.int64], out: NDArray[Any]
    ) -> None:
        from storage_backends.memmap.gather import gather_ranges

        check_ranges(f"{self.path}: {name}", self.spec(name), starts, stops, out)
        gather_ranges(np.asarray(self._open_arrays()[name]), starts, stops, out)

    def will_need(self, name: str, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> Any:
        from storage_backends.memmap.gather import read_ahead

        self.spec(name)
        return read_ahead(np.asarray(self._open_arrays()[name]), starts, stops)

    def read_table(
        self, name: str, columns: ColumnNames = None, start: int = 0, stop: int | None = None
    ) -> pa.Table:
        return self._table(name).read(columns, start, stop)

    def table_fingerprint(self, name: str, /) -> str:
        return self._table(name).fingerprint

    def close(self) -> None:
        self._mapped = None
        # Replace the dictionaries instead of clearing them, as other threads may be reading.
        self._parquet, self._mapped_tables = {}, {}

    # -- growing -------------------------------------------------------------------------------

    def grow(self) -> ArrayWriter | None:
        from storage_backends.directory.growing import checksums_of
        from storage_backends.memmap.growing import MemmapGrower

        self._open_arrays()
        self.check_current()
        before = checksums_of(self, layout.CHECKSUMS)
        files = self.table_files
        parts = self.manifest.get("tables", {}).get("obs", {}).get("parts", 1)
        is_ours = bool(self.manifest) and not self.stale and files.var_directory == "var_features"
        if before is None or not is_ours or len(files.obs_stops or [0]) != parts:
            return None
        # Checksums may have been added after an interrupted append.
        for name, spec in self._specs.items():
            sums = before.files.get(os.path.relpath(self.array_files[name], self.path))
            if sums is None or sums.size != spec.nbytes:
                return None
        return MemmapGrower.begin(self, before)

    # -- verification --------------------------------------------------------------------------

    @classmethod
    def examine(cls, path: str) -> Examination:
        root = os.path.realpath(path)
        return integrity.examine_files(
            root, cls.checksums, cls.reads, grows=layout.grows(root), ignored=layout.GROWING
        )

    @classmethod
    def repair(cls, path: str) -> Sequence[str]:
        from storage_backends.directory.growing import remove_unpublished

        store = cls.open(path)
        remove_leftovers(store.path)
        done = remove_unpublished(store.path, layout.CHECKSUMS, layout.GROWING, layout.grows)
        return [*done, *cls._repair_header(store)]

    @classmethod
    def _repair_header(cls, store: MemmapStore) -> Sequence[str]:
        """Write the header of an archive anew if another program left it stale."""
        if not store.stale:
            return ()
        tables, n_obs = [store.table_files.var_directory], store._n_obs
        if store.table_files.obs_stops is not None:
            tables.append(OBS)
        indexes = [HeaderIndex(t, n_obs, features.index_files(store.path, t)) for t in tables]
        header = layout.header_of(store._specs, indexes)
        where, data = (store.path, layout.CHECKSUMS), header.to_bytes()
        if integrity.matches_checksums(*where, layout.HEADER, data) is False:
            # Other files were changed, too.
            return ()
        integrity.replace_files(*where, {layout.HEADER: data}, lambda: store.is_current)
        lengths = ", ".join(f"{array.name} {array.length:,}" for array in header.arrays)
        return (f"{store.path}/{layout.HEADER}: rewritten with the lengths {lengths}",)

    def _table(self, name: str) -> ParquetTable:
        # Get the dictionaries before checking that the store is open: `close` replaces them.
        tables, mapped = self._parquet, self._mapped_tables
        if name not in self.tables:
            raise self.no_table(name)
        columns, own = self.table_files.of(name)
        # Files that are not mapped must not be read from a replacement of the archive.
        if not self.is_current and not mapped.keys() >= {*columns, *own.values()}:
            raise ArchiveChangedError(
                f"{self.path}: the archive was replaced since it was opened, and the files of "
                f"{name} were not kept open; open it again"
            )
        if name not in tables:
            tables[name] = self.table_files.open(name, mapped)
        return tables[name]
