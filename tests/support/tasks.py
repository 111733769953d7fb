"""Tasks for workers, which import them: some that end badly."""

from __future__ import annotations

import os
import signal
import sys
import time
import weakref
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from storage_backends.compute import threads


@dataclass(frozen=True)
class Counting:
    """Returns a number and the threads that it may use."""

    number: int

    def run(self, meter: Any) -> tuple[int, int, int]:
        return self.number, threads.n_threads(), os.getpid()


@dataclass(frozen=True)
class Imported:
    """Tells whether a module is imported."""

    module: str

    def run(self, meter: Any) -> bool:
        return self.module in sys.modules


@dataclass(frozen=True)
class Failing:
    """Raises what it has."""

    error: Exception

    def run(self, meter: Any) -> None:
        raise self.error


@dataclass(frozen=True)
class Dying:
    """Ends its process by a signal."""

    signal: int = signal.SIGKILL

    def run(self, meter: Any) -> None:
        os.kill(os.getpid(), self.signal)
        time.sleep(60)


@dataclass(frozen=True)
class Unheard:
    """Is told to end, and fails, where Python ignores what is raised."""

    def run(self, meter: Any) -> None:
        for happens in (partial(os.kill, os.getpid(), signal.SIGTERM), partial(int, "so be it")):
            thing = set[int]()
            reference = weakref.ref(thing, lambda _, happens=happens: happens())
            del thing
            assert reference() is None


@dataclass(frozen=True)
class Endless:
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


@dataclass(frozen=True)
class Deaf(Endless):
    """The same, but signals do not reach it."""

    def run(self, meter: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        super().run(meter)
