"""Checking and decoding many chunks in one compiled call, without the interpreter.

Decoding a chunk takes about twenty microseconds, less than a call through Python while several
threads contend for the GIL. Compiled loops therefore call the C functions of numcodecs and
google-crc32c by their addresses. If a build does not export them, :data:`AVAILABLE` is false and
chunks are decoded through Python.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from storage_backends.compute.jit import helper, intrinsic, kernel
from storage_backends.directory.content import CHECKSUM_BYTES, Content, c_function, crc32c

#: Returned if every chunk is sound; otherwise kernels return the position of the first damaged one.
SOUND = -1
#: Added to the position if the checksum is right but the content is damaged.
UNFIT = 1 << 32
#: Added to the position if the package has to decode the chunk.
UNKNOWN = 1 << 33
#: Added to the position as many times as the version of a codec says that is too new to be read.
LATER = 1 << 40

_BLOSC_HEADER_BYTES = 16


#: ``int blosc_decompress_ctx(const void *src, void *dest, size_t destsize, int threads)``
BLOSC_DECOMPRESS = c_function("numcodecs.blosc", "blosc_decompress_ctx")
#: ``uint32_t crc32c_value(const uint8_t *data, size_t length)``
CRC32C = c_function("google_crc32c._crc32c", "crc32c_value")

AVAILABLE = bool(BLOSC_DECOMPRESS and CRC32C)


def _crc_table() -> NDArray[np.uint32]:
    """CRC32C of every byte, without the inversions."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, np.uint32(0x82F63B78), np.uint32(0)) ^ (table >> np.uint32(1))
    return table


_CRC_TABLE = _crc_table()

_BYTE = ir.IntType(8).as_pointer()


@intrinsic
def _crc32c(typingctx: Any, function: Any, data: Any, length: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [_BYTE, ir.IntType(64)])
        called = builder.inttoptr(arguments[0], kind.as_pointer())
        return builder.call(called, [builder.inttoptr(arguments[1], _BYTE), arguments[2]])

    return types.uint32(types.int64, types.int64, types.int64), codegen


