"""Closing up numbers of which some are left out, many at once, in machine code.

Source: LLVM language reference, ``llvm.experimental.vector.compress``; where a processor has
AVX-512 this is an instruction.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types

from storage_backends.jit import intrinsic, target_has

#: Numbers that are taken at once.
LANES = 16
#: Whether the compiler knows how to close up, and the processor has an instruction for it.
IS_KNOWN = binding.llvm_version_info >= (19,)
IS_FAST = IS_KNOWN and target_has("avx512f")

_WORDS = ir.VectorType(ir.IntType(32), LANES)
_TESTS = ir.VectorType(ir.IntType(1), LANES)
_NAME = f"llvm.experimental.vector.compress.v{LANES}i32"


@intrinsic
def close_up(typingctx: Any, keys: Any, numbers: Any, start: Any, out: Any, at: Any) -> Any:
    """Copy :data:`LANES` integers, from `start` on, but those whose key is negative.

    `keys`, `numbers` and `out` are pointers. As many are written, from `at` of `out` on; behind
    those that are kept they mean nothing. Returns how many were kept.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def lanes(i: int, position: Any) -> Any:
            element = context.get_data_type(signature.args[i].dtype)
            pointer = builder.gep(arguments[i], [position])
            return builder.bitcast(pointer, ir.VectorType(element, LANES).as_pointer())

        source, target = lanes(1, arguments[2]), lanes(3, arguments[4])
        tested = _load(builder, lanes(0, arguments[2]))
        kept = builder.icmp_signed(">=", tested, ir.Constant(tested.type, [0] * LANES))
        closed = _closed(builder, _load(builder, source), kept)
        stored = builder.store(_resized(builder, closed, target.type.pointee), target)
        stored.align = _nbytes(target.type.pointee)
        return builder.zext(builder.ctpop(builder.bitcast(kept, ir.IntType(LANES))), ir.IntType(64))

    return types.int64(keys, numbers, types.int64, out, types.int64), codegen


def _load(builder: Any, pointer: Any) -> Any:
    loaded = builder.load(pointer)
    loaded.align = _nbytes(loaded.type)
    return loaded


def _nbytes(vector_type: Any) -> int:
    """Bytes of a number, at a multiple of which vectors of it are."""
    return int(vector_type.element.width) // 8


def _closed(builder: Any, vector: Any, kept: Any) -> Any:
    """By way of 32 bits: other widths some compilers do not know, and end the process."""
    kind = vector.type
    if kind.element.width > 32:
        half = ir.Constant(kind, [32] * LANES)
        parts = vector, builder.lshr(vector, half)
        low, high = (
            builder.zext(_closed(builder, builder.trunc(part, _WORDS), kept), kind)
            for part in parts
        )
        return builder.or_(low, builder.shl(high, half))
    function = builder.module.globals.get(_NAME) or ir.Function(
        builder.module, ir.FunctionType(_WORDS, [_WORDS, _TESTS, _WORDS]), _NAME
    )
    words = builder.zext(vector, _WORDS) if kind.element.width < 32 else vector
    closed = builder.call(function, [words, kept, ir.Constant(_WORDS, ir.Undefined)])
    return _resized(builder, closed, kind)


def _resized(builder: Any, vector: Any, kind: Any) -> Any:
    """The same numbers, none of which is negative if they become wider, in another type."""
    if kind.element.width == vector.type.element.width:
        return vector
    wider = kind.element.width > vector.type.element.width
    return builder.zext(vector, kind) if wider else builder.trunc(vector, kind)
