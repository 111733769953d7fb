"""Verification of an archive: checksums of its bytes, and consistency of its structure."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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
    NewerFormatError,
    OutputError,
    RemoteError,
    ScdlError,
)
from scdl.progress import progress_bar
from scdl.reports import Report
from scdl.verification import structure
from storage_backends import registry
from storage_backends.base import ArrayStore, Backend
from storage_backends.capabilities import Examination, Finding, Verdict
from storage_backends.compute.threads import in_parallel, n_threads
from storage_backends.paths import path_of

#: Concurrent reads; disks reach their full speed only with many.
READERS = 16
#: Errors that do not imply that the bytes of an archive are damaged.
_INCONCLUSIVE = (
    ArchiveChangedError,
    ArchiveLinkError,
    ArchiveLockedError,
    MissingCodecError,
    NewerFormatError,
    OutputError,
    PermissionError,
    RemoteError,
)
#: Maximum number of findings that a report lists.
_MAX_FINDINGS = 100

_T = TypeVar("_T")


@dataclass(frozen=True)
class VerificationReport(Report):
    """Result of :func:`scdl.verify`.

    Parameters
    ----------
    path, backend
        The archive and its backend; for a collection, the number of archives.
    deep
        Whether every byte was read.
    findings
        All damage, inconclusive results and remarks.
    done
        Repairs that were made, and checksums that were added.
    nbytes
        Bytes that were compared with their checksums.
    seconds
        Duration in seconds.

    Examples
    --------
    >>> print(scdl.verify("cells.scdl"))
    cells.scdl (memmap): sound; only the structure was checked; ...
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
        """The worst verdict of the findings, of damaged, unknown and sound."""
        verdicts = {finding.verdict for finding in self.findings}
        return next((v for v in (Verdict.DAMAGED, Verdict.UNKNOWN) if v in verdicts), Verdict.SOUND)

    @property
    def is_sound(self) -> bool:
        """Whether there is neither damage nor an inconclusive result."""
        return self.verdict is Verdict.SOUND

    def to_dict(self) -> dict[str, Any]:
        """The fields, and the ``verdict``, as types that JSON has.

        Examples
        --------
        >>> scdl.verify("cells.scdl").to_dict()["verdict"]
        'sound'
        """
        return super().to_dict() | {"verdict": self.verdict.name.lower()}

    def __str__(self) -> str:
        lines = [f"{_LABELS[f.verdict]}: {f.message}" for f in self.findings]
        lines += [f"done: {action}" for action in self.done]
        if self.nbytes:
            how = f"{self.nbytes:,} bytes compared with their checksums in {self.seconds:.1f} s"
        elif self.deep:
            how = "every number was read"
        else:
            how = "only the structure was checked; --deep compares every byte with its checksum"
        summary = "sound" if self.is_sound else _LABELS[self.verdict]
        lines.append(f"{self.path} ({self.backend}): {summary}; {how}")
        return "\n".join(lines)


_LABELS = {Verdict.DAMAGED: "damaged", Verdict.UNKNOWN: "cannot tell", Verdict.SOUND: "note"}


def verify_archive(
    path: str | os.PathLike[str],
    *,
    deep: bool = False,
    repair: bool = False,
    add_checksums: bool = False,
    progress: bool = False,
) -> VerificationReport:
    """Verify one archive; :func:`scdl.verify` also takes collections."""
    started = time.perf_counter()
    path = path_of(path, "the path of an archive")
    backend = registry.detect(path)
    done: list[str] = []
    if repair:
        # An archive that cannot be opened cannot be repaired; verification reports the error.
        with suppress(ArchiveFormatError):
            done += backend.store.repair(path)
    if add_checksums:
        before = _run_verification(backend, path, deep=False, progress=progress)
        if not any(finding.verdict is Verdict.DAMAGED for finding in before.findings):
            covered = backend.store.add_checksums(path)
            done.append(f"{path}: checksums of {covered:,} bytes were added")
    run = _run_verification(backend, path, deep=deep, progress=progress)
    seconds = time.perf_counter() - started
    findings = sorted_findings(path, run.findings)
    return VerificationReport(path, backend.name, deep, findings, tuple(done), run.nbytes, seconds)


