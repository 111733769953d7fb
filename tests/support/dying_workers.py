"""Run as a script: conversions by several processes, one of which is killed at a change of files.

The workers are processes of this machine, or those of a Dask cluster. Killed is one of them, while
the one who converts lives on, or the one who converts. Told is the same as by ``dying.py``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dying import Facts, Trial, described, grounds, live, spread, tell
from harm import KILL, Harm, Shared
from operations import OPERATIONS, Ground, Operation

from scdl.conversion.many import workers

VICTIMS = WORKER, PARENT = ("worker", "parent")
CONVERSIONS = ["directory", "parts"]
#: Longest that workers go on when nobody needs them.
_SECONDS = 30


class Crew(ABC):
    """Who converts.

    Attributes
    ----------
    name
        For messages.
    """

    name: str

    @abstractmethod
    def working(self, harm: Shared) -> AbstractContextManager[dict[str, Any]]:
        """Workers under harm, as the keywords of a conversion; in a fork that ends after it."""

    @abstractmethod
    def is_idle(self, parent: int) -> bool:
        """Whether nobody works any more for a process that has ended."""

    def settle(self, parent: int) -> None:
        """Wait until nobody works any more for a process that has ended."""
        end = time.monotonic() + _SECONDS
        while not self.is_idle(parent):
            if time.monotonic() > end:
                raise TimeoutError("workers go on, though nobody needs them")
            time.sleep(0.01)


class Processes(Crew):
    """Two processes of the one who converts; what one did that is killed is done again."""

    name = "processes"

    @contextlib.contextmanager
    def working(self, harm: Shared) -> Iterator[dict[str, Any]]:
        # They import what they are given to do, and need not import this script.
        del sys.modules["__main__"].__file__
        workers.begin = harm.begin
        yield {"workers": 2, "use_processes": True}

    def is_idle(self, parent: int) -> bool:
        return not any(group == parent for group in _groups())


def _groups() -> Iterator[int]:
    """The group of each process that has not ended."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, _, group, *_ = path.read_text().rpartition(")")[2].split()
            if state != "Z":
                yield int(group)


class Dask(Crew):
    """The two processes of a cluster, in which those that are killed are replaced."""

    name = "dask"

    def __init__(self, address: str) -> None:
        from distributed import Client

        self._client = partial(Client, address, set_as_default=False)

    @contextlib.contextmanager
    def working(self, harm: Shared) -> Iterator[dict[str, Any]]:
        with self._client() as client:
            client.wait_for_workers(2)
            client.run(harm.inflict)
            yield {"workers": client}

    def is_idle(self, parent: int) -> bool:
        def look(_: Callable[..., None]) -> Facts:
            with self._client() as client:
                return {"busy": client.run(_busy)}

        return not any(live(look)["busy"].values())


def _busy(dask_worker: Any) -> int:
    """Tasks of a worker that run, also those that nobody waits for."""
    return len(dask_worker.state.executing)


#: A process of its own, since this one forks. A worker that is not there so long after another one
#: of its name was killed is given up for lost; here it was killed once more.
_CLUSTER = """
import sys
import dask
from distributed import LocalCluster
dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"})
with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
    print(cluster.scheduler_address, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """The address of a cluster."""
    with subprocess.Popen(
        [sys.executable, "-c", _CLUSTER],
        env=os.environ | {"DASK_LOGGING__DISTRIBUTED": "critical"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


class WorkersTrial(Trial):
    """A conversion by several processes."""

    def __init__(
        self, name: str, operation: Operation, ground: Ground, crew: Crew, victim: str
    ) -> None:
        self._crew, self._victim = crew, victim
        self._count = ground.sources.parent / "changes"
        self._at = self._count.with_suffix(".at")
        super().__init__(f"{name}, {victim} of {crew.name}", operation, ground)

    def _act(self, harm: Harm) -> Facts:
        self._count.write_bytes(b"")
        self._at.unlink(missing_ok=True)

        def act(tell: Callable[..., None]) -> Facts:
            # All that it starts is of its group.
            os.setsid()
            tell(pid=os.getpid())
            victim = 0 if self._victim == WORKER else os.getpid()
            shared = Shared(replace(harm, victim=victim), str(self.ground.place), str(self._count))
            with self._crew.working(shared) as crew:
                if victim:
                    shared.inflict()
                return self._tried(replace(self.ground, crew=crew))

        facts = live(act) | {"changes": self._count.stat().st_size}
        return facts | ({"at": self._at.read_text()} if self._at.exists() else {})

    def _settle(self, facts: Facts) -> None:
        self._crew.settle(facts["pid"])

    def _wrong_end(self, harm: Harm, facts: Facts) -> Iterator[str]:
        if "at" not in facts or (facts["ended"] == -signal.SIGKILL) != (self._victim == PARENT):
            yield "nobody was killed, or somebody else"
        if self._victim == PARENT:
            return
        if facts["left"]:
            yield "something is left"
        if "error" not in facts:
            if facts["state"] != self.done:
                yield "neither done nor an error"
        else:
            yield f"nobody took over: {facts['error']}"


def main() -> None:
    """Kill workers and those whom they work for, in every conversion, of every kind of archive."""
    parser = described(__doc__, CONVERSIONS)
    parser.add_argument("--crews", default="processes,dask")
    parser.add_argument("--victims", default=",".join(VICTIMS))
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        crews: list[Crew] = [Processes()] if "processes" in options.crews else []
        if "dask" in options.crews:
            crews.append(Dask(stack.enter_context(cluster())))
        for ground in grounds(options.place / "place", options.place / "sources", options.kinds):
            for name in options.operations.split(","):
                for crew in crews:
                    for victim in options.victims.split(","):
                        trial = WorkersTrial(name, OPERATIONS[name], ground, crew, victim)
                        for n in spread(trial.changes, options.points):
                            tell(trial.life(Harm(KILL, n)))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
