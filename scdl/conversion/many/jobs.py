"""Jobs, each of which writes one archive, and the loop that runs their tasks.

Workers write into a hidden directory next to the archives. Only the calling process moves complete
archives to their final path, atomically. An incomplete archive therefore never appears there, even
if a process dies, and tasks can be repeated.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from scdl.conversion.choice import Choice
from scdl.conversion.many.options import WorkersLike, workers_of
from scdl.conversion.many.parts import JOINING, Part, Whole, parts_of, size_of
from scdl.conversion.many.worker_process import Outcome, Task
from scdl.conversion.opening import open_sources
from scdl.conversion.options import Settings
from scdl.conversion.reporting import ConversionReport
from scdl.conversion.run import Conversion
from scdl.errors import ArchiveExistsError, ClusterError, ScdlError
from scdl.progress import progress_bar
from scdl.sources.base import Tally, sum_tallies
from storage_backends import registry
from storage_backends.directory import locks, publication
from storage_backends.errors import refused_write

_log = logging.getLogger(__name__)

#: Seconds between two updates of the progress bar.
_INTERVAL = 0.1


@dataclass
class Job:
    """An archive to be written.

    Parameters
    ----------
    whole
        The task that writes the archive.
    target
        Final path of the archive.
    replace
        Whether to replace an existing archive.
    parts
        Tasks to run before `whole`, for each source; may be empty.
    outcome
        The report or the first error; None while the job is not finished.
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
        """Create a job with a single task that writes the archive into the directory `drafts`."""
        nbytes = sum(map(size_of, sources))
        draft = os.path.join(drafts, os.path.basename(target))
        whole = Whole(tuple(sources), tuple(labels), draft, settings, nbytes)
        return cls(whole, target, replace)

    @property
    def nbytes(self) -> float:
        """Size of the sources in bytes."""
        return sum(task.nbytes for task in {*self.tasks(), self.whole})

    def tasks(self) -> Sequence[Part | Whole]:
        """The tasks to run first."""
        return [part for parts in self.parts for part in parts] or [self.whole]

    def divide(self, most_bytes: float) -> None:
        """Divide the job into parts of about `most_bytes` each, if rows can be read separately.

        Raises
        ------
        ScdlError
            The sources cannot be opened, or lack an element that the settings request.
        """
        settings, draft = self.whole.settings, self.whole.path
        choice = Choice.of(settings.options)
        if choice is not None and choice.quality is not None:
            # Figures of quality belong to obs, which the parts do not have.
            return
        writer = registry.for_target(self.target, settings.backend).writer
        with ExitStack() as stack:
            opened = open_sources(self.whole.sources, settings, self.target, stack)
            # Checks the sources now; otherwise errors would appear after all parts are written.
            caster = Conversion(
                opened, self.target, settings, keeps_elements=writer.keeps_elements
            ).caster
            self.parts = [
                parts_of(source, path, f"{draft}.rows-{i}", most_bytes, caster, settings)
                for i, (source, path) in enumerate(zip(opened, self.whole.sources, strict=True))
            ]
        if all(len(parts) == 1 for parts in self.parts):
            # Joining would only copy them.
            self.parts = []
            return
        self.whole = dataclasses.replace(self.whole, nbytes=JOINING * self.whole.nbytes)

    def end(self, task: Task, outcome: Outcome) -> Whole | None:
        """Record the outcome of a task; return the next task, if any."""
        if self.outcome is not None:
            return None
        if outcome.error is None and isinstance(task, Part):
            self._tallies[task] = outcome.value
            if len(self._tallies) < len(self.tasks()):
                return None
            tallies = [sum_tallies([self._tallies[part] for part in parts]) for parts in self.parts]
            paths = [tuple(part.path for part in parts) for parts in self.parts]
            return dataclasses.replace(self.whole, parts=tuple(zip(paths, tallies, strict=True)))
        if outcome.error is None:
            try:
                outcome = outcome._replace(value=self._publish(outcome.value))
            except ScdlError as error:
                outcome = outcome._replace(error=error)
        self.outcome = outcome
        _log.info("%s: %s", self.target, "failed" if outcome.error else "written")
        return None

    def _publish(self, report: ConversionReport) -> ConversionReport:
        """Move the complete archive to its target atomically."""
        draft, target = self.whole.path, self.target
        if not os.path.isdir(draft):
            raise ClusterError(
                f"{target}: this process does not see the archive that a worker wrote; all workers "
                "need the same file system under the same path"
            )
        with refused_write(target):
            if os.path.lexists(target) and self.replace:
                target = os.path.realpath(target)
                with locks.write_locked(target):
                    publication.exchange(draft, target)
                publication.remove(draft)
            elif os.path.lexists(target):
                raise ArchiveExistsError(
                    f"{target}: another program created this path during the conversion; choose "
                    "another path"
                )
            else:
                publication.move(draft, target)
        for parts in self.parts:
            for part in parts:
                shutil.rmtree(part.path, ignore_errors=True)
        return dataclasses.replace(report, path=self.target)


def run(jobs: Sequence[Job], workers: WorkersLike, *, use_processes: bool, progress: bool) -> None:
    """Run jobs, the largest first, and store the outcome of each.

    Parameters
    ----------
    jobs
        Jobs that already have an outcome are skipped.
    workers, use_processes, progress
        As for :func:`scdl.convert_directory`.
    """
    jobs = sorted((job for job in jobs if job.outcome is None), key=lambda job: -job.nbytes)
    ready = deque((job, task) for job in jobs for task in job.tasks())
    running: dict[Task, Job] = {}
    done, nbytes = 0.0, int(sum(job.nbytes for job in jobs))
    with (
        workers_of(workers, len(ready), use_processes=use_processes) as started,
        progress_bar(total=nbytes, unit="B", unit_scale=True, show=progress) as bar,
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
                    # Run next: if a large file were joined last, other workers would be idle.
                    ready.appendleft((job, following))
            bar.n = int(done + sum(task.nbytes * share for task, share in started.progress()))
            bar.refresh()
