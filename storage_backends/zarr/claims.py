"""Checks of Zarr metadata before zarr creates arrays and codecs from it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from storage_backends.compute import claims
from storage_backends.directory import files as archive_files
from storage_backends.errors import ArchiveFormatError
from storage_backends.zarr import guards
from storage_backends.zarr.nodes import ArrayMetadata

#: Suffixes of the keys of metadata files.
_METADATA = ("zarr.json", ".zarray", ".zmetadata")
#: Codecs of zarr and numcodecs that are safe without a size check. Others could be imported from
#: any installed package, and the codec ``pickle`` of numcodecs executes code in the data.
_SAFE = {
    *("adler32", "astype", "bitround", "bytes", "crc32", "crc32c", "delta", "fixedscaleoffset"),
    *("fletcher32", "jenkins_lookup3", "packbits", "pcodec", "quantize", "sharding_indexed"),
    *("scdl.ans", "scdl.of", "scdl.packed", "scdl.same", "shuffle", "transpose"),
}
#: Size of an entry of a shard index in bytes.
_ENTRY_BYTES = 16


class ContainedStore(LocalStore):
    """A directory that refuses files outside of it and metadata that names unsafe codecs."""

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        path = archive_files.file_path(str(self.root), key)
        return self._checked(path, await super().get(key, prototype, byte_range))

    def _checked(self, path: str, data: Buffer | None) -> Buffer | None:
        if data is not None and path.endswith(_METADATA):
            with_bounded_codecs(path, data.to_bytes())
        return data


class BoundedStore(ContainedStore):
    """A contained directory whose chunks are decoded by size-checking codecs."""

    def _checked(self, path: str, data: Buffer | None) -> Buffer | None:
        return bounded(path, data)


def bounded(where: str, data: Buffer | None) -> Buffer | None:
    """Content read from a store; codecs in metadata are replaced by size-checking ones.

    Parameters
    ----------
    where
        Start of error messages; ends with the key.
    """
    if data is None or not where.endswith(_METADATA):
        return data
    return type(data).from_bytes(with_bounded_codecs(where, data.to_bytes()))


def with_bounded_codecs(where: str, data: bytes) -> bytes:
    """Metadata with size-checking codecs; ArchiveFormatError if a codec is not supported."""
    is_new = where.endswith("zarr.json")
    checked = guards.register()[3 if is_new else 2]
    safe = _SAFE if is_new else _SAFE | guards.TEXT
    try:
        document = json.loads(data)
        for codec in _codecs(document):
            key = "name" if "name" in codec else "id"
            name = codec.get(key)
            if name in checked:
                codec[key] = guards.PREFIX + name
            elif str(name).removeprefix("numcodecs.") not in safe:
                raise ArchiveFormatError(
                    f"{where}: cannot read the compression {name!r:.100}; expected a codec of zarr "
                    "that does not execute data: rewrite the store with another codec"
                )
        return json.dumps(document).encode()
    except ArchiveFormatError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        raise ArchiveFormatError(
            f"{where}: this is not valid Zarr metadata ({error!r:.200})"
        ) from error


def _codecs(document: Any) -> Iterator[dict[str, Any]]:
    """All codecs in metadata of either format, consolidated or not."""
    if not isinstance(document, dict):
        return
    for key in ("codecs", "index_codecs", "filters"):
        listed = document.get(key)
        if isinstance(listed, list):
            # In format 3 a codec without settings may be given by its name alone.
            listed[:] = [{"name": codec} if isinstance(codec, str) else codec for codec in listed]
            for codec in listed:
                yield from _codec(codec)
            if any(isinstance(c, dict) and c.get("id") in guards.TEXT for c in listed):
                # The last filter decodes first.
                listed.append(guards.CHECK_TEXT)
    yield from _codec(document.get("compressor"))
    for key in ("consolidated_metadata", "metadata"):
        nested = document.get(key)
        if isinstance(nested, dict):
            for node in (nested, *nested.values()):
                yield from _codecs(node)


def _codec(codec: Any) -> Iterator[dict[str, Any]]:
    """A codec and the codecs nested in it."""
    if isinstance(codec, dict):
        yield codec
        yield from _codecs(codec.get("configuration"))
    elif codec is not None:
        raise TypeError(f"expected a codec, found {codec!r:.100}")


def check_array(where: str, array: ArrayMetadata, stored_bytes: Callable[[], int]) -> None:
    """Raise ArchiveFormatError if metadata declares an implausibly large array, chunk or shard.

    Parameters
    ----------
    where
        Start of error messages.
    array
        Metadata of the array.
    stored_bytes
        Returns the size of all files of the store in bytes.
    """
    itemsize, shape, chunks, shards = array.itemsize, array.shape, array.chunks, array.shards
    claims.check_claim(where, shape, itemsize, stored_bytes)
    chunk_bytes = math.prod(chunks) * itemsize
    if chunk_bytes > max(claims.FREE_BYTES, math.prod(shape) * itemsize):
        raise ArchiveFormatError(
            f"{where} has declared chunks of {chunk_bytes:,} bytes, more than the whole array; "
            "it is damaged"
        )
    per_shard = math.prod(shards) // max(math.prod(chunks), 1) if shards else 0
    if per_shard <= claims.FREE_BYTES // _ENTRY_BYTES:
        return
    n_chunks = math.prod(-(-n // max(c, 1)) for n, c in zip(shape, chunks, strict=True))
    if per_shard > n_chunks:
        raise ArchiveFormatError(
            f"{where} has declared {per_shard:,} chunks per shard, but {n_chunks:,} in total; "
            "it is damaged"
        )
