"""Whether an archive is sound: every byte by its checksum, and what the bytes say of each other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from tqdm import tqdm

from scdl.errors import (
    ArchiveChangedError,
    ArchiveFormatError,
    ArchiveLinkError,
    ArchiveLockedError,
    MissingCodecError,
    OutputError,
    RemoteError,
    ScdlError,
)
from scdl.verification import structure
from storage_backends import registry
from storage_backends.base import ArrayStore, Backend
from storage_backends.capabilities import Examination, Finding, Piece, Verdict
from storage_backends.compute.threads import in_parallel, n_threads
from storage_backends.paths import path_of

#: Reads under way at once: a disk gives its full speed only to many.
READERS = 16
#: Errors that tell nothing of the bytes of an archive.
_UNCLEAR = (
    ArchiveChangedError,
    ArchiveLinkError,
    ArchiveLockedError,
    MissingCodecError,
    OutputError,
    PermissionError,
    RemoteError,
)
#: Findings that a report lists.
_MOST_FINDINGS = 100

_T = TypeVar("_T")


@dataclass(frozen=True)
class VerificationReport:
    """What :func:`scdl.verify` found.

    Parameters
    ----------
    path, backend
        What was looked at; of a collection, how many archives.
    deep
        Whether every byte was read.
    findings
        All that is wrong, unclear or worth a remark.
    done
        What was mended or added.
    nbytes
        Bytes whose checksums were compared.
    seconds
        Time it took.
    """

    path: str
    backend: str
    deep: bool
    findings: tuple[Finding, ...]
    done: tuple[str, ...]
    nbytes: int
    seconds: float

    @property
    def verdict(self) -> Verdict:
        """Damaged if anything is; else unknown if anything is; else sound."""
        found = {finding.verdict for finding in self.findings}
        return next((v for v in (Verdict.DAMAGED, Verdict.UNKNOWN) if v in found), Verdict.SOUND)

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong or unclear."""
        return self.verdict is Verdict.SOUND

    def __str__(self) -> str:
        lines = [f"{_LABELS[f.verdict]}: {f.message}" for f in self.findings]
        lines += [f"done: {what}" for what in self.done]
        if self.nbytes:
            how = f"{self.nbytes:,} bytes compared with their checksums in {self.seconds:.1f} s"
        elif self.deep:
            how = "every number was read"
        else:
            how = "the structure was looked at; --deep compares every byte with its checksum"
        said = "sound" if self.is_sound else _LABELS[self.verdict]
        lines.append(f"{self.path} ({self.backend}): {said}; {how}")
        return "\n".join(lines)


_LABELS = {
    Verdict.DAMAGED: "damaged",
    Verdict.UNKNOWN: "cannot tell",
    Verdict.SOUND: "note",
}


def verify(
    path: str | os.PathLike[str],
    *,
    deep: bool = False,
    repair: bool = False,
    add_checksums: bool = False,
    progress: bool = False,
) -> VerificationReport:
    """Find out whether an archive is sound; see :func:`scdl.verify`, which takes collections."""
    started = time.perf_counter()
    path = path_of(path, "the path of an archive")
    backend = registry.detect(path)
    done: list[str] = []
    if repair:
        done += _repaired(backend, path)
    if add_checksums:
        before = _look(backend, path, deep=False, progress=progress)
        if not any(finding.verdict is Verdict.DAMAGED for finding in before.findings):
            covered = backend.store.add_checksums(path)
            done.append(f"{path}: checksums of {covered:,} bytes were added")
    run = _look(backend, path, deep=deep, progress=progress)
    seconds = time.perf_counter() - started
    return VerificationReport(
        path, backend.name, deep, listed(path, run.findings), tuple(done), run.nbytes, seconds
    )


