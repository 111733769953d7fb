"""Run as a script: writers that are killed, or refused by the system, at changes of files.

Each life is a fork of this process, which has done everything once. What happened is printed as one
JSON object a life, with all that is wrong about it; see ``--help``.
"""

from __future__ import annotations

import argparse
import errno
import gc
import hashlib
import json
import math
import os
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harm import INTERRUPT, KILL, REMOVALS, Harm, Inflicted
from operations import OPERATIONS, Ground, Operation, State, state, write_sources

from scdl.errors import ConversionFailedError, ScdlError

SURVIVED, FAILED = 0, 1
EVERY = [name for name in OPERATIONS if name != "careless"]
#: Longest that a life may take.
_SECONDS = 60
Facts = dict[str, Any]


def live(action: Callable[[Callable[..., None]], Facts | None]) -> Facts:
    """Do something in a fork: how it ended, and what it told, also before it was killed."""
    reading, writing = os.pipe()
    write = os.write
    pid = os.fork()
    if pid == 0:
        os.close(reading)

        def tell(**facts: Any) -> None:
            write(writing, json.dumps(facts).encode() + b"\n")

        code = FAILED
        try:
            tell(**(action(tell) or {}))
            code = SURVIVED
        except BaseException:  # noqa: BLE001 - the parent goes on
            tell(traceback=traceback.format_exc())
        finally:
            os._exit(code)
    os.close(writing)
    with open(reading, "rb") as stream:
        ended = _wait(pid)
        told: Facts = {}
        for line in stream:
            told |= json.loads(line)
    return told | {"ended": ended}


def _wait(pid: int) -> int:
    """How a child ended: its exit code, or minus the signal."""
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError("a writer hangs")


