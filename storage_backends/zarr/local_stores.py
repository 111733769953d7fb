"""Stores through which zarr reads and writes a local directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Self

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, WrapperStore

from storage_backends.directory.recorder import Recorder
from storage_backends.zarr.chunks.files import LocalFiles
from storage_backends.zarr.claims import BoundedStore, bounded


class MappedStore(WrapperStore[BoundedStore]):
    """A read-only directory; its mapped files stay readable after they were replaced or removed."""

    def __init__(self, store: BoundedStore, files: LocalFiles) -> None:
        super().__init__(store)
        self._files = files

    def _with_store(self, store: BoundedStore) -> Self:
        return type(self)(store, self._files)

    async def _ensure_open(self) -> None:
        """Skip the check of the directory, as mapped files outlive its removal."""

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        mapped = self._files.mapped(key)
        if mapped is not None:
            part = mapped[_slice(byte_range, len(mapped))]
            return bounded(f"{self._files.root}/{key}", prototype.buffer.from_array_like(part))
        found = None
        with contextlib.suppress(FileNotFoundError):
            found = await self._store.get(key, prototype, byte_range)
        # Check after reading: the archive may have been replaced in between.
        self._files.check_current()
        return found

    async def exists(self, key: str) -> bool:
        return self._files.mapped(key) is not None or await self._store.exists(key)


def _slice(wanted: ByteRequest | None, size: int) -> slice:
    if isinstance(wanted, RangeByteRequest):
        return slice(wanted.start, wanted.end)
    if isinstance(wanted, OffsetByteRequest):
        return slice(wanted.offset, size)
    if isinstance(wanted, SuffixByteRequest):
        return slice(max(0, size - wanted.suffix), size)
    return slice(0, size)


class RecordingStore(WrapperStore[LocalStore]):
    """A directory that records the checksum of each file written by zarr and anndata.

    Files of metadata are so small that reading and writing them takes less than handing them to
    another thread, as ``LocalStore`` does.
    """

    def __init__(self, store: LocalStore, recorder: Recorder) -> None:
        super().__init__(store)
        self._recorder = recorder

    def _with_store(self, store: LocalStore) -> Self:
        return type(self)(store, self._recorder)

    def _path(self, key: str) -> str:
        return os.path.join(self._recorder.root, key)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        try:
            with open(self._path(key), "rb") as stream:
                data = stream.read()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        return prototype.buffer.from_bytes(data[_slice(byte_range, len(data))])

    async def exists(self, key: str) -> bool:
        return os.path.isfile(self._path(key))

    async def set(self, key: str, value: Buffer) -> None:
        path = self._path(key)
        # A file that exists may be a hard link, whose content must not change.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with self._recorder.create(path) as file:
            file.write(value.as_buffer_like())

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        if not await self.exists(key):
            await self.set(key, value)

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        for key, value in values:
            await self.set(key, value)

    async def delete(self, key: str) -> None:
        await self._store.delete(key)
        self._recorder.forget(key)

    async def delete_dir(self, prefix: str) -> None:
        await self._store.delete_dir(prefix)
        self._recorder.forget(prefix)

    async def clear(self) -> None:
        await self._store.clear()
        self._recorder.forget("")


class CapturingStore(WrapperStore[LocalStore]):
    """A directory that stays unchanged: writes are kept in memory.

    Attributes
    ----------
    files
        Content of written files by key.
    """

    def __init__(self, store: LocalStore) -> None:
        super().__init__(store)
        self.files: dict[str, bytes] = {}

    async def set(self, key: str, value: Buffer) -> None:
        self.files[key] = value.to_bytes()
