"""Codec chains of Zarr arrays, as functions from chunks to bytes and back.

Chunks are encoded and decoded without zarr-python, whose path costs more than decoding.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import kernel
from storage_backends.directory.content import CHECKSUM_BYTES, Content
from storage_backends.errors import one_line
from storage_backends.zarr.codecs import ans, frame_writing, packed, pcodec
from storage_backends.zarr.codecs import blosc as native
from storage_backends.zarr.codecs.chunk_errors import DamagedChunkError
from storage_backends.zarr.codecs.encodings import (
    COMPRESSORS,
    SERIALIZERS,
    PcodecPackage,
    decompress,
)
from storage_backends.zarr.codecs.profiles import NARROW, Codec
from storage_backends.zarr.plan import Bound, ChunkPieces

#: The bytes of consecutive chunks, and the size of each.
Encoded: TypeAlias = tuple[bytes, Sequence[int]]

#: Constant overhead allowed for compressors, besides a share of the chunk size.
_SLACK_BYTES = 1 << 16


class Chain:
    """The codecs of an array, as functions from chunks to bytes and back.

    Parameters
    ----------
    dtype
        Type of the array's numbers.
    stored
        Type of the decoded numbers; narrower than `dtype` if a filter narrows the values.
    """

    def __init__(self, dtype: np.dtype[Any], stored: np.dtype[Any], codecs: Sequence[Codec]):
        self.dtype = dtype
        self.stored = stored
        self._delta = any(c["name"] == "numcodecs.delta" for c in codecs)
        self._serializer = next(c for c in codecs if c["name"] in SERIALIZERS)
        self._compressors = [c for c in codecs if c["name"] in COMPRESSORS]
        names = [c["name"] for c in (self._serializer, *self._compressors)]
        self._is_blosc = native.AVAILABLE and names == ["bytes", "blosc", "crc32c"]
        self._is_pcodec = native.AVAILABLE and names == ["numcodecs.pcodec", "crc32c"]
        #: Whether compiled code decodes it: numbers of the type that scdl writes, without deltas.
        self._is_pcodec_of_ours = self._is_pcodec and stored == pcodec.DTYPE and not self._delta
        #: Whether it has frames, so that single rows can be decoded.
        self.in_frames = names == [packed.NAME]
        #: The codec whose tables were fitted to the array.
        self.fitted = ans.Ans.of(_settings(self._serializer)) if ans.NAME in names else None
        #: Whether encoding takes the ends of rows.
        self.knows_rows = self.in_frames or self.fitted is not None
        # Arrays are read together whatever their tables.
        others = [codec for codec in codecs if codec["name"] != ans.NAME]
        fitted = self.fitted and self.fitted._replace(text="")
        self._key = f"{dtype} {stored} {others} {fitted}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chain) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @classmethod
    def of(cls, codecs: Sequence[Codec], dtype: np.dtype[Any]) -> Self | None:
        """The chain of an array; None if its codecs or their order are not supported."""
        names = [codec["name"] for codec in codecs]
        kinds = [_kind(name) for name in names]
        if packed.NAME in names and len(names) > 1:
            return None
        if ans.NAME in names and not _is_fitted(codecs, names):
            return None
        if None in kinds or kinds != sorted(kinds, key=str) or kinds.count("b serializer") != 1:
            return None
        stored = dtype
        for codec in codecs:
            settings = codec.get("configuration", {})
            if codec["name"] == "numcodecs.astype":
                stored = np.dtype(settings["encode_dtype"])
                if stored != NARROW or np.dtype(settings["decode_dtype"]) != dtype:
                    return None
            elif codec["name"] == "numcodecs.delta":
                if np.dtype(settings["dtype"]) != stored or settings.get("astype"):
                    return None
            elif codec["name"] == "bytes" and settings.get("endian", "little") != "little":
                return None
        return cls(dtype, stored, codecs)

    def encode(self, values: NDArray[Any], ends: NDArray[np.int64] | None = None) -> bytes:
        """Compress one chunk of numbers of type `stored`, whose rows end at `ends`."""
        if self.in_frames:
            return frame_writing.encode(values, ends)
        if self.fitted is not None:
            data = self.fitted.encode(values, ends)
        else:
            if self._delta:
                values = np.diff(values, prepend=values.dtype.type(0))
            settings = _settings(self._serializer)
            data = SERIALIZERS[self._serializer["name"]].encode(values, settings)
        for codec in self._compressors:
            data = COMPRESSORS[codec["name"]].encode(data, _settings(codec))
        return data

    def encode_chunks(
        self, values: NDArray[Any], chunk_items: int, ends: NDArray[np.int64] | None = None
    ) -> Encoded:
        """Compress consecutive chunks of `chunk_items` numbers each."""
        if self.in_frames:
            return frame_writing.encode_chunks(values, chunk_items, ends)
        chunks = []
        for start in range(0, len(values), chunk_items):
            chunk = values[start : start + chunk_items]
            within = None if ends is None else ends_within(ends, start, start + len(chunk))
            chunks.append(self.encode(chunk, within))
        return b"".join(chunks), [len(chunk) for chunk in chunks]

    def decode(self, content: Content, needed: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Decompress chunks into the rows of `out`, of type `stored` and as long as a chunk.

        Only the first ``needed[i]`` numbers of chunk ``i`` are defined afterwards.
        """
        if self._is_blosc:
            unsigned = out.view(f"u{out.itemsize}")
            functions = native.CRC32C, native.BLOSC_DECOMPRESS
            found = native.decode_blosc(*functions, self._delta, *content[:2], unsigned)
        elif self.in_frames:
            packed.decode(content, needed, out)
            return
        elif self.fitted is not None:
            self.fitted.decode(content, needed, out)
            return
        elif self._is_pcodec_of_ours:
            found = pcodec.decode(content, needed, out)
        else:
            found = native.UNKNOWN
        if found == native.SOUND:
            return
        problem = native.problem_at(found)
        if problem is not None:
            raise DamagedChunkError(*problem)
        self._decode_with_packages(content, out)

    def place(
        self,
        content: Content,
        pieces: ChunkPieces,
        n_items: int,
        bound: Bound,
        out: NDArray[Any],
    ) -> int:
        """Decode pieces of chunks of `n_items` in frames to `out`.

        Returns the position of the first chunk with a number out of bounds, or -1.
        """
        return packed.place(content, pieces, n_items, self.stored, bound, out)

    def _decode_with_packages(self, content: Content, out: NDArray[Any]) -> None:
        if self._is_pcodec:
            position = native.check(content)
            if position != native.SOUND:
                raise DamagedChunkError(position, "its checksum is wrong")
            sizes = content.lengths - CHECKSUM_BYTES
            PcodecPackage.decode_together(content._replace(lengths=sizes), out)
        else:
            for position, (data, row) in enumerate(zip(content.copies(), out, strict=True)):
                try:
                    self._decode_one(data, row)
                except (RuntimeError, ValueError, TypeError, OSError, zlib.error) as error:
                    raise DamagedChunkError(position, one_line(error)) from error
        if self._delta:
            undo_delta(out.view(f"u{out.itemsize}"))

    def _decode_one(self, data: bytes, out: NDArray[Any]) -> None:
        most = out.nbytes + out.nbytes // 8 + _SLACK_BYTES
        data = decompress(data, self._compressors, most)
        SERIALIZERS[self._serializer["name"]].decode(data, out)


