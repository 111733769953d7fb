"""Cells grouped by one column of obs, or by several together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdl.archive.schema import names_of
from scdl.dataset.reader import CellReader
from scdl.errors import OptionError
from scdl.training.vocabulary import ObsColumn, codes


class Groups(ObsColumn):
    """The group of each cell as a code, int; -1 where a column has no value; and their labels.

    By several columns there is a group for each combination that occurs, whose label is a tuple.
    """

    __slots__ = ()

    def code_of(self, label: Any, option: str) -> int:
        """The code of a label; OptionError says of `option` which there are."""
        assert self.names is not None
        label = tuple(label) if isinstance(label, list) else label
        if label not in self.names:
            known = ", ".join(map(repr, self.names[:_SHOWN]))
            more = f" and {len(self.names) - _SHOWN} more" if len(self.names) > _SHOWN else ""
            raise OptionError(f"{option}: there is no group {label!r}, only {known}{more}")
        return self.names.index(label)


#: Labels that a message names.
_SHOWN = 10


def groups(
    cells: CellReader,
    by: str | Sequence[str],
    option: str = "by",
    rows: NDArray[np.int64] | None = None,
) -> Groups:
    """Groups of cells that have the same values in columns of obs.

    Parameters
    ----------
    by
        One column, or several.
    option
        What the user calls `by`.
    rows
        Only of these cells, in this order.

    Raises
    ------
    OptionError
        There are no columns.
    FeatureNotFoundError, ColumnTypeError
        There is no such column, or it holds no labels.
    """
    names = names_of(by, option)
    if not names:
        raise OptionError(f"{option} must name at least one column of obs")
    first, *others = (codes(cells, name) for name in names)
    if rows is not None:
        first, *others = (c._replace(values=c.values[rows]) for c in (first, *others))
    if not others:
        return Groups(*first)
    stacked = np.stack([first.values, *(column.values for column in others)])
    known = (stacked >= 0).all(axis=0)
    combinations, found = np.unique(stacked[:, known], axis=1, return_inverse=True)
    values = np.full(stacked.shape[1], -1, np.int64)
    values[known] = found.ravel()
    labels = (
        [column.names[code] for code in row]  # type: ignore[index]
        for column, row in zip((first, *others), combinations.tolist(), strict=True)
    )
    return Groups(values, tuple(zip(*labels, strict=True)))
