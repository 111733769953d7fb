"""Archives to be made, and running the tasks that make them.

Workers write into a hidden directory beside the archives. What is complete is moved to its place in
one step, by one process only. So nothing half-written is ever in place, whichever process dies, and
a task may be run twice.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from tqdm import tqdm

from scdl.conversion.convert import open_sources
from scdl.conversion.many.options import WorkersLike, workers_of
from scdl.conversion.many.parts import JOINING, Part, Whole, parts_of
from scdl.conversion.many.worker_process import Outcome, Task
from scdl.conversion.options import ConversionReport, Settings
from scdl.conversion.run import Conversion
from scdl.errors import ArchiveExistsError, ClusterError, ScdlError
from scdl.sources.base import Tally
from storage_backends import registry
from storage_backends.directory import locks, publication
from storage_backends.errors import refused_write

#: Seconds between two updates of the progress bar.
_INTERVAL = 0.1


@dataclass
class Job:
    """An archive to be made.

    Parameters
    ----------
    whole
        The task that writes it.
    target
        Where the archive will be.
    replace
        Whether it replaces an archive that is there.
    parts
        Tasks that come before, for each source; empty: none.
    outcome
        The report, or the first error; None until there is one.
    """

    whole: Whole
    target: str
    replace: bool = False
    parts: list[list[Part]] = field(default_factory=list)
    outcome: Outcome | None = None
    _tallies: dict[Part, Tally] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        sources: Sequence[str],
        labels: Sequence[str],
        target: str,
        drafts: str,
        settings: Settings,
        *,
        replace: bool = False,
    ) -> Job:
        """A job of one task, which writes its archive into the directory `drafts`."""
        nbytes = sum(os.path.getsize(path) for path in sources if os.path.exists(path))
        draft = os.path.join(drafts, os.path.basename(target))
        whole = Whole(tuple(sources), tuple(labels), draft, settings, nbytes)
        return cls(whole, target, replace)

    @property
    def nbytes(self) -> float:
        """Bytes of its sources."""
        return sum(task.nbytes for task in {*self.tasks(), self.whole})

    def tasks(self) -> Sequence[Part | Whole]:
        """The tasks to begin with."""
        return [part for parts in self.parts for part in parts] or [self.whole]

    def divide(self, most_bytes: float) -> None:
        """Divide it into parts of about `most_bytes` at most, where rows can be read on their own.

        Raises
        ------
        ScdlError
            The sources cannot be opened, or lack something that the settings ask for.
        """
        settings, draft = self.whole.settings, self.whole.path
        writer = registry.for_target(self.target, settings.backend).writer
        with ExitStack() as stack:
            opened = open_sources(self.whole.sources, settings, stack)
            # Finds now what would otherwise fail after all parts are written.
            caster = Conversion(
                opened, self.target, settings, keeps_elements=writer.keeps_elements
            ).caster
            self.parts = [
                parts_of(source, f"{draft}.rows-{i}", most_bytes, caster, settings)
                for i, source in enumerate(opened)
            ]
        self.whole = dataclasses.replace(self.whole, nbytes=JOINING * self.whole.nbytes)

    def end(self, task: Task, outcome: Outcome) -> Whole | None:
        """Take the outcome of a task; the task that follows, if there is one."""
        if self.outcome is not None:
            return None
        if outcome.error is None and isinstance(task, Part):
            self._tallies[task] = outcome.value
            return self._joining() if len(self._tallies) == len(self.tasks()) else None
        if outcome.error is None:
            try:
                outcome = outcome._replace(value=self._publish(outcome.value))
            except ScdlError as error:
                outcome = outcome._replace(error=error)
        self.outcome = outcome
        return None

    def _joining(self) -> Whole:
        joined = tuple(
            (tuple(part.path for part in parts), _sum([self._tallies[part] for part in parts]))
            for parts in self.parts
        )
        return dataclasses.replace(self.whole, parts=joined)

    def _publish(self, report: ConversionReport) -> ConversionReport:
        """Move the complete archive to its target, in one step."""
        draft, target = self.whole.path, self.target
        if not os.path.isdir(draft):
            raise ClusterError(
                f"{target}: the worker wrote this archive where this process does not see it; "
                "workers need the same file system under the same path"
            )
        with refused_write(target):
            if os.path.lexists(target) and self.replace:
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
        for parts in self.parts:
            for part in parts:
                shutil.rmtree(part.path, ignore_errors=True)
        return dataclasses.replace(report, path=self.target)


def _sum(tallies: Sequence[Tally]) -> Tally:
    rows_sorted, duplicates, rounding, is_counts = zip(*tallies, strict=True)
    return Tally(sum(rows_sorted), sum(duplicates), max(rounding), all(is_counts))


def run(jobs: Sequence[Job], workers: WorkersLike, *, use_processes: bool, progress: bool) -> None:
    """Make the archives of jobs, the largest first; each job gets its outcome.

    Parameters
    ----------
    jobs
        Those that have an outcome already are left out.
    workers, use_processes, progress
        As for :func:`scdl.convert_directory`.
    """
    jobs = sorted((job for job in jobs if job.outcome is None), key=lambda job: -job.nbytes)
    ready = deque((job, task) for job in jobs for task in job.tasks())
    running: dict[Task, Job] = {}
    done, nbytes = 0.0, int(sum(job.nbytes for job in jobs))
    with (
        workers_of(workers, len(ready), use_processes=use_processes) as started,
        tqdm(total=nbytes, unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        while ready or running:
            while ready and not started.is_full:
                job, task = ready.popleft()
                if job.outcome is None:
                    running[task] = job
                    started.start(task, urgent=task is not job.whole)
            for ended, outcome in started.completed(_INTERVAL):
                job, done = running.pop(ended), done + ended.nbytes
                if (following := job.end(ended, outcome)) is not None:
                    # First, as a large file that is joined last would keep one worker busy alone.
                    ready.appendleft((job, following))
            bar.n = int(done + sum(task.nbytes * share for task, share in started.progress()))
            bar.refresh()
