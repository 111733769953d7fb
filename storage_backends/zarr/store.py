"""Backend ``zarr``: compressed archives, each of which is a Zarr v3 store and an AnnData.

The matrix is ``X`` (or ``raw/X``, where an AnnData has both), in sharded arrays::

    zarr.json                        all metadata, consolidated; the attribute ``scdl``
    scdl.checksums                   checksums of all other files
    X/data  X/indices  X/indptr      shards ``c/0``, ``c/1`` and so on
    obs/  var/                       dataframes; ``var/0``, ``var/1`` … of several feature blocks
    obsp/<key>/  obsm/<key>          graphs and dense vectors
    layers/  varm/  varp/  uns/  raw/    what else an AnnData has

Any other AnnData in a Zarr store, of format 2 or 3, opens too if its matrix is in CSR form.

Sources: Zarr v3 specification; anndata's on-disk format specification.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray

from storage_backends.base import ArraySpec, Contents
from storage_backends.capabilities import Examination, Sparse
from storage_backends.checks import check_ranges, check_rows
from storage_backends.compute.caching import LazyMapping, cached_property
from storage_backends.compute.claims import check_claim
from storage_backends.directory.files import identity_of
from storage_backends.directory.store import DirectoryStore
from storage_backends.errors import COPY_AGAIN, ArchiveClosedError, ArchiveFormatError
from storage_backends.zarr import BACKEND, detection, gene_order, layout, upkeep
from storage_backends.zarr import remote as remote_files
from storage_backends.zarr.chunks.files import Files, LocalFiles
from storage_backends.zarr.chunks.reading import ChunkCache, ZarrArray
from storage_backends.zarr.codecs.profiles import PROFILES
from storage_backends.zarr.detection import METADATA_FILES
from storage_backends.zarr.layout import MATRIX_PARTS
from storage_backends.zarr.nodes import Node, array_at, array_of, describe, is_numeric, shard_keys
from storage_backends.zarr.opening import (
    Nodes,
    files_below,
    local_nodes,
    nodes,
    own_attribute,
    unreadable,
)
from storage_backends.zarr.plan import Bound
from storage_backends.zarr.zipped import ZippedFiles

if TYPE_CHECKING:
    import pyarrow as pa

    from storage_backends.zarr.tables.reading import ZarrTable

#: Bytes of decoded chunks that an open archive keeps.
CACHE_BYTES = 64 << 20


class ZarrStore(DirectoryStore):
    """A committed archive, or any AnnData in a Zarr store."""

    markers = BACKEND.markers
    checksums = detection.CHECKSUMS

    def __init__(self, path: str, files: Files) -> None:
        self.path = path
        self._files = files
        #: Bytes of all files; where nobody lists them, as many as anything may claim.
        self._stored = cache(lambda: files.total("") or 1 << 62)
        self._cache = ChunkCache(CACHE_BYTES)
        self._closed = False
        self._ours: Mapping[str, Any] = {}
        self._nodes: dict[str, Node] = {}
        self._sparse: dict[str, Sparse] = {}
        self._arrays: dict[str, ZarrArray] = {}
        self._paths: dict[str, str] = {}
        #: Elements whose files were found to be there.
        self._complete: set[str] = set()

    @classmethod
    def open(cls, path: str, *, hold: bool = True) -> Self:
        if detection.is_url(path):
            with unreadable(path):
                root, remote = remote_files.open_group(path)
                store = cls(path, remote)
                store._find(nodes(path, root, store._stored))
                if hold:
                    store._check_ends()
                return store
        if os.path.isfile(path):
            return cls._open_zipped(os.path.realpath(path))
        return super().open(path, hold=hold)

    @classmethod
    def _open_zipped(cls, path: str) -> Self:
        with unreadable(path):
            files = ZippedFiles(path)
            store = cls(path, files)
            store._find(nodes(path, files.group(), store._stored))
            store._check_ends()
            return store

    @classmethod
    def _open_checked(cls, path: str, before_reading: Callable[[str], None]) -> Self:
        """Open an archive that is compared with its checksums before anything is read."""
        return cls._open_whole(path, partial(cls._open, before_reading=before_reading), hold=True)

    @classmethod
    def _open(cls, path: str, before_reading: Callable[[str], None] | None = None) -> Self:
        before = identity_of(path, cls.markers)
        files = LocalFiles(path, before_reading)
        files.is_current = lambda: identity_of(path, cls.markers) == before
        store = cls(path, files)
        store._find(local_nodes(path, files, store._stored))
        return store

    # -- opening ---------------------------------------------------------------------------

    def _find(self, found: Nodes) -> None:
        """Learn what the store has."""
        # One of ours that lost its attributes is not taken for one of an early release.
        may_be_old = not found.attrs and self._files.size(detection.CHECKSUMS) is None
        self._ours = own_attribute(self.path, found, may_be_old=may_be_old)
        self._nodes = found.by_path if self._ours else layout.moved(found.by_path)
        for block in self._ours["attrs"]["blocks"] if self._ours else ():
            check_claim(f"{self.path}: genes", (block["n_vars"],), 8, self._stored)
        with unreadable(self.path):
            self._find_arrays()

    def _find_arrays(self) -> None:
        for path, node in self._nodes.items():
            kind = str(node.attrs.get("encoding-type"))
            if self._ours and "encoding-type" not in node.attrs and self._holds_arrays(path):
                raise ArchiveFormatError(f"{self.path}: {path} does not say what it is")
            if kind in ("csr_matrix", "csc_matrix") and self._holds_arrays(path):
                parts = [self._nodes.get(f"{path}/{part}") for part in MATRIX_PARTS]
                if self._ours and None in parts:
                    raise ArchiveFormatError(f"{self.path}: a part of {path} is missing")
                # Others, of truth values, are read as a whole.
                if (self._ours and path == self._matrix) or all(map(is_numeric, parts)):
                    with contextlib.ExitStack() as stack:
                        if not self._ours and path != self._matrix:
                            # Who reads the element is told what is wrong with it.
                            stack.enter_context(contextlib.suppress(ArchiveFormatError))
                        self._sparse[path] = Sparse(kind[:3], self._shape(path, node))
        for path, node in self._nodes.items():
            holder = path.rpartition("/")[0]
            if (self._holds_arrays(path) or holder in self._sparse) and is_numeric(node):
                name = self._name_of(path)
                self._paths[name] = path
                self._arrays[name] = array_of(
                    f"{self.path}: {name}",
                    node,
                    name,
                    self._files,
                    self._cache,
                    complete=bool(self._ours),
                )
        if self._is_archive:
            self._check_matrix()
        # Before the first reading, which fixes what is said of arrays.
        self._bound_ids()
        if self._is_archive:
            self._check_lengths()

    def _bound_ids(self) -> None:
        """Ids of genes are checked, and those of genes in another order replaced, at reading."""
        if self._order is None:
            array = self._arrays.get("indices")
            if array is not None and array.spec.dtype.kind == "u" and self._matrix in self._sparse:
                array.bound = Bound.of(self._sparse[self._matrix].shape[1])
        else:
            shared = [
                f"{path}/indices"
                for path, matrix in self._sparse.items()
                if path.startswith("layers/") and matrix.format == "csr"
            ]
            for name in ("indices", *(shared if self._matrix == "X" else ())):
                array = self._arrays[name]
                if array.spec.dtype.kind not in "iu":
                    raise ArchiveFormatError(
                        f"{self.path}: expected {name} as integers, found {array.spec.dtype}; "
                        "convert the source again"
                    )
                array.bound = Bound.of(mapping=self._order.astype(array.spec.dtype))

    def _holds_arrays(self, path: str) -> bool:
        """Whether an element is arrays of the seam, if its content can be."""
        return path in ("X", "raw/X") or path.rpartition("/")[0] in layout.ARRAY_HOLDERS

    def _shape(self, path: str, node: Node) -> tuple[int, int]:
        shape = node.attrs.get("shape")
        if isinstance(shape, Sequence) and [type(n) for n in shape] == [int, int]:
            rows, columns = map(int, shape)
            for extent in (rows, columns):
                check_claim(f"{self.path}: {path}", (extent,), 8, self._stored)
            return rows, columns
        raise ArchiveFormatError(f"{self.path}: {path} does not say its shape")

    def _name_of(self, path: str) -> str:
        holder, _, part = path.rpartition("/")
        if holder == self._matrix and self._sparse_format(holder) == "csr":
            return part
        return layout.seam_name(path, self._sparse)

    @cached_property
    def _matrix(self) -> str:
        """Element that the matrix is."""
        if self._ours:
            return str(self._ours["attrs"].get("element", "X"))
        # As a conversion chooses.
        return "raw/X" if "raw/X" in self._nodes else "X"

    @property
    def _is_archive(self) -> bool:
        return bool(self._ours) or self._sparse_format(self._matrix) == "csr"

    def _sparse_format(self, path: str) -> str | None:
        return self._sparse[path].format if path in self._sparse else None

    def _check_matrix(self) -> None:
        found = self._sparse_format(self._matrix)
        if found != "csr":
            there = "a dense array" if self._matrix in self._arrays else found or "nothing"
            raise ArchiveFormatError(
                f"{self.path}: expected the matrix {self._matrix} as csr_matrix, found {there}; "
                "convert the store, or its source, with `scdl convert`"
            )
        missing = [part for part in MATRIX_PARTS if part not in self._arrays]
        if missing:
            raise ArchiveFormatError(
                f"{self.path}: {', '.join(missing)} of {self._matrix} is missing or holds no "
                "numbers that an archive can have"
            )

    def _check_lengths(self) -> None:
        n_obs = self.spec("indptr").length - 1
        for path, matrix in self._sparse.items():
            self._check_rows(path, matrix.shape[0], n_obs)
            names = (self._name_of(f"{path}/{part}") for part in MATRIX_PARTS)
            values, ids, offsets = (self.spec(name).length for name in names)
            along = matrix.shape[matrix.format == "csc"]
            if values != ids or offsets != along + 1:
                raise ArchiveFormatError(
                    f"{self.path}: {path} has {matrix.shape[0]} rows and {matrix.shape[1]} "
                    f"columns, but {offsets} offsets, {values} values and {ids} indices"
                )
        for name, path in self._paths.items():
            if self._holds_arrays(path):
                self._check_rows(path, self.spec(name).length, n_obs)

    def _check_ends(self) -> None:
        """Compare first and last offset with the values, which takes decoding chunks."""
        if not self._is_archive:
            return
        n_obs, nnz = self.spec("indptr").length - 1, self.spec("data").length
        with unreadable(self.path):
            ends = [int(self.read("indptr", i, i + 1)[0]) for i in (0, n_obs)]
        if ends != [0, nnz]:
            raise ArchiveFormatError(
                f"{self.path}: offsets run from {ends[0]} to {ends[1]}, for {nnz} values; convert "
                "the source again"
            )

    def _check_rows(self, path: str, found: int, n_obs: int) -> None:
        if found != n_obs:
            raise ArchiveFormatError(
                f"{self.path}: {path} has {found} rows, but {self._matrix} has {n_obs}"
            )

    def _hold(self) -> None:
        """Map all files already, those of the matrix first."""
        self._check_ends()
        assert isinstance(self._files, LocalFiles)
        first = [self._paths[part] for part in MATRIX_PARTS if part in self._paths]
        rest = [path for path in self._paths.values() if path not in first]
        arrays = (key for path in (*first, *rest) for key in shard_keys(self._nodes[path]))
        self._files.hold(itertools.chain(METADATA_FILES, arrays, files_below(self.path)))

    # -- arrays ----------------------------------------------------------------------------

    def _opened(self) -> None:
        if self._closed:
            raise ArchiveClosedError(f"{self.path}: the archive was closed; open it again")

    @property
    def contents(self) -> Contents:
        self._opened()
        return self._contents

    @cached_property
    def _contents(self) -> Contents:
        schemas = LazyMapping(
            self, self._table_paths, lambda store, name: store._table(name).schema
        )
        return Contents(self._specs, schemas, MappingProxyType(self._attrs))

    @cached_property
    def _specs(self) -> Mapping[str, ArraySpec]:
        specs = {
            name: replace(array.spec, below=array.bound.below or None)
            for name, array in self._arrays.items()
        }
        for name in self._ours.get("unsigned", ()):
            if name in specs and specs[name].dtype == np.int64:
                specs[name] = replace(specs[name], dtype=np.dtype(np.uint64))
        return MappingProxyType(specs)

    @cached_property
    def _attrs(self) -> Mapping[str, Any]:
        if self._ours:
            own: Mapping[str, Any] = self._ours["attrs"]
            return own
        if self._matrix in self._sparse:
            n_obs, n_vars = self._sparse[self._matrix].shape
        else:
            n_obs, n_vars = (self._frame(path).num_rows for path in ("obs", self._var_path))
        block = {"stop": n_obs, "n_vars": n_vars, "label": None}
        attrs = {"blocks": [block], "sorted": False, "matrices": [self._matrix]}
        return attrs | ({"element": self._matrix} if self._matrix != "X" else {})

    def read_ranges(
        self, name: str, starts: NDArray[np.int64], stops: NDArray[np.int64], out: NDArray[Any]
    ) -> None:
        check_ranges(f"{self.path}: {name}", self.spec(name), starts, stops, out)
        array = self._arrays[name]
        # Some signed ones stand for the unsigned.
        own = out.view(array.spec.dtype) if out.dtype == self.spec(name).dtype else out
        array.read(starts, stops, own)

    def chunk_length(self, name: str) -> int:
        self.spec(name)
        return self._arrays[name].chunk_rows

    @cached_property
    def _order(self) -> NDArray[np.int64] | None:
        """Original position of each gene as they are stored; None where they stand there."""
        path = f"{self._var_path}/{layout.ORDER}"
        if not self._ours.get("reordered"):
            return None
        if path not in self._nodes:
            raise ArchiveFormatError(f"{self.path}: {path} is missing; convert the source again")
        with unreadable(f"{self.path}: {path}"):
            order: NDArray[np.int64] = np.asarray(array_at(self._nodes[path])[:])
        n_vars = self._sparse[self._matrix].shape[1]
        if order.shape != (n_vars,) or not np.array_equal(np.sort(order), np.arange(n_vars)):
            raise ArchiveFormatError(
                f"{self.path}: {path} is no order of {n_vars} genes; convert the source again"
            )
        return order

    # -- tables ----------------------------------------------------------------------------

    @property
    def _var_path(self) -> str:
        return "raw/var" if self._matrix == "raw/X" else "var"

    @cached_property
    def _table_paths(self) -> Mapping[str, str]:
        blocks = self._attrs["blocks"]
        paths = {"var/0": self._var_path}
        if len(blocks) > 1:
            shared = bool(self._ours.get("shared_var"))
            names = [f"var/{i}" for i in range(len(blocks))]
            paths = {name: layout.block_path(name, shared) for name in names}
        if self._ours.get("obs", "obs" in self._nodes):
            paths["obs"] = "obs"
        return paths

    def _table(self, name: str) -> ZarrTable:
        self._opened()
        if name not in self._table_paths:
            raise self.no_table(name)
        self._check_chunks(self._table_paths[name])
        table = self._frame(self._table_paths[name])
        blocks = self._attrs["blocks"]
        expected = blocks[-1]["stop"] if name == "obs" else blocks[int(name[4:])]["n_vars"]
        if table.num_rows != expected:
            raise ArchiveFormatError(
                f"{self.path}: the table {name} has {table.num_rows} rows, expected {expected}"
            )
        return table

    def _check_chunks(self, path: str) -> None:
        """Look once whether the files of an element are there: zarr takes lost ones for zeros."""
        if not self._ours or detection.is_url(self.path) or path in self._complete:
            return
        below = [n for key, n in self._nodes.items() if f"{key}/".startswith(f"{path}/")]
        for file in itertools.chain(*map(shard_keys, below)):
            if self._files.size(file) is None:
                raise ArchiveFormatError(f"{self.path}: {file} is missing; {COPY_AGAIN}")
        self._complete.add(path)

    def _frame(self, path: str) -> ZarrTable:
        from storage_backends.zarr.tables.reading import ZarrTable

        node = self._nodes.get(path)
        # Some writers leave it to the reader to tell.
        default = "dataframe" if node and not self._ours and "_index" in node.attrs else None
        kind = node.attrs.get("encoding-type", default) if node else None
        group = node.opened() if node and kind == "dataframe" else None
        if not isinstance(group, zarr.Group):
            raise ArchiveFormatError(f"{self.path}: the dataframe {path} is missing")
        return ZarrTable(f"{self.path}: the table {path}", group)

    def read_table(
        self,
        name: str,
        columns: Sequence[str] | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> pa.Table:
        table = self._table(name)
        if self._order is None or name == "obs":
            return table.read(columns, start, stop)
        whole = table.read(columns, 0, None)
        stop = check_rows(f"{self.path}: {name}", whole.num_rows, start, stop)
        return whole.take(np.argsort(self._order)).slice(start, stop - start)

    # -- the rest of an AnnData ------------------------------------------------------------

    @property
    def sparse(self) -> Mapping[str, Sparse]:
        self._opened()
        named = {
            layout.seam_name(f"{path}/data", self._sparse).removesuffix("/data"): matrix
            for path, matrix in self._sparse.items()
            if path != self._matrix or matrix.format == "csc"
        }
        return MappingProxyType(named)

    @cached_property
    def _element_paths(self) -> list[str]:
        if len(self._attrs["blocks"]) > 1:
            return []
        taken = {*self._sparse, *self._paths.values(), *self._table_paths.values()}
        holders = (*layout.ARRAY_HOLDERS, "varm", "varp", "raw/varm")
        found = [
            path
            for path in self._nodes
            if path in ("X", "raw/X", "var", "raw/var") or path.rpartition("/")[0] in holders
        ]
        if any(path.startswith("uns/") for path in self._nodes):
            found += ["uns"] if self._ours else layout.leaves(self._nodes, "uns")
        return [path for path in found if path not in taken]

    @property
    def unread(self) -> Sequence[str]:
        known = {"X", "obs", "var", "raw", *layout.MAPPINGS}
        tables = [(path, self._frame(path)) for path in self._table_paths.values()]
        columns = [f"{path}/{column}" for path, table in tables for column in table.unread]
        return [path for path in self._nodes if "/" not in path and path not in known] + columns

    @property
    def elements(self) -> Sequence[str]:
        self._opened()
        return self._element_paths

    def read_element(self, name: str) -> Any:
        if name not in self.elements:
            return super().read_element(name)
        from storage_backends.zarr import elements as stored_elements

        self._check_chunks(name)
        with unreadable(f"{self.path}: {name}"):
            value = stored_elements.read(self._nodes[name].opened())
        aligned = gene_order.ALIGNED.get(self._matrix, ())
        if self._order is not None and name.startswith(aligned):
            value = gene_order.permute(name, value, np.argsort(self._order))
        return value

    # -- sizes -----------------------------------------------------------------------------

    @property
    def stored_bytes(self) -> Mapping[str, int]:
        self._opened()
        paths = {**self._paths, **self._table_paths}
        return {name: self._files.total(self._nodes[at].path) for name, at in paths.items()}

    @property
    def nbytes(self) -> int:
        return self._files.total("")

    @property
    def options(self) -> Mapping[str, Any]:
        compression = self._ours.get("compression")
        return {"compression": compression} if compression in PROFILES else {}

    @property
    def requires(self) -> Sequence[str]:
        self._opened()
        grids = (node.array.grid for node in self._nodes.values() if node.array is not None)
        codecs = {str(codec["name"]) for grid in grids if grid for codec in grid.codecs}
        return ("pcodec",) if "numcodecs.pcodec" in codecs else ()

    def describe(self, name: str) -> str:
        self.spec(name)
        return describe(array_at(self._nodes[self._paths[name]]))

    # -- whether it is sound -------------------------------------------------------------------

    @classmethod
    def examine(cls, path: str) -> Examination:
        return upkeep.examine(path, cls._open_checked)

    @classmethod
    def add_checksums(cls, path: str) -> int:
        upkeep.check_changeable(path)
        return super().add_checksums(path)

    @classmethod
    def repair(cls, path: str) -> Sequence[str]:
        return upkeep.repair(path)

    def close(self) -> None:
        self._closed = True
        self._cache.clear()
        self._files.close()
