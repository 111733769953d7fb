"""Tasks and how they run: in a worker process, in a thread, or in the calling process.

A worker process imports this module before the number of its threads is set. The module therefore
must not import NumPy, directly or indirectly.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
import warnings
from collections.abc import MutableSequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

from scdl.errors import ScdlWarning
from storage_backends.compute import threads


class Stopped(BaseException):
    """Raised in the thread of a task to cancel it."""


class TaskMeter:
    """Progress of a task; the calling process reads it.

    Parameters
    ----------
    shares
        Progress of several tasks, from 0 to 1; may be in shared memory.
    slot
        Index of this task in `shares`.
    """

    #: Set by another thread to cancel the task.
    stopped = False

    def __init__(self, shares: MutableSequence[float] | None = None, slot: int = 0) -> None:
        self.slot = slot
        self._shares = [0.0] if shares is None else shares
        self.reset()

    @property
    def share(self) -> float:
        """Progress from 0 to 1."""
        return self._shares[self.slot]

    def reset(self, total: float | None = None) -> None:
        """Start again with a total amount of work."""
        self._total, self._done = total or 0.0, 0.0
        self._shares[self.slot] = 0.0

    def update(self, n: float = 1) -> None:
        """Add `n` to the completed work; raise :class:`Stopped` if the task was cancelled."""
        if self.stopped:
            raise Stopped
        self._done += n
        self._shares[self.slot] = min(self._done / self._total, 1.0) if self._total else 0.0


class Task(Protocol):
    """A piece of work on files. It and its result can be pickled, and it can be repeated."""

    @property
    def sources(self) -> tuple[str, ...]: ...

    @property
    def nbytes(self) -> float: ...

    def run(self, meter: TaskMeter) -> Any: ...


class Outcome(NamedTuple):
    """The result of a task or its error, and the messages of its warnings."""

    value: Any
    error: BaseException | None = None
    warnings: tuple[str, ...] = ()


def run_recorded(task: Task, meter: TaskMeter) -> Outcome:
    """Run a task and record its warnings; no other thread may run a task at the same time."""
    with warnings.catch_warnings(record=True) as recorded:
        # Record all: the filters of the calling process decide which warnings are errors.
        warnings.simplefilter("always")
        value = task.run(meter)
    ours = (one for one in recorded if issubclass(one.category, ScdlWarning))
    return Outcome(value, warnings=tuple(str(one.message) for one in ours))


# -- in a worker process ---------------------------------------------------------------------------

_shares: MutableSequence[float]


def begin(parent: Connection, shares: MutableSequence[float], n_threads: int) -> None:
    """Prepare a worker process.

    Parameters
    ----------
    parent
        One end of a pipe; the process ends when the other end is closed.
    shares
        Progress of all tasks, in shared memory.
    n_threads
        Number of threads that the process may use.
    """
    global _shares
    _shares = shares
    threads.limit(n_threads)
    # Tasks do not use NumPy's BLAS, whose threads would spin while they wait for work.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # A terminal sends Ctrl-C to all processes; the parent terminates its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    # Import what tasks need now, so that the first task does not wait for it.
    from scdl.conversion.many import parts  # noqa: F401

    # Exclude the objects of imported modules from garbage collection.
    gc.freeze()


def _end_with_parent(parent: Connection) -> None:
    """Exit when the other end of a pipe is closed, which includes the death of the parent.

    Unfinished files need no cleanup here: they are in a directory that is removed by the parent, or
    by the next conversion if the parent was killed.
    """
    parent.poll(None)
    os._exit(1)


def run_in_process(task: Task, slot: int) -> Outcome:
    """Run a task in this worker process."""
    return run_recorded(task, TaskMeter(_shares, slot))
