"""Zarr stores in a directory that take note of what zarr and anndata write to them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from zarr.core.buffer import Buffer
from zarr.storage import LocalStore, WrapperStore

from storage_backends.directory.checksums import Recorder


class RecordingStore(WrapperStore[LocalStore]):
    """What zarr and anndata write through; everything else is the directory's."""

    def __init__(self, store: LocalStore, recorder: Recorder) -> None:
        super().__init__(store)
        self._recorder = recorder

    def _with_store(self, store: LocalStore) -> Self:
        return type(self)(store, self._recorder)

    async def set(self, key: str, value: Buffer) -> None:
        await self._store.set(key, value)
        self._note(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        if not await self._store.exists(key):
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

    def _note(self, key: str, value: Buffer) -> None:
        self._recorder.note(key, memoryview(value.as_buffer_like()).cast("B"))


class CapturingStore(WrapperStore[LocalStore]):
    """A directory in which nothing changes: what is written is kept in memory.

    Attributes
    ----------
    files
        What was written, by key.
    """

    def __init__(self, store: LocalStore) -> None:
        super().__init__(store)
        self.files: dict[str, bytes] = {}

    async def set(self, key: str, value: Buffer) -> None:
        self.files[key] = value.to_bytes()
