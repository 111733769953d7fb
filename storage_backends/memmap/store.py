"""Backend ``memmap``: the documented format of BioNeMo-SCDL, raw memory-mapped arrays.

An archive is a directory. The documented files hold the expression matrix, one neighbour graph
and the feature tables. Everything else is in the directory ``scdl/``, which other readers ignore::

    header.sch  data.npy  col_ptr.npy  row_ptr.npy          the matrix; no headers in spite of .npy
    neighbor_indices.npy  neighbor_indptr.npy  neighbor_values.npy
    var_features/  obs_features/                            tables, see `features`
    metadata.json  version.json
    scdl/manifest.json                                      contents of scdl/, and the attributes
    scdl/arrays/<i>.bin                                     other arrays
    scdl/<table>.names.parquet  scdl/<table>.categories.parquet
    scdl/checksums.bin                                      checksums of all other files

The documented format itself stores one attribute, ``blocks``: a list of ``{"stop", "n_vars",
"label"}``, the consecutive rows that share a table ``var/<i>``.

Source: schema document of BioNeMo-SCDL, format 0.1.0, and archives written by its releases 0.1.1,
0.1.3 and head. The manifest is used only if it agrees with the documented files, so that other
programs may change these.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from storage_backends.base import ArraySpec, Contents
from storage_backends.checks import check_ranges
from storage_backends.compute.caching import LazyMapping, cached_property
from storage_backends.compute.claims import check_claim
from storage_backends.directory import files as archive_files
from storage_backends.directory import integrity
from storage_backends.directory.mapped_file import MappedFile, map_files
from storage_backends.directory.staging import remove_leftovers
from storage_backends.directory.store import DirectoryStore
from storage_backends.errors import ArchiveChangedError, ArchiveClosedError, ArchiveFormatError
from storage_backends.memmap import BACKEND, features, layout
from storage_backends.memmap.header import Header, HeaderArray, HeaderIndex

if TYPE_CHECKING:
    import pyarrow as pa

    from storage_backends.memmap.tables import ParquetTable


class MemmapStore(DirectoryStore):
    """A committed archive in the documented format."""

    markers = BACKEND.markers
    checksums = layout.CHECKSUMS
    reads = staticmethod(layout.reads)

    def __init__(self, path: str) -> None:
        self.path = path
        self.remarks: list[str] = []
        self._manifest: Mapping[str, Any] = {}
        self._files: dict[str, str] = {}
        self._specs: dict[str, ArraySpec] = {}
        self._mapped: dict[str, NDArray[Any]] | None = {}
        self._parquet: dict[str, ParquetTable] = {}
        #: Row at which each block ends, by the directory of the tables.
        self._stops: dict[str, list[int]] = {}
        #: Mapped files of tables, which stay readable when the archive is replaced.
        self._mapped_tables: dict[str, MappedFile] = {}

    @classmethod
    def _open(cls, path: str) -> Self:
        store = cls(path)
        header = layout.read_header(path)
        store._map(layout.matrix_files(path, header))
        lengths = store._n_obs, store._specs["data"].length
        store._manifest = layout.read_archive_manifest(path, *lengths, store.remarks)
        store._map(layout.graph_files(path, store._manifest))
        store._map(layout.own_files(path, store._manifest))
        store._check_features()
        store.stale = header is not None and store._is_stale(header)
        return store

    @property
    def _n_obs(self) -> int:
        return self._specs["indptr"].length - 1

    def _map(self, files: layout.Files) -> None:
        """Map arrays, and check that the arrays of sparse matrices agree with each other."""
        for name, (file, spec) in files.items():
            self._files[name], self._specs[name] = file, spec
            self._open_arrays()[name] = layout.map_file(file, spec)
        for name in files:
            if name == "indptr" or (name.startswith("graphs/") and name.endswith("/indptr")):
                self._check_offsets(name.removesuffix("indptr"))

    def _check_offsets(self, prefix: str) -> None:
        parts = [prefix + part for part in ("data", "indices", "indptr")]
        if missing := [part for part in parts if part not in self._specs]:
            raise ArchiveFormatError(f"{self.path}: {', '.join(missing)} is missing")
        for part in parts:
            spec = self._specs[part]
            if spec.item_shape or (not part.endswith("data") and spec.dtype.kind not in "iu"):
                raise ArchiveFormatError(
                    f"{self.path}: {part} cannot be {spec.dtype} of items of shape "
                    f"{spec.item_shape}; convert the source again"
                )
        values, ids, offsets = (self._specs[part].length for part in parts)
        indptr = self._open_arrays()[parts[2]]
        ends = (int(indptr[0]), int(indptr[-1])) if offsets else (0, 0)
        if offsets != self._n_obs + 1 or offsets == 0 or ends != (0, values) or ids != values:
            found = ", ".join(
                f"{os.path.basename(self._files[part])} has {self._specs[part].length}"
                for part in parts
            )
            raise ArchiveFormatError(
                f"{self.path}: {found} entries for {self._n_obs} cells, with offsets from "
                f"{ends[0]} to {ends[1]}; a file is truncated or is not of the header's dtype: "
                "convert the source again"
            )

    def _check_features(self) -> None:
        """Check that the feature indexes have the right number of rows."""
        for name in filter(None, (self._var_directory, self._obs_directory)):
            stops = self._stops[name] = features.read_stops(self.path, name)
            n_rows = stops[-1] if stops else 0
            if n_rows != self._n_obs:
                raise ArchiveFormatError(
                    f"{self.path}: {name} describes {n_rows} rows, "
                    f"but the archive has {self._n_obs}"
                )
        for block in self._manifest["attrs"]["blocks"] if self._manifest else ():
            where = f"{self.path}: genes"
            check_claim(where, (block["n_vars"],), 8, lambda: self.nbytes)
        if self._manifest and self._var_stops != [b["stop"] for b in self.attrs["blocks"]]:
            raise ArchiveFormatError(
                f"{self.path}: {self._var_directory} has blocks that end at {self._var_stops}, "
                "the manifest has different ones"
            )

    def _is_stale(self, header: Header) -> bool:
        listed = {array.name: array.length for array in header.arrays}
        if all(
            self._specs[name].length == listed[documented.header_name]
            for name, documented in layout.MATRIX.items()
        ):
            return False
        self.remarks.append(
            f"{self.path}: the header's lengths disagree with the files, which agree with each "
            "other and are used; `scdl verify --repair`, or scdl.open(path).save(), writes the "
            "header anew"
        )
        return True

    def _open_arrays(self) -> dict[str, NDArray[Any]]:
        if self._mapped is None:
            raise ArchiveClosedError(f"{self.path}: the archive was closed; open it again")
        return self._mapped

    @cached_property
    def contents(self) -> Contents:
        self._open_arrays()
        obs = ["obs"] if self._obs_directory else []
        names = [*obs, *(f"var/{i}" for i in range(len(self._var_stops)))]
        schemas = LazyMapping(self, names, lambda store, name: store._table(name).schema)
        attrs = self._manifest.get("attrs")
        if attrs is None:
            attrs = LazyMapping(self, ["blocks"], lambda store, _: store._documented_blocks)
        return Contents(MappingProxyType(self._specs), schemas, MappingProxyType(attrs))

    def _hold(self) -> None:
        """Map the files of tables, and read the labels, which are otherwise read later."""
        self._mapped_tables = map_files(
            itertools.chain(*map(self._table_files, self.tables)), MappedFile
        )
        if not self._manifest:
            _ = self._labels

    @cached_property
    def _labels(self) -> list[str | None]:
        return features.read_labels(self.path, self._var_directory, len(self._var_stops))

    @cached_property
    def _documented_blocks(self) -> list[dict[str, Any]]:
        return [
            {"stop": stop, "n_vars": self._table(f"var/{i}").num_rows, "label": label}
            for i, (stop, label) in enumerate(zip(self._var_stops, self._labels, strict=True))
        ]

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

    def will_need(self, name: str, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        from storage_backends.memmap.gather import read_ahead

        self.spec(name)
        read_ahead(np.asarray(self._open_arrays()[name]), starts, stops)

    def read_table(
        self,
        name: str,
        columns: Sequence[str] | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> pa.Table:
        return self._table(name).read(columns, start, stop)

    def close(self) -> None:
        self._mapped = None
        self.__dict__.pop("contents", None)
        # Replace the dictionaries instead of clearing them, as other threads may be reading.
        self._parquet, self._mapped_tables = {}, {}

    # -- verification --------------------------------------------------------------------------

    @classmethod
    def repair(cls, path: str) -> Sequence[str]:
        store = cls.open(path)
        remove_leftovers(store.path)
        if not store.stale:
            return ()
        header = store._header_of_files().to_bytes()
        matches = integrity.matches_checksums(store.path, layout.CHECKSUMS, layout.HEADER, header)
        if matches is False:
            # Other files were changed, too.
            return ()
        integrity.replace_files(
            store.path, layout.CHECKSUMS, {layout.HEADER: header}, lambda: store.is_current
        )
        lengths = ", ".join(
            f"{documented.header_name} {store._specs[name].length:,}"
            for name, documented in layout.MATRIX.items()
        )
        return (f"{store._path_to(layout.HEADER)}: rewritten with the lengths {lengths}",)

    def _header_of_files(self) -> Header:
        arrays = [
            HeaderArray(documented.header_name, self._specs[name].length, self._specs[name].dtype)
            for name, documented in layout.MATRIX.items()
        ]
        indexes = [
            HeaderIndex(name, self._n_obs, features.index_files(self.path, name))
            for name in (self._var_directory, self._obs_directory)
            if name is not None
        ]
        return Header(tuple(arrays), tuple(indexes))

    def _path_to(self, *parts: str) -> str:
        return os.path.join(self.path, *parts)

    @cached_property
    def _var_directory(self) -> str:
        for name in ("var_features", "features"):
            if os.path.isdir(self._path_to(name)):
                return name
        raise ArchiveFormatError(f"{self.path}: the directory var_features is missing")

    @cached_property
    def _obs_directory(self) -> str | None:
        return "obs_features" if os.path.isdir(self._path_to("obs_features")) else None

    @cached_property
    def _var_stops(self) -> list[int]:
        return self._stops[self._var_directory]

    def _table(self, name: str) -> ParquetTable:
        # Get the dictionaries before checking that the store is open: `close` replaces them.
        tables, mapped = self._parquet, self._mapped_tables
        if name not in self.tables:
            raise self.no_table(name)
        # Files that are not mapped must not be read from a replacement of the archive.
        if not self.is_current and not mapped.keys() >= {*self._table_files(name)}:
            raise ArchiveChangedError(
                f"{self.path}: the archive was replaced since it was opened, and the files of "
                f"{name} were not kept open; open it again"
            )
        if name not in tables:
            tables[name] = self._make_table(name, mapped)
        return tables[name]

    def _make_table(self, name: str, mapped: Mapping[str, MappedFile]) -> ParquetTable:
        from storage_backends.memmap.tables import ParquetTable

        n_rows: int | None = self._n_obs
        if name != "obs":
            block = int(name.removeprefix("var/"))
            n_rows = self._manifest["attrs"]["blocks"][block]["n_vars"] if self._manifest else None
        return ParquetTable(
            f"{self.path}: the table {name}",
            self._column_files(name),
            n_rows,
            names=self._own_table_file(name, "names"),
            categories=self._own_table_file(name, "categories"),
            only_names=self._side_files(name).get("only_names"),
            index_name=self._side_files(name).get("index_name"),
            nullable=self._side_files(name).get("nullable", ()),
            held=mapped,
            # The number of cells is known from the offsets, which are not compressed.
            bounded=name != "obs",
        )

    def _column_files(self, name: str) -> list[str]:
        if name == "obs":
            directory, n_blocks = "obs_features", len(self._stops["obs_features"])
            blocks = range(n_blocks)
        else:
            directory, n_blocks = self._var_directory, len(self._var_stops)
            block = int(name.removeprefix("var/"))
            blocks = range(block, block + 1)
        names = [layout.dataframe(i, n_blocks) for i in blocks]
        return [archive_files.file_path(self.path, f"{directory}/{name}") for name in names]

    def _table_files(self, name: str) -> list[str]:
        own = [self._own_table_file(name, part) for part in ("names", "categories")]
        return [*self._column_files(name), *filter(None, own)]

    def _side_files(self, table: str) -> Mapping[str, Any]:
        """Entry of the manifest for a table's files in ``scdl/``."""
        entry: Mapping[str, Any] = self._manifest.get("tables", {}).get(table, {})
        return entry

    def _own_table_file(self, table: str, part: str) -> str | None:
        if not self._side_files(table).get(part):
            return None
        return archive_files.file_path(self.path, layout.side_file("", table, part))
