"""Compilation of kernels with numba, cached on disk if a cache directory is writable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from llvmlite import binding, ir
from numba import extending, types
from numba.core.codegen import get_host_cpu_features
from numba.core.dispatcher import Dispatcher
from numpy.typing import NDArray

#: ``numba.extending.intrinsic`` with type annotations; callers omit the first argument.
intrinsic: Callable[[Callable[..., Any]], Callable[..., Any]] = extending.intrinsic

#: ``numba.types.unliteral`` with type annotations.
_unliteral: Callable[[Any], Any] = types.unliteral

#: An integer of compiled code; the static type differs between callers, so it is Any.
Int = Any
#: Size of a cache line in bytes.
LINE = 64
#: Maximum bytes to prefetch; the hardware prefetcher recognises longer sequences.
_MAX_PREFETCH = 2_048

_F = TypeVar("_F", bound=Callable[..., Any])


def target_has(feature: str) -> bool:
    """Whether numba compiles for processors with a feature, by its LLVM name."""
    if feature == "neon":
        # All of AArch64 have it, but not every LLVM says so, and 32-bit Arm has another one.
        return bool(binding.get_process_triple().startswith(("aarch64", "arm64")))
    # LLVM ends the process at an instruction that NUMBA_CPU_FEATURES or NUMBA_ENABLE_AVX=0 exclude.
    features = vars(numba.config)["CPU_FEATURES"]
    if features is None:
        features = get_host_cpu_features()  # type: ignore[no-untyped-call]
    return f"+{feature}" in features.split(",")


def _compiled(function: _F, **options: Any) -> _F:
    try:
        compiled = numba.njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:
        # No cache directory is writable, as in a read-only container; compile in every process.
        compiled = numba.njit(nogil=True, **options)(function)
    if isinstance(compiled, Dispatcher):  # NUMBA_DISABLE_JIT returns the function itself.
        _ignore_literals(compiled)
    return cast(_F, compiled)


def _ignore_literals(compiled: Any) -> None:
    """Compile a function for types only, and not once more for each constant it is called with."""
    template = compiled.get_call_template

    def without_literals(arguments: Any, named: Any) -> Any:
        return template(
            [_unliteral(kind) for kind in arguments],
            {name: _unliteral(kind) for name, kind in named.items()},
        )

    compiled.get_call_template = without_literals


def kernel(function: _F) -> _F:
    """Compile a function of plain arrays; it releases the GIL while it runs."""
    return _compiled(function)


def helper(function: _F) -> _F:
    """Compile a function that only kernels call.

    Compilation takes a fifth less without what Python, and C, would call.
    """
    return _compiled(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def _prefetch(for_writing: bool) -> Callable[..., Any]:
    """An intrinsic that prefetches a cache line."""

    @intrinsic
    def prefetch(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
            function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
            # Maximal locality, data cache.
            options = number(int(for_writing)), number(3), number(1)
            builder.call(function, [builder.inttoptr(arguments[0], byte), *options])
            return context.get_dummy_value()

        return types.none(types.int64), codegen

    return prefetch


#: Prefetches the cache line of an address, which need not be valid.
fetch_line = _prefetch(for_writing=False)
_fetch_line_to_write = _prefetch(for_writing=True)


@helper
def fetch_ahead(address: int, n_bytes: int) -> None:
    """Prefetch memory that will be read soon; the address need not be valid."""
    for offset in range(0, min(n_bytes, _MAX_PREFETCH), LINE):
        fetch_line(address + offset)


@helper
def fetch_to_write(out: NDArray[Any], first: int, n: int) -> None:
    """Prefetch `n` items of an array that will be written soon."""
    address = out.ctypes.data + first * out.itemsize
    for offset in range(0, n * out.itemsize, LINE):
        _fetch_line_to_write(address + offset)
