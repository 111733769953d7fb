"""Transforms of the stored values of a batch, which a loader applies as it assembles it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scdl.errors import LoaderError


@dataclass(frozen=True)
class NormalizeTotal:
    """Scale the values of each cell to a total; cells without counts stay as they are.

    As ``scanpy.pp.normalize_total`` does with a given `target_sum`.

    Parameters
    ----------
    target_sum
        Total of each cell afterwards.
    over
        Which genes count for the total where a loader has ``genes=``: ``"all"`` that are stored of
        the cell, as if the genes were selected after normalising, or those that are ``"selected"``.

    Raises
    ------
    LoaderError
        `target_sum` is not a positive number, or `over` is neither.

    Examples
    --------
    >>> NormalizeTotal(1e4, over="selected")
    NormalizeTotal(target_sum=10000.0, over='selected')
    """

    target_sum: float = 1e4
    over: Literal["all", "selected"] = "all"

    def __post_init__(self) -> None:
        if self.over not in ("all", "selected"):
            raise LoaderError(f"over must be 'all' or 'selected', not {self.over!r}")
        if not 0 < self.target_sum < float("inf"):
            raise LoaderError(f"target_sum must be a positive number, not {self.target_sum}")


@dataclass(frozen=True)
class Log1p:
    """Replace each value x by log(1 + x), as ``scanpy.pp.log1p`` does."""
