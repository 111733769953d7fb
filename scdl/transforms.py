"""Transforms of the stored values of a batch, which a loader applies as it assembles it."""

from __future__ import annotations

from dataclasses import dataclass

from scdl.errors import LoaderError


@dataclass(frozen=True)
class NormalizeTotal:
    """Scale the values of each cell to a total; cells without counts stay as they are.

    As ``scanpy.pp.normalize_total`` does with a given `target_sum`.

    Parameters
    ----------
    target_sum
        Total of each cell afterwards.
    """

    target_sum: float = 1e4

    def __post_init__(self) -> None:
        if not 0 < self.target_sum < float("inf"):
            raise LoaderError(f"target_sum must be a positive number, not {self.target_sum}")


@dataclass(frozen=True)
class Log1p:
    """Replace each value x by log(1 + x), as ``scanpy.pp.log1p`` does."""
