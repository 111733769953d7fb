"""Compiling kernels with numba, cached on disk where there is a place for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from numba import extending

#: Decorates a function that writes machine code, whose first argument callers leave out.
intrinsic: Callable[[Callable[..., Any]], Callable[..., Any]] = extending.intrinsic

_F = TypeVar("_F", bound=Callable[..., Any])


def kernel(function: _F) -> _F:
    """Compile a function that works on plain arrays; it releases the GIL while it runs."""
    try:
        compiled = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        # No directory can be written, as in a read-only container: compile in every process.
        compiled = numba.njit(nogil=True)(function)
    return cast(_F, compiled)
