"""What zarr reads a local store through: files that are held stay what they were."""

from __future__ import annotations

import contextlib
from typing import Self

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from storage_backends.zarr.chunks.shards import LocalFiles
from storage_backends.zarr.claims import BoundedStore, bounded


class HeldStore(WrapperStore[BoundedStore]):
    """A directory, read-only, of which some files are in memory."""

    def __init__(self, store: BoundedStore, files: LocalFiles) -> None:
        super().__init__(store)
        self._files = files

    def _with_store(self, store: BoundedStore) -> Self:
        return type(self)(store, self._files)

    async def _ensure_open(self) -> None:
        """Without looking for the directory: of one that was removed, what is held is there."""

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        held = self._files.held(key)
        if held is not None:
            part = held[_slice(byte_range, len(held))]
            return bounded(f"{self._files.root}/{key}", prototype.buffer.from_array_like(part))
        found = None
        with contextlib.suppress(FileNotFoundError):
            found = await self._store.get(key, prototype, byte_range)
        # Afterwards: what was read is of the archive that stood there then.
        self._files.check_current()
        return found

    async def exists(self, key: str) -> bool:
        return self._files.held(key) is not None or await self._store.exists(key)


def _slice(wanted: ByteRequest | None, size: int) -> slice:
    if isinstance(wanted, RangeByteRequest):
        return slice(wanted.start, wanted.end)
    if isinstance(wanted, OffsetByteRequest):
        return slice(wanted.offset, size)
    if isinstance(wanted, SuffixByteRequest):
        return slice(max(0, size - wanted.suffix), size)
    return slice(0, size)
