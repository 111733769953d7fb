"""Writing Zarr archives: arrays are compressed on arrival, AnnData metadata is added at commit."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.sync import sync
from zarr.storage import LocalStore

from storage_backends.anndata_format.names import encoding
from storage_backends.base import INDEX
from storage_backends.capabilities import Sparse
from storage_backends.directory.writer import DirectoryWriter
from storage_backends.errors import BackendOptionError, refused_write
from storage_backends.zarr import detection, elements, gene_order, layout
from storage_backends.zarr.chunks.sizes import encoded_bytes
from storage_backends.zarr.chunks.writing import ArrayBuilder
from storage_backends.zarr.codecs.profiles import DEFAULT_PROFILE, DRAFT, PROFILES, Profile
from storage_backends.zarr.layout import MATRIX_PARTS
from storage_backends.zarr.local_stores import RecordingStore
from storage_backends.zarr.repeats import Compression, Samples
from storage_backends.zarr.tables import writing
from storage_backends.zarr.tables.genes import GeneTables, write_order

if TYPE_CHECKING:
    import pyarrow as pa


class ZarrWriter(DirectoryWriter):
    """Writes an archive as a Zarr v3 store that is an AnnData.

    Var tables and elements are kept in memory until the commit, which may reorder genes.
    """

    keeps_elements = True

    checksums = detection.CHECKSUMS

    def __init__(
        self, path: str, *, replace: bool = False, compression: str = DEFAULT_PROFILE
    ) -> None:
        profile = _profile(compression)
        if "://" in path:
            raise BackendOptionError(
                f"{path}: archives are written to local paths only; write it locally, then copy it"
            )
        super().__init__(path, replace=replace)
        self._compression = compression
        self._profile = profile
        self._arrays: dict[str, ArrayBuilder] = {}
        self._sparse: dict[str, Sparse] = {}
        self._genes = GeneTables()
        self._elements: dict[str, Any] = {}
        #: Whether X and layers beside raw/X have the order of its genes.
        self._follows = False
        #: Arrays of uint64 that are stored as int64, which has the same bits.
        self._unsigned: set[str] = set()

    @classmethod
    def encoded_bytes(
        cls,
        rows: Mapping[str, NDArray[Any]],
        *,
        n_vars: int,
        compression: str = DEFAULT_PROFILE,
        **options: Any,
    ) -> Mapping[str, int]:
        """Bytes that rows of matrices take with a profile, by array."""
        profile = _profile(compression)
        if profile.by_detection:
            rows = gene_order.reordered(rows, n_vars)
        found = Samples.of(profile, rows).encoded_bytes()
        no_ends = np.empty(0, np.int64)
        offsets = {name: rows[name] for name in rows if name not in found}
        sizes = {n: encoded_bytes(n, values, profile, no_ends) for n, values in offsets.items()}
        return found | sizes

    def _begin(self) -> None:
        with layout.ignore_zarr_warnings():
            recording = RecordingStore(LocalStore(self.directory), self.recorder)
            self._root = zarr.create_group(recording, zarr_format=3)

    def append(self, name: str, values: NDArray[Any]) -> None:
        values = self._checked(name, values)
        if self._is_part(name, "indices", "indptr") and values.dtype == np.uint64:
            # scipy, and so AnnData, does not support sparse matrices with uint64 indices.
            self._unsigned.add(name)
            values = values.view(np.int64)
        with refused_write(self.path):
            if name not in self._arrays:
                draft = self._profile.by_detection and self._is_draft(name)
                profile = DRAFT if draft else self._profile
                self._arrays[name] = self._builder(name, values, profile)
            self._arrays[name].append(values)

    def end_rows(self, prefix: str, ends: NDArray[np.int64]) -> None:
        for part in ("data", "indices"):
            with refused_write(self.path):
                self._arrays[prefix + part].end_rows(ends)

    def _is_part(self, name: str, *parts: str) -> bool:
        """Whether an array is one of the given parts of a sparse matrix, not a dense array."""
        holder, _, part = name.rpartition("/")
        is_sparse = not holder or holder.startswith("graphs/") or holder in self._sparse
        return is_sparse and part in parts

    def _is_draft(self, name: str) -> bool:
        """Whether an array belongs to a sparse matrix whose genes may be reordered."""
        is_part = self._is_part(name, "data", "indices")
        return is_part and ("/" not in name or name.startswith(("X/", "layers/")))

    def _builder(self, name: str, like: NDArray[Any], profile: Profile) -> ArrayBuilder:
        path = layout.array_path(name)
        if profile is DRAFT:
            path += ".draft"
        return ArrayBuilder(self.recorder, path, name, like, profile)

    def write_table(self, name: str, table: pa.Table | pa.RecordBatchReader) -> None:
        self._check_table(name, table.schema)
        if name != "obs":
            self.table_rows[name] = self._genes.add(name, table)
            return
        with refused_write(self.path), layout.ignore_zarr_warnings():
            self.table_rows[name] = writing.write(self._root, name, table)

    def write_sparse(self, name: str, sparse: Sparse) -> None:
        _ = self.directory
        layout.element_path(name)
        self._sparse[name] = sparse

    def write_element(self, name: str, value: Any) -> None:
        _ = self.directory
        layout.element_path(name)
        checked = elements.check(f"{self.path}: {name}", value)
        # Elements aligned with genes are encoded once the order of genes is known.
        self._elements[name] = value if name.startswith(gene_order.ALIGNED) else checked

    def _complete(self, attrs: Mapping[str, Any]) -> None:
        n_obs = self.specs["indptr"].length - 1
        with refused_write(self.path), layout.ignore_zarr_warnings():
            for builder in self._arrays.values():
                builder.close()
            order = self._order_genes(attrs)
            self._place_arrays(attrs, n_obs)
            var_path = "raw/var" if _element(attrs) == "raw/X" else "var"
            self._genes.write(self._root, var_path, attrs["blocks"], order)
            self._write_elements(_element(attrs), order)
            if order is not None and self._follows:
                write_order(self._root, "var", order)
            self._write_root(attrs, n_obs, reordered=order is not None)
            zarr.consolidate_metadata(self._root.store)

    def _order_genes(self, attrs: Mapping[str, Any]) -> NDArray[np.int64] | None:
        """Replace drafts by final arrays, with genes by decreasing detection rate if possible.

        Returns
        -------
        The original position of each gene; None if the order is unchanged.
        """
        if not self._profile.by_detection:
            return None
        names = [name for name in self._arrays if self._is_draft(name)]
        prefixes = [n.removesuffix("indices") for n in names if self._is_part(n, "indices")]
        drafts = {
            prefix: gene_order.Rows(*(self._arrays[prefix + part] for part in MATRIX_PARTS))
            for prefix in prefixes
        }
        element, followers, order = _element(attrs), self._followers(attrs, prefixes), None
        if followers is not None:
            order = gene_order.by_detection(drafts[""], attrs["blocks"][0]["n_vars"])
        compression = Compression(
            self.recorder,
            self._profile,
            lambda name: (layout.array_path(name), layout.element_path(_placed(name, element))),
            drafts,
            order,
            ["", *(followers or ())],
        )
        self._arrays |= compression.run()
        if order is not None:
            self._follows = element == "raw/X" and bool(followers)
        return order

    def _followers(self, attrs: Mapping[str, Any], prefixes: list[str]) -> list[str] | None:
        """Prefixes of the matrices that follow the order of genes; None if it cannot be changed."""
        if len(attrs["blocks"]) > 1 or attrs.get("sorted") is not True:
            return None
        names = (*self._arrays, *self._elements)
        by_rows = [p for p in prefixes if p and self._sparse[p.rstrip("/")].format == "csr"]
        all_follow = gene_order.can_follow(names, by_rows)
        if _element(attrs) == "X":
            return by_rows if all_follow else None
        if _element(attrs) != "raw/X":
            return None
        widths = [self._sparse[prefix.rstrip("/")].shape[1] for prefix in by_rows]
        var, raw_var = self._elements.get("var"), self._genes.by_name["var/0"]
        has_genes = var is not None and gene_order.has_genes(var, raw_var, widths)
        return by_rows if all_follow and has_genes else []

    def _place_arrays(self, attrs: Mapping[str, Any], n_obs: int) -> None:
        """Move the matrix to its element and write metadata of arrays and sparse matrices."""
        element = _element(attrs)
        n_vars = max(block["n_vars"] for block in attrs["blocks"])
        for name, builder in self._arrays.items():
            if name in MATRIX_PARTS:
                builder.move(_placed(name, element))
            builder.write_metadata(self._root)
        self.recorder.remove(os.path.join(self.directory, layout.MATRIX))
        sparse = {element: Sparse("csr", (n_obs, n_vars))}
        for name in self._arrays:
            if name.startswith("graphs/"):
                sparse[name.rpartition("/")[0]] = Sparse("csr", (n_obs, n_obs))
        for name, matrix in (sparse | self._sparse).items():
            group = self._root.require_group(layout.element_path(name))
            group.attrs.update(encoding(f"{matrix.format}_matrix", shape=list(matrix.shape)))

    def _write_elements(self, element: str, order: NDArray[np.int64] | None) -> None:
        """Write elements, in place of those of a store that grows, with genes in their order."""
        aligned = gene_order.aligned(element, follows=self._follows)
        for name, value in self._elements.items():
            path = layout.element_path(name)
            if path in self._root:
                del self._root[path]
            if order is not None and name.startswith(aligned):
                value = gene_order.permute(name, value, order)
            elements.write(self._root, path, value)

    def _write_root(self, attrs: Mapping[str, Any], n_obs: int, *, reordered: bool) -> None:
        has_obs, is_anndata = "obs" in self.table_rows, self._genes.are_shared(attrs["blocks"])
        if not has_obs:
            writing.write(self._root, "obs", numbered(n_obs))
        attribute: dict[str, Any] = {
            "format": layout.FORMAT,
            "compression": self._compression,
            "obs": has_obs,
            "reordered": reordered,
            **({"var_reordered": True} if self._follows else {}),
            **({"shared_var": True} if len(self._genes.by_name) > 1 and is_anndata else {}),
            **({"unsigned": sorted(self._unsigned)} if self._unsigned else {}),
            "attrs": {**attrs, **({"sorted": False} if reordered else {})},
        }
        self._root.attrs.update({layout.ATTRIBUTE: attribute})
        if not is_anndata:
            return
        for name in layout.MAPPINGS:
            group = self._root.require_group(name)
            if "encoding-type" not in group.attrs:
                group.attrs.update(encoding("dict"))
        if "raw" in self._root:
            self._root["raw"].attrs.update(encoding("raw"))
        self._root.attrs.update(encoding("anndata"))

    def _close(self) -> None:
        for builder in self._arrays.values():
            builder.abort()
        sync(_settled())


async def _settled() -> None:
    """Wait for pending writes: if one fails, zarr leaves concurrent ones running."""
    if tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(tasks, timeout=10)


def _profile(compression: str) -> Profile:
    """The profile of a name; raise BackendOptionError if there is none."""
    if compression not in PROFILES:
        raise BackendOptionError(
            f"there is no compression {compression!r}; choose one of: {', '.join(PROFILES)}"
        )
    return PROFILES[compression]


def _placed(name: str, element: str) -> str:
    """Path of an array of a matrix in the finished store, by its name."""
    return f"{element}/{name}" if name in MATRIX_PARTS else name


def _element(attrs: Mapping[str, Any]) -> str:
    """Path of the AnnData element that holds the matrix."""
    return str(attrs.get("element", "X"))


def numbered(n: int, first: int = 0) -> pa.RecordBatchReader:
    """A table with only an index, which numbers the rows from `first` to `n`."""
    import pyarrow as pa

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(first, n, 1 << 16):
            names = [str(i) for i in range(start, min(start + (1 << 16), n))]
            yield pa.record_batch({INDEX: pa.array(names, pa.large_string())})

    schema = pa.schema([pa.field(INDEX, pa.large_string())])
    return pa.RecordBatchReader.from_batches(schema, batches())
