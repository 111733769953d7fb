"""Archives as jobs: their tasks are run by workers, and what is complete is published.

Workers write into a hidden directory beside the archives; the process that runs the jobs moves
there what is complete. So nothing that stands in the end is half-written, whoever dies, and a task
may be run twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, field

from tqdm import tqdm

from scdl.conversion.convert import open_sources
from scdl.conversion.many.parts import JOINING, Part, Whole, parts_of
from scdl.conversion.many.workers import Outcome, Workers
from scdl.conversion.options import ConversionReport
from scdl.conversion.run import Conversion
from scdl.errors import ArchiveExistsError, ClusterError, WorkerDiedError
from scdl.sources.base import Tally
from storage_backends import registry
from storage_backends.directory import locks, publication
from storage_backends.errors import refused_write

_DRAFTS = ".scdl-drafts-"
#: Seconds between two looks at how far the tasks are.
_LOOK = 0.1


@dataclass
class Job:
    """One archive that is to be made, and how far that has come.

    Parameters
    ----------
    whole
        Writes it.
    parts
        To be written before, of each source.
    target
        Where the archive will stand in the end.
    """

    whole: Whole
    target: str
    parts: list[list[Part]] = field(default_factory=list)
    failed: bool = False
    _tallies: dict[Part, Tally] = field(default_factory=dict)

    @property
    def nbytes(self) -> float:
        """Bytes of its sources."""
        return self.whole.nbytes + sum(part.nbytes for parts in self.parts for part in parts)

    def first(self) -> Sequence[Part | Whole]:
        """The tasks to begin with."""
        return [part for parts in self.parts for part in parts] or [self.whole]

    def next(self, done: Part, tally: Tally) -> Whole | None:
        """The task that follows when a part is done, if it was the last one."""
        self._tallies[done] = tally
        if len(self._tallies) < sum(map(len, self.parts)):
            return None
        joined = tuple(
            (tuple(part.path for part in parts), _sum([self._tallies[part] for part in parts]))
            for parts in self.parts
        )
        return dataclasses.replace(self.whole, parts=joined)


def _sum(tallies: Sequence[Tally]) -> Tally:
    rows_sorted, duplicates, rounding, is_counts = zip(*tallies, strict=True)
    return Tally(sum(rows_sorted), sum(duplicates), max(rounding), all(is_counts))


def divided(job: Job, most_bytes: float) -> Job:
    """The same job in parts of at most about so many bytes, where rows can be read on their own.

    Parameters
    ----------
    job
        In one task.
    most_bytes
        Bytes of a source from which on it is worth more than one part.

    Raises
    ------
    SourceError
        What is asked for cannot be made of the sources.
    """
    settings, sources = job.whole.settings, job.whole.sources
    writer = registry.for_target(job.target, settings.backend).writer
    with ExitStack() as stack:
        opened = open_sources(sources, settings, stack)
        # Finds now what would else be found when all parts are done.
        conversion = Conversion(opened, job.target, settings, keeps_elements=writer.keeps_elements)
        parts = [
            parts_of(source, f"{job.whole.path}.rows-{i}", most_bytes, conversion.caster, settings)
            for i, source in enumerate(opened)
        ]
    whole = dataclasses.replace(job.whole, nbytes=JOINING * job.whole.nbytes)
    return Job(whole, job.target, parts)


def run(jobs: Sequence[Job], workers: Workers, bar: tqdm[None]) -> Iterator[tuple[Job, Outcome]]:
    """Run the tasks of jobs, the largest job first; gives each job as soon as it has an end."""
    ordered = sorted(jobs, key=lambda job: -job.nbytes)
    ready: deque[tuple[Job, Part | Whole]] = deque(
        (job, task) for job in ordered for task in job.first()
    )
    running: dict[Future[Outcome], tuple[Job, Part | Whole]] = {}
    done = 0.0
    while ready or running:
        while ready and workers.has_room():
            job, task = ready.popleft()
            if not job.failed:
                running[workers.start(task, urgent=task is not job.whole)] = job, task
        for future in wait(running, _LOOK, FIRST_COMPLETED).done:
            job, task = running.pop(future)
            outcome = workers.finish(future)
            done += task.nbytes
            if outcome.error is not None:
                if not job.failed:
                    yield job, outcome._replace(error=_naming(task, outcome.error))
                job.failed = True
            elif isinstance(task, Whole):
                yield job, outcome
            elif (following := job.next(task, outcome.value)) is not None:
                # A large file that is joined last would keep everybody waiting.
                ready.appendleft((job, following))
        bar.n = int(done + sum(t.nbytes * workers.share(f) for f, (_, t) in running.items()))
        bar.refresh()


def _naming(task: Part | Whole, error: BaseException) -> BaseException:
    """An error that says which file it is of, which a process that died cannot."""
    if not isinstance(error, WorkerDiedError):
        return error
    where = task.source if isinstance(task, Part) else ", ".join(task.sources)
    return WorkerDiedError(f"{where}: {error}")


@contextlib.contextmanager
def drafts_beside(dest: str) -> Iterator[str]:
    """A hidden directory beside the archives, locked by this process and removed in the end.

    What a killed process left is no longer locked, and removed first; and last what workers of its
    cluster made since, which learn late that nobody wants it.
    """
    with refused_write(dest):
        sweep(dest)
        path, held = _new_drafts(dest)
    try:
        yield path
    finally:
        _remove(path)
        locks.unlock(held)
        sweep(dest)


def _new_drafts(dest: str) -> tuple[str, int]:
    """A directory for drafts, and its lock."""
    while True:
        path = tempfile.mkdtemp(prefix=_DRAFTS, dir=dest)
        try:
            with contextlib.suppress(FileNotFoundError):
                # Workers of a cluster may be other users of the same group.
                os.chmod(path, 0o770)
                if (held := locks.lock(path, wait=True)) is not None:
                    return path, held
            # Another run took it for left, in the moment before it was locked.
        except BaseException:
            publication.remove(path)
            raise


def sweep(dest: str) -> None:
    """Remove the drafts of processes that have ended."""
    publication.finish_removals(dest)
    for left in glob.glob(os.path.join(glob.escape(dest), _DRAFTS + "*")):
        with contextlib.suppress(OSError):
            if (held := locks.lock(left, strict=True)) is not None:
                _remove(left)
                locks.unlock(held)


def _remove(path: str) -> None:
    """Remove drafts in one step, so that nobody writes into a part of them meanwhile."""
    try:
        publication.remove_atomically(path)
    except OSError:
        publication.remove(path)


def publish(job: Job, report: ConversionReport, *, replace: bool = False) -> ConversionReport:
    """Move a complete archive to where it belongs, in one step.

    Parameters
    ----------
    replace
        Whether to replace an archive that stands there.
    """
    draft, target = job.whole.path, job.target
    if not os.path.isdir(draft):
        raise ClusterError(
            f"{target}: the worker wrote this archive where this process does not see it; workers "
            "need the same file system under the same path"
        )
    with refused_write(target):
        if os.path.lexists(target) and replace:
            target = os.path.realpath(target)
            with locks.write_locked(target):
                publication.exchange(draft, target)
            publication.remove(draft)
        elif os.path.lexists(target):
            raise ArchiveExistsError(
                f"{target}: something was put here meanwhile; choose another directory"
            )
        else:
            publication.move(draft, target)
    for parts in job.parts:
        for part in parts:
            shutil.rmtree(part.path, ignore_errors=True)
    return dataclasses.replace(report, path=job.target)
