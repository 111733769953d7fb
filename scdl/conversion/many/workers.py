"""Workers that run tasks in this process, in threads, or in a pool of processes.

All implement :class:`Workers`; so does :mod:`scdl.conversion.many.dask` for a cluster.
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
    """Run tasks; a context manager that stops all of them on exit.

    Parameters
    ----------
    n
        Number of tasks that run at the same time.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self._running: dict[Future[Outcome], tuple[Task, TaskMeter]] = {}

    @property
    def is_full(self) -> bool:
        """Whether `n` tasks are running, so that no other may start."""
        return len(self._running) >= self.n

    def start(self, task: Task, *, urgent: bool = False) -> None:
        """Start a task; a cluster runs urgent tasks before others that wait."""
        meter = self._new_meter()
        self._running[self._submit(task, meter, urgent=urgent)] = task, meter

    def completed(self, timeout: float) -> list[tuple[Task, Outcome]]:
        """Wait at most `timeout` seconds for tasks to end; return those with their outcomes."""
        return [(task, _outcome(f)) for f, (task, _) in self._completed(timeout)]

    def progress(self) -> list[tuple[Task, float]]:
        """The running tasks with their progress from 0 to 1, if known."""
        return [(task, meter.share) for task, meter in self._running.values()]

    @abstractmethod
    def stop(self) -> None:
        """Stop all tasks; except on a cluster, none is running when this returns."""

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
    """Run tasks in the calling thread; starting a task runs it to its end."""

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
    """Run tasks in `n` processes of this machine, each with a share of the cores.

    When a process dies, its pool breaks and all its running tasks fail. Each of them is repeated in
    a separate process; the task whose process dies again is reported as failed.
    """

    def __init__(self, n: int) -> None:
        super().__init__(n)
        # Rounded down: processes would otherwise compete for the remaining cores.
        self._n_threads = max(1, threads.n_threads() // n)
        self._shares = _SPAWN.RawArray("d", n)
        self._pool = self._new_pool(n)
        self._reruns: dict[Future[Outcome], _Pool] = {}

    def begin(self) -> None:
        """Start the processes before there are tasks, so that they can import modules."""
        for _ in range(self.n):
            self._pool.executor.submit(int)

    def completed(self, timeout: float) -> list[tuple[Task, Outcome]]:
        done = self._completed(timeout)
        if any(_is_broken(future) and future not in self._reruns for future, _ in done):
            # A broken pool has ended its other tasks as well.
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
                error = WorkerDiedError(
                    f"{', '.join(task.sources)}: the worker process died during the conversion, "
                    "for example because it ran out of memory; try fewer workers (a script needs "
                    'the guard `if __name__ == "__main__":`)'
                )
                ended.append((task, Outcome(None, error)))
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


def _is_broken(future: Future[Outcome]) -> bool:
    return isinstance(future.exception(), BrokenExecutor)


class _Pool:
    """A :class:`ProcessPoolExecutor` whose processes end with it, even during a task.

    Processes are spawned: a forked one could deadlock on locks held by threads of the parent.
    """

    def __init__(self, n: int, shares: MutableSequence[float], n_threads: int) -> None:
        # Processes exit when the writer is closed, which includes the death of this process.
        self._reader, self._writer = _SPAWN.Pipe(duplex=False)
        setting = self._reader, shares, n_threads
        self.executor = ProcessPoolExecutor(n, _SPAWN, begin, setting)

    def submit(self, task: Task, slot: int) -> Future[Outcome]:
        """Run a task in a process; the future has an error if the pool is already broken."""
        try:
            future = self.executor.submit(run_in_process, task, slot)
            # If that started a process, the executor monitors it only from the next call on.
            self.executor.submit(int)
            return future
        except BrokenExecutor as error:
            failed: Future[Outcome] = Future()
            failed.set_exception(error)
            return failed

    def close(self) -> None:
        """Terminate the processes and wait until all have ended."""
        self._writer.close()
        self.executor.shutdown(cancel_futures=True)
        self._reader.close()