@intrinsic
def _decompress(typingctx: Any, function: Any, source: Any, target: Any, size: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = ir.IntType(32)
        kind = ir.FunctionType(number, [_BYTE, _BYTE, ir.IntType(64), number])
        called = builder.inttoptr(arguments[0], kind.as_pointer())
        pointers = [builder.inttoptr(argument, _BYTE) for argument in arguments[1:3]]
        return builder.call(called, [*pointers, arguments[3], number(1)])

    return types.int32(types.int64, types.int64, types.int64, types.int64), codegen


def _loaded(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Generate a load of the little-endian number at a possibly unaligned address."""
    pointer = builder.inttoptr(
        arguments[0], ir.IntType(signature.return_type.bitwidth).as_pointer()
    )
    return builder.load(pointer, align=1)


@intrinsic
def byte_at(typingctx: Any, address: Any) -> Any:
    """The byte at an address."""
    return types.uint8(types.int64), _loaded


@intrinsic
def number_at(typingctx: Any, address: Any) -> Any:
    """The uint32 at an address."""
    return types.uint32(types.int64), _loaded


@intrinsic
def word_at(typingctx: Any, address: Any) -> Any:
    """The uint64 at an address."""
    return types.uint64(types.int64), _loaded


@intrinsic
def put_word(typingctx: Any, out: Any, at: Any, word: Any) -> Any:
    """Store a uint64 as little-endian bytes in an array of bytes from a position on."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.gep(array.data, [arguments[1]])
        builder.store(arguments[2], builder.bitcast(pointer, arguments[2].type.as_pointer()), 1)
        return context.get_dummy_value()

    return types.none(out, types.int64, types.uint64), codegen


@intrinsic
def leading_zeros(typingctx: Any, word: Any) -> Any:
    """Number of leading zero bits; 64 for zero."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], ir.IntType(1)(0))

    return types.uint64(types.uint64), codegen


@helper
def is_intact(crc32c: int, address: int, size: int) -> bool:
    """Whether `size` bytes are followed by their CRC32C."""
    return size >= 0 and crc32c_at(crc32c, address, size) == number_at(address + size)


@helper
def crc32c_at(function: int, address: int, size: int) -> Any:
    """CRC32C of memory, by a C function if there is one."""
    if function:
        return _crc32c(function, address, size)
    crc = np.uint32(0xFFFFFFFF)
    for k in range(size):
        byte = (crc ^ np.uint32(byte_at(address + k))) & np.uint32(0xFF)
        crc = np.uint32(_CRC_TABLE[byte] ^ (crc >> np.uint32(8)))
    return np.uint32(crc ^ np.uint32(0xFFFFFFFF))


def check(content: Content) -> int:
    """The first chunk whose last four bytes are not the CRC32C of the others, or SOUND."""
    return int(_check(CRC32C, content.addresses, content.lengths))


@kernel
def _check(function: int, addresses: NDArray[np.int64], lengths: NDArray[np.int64]) -> int:
    for i in range(len(addresses)):
        if not is_intact(function, addresses[i], lengths[i] - CHECKSUM_BYTES):
            return i
    return SOUND


def checksums(content: Content) -> NDArray[np.uint32]:
    """CRC32C of each chunk, which here is anything in memory."""
    out = np.empty(len(content.lengths), np.uint32)
    if CRC32C:
        _checksums(CRC32C, content.addresses, content.lengths, out)
    else:
        out[:] = [crc32c(chunk) for chunk in content.copies()]
    return out


@kernel
def _checksums(
    function: int,
    addresses: NDArray[np.int64],
    lengths: NDArray[np.int64],
    out: NDArray[np.uint32],
) -> None:
    for i in range(len(addresses)):
        out[i] = _crc32c(function, addresses[i], lengths[i])


def problem_at(found: int) -> tuple[int, str] | None:
    """Position and problem of a damaged chunk, from the result of a kernel.

    None if the chunk is not damaged, but has to be decoded by the package.
    """
    if found >= UNKNOWN:
        return None
    problem = "its checksum is wrong" if found < UNFIT else "its content is invalid"
    return found % UNFIT, problem


@kernel
def _unpack(
    crc32c: int, decompress: int, address: int, length: int, delta: bool, out: NDArray[Any]
) -> int:
    """Check and decompress one frame; return SOUND, or the value to add to its position."""
    size = length - CHECKSUM_BYTES
    if not is_intact(crc32c, address, size):
        return 0
    # Blosc trusts the sizes in its header.
    fits = size >= _BLOSC_HEADER_BYTES
    fits = fits and np.int64(number_at(address + 4)) == out.nbytes
    fits = fits and np.int64(number_at(address + 12)) == size
    target = np.int64(out.ctypes.data)
    if not fits or _decompress(decompress, address, target, out.nbytes) != out.nbytes:
        return UNFIT
    if delta:
        total = out[0]
        for k in range(1, len(out)):
            total += out[k]
            out[k] = total
    return SOUND


@kernel
def decode_blosc(
    crc32c: int,
    decompress: int,
    delta: bool,
    addresses: NDArray[np.int64],
    lengths: NDArray[np.int64],
    out: NDArray[Any],
) -> int:
    """Check and decompress Blosc frames with checksums into the rows of `out`.

    Parameters
    ----------
    crc32c, decompress
        :data:`CRC32C` and :data:`BLOSC_DECOMPRESS`.
    delta
        Whether the stored numbers are differences between consecutive numbers.
    addresses, lengths
        Addresses and lengths of the frames.

    Returns
    -------
    int
        SOUND, or see :func:`problem_at`.
    """
    for i in range(len(addresses)):
        found = _unpack(crc32c, decompress, addresses[i], lengths[i], delta, out[i])
        if found != SOUND:
            return i + found
    return SOUND


def splice(content: Content, head: int) -> bytes | None:
    """Join files that share their first `head` bytes and end in a zero; None if they do not."""
    out = np.empty(int(content.lengths.sum()) + 1, np.uint8)
    size = _splice(content.addresses, content.lengths, head, out)
    return out[:size].tobytes() if size else None


@kernel
def _splice(
    addresses: NDArray[np.int64], lengths: NDArray[np.int64], head: int, out: NDArray[np.uint8]
) -> int:
    position = 0
    for i in range(len(addresses)):
        address, size = addresses[i], lengths[i] - 1
        if size < head or number_at(address + size - 3) >> np.uint32(24) != np.uint32(0):
            return 0
        for k in range(head - 4 + 1):
            if number_at(address + k) != number_at(addresses[0] + k):
                return 0
        start = head if i else 0
        _copy(out[position:], address + start, size - start)
        position += size - start
    out[position] = 0
    return position + 1


@intrinsic
def _copy_bytes(typingctx: Any, target: Any, source: Any, size: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointers = [builder.inttoptr(argument, _BYTE) for argument in arguments[:2]]
        memcpy = builder.module.declare_intrinsic("llvm.memcpy", [_BYTE, _BYTE, ir.IntType(64)])
        builder.call(memcpy, [*pointers, arguments[2], ir.IntType(1)(0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@kernel
def _copy(target: NDArray[np.uint8], address: int, size: int) -> None:
    _copy_bytes(np.int64(target.ctypes.data), address, size)
