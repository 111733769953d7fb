"""Remote Zarr stores: object stores, web servers and other URLs that obstore or fsspec support.

Requests that fail or time out are retried.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import ObjectStore, WrapperStore

from storage_backends.backend import CacheOptions
from storage_backends.compute.traffic import TRAFFIC
from storage_backends.errors import (
    ArchiveFormatError,
    ArchiveNotFoundError,
    BackendOptionError,
    MissingCodecError,
    RefusedError,
    RemoteError,
    ScdlError,
    one_line,
)
from storage_backends.zarr.chunks.page_cache import PageCache
from storage_backends.zarr.chunks.remote_files import CACHED_PAGE_BYTES, RemoteFiles
from storage_backends.zarr.claims import bounded
from storage_backends.zarr.detection import CHECKSUMS, OBSTORE

_T = TypeVar("_T")

#: Attempts per request, its read timeout, and the first pause between attempts.
ATTEMPTS = 6
TIMEOUT_SECONDS = 30.0
PAUSE_SECONDS = 0.2
#: Timeout of a whole request, in read timeouts: large responses may arrive slowly.
_WHOLE_REQUEST = 4

#: Errors for absent files, and errors that are not retried; by name, as obstore is optional.
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_REFUSALS = (
    "PermissionError",
    "NotImplementedError",
    "PermissionDeniedError",
    "UnauthenticatedError",
    "NotSupportedError",
    "InvalidPathError",
    "UnknownConfigurationKeyError",
)


def open_group(url: str, cache: CacheOptions | None = None) -> tuple[zarr.Group, RemoteFiles]:
    """The root of a store, and its files.

    Parameters
    ----------
    cache
        Local directory in which to cache downloaded data; None: do not cache.

    Raises
    ------
    ArchiveNotFoundError
        There is no Zarr group.
    RemoteError
        The store does not answer.
    """
    _require_same_process(url)
    store = PatientStore(_store(url), url)
    try:
        try:
            # One format at a time: many servers reject requests for files that do not exist.
            group = zarr.open_group(store, mode="r", zarr_format=3)
        except FileNotFoundError:
            group = zarr.open_group(store, mode="r", zarr_format=2)
    except FileNotFoundError as error:
        raise ArchiveNotFoundError(f"{url}: there is no Zarr store here") from error
    except ScdlError:
        raise
    except Exception as error:
        raise ArchiveFormatError(f"{url}: zarr cannot read it: {one_line(error)}") from error
    pages = _page_cache(store, cache) if cache else None
    return group, RemoteFiles(store, url, pages, store.read if store.reads_in_threads else None)


def _page_cache(store: PatientStore, options: CacheOptions) -> PageCache:
    """The cache of an archive, which its checksums identify."""
    found = sync(store.get(CHECKSUMS))
    if found is None:
        raise BackendOptionError(
            f"{store.url}: cache_dir= needs an archive with checksums, which detect changes; "
            "add them to a local copy with `scdl verify --add-checksums`, or omit cache_dir="
        )
    identity = store.url.encode() + found.to_bytes()
    return PageCache(options.directory, identity, options.megabytes, CACHED_PAGE_BYTES)


@cache
def _process() -> int:
    """Identifier of the process that first opened a remote store."""
    return os.getpid()


def _require_same_process(url: str) -> None:
    # A forked process lacks the threads of obstore and would hang.
    if _process() != os.getpid():
        raise RemoteError(
            f"{url}: a process that was forked after a remote store was opened cannot read remote "
            "stores; start processes by spawn or forkserver (for a DataLoader: "
            'multiprocessing_context="forkserver")'
        )


def _store(url: str) -> Store:
    scheme = url.partition("://")[0]
    try:
        if scheme in OBSTORE:
            return _object_store(url)
        from zarr.storage import FsspecStore

        return FsspecStore.from_url(url, read_only=True)
    except ImportError as error:
        raise MissingCodecError(
            f"{url}: {one_line(error)}; install the package for this scheme: pip install obstore, "
            "or its fsspec filesystem"
        ) from error
    except (ValueError, OSError) as error:
        raise RemoteError(f"{url}: {_reason(error)}") from error


def _object_store(url: str) -> Store:
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    try:
        store = from_url(
            url,
            # An explicit http:// endpoint is allowed.
            client_options={
                "read_timeout": timedelta(seconds=TIMEOUT_SECONDS),
                "timeout": timedelta(seconds=TIMEOUT_SECONDS * _WHOLE_REQUEST),
                "allow_http": True,
            },
            retry_config={"max_retries": 0},
        )
    except BaseError as error:
        raise RemoteError(f"{url}: {_reason(error)}") from error
    return ObjectStore(store, read_only=True)


def _pause(attempt: int) -> float:
    """Seconds to wait before an attempt: longer each time."""
    # Jitter, so that processes that failed together do not retry in step.
    return PAUSE_SECONDS * 2.0 ** (attempt - 1) * random.uniform(0.5, 1.5)


def _reason(error: BaseException) -> str:
    """The message of an error, without debugging details."""
    first = str(error).partition("\n")[0].partition("<?xml")[0]
    return first.strip(" :") or type(error).__name__


def _length(byte_range: ByteRequest | None) -> int:
    """Bytes that a request asks for, as far as they are known."""
    match byte_range:
        case RangeByteRequest(start, end):
            return end - start
        case SuffixByteRequest(suffix):
            return suffix
    return 0


class PatientStore(WrapperStore[Store]):
    """A store whose requests are repeated, with growing pauses, before they fail."""

    def __init__(self, store: Store, url: str = "") -> None:
        super().__init__(store)
        self.url = url

    def _with_store(self, store: Store) -> PatientStore:
        return type(self)(store, self.url)

    async def patiently(
        self, key: str, request: Callable[[], Awaitable[_T]], n_bytes: int = 0
    ) -> _T:
        """Await a request, for `n_bytes` as far as they are known, and retry it on failure.

        Raises
        ------
        RefusedError
            The store refused the request, which is not retried.
        RemoteError
            It failed every time.
        """
        _require_same_process(self.url)
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(_pause(attempt))
            try:
                with TRAFFIC.request(n_bytes):
                    return await asyncio.wait_for(request(), TIMEOUT_SECONDS * _WHOLE_REQUEST)
            except _ABSENT:
                raise
            except Exception as error:  # noqa: BLE001 - raised after the last attempt
                failure = self._retried(key, error)
        raise self._given_up(key, failure) from failure

    def _retried(self, key: str, error: Exception) -> Exception:
        """An error after which the request is repeated; RefusedError after others."""
        if type(error).__name__ in _REFUSALS:
            raise RefusedError(f"{self.url}: {key} could not be read: {_reason(error)}") from error
        return error

    def _given_up(self, key: str, failure: Exception) -> RemoteError:
        return RemoteError(
            f"{self.url}: {key} could not be read in {ATTEMPTS} attempts; the last error "
            f"was: {_reason(failure)}"
        )

    @property
    def reads_in_threads(self) -> bool:
        """Whether there is a `read`: obstore has functions that wait."""
        return isinstance(self._store, ObjectStore)

    def read(self, key: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes ``[start, stop)`` of a file, fewer at its end; none of a file that is absent.

        Waits for them, which many threads can do with half the CPU time of as many coroutines; as
        patient as :meth:`patiently`.
        """
        _require_same_process(self.url)
        store: Any = cast("ObjectStore[Any]", self._store).store
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(_pause(attempt))
            try:
                with TRAFFIC.request(stop - start):
                    found = store.get_range(key, start=start, end=stop)
            except _ABSENT:
                return np.empty(0, np.uint8)
            except Exception as error:  # noqa: BLE001 - raised after the last attempt
                failure = self._retried(key, error)
            else:
                TRAFFIC.receive(len(found))
                return np.frombuffer(found, np.uint8)
        raise self._given_up(key, failure) from failure

    @property
    def supports_listing(self) -> bool:
        # Web servers provide no machine-readable listing.
        return self._store.supports_listing and not self.url.startswith("http")

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        prototype = prototype or default_buffer_prototype()
        found = await self.patiently(
            key, lambda: self._store.get(key, prototype, byte_range), _length(byte_range)
        )
        TRAFFIC.receive(0 if found is None else len(found))
        return bounded(f"{self.url}: {key}", found)

    async def exists(self, key: str) -> bool:
        return await self.patiently(key, lambda: self._store.exists(key))

    async def getsize(self, key: str) -> int:
        return await self.patiently(key, lambda: self._store.getsize(key))

    async def getsize_prefix(self, prefix: str) -> int:
        return await self.patiently(prefix, lambda: self._store.getsize_prefix(prefix))

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        async def names() -> list[str]:
            return [name async for name in self._store.list_dir(prefix)]

        for name in await self.patiently(prefix, names):
            yield name