def ends_within(ends: NDArray[np.int64], start: int, stop: int) -> NDArray[np.int64]:
    """The ends of rows in ``(start, stop)``, and one on each side of them, from `start` on."""
    first, last = np.searchsorted(ends, (start + 1, stop))
    return ends[max(0, first - 1) : last + 1] - start


@kernel
def undo_delta(values: NDArray[Any]) -> None:
    """Replace differences by their sums within rows, in place; unsigned numbers wrap around."""
    for row in range(len(values)):
        chunk = values[row]
        total = chunk[0]
        for i in range(1, len(chunk)):
            total += chunk[i]
            chunk[i] = total


def _settings(codec: Codec) -> dict[str, Any]:
    return dict(codec.get("configuration", {}))


def _is_fitted(codecs: Sequence[Codec], names: Sequence[str]) -> bool:
    """Whether these are codecs with tables that are valid, and chunks end in a checksum."""
    at = names.index(ans.NAME)
    if list(names[at:]) != [ans.NAME, "crc32c"] or "numcodecs.delta" in names:
        return False
    with suppress(ValueError):
        ans.Ans.of(_settings(codecs[at]))
        return True
    return False


def _kind(name: str) -> str | None:
    """Sort key of a codec by its position in chains; None if it is unknown."""
    if name in ("numcodecs.astype", "numcodecs.delta"):
        # Narrowing always precedes differences; no other order is written or supported.
        return f"a {name}"
    return "b serializer" if name in SERIALIZERS else "c" if name in COMPRESSORS else None
