"""What a storage backend may do besides: a small class for each."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage_backends.errors import (
    ArchiveChangedError,
    ArchiveWriteError,
    ArrayNotFoundError,
    OutputError,
)

if TYPE_CHECKING:
    from storage_backends.base import ArraySpec, ArrayStore


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
        All bytes that have checksums; an iterator may make the pieces one after the other.
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


class _Store:
    path: str

    if TYPE_CHECKING:

        def spec(self, name: str) -> ArraySpec: ...


class Mapped(_Store):
    """Arrays that are in memory, or mapped to it."""

    def view(self, name: str) -> NDArray[Any] | None:
        """The whole array as a read-only view without a copy, where a backend can offer one."""
        self.spec(name)
        return None


class Chunked(_Store):
    """Arrays that are stored in pieces, and how."""

    def chunk_length(self, name: str) -> int:
        """Items that are read as one, whichever of them is asked for; 1: each on its own."""
        self.spec(name)
        return 1

    def will_need(self, name: str, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        """Tell that ranges, which rise, will be read soon; a backend may begin to fetch them.

        Returns without waiting for them, and raises nothing that reading them would not.
        """
        self.spec(name)

    def describe(self, name: str) -> str:
        """How an array is stored, for people: its codecs, chunks and shards."""
        return ""

    @property
    def requires(self) -> Sequence[str]:
        """Packages that other programs need to read what is stored, besides those of the format."""
        return ()

    @property
    def options(self) -> Mapping[str, Any]:
        """Keywords of ``writer.open`` for an archive that is stored as this one is."""
        return {}

    @property
    def stored_bytes(self) -> Mapping[str, int]:
        """Bytes on disk of every array and table by name, as far as they are known."""
        return {}

    @property
    def nbytes(self) -> int:
        """Bytes on disk of the whole archive."""
        return sum(self.stored_bytes.values())


class Elements(_Store):
    """The rest of an AnnData."""

    @property
    def sparse(self) -> Mapping[str, Sparse]:
        """Sparse matrices by name, such as ``layers/spliced``; their three arrays are arrays."""
        return {}

    @property
    def elements(self) -> Sequence[str]:
        """Name of every element that is neither arrays nor a table, such as ``uns``."""
        return ()

    def read_element(self, name: str) -> Any:
        """An element as the object that anndata makes of it.

        Raises
        ------
        ArrayNotFoundError
            There is no such element.
        """
        known = ", ".join(self.elements) or "none"
        raise ArrayNotFoundError(f"{self.path}: there is no element {name!r}; it holds: {known}")

    @property
    def unread(self) -> Sequence[str]:
        """What a foreign archive holds besides, and the backend cannot read."""
        return ()


class Checked(_Store):
    """Whether an archive is sound; by path, since a damaged one may not open."""

    #: Unusual things about the archive that were accepted, as sentences; opening warns of each.
    remarks: Sequence[str] = ()

    #: Whether what the archive says of itself disagrees with its arrays, which were believed;
    #: writing it anew mends it.
    stale: bool = False

    @classmethod
    def examine(cls, path: str) -> Examination:
        """What the files at `path` say before they are read; raises nothing for damaged ones."""
        return Examination(
            [Finding(f"{path}: this backend keeps no checksums of bytes", Verdict.UNKNOWN)]
        )

    @classmethod
    def repair(cls, path: str) -> Sequence[str]:
        """Mend what can be mended without guessing, atomically; says what was done.

        Raises
        ------
        ArchiveFormatError
            The archive cannot be opened.
        ArchiveWriteError
            It cannot be written.
        """
        return ()

    @classmethod
    def add_checksums(cls, path: str) -> int:
        """Give checksums to an archive that has none, atomically; returns the bytes covered.

        Raises
        ------
        OutputError
            It has some, or the backend keeps none.
        ArchiveWriteError
            The archive cannot be written.
        """
        raise OutputError(f"{path}: this backend keeps no checksums of bytes")


class Placed(_Store):
    """Where an archive stands, and whether it still does."""

    @property
    def identity(self) -> Any:
        """What tells the archive that was opened from others at its path; None where unknown."""
        return None

    @property
    def is_current(self) -> bool:
        """Whether the archive that was opened is still the one at the path, as far as is known."""
        return True

    def check_current(self) -> None:
        """ArchiveChangedError where the archive at the path is not the one that was opened."""
        if not self.is_current:
            raise ArchiveChangedError(
                f"{self.path}: the archive was changed, moved or replaced since it was opened, and "
                "what stands here now is left alone; open it again"
            )

    @property
    def fingerprint(self) -> str | None:
        """What archives of another content do not have; None where it takes reading all to know."""
        return None

    def check_removable(self) -> None:
        """Raise what :meth:`remove` would raise, as far as it can be told before."""
        raise ArchiveWriteError(
            errno.ENOENT, "only what is in the file system here is removed", self.path
        )

    def remove(self) -> None:
        """Close the archive and remove it from where it stands, in one step.

        Raises
        ------
        ArchiveChangedError
            Another one stands there by now.
        ArchiveLockedError
            Another process or thread is changing it.
        ArchiveWriteError
            The directory that it is in cannot be written, or the backend removes none.
        """
        self.check_removable()


class ElementsWriter:
    """Keeps the rest of an AnnData."""

    path: str

    #: Whether everything that an AnnData consists of can be kept, not only what the schema names.
    keeps_elements: bool = False

    def write_sparse(self, name: str, sparse: Sparse) -> None:
        """Say what three arrays ``<name>/data``, ``…/indices`` and ``…/indptr`` are.

        Raises
        ------
        OutputError
            The backend keeps no such elements.
        """
        raise OutputError(f"{self.path}: this backend keeps no {name}")

    def write_element(self, name: str, value: Any) -> None:
        """Write an element that is neither arrays nor a table, as anndata writes it.

        Raises
        ------
        OutputError
            The backend keeps no elements, or anndata does not know how to write this one.
        """
        raise OutputError(f"{self.path}: this backend keeps no {name}")