def hashed(place: Path) -> str:
    """Of all files below, names and content."""
    found = hashlib.sha256()
    for path in sorted(place.rglob("*")):
        if path.is_file():
            found.update(str(path).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def hidden(place: Path) -> list[str]:
    """What a writer left."""
    return sorted(path.name for path in place.iterdir() if path.name.startswith("."))


class Trial:
    """One operation on one kind of archive, and what it makes when nothing happens."""

    def __init__(self, name: str, operation: Operation, ground: Ground) -> None:
        self.name, self.operation, self.ground = name, operation, ground
        self._sources = hashed(ground.sources)
        self._warm_up()
        self._anew()
        self.before = self._look()["state"]
        self.changes = self._changes()
        self.done = self._look()["state"]

    def _anew(self) -> None:
        for path in self.ground.place.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.operation.prepare(self.ground)

    def _warm_up(self) -> None:
        """Load here what every fork would load anew."""
        self._anew()
        self.operation.act(self.ground)
        state(self.ground.place)
        # What is collected is not looked at again, so that forks share its memory.
        gc.collect()
        gc.freeze()

    def _changes(self) -> int:
        self._anew()
        whole = self._act(Harm(KILL, 0))
        if whole["ended"] != SURVIVED or "error" in whole:
            raise RuntimeError(f"{self.name} fails by itself: {whole}")
        return int(whole["changes"])

    def _act(self, harm: Harm) -> Facts:
        def act(tell: Callable[..., None]) -> Facts:
            # What is told where nobody can catch it is told to the user all the same.
            sys.unraisablehook = lambda told: tell(unraisable=repr(told.exc_value))
            inflicted = Inflicted(harm, str(self.ground.place), lambda at: tell(at=at))
            return self._tried(self.ground) | {"changes": inflicted.seen}

        return live(act)

    def _tried(self, ground: Ground) -> Facts:
        """Do it; the error, if there is one."""
        try:
            self.operation.act(ground)
        except (ScdlError, OSError) as error:
            return {"error": _described(error)}
        except KeyboardInterrupt:
            return {"error": {"typed": True, "errno": INTERRUPT}}
        return {}

    def _settle(self, facts: Facts) -> None:
        """Wait for whoever is still at work after the second try."""

    def _look(self) -> Facts:
        return live(lambda _: {"state": state(self.ground.place)})

    def life(self, harm: Harm) -> Facts:
        """One writer under harm, what it left, and what became of a second try."""
        self._anew()
        facts = {"operation": self.name, "kind": self.ground.kind, "harm": harm.kind, "n": harm.n}
        facts |= {"lasting": harm.lasting} | self._act(harm)
        facts["left"] = hidden(self.ground.place)

        def look_and_retry(tell: Callable[..., None]) -> Facts:
            found = state(self.ground.place)
            tell(state=found)
            (self.operation.again if self._is_there(found) else self.operation.act)(self.ground)
            return {"retried": state(self.ground.place)}

        seen = live(look_and_retry)
        facts |= {"state": seen.get("state"), "retried": seen.get("retried")}
        facts["trouble"] = facts.get("traceback") or seen.get("traceback")
        self._settle(facts)
        facts["left after"] = hidden(self.ground.place)
        facts["wrong"] = list(self._wrong(harm, facts))
        if hashed(self.ground.sources) != self._sources:
            raise RuntimeError(f"sources were changed: {facts}")
        return facts

    def _wrong(self, harm: Harm, facts: Facts) -> Iterator[str]:
        if facts["trouble"]:
            yield f"the writer, or the second try, failed: {facts['trouble']}"
            return
        yield from self._wrong_state(facts["state"])
        if "unraisable" in facts:
            yield f"an error was printed that nobody could catch: {facts['unraisable']}"
        yield from self._wrong_end(harm, facts)
        finished = facts["state"] == self.done and self.operation.adds
        if facts["retried"] != self.done and not (finished or self._is_there(facts["state"])):
            yield "the second try did not do what the first would have done"
        if facts["left after"]:
            yield "something is left after the second try"

    def _is_there(self, found: State) -> bool:
        """Whether what is to be made is there already, and is not made again."""
        return self.operation.is_new and "archive" in found

    def _wrong_end(self, harm: Harm, facts: Facts) -> Iterator[str]:
        if harm.kind == KILL:
            if facts["ended"] != -signal.SIGKILL:
                yield "nobody was killed"
        elif "error" in facts:
            yield from self._wrong_error(harm, facts)
        elif facts["state"] != self.done:
            yield "refused, and neither done nor an error"

    def _wrong_state(self, found: State) -> Iterator[str]:
        for name in {*found, *self.before, *self.done}:
            if found.get(name) not in (self.before.get(name), self.done.get(name)):
                yield f"{name} is neither the old nor the new: {found.get(name)}"
        removed = [n for n in self.before if n not in self.done and n not in found]
        if removed and any(found.get(name) != new for name, new in self.done.items()):
            yield f"{removed} is gone, and what was made of it is not there"

    def _wrong_error(self, harm: Harm, facts: Facts) -> Iterator[str]:
        error = facts["error"]
        if not error["typed"]:
            yield "the error is not one of scdl's"
        if error["errno"] != harm.kind:
            yield f"the error does not say {harm.kind}"
        # What is interrupted in removing goes with the next writer.
        removing = facts.get("at", "").startswith(REMOVALS)
        if facts["left"] and not (harm.kind == INTERRUPT and removing):
            yield "something is left"
        # An interrupt may come when all is done.
        undone = self.operation.is_one and not harm.lasting and harm.kind != INTERRUPT
        if undone and facts["state"] != self.before:
            yield "an error, and something was changed"


def _described(error: Exception) -> Facts:
    code = getattr(error, "errno", None)
    if isinstance(error, ConversionFailedError):
        # Of several files; the reasons are told in words.
        code = next((c for c in errno.errorcode if os.strerror(c) in str(error)), None)
    named = errno.errorcode.get(code) if code else None
    return {"typed": isinstance(error, ScdlError), "errno": named, "text": str(error)}


def spread(n: int, points: int) -> list[int]:
    """At most so many of the numbers from 1 to n, spread evenly."""
    points = min(n, points)
    return sorted({math.ceil((i + 0.5) * n / points) for i in range(points)})


def described(text: str | None, operations: Sequence[str]) -> argparse.ArgumentParser:
    """What every harness is asked for."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("place", type=Path, help="an empty directory")
    parser.add_argument("--points", type=int, default=5, help="where to try each operation")
    parser.add_argument("--operations", default=",".join(operations))
    parser.add_argument("--kinds", default="memmap,zarr")
    return parser


def grounds(place: Path, sources: Path, kinds: str) -> list[Ground]:
    """Where to work, with something to read, for each kind of archive."""
    place.mkdir()
    sources.mkdir()
    write_sources(sources, kinds.split(","))
    return [Ground(sources, place, kind) for kind in kinds.split(",")]


def tell(life: Facts) -> None:
    """Give the facts of a life to whoever started this."""
    print(json.dumps(life), flush=True)  # noqa: T201


def main() -> None:
    """Try every operation on every kind of archive under every harm."""
    parser = described(__doc__, EVERY)
    parser.add_argument(
        "--harms", default=KILL, help="SIGKILL and names of errno, with + if lasting"
    )
    options = parser.parse_args()
    for ground in grounds(options.place / "place", options.place / "sources", options.kinds):
        for name in options.operations.split(","):
            trial = Trial(name, OPERATIONS[name], ground)
            for harm in options.harms.split(","):
                kind = harm.rstrip("+")
                for n in spread(trial.changes, options.points):
                    tell(trial.life(Harm(kind, n, harm.endswith("+"))))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
