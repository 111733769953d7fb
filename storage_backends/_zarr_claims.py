"""What the metadata of a Zarr store may say before zarr makes arrays and codecs of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import zarr
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from storage_backends import _archive_files
from storage_backends.errors import ArchiveFormatError

#: Files of metadata, by the end of their keys.
_METADATA = ("zarr.json", ".zarray", ".zmetadata")
#: Codecs that come with zarr and numcodecs. Others are looked up among all that is installed, and
#: imported; of these themselves, ``pickle`` runs what it reads.
_CODECS = {
    *("adler32", "astype", "base64", "bitround", "blosc", "bytes", "bz2", "crc32", "crc32c"),
    *("delta", "fixedscaleoffset", "fletcher32", "gzip", "jenkins_lookup3", "json2", "lz4", "lzma"),
    *("packbits", "pcodec", "quantize", "sharding_indexed", "shuffle", "transpose", "vlen-array"),
    *("vlen-bytes", "vlen-utf8", "zfpy", "zlib", "zstd"),
}
#: Bytes of an entry of the index of a shard.
_ENTRY_BYTES = 16


class ContainedStore(LocalStore):
    """A directory of which nothing is read that lies elsewhere, nor metadata of other codecs."""

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        path = _archive_files.path_of(str(self.root), key)
        return checked(path, await super().get(key, prototype, byte_range))


def checked(where: str, data: Buffer | None) -> Buffer | None:
    """What a store read; ArchiveFormatError where it is metadata of codecs that are not known.

    Parameters
    ----------
    where
        Opens the message, and ends with the key.
    """
    if data is not None and where.endswith(_METADATA):
        check_codecs(where, data.to_bytes())
    return data


def check_codecs(where: str, data: bytes) -> None:
    """ArchiveFormatError where metadata names codecs that do not come with zarr."""
    try:
        unknown = sorted(set(_codecs(json.loads(data))) - _CODECS)
    except (ValueError, RecursionError) as error:
        raise ArchiveFormatError(
            f"{where}: this is no metadata of zarr ({error!r:.200})"
        ) from error
    if unknown:
        raise ArchiveFormatError(
            f"{where}: cannot read the compression {unknown[0]!r:.100}; expected one that "
            "comes with zarr and runs nothing that it reads: write the store anew with another"
        )


def _codecs(document: Any) -> Iterator[str]:
    """Names of all codecs in metadata of either format, consolidated or not."""
    if not isinstance(document, dict):
        return
    for key in ("codecs", "index_codecs", "filters"):
        listed = document.get(key)
        for codec in listed if isinstance(listed, list) else ():
            yield from _codec(codec)
    yield from _codec(document.get("compressor"))
    for key in ("consolidated_metadata", "metadata"):
        nested = document.get(key)
        if isinstance(nested, dict):
            for node in (nested, *nested.values()):
                yield from _codecs(node)


def _codec(codec: Any) -> Iterator[str]:
    """Name of a codec, and of those within it."""
    if isinstance(codec, dict):
        yield str(codec.get("name", codec.get("id"))).removeprefix("numcodecs.")
        yield from _codecs(codec.get("configuration"))
    elif codec is not None:
        yield str(codec)


def check_array(where: str, array: zarr.Array[Any], held: Callable[[], int]) -> None:
    """ArchiveFormatError where an array, or what is decoded at once, is said to be too large.

    Parameters
    ----------
    where
        Opens the message.
    held
        Bytes of all files of the store.
    """
    shape, itemsize = tuple(map(int, array.shape)), max(1, int(array.dtype.itemsize))
    _archive_files.check_claim(where, shape, itemsize, held)
    chunks, shards = tuple(map(int, array.chunks)), array.shards
    chunk_bytes = math.prod(chunks) * itemsize
    if chunk_bytes > max(_archive_files.FREE_BYTES, math.prod(shape) * itemsize):
        raise ArchiveFormatError(
            f"{where} is said to have chunks of {chunk_bytes:,} bytes, more than the array; it is "
            "damaged"
        )
    n_chunks = math.prod(-(-n // max(c, 1)) for n, c in zip(shape, chunks, strict=True))
    per_shard = math.prod(shards) // max(math.prod(chunks), 1) if shards else 0
    if per_shard > max(_archive_files.FREE_BYTES // _ENTRY_BYTES, n_chunks):
        raise ArchiveFormatError(
            f"{where} is said to have {per_shard:,} chunks a shard, and {n_chunks:,} altogether; "
            "it is damaged"
        )
