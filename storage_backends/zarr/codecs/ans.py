"""The codec ``scdl.ans``: numbers of rows, coded with tables that were fitted to the archive."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from storage_backends.directory.content import Content, checksum
from storage_backends.errors import ArchiveFormatError
from storage_backends.zarr.codecs import ans_reading, ans_states, ans_writing
from storage_backends.zarr.codecs import blosc as native
from storage_backends.zarr.codecs.ans_format import VERSION, Tables
from storage_backends.zarr.codecs.chunk_errors import check
from storage_backends.zarr.codecs.profiles import ANS

NAME = ANS
#: Tables of arrays that are kept, of about 100 kB each.
_MOST_KEPT = 256


class Ans(NamedTuple):
    """The codec with its configuration.

    Attributes
    ----------
    text
        The tables as text.
    differences
        Whether differences between ids are coded.
    """

    text: str
    differences: bool

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """The codec with the configuration in metadata; ValueError if it is invalid."""
        if settings.keys() != {"tables", "differences"}:
            raise ValueError(f"the codec {NAME} has tables and differences, not {list(settings)}")
        text, differences = settings["tables"], settings["differences"]
        if not isinstance(text, str) or not isinstance(differences, bool):
            raise ValueError(f"the tables of the codec {NAME} are text, and differences a boolean")
        _tables(text)
        return cls(text, differences)

    def to_dict(self) -> dict[str, Any]:
        """The codec as metadata have it."""
        return {
            "name": NAME,
            "configuration": {"tables": self.text, "differences": self.differences},
        }

    def encode(self, values: NDArray[Any], ends: NDArray[np.int64] | None = None) -> bytes:
        """Encode a chunk of integers without its checksum, see :func:`~.ans_writing.encode`."""
        if values.dtype.kind not in "iu":
            raise ValueError(f"the codec {NAME} stores integers, not {values.dtype}")
        tables = _tables(self.text)
        return ans_writing.encode(values, tables, differences=self.differences, ends=ends)

    def decode(self, content: Content, needed: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Check and decode chunks, see :func:`~.ans_reading.decode`; DamagedChunkError."""
        states = _states(self, out.itemsize)
        found = int(
            ans_reading.decode(
                native.CRC32C,
                content.addresses,
                content.lengths,
                needed,
                self.differences,
                _tables(self.text).contexts,
                states,
                out.view(f"u{out.itemsize}"),
            )
        )
        check(found, NAME, VERSION)

    def decode_one(self, data: bytes, out: NDArray[Any]) -> None:
        """Decode a chunk without its checksum; ArchiveFormatError if it is invalid."""
        if out.dtype.kind not in "iu":
            raise ArchiveFormatError(f"the codec {NAME} stores integers, not {out.dtype}")
        chunk = np.frombuffer(data + checksum(data), np.uint8)
        content = Content(np.array([chunk.ctypes.data]), np.array([chunk.nbytes]), chunk)
        self.decode(content, np.array([len(out)]), out.reshape(1, -1))


@lru_cache(_MOST_KEPT)
def _tables(text: str) -> Tables:
    return Tables.from_text(text)


@lru_cache(_MOST_KEPT)
def _states(codec: Ans, itemsize: int) -> NDArray[np.uint64]:
    """Tables of states, each computed once."""
    weights = _tables(codec.text).weights
    states: NDArray[np.uint64] = ans_states.states_of(weights, itemsize, codec.differences)
    return states
