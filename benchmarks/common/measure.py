"""Repetitions of measurements, taken in turn, and their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """Repetitions of one measurement.

    Attributes
    ----------
    samples
        Every repetition, in the order in which they ran.
    """

    samples: tuple[float, ...]

    @classmethod
    def of(cls, samples: Sequence[float]) -> Self:
        """Keep at least one sample."""
        if not samples:
            raise ValueError("a spread needs at least one sample")
        return cls(tuple(float(sample) for sample in samples))

    @classmethod
    def of_known(cls, samples: Iterable[float | None]) -> Self | None:
        """Keep the samples that are not None; None where there are none."""
        known = [sample for sample in samples if sample is not None]
        return cls.of(known) if known else None

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def low(self) -> float:
        return min(self.samples)

    @property
    def high(self) -> float:
        return max(self.samples)

    def over(self, other: Spread) -> Spread:
        """Ratio of each repetition to the one of `other` that ran in the same turn."""
        return Spread.of([a / b for a, b in zip(self.samples, other.samples, strict=True)])


def take_turns(measures: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Call the measures in turn: A, B, A, B, and so on.

    A machine that is slow for a while is slow for both, so that pairs can be compared.

    Parameters
    ----------
    measures
        Name to a function that measures once.
    repeats
        Calls of each.

    Returns
    -------
    dict
        Name to what its calls returned, in order.
    """
    results: dict[str, list[T]] = {name: [] for name in measures}
    for _ in range(repeats):
        for name, measure in measures.items():
            results[name].append(measure())
    return results


def spreads(
    measures: Mapping[str, Callable[[], float]], repeats: int, *, warm_up: bool = True
) -> dict[str, Spread]:
    """Take turns, after one call of each that does not count."""
    if warm_up:
        take_turns(measures, 1)
    return {name: Spread.of(samples) for name, samples in take_turns(measures, repeats).items()}


def timed(function: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def rate(function: Callable[[], int], at_least_seconds: float) -> float:
    """Items a second: call until the time is over; each call returns how many it handled."""
    items = 0
    start = time.perf_counter()
    while True:
        items += function()
        elapsed = time.perf_counter() - start
        if elapsed >= at_least_seconds:
            return items / elapsed


def epoch_rate(epoch: Callable[[], Mapping[str, Any]], at_least_seconds: float) -> float:
    """Thousands of cells a second; each epoch returns its ``cells`` and its ``seconds``."""
    cells, seconds = 0, 0.0
    while not cells or seconds < at_least_seconds:
        done = epoch()
        cells, seconds = cells + done["cells"], seconds + done["seconds"]
    return cells / seconds / 1e3
