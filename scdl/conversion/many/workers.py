"""Where tasks run: processes or threads of this machine, or a Dask cluster.

Each process is an executor of its own from :mod:`concurrent.futures`, so that when one dies it is
known which task it had, and the others go on.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import MutableSequence
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from functools import partial
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from scdl.errors import ClusterError, MissingPackageError, ScdlWarning, WorkerDiedError
from storage_backends.compute import threads

if TYPE_CHECKING:
    from distributed import Client
    from distributed import Future as DaskFuture


class Stopped(BaseException):
    """Ends a task in a thread, which nothing else can, or in a process; nobody is told."""


class TaskMeter:
    """The share of a task that is done, kept in a number that another process may see.

    Parameters
    ----------
    shares
        Two numbers of each task: the share, and whether it is to stop.
    index
        Which task it is.
    """

    def __init__(self, shares: MutableSequence[float], index: int) -> None:
        self._shares, self._share, self._stop = shares, 2 * index, 2 * index + 1
        self._total, self._done = 0.0, 0.0

    @property
    def share(self) -> float:
        """How much is done, from 0 to 1."""
        return self._shares[self._share]

    def begin(self) -> None:
        """Be the meter of another task."""
        self._shares[self._share] = self._shares[self._stop] = 0.0

    def reset(self, total: float | None = None) -> None:
        """Begin, with so much to do."""
        self._total, self._done = total or 0.0, 0.0

    def update(self, n: float = 1) -> None:
        """So much more is done."""
        if self._shares[self._stop]:
            raise Stopped
        self._done += n
        self._shares[self._share] = min(self._done / self._total, 1.0) if self._total else 0.0

    def stop(self) -> None:
        """Have the task end when it next says that more is done."""
        self._shares[self._stop] = 1.0


class Task(Protocol):
    """Something to do, which pickles."""

    def run(self, meter: TaskMeter) -> Any:
        """Do it; what is returned pickles too."""


class Outcome(NamedTuple):
    """What became of a task: what it returned, or why it did not, and what it warned of."""

    value: Any
    error: BaseException | None = None
    warnings: tuple[str, ...] = ()


class Workers(ABC):
    """Run tasks; a context manager, at whose end none runs any more."""

    @abstractmethod
    def has_room(self) -> bool:
        """Whether another task may start."""

    @abstractmethod
    def start(self, task: Task, *, urgent: bool = False) -> Future[Outcome]:
        """Start a task; an urgent one goes before those that wait."""

    @abstractmethod
    def share(self, future: Future[Outcome]) -> float:
        """How much of a task that runs is done, from 0 to 1, where that is known."""

    def finish(self, future: Future[Outcome]) -> Outcome:
        """What became of a task that ended, once."""
        try:
            error = future.exception()
        except CancelledError as cancelled:
            error = cancelled
        if error is not None:
            return Outcome(None, self._told(error))
        return future.result()

    def _told(self, error: BaseException) -> BaseException:
        """An error as the user is to see it."""
        return error

    @abstractmethod
    def stop(self) -> None:
        """End what runs and forget what waits."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


class OwnWorker(Workers):
    """Runs tasks in this process and thread: each is done when it has been started."""

    def __init__(self) -> None:
        self._has_ended = True

    def has_room(self) -> bool:
        return self._has_ended

    def start(self, task: Task, *, urgent: bool = False) -> Future[Outcome]:
        self._has_ended = False
        future: Future[Outcome] = Future()
        try:
            future.set_result(_recorded(task, TaskMeter([0.0, 0.0], 0)))
        except Exception as error:  # noqa: BLE001 - told of the task, as of those elsewhere
            future.set_exception(error)
        return future

    def finish(self, future: Future[Outcome]) -> Outcome:
        self._has_ended = True
        return super().finish(future)

    def share(self, future: Future[Outcome]) -> float:
        return 1.0

    def stop(self) -> None:
        pass


