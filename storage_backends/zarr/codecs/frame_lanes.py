"""Decoding a block of a frame at once, in vectors.

Sources: LLVM language reference; the instructions ``pshufb`` of x86 and ``tbl`` of Arm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from storage_backends.compute.jit import intrinsic, target_has
from storage_backends.zarr.codecs.frame_format import BLOCK

#: Widest numbers that can be decoded in vectors, and widest gaps whose sums fit their 16 bits.
MOST_BITS, MOST_GAP_BITS = 16, 10
#: Widest numbers that lie within two bytes each, which one instruction picks.
_PICKED_BITS = 9
#: Instructions that pick bytes: feature of the processor, name in LLVM, and bytes of a vector.
_PICKS = (
    ("avx512bw", "llvm.x86.avx512.pshuf.b.512", 64),
    ("avx2", "llvm.x86.avx2.pshuf.b", 32),
    ("ssse3", "llvm.x86.ssse3.pshuf.b.128", 16),
    ("neon", "llvm.aarch64.neon.tbl1.v16i8", 16),
)
#: The first that there is here; the others take twice the time.
PICK = next(((name, n_bytes) for has, name, n_bytes in _PICKS if target_has(has)), None)

_BYTE, _NUMBER, _WORD, _LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))


def _patterns() -> NDArray[np.uint16]:
    """Of each width the bytes of eight numbers, the factors that align these, and their masks."""
    found = np.zeros((_PICKED_BITS + 1, 3, 8), np.uint16)
    for width, (picked, factors, masks) in enumerate(found):
        at, shift = np.divmod(np.arange(8) * width, 8)
        picked[:] = at | (at + 1) << 8
        factors[:] = 1 << (7 - shift)
        masks[:] = (1 << width) - 1
    return found


_PATTERNS = _patterns()
_PATTERN_BYTES = _PATTERNS[0].nbytes


def _pattern_address(builder: Any) -> Any:
    """Address of a constant of compiled code with the patterns."""
    kind, name = ir.ArrayType(_NUMBER, _PATTERNS.size), ".scdl.patterns"
    constant = builder.module.globals.get(name)
    if constant is None:
        constant = ir.GlobalVariable(builder.module, kind, name)
        constant.initializer = ir.Constant(kind, _PATTERNS.ravel().tolist())
        constant.linkage, constant.global_constant = "internal", True
    return builder.ptrtoint(constant, _LONG)


def _intrinsic(result: Any, body: Callable[..., Any]) -> Any:
    """An intrinsic of the address of a block, its width, a number, an output, and a position in it.

    `body` generates its code from the builder, the unpacked numbers, the number, and the pointer to
    the output.
    """

    @intrinsic
    def put(typingctx: Any, address: Any, width: Any, number: Any, out: Any, at: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            address, width, number, out, at = arguments
            array = context.make_array(signature.args[3])(context, builder, out)
            numbers = _unpacked(builder, address, width)
            done = body(builder, numbers, number, builder.gep(array.data, [at]))
            return context.get_dummy_value() if done is None else done

        integers = (types.int64,) * 3
        return result(*integers, out, types.int64), codegen

    return put


def _put_numbers(builder: Any, numbers: Any, base: Any, target: Any) -> None:
    kind = target.type.pointee
    _store(
        builder, builder.add(_resized(builder, numbers, kind), _splat(builder, base, kind)), target
    )


def _put_floats(builder: Any, numbers: Any, base: Any, target: Any) -> None:
    bits = target.type.pointee
    if bits.width < 32:
        # There are no such floats.
        return
    total = builder.add(_resized(builder, numbers, bits), _splat(builder, base, bits))
    kind = ir.FloatType() if bits.width == 32 else ir.DoubleType()
    floats = builder.sitofp(total, ir.VectorType(kind, BLOCK))
    _store(builder, builder.bitcast(floats, total.type), target)


def _put_sums(builder: Any, gaps: Any, before: Any, target: Any) -> Any:
    kind = target.type.pointee
    sums = builder.add(gaps, _all(_NUMBER, 1))
    for step in (1, 2, 4, 8, 16):
        moved = [k - step if k >= step else BLOCK for k in range(BLOCK)]
        sums = builder.add(sums, _shuffled(builder, sums, _all(_NUMBER, 0), moved))
    _store(
        builder, builder.add(_resized(builder, sums, kind), _splat(builder, before, kind)), target
    )
    last = builder.zext(builder.extract_element(sums, _WORD(BLOCK - 1)), _LONG)
    return builder.add(before, last)


#: Store the sum of each number and another one; as float32 or float64 where the output has the
#: bits of these; or the sums of all gaps up to each, and return the last. The arguments are the
#: address and width of a block, the number to add, the output, and the position of the first.
put_numbers = _intrinsic(types.none, _put_numbers)
put_floats = _intrinsic(types.none, _put_floats)
put_sums = _intrinsic(types.int64, _put_sums)


def _unpacked(builder: Any, address: Any, width: Any) -> Any:
    """The numbers of a block, each in 16 bits."""
    if PICK is None:
        return _from_words(builder, address, width)
    is_narrow = builder.icmp_unsigned("<=", width, _LONG(_PICKED_BITS))
    with builder.if_else(is_narrow, likely=True) as (narrow, wide):
        with narrow:
            picked = _picked(builder, address, width)
            narrow_block = builder.block
        with wide:
            words = _from_words(builder, address, width)
            wide_block = builder.block
    numbers = builder.phi(picked.type)
    numbers.add_incoming(picked, narrow_block)
    numbers.add_incoming(words, wide_block)
    return numbers


def _picked(builder: Any, address: Any, width: Any) -> Any:
    """Numbers of up to nine bits: two bytes each, shifted together."""
    assert PICK is not None
    name, n_bytes = PICK
    # Eight numbers take `width` bytes.
    groups = [
        _loaded(builder, builder.add(address, builder.mul(width, _LONG(group))), _BYTE, 16)
        for group in range(BLOCK // 8)
    ]
    row = builder.add(_pattern_address(builder), builder.mul(width, _LONG(_PATTERN_BYTES)))
    indexes, factors, masks = (
        _joined(builder, [_loaded(builder, builder.add(row, _LONG(at)), kind, n)] * 4)
        for at, kind, n in ((0, _BYTE, 16), (16, _NUMBER, 8), (32, _NUMBER, 8))
    )
    vector = ir.VectorType(_BYTE, n_bytes)
    function = builder.module.globals.get(name) or ir.Function(
        builder.module, ir.FunctionType(vector, [vector, vector]), name
    )
    at_once = n_bytes // 16
    parts = []
    for first in range(0, len(groups), at_once):
        source = _joined(builder, groups[first : first + at_once])
        picks = _shuffled(builder, indexes, indexes, list(range(n_bytes)))
        parts.append(builder.call(function, [source, picks]))
    numbers = builder.bitcast(_joined(builder, parts), ir.VectorType(_NUMBER, BLOCK))
    aligned = builder.lshr(builder.mul(numbers, factors), _all(_NUMBER, 7))
    return builder.and_(aligned, masks)


def _from_words(builder: Any, address: Any, width: Any) -> Any:
    """Numbers of up to 16 bits: four of each word, of which every second one begins in a byte."""
    shift = builder.mul(builder.and_(width, _LONG(1)), _LONG(4))
    # Shifts of two words, whose first numbers begin `width / 2` bytes apart.
    lanes = ir.VectorType(_LONG, 8)
    shifts = builder.add(
        builder.mul(_splat(builder, width, _LONG, 8), ir.Constant(lanes, [0, 1, 2, 3] * 2)),
        builder.mul(_splat(builder, shift, _LONG, 8), ir.Constant(lanes, [0] * 4 + [1] * 4)),
    )
    parts = []
    for group in range(BLOCK // 8):
        first = builder.add(address, builder.mul(width, _LONG(group)))
        second = builder.add(first, builder.lshr(width, _LONG(1)))
        one, other = (_loaded(builder, at, _LONG, 1) for at in (first, second))
        words = _shuffled(builder, one, other, [0] * 4 + [1] * 4)
        parts.append(builder.trunc(builder.lshr(words, shifts), ir.VectorType(_NUMBER, 8)))
    mask = builder.sub(builder.shl(_LONG(1), width), _LONG(1))
    return builder.and_(_joined(builder, parts), _splat(builder, mask, _NUMBER))


def _loaded(builder: Any, address: Any, kind: Any, n: int) -> Any:
    vector = builder.load(builder.inttoptr(address, ir.VectorType(kind, n).as_pointer()))
    vector.align = 1
    return vector


def _store(builder: Any, vector: Any, target: Any) -> None:
    stored = builder.store(vector, builder.bitcast(target, vector.type.as_pointer()))
    stored.align = target.type.pointee.width // 8


def _shuffled(builder: Any, one: Any, other: Any, order: list[int]) -> Any:
    return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(_WORD, len(order)), order))


def _joined(builder: Any, vectors: list[Any]) -> Any:
    """One vector of one, two or four."""
    while len(vectors) > 1:
        order = list(range(2 * vectors[0].type.count))
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [_shuffled(builder, one, other, order) for one, other in pairs]
    return vectors[0]


def _all(kind: Any, number: int) -> Any:
    return ir.Constant(ir.VectorType(kind, BLOCK), [number] * BLOCK)


def _splat(builder: Any, number: Any, kind: Any, n: int = BLOCK) -> Any:
    """A vector of equal numbers, of the lowest bits of an integer."""
    if kind.width < number.type.width:
        number = builder.trunc(number, kind)
    one = builder.insert_element(
        ir.Constant(ir.VectorType(kind, n), ir.Undefined), number, _WORD(0)
    )
    return _shuffled(builder, one, one, [0] * n)


def _resized(builder: Any, numbers: Any, kind: Any) -> Any:
    """The lowest bits of numbers, or numbers extended by zeros."""
    vector = ir.VectorType(kind, BLOCK)
    if kind.width < MOST_BITS:
        return builder.trunc(numbers, vector)
    return numbers if kind.width == MOST_BITS else builder.zext(numbers, vector)
