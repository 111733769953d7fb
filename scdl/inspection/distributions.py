"""Distributions of numbers and labels, as reports count them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdl.reports import Report

#: Bins of a histogram.
_BINS = 40
#: Numbers that span a larger factor are divided into bins of equal ratios.
_WIDE = 100
#: Integers below this one, and their successors, are exact in float64.
_LARGEST_EXACT = 2**53
#: Labels of a column that are listed.
_MOST_LABELS = 12


@dataclass(frozen=True)
class Distribution(Report):
    """A histogram of numbers.

    Parameters
    ----------
    n, n_missing
        Number of finite numbers, and of others.
    mean, median, least, most
        Of the finite numbers; NaN if there are none.
    edges
        Edges of the bins, one more than `counts`: in the first bin numbers from ``edges[0]`` to
        below ``edges[1]``; the last bin includes its end.
    counts
        Number of values in each bin.

    Examples
    --------
    >>> genes = scdl.report("cells.scdl").genes_per_cell
    >>> genes.least, genes.median, genes.most
    (1.0, 2.0, 2.0)
    """

    n: int
    n_missing: int
    mean: float
    median: float
    least: float
    most: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: NDArray[Any]) -> Distribution:
        """The distribution of numbers of any dtype."""
        numbers = values.astype(np.float64)
        finite = numbers[np.isfinite(numbers)]
        n_missing = len(numbers) - len(finite)
        if not len(finite):
            return cls(0, n_missing, np.nan, np.nan, np.nan, np.nan, (), ())
        least, most = float(finite.min()), float(finite.max())
        counts, edges = np.histogram(finite, _edges(finite, least, most))
        return cls(
            len(finite),
            n_missing,
            # Sums of large numbers must not overflow.
            float(np.mean(finite / 2)) * 2,
            min(max(float(np.median(finite / 2)) * 2, least), most),
            least,
            most,
            tuple(edges.tolist()),
            tuple(counts.tolist()),
        )

    @property
    def is_logarithmic(self) -> bool:
        """Whether the bins have equal ratios rather than equal widths."""
        edges = self.edges
        return len(edges) > 3 and edges[-1] - edges[-2] > 2 * (edges[1] - edges[0]) > 0

    def __str__(self) -> str:
        if not self.n:
            return "no numbers"
        missing = f", {self.n_missing:,} missing" if self.n_missing else ""
        return (
            f"{number(self.least)} to {number(self.most)}, median {number(self.median)}, "
            f"mean {number(self.mean)}{missing}"
        )


def _edges(numbers: NDArray[np.float64], least: float, most: float) -> NDArray[np.float64]:
    integers = bool((numbers == np.floor(numbers)).all())
    # Larger numbers have no bins of width 1.
    if integers and most - least < _BINS and max(-least, most) < _LARGEST_EXACT:
        return np.arange(least, most + 2)
    if least > 0 and most > _WIDE * least:
        edges = np.geomspace(least, most, _BINS + 1)
    else:
        # Halves, since the difference of large numbers may overflow.
        edges = np.linspace(least / 2, most / 2, _BINS + 1) * 2
    if integers:
        # No bin between two integers, which would be empty.
        edges = np.floor(edges)
    # Rounding must not leave out the extremes, nor repeat an edge.
    edges[0], edges[-1] = least, most
    edges = np.unique(edges)
    return edges if len(edges) > 1 else np.array([least, np.nextafter(most, np.inf)])


@dataclass(frozen=True)
class Labels(Report):
    """How often labels occur.

    Parameters
    ----------
    n, n_missing
        Number of values, and of missing ones.
    n_labels
        Number of different labels.
    largest
        The most frequent labels, with their number, descending.

    Examples
    --------
    >>> scdl.report("cells.scdl").obs["cell_type"]
    Labels(n=6, n_missing=0, n_labels=3, largest={'T': 3, 'B': 2, 'NK': 1})
    """

    n: int
    n_missing: int
    n_labels: int
    largest: dict[str, int]

    @classmethod
    def of(cls, values: NDArray[Any]) -> Labels:
        """The labels of an array of any objects."""
        import pandas as pd

        series = pd.Series(values, dtype=object)
        counts = series.dropna().astype(str).value_counts()
        largest = counts.head(_MOST_LABELS)
        names = [str(name) for name in largest.index]
        n = int(counts.sum())
        return cls(n, len(series) - n, len(counts), dict(zip(names, largest.tolist(), strict=True)))

    def __str__(self) -> str:
        missing = f", {self.n_missing:,} missing" if self.n_missing else ""
        return f"{self.n_labels:,} labels{missing}"


def distribution(values: NDArray[Any]) -> Distribution | Labels:
    """The distribution of a column: of its numbers, or of its labels."""
    return Distribution.of(values) if values.dtype.kind in "iuf" else Labels.of(values)


def number(value: float) -> str:
    """A number with at most four digits after the first ones."""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"
