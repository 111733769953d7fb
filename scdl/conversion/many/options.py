"""Common options of conversions of many files, and creation of workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from scdl.conversion.many.workers import InProcess, ProcessWorkers, ThreadWorkers, Workers
from scdl.conversion.options import ConvertOptions, Settings, check_options
from scdl.errors import ClusterError, OptionError
from storage_backends import registry
from storage_backends.compute import threads

if TYPE_CHECKING:
    from distributed import Client

#: Types of the argument `workers`.
WorkersLike: TypeAlias = "int | ProcessWorkers | Client | None"


class DirectoryOptions(ConvertOptions, total=False):
    """Options of a conversion and of the division of its work; all keys are optional."""

    backend: str | None
    neighbor_key: str | Sequence[str] | None
    split_bytes: int | None


def settings_of(options: DirectoryOptions, call: Callable[..., Any]) -> tuple[Settings, int | None]:
    """Split options into the settings of each conversion and `split_bytes`.

    Raises
    ------
    UnknownOptionError
        `call` has no such option.
    """
    rest: dict[str, Any] = dict(options)
    backend, key = rest.pop("backend", None), rest.pop("neighbor_key", None)
    split_bytes = rest.pop("split_bytes", None)
    chosen = registry.backend(backend or registry.DEFAULT)
    check_options(rest, call, chosen, ("backend", "neighbor_key", "split_bytes"))
    return Settings(backend, key, cast(ConvertOptions, rest)), split_bytes


def n_workers(workers: WorkersLike) -> int:
    """Number of tasks that run at the same time.

    Raises
    ------
    OptionError
        `workers` is not a positive integer or a Dask client.
    ClusterError
        The Dask client is closed.
    """
    if workers is None:
        return threads.n_threads()
    if isinstance(workers, ProcessWorkers):
        return workers.n
    if hasattr(workers, "nthreads"):
        if getattr(workers, "status", None) in ("closing", "closed"):
            raise ClusterError("the Dask client in workers= is closed; connect a new one")
        cores: dict[str, int] = workers.nthreads()
        return max(1, sum(cores.values()))
    if not isinstance(workers, int) or workers < 1:
        raise OptionError(
            f"workers must be at least 1, or a dask.distributed.Client, not {workers!r:.200}"
        )
    return workers


def workers_of(workers: WorkersLike, n_tasks: int, *, use_processes: bool) -> Workers:
    """Create workers for `n_tasks` tasks; with 1 worker, tasks run in the calling thread."""
    if isinstance(workers, ProcessWorkers):
        return workers
    if workers is not None and not isinstance(workers, int):
        from scdl.conversion.many.dask import DaskWorkers

        return DaskWorkers(workers)
    if n_workers(workers) == 1:
        return InProcess()
    # Workers share the cores, so a worker without a task would waste its share.
    n = max(1, min(n_workers(workers), n_tasks))
    return ProcessWorkers(n) if use_processes else ThreadWorkers(n)
