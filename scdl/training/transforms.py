"""Transforms that a loader applies to the stored values of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scdl.errors import LoaderError


@dataclass(frozen=True)
class NormalizeTotal:
    """Scale the values of each cell to a total; cells without counts are not changed.

    Equivalent to ``scanpy.pp.normalize_total`` with a given `target_sum`.

    Parameters
    ----------
    target_sum
        Total of each cell after scaling.
    over
        Genes whose values are summed if a loader has ``genes=``: ``"all"`` genes stored for the
        cell, as if genes were selected after normalisation, or the ``"selected"`` ones.

    Raises
    ------
    LoaderError
        `target_sum` is not a positive number, or `over` is not one of the two.

    Examples
    --------
    >>> scdl.NormalizeTotal(1e4, over="selected")
    NormalizeTotal(target_sum=10000.0, over='selected')
    >>> loader = scdl.SingleCellLoader(
    ...     data, 6, layout="dense", transforms=[scdl.NormalizeTotal(10)]
    ... )
    >>> next(iter(loader)).x.sum(1)
    tensor([10., 10., 10., 10., 10., 10.])
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
    """Replace each value x by log(1 + x), as ``scanpy.pp.log1p`` does.

    Examples
    --------
    >>> loader = scdl.SingleCellLoader(
    ...     data, 2, order="sequential", layout="dense", transforms=[scdl.Log1p()]
    ... )
    >>> next(iter(loader)).x
    tensor([[0.0000, 1.0986, 0.0000, 0.6931],
            [1.3863, 0.0000, 0.0000, 0.0000]])
    """
