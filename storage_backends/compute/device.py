"""Compilation of kernels for GPUs; only modules with such kernels import it, as it takes long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba.cuda

#: The part of numba for GPUs, or its simulator; without type annotations.
cuda: Any = numba.cuda
#: Compiles a kernel, which is launched with ``kernel[blocks, threads](…)``.
device_kernel: Callable[[Callable[..., Any]], Any] = cuda.jit
#: Compiles a function that kernels call.
device_function: Callable[[Callable[..., Any]], Any] = cuda.jit(device=True)


@device_function
def lesser(one: Any, other: Any) -> Any:
    """The lesser number, since numba 0.68 cannot compile ``min`` for a GPU."""
    return one if one < other else other
