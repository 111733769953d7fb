"""Mapping values to a gene space, which may lack their genes, many at once, in machine code.

Source: LLVM language reference, ``llvm.experimental.vector.compress``; where a processor has
AVX-512 this is an instruction.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types

from storage_backends.compute.jit import intrinsic, target_has

#: Numbers that are taken at once.
LANES = 16
#: Whether the compiler knows how to close up, and the processor has an instruction for it.
IS_KNOWN = binding.llvm_version_info >= (19,)
IS_FAST = IS_KNOWN and target_has("avx512f")

_WORDS = ir.VectorType(ir.IntType(32), LANES)
_TESTS = ir.VectorType(ir.IntType(1), LANES)
_NAME = f"llvm.experimental.vector.compress.v{LANES}i32"


@intrinsic
def map_lanes(
    typingctx: Any, ids: Any, values: Any, start: Any, table: Any, out_ids: Any, out: Any, at: Any
) -> Any:
    """Copy :data:`LANES` values, from `start` on, with the new genes of their ids.

    All but the positions are pointers: `table` has the new gene of each id, negative where there
    is none; such values are left out. As many genes and values as there are lanes are written,
    from `at` of `out_ids` and `out` on; behind those that are kept they mean nothing. Returns how
    many were kept.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        ids, values, start, table, out_ids, out, at = arguments

        def lanes(pointer: Any, position: Any) -> Any:
            kind = ir.VectorType(pointer.type.pointee, LANES)
            return builder.bitcast(builder.gep(pointer, [position]), kind.as_pointer())

        genes = _looked_up(builder, table, builder.gep(ids, [start]))
        kept = builder.icmp_signed(">=", genes, ir.Constant(_WORDS, [0] * LANES))
        taken = _load(builder, lanes(values, start))
        _store(builder, _closed(builder, genes, kept), lanes(out_ids, at))
        _store(builder, _closed(builder, taken, kept), lanes(out, at))
        return builder.zext(builder.ctpop(builder.bitcast(kept, ir.IntType(LANES))), ir.IntType(64))

    return types.int64(ids, values, types.int64, table, out_ids, out, types.int64), codegen


def _looked_up(builder: Any, table: Any, ids: Any) -> Any:
    """New genes of the ids, one by one: the processor's instruction for it takes longer."""
    genes = ir.Constant(_WORDS, ir.Undefined)
    for lane in range(LANES):
        number = builder.load(builder.gep(ids, [ir.IntType(32)(lane)]))
        gene = builder.load(builder.gep(table, [builder.zext(number, ir.IntType(64))]))
        genes = builder.insert_element(genes, gene, ir.IntType(32)(lane))
    return genes


def _load(builder: Any, pointer: Any) -> Any:
    loaded = builder.load(pointer)
    loaded.align = _nbytes(loaded.type)
    return loaded


def _store(builder: Any, vector: Any, pointer: Any) -> None:
    kind = pointer.type.pointee
    builder.store(_resized(builder, vector, kind), pointer).align = _nbytes(kind)


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
