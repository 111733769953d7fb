"""The profiles: named ways to compress an archive, as codec chains of Zarr.

A chain is the codec list in the metadata of a Zarr v3 array: filters, one codec from numbers to
bytes, codecs of bytes. zarr-python with numcodecs reads every codec that is written.

Sources: Zarr v3 specification, core codecs; numcodecs for those called ``numcodecs.*``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: A codec as stored in metadata.
Codec = Mapping[str, Any]

#: Type in which integral values are stored if all of them fit.
NARROW = np.dtype(np.uint16)

#: The codec of frames, see :mod:`storage_backends.zarr.codecs.frame_format`.
PACKED = "scdl.packed"
#: The codec with fitted tables, see :mod:`storage_backends.zarr.codecs.ans_format`.
ANS = "scdl.ans"
#: Codecs of an array that is the same as another one, and of one that follows from another by
#: tables, see :mod:`storage_backends.zarr.codecs.repeating_codec`.
SAME, OF = "scdl.same", "scdl.of"


@dataclass(frozen=True)
class Profile:
    """A named way to compress an archive.

    Parameters
    ----------
    chunk_items
        Numbers per chunk.
    compressor
        Compressor of numbers: ``"pcodec"``, ``"scdl.packed"`` for values and ids in frames, or the
        Blosc compressor ``"lz4hc"`` or ``"zstd"``.
    by_detection
        Whether genes are stored in order of decreasing detection rate.
    portable
        Whether to use only core codecs, which every reader of Zarr v3 has.
    fits
        Whether values and ids of sparse matrices are coded with tables that are fitted to them, see
        :mod:`storage_backends.zarr.fitting`.
    tables
        Such tables of an array.
    """

    chunk_items: int
    compressor: str
    by_detection: bool = False
    portable: bool = False
    fits: bool = False
    tables: str = ""

    def may_narrow(self, name: str, dtype: np.dtype[Any]) -> bool:
        """Whether values of an array may be stored in 16 bits if all of them fit."""
        return (
            self.compressor != PACKED
            and not self.portable
            and name.endswith("data")
            and dtype.itemsize > NARROW.itemsize
        )

    def resuming(self, codecs: Sequence[Codec]) -> Profile:
        """The profile with the tables of a stored array, if it has any."""
        tables = (c["configuration"]["tables"] for c in codecs if c["name"] == ANS)
        return replace(self, tables=next(tables, ""))

    def codecs(self, name: str, dtype: np.dtype[Any], *, narrow: bool) -> list[Codec]:
        """The chain of an array, chosen by the last part of its name."""
        part = name.rpartition("/")[2]
        filters = [_astype(dtype)] if narrow else []
        stored = NARROW if narrow else dtype
        # A dense array may have such a name too.
        ascending = part in ("indices", "indptr") and stored.kind in "ui" and not self.portable
        # Slow compressors of Blosc gain nothing on the noisy low bits of floats.
        hard = stored.kind in "ui" and part != "indptr"
        compressor = self.compressor
        if self.tables and part in ("data", "indices") and stored.kind in "iu":
            differences = part == "indices"
            fitted = _codec(ANS, tables=self.tables, differences=differences)
            return [*filters, fitted, _codec("crc32c")]
        if compressor == PACKED:
            if part in ("data", "indices"):
                return [_codec(PACKED)]
            compressor = "zstd"
        if compressor == "pcodec" and stored.itemsize > 1 and part != "indptr":
            return [*filters, _pcodec(ascending), _codec("crc32c")]
        if compressor == "lz4hc" and not hard:
            compressor = "lz4"
        if ascending:
            filters.append(_codec("numcodecs.delta", dtype=stored.str))
        return [
            *filters,
            _codec("bytes", endian="little"),
            _blosc(stored.itemsize, "zstd" if compressor == "pcodec" else compressor),
            _codec("crc32c"),
        ]


#: The profiles by name. Sizes and speeds: docs/compression.md.
PROFILES = {
    "fast": Profile(1 << 14, "lz4hc"),
    "balanced": Profile(1 << 14, "pcodec"),
    "packed": Profile(1 << 14, PACKED, by_detection=True),
    "packed-fast": Profile(1 << 14, PACKED),
    "archive": Profile(1 << 14, "pcodec", by_detection=True, fits=True),
    "portable": Profile(1 << 14, "zstd", portable=True),
}
DEFAULT_PROFILE = "balanced"
#: Profile of drafts, which are compressed again at the commit.
DRAFT = Profile(1 << 14, PACKED)


def _codec(name: str, **configuration: Any) -> Codec:
    return {"name": name, "configuration": configuration} if configuration else {"name": name}


def _astype(dtype: np.dtype[Any]) -> Codec:
    return _codec("numcodecs.astype", encode_dtype=NARROW.str, decode_dtype=dtype.str)


def _blosc(itemsize: int, compressor: str) -> Codec:
    return _codec(
        "blosc", typesize=itemsize, cname=compressor, clevel=5, shuffle="bitshuffle", blocksize=0
    )


def _pcodec(ascending: bool) -> Codec:
    return _codec(
        "numcodecs.pcodec",
        level=8,
        mode_spec="auto",
        # Order 0 means no differences; newer releases of numcodecs name this differently.
        delta_spec="try_consecutive",
        delta_encoding_order=int(ascending),
        paging_spec="equal_pages_up_to",
        equal_pages_up_to=1 << 18,
    )


def fits_narrow(values: NDArray[Any]) -> NDArray[np.uint16] | None:
    """The values in 16 bits; None unless each round-trips bit by bit."""
    with np.errstate(invalid="ignore"):
        narrow = values.astype(NARROW)
    bits = f"u{values.dtype.itemsize}"
    same = np.array_equal(narrow.astype(values.dtype).view(bits), values.view(bits))
    return narrow if same else None
