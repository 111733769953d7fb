"""Child processes that measure on request, and the memory that they take.

Libraries that cannot share an environment are compared by letting one child of each work at a time.
This module needs the standard library alone, since children of every environment import it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

THREADS = 2
SAMPLING_SECONDS = 0.005
"""Time between two samples of the memory of a child; a shorter peak can be missed."""

_THREAD_VARIABLES = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS")


def serve(*commands: Callable[..., dict[str, Any]]) -> None:
    """In the child: answer each line of standard input with a line of JSON."""
    by_name = {"ready": dict} | {command.__name__: command for command in commands}
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(by_name[request.pop("do")](**request)), flush=True)


class ChildFailedError(RuntimeError):
    """A child process ended before it answered."""


@dataclass(frozen=True)
class ChildRun:
    """One command of a child, with its memory.

    Attributes
    ----------
    report
        The child's answer.
    baseline, peak
        Anonymous memory before the command and at most during it, bytes; None where unknown.
    """

    report: dict[str, Any]
    baseline: int | None
    peak: int | None

    @property
    def peak_megabytes(self) -> float | None:
        """Peak over the baseline, in 10⁶ bytes."""
        return self.peak_over(self.baseline)

    def peak_over(self, level: int | None) -> float | None:
        """Peak over a level in bytes, in 10⁶ bytes; None where memory cannot be read."""
        if level is None or self.peak is None:
            return None
        return (self.peak - level) / 1e6


class Child:
    """A process that serves commands, and idles between them.

    Parameters
    ----------
    module
        Run as ``python -m module``; calls `serve`.
    python
        Its interpreter.
    threads
        Threads that its libraries may use; None leaves that to them.
    """

    def __init__(
        self, module: str, python: Path | str = sys.executable, threads: int | None = THREADS
    ) -> None:
        limits = dict.fromkeys(_THREAD_VARIABLES, str(threads)) if threads else {}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(
            [str(python), "-W", "ignore", "-m", module],
            cwd=Path(__file__).parents[2],
            env=os.environ | limits,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._process.kill()
        self.close()

    @property
    def pid(self) -> int:
        """Its id."""
        return self._process.pid

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Run a command in the child, and return its answer.

        Raises
        ------
        ChildFailedError
            The child ended first; the message has what it wrote to standard error.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # If the child has ended, the error below says why.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, **arguments}, default=str) + "\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        code = self._process.wait()
        self._errors.seek(0)
        raise ChildFailedError(
            f"a measured process ended with code {code} before it answered {do!r}:\n"
            f"{self._errors.read()}"
        )

    def watched(self, do: str, **arguments: Any) -> ChildRun:
        """As `ask`, with the memory that the child takes meanwhile, after its imports."""
        self.ask("ready")
        baseline = anonymous_bytes(self._process.pid)
        with MemoryWatch(self._process.pid) as watch:
            answer = self.ask(do, **arguments)
        return ChildRun(answer, baseline, watch.peak)

    def close(self) -> None:
        """End the child by closing its input."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        self._errors.close()


def anonymous_bytes(pid: int | None = None) -> int | None:
    """Resident anonymous memory of a process (default: this one), without mapped files.

    Returns
    -------
    int or None
        ``RssAnon`` of ``/proc/<pid>/status``, in bytes; None on systems that have none.
    """
    try:
        status = Path(f"/proc/{pid or os.getpid()}/status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return None


class MemoryWatch:
    """Watches the anonymous memory of another process from a thread of this one.

    Attributes
    ----------
    peak
        Largest value since the start, bytes; None where it cannot be read.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak = anonymous_bytes(pid)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLING_SECONDS):
            self._sample()

    def _sample(self) -> None:
        now = anonymous_bytes(self._pid)
        if now is not None and self.peak is not None:
            self.peak = max(self.peak, now)