def sorted_findings(path: str, findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The worst findings, in an order that does not depend on threads; the rest is counted."""
    order = (Verdict.DAMAGED, Verdict.UNKNOWN, Verdict.SOUND)
    # Examining the files and opening the archive may report the same finding.
    unique = sorted(dict.fromkeys(findings), key=lambda f: (order.index(f.verdict), f.message))
    rest = unique[_MAX_FINDINGS:]
    if not rest:
        return tuple(unique)
    more = Finding(f"{path}: there are {len(rest):,} more findings", rest[0].verdict)
    return (*unique[:_MAX_FINDINGS], more)


def _run_verification(
    backend: Backend, path: str, *, deep: bool, progress: bool
) -> _VerificationRun:
    """Verify an archive, again if it is replaced by another one meanwhile."""
    while True:
        before = _inode(path)
        run = _VerificationRun(backend, path, deep=deep, progress=progress)
        if before == _inode(path):
            return run


def _inode(path: str) -> tuple[int, int] | None:
    """Device and inode number, which identify an archive until it is replaced."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


class _VerificationRun:
    """A single verification pass over an archive: its bytes and its structure."""

    def __init__(self, backend: Backend, path: str, *, deep: bool, progress: bool) -> None:
        self._progress = progress
        self._is_over = False
        self.nbytes = 0
        examined = backend.store.examine(path)
        self.findings = list(examined.findings)
        structure_findings: list[Finding] = []
        if deep and examined.open is not None and not self._is_damaged:
            structure_findings = self._check_concurrently(examined, examined.open)
        else:
            if deep:
                self._compare_checksums(examined)
            if not self._is_damaged:
                open_store = partial(backend.store.open, path)
                read_all = deep and not examined.has_checksums
                structure_findings = self._check_structure(open_store, read_all=read_all)
        # Findings about the structure are meaningless if bytes are damaged.
        if not self._is_damaged:
            self.findings += structure_findings

    @property
    def _is_damaged(self) -> bool:
        """Whether there is damage that cannot be repaired."""
        return any(f.verdict is Verdict.DAMAGED and not f.mendable for f in self.findings)

    def _check_concurrently(
        self, examined: Examination, open_store: Callable[[], ArrayStore]
    ) -> list[Finding]:
        """Compare checksums, limited by the disk, while checking the structure, by the CPU."""
        with ThreadPoolExecutor(1, thread_name_prefix="scdl-verify") as executor:
            structure = executor.submit(self._check_structure, open_store, read_all=False)
            try:
                self._compare_checksums(examined)
            except BaseException:
                self._is_over = True
                raise
        return structure.result()

    def _compare_checksums(self, examined: Examination) -> None:
        self.nbytes = examined.nbytes
        with self._progress_bar("checksums", self.nbytes, "B") as bar:
            for piece, mismatch in in_parallel(lambda p: p.check(), examined.pieces, READERS):
                bar.update(piece.nbytes)
                if mismatch is not None:
                    self.findings.append(mismatch)

    def _check_structure(
        self, open_store: Callable[[], ArrayStore], *, read_all: bool
    ) -> list[Finding]:
        try:
            store = open_store()
        except ScdlError as error:
            return [as_finding(error)]
        verdict = Verdict.DAMAGED if store.stale else Verdict.SOUND
        findings = [Finding(text, verdict, mendable=store.stale) for text in store.remarks]
        with store:
            checks = structure.checks(store, read_all=read_all)
            total = structure.total_size(store, read_all=read_all)
            with self._progress_bar("structure", total, "value") as bar:
                for check, results in in_parallel(_run_check, checks, n_threads()):
                    bar.update(check.size)
                    findings += results
                    if self._is_over or self._is_damaged:
                        break
        return findings

    def _progress_bar(self, name: str, total: int, unit: str) -> tqdm[Any]:
        return progress_bar(desc=name, total=total, unit=unit, unit_scale=True, show=self._progress)


def _run_check(check: structure.Check) -> list[Finding]:
    try:
        return check.run()
    except (ScdlError, OSError) as error:
        return [as_finding(error)]


def as_finding(error: Exception) -> Finding:
    """Convert an error of reading to a finding: damage, or unknown if the error is no evidence."""
    is_damage = not isinstance(error, _INCONCLUSIVE)
    return Finding(str(error), Verdict.DAMAGED if is_damage else Verdict.UNKNOWN)
