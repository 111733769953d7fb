"""Vectorized decoding of consecutive numbers of varying bit widths.

Sources: LLVM language reference; the instruction ``vpermd`` of AVX-512.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from storage_backends.compute.jit import intrinsic, target_has

#: Numbers decoded at once.
LANES = 16
#: Whether the processor has the instruction; without it, nothing here compiles.
IS_KNOWN = target_has("avx512f")
#: Bytes loaded for one group of numbers, whatever their total width.
LOADED_BYTES = 64

_WORD = ir.IntType(32)
_WORDS = ir.VectorType(_WORD, LANES)
_NUMBERS = ir.VectorType(ir.IntType(16), LANES)
_MIDDLE = 1 << 15


@intrinsic
def add_offsets(typingctx: Any, bins: Any, address: Any, skip: Any, out: Any) -> Any:
    """Store :data:`LANES` numbers, each of which is the lower bound of its bin and an offset.

    Parameters
    ----------
    bins
        Address of uint32: bits of the offset, up to 16, in bits 8 to 15, and the lower bound in
        bits 16 to 31.
    address, skip
        Address of the offsets, and number of leading bits to skip, up to 7.
    out
        Address of the uint16 output.

    Returns
    -------
    uint64
        Total bits of the offsets.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        numbers, n_bits = _numbers(builder, *arguments[:3])
        _store(builder, numbers, arguments[3])
        return builder.zext(n_bits, ir.IntType(64))

    return types.uint64(types.int64, types.int64, types.uint64, types.int64), codegen


@intrinsic
def sum_up(typingctx: Any, bins: Any, address: Any, skip: Any, before: Any, out: Any) -> Any:
    """Store prefix sums of the numbers of :func:`add_offsets`, each minus 2¹⁵.

    Parameters
    ----------
    before
        Number to add to all sums.

    Returns
    -------
    uint64
        Total bits of the offsets in the lower half; sum of all numbers, modulo 2¹⁶, in the upper.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        numbers, n_bits = _numbers(builder, *arguments[:3])
        differences = builder.add(numbers, _all(_MIDDLE))
        sums = _sums(builder, differences)
        start = _splat(builder, builder.trunc(arguments[3], _WORD))
        _store(builder, builder.add(builder.sub(sums, differences), start), arguments[4])
        halves = (builder.zext(n, ir.IntType(64)) for n in (n_bits, _last(builder, sums)))
        lower, upper = halves
        return builder.or_(lower, builder.shl(upper, ir.IntType(64)(32)))

    where = types.int64, types.uint64
    return types.uint64(types.int64, *where, types.uint64, types.int64), codegen


def _numbers(builder: Any, bins: Any, address: Any, skip: Any) -> tuple[Any, Any]:
    """Sums of lower bounds and offsets, and the total bits of the offsets."""
    content = builder.load(builder.inttoptr(bins, _WORDS.as_pointer()))
    content.align = 4
    widths = builder.and_(builder.lshr(content, _all(8)), _all(255))
    ends = _sums(builder, widths)
    starts = builder.add(builder.sub(ends, widths), _splat(builder, builder.trunc(skip, _WORD)))
    loaded = builder.load(builder.inttoptr(address, _WORDS.as_pointer()))
    loaded.align = 1
    # Each offset spans at most two words.
    word = builder.lshr(starts, _all(5))
    pick = _declared(builder, "llvm.x86.avx512.permvar.si.512", 2)
    low = builder.call(pick, [loaded, word])
    high = builder.call(pick, [loaded, builder.add(word, _all(1))])
    shifted = builder.call(_declared(builder, f"llvm.fshr.v{LANES}i32", 3), [high, low, starts])
    mask = builder.sub(builder.shl(_all(1), widths), _all(1))
    offsets = builder.and_(shifted, mask)
    return builder.add(offsets, builder.lshr(content, _all(16))), _last(builder, ends)


def _sums(builder: Any, words: Any) -> Any:
    """Inclusive prefix sums."""
    for step in (1, 2, 4, 8):
        moved = [i - step if i >= step else LANES for i in range(LANES)]
        shifted = builder.shuffle_vector(words, _all(0), ir.Constant(_WORDS, moved))
        words = builder.add(words, shifted)
    return words


def _store(builder: Any, words: Any, target: Any) -> None:
    stored = builder.store(
        builder.trunc(words, _NUMBERS), builder.inttoptr(target, _NUMBERS.as_pointer())
    )
    stored.align = 2


def _last(builder: Any, words: Any) -> Any:
    return builder.extract_element(words, _WORD(LANES - 1))


def _all(number: int) -> Any:
    return ir.Constant(_WORDS, [number] * LANES)


def _splat(builder: Any, word: Any) -> Any:
    one = builder.insert_element(_all(0), word, _WORD(0))
    return builder.shuffle_vector(one, one, _all(0))


def _declared(builder: Any, name: str, n_arguments: int) -> Any:
    """Declare a function of `n_arguments` vectors."""
    return builder.module.globals.get(name) or ir.Function(
        builder.module, ir.FunctionType(_WORDS, [_WORDS] * n_arguments), name
    )
