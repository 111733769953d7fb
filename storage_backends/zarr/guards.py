"""Codecs of zarr and numcodecs that give up where a chunk would take memory out of proportion.

Zarr decodes what it reads by codecs that believe what chunks say of themselves, or decompress to
the end whatever comes. Metadata that is read is changed to name these instead, which look first;
what they write of themselves has the common names again.
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

from storage_backends.compute.claims import BYTES_PER_BYTE, FREE_BYTES

#: What stands before the names of these codecs in metadata.
PREFIX = "scdl."
#: What zarr puts before those of numcodecs within format 3.
NUMCODECS = "numcodecs."
#: Bytes of each item that must be there: its length.
_LENGTH_BYTES = 4
_AT_ONCE = 1 << 20
_UNREADABLE: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)


def check(name: str, data: bytes, most: int = 0) -> None:
    """ValueError where a chunk decodes to more than its size may, or than `most`.

    Parameters
    ----------
    name
        The codec, as zarr or numcodecs calls it.
    """
    most = max(most, FREE_BYTES + BYTES_PER_BYTE * len(data))
    if name.startswith("vlen-"):
        # Places of all items are taken before the first is read.
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
            raise ValueError(f"no {name}: {error}") from error
    if claimed > most:
        raise ValueError(
            f"its {len(data)} bytes would be {claimed:,} of {name}, more than {most:,}"
        )


def zstd_size(frame: bytes) -> int | None:
    """Bytes that a frame says it holds, which is believed when memory is taken; None: it does not.

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
    """Bytes that a stream decompresses to, counted up to what is too many."""
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
        self._look(chunk, spec)
        return await super()._decode_single(chunk, spec)  # type: ignore[misc]

    def _decode_sync(self, chunk: Buffer, spec: ArraySpec) -> Any:
        self._look(chunk, spec)
        return super()._decode_sync(chunk, spec)  # type: ignore[misc]

    def _look(self, chunk: Buffer, spec: ArraySpec) -> None:
        check(
            self._name,
            chunk.to_bytes(),
            math.prod(spec.shape) * getattr(spec.dtype, "item_size", 0),
        )


class _Checking:
    """Checks chunks before a codec of numcodecs decodes them, as those of format 2 are."""

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
#: Those of numcodecs within format 3 that archives of ours have; they give as much as they take.
_UNBOUNDED = tuple(NUMCODECS + name for name in ("astype", "delta", "pcodec"))
with contextlib.suppress(ImportError):
    # Some Pythons are built without, and numcodecs has no such codec then.
    import lzma

    _NUMCODECS["lzma"] = numcodecs.LZMA
    _UNREADABLE += (lzma.LZMAError,)


class _Text(numcodecs.abc.Codec):  # type: ignore[misc]
    """Looks at text before the codec that zarr of format 2 knows it by, which has to stay."""

    codec_id = PREFIX + "text"

    def decode(self, buf: Any, out: Any = None) -> Any:
        check("vlen-utf8", bytes(numcodecs.compat.ensure_bytes(buf)))
        return buf

    def encode(self, buf: Any) -> Any:
        return buf


#: Codecs of format 2 for things of any length, and the one that follows them.
TEXT = frozenset({"vlen-array", "vlen-bytes", "vlen-utf8"})
LOOKS_AT_TEXT = {"id": _Text.codec_id}


class _Silent:
    """A codec of numcodecs within format 3, without the warning that zarr gives of each.

    Filters of warnings are those of the process: another thread that puts back the ones that it
    found would bring the warning back.
    """

    def __init__(self, **settings: Any) -> None:
        object.__setattr__(self, "codec_config", settings)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        name = data["name"].removeprefix(PREFIX)
        return cls(**{"id": name.removeprefix(NUMCODECS), **data.get("configuration", {})})


@cache
def register() -> dict[int, frozenset[str]]:
    """Make these known under names of their own; the names that they stand for, by format."""
    for name in _UNBOUNDED:
        core = get_codec_class(name)
        register_codec(PREFIX + name, type(core.__name__, (_Silent, core), {}))
    for name, core in _CORE.items():
        # zarr asks what some codecs are by the name of their class.
        register_codec(PREFIX + name, type(core.__name__, (_Bounded, core), {"_name": name}))
    for name, base in _NUMCODECS.items():
        made = type(base.__name__, (_Checking, base), {"codec_id": name})
        numcodecs.registry.register_codec(made, PREFIX + name)
    numcodecs.registry.register_codec(_Text)
    return {2: frozenset(_NUMCODECS), 3: frozenset((*_CORE, *_UNBOUNDED))}
