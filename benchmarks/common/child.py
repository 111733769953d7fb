"""Long-lived child processes that measure when they are asked, each with its own interpreter.

Libraries that cannot share an environment can so take turns, with one at work at a time. Nothing
here needs more than the standard library, as the children of every environment import it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from benchmarks.common.measure import ChildFailedError, ChildRun, MemoryWatch, anonymous_bytes

THREADS = 2
_THREAD_VARIABLES = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS")


def serve(commands: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """In the child: answer each line of standard input, up to its end, with a line of JSON."""
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(commands[request.pop("do")](**request)), flush=True)


class Child:
    """A process that serves commands, computes with `THREADS`, and idles between them.

    Parameters
    ----------
    module
        What it runs, as in ``python -m module``.
    python
        Its interpreter.
    """

    def __init__(self, module: str, python: Path | str = sys.executable) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(
            [str(python), "-W", "ignore", "-m", module],
            cwd=Path(__file__).parent.parent,
            env=os.environ | dict.fromkeys(_THREAD_VARIABLES, str(THREADS)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Let it run a command, and return its answer.

        Raises
        ------
        ChildFailedError
            It ended before it answered; the message has what it wrote to standard error.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # Of a child that has ended, what follows tells why.
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
            f"a measured process ended with code {code} before it answered to {do!r}:\n"
            f"{self._errors.read()}"
        )

    def watched(self, do: str, **arguments: Any) -> ChildRun:
        """As `ask`, with the memory that the process takes meanwhile."""
        baseline = anonymous_bytes(self._process.pid)
        with MemoryWatch(self._process.pid) as watch:
            answer = self.ask(do, **arguments)
        return ChildRun(answer, baseline, watch.peak)

    def close(self) -> None:
        """Let it end, by the end of its input."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        self._errors.close()