class _LocalWorkers(Workers):
    """Seats, each with an executor that runs one task at a time."""

    def __init__(self, n: int, shares: MutableSequence[float]) -> None:
        #: How many tasks run at the same time.
        self.n = n
        self._shares = shares
        self._meters = [TaskMeter(shares, seat) for seat in range(n)]
        self._free = list(range(n))
        self._executors: dict[int, Executor] = {}
        self._seats: dict[Future[Outcome], int] = {}

    def has_room(self) -> bool:
        return bool(self._free)

    def start(self, task: Task, *, urgent: bool = False) -> Future[Outcome]:
        seat = self._free.pop()
        self._meters[seat].begin()
        if seat not in self._executors:
            self._executors[seat] = self._executor(seat)
        try:
            future = self._submit(seat, task)
        except BrokenExecutor as error:
            # A process that died while it waited for its first task, or was about to begin one.
            future = Future()
            future.set_exception(error)
        self._seats[future] = seat
        return future

    @abstractmethod
    def _executor(self, seat: int) -> Executor: ...

    @abstractmethod
    def _submit(self, seat: int, task: Task) -> Future[Outcome]: ...

    def share(self, future: Future[Outcome]) -> float:
        return self._meters[self._seats[future]].share

    def finish(self, future: Future[Outcome]) -> Outcome:
        seat = self._seats.pop(future)
        self._free.append(seat)
        outcome = super().finish(future)
        if isinstance(outcome.error, WorkerDiedError):
            self._executors.pop(seat).shutdown()
        return outcome

    def stop(self) -> None:
        self._interrupt()
        if self._executors:
            # All at once: a process takes some time to end.
            with ThreadPoolExecutor(len(self._executors)) as pool:
                list(pool.map(_shut_down, self._executors.values()))
        self._executors.clear()
        # Nobody asks any more what became of their tasks.
        self._free += self._seats.values()
        self._seats.clear()

    @abstractmethod
    def _interrupt(self) -> None:
        """Have the tasks that run end early."""


def _shut_down(executor: Executor) -> None:
    executor.shutdown(cancel_futures=True)


class ThreadWorkers(_LocalWorkers):
    """Threads of this process, `n` of them."""

    def __init__(self, n: int) -> None:
        super().__init__(n, [0.0] * 2 * n)

    def _executor(self, seat: int) -> Executor:
        return ThreadPoolExecutor(1, thread_name_prefix="scdl-worker")

    def _submit(self, seat: int, task: Task) -> Future[Outcome]:
        return self._executors[seat].submit(_run_in_thread, task, self._meters[seat])

    def _interrupt(self) -> None:
        for seat in self._seats.values():
            self._meters[seat].stop()


