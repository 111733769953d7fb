"""Verification of archives: the capability of a backend, and its results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from storage_backends.errors import OutputError

if TYPE_CHECKING:
    from storage_backends.base import ArrayStore


class Verdict(IntEnum):
    """Result of a verification; the numbers are exit codes.

    Examples
    --------
    >>> from storage_backends.findings import Verdict
    >>> scdl.verify("cells.scdl").verdict is Verdict.SOUND
    True
    """

    SOUND = 0
    DAMAGED = 1
    #: It is unknown whether the archive is sound or damaged.
    UNKNOWN = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of verifying an archive.

    Parameters
    ----------
    message
        One or two sentences: where, what was expected, what was found, what to do.
    verdict
        What the finding means for the archive; SOUND for a remark.
    mendable
        Whether ``ArrayStore.repair`` repairs it.

    Examples
    --------
    >>> scdl.verify("cells.scdl").findings
    ()
    """

    message: str
    verdict: Verdict = Verdict.DAMAGED
    mendable: bool = False


class Piece(NamedTuple):
    """A piece of the bytes of an archive, which any thread may check.

    Attributes
    ----------
    nbytes
        Number of bytes.
    check
        Reads the bytes and compares them with their checksums; returns None if they match.

    Examples
    --------
    >>> examination = type(data.store).examine("cells.scdl")
    >>> [piece.check() for piece in examination.pieces][:1]  # no finding
    [None]
    """

    nbytes: int
    check: Callable[[], Finding | None]


@dataclass(frozen=True, slots=True)
class Examination:
    """State of the files of an archive, as far as it is known without reading all of them.

    Parameters
    ----------
    findings
        Missing, truncated or unknown files; missing checksums.
    pieces
        All bytes that have checksums; may be a lazy iterable.
    nbytes
        Number of these bytes.
    has_checksums
        Whether there are checksums.
    open
        Opens the archive for reading before all pieces are checked. Reading first checks the bytes
        that it needs, and raises ArchiveFormatError if they are damaged. None if the archive can
        only be opened after the check.

    Examples
    --------
    >>> examination = type(data.store).examine("cells.scdl")
    >>> examination.findings, examination.nbytes > 0
    ([], True)
    """

    findings: Sequence[Finding] = ()
    pieces: Iterable[Piece] = ()
    nbytes: int = 0
    has_checksums: bool = False
    open: Callable[[], ArrayStore] | None = None


class Checked:
    """Verification of an archive, by path, since a damaged one may not open.

    Examples
    --------
    >>> store = type(data.store)
    >>> examination = store.examine("cells.scdl")
    >>> examination.has_checksums
    True
    """

    #: Irregularities of the archive that were accepted, as sentences; opening warns of each.
    remarks: Sequence[str] = ()

    #: Whether metadata of the archive disagrees with its arrays, so that the metadata was ignored;
    #: `repair` writes new metadata.
    stale: bool = False

    @classmethod
    def examine(cls, path: str) -> Examination:
        """Examine the files at `path` before reading them; damage does not raise errors."""
        return Examination(
            [Finding(f"{path}: this backend does not store checksums", Verdict.UNKNOWN)]
        )

    @classmethod
    def repair(cls, path: str) -> Sequence[str]:
        """Repair what is unambiguous, atomically; returns a sentence for each repair.

        Raises
        ------
        ArchiveFormatError
            The archive cannot be opened.
        ArchiveWriteError
            The archive is not writable.
        """
        return ()

    @classmethod
    def add_checksums(cls, path: str) -> int:
        """Add checksums to an archive without any, atomically; returns the bytes covered.

        Raises
        ------
        OutputError
            The archive has checksums already, or the backend does not support them.
        ArchiveWriteError
            The archive is not writable.
        """
        raise OutputError(f"{path}: this backend does not store checksums")
