"""The contents of a Zarr group, an archive or another AnnData, under the names of the seam."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray

from storage_backends.base import ArraySpec
from storage_backends.capabilities import Sparse
from storage_backends.compute.caching import cached_property
from storage_backends.compute.claims import check_claim
from storage_backends.errors import ArchiveFormatError
from storage_backends.zarr import layout
from storage_backends.zarr.chunks.files import Files
from storage_backends.zarr.chunks.reading import ChunkCache, ZarrArray
from storage_backends.zarr.layout import MATRIX_PARTS
from storage_backends.zarr.nodes import Node, array_at, array_of, is_numeric
from storage_backends.zarr.opening import Nodes, own_attribute, unreadable
from storage_backends.zarr.plan import Bound

if TYPE_CHECKING:
    from storage_backends.zarr.tables.reading import ZarrTable


class GroupContents:
    """Arrays, sparse matrices and tables of a Zarr group.

    Parameters
    ----------
    path
        Path of the store, with which error messages begin.
    found
        All nodes of the group.
    files, cache
        Files to read chunks from, and the cache of decoded chunks.
    stored
        Returns the number of bytes of all files.
    may_be_old
        Whether a group without an encoding type may be of an early release of anndata.

    Attributes
    ----------
    ours
        The attribute of an archive that scdl wrote; empty for other AnnData.
    nodes
        Every node by path.
    sparse
        Sparse matrices by path.
    arrays, paths
        Arrays of the seam, and their paths, by name.

    Raises
    ------
    ArchiveFormatError
        The group is neither an archive nor an AnnData, or is damaged.
    """

    def __init__(
        self,
        path: str,
        found: Nodes,
        files: Files,
        cache: ChunkCache,
        stored: Callable[[], int],
        *,
        may_be_old: bool,
    ) -> None:
        self.path = path
        self._files, self._cache, self._stored = files, cache, stored
        self.ours: Mapping[str, Any] = own_attribute(path, found, may_be_old=may_be_old)
        self.nodes = found.by_path if self.ours else layout.moved(found.by_path)
        self.sparse: dict[str, Sparse] = {}
        self.arrays: dict[str, ZarrArray] = {}
        self.paths: dict[str, str] = {}
        for block in self.ours["attrs"]["blocks"] if self.ours else ():
            check_claim(f"{path}: genes", (block["n_vars"],), 8, stored)
        with unreadable(path):
            self._find_arrays()

    def _find_arrays(self) -> None:
        for path, node in self.nodes.items():
            kind = str(node.attrs.get("encoding-type"))
            if self.ours and "encoding-type" not in node.attrs and self._holds_arrays(path):
                raise ArchiveFormatError(f"{self.path}: {path} does not say what it is")
            if kind in ("csr_matrix", "csc_matrix") and self._holds_arrays(path):
                parts = [self.nodes.get(f"{path}/{part}") for part in MATRIX_PARTS]
                if self.ours and None in parts:
                    raise ArchiveFormatError(f"{self.path}: a part of {path} is missing")
                # Other matrices, such as boolean ones, are read as a whole.
                if (self.ours and path == self.matrix) or all(map(is_numeric, parts)):
                    with contextlib.ExitStack() as stack:
                        if not self.ours and path != self.matrix:
                            # Reading the element raises the error.
                            stack.enter_context(contextlib.suppress(ArchiveFormatError))
                        self.sparse[path] = Sparse(kind[:3], self._shape(path, node))
        for path, node in self.nodes.items():
            holder = path.rpartition("/")[0]
            if (self._holds_arrays(path) or holder in self.sparse) and is_numeric(node):
                name = self._name_of(path)
                self.paths[name] = path
                self.arrays[name] = array_of(
                    f"{self.path}: {name}",
                    node,
                    name,
                    self._files,
                    self._cache,
                    complete=bool(self.ours),
                )
        if self.is_archive:
            self._check_matrix()
        # This must precede the first read, as array specifications are cached then.
        self._bound_ids()
        if self.is_archive:
            self._check_lengths()

    def _bound_ids(self) -> None:
        """Set up the check of gene ids on reading, and their mapping if genes are reordered."""
        if self.order is None:
            array = self.arrays.get("indices")
            if array is not None and array.spec.dtype.kind == "u" and self.matrix in self.sparse:
                array.bound = Bound.of(self.sparse[self.matrix].shape[1])
        else:
            shared = [
                f"{path}/indices"
                for path, matrix in self.sparse.items()
                if path.startswith("layers/") and matrix.format == "csr"
            ]
            for name in ("indices", *(shared if self.matrix == "X" else ())):
                array = self.arrays[name]
                if array.spec.dtype.kind not in "iu":
                    raise ArchiveFormatError(
                        f"{self.path}: expected {name} as integers, found {array.spec.dtype}; "
                        "convert the source again"
                    )
                array.bound = Bound.of(mapping=self.order.astype(array.spec.dtype))

    def _holds_arrays(self, path: str) -> bool:
        """Whether the element at a path is exposed as arrays if its content allows it."""
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
        if holder == self.matrix and self._sparse_format(holder) == "csr":
            return part
        return layout.seam_name(path, self.sparse)

    @cached_property
    def matrix(self) -> str:
        """Path of the element that holds the matrix."""
        if self.ours:
            return str(self.ours["attrs"].get("element", "X"))
        # The same choice as in a conversion.
        return "raw/X" if "raw/X" in self.nodes else "X"

    @property
    def is_archive(self) -> bool:
        return bool(self.ours) or self._sparse_format(self.matrix) == "csr"

    def _sparse_format(self, path: str) -> str | None:
        return self.sparse[path].format if path in self.sparse else None

    def _check_matrix(self) -> None:
        found = self._sparse_format(self.matrix)
        if found != "csr":
            there = "a dense array" if self.matrix in self.arrays else found or "nothing"
            raise ArchiveFormatError(
                f"{self.path}: expected the matrix {self.matrix} as csr_matrix, found {there}; "
                "convert the store, or its source, with `scdl convert`"
            )
        missing = [part for part in MATRIX_PARTS if part not in self.arrays]
        if missing:
            raise ArchiveFormatError(
                f"{self.path}: {', '.join(missing)} of {self.matrix} is missing or holds no "
                "numbers that an archive can have"
            )

    def _check_lengths(self) -> None:
        n_obs = self.specs["indptr"].length - 1
        for path, matrix in self.sparse.items():
            self._check_rows(path, matrix.shape[0], n_obs)
            names = (self._name_of(f"{path}/{part}") for part in MATRIX_PARTS)
            values, ids, offsets = (self.specs[name].length for name in names)
            along = matrix.shape[matrix.format == "csc"]
            if values != ids or offsets != along + 1:
                raise ArchiveFormatError(
                    f"{self.path}: {path} has {matrix.shape[0]} rows and {matrix.shape[1]} "
                    f"columns, but {offsets} offsets, {values} values and {ids} indices"
                )
        for name, path in self.paths.items():
            if self._holds_arrays(path):
                self._check_rows(path, self.specs[name].length, n_obs)

    def _check_rows(self, path: str, found: int, n_obs: int) -> None:
        if found != n_obs:
            raise ArchiveFormatError(
                f"{self.path}: {path} has {found} rows, but {self.matrix} has {n_obs}"
            )

    @cached_property
    def specs(self) -> Mapping[str, ArraySpec]:
        specs = {
            name: replace(array.spec, below=array.bound.below or None)
            for name, array in self.arrays.items()
        }
        for name in self.ours.get("unsigned", ()):
            if name in specs and specs[name].dtype == np.int64:
                specs[name] = replace(specs[name], dtype=np.dtype(np.uint64))
        return MappingProxyType(specs)

    @cached_property
    def attrs(self) -> Mapping[str, Any]:
        if self.ours:
            own: Mapping[str, Any] = self.ours["attrs"]
            return own
        if self.matrix in self.sparse:
            n_obs, n_vars = self.sparse[self.matrix].shape
        else:
            n_obs, n_vars = (self.frame(path).num_rows for path in ("obs", self.var_path))
        block = {"stop": n_obs, "n_vars": n_vars, "label": None}
        attrs = {"blocks": [block], "sorted": False, "matrices": [self.matrix]}
        return attrs | ({"element": self.matrix} if self.matrix != "X" else {})

    @cached_property
    def order(self) -> NDArray[np.int64] | None:
        """Original position of each stored gene; None if genes are in their original order."""
        path = f"{self.var_path}/{layout.ORDER}"
        if not self.ours.get("reordered"):
            return None
        if path not in self.nodes:
            raise ArchiveFormatError(f"{self.path}: {path} is missing; convert the source again")
        with unreadable(f"{self.path}: {path}"):
            order: NDArray[np.int64] = np.asarray(array_at(self.nodes[path])[:])
        n_vars = self.sparse[self.matrix].shape[1]
        if order.shape != (n_vars,) or not np.array_equal(np.sort(order), np.arange(n_vars)):
            raise ArchiveFormatError(
                f"{self.path}: {path} is no order of {n_vars} genes; convert the source again"
            )
        return order

    @property
    def var_path(self) -> str:
        return "raw/var" if self.matrix == "raw/X" else "var"

    @cached_property
    def table_paths(self) -> Mapping[str, str]:
        blocks = self.attrs["blocks"]
        paths = {"var/0": self.var_path}
        if len(blocks) > 1:
            shared = bool(self.ours.get("shared_var"))
            names = [f"var/{i}" for i in range(len(blocks))]
            paths = {name: layout.block_path(name, shared) for name in names}
        if self.ours.get("obs", "obs" in self.nodes):
            paths["obs"] = "obs"
        return paths

    def frame(self, path: str) -> ZarrTable:
        from storage_backends.zarr.tables.reading import ZarrTable

        node = self.nodes.get(path)
        # Some writers omit the encoding type.
        default = "dataframe" if node and not self.ours and "_index" in node.attrs else None
        kind = node.attrs.get("encoding-type", default) if node else None
        group = node.opened() if node and kind == "dataframe" else None
        if not isinstance(group, zarr.Group):
            raise ArchiveFormatError(f"{self.path}: the dataframe {path} is missing")
        return ZarrTable(f"{self.path}: the table {path}", group)

    @cached_property
    def element_paths(self) -> list[str]:
        if len(self.attrs["blocks"]) > 1:
            return []
        taken = {*self.sparse, *self.paths.values(), *self.table_paths.values()}
        holders = (*layout.ARRAY_HOLDERS, "varm", "varp", "raw/varm")
        found = [
            path
            for path in self.nodes
            if path in ("X", "raw/X", "var", "raw/var") or path.rpartition("/")[0] in holders
        ]
        if any(path.startswith("uns/") for path in self.nodes):
            found += ["uns"] if self.ours else layout.leaves(self.nodes, "uns")
        return [path for path in found if path not in taken]
