"""Groups of cells by one or several columns of obs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdl.archive.schema import names_of
from scdl.dataset.reader import CellReader
from scdl.errors import OptionError
from scdl.training.vocabulary import ObsColumn, label_codes


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
    stacked = np.stack([first.values, *(column.values for column in others)])
    known = (stacked >= 0).all(axis=0)
    combinations, inverse = np.unique(stacked[:, known], axis=1, return_inverse=True)
    values = np.full(stacked.shape[1], -1, np.int64)
    values[known] = inverse.ravel()
    labels = (
        [column.names[code] for code in row]  # type: ignore[index]
        for column, row in zip((first, *others), combinations.tolist(), strict=True)
    )
    return Groups(values, tuple(zip(*labels, strict=True)))
