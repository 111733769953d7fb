"""Groups of cells by one or several columns of obs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.archive.schema import names_of
from scdl.dataset.reader import CellReader
from scdl.errors import OptionError
from scdl.training.vocabulary import CELLS_AT_ONCE, ObsColumn, label_codes, narrow_type


class Groups(ObsColumn):
    """Group code of each cell, -1 if a value is missing, and the labels of the codes.

    With several columns each combination that occurs is a group, whose label is a tuple.
    """

    __slots__ = ()

    def code_of(self, label: Any, option: str) -> int:
        """The code of a label; OptionError names `option` and the labels that exist."""
        assert self.names is not None
        label = tuple(label) if isinstance(label, list) else label
        if label not in self.names:
            known = ", ".join(map(repr, self.names[:_MAX_LABELS_SHOWN]))
            n_more = len(self.names) - _MAX_LABELS_SHOWN
            more = f" and {n_more} more" if n_more > 0 else ""
            raise OptionError(f"{option}: there is no group {label!r}, only {known}{more}")
        return self.names.index(label)

    def cells(self) -> dict[str, NDArray[np.int64]]:
        """The cells of each label that has some, ascending; labels as text, in order of codes."""
        assert self.names is not None
        positions, counts = cells_by_code(self.values)
        parts = np.split(positions, np.cumsum(counts)[:-1]) if len(counts) else []
        texts = (", ".join(map(str, n)) if isinstance(n, tuple) else str(n) for n in self.names)
        return {text: cells for text, cells in zip(texts, parts, strict=False) if len(cells)}


#: Labels that an error message lists.
_MAX_LABELS_SHOWN = 10


def group_cells(
    cells: CellReader,
    by: str | Sequence[str],
    option: str = "by",
    rows: NDArray[np.int64] | None = None,
) -> Groups:
    """Group cells by their values in columns of obs.

    Parameters
    ----------
    by
        One column, or several.
    option
        Name of the user's option, for messages.
    rows
        Group only these cells, in this order.

    Raises
    ------
    OptionError
        No column is given.
    FeatureNotFoundError, ColumnTypeError
        There is no such column, or it holds no labels.
    """
    names = names_of(by, option)
    if not names:
        raise OptionError(f"{option} must name at least one column of obs")
    first, *others = (label_codes(cells, name) for name in names)
    if rows is not None:
        first, *others = (c._replace(values=c.values[rows]) for c in (first, *others))
    if not others:
        return Groups(*first)
    assert first.names is not None
    joined = first._replace(names=tuple((name,) for name in first.names))
    for column in others:
        joined = _combined(joined, column)
    return Groups(*joined)


def _combined(first: ObsColumn, second: ObsColumn) -> ObsColumn:
    """The combinations that occur of two columns of codes, in order; labels are tuples."""
    assert first.names is not None
    assert second.names is not None
    n, width = len(first.values), max(len(second.names), 1)

    def blocks() -> Iterator[tuple[slice, NDArray[np.bool_], NDArray[np.int64]]]:
        for start, stop in csr.spans(n, CELLS_AT_ONCE):
            part = slice(start, stop)
            high, low = first.values[part], second.values[part]
            known = (high >= 0) & (low >= 0)
            yield part, known, high[known].astype(np.int64) * width + low[known]

    found = [np.unique(pairs) for _, _, pairs in blocks()]
    occurring = np.unique(np.concatenate([np.empty(0, np.int64), *found]))
    codes = np.full(n, -1, narrow_type(len(occurring)))
    for part, known, pairs in blocks():
        codes[part][known] = np.searchsorted(occurring, pairs)
    labels = (
        (*first.names[pair // width], second.names[pair % width]) for pair in occurring.tolist()
    )
    return ObsColumn(codes, tuple(labels))


def count_codes(codes: NDArray[Any], without: int | None = None) -> NDArray[np.int64]:
    """Number of cells of each code up to the largest that occurs; negative ones do not count.

    Parameters
    ----------
    without
        A code that does not count either.
    """
    counts = np.zeros(int(codes.max(initial=-1)) + 1, np.int64)
    for start, stop in csr.spans(len(codes), CELLS_AT_ONCE):
        part = codes[start:stop]
        counts += np.bincount(part[part >= 0], minlength=len(counts))
    if without is not None and without < len(counts):
        counts[without] = 0
    return np.trim_zeros(counts, "b")


def cells_by_code(
    codes: NDArray[Any], without: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The cells of each code in ascending order, those of code 0 first; 8 bytes a cell.

    Parameters
    ----------
    codes
        Code of each cell, from 0; cells with a negative code are left out.
    without
        A code whose cells are left out, too.

    Returns
    -------
    cells, counts : numpy.ndarray
        Positions of the cells, int64, and number of cells of each code, int64.
    """
    counts = count_codes(codes, without)
    cells = np.empty(int(counts.sum()), np.int64)
    free = np.cumsum(counts) - counts
    for start, stop in csr.spans(len(codes), CELLS_AT_ONCE):
        part = codes[start:stop]
        is_left_out = part < 0 if without is None else (part < 0) | (part == without)
        at = np.flatnonzero(~is_left_out)
        at = at[np.argsort(part[at], kind="stable")]
        ordered = part[at].astype(np.int64)
        here = np.bincount(ordered, minlength=len(counts))
        rank = np.arange(len(at)) - (np.cumsum(here) - here)[ordered]
        cells[free[ordered] + rank] = start + at
        free += here
    return cells, counts
