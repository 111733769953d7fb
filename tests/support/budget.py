"""How much of what could be tried without end is tried.

``make test`` takes a sample; ``make test-whole`` sets ``SCDL_TESTS=whole`` and takes all of it.
``make test-next`` sets ``SCDL_TESTS=next`` and takes less: most of what a new release of a
dependency breaks, it breaks for every value.
"""

import os
from collections.abc import Iterable
from typing import TypeVar

import pytest

_T = TypeVar("_T")
WHOLE = os.environ.get("SCDL_TESTS") == "whole"
NEXT = os.environ.get("SCDL_TESTS") == "next"

whole_only = pytest.mark.skipif(not WHOLE, reason="long; `make test-whole` runs it")


def examples(whole: int, least: int = 5) -> int:
    """Examples of hypothesis, of those that a property deserves; `least` if each takes seconds."""
    return whole if WHOLE else min(least, 3) if NEXT else max(least, whole // 10)


def sample(every: Iterable[_T], n: int = 3) -> list[_T]:
    """Return `n` of many values, evenly spread: the first, and the last if `n` is not 1."""
    values = list(every)
    if WHOLE or len(values) <= n:
        return values
    return [values[i * (len(values) - 1) // max(n - 1, 1)] for i in range(n)]


def cover(combinations: list[set[_T]]) -> list[int]:
    """Positions of a few combinations in which every value occurs that occurs in any."""
    missing, chosen = set().union(*combinations), []
    while missing:
        best = max(range(len(combinations)), key=lambda i: len(combinations[i] & missing))
        chosen.append(best)
        missing -= combinations[best]
    return sorted(chosen)
