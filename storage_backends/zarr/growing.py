"""Adding cells to a Zarr archive: full shards stay, others are written anew.

Genes keep their stored order, and arrays their codecs. Archives with reordered genes get new cells
as a draft first, as their rows are sorted once their offsets are known.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore

from storage_backends.directory.growing import GrowingWriter
from storage_backends.errors import OutputError, refused_write
from storage_backends.zarr import detection, gene_order, layout
from storage_backends.zarr.chunks.writing import ArrayBuilder
from storage_backends.zarr.codecs.profiles import DRAFT, Profile
from storage_backends.zarr.local_stores import RecordingStore
from storage_backends.zarr.repeated import repetition_of
from storage_backends.zarr.tables import writing
from storage_backends.zarr.writer import ZarrWriter, numbered

if TYPE_CHECKING:
    import pyarrow as pa

    from storage_backends.zarr.store import ZarrStore


class ZarrGrower(GrowingWriter, ZarrWriter):
    """Adds cells to an archive that is a Zarr store."""

    checksums = detection.CHECKSUMS
    _store: ZarrStore

    def _resume(self) -> None:
        super()._resume()
        self._group = self._store.group
        self._unsigned = {*self._group.scdl_attrs.get("unsigned", ())}
        self._order = self._group.order
        self._sparse = self._group.sparse
        #: Offsets of the new cells alone, by prefix, of matrices whose genes are reordered.
        self._local: dict[str, ArrayBuilder] = {}
        with layout.ignore_zarr_warnings():
            recording = RecordingStore(LocalStore(self.directory), self.recorder)
            self._root = zarr.open_group(
                recording, mode="r+", zarr_format=3, use_consolidated=False
            )

    # -- arrays ------------------------------------------------------------------------------

    def append(self, name: str, values: NDArray[Any]) -> None:
        _ = self.directory
        if name not in self._group.paths:
            raise OutputError(f"{self.path}: the archive has no {name} to append to")
        if name not in self._arrays:
            self._widen_offsets(name, values.dtype)
        prefix = name.removesuffix("indptr")
        if prefix != name and self._is_reordered(prefix):
            self._append_local(prefix, values)
        super().append(name, values)

    def restart(
        self, name: str, dtype: np.dtype[Any], item_shape: tuple[int, ...] | None = None
    ) -> None:
        self._restarted(name, dtype, item_shape)
        self._unsigned.discard(name)
        self.recorder.remove(os.path.join(self.directory, self._group.paths[name], "c"))
        self.append(name, np.empty((0, *self.specs[name].item_shape), dtype))

    def write_element(self, name: str, value: Any) -> None:
        if name not in self._store.elements:
            raise OutputError(f"{self.path}: the archive has no element {name} to write anew")
        super().write_element(name, value)

    def _is_reordered(self, prefix: str) -> bool:
        """Whether the genes of a matrix are stored in another order, as those of the archive."""
        is_reordered = not prefix or self._group.is_reordered(prefix.rstrip("/"))
        return self._order is not None and is_reordered

    def _append_local(self, prefix: str, offsets: NDArray[Any]) -> None:
        if prefix not in self._local:
            like = np.zeros(1, np.int64)
            self._local[prefix] = super()._builder(f"{prefix}indptr", like, DRAFT)
            self._local[prefix].append(like)
        n_before = self._store.spec(f"{prefix}data").length
        self._local[prefix].append(offsets.astype(np.int64) - n_before)

    def _is_draft(self, name: str) -> bool:
        holder, slash, part = name.rpartition("/")
        return part in ("data", "indices") and self._is_reordered(holder + slash)

    def _builder(self, name: str, like: NDArray[Any], profile: Profile) -> ArrayBuilder:
        if profile is DRAFT or name in self._anew:
            return super()._builder(name, like, profile)
        path = self._group.paths[name]
        node = self._group.nodes[path]
        stored = self._group.stored(name)
        assert node.array is not None
        assert node.array.grid is not None
        profile = profile.resuming(node.array.grid.codecs)
        builder = ArrayBuilder(self.recorder, path, name, like[:0], profile)
        builder.resume(stored, node.array.grid.codecs)
        return builder

    def _complete(self, attrs: Mapping[str, Any]) -> None:
        n_obs = self.specs["indptr"].length - 1
        with refused_write(self.path), layout.ignore_zarr_warnings():
            self._separate()
            if self._order is not None:
                self._join_drafts(self._order)
            for builder in self._arrays.values():
                builder.close()
                self.recorder.unlink(f"{builder.path}/zarr.json")
                builder.write_metadata(self._root)
            self._resize_matrices(n_obs)
            self._follows = self._group.follows
            self._write_elements(self._group.matrix, self._order)
            if "obs" not in self.table_rows:
                self._extend("obs", numbered(n_obs, self._store.spec("indptr").length - 1))
            self._update_root(attrs)
            zarr.consolidate_metadata(self._root.store)

    def _separate(self) -> None:
        """Store arrays that repeat others, which may have grown without them, on their own."""
        for name, path in self._group.paths.items():
            if repetition_of(self._group.nodes[path]) is not None:
                holder, slash, _ = name.rpartition("/")
                for part in (f"{holder}{slash}data", f"{holder}{slash}indices"):
                    if part not in self._arrays:
                        self.append(part, np.empty(0, self._store.spec(part).dtype))

    def _join_drafts(self, order: NDArray[np.int64]) -> None:
        """Append new rows to the matrix and fields, with their order of genes."""
        prefixes = [n.removesuffix("data") for n in self._arrays if n.endswith("data")]
        for prefix in filter(self._is_reordered, prefixes):
            drafts = [self._arrays[prefix + name] for name in ("data", "indices")]
            if prefix not in self._local:
                self._append_local(prefix, np.empty(0, np.int64))
            local = self._local[prefix]
            for builder in (*drafts, local):
                builder.close()
            finals = [self._builder(draft.name, draft.empty(), self._profile) for draft in drafts]
            rows = gene_order.Rows(drafts[0], drafts[1], local)
            gene_order.rewrite(rows, finals[0], finals[1], order)
            for draft, final in zip(drafts, finals, strict=True):
                self._arrays[final.name] = final
                draft.remove()
            local.remove()
        self.recorder.remove(os.path.join(self.directory, layout.MATRIX))

    def _resize_matrices(self, n_obs: int) -> None:
        """Update the shapes of sparse matrices, all of which have a row per cell."""
        for path, sparse in self._group.sparse.items():
            n_columns = n_obs if path.startswith("obsp/") else sparse.shape[1]
            self._root[path].attrs.update({"shape": [n_obs, n_columns]})

    def _update_root(self, attrs: Mapping[str, Any]) -> None:
        before = self._group.scdl_attrs
        is_sorted = {} if self._order is None else {"sorted": False}
        attribute = {
            **before,
            "obs": "obs" in self.table_rows,
            **({"unsigned": sorted(self._unsigned)} if self._unsigned else {}),
            "attrs": {**attrs, **is_sorted},
        }
        self._root.attrs.update({layout.ATTRIBUTE: attribute})

    # -- tables ------------------------------------------------------------------------------

    def write_table(self, name: str, table: pa.Table | pa.RecordBatchReader) -> None:
        if name != "obs":
            raise OutputError(f"{self.path}: the table {name} of the archive cannot be replaced")
        self.table_rows.pop(name, None)
        with refused_write(self.path), layout.ignore_zarr_warnings():
            del self._root[name]
        super().write_table(name, table)

    def extend_table(self, name: str, table: pa.RecordBatchReader) -> None:
        if name not in self.table_rows or name != "obs":
            raise OutputError(f"{self.path}: the archive has no table {name} to extend")
        if not writing.can_extend(self._root, name):
            # A short table has short chunks.
            self.write_table(name, self._joined(name, 0, table))
            return
        with refused_write(self.path), layout.ignore_zarr_warnings():
            self.table_rows[name] = self._extend(name, table)

    def _extend(self, name: str, table: pa.RecordBatchReader) -> int:
        if writing.can_extend(self._root, name):
            return writing.extend(self._root, name, table)
        del self._root[name]
        return writing.write(self._root, name, numbered(self.specs["indptr"].length - 1))
