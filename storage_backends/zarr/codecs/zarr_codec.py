"""The codecs ``scdl.packed`` and ``scdl.ans`` for zarr-python, which finds them by entry points."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.registry import register_codec

from storage_backends.zarr.codecs import ans
from storage_backends.zarr.codecs.packed import NAME, Packed


class _NumbersCodec(ArrayBytesCodec):
    """A codec of chunks of numbers in the byte order of the processor."""

    is_fixed_size = False

    @abstractmethod
    def _encode_numbers(self, values: NDArray[Any]) -> bytes:
        """Encode a chunk."""

    @abstractmethod
    def _decode_numbers(self, data: bytes, out: NDArray[Any]) -> None:
        """Decode a chunk to `out`."""

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return await asyncio.to_thread(self._decode_sync, chunk_bytes, chunk_spec)

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        out: Any = np.empty(chunk_spec.shape, chunk_spec.dtype.to_native_dtype().newbyteorder("="))
        self._decode_numbers(chunk_bytes.to_bytes(), out.reshape(-1))
        return chunk_spec.prototype.nd_buffer.from_ndarray_like(out)

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        return await asyncio.to_thread(self._encode_sync, chunk_array, chunk_spec)

    def _encode_sync(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        values = np.asarray(chunk_array.as_numpy_array())
        values = np.ascontiguousarray(values, values.dtype.newbyteorder("=")).reshape(-1)
        return chunk_spec.prototype.buffer.from_bytes(self._encode_numbers(values))

    def compute_encoded_size(self, input_byte_length: int, _spec: ArraySpec) -> int:
        raise NotImplementedError("the size of encoded chunks depends on the values")


@dataclass(frozen=True)
class PackedCodec(_NumbersCodec):
    """Encodes chunks of numbers as frames, see :mod:`storage_backends.zarr.codecs.frame_format`.

    Frames have 1,024 items, as zarr does not know where rows end.

    Examples
    --------
    >>> import numpy as np, zarr
    >>> from storage_backends.zarr.codecs.zarr_codec import PackedCodec
    >>> array = zarr.create_array(
    ...     {}, data=np.arange(0, 9_000, 3), serializer=PackedCodec(), compressors=None
    ... )
    >>> array[-1], array.nbytes_stored() < array.nbytes / 7
    (array(8997), True)
    """

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        if data.get("configuration"):
            raise ValueError(f"the codec {NAME} has no configuration: {data['configuration']}")
        return cls()

    def to_dict(self) -> dict[str, Any]:
        return {"name": NAME}

    def validate(self, *, shape: Any, dtype: Any, chunk_grid: Any) -> None:
        kind = dtype.to_native_dtype().kind
        if kind not in "iuf":
            raise ValueError(f"the codec {NAME} stores integers and floats, not {dtype}")

    def _encode_numbers(self, values: NDArray[Any]) -> bytes:
        return Packed.encode(values, {})

    def _decode_numbers(self, data: bytes, out: NDArray[Any]) -> None:
        Packed.decode(data, out)


@dataclass(frozen=True)
class AnsCodec(_NumbersCodec):
    """Codes integers with fitted tables, see :mod:`storage_backends.zarr.codecs.ans_format`.

    A chunk is coded as one row, as zarr does not know where rows end. A checksum follows it if the
    codec ``crc32c`` does.
    """

    codec: ans.Ans

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(ans.Ans.of(data.get("configuration", {})))

    def to_dict(self) -> dict[str, Any]:
        return self.codec.to_dict()

    def _encode_numbers(self, values: NDArray[Any]) -> bytes:
        return self.codec.encode(values)

    def _decode_numbers(self, data: bytes, out: NDArray[Any]) -> None:
        self.codec.decode_one(data, out)


# For processes in which the package is imported without being installed.
register_codec(NAME, PackedCodec)
register_codec(ans.NAME, AnsCodec)
