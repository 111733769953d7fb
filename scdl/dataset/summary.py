"""Summaries of datasets, collections, loaders and batches, as text and for notebooks."""

from __future__ import annotations

import html
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_MOST_NAMES = 8
_MOST_BLOCKS = 3

#: Lines of a summary by name; None and empty texts are left out.
Facts = Mapping[str, str | None]


def text(title: str, facts: Facts) -> str:
    """A title, followed by a line for each fact."""
    told = {name: fact for name, fact in facts.items() if fact}
    width = max(map(len, told), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {fact}" for name, fact in told.items())])


def table(facts: Facts) -> str:
    """An HTML table with a row for each fact."""
    rows = [
        f'<tr><th style="text-align: left">{html.escape(name)}</th>'
        f'<td style="text-align: left">{html.escape(fact)}</td></tr>'
        for name, fact in facts.items()
        if fact
    ]
    return f"<table>{''.join(rows)}</table>"


class Summarized:
    """An object that notebooks show as a title with a table."""

    @abstractmethod
    def _summary(self) -> tuple[str, Facts]:
        """Title and facts, which are fast to determine."""

    def _repr_html_(self) -> str:
        title, facts = self._summary()
        return f"<div><strong>{html.escape(title)}</strong>{table(facts)}</div>"


def names(found: Sequence[object] | NDArray[Any]) -> str:
    """The first names, and the number of further ones."""
    more = len(found) - _MOST_NAMES
    return ", ".join(map(str, found[:_MOST_NAMES])) + (f" and {more:,} more" if more > 0 else "")


def size(n_obs: int, n_vars: Sequence[int]) -> str:
    """Number of cells and genes, in one or several feature blocks."""
    genes = " + ".join(f"{n:,}" for n in n_vars)
    if len(n_vars) > _MOST_BLOCKS:
        genes = " to ".join(f"{n:,}" for n in sorted({min(n_vars), max(n_vars)}))
    blocks = f" genes in {len(n_vars):,} feature blocks" if len(n_vars) > 1 else " genes"
    return f"{n_obs:,} cells x {genes}{blocks}"


def values(stored: int, possible: int, dtype: DTypeLike, index_dtype: DTypeLike) -> str:
    """Number of stored values, and their dtypes."""
    share = f" ({stored / possible:.1%} of all)" if possible else ""
    kinds = f"{np.dtype(dtype)}, column ids {np.dtype(index_dtype)}"
    return f"{stored:,} stored{share}, {kinds}"
