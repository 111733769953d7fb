"""The codec ``scdl.packed`` for zarr-python, which finds it by its entry point."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.registry import register_codec

from storage_backends.zarr.codecs.packed import NAME, Packed


@dataclass(frozen=True)
class PackedCodec(ArrayBytesCodec):
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

    is_fixed_size = False

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

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return await asyncio.to_thread(self._decode_sync, chunk_bytes, chunk_spec)

    def _decode_sync(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        out: Any = np.empty(chunk_spec.shape, chunk_spec.dtype.to_native_dtype().newbyteorder("="))
        Packed.decode(chunk_bytes.to_bytes(), out.reshape(-1))
        return chunk_spec.prototype.nd_buffer.from_ndarray_like(out)

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        return await asyncio.to_thread(self._encode_sync, chunk_array, chunk_spec)

    def _encode_sync(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        values = np.asarray(chunk_array.as_numpy_array())
        values = np.ascontiguousarray(values, values.dtype.newbyteorder("=")).reshape(-1)
        return chunk_spec.prototype.buffer.from_bytes(Packed.encode(values, {}))

    def compute_encoded_size(self, input_byte_length: int, _spec: ArraySpec) -> int:
        raise NotImplementedError(f"the size of chunks of the codec {NAME} depends on the values")


# For processes in which the package is imported without being installed.
register_codec(NAME, PackedCodec)
