"""The contents of a Zarr group, by their names in the storage interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import zarr
from numpy.typing import NDArray

from storage_backends.base import ArraySpec
from storage_backends.capabilities import Sparse
from storage_backends.compute.caching import cached_property
from storage_backends.compute.claims import check_claim
from storage_backends.errors import ArchiveFormatError
from storage_backends.zarr import extents, layout
from storage_backends.zarr.chunks.files import Files
from storage_backends.zarr.chunks.reading import ZarrArray
from storage_backends.zarr.claims import check_array
from storage_backends.zarr.detection import CHECKSUMS
from storage_backends.zarr.nodes import Node, array_at, array_of
from storage_backends.zarr.opening import Nodes, scdl_attribute, unreadable
from storage_backends.zarr.plan import Bound
from storage_backends.zarr.repeated import Repeated, repeated

if TYPE_CHECKING:
    from storage_backends.zarr.tables.reading import ZarrTable


class GroupContents:
    """Arrays, sparse matrices and tables of a Zarr group.

    Parameters
    ----------
    path
        Path of the store; start of error messages.
    found
        All nodes of the group.
    files
        Files to read chunks from.

    Attributes
    ----------
    scdl_attrs
        The scdl attribute of an archive; empty for other AnnData.
    nodes
        Every node by path.
    sparse
        Sparse matrices by path.
    matrix
        Path of the element that holds the matrix.
    is_archive
        Whether the matrix is, or should be, stored by rows.
    specs, paths
        Specifications and paths of the arrays, by name in the storage interface.

    Raises
    ------
    ArchiveFormatError
        The group is neither an archive nor an AnnData, or is damaged.
    """

    def __init__(self, path: str, found: Nodes, files: Files) -> None:
        self.path, self._files = path, files
        self._stored = found.stored
        # An scdl archive that lost its attributes must not pass for an early release of anndata.
        may_be_old = not found.attrs and files.size(CHECKSUMS) is None
        self.sparse: dict[str, Sparse] = {}
        self.paths: dict[str, str] = {}
        self._arrays: dict[str, ZarrArray] = {}
        with unreadable(path):
            self.scdl_attrs: Mapping[str, Any] = scdl_attribute(path, found, may_be_old=may_be_old)
            self.nodes = found.by_path if self.scdl_attrs else layout.moved(found.by_path)
            # If an AnnData has both, conversions choose raw/X, too.
            self.matrix = "raw/X" if "raw/X" in self.nodes else "X"
            if self.scdl_attrs:
                self.matrix = str(self.scdl_attrs["attrs"].get("element", "X"))
                for block in self.scdl_attrs["attrs"]["blocks"]:
                    check_claim(f"{path}: genes", (block["n_vars"],), 8, self._stored)
            #: Whether X and layers beside raw/X have the order of its genes.
            self.follows = self.matrix == "raw/X" and bool(self.scdl_attrs.get("var_reordered"))
            self.var_path = "raw/var" if self.matrix == "raw/X" else "var"
            exposed = self._find_sparse()
            matrix = self.sparse.get(self.matrix)
            by_rows = matrix is not None and matrix.format == "csr"
            self.specs, lengths = self._find_arrays(exposed, by_rows=by_rows)
            self.is_archive = by_rows or bool(self.scdl_attrs)
            if self.is_archive:
                if not by_rows or not self.specs.keys() >= set(layout.MATRIX_PARTS):
                    self._refuse_matrix()
                extents.check_lengths(path, self.matrix, self.sparse, lengths, exposed)
            self._bound_ids()
            self._find_tables()

    def _find_sparse(self) -> set[str]:
        """Find sparse matrices; returns the paths of all elements that may become arrays."""
        exposed = set()
        for path, node in self.nodes.items():
            # Arrays of types that only zarr knows are checked again when zarr opens them.
            if node.array is not None:
                check_array(f"{self.path}: {path}", node.array, self._stored)
            if path not in ("X", "raw/X") and path.rpartition("/")[0] not in layout.ARRAY_HOLDERS:
                continue
            exposed.add(path)
            if self.scdl_attrs and "encoding-type" not in node.attrs:
                raise ArchiveFormatError(f"{self.path}: {path} has no encoding-type")
            kind = node.attrs.get("encoding-type")
            if kind not in ("csr_matrix", "csc_matrix"):
                continue
            is_numeric = True
            for part in layout.MATRIX_PARTS:
                there = self.nodes.get(f"{path}/{part}")
                if there is None and self.scdl_attrs:
                    raise ArchiveFormatError(f"{self.path}: a part of {path} is missing")
                is_numeric &= there is not None and there.spec is not None
            # Other matrices, such as boolean ones, are read as a whole.
            if is_numeric or (self.scdl_attrs and path == self.matrix):
                try:
                    self.sparse[path] = Sparse(kind[:3], self._shape(path, node))
                except ArchiveFormatError:
                    if self.scdl_attrs or path == self.matrix:
                        raise
                    # Reading the element raises the error.
        return exposed

    def _shape(self, path: str, node: Node) -> tuple[int, int]:
        shape = node.attrs.get("shape")
        if not isinstance(shape, Sequence) or list(map(type, shape)) != [int, int]:
            raise ArchiveFormatError(f"{self.path}: {path} has no valid shape")
        for extent in shape:
            check_claim(f"{self.path}: {path}", (extent,), 8, self._stored)
        return shape[0], shape[1]

    def _find_arrays(
        self, exposed: set[str], *, by_rows: bool
    ) -> tuple[dict[str, ArraySpec], dict[str, int]]:
        """The arrays of numbers of sparse matrices and other exposed elements.

        Returns their specifications by name, and their lengths by path.
        """
        specs, lengths = dict[str, ArraySpec](), dict[str, int]()
        for path, node in self.nodes.items():
            holder, _, part = path.rpartition("/")
            if node.spec is None or not (path in exposed or holder in self.sparse):
                continue
            is_part = by_rows and holder == self.matrix
            name = part if is_part else layout.interface_name(path, self.sparse)
            self.paths[name], specs[name], lengths[path] = path, node.spec, node.spec.length
        return specs, lengths

    def _refuse_matrix(self) -> NoReturn:
        """Raise the error for an archive without a complete matrix stored by rows."""
        found = self.sparse.get(self.matrix)
        if found is None or found.format != "csr":
            there = "a dense array" if self.matrix in self.paths else "nothing"
            there = found.format if found else there
            raise ArchiveFormatError(
                f"{self.path}: expected the matrix {self.matrix} as csr_matrix, found {there}; "
                "convert the store, or its source, with `scdl convert`"
            )
        missing = sorted(set(layout.MATRIX_PARTS).difference(self.specs))
        raise ArchiveFormatError(
            f"{self.path}: {', '.join(missing)} of {self.matrix} is missing, or has a "
            "dtype that archives do not support"
        )

    def _bound_ids(self) -> None:
        """Complete the specifications: ids that are checked when read, and unsigned numbers."""
        ids, reordered = ["indices"], bool(self.scdl_attrs.get("reordered"))
        for path, other in self.sparse.items():
            if other.format == "csr" and self.is_reordered(path):
                ids.append(f"{path}/indices")
        for name in ids if reordered else {"indices"}.intersection(self.specs):
            spec = self.specs[name]
            if reordered and spec.dtype.kind not in "iu":
                raise ArchiveFormatError(
                    f"{self.path}: expected {name} as integers, found {spec.dtype}; convert the "
                    "source again"
                )
            if reordered or spec.dtype.kind == "u":
                below = self.sparse[self.matrix].shape[1] or None
                self.specs[name] = replace(spec, below=below)
        for name in self.scdl_attrs.get("unsigned", ()):
            if name in self.specs and self.specs[name].dtype == np.int64:
                self.specs[name] = replace(self.specs[name], dtype=np.dtype(np.uint64))

    def _find_tables(self) -> None:
        """Set attributes and the paths of tables; derive those of other AnnData from the matrix."""
        self.attrs: Mapping[str, Any] = self.scdl_attrs.get("attrs", {})
        if not self.scdl_attrs:
            if self.matrix in self.sparse:
                n_obs, n_vars = self.sparse[self.matrix].shape
            else:
                n_obs, n_vars = self.frame("obs").num_rows, self.frame(self.var_path).num_rows
            block = {"stop": n_obs, "n_vars": n_vars, "label": None}
            self.attrs = {"blocks": [block], "sorted": False, "matrices": [self.matrix]}
            if self.matrix != "X":
                self.attrs["element"] = self.matrix
        self.table_paths = {"var/0": self.var_path}
        if len(self.attrs["blocks"]) > 1:
            shared = bool(self.scdl_attrs.get("shared_var"))
            names = map("var/{}".format, range(len(self.attrs["blocks"])))
            self.table_paths = {name: layout.block_path(name, shared) for name in names}
        if self.scdl_attrs.get("obs", "obs" in self.nodes):
            self.table_paths["obs"] = "obs"

    def is_reordered(self, path: str) -> bool:
        """Whether an element beside the matrix has its order of genes, if that is another one."""
        beside = self.matrix == "X" or self.follows
        return beside and path != self.matrix and (path == "X" or path.startswith("layers/"))

    def array(self, name: str) -> ZarrArray:
        """The reader of an array, which is created and checked on first use."""
        return self._arrays.get(name) or self._arrays.setdefault(name, self._open_array(name))

    def forget_chunks(self) -> None:
        """Release decoded chunks."""
        # Other threads may still be opening arrays.
        for array in list(self._arrays.values()):
            array.forget()

    def _open_array(self, name: str) -> ZarrArray:
        with unreadable(f"{self.path}: {name}"):
            array, found = self.stored(name), self._repeated(name)
            if found is not None and found.is_same:
                # Decoded chunks are kept once.
                array.key = self.array(found.other).key
            if (below := self.specs[name].below) is not None:
                dtype = np.uint32 if array.reader.framed else array.spec.dtype
                mapping = None if self.order is None else self.order.astype(dtype)
                array.bound = Bound.of(below, mapping)
            array.is_offsets = name.endswith("indptr")
            if name == "indptr" and self.is_archive:
                extents.check_ends(self.path, array, self.specs["data"].length)
        return array

    def stored(self, name: str) -> ZarrArray:
        """A new reader of an array, with the numbers as they are stored."""
        where, node = f"{self.path}: {name}", self.nodes[self.paths[name]]
        found = self._repeated(name)
        if found is None:
            return array_of(where, node, self._files, complete=bool(self.scdl_attrs))
        return found.reader(where, self._files, self.stored(found.other))

    def _repeated(self, name: str) -> Repeated | None:
        return repeated(f"{self.path}: {name}", name, self.paths, self.nodes, self.specs)

    @cached_property
    def order(self) -> NDArray[np.int64] | None:
        """Original position of each stored gene; None if genes are in their original order."""
        path = f"{self.var_path}/{layout.ORDER}"
        if not self.scdl_attrs.get("reordered"):
            return None
        if path not in self.nodes:
            raise ArchiveFormatError(f"{self.path}: {path} is missing; convert the source again")
        with unreadable(f"{self.path}: {path}"), layout.ignore_zarr_warnings():
            order: NDArray[np.int64] = np.asarray(array_at(self.nodes[path])[:])
        n_vars = self.sparse[self.matrix].shape[1]
        if order.shape != (n_vars,) or not np.array_equal(np.sort(order), np.arange(n_vars)):
            raise ArchiveFormatError(
                f"{self.path}: {path} is not a permutation of {n_vars} genes; convert the source "
                "again"
            )
        return order

    def frame(self, path: str) -> ZarrTable:
        from storage_backends.zarr.tables.reading import ZarrTable

        node = self.nodes.get(path)
        # Some writers omit the encoding type.
        default = "dataframe" if node and not self.scdl_attrs and "_index" in node.attrs else None
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
            found += ["uns"] if self.scdl_attrs else layout.leaves(self.nodes, "uns")
        return [path for path in found if path not in taken]
