"""Compiling kernels with numba, cached on disk where there is a place for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from llvmlite import binding, ir
from numba import extending, types

#: Decorates a function that writes machine code, whose first argument callers leave out.
intrinsic: Callable[[Callable[..., Any]], Callable[..., Any]] = extending.intrinsic

#: Bytes of a line of the cache.
LINE = 64
#: Bytes that are fetched ahead: behind them the processor sees by itself what comes next.
_MOST_AHEAD = 2_048

_F = TypeVar("_F", bound=Callable[..., Any])


def target_has(feature: str) -> bool:
    """Whether code is compiled for processors that have this, as LLVM calls it."""
    # NUMBA_CPU_NAME and NUMBA_CPU_FEATURES ask for others than the one that is here.
    name, asked = (getattr(numba.config, f"CPU_{which}") for which in ("NAME", "FEATURES"))
    if name is None and asked is None:
        return bool(binding.get_host_cpu_features().get(feature))
    return f"+{feature}" in (asked or "").split(",")


def kernel(function: _F) -> _F:
    """Compile a function that works on plain arrays; it releases the GIL while it runs."""
    try:
        compiled = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        # No directory can be written, as in a read-only container: compile in every process.
        compiled = numba.njit(nogil=True)(function)
    return cast(_F, compiled)


@intrinsic
def fetch_line(typingctx: Any, address: Any) -> Any:
    """Begin to bring a line of memory to the cache; any address will do."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        # For reading, to all caches, of data.
        options = number(0), number(3), number(1)
        builder.call(function, [builder.inttoptr(arguments[0], byte), *options])
        return context.get_dummy_value()

    return types.none(types.int64), codegen


@kernel
def fetch_ahead(address: int, n_bytes: int) -> None:
    """Begin to bring memory to the cache that is read in a moment; any address will do."""
    for offset in range(0, min(n_bytes, _MOST_AHEAD), LINE):
        fetch_line(address + offset)
