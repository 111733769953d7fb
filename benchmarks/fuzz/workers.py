"""Processes that try inputs, watched from outside.

Crashes, hangs and excessive memory end a worker. The parent knows the number of its last input, and
generates that input again to save it.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from benchmarks.fuzz import mutators
from benchmarks.fuzz.targets import TARGETS
from scdl.errors import ScdlError

#: Most seconds and memory for an input, and address space of a worker.
HANG_SECONDS = 20.0
_MOST_GROWTH = 256 << 20
_ADDRESS_SPACE = 6 << 30
#: Findings after which a target ends.
_MOST_FINDINGS = 20
_SHM = Path("/dev/shm")


@dataclass(frozen=True)
class Finding:
    """An input that no parser may fail on."""

    number: int
    what: str
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Run:
    """Results of a target.

    Attributes
    ----------
    tried, refused
        Inputs, and inputs that ended in an ScdlError.
    """

    target: str
    tried: int
    refused: int
    seconds: float
    findings: Sequence[Finding]


class _Turn:
    """One worker, and counters that its parent can read even after a crash."""

    def __init__(self, target: str, corpus: Sequence[bytes], seed: int, numbers: range) -> None:
        context = multiprocessing.get_context("fork")
        self.numbers = numbers
        #: Inputs that were begun, and refused, by this worker.
        self.begun: Synchronized[int] = context.Value("q", 0, lock=False)  # type: ignore[assignment]
        self.refused: Synchronized[int] = context.Value("q", 0, lock=False)  # type: ignore[assignment]
        self.receiver, sender = context.Pipe(duplex=False)
        self.stop: Event = context.Event()
        self.process = context.Process(
            target=_work, args=(target, corpus, seed, self, sender), daemon=True
        )
        self.process.start()
        sender.close()
        self._moved = time.monotonic()
        self._seen = 0

    def is_hanging(self) -> bool:
        """Whether it has been at the same input for too long; compiling before the first may."""
        if not self.begun.value or self.begun.value != self._seen:
            self._seen, self._moved = self.begun.value, time.monotonic()
        return time.monotonic() - self._moved > HANG_SECONDS

    def said(self) -> str | None:
        """Problem of the last input, as the worker reports it; None without a report."""
        try:
            return str(self.receiver.recv()) if self.receiver.poll() else None
        except EOFError:
            return None


def run(
    target: str, inputs: int, seconds: float, workers: int, *, seed: int = 0, first: int = 0
) -> Run:
    """Try a number of inputs, or as many as the time allows."""
    started = time.monotonic()
    findings: list[Finding] = []
    tried = refused = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_memory()) as place:
        corpus = TARGETS[target].corpus(Path(place))
        share = -(-inputs // workers)
        ranges = [range(i, min(i + share, first + inputs)) for i in _starts(first, inputs, share)]
        turns = [_Turn(target, corpus, seed, numbers) for numbers in ranges]
        while turns:
            time.sleep(0.05)
            if time.monotonic() - started > seconds:
                for turn in turns:
                    turn.stop.set()
            for turn in list(turns):
                ended = _ended(turn)
                if ended is None:
                    continue
                turns.remove(turn)
                tried += turn.begun.value
                refused += turn.refused.value
                if ended:
                    number = turn.numbers[turn.begun.value - 1]
                    findings.append(Finding(number, ended, mutators.make(corpus, seed, number)))
                    rest = turn.numbers[turn.begun.value :]
                    if rest and len(findings) < _MOST_FINDINGS and not turn.stop.is_set():
                        turns.append(_Turn(target, corpus, seed, rest))
    return Run(target, tried, refused, time.monotonic() - started, findings)


def _starts(first: int, inputs: int, share: int) -> Iterator[int]:
    yield from range(first, first + inputs, max(share, 1))


def _ended(turn: _Turn) -> str | None:
    """How a worker ended: the empty string if it finished; None while it works."""
    if turn.is_hanging():
        turn.process.kill()
        turn.process.join()
        return f"hang: more than {HANG_SECONDS:.0f} s"
    if turn.process.is_alive():
        return None
    turn.process.join()
    code = turn.process.exitcode
    return turn.said() or ("" if code == 0 else f"crash: the process ended with {code}")


def _memory() -> Path | None:
    """A directory in memory, if the system has one."""
    return _SHM if os.access(_SHM, os.W_OK) else None


def _work(target: str, corpus: Sequence[bytes], seed: int, turn: _Turn, sender: Any) -> None:
    warnings.simplefilter("ignore")
    # Libraries print errors about inputs that they refuse.
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)
    place = Path(tempfile.mkdtemp(prefix="fuzz-worker-", dir=_memory()))
    try:
        sender.send(_try_all(target, corpus, seed, turn, place))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _try_all(target: str, corpus: Sequence[bytes], seed: int, turn: _Turn, place: Path) -> str:
    """Problem of the last input; empty if there is none."""
    parse = TARGETS[target].parser(place)
    for data in corpus:
        # Valid inputs first, so that libraries are loaded and code is compiled.
        attempt(parse, data)
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    before = _peak()
    for number in turn.numbers:
        if turn.stop.is_set():
            break
        turn.begun.value += 1
        data = mutators.make(corpus, seed, number)
        problem = attempt(parse, data)
        turn.refused.value += problem == ""
        if problem:
            return problem
        peak = _peak()
        if peak - before > _MOST_GROWTH:
            return f"memory: {(peak - before) >> 20} MiB for {len(data)} bytes"
    return ""


def attempt(parse: Any, data: bytes) -> str | None:
    """Try an input: None if it is read, the empty string if it is refused, else the problem."""
    try:
        parse(data)
    except ScdlError:
        return ""
    except BaseException as error:  # noqa: BLE001 - any other error is a finding
        return f"{type(error).__name__}: {error!s:.300}"
    return None


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
