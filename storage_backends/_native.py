"""Checking and decoding many chunks in one compiled call, without the interpreter.

Decoding a chunk takes some fifty microseconds; a round through Python for each, with several
threads waiting for the interpreter, takes as long again. The C functions that numcodecs and
google-crc32c bring along are therefore called from compiled loops, by their addresses. Where a
build hides them, :data:`AVAILABLE` is false and chunks take the way through Python.
"""

from __future__ import annotations

import ctypes
from importlib import import_module
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from storage_backends._content import CHECKSUM_BYTES
from storage_backends.jit import kernel

#: Returned by kernels where all chunks are sound.
SOUND = -1

_BLOSC_HEADER_BYTES = 16


def _address(module: str, function: str) -> int:
    """Where a C function of an extension module is; 0 where it cannot be found."""
    try:
        library = ctypes.CDLL(import_module(module).__file__)
        return ctypes.cast(getattr(library, function), ctypes.c_void_p).value or 0
    except (ImportError, OSError, AttributeError, TypeError):
        return 0


#: ``int blosc_decompress_ctx(const void *src, void *dest, size_t destsize, int threads)``
_BLOSC_DECOMPRESS = _address("numcodecs.blosc", "blosc_decompress_ctx")
#: ``uint32_t crc32c_value(const uint8_t *data, size_t length)``
_CRC32C = _address("google_crc32c._crc32c", "crc32c_value")

AVAILABLE = bool(_BLOSC_DECOMPRESS and _CRC32C)


@intrinsic
def _call_crc32c(typingctx: Any, function: Any, data: Any, length: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, byte = ir.IntType(64), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.IntType(32), [byte, word])
        called = builder.inttoptr(arguments[0], kind.as_pointer())
        return builder.call(called, [builder.inttoptr(arguments[1], byte), arguments[2]])

    return types.uint32(types.int64, types.int64, types.int64), codegen


@intrinsic
def _call_blosc(typingctx: Any, function: Any, source: Any, target: Any, size: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number, word, byte = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(number, [byte, byte, word, number])
        called = builder.inttoptr(arguments[0], kind.as_pointer())
        pointers = [builder.inttoptr(argument, byte) for argument in arguments[1:3]]
        return builder.call(called, [*pointers, arguments[3], number(1)])

    return types.int32(types.int64, types.int64, types.int64, types.int64), codegen


def check(data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> int:
    """The first chunk whose last four bytes are not the CRC32C of the others, or SOUND."""
    return int(_check(_CRC32C, data, starts, lengths))


@kernel
def _check(
    function: int,
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> int:
    for i in range(len(starts)):
        size = lengths[i] - CHECKSUM_BYTES
        if size < 0:
            return i
        chunk = data[starts[i] : starts[i] + lengths[i]]
        found = np.int64(0)
        for k in range(CHECKSUM_BYTES):
            found |= np.int64(chunk[size + k]) << (8 * k)
        if np.int64(_call_crc32c(function, np.int64(chunk.ctypes.data), size)) != found:
            return i
    return SOUND


def decode_blosc(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> int:
    """Decompress Blosc frames into the rows of `out`; the first that is unfit, or SOUND."""
    return int(_decode_blosc(_BLOSC_DECOMPRESS, data, starts, lengths, out))


@kernel
def _decode_blosc(
    function: int,
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> int:
    size = out.shape[1]
    for i in range(len(starts)):
        frame = data[starts[i] : starts[i] + lengths[i]]
        if len(frame) < _BLOSC_HEADER_BYTES:
            return i
        content, total = np.int64(0), np.int64(0)
        for k in range(4):
            content |= np.int64(frame[4 + k]) << (8 * k)
            total |= np.int64(frame[12 + k]) << (8 * k)
        # Blosc believes the sizes in its header.
        if content != size or total != len(frame):
            return i
        source, target = np.int64(frame.ctypes.data), np.int64(out[i].ctypes.data)
        if _call_blosc(function, source, target, size) != size:
            return i
    return SOUND


@kernel
def splice(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    head: int,
    out: NDArray[np.uint8],
) -> int:
    """Join files that share their first `head` bytes, and end in a zero, into one.

    Returns
    -------
    int
        Bytes written to `out`; 0 where the files are unlike.
    """
    first = data[starts[0] : starts[0] + head]
    position = 0
    for k in range(head):
        out[position + k] = first[k]
    position = head
    for i in range(len(starts)):
        file = data[starts[i] : starts[i] + lengths[i]]
        if len(file) <= head or file[len(file) - 1] != 0:
            return 0
        for k in range(head):
            if file[k] != first[k]:
                return 0
        body = file[head : len(file) - 1]
        target = out[position : position + len(body)]
        for k in range(len(body)):
            target[k] = body[k]
        position += len(body)
    out[position] = 0
    return position + 1
