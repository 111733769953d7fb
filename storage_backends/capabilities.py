"""What a storage backend may do besides: a small class for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from storage_backends.base import ArrayStore


@dataclass(frozen=True, slots=True)
class Sparse:
    """A sparse matrix besides the expression matrix, in three arrays of an archive.

    Parameters
    ----------
    format
        ``"csr"`` or ``"csc"``: whether ``<name>/indptr`` runs over rows or columns.
    shape
        Rows and columns.
    """

    format: str
    shape: tuple[int, int]


class Verdict(IntEnum):
    """What is known of an archive; the numbers are exit codes."""

    SOUND = 0
    DAMAGED = 1
    #: Neither can be told.
    UNKNOWN = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found out about an archive.

    Parameters
    ----------
    message
        One sentence or two: where, what was expected, what was found, what to do.
    verdict
        What follows from it; SOUND for a remark.
    mendable
        Whether ``ArrayStore.repair`` mends it.
    """

    message: str
    verdict: Verdict = Verdict.DAMAGED
    mendable: bool = False


class Piece(NamedTuple):
    """Some bytes of an archive, which any thread may check.

    Attributes
    ----------
    nbytes
        How many.
    check
        Reads them; None where they are what was written.
    """

    nbytes: int
    check: Callable[[], Finding | None]


@dataclass(frozen=True, slots=True)
class Examination:
    """What a backend knows of the files of an archive, without reading all of them.

    Parameters
    ----------
    findings
        Files that are lost, cut or not known; checksums that are missing.
    pieces
        All bytes of which there are checksums; may be made while they are gone through.
    nbytes
        How many these are.
    has_checksums
        Whether there are any.
    open
        Opens the archive so that it can be read before the pieces are checked: reading checks what
        it needs first, and raises ArchiveFormatError where that is damaged. None: the archive is
        to be opened afterwards.
    """

    findings: Sequence[Finding] = ()
    pieces: Iterable[Piece] = ()
    nbytes: int = 0
    has_checksums: bool = False
    open: Callable[[], ArrayStore] | None = None
