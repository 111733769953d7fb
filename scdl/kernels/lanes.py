"""SIMD kernel that maps values to a gene space and drops genes outside it.

Source: LLVM language reference, ``llvm.experimental.vector.compress``, which is a single
instruction on processors with AVX-512.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types

from storage_backends.compute.jit import intrinsic, target_has

#: Number of values processed at a time.
LANES = 16
#: Whether LLVM supports vector.compress, and whether the processor has an instruction for it.
IS_KNOWN = binding.llvm_version_info >= (19,)
IS_FAST = IS_KNOWN and target_has("avx512f")

_WORDS = ir.VectorType(ir.IntType(32), LANES)
_TESTS = ir.VectorType(ir.IntType(1), LANES)
_NAME = f"llvm.experimental.vector.compress.v{LANES}i32"


@intrinsic
def map_lanes(
    typingctx: Any, ids: Any, values: Any, start: Any, table: Any, out_ids: Any, out: Any, at: Any
) -> Any:
    """Copy :data:`LANES` values from position `start` and map their ids to genes.

    All arguments except `start` and `at` are pointers. `table` has the gene of each id; values with
    a negative gene are left out. :data:`LANES` genes and values are always written to `out_ids` and
    `out` from position `at`; those after the kept ones are undefined. Returns the number of kept
    values.
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
    """Look up the genes of ids one by one, which is faster than a gather instruction."""
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
    """Size of an element in bytes, used as the alignment of loads and stores."""
    return int(vector_type.element.width) // 8


def _closed(builder: Any, vector: Any, kept: Any) -> Any:
    """Compress a vector through 32-bit elements: other widths crash some LLVM versions."""
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
    """Convert to another integer width; numbers must not be negative when widened."""
    if kind.element.width == vector.type.element.width:
        return vector
    wider = kind.element.width > vector.type.element.width
    return builder.zext(vector, kind) if wider else builder.trunc(vector, kind)
