"""Functions of the C library of this process, which not every system has."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


@cache
def c_function(
    name: str, *arguments: Any, result: Any = ctypes.c_int, keeps_gil: bool = False
) -> Any:
    """A function by name; None where there is none, as on Windows.

    Parameters
    ----------
    arguments, result
        Types of ctypes.
    keeps_gil
        Whether calls keep the GIL, which another thread could otherwise take for long.
    """
    library = ctypes.PyDLL if keeps_gil else ctypes.CDLL
    try:
        function = getattr(library(None, use_errno=True), name)
    except (OSError, AttributeError, TypeError):
        return None
    function.argtypes, function.restype = arguments, result
    return function
