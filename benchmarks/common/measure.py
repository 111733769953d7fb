"""Measuring: repetitions in turn, their spread, and child processes watched from outside."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

T = TypeVar("T")

SAMPLING_SECONDS = 0.005
"""Time between two looks at the memory of a child; a shorter peak can be missed."""


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

    What slows the machine for a while then slows both, and each pair can be compared.

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


def anonymous_bytes(pid: int) -> int | None:
    """Resident anonymous memory of a process: heap and stacks, without mapped files.

    Returns
    -------
    int or None
        ``RssAnon`` of ``/proc/<pid>/status``; None where there is no such thing.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return None


class MemoryWatch:
    """Watches the anonymous memory of another process, from a thread of this one.

    Watching from outside leaves the child its interpreter lock and its cores.

    Attributes
    ----------
    peak
        Largest value seen since the start, bytes; None where it cannot be read.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak = anonymous_bytes(pid)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLING_SECONDS):
            self._look()

    def _look(self) -> None:
        now = anonymous_bytes(self._pid)
        if now is not None and self.peak is not None:
            self.peak = max(self.peak, now)


@dataclass(frozen=True)
class ChildRun:
    """What a child process did.

    Attributes
    ----------
    report
        The child's own figures.
    baseline, peak
        Anonymous memory when the child was ready, and at most from then on, bytes.
    """

    report: dict[str, Any]
    baseline: int | None
    peak: int | None

    @property
    def peak_megabytes(self) -> float | None:
        """Peak over the baseline, in 10⁶ bytes."""
        return self.peak_over(self.baseline)

    def peak_over(self, level: int | None) -> float | None:
        """Peak over a level in bytes, in 10⁶ bytes; None where memory cannot be read."""
        if level is None or self.peak is None:
            return None
        return (self.peak - level) / 1e6


class ChildFailedError(RuntimeError):
    """A measured child process ended before it reported."""


def run_child(module: str, arguments: Sequence[str]) -> ChildRun:
    """Run ``python -m module arguments`` in a fresh interpreter and watch its memory.

    The child prints ``ready`` when it has imported what it needs, waits for a line on its standard
    input, does its work, prints one line of JSON, and waits for the end of its input.

    Raises
    ------
    ChildFailedError
        The child ended early; the message has what it wrote to standard error.
    """
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        stderr = _Drain(child.stderr)
        _expect(child, stderr, lambda line: line == "ready")
        baseline = anonymous_bytes(child.pid)
        with MemoryWatch(child.pid) as watch:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
            answer = _expect(child, stderr, lambda line: line.startswith("{"))
        child.stdin.close()
        stderr.text()
    return ChildRun(json.loads(answer), baseline, watch.peak)


class _Drain:
    """Reads a pipe to its end in a thread, so that whoever writes never waits."""

    def __init__(self, pipe: Any) -> None:
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._lines.extend, args=(pipe,), daemon=True)
        self._thread.start()

    def text(self) -> str:
        self._thread.join()
        return "".join(self._lines)


def _expect(child: subprocess.Popen[str], stderr: _Drain, wanted: Callable[[str], bool]) -> str:
    """Skip what the child prints up to the wanted line, and return that."""
    assert child.stdout is not None
    for line in child.stdout:
        if wanted(line.strip()):
            return line.strip()
    raise ChildFailedError(
        f"a measured process ended with code {child.wait()} before it reported:\n{stderr.text()}"
    )
