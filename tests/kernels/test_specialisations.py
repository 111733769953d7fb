"""Kernels are compiled for types, and not once more for a constant that a caller passes."""

from typing import Any

import numba
from numba import types

from storage_backends.compute.jit import helper


@helper
def _add(number: int, other: int, is_negative: bool) -> int:
    return number - other if is_negative else number + other


@numba.njit  # Not cached, so that what it calls is compiled or loaded.
def _add_often(n: int) -> int:
    total = 0
    for i in range(n):
        total = _add(total, i, False)
    return _add(1, other=2, is_negative=True) + _add(n, 3, is_negative=n > 2) + total


def test_one_for_all_constants() -> None:
    assert _add_often(4) == (1 - 2) + (4 - 3) + 6
    compiled: Any = _add
    assert compiled.signatures == [(types.int64, types.int64, types.boolean)]
