"""Where tasks run: in this process, in threads, or in a pool of processes.

All have the interface :class:`Workers`; :mod:`scdl.conversion.many.dask` has the one of a cluster.
"""

from __future__ import annotations

import multiprocessing
from abc import ABC, abstractmethod
from collections.abc import MutableSequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from typing import Self

from scdl.conversion.many.worker_process import (
    Outcome,
    Task,
    TaskMeter,
    begin,
    run_in_process,
    run_recorded,
)
from scdl.errors import WorkerDiedError
from storage_backends.compute import threads

_SPAWN = multiprocessing.get_context("spawn")


class Workers(ABC):
    """Run tasks; a context manager that ends all of them when it is left.

    Parameters
    ----------
    n
        How many tasks run at the same time.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self._running: dict[Future[Outcome], tuple[Task, TaskMeter]] = {}

    @property
    def is_full(self) -> bool:
        """Whether no other task may start yet."""
        return len(self._running) >= self.n

    def start(self, task: Task, *, urgent: bool = False) -> None:
        """Start a task; a cluster prefers urgent ones to those that wait."""
        meter = self._new_meter()
        self._running[self._submit(task, meter, urgent=urgent)] = task, meter

    def completed(self, timeout: float) -> list[tuple[Task, Outcome]]:
        """Wait for a task to end, at most so many seconds; all that ended, with their outcomes."""
        return [(task, _outcome(f)) for f, (task, _) in self._completed(timeout)]

    def progress(self) -> list[tuple[Task, float]]:
        """The tasks that run, with their progress from 0 to 1 where it is known."""
        return [(task, meter.share) for task, meter in self._running.values()]

    @abstractmethod
    def stop(self) -> None:
        """End the tasks; when this returns, none runs any more (but on a cluster)."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @abstractmethod
    def _submit(self, task: Task, meter: TaskMeter, *, urgent: bool) -> Future[Outcome]: ...

    def _new_meter(self) -> TaskMeter:
        return TaskMeter()

    def _completed(self, timeout: float) -> list[tuple[Future[Outcome], tuple[Task, TaskMeter]]]:
        done = wait(self._running, timeout, FIRST_COMPLETED).done
        return [(future, self._running.pop(future)) for future in done]


def _outcome(future: Future[Outcome]) -> Outcome:
    error = future.exception()
    return future.result() if error is None else Outcome(None, error)


class InProcess(Workers):
    """Run tasks in the calling thread: each is done when it has been started."""

    def __init__(self) -> None:
        super().__init__(1)

    def _submit(self, task: Task, meter: TaskMeter, *, urgent: bool) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        try:
            future.set_result(run_recorded(task, meter))
        except Exception as error:  # noqa: BLE001 - reported as the error of the task
            future.set_exception(error)
        return future

    def stop(self) -> None:
        pass


class ThreadWorkers(Workers):
    """Run tasks in `n` threads of this process."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self._executor = ThreadPoolExecutor(n, thread_name_prefix="scdl-worker")

    def _submit(self, task: Task, meter: TaskMeter, *, urgent: bool) -> Future[Outcome]:
        return self._executor.submit(lambda: Outcome(task.run(meter)))

    def stop(self) -> None:
        for _, meter in self._running.values():
            meter.stopped = True
        self._executor.shutdown(cancel_futures=True)


class ProcessWorkers(Workers):
    """Run tasks in `n` processes of this machine, each with its share of the cores.

    When a process dies, its pool breaks, and all tasks that run there fail. Each of them then runs
    once more, in a process of its own: the one whose process dies again is to blame.
    """

    def __init__(self, n: int) -> None:
        super().__init__(n)
        # Cores that are left over stay idle; otherwise processes would compete for them.
        self._n_threads = max(1, threads.n_threads() // n)
        self._shares = _SPAWN.RawArray("d", n)
        self._pool = self._new_pool(n)
        self._reruns: dict[Future[Outcome], _Pool] = {}

    def begin(self) -> None:
        """Start the processes before there are tasks, so that they import what tasks need."""
        for _ in range(self.n):
            self._pool.executor.submit(int)

    def completed(self, timeout: float) -> list[tuple[Task, Outcome]]:
        done = self._completed(timeout)
        if any(_is_broken(future) and future not in self._reruns for future, _ in done):
            # Then the other tasks of the pool have ended too.
            self._pool.close()
            done += self._completed(0)
            self._pool = self._new_pool(self.n)
        ended = []
        for future, (task, meter) in done:
            rerun = self._reruns.pop(future, None)
            if rerun is not None:
                rerun.close()
            if not _is_broken(future):
                ended.append((task, _outcome(future)))
            elif rerun is not None:
                ended.append((task, Outcome(None, _died(task))))
            else:
                pool = self._new_pool(1)
                again = pool.submit(task, meter.slot)
                self._running[again], self._reruns[again] = (task, meter), pool
        return ended

    def stop(self) -> None:
        for pool in (self._pool, *self._reruns.values()):
            pool.close()

    def _new_pool(self, n: int) -> _Pool:
        return _Pool(n, self._shares, self._n_threads)

    def _new_meter(self) -> TaskMeter:
        used = {meter.slot for _, meter in self._running.values()}
        return TaskMeter(self._shares, min(set(range(self.n)) - used))

    def _submit(self, task: Task, meter: TaskMeter, *, urgent: bool) -> Future[Outcome]:
        return self._pool.submit(task, meter.slot)


def _died(task: Task) -> WorkerDiedError:
    return WorkerDiedError(
        f"{', '.join(task.sources)}: its process ended in the middle of the work, as it does when "
        "it is killed or memory is short; try fewer workers (and guard a script with "
        '`if __name__ == "__main__":`)'
    )


def _is_broken(future: Future[Outcome]) -> bool:
    return isinstance(future.exception(), BrokenExecutor)


class _Pool:
    """A :class:`ProcessPoolExecutor` whose processes end with it, even in the middle of a task.

    Processes are spawned: a fork may wait for ever for locks of threads that it does not have.
    """

    def __init__(self, n: int, shares: MutableSequence[float], n_threads: int) -> None:
        # Processes end when the writer is closed, also by the death of this process.
        self._reader, self._writer = _SPAWN.Pipe(duplex=False)
        setting = self._reader, shares, n_threads
        self.executor = ProcessPoolExecutor(n, _SPAWN, begin, setting)

    def submit(self, task: Task, slot: int) -> Future[Outcome]:
        """Run a task in a process; the future fails where the pool is broken already."""
        try:
            future = self.executor.submit(run_in_process, task, slot)
            # If that started a process, the executor watches it from the next call on.
            self.executor.submit(int)
            return future
        except BrokenExecutor as error:
            failed: Future[Outcome] = Future()
            failed.set_exception(error)
            return failed

    def close(self) -> None:
        """End the processes, and return when none is left."""
        self._writer.close()
        self.executor.shutdown(cancel_futures=True)
        self._reader.close()
