"""Codecs of zarr and numcodecs that refuse chunks which decode to disproportionate sizes.

The codecs of zarr trust the sizes in chunk headers, or decompress without a limit. Metadata is
rewritten on reading to name the codecs of this module, which check the size first. They serialize
under the common names.
"""

from __future__ import annotations

import bz2
import contextlib
import math
import zlib
from functools import cache
from typing import Any, Self

import numcodecs
import numcodecs.abc
import numcodecs.registry
from zarr.codecs import BloscCodec, GzipCodec, VLenBytesCodec, VLenUTF8Codec, ZstdCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer
from zarr.registry import get_codec_class, register_codec

import storage_backends.zarr.codecs.repeating_codec
import storage_backends.zarr.codecs.zarr_codec  # noqa: F401 - registers the codec
from storage_backends.compute.claims import BYTES_PER_BYTE, FREE_BYTES

#: Prefix of the names of these codecs in metadata.
PREFIX = "scdl."
#: Prefix of numcodecs' codecs in Zarr format 3.
NUMCODECS = "numcodecs."
#: Minimum bytes of each item: its length field.
_LENGTH_BYTES = 4
_AT_ONCE = 1 << 20
_UNREADABLE: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)


def check(name: str, data: bytes, most: int = 0) -> None:
    """Raise ValueError if a chunk decodes to more bytes than its size allows and than `most`.

    Parameters
    ----------
    name
        Name of the codec in zarr or numcodecs.
    """
    most = max(most, FREE_BYTES + BYTES_PER_BYTE * len(data))
    if name.startswith("vlen-"):
        # Decoders allocate all items before they read the first.
        claimed, most = int.from_bytes(data[:4], "little"), max(len(data) - 4, 0) // _LENGTH_BYTES
    elif name == "blosc":
        claimed = int.from_bytes(data[4:8], "little")
    elif name == "lz4":
        claimed = int.from_bytes(data[:4], "little")
    elif name == "zstd" and (size := zstd_size(data)) is not None:
        claimed = size
    else:
        try:
            claimed = _measured(name, data, most)
        except _UNREADABLE as error:
            raise ValueError(f"not valid {name} data: {error}") from error
    if claimed > most:
        raise ValueError(
            f"its {len(data)} bytes of {name} decode to {claimed:,}, more than {most:,}"
        )


def zstd_size(frame: bytes) -> int | None:
    """Content size in a frame header, which decoders allocate; None if it has none.

    Source: RFC 8878, frame header.
    """
    if len(frame) < 5:
        return None
    flags = frame[4]
    single = flags >> 5 & 1
    start = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
    length = (single, 2, 4, 8)[flags >> 6]
    size = int.from_bytes(frame[start : start + length], "little")
    return size + 256 * (length == 2) if length else None


def _measured(name: str, data: bytes, most: int) -> int:
    """Bytes that a stream decompresses to; counting stops beyond `most`."""
    if name == "zstd":
        import pyarrow as pa

        total = 0
        with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
            while total <= most and (piece := stream.read(_AT_ONCE)):
                total += len(piece)
        return total
    made: Any = {"gzip": lambda: zlib.decompressobj(31), "zlib": zlib.decompressobj}
    made |= {"bz2": bz2.BZ2Decompressor, "lzma": lambda: lzma.LZMADecompressor()}
    decompressor, total = made[name](), 0
    piece = decompressor.decompress(data, _AT_ONCE)
    while piece and total <= most:
        total += len(piece)
        left = getattr(decompressor, "unconsumed_tail", b"")
        piece = b"" if decompressor.eof else decompressor.decompress(left, _AT_ONCE)
    return total


class _Bounded:
    """Checks chunks before a codec of zarr decodes them."""

    _name: str

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        made: Self = super().from_dict({**data, "name": cls._name})  # type: ignore[misc]
        return made

    async def _decode_single(self, chunk: Buffer, spec: ArraySpec) -> Any:
        self._check_size(chunk, spec)
        return await super()._decode_single(chunk, spec)  # type: ignore[misc]

    def _decode_sync(self, chunk: Buffer, spec: ArraySpec) -> Any:
        self._check_size(chunk, spec)
        return super()._decode_sync(chunk, spec)  # type: ignore[misc]

    def _check_size(self, chunk: Buffer, spec: ArraySpec) -> None:
        check(
            self._name,
            chunk.to_bytes(),
            math.prod(spec.shape) * getattr(spec.dtype, "item_size", 0),
        )


class _Checking:
    """Checks chunks of format 2 before a codec of numcodecs decodes them."""

    codec_id: str

    def decode(self, buf: Any, out: Any = None) -> Any:
        check(self.codec_id, bytes(numcodecs.compat.ensure_bytes(buf)))
        return super().decode(buf, out)  # type: ignore[misc]


_CORE = {
    "blosc": BloscCodec,
    "gzip": GzipCodec,
    "vlen-bytes": VLenBytesCodec,
    "vlen-utf8": VLenUTF8Codec,
    "zstd": ZstdCodec,
}
_NUMCODECS = {
    "blosc": numcodecs.Blosc,
    "bz2": numcodecs.BZ2,
    "gzip": numcodecs.GZip,
    "lz4": numcodecs.LZ4,
    "zlib": numcodecs.Zlib,
    "zstd": numcodecs.Zstd,
}
#: Codecs of numcodecs in format 3 that scdl archives use; they need no bound.
_UNBOUNDED = tuple(NUMCODECS + name for name in ("astype", "delta", "pcodec"))
with contextlib.suppress(ImportError):
    # Some builds of Python have no lzma, and numcodecs then lacks the codec.
    import lzma

    _NUMCODECS["lzma"] = numcodecs.LZMA
    _UNREADABLE += (lzma.LZMAError,)


class _Text(numcodecs.abc.Codec):  # type: ignore[misc]
    """Checks text of format 2 as an additional filter; zarr recognizes text by the original one."""

    codec_id = PREFIX + "text"

    def decode(self, buf: Any, out: Any = None) -> Any:
        check("vlen-utf8", bytes(numcodecs.compat.ensure_bytes(buf)))
        return buf

    def encode(self, buf: Any) -> Any:
        return buf


#: Variable-length codecs of format 2, and the checking filter appended after them.
TEXT = frozenset({"vlen-array", "vlen-bytes", "vlen-utf8"})
CHECK_TEXT = {"id": _Text.codec_id}


class _Silent:
    """A codec of numcodecs in format 3, without the warning that zarr issues for it.

    Warning filters are global to the process, so another thread that restores its own filters
    could re-enable the warning.
    """

    def __init__(self, **settings: Any) -> None:
        object.__setattr__(self, "codec_config", settings)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        name = data["name"].removeprefix(PREFIX)
        return cls(**{"id": name.removeprefix(NUMCODECS), **data.get("configuration", {})})


@cache
def register() -> dict[int, frozenset[str]]:
    """Register the codecs under prefixed names; return the names they replace, by format."""
    for name in _UNBOUNDED:
        core = get_codec_class(name)
        register_codec(PREFIX + name, type(core.__name__, (_Silent, core), {}))
    for name, core in _CORE.items():
        # zarr identifies some codecs by their class name.
        register_codec(PREFIX + name, type(core.__name__, (_Bounded, core), {"_name": name}))
    for name, base in _NUMCODECS.items():
        made = type(base.__name__, (_Checking, base), {"codec_id": name})
        numcodecs.registry.register_codec(made, PREFIX + name)
    numcodecs.registry.register_codec(_Text)
    return {2: frozenset(_NUMCODECS), 3: frozenset((*_CORE, *_UNBOUNDED))}