def listed(path: str, findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The worst first, in an order that does not depend on threads; not more than can be read."""
    worst = (Verdict.DAMAGED, Verdict.UNKNOWN, Verdict.SOUND)
    # What is found among the files may be found at opening, too.
    ordered = sorted(dict.fromkeys(findings), key=lambda f: (worst.index(f.verdict), f.message))
    rest = ordered[_MOST_FINDINGS:]
    if not rest:
        return tuple(ordered)
    more = Finding(f"{path}: there are {len(rest):,} findings more", rest[0].verdict)
    return (*ordered[:_MOST_FINDINGS], more)


def _repaired(backend: Backend, path: str) -> Sequence[str]:
    try:
        return backend.store.repair(path)
    except ArchiveFormatError:
        # What cannot be opened cannot be mended; looking at it says what is wrong.
        return ()


def _look(backend: Backend, path: str, *, deep: bool, progress: bool) -> _Run:
    """Look at an archive, and again if another takes its place meanwhile."""
    while True:
        before = _standing(path)
        run = _Run(backend, path, deep=deep, progress=progress)
        if before == _standing(path):
            return run


def _standing(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


class _Run:
    """One look at an archive: its bytes, and what they say."""

    def __init__(self, backend: Backend, path: str, *, deep: bool, progress: bool) -> None:
        self._progress = progress
        self._is_over = False
        self.nbytes = 0
        examined = backend.store.examine(path)
        self.findings = list(examined.findings)
        structure: list[Finding] = []
        if deep and examined.open is not None and not self._is_damaged:
            structure = self._compare_meanwhile(examined, examined.open)
        else:
            if deep:
                self._compare(examined)
            if not self._is_damaged:
                opened = partial(backend.store.open, path)
                read_all = deep and not examined.has_checksums
                structure = self._structure(opened, read_all=read_all)
        # Of bytes that are not those that were written, nothing can be expected.
        if not self._is_damaged:
            self.findings += structure

    @property
    def _is_damaged(self) -> bool:
        """Whether bytes are known not to be those that were written, beyond what can be mended."""
        return any(f.verdict is Verdict.DAMAGED and not f.mendable for f in self.findings)

    def _compare_meanwhile(
        self, examined: Examination, opened: Callable[[], ArrayStore]
    ) -> list[Finding]:
        """Compare while the structure is looked at: one waits for the disk, the other decodes."""
        with ThreadPoolExecutor(1, thread_name_prefix="scdl-verify") as aside:
            structure = aside.submit(self._structure, opened, read_all=False)
            try:
                self._compare(examined)
            except BaseException:
                self._is_over = True
                raise
        return structure.result()

    def _compare(self, examined: Examination) -> None:
        def check(piece: Piece) -> Finding | None:
            return piece.check()

        self.nbytes = examined.nbytes
        with self._bar("checksums", self.nbytes, "B") as bar:
            for piece, found in in_parallel(check, examined.pieces, READERS):
                bar.update(piece.nbytes)
                if found is not None:
                    self.findings.append(found)

    def _structure(self, opened: Callable[[], ArrayStore], *, read_all: bool) -> list[Finding]:
        store, findings = _opened(opened)
        if store is None:
            return findings
        with store:
            todo = structure.checks(store, read_all=read_all)
            total = structure.size(store, read_all=read_all)
            with self._bar("structure", total, "value") as bar:
                for check, found in in_parallel(_checked, todo, n_threads()):
                    bar.update(check.size)
                    findings += found
                    if self._is_over or self._is_damaged:
                        break
        return findings

    def _bar(self, what: str, total: int, unit: str) -> tqdm[Any]:
        return tqdm(desc=what, total=total, unit=unit, unit_scale=True, disable=not self._progress)


def _opened(opened: Callable[[], ArrayStore]) -> tuple[ArrayStore | None, list[Finding]]:
    """What was opened if it could be, and what was found at that."""
    try:
        store = opened()
    except ScdlError as error:
        return None, [finding(error)]
    verdict = Verdict.DAMAGED if store.stale else Verdict.SOUND
    return store, [Finding(text, verdict, mendable=store.stale) for text in store.remarks]


def _checked(check: structure.Check) -> list[Finding]:
    try:
        return check.run()
    except (ScdlError, OSError) as error:
        return [finding(error)]


def finding(error: Exception) -> Finding:
    """What an error of reading means: damage, or that something else is missing to tell."""
    return Finding(str(error), Verdict.UNKNOWN if isinstance(error, _UNCLEAR) else Verdict.DAMAGED)