class ProcessWorkers(_LocalWorkers):
    """Processes of this machine, `n` of them, each with its share of the cores.

    They are started anew, not forked: a fork has no threads of its parent, which compiled code and
    HDF5 may wait for.
    """

    def __init__(self, n: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        super().__init__(n, self._context.RawArray("d", 2 * n))
        self._pids: dict[int, Future[int]] = {}
        # Cores that do not come out even stay idle, rather than being fought for.
        self._n_threads = max(1, threads.n_threads() // n)

    def begin(self, module: str) -> None:
        """Start all processes before there are tasks, and have them import what tasks will need."""
        for seat in self._free:
            self._executors[seat] = self._executor(seat)
            self._executors[seat].submit(_prepare, module)

    def _executor(self, seat: int) -> Executor:
        setting = self._shares, seat, self._n_threads
        executor = ProcessPoolExecutor(1, self._context, _begin_process, setting)
        self._pids[seat] = executor.submit(os.getpid)
        return executor

    def _submit(self, seat: int, task: Task) -> Future[Outcome]:
        return self._executors[seat].submit(_run_in_process, task)

    def _told(self, error: BaseException) -> BaseException:
        if not isinstance(error, BrokenExecutor | SystemExit):
            return error
        return WorkerDiedError(
            "its process ended in the middle of the work, as it does when it is killed or memory "
            'is short; try fewer workers (and guard a script with `if __name__ == "__main__":`)'
        )

    def _interrupt(self) -> None:
        for seat in self._seats.values():
            self._meters[seat].stop()
            pid = self._pids[seat]
            if pid.done() and not pid.cancelled() and pid.exception() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid.result(), signal.SIGTERM)


class DaskWorkers(Workers):
    """The workers of a cluster, which share a file system with this process.

    Dask tries a task again where its worker died, so that a task must stand being run twice.

    Parameters
    ----------
    client
        Of the cluster.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        # The cluster forgets what nobody holds.
        self._submitted: dict[Future[Outcome], DaskFuture[Outcome]] = {}

    def has_room(self) -> bool:
        return True

    def start(self, task: Task, *, urgent: bool = False) -> Future[Outcome]:
        # What workers do is no function of what they are given: files change.
        submitted = self._client.submit(_run_on_dask, task, pure=False, priority=int(urgent))
        future: Future[Outcome] = Future()
        submitted.add_done_callback(partial(_pass_on, future))
        self._submitted[future] = submitted
        return future

    def share(self, future: Future[Outcome]) -> float:
        return 0.0

    def finish(self, future: Future[Outcome]) -> Outcome:
        del self._submitted[future]
        return super().finish(future)

    def _told(self, error: BaseException) -> BaseException:
        from distributed import KilledWorker

        if isinstance(error, KilledWorker):
            return WorkerDiedError(
                f"{error.last_worker.address if error.last_worker else 'its worker'} died, as the "
                "workers before it that tried; give workers more memory, and see their logs"
            )
        if isinstance(error, CancelledError):
            return WorkerDiedError("the cluster gave the task up; see the log of its scheduler")
        return error

    def stop(self) -> None:
        self._client.cancel([*self._submitted.values()])


def _pass_on(future: Future[Outcome], submitted: DaskFuture[Outcome]) -> None:
    """What became of a task of a cluster, which does it again if its result is lost."""
    # Dask's own executor takes a result for an error when its worker dies while it is fetched.
    try:
        future.set_result(submitted.result())
    except BaseException as error:  # noqa: BLE001 - whatever it is, who waits is told
        future.set_exception(error)


def connect(address: str) -> Client:
    """A client of the Dask cluster whose scheduler is at `address`.

    Raises
    ------
    MissingPackageError
        distributed is not installed.
    ClusterError
        Nothing answers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingPackageError(
            f"{address}: a Dask cluster needs the package distributed, which is not installed; "
            "pip install 'scdl-store[dask]'"
        ) from error
    try:
        return Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"{address}: there is no Dask scheduler; expected an address such as "
            f"tcp://host:8786 ({type(error).__name__}: {error})"
        ) from error


# -- in the workers ------------------------------------------------------------------------------

#: Of this process, where it is one of :class:`ProcessWorkers`.
_meter = TaskMeter([0.0, 0.0], 0)
_busy = threading.Event()


def _begin_process(shares: MutableSequence[float], seat: int, n_threads: int) -> None:
    global _meter
    _meter = TaskMeter(shares, seat)
    threads.limit(n_threads)
    # Tasks have no use for NumPy's BLAS, whose threads are busy for a while with waiting for work.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Ctrl-C goes to all processes of a terminal; the first one decides what becomes of the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Unwinds the task, which then removes what it has not finished.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.unraisablehook = _say_unless_ended
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _prepare(module: str) -> None:
    importlib.import_module(module)
    # It stays, and is not looked through for garbage with every file, and in the end.
    gc.freeze()


def _say_unless_ended(ignored: sys.UnraisableHookArgs) -> None:
    # The signal may come within a callback of a weakref, where Python ignores what is raised.
    if not issubclass(ignored.exc_type, SystemExit):
        sys.__unraisablehook__(ignored)


def _end_with_parent() -> None:
    """End this process when its parent has ended, however that came about."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    if _busy.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
    while _busy.is_set():
        # What the signal raises may have been ignored.
        _meter.stop()
        time.sleep(0.05)
    os._exit(1)


def _run_in_process(task: Task) -> Outcome:
    _busy.set()
    try:
        return _recorded(task, _meter)
    finally:
        _busy.clear()


def _recorded(task: Task, meter: TaskMeter) -> Outcome:
    """Run a task, with what it warns of."""
    with warnings.catch_warnings(record=True) as given:
        # Which of them are errors is decided where they are shown.
        warnings.simplefilter("always")
        value = task.run(meter)
    ours = (one for one in given if issubclass(one.category, ScdlWarning))
    return Outcome(value, warnings=tuple(str(one.message) for one in ours))


def _run_in_thread(task: Task, meter: TaskMeter) -> Outcome:
    return Outcome(task.run(meter))


def _run_on_dask(task: Task) -> Outcome:
    from distributed import get_worker

    threads.limit(get_worker().state.nthreads)
    return Outcome(task.run(TaskMeter([0.0, 0.0], 0)))
