"""Running tasks on the workers of a Dask cluster."""

from __future__ import annotations

import sys
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import TYPE_CHECKING

from scdl.conversion.many.worker_process import Outcome, Task, TaskMeter
from scdl.conversion.many.workers import Workers
from scdl.errors import ClusterError, MissingPackageError, WorkerDiedError
from storage_backends.compute import threads

if TYPE_CHECKING:
    from distributed import Client
    from distributed import Future as DaskFuture


class DaskWorkers(Workers):
    """Run tasks on the workers of a cluster, which share a file system with this process.

    All tasks are submitted to the scheduler at once. It reruns a task whose worker died.

    Parameters
    ----------
    client
        Client that is connected to the cluster.
    """

    def __init__(self, client: Client) -> None:
        super().__init__(sys.maxsize)
        self._client = client
        # Keep references: the cluster drops tasks whose futures are garbage-collected.
        self._submitted: dict[Future[Outcome], DaskFuture[Outcome]] = {}

    def stop(self) -> None:
        self._client.cancel([*self._submitted.values()])

    def _submit(self, task: Task, meter: TaskMeter, *, urgent: bool) -> Future[Outcome]:
        # Files may change, so the task is not a pure function of its arguments.
        submitted = self._client.submit(_run, task, pure=False, priority=int(urgent))
        future: Future[Outcome] = Future()
        self._submitted[future] = submitted
        submitted.add_done_callback(partial(self._pass_on, task, future))
        return future

    def _pass_on(self, task: Task, future: Future[Outcome], submitted: DaskFuture[Outcome]) -> None:
        """Copy a result to the future; the cluster recomputes it if it is lost in transfer.

        Dask's own executor would report an error instead.
        """
        try:
            future.set_result(submitted.result())
        except BaseException as error:  # noqa: BLE001 - reported as the error of the task
            future.set_exception(_reported(error, task))
        del self._submitted[future]


def _reported(error: BaseException, task: Task) -> BaseException:
    """Convert the error of a task to the one that users see."""
    from distributed import KilledWorker

    files = ", ".join(task.sources)
    if isinstance(error, KilledWorker):
        worker = error.last_worker.address if error.last_worker else "its worker"
        return WorkerDiedError(
            f"{files}: {worker} died, like all workers that tried before; give the workers more "
            "memory, and see their logs"
        )
    if isinstance(error, CancelledError):
        return WorkerDiedError(
            f"{files}: the cluster cancelled the task; see the log of its scheduler"
        )
    return error


def _run(task: Task) -> Outcome:
    """Run a task on a worker of the cluster."""
    from distributed import get_worker

    threads.limit(get_worker().state.nthreads)
    return Outcome(task.run(TaskMeter()))


def connect(address: str) -> Client:
    """Connect to the Dask cluster whose scheduler is at `address`.

    Raises
    ------
    MissingPackageError
        distributed is not installed.
    ClusterError
        No scheduler answers at the address.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingPackageError(
            f"{address}: a Dask cluster needs the package distributed, which is not installed; "
            "install it with: pip install 'scdl-store[dask]'"
        ) from error
    try:
        return Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"{address}: there is no Dask scheduler; expected an address such as "
            f"tcp://host:8786 ({type(error).__name__}: {error})"
        ) from error
