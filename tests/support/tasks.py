"""Tasks for workers, which import them: some that end badly."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage_backends.compute import threads


class Task:
    """What all of them have."""

    sources = ("cells.h5ad",)
    nbytes = 1.0


@dataclass(frozen=True, eq=False)
class Counting(Task):
    """Returns a number and the threads that it may use."""

    number: int

    def run(self, meter: Any) -> tuple[int, int, int]:
        return self.number, threads.n_threads(), os.getpid()


@dataclass(frozen=True, eq=False)
class Failing(Task):
    """Raises what it has."""

    error: Exception

    def run(self, meter: Any) -> None:
        raise self.error


@dataclass(frozen=True, eq=False)
class Dying(Task):
    """Ends its process by a signal."""

    signal: int = signal.SIGKILL

    def run(self, meter: Any) -> None:
        os.kill(os.getpid(), self.signal)
        time.sleep(60)


@dataclass(frozen=True, eq=False)
class DyingOnce(Dying):
    """Ends its process the first time, and makes a file."""

    path: str = ""

    def run(self, meter: Any) -> int:
        if not os.path.exists(self.path):
            Path(self.path).touch()
            super().run(meter)
        return os.getpid()


@dataclass(frozen=True, eq=False)
class Endless(Task):
    """Begins by making a file, and works until it is stopped; then it removes the file."""

    path: str

    def run(self, meter: Any) -> None:
        Path(self.path).touch()
        meter.reset(4)
        try:
            meter.update(1)
            while True:
                meter.update(0)
                time.sleep(0.01)
        finally:
            os.remove(self.path)
