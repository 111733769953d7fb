"""Errors of the storage layer.

Every error derives from :class:`ScdlError` and from the builtin it refines, so that callers may
catch either. A message is one sentence or two: what is wrong, where, what was expected, what was
found, and what to do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

#: What to do where bytes of an archive are not those that were written.
COPY_AGAIN = "copy the archive again, or convert its source again"

__all__ = [
    "COPY_AGAIN",
    "ArchiveChangedError",
    "ArchiveClosedError",
    "ArchiveExistsError",
    "ArchiveFormatError",
    "ArchiveLinkError",
    "ArchiveLockedError",
    "ArchiveNotFoundError",
    "ArchivePlaceError",
    "ArchiveWriteError",
    "ArrayNotFoundError",
    "BackendNotFoundError",
    "BackendOptionError",
    "MissingCodecError",
    "OutputError",
    "PathError",
    "PathTypeError",
    "RangeError",
    "RemoteError",
    "ScdlError",
    "ScdlWarning",
    "one_line",
    "refused_write",
]


class ScdlError(Exception):
    """Base of every error that scdl raises on purpose."""


class ScdlWarning(UserWarning):
    """Category of every warning that scdl gives."""


class ArchiveNotFoundError(ScdlError, FileNotFoundError):
    """There is nothing at the path of an archive."""


class ArchiveExistsError(ScdlError, FileExistsError):
    """Something already stands where an archive is to be written."""


class ArchivePlaceError(ScdlError, ValueError):
    """An archive cannot be written at a path, since that is a part of another one."""


class ArchiveFormatError(ScdlError, ValueError):
    """What stands at a path is no archive, or a damaged one."""


class ArchiveLinkError(ArchiveFormatError):
    """A link in an archive leads out of it, and is not followed."""


class ArchiveWriteError(ScdlError, OSError):
    """The operating system refused a write; ``errno`` tells why."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}" if self.filename else super().__str__()


class ArchiveLockedError(ScdlError, BlockingIOError):
    """An archive or a collection is being changed by another process or thread."""


class ArchiveChangedError(ScdlError, RuntimeError):
    """An archive or a collection is not the one any more that was opened."""


class ArchiveClosedError(ScdlError, ValueError):
    """A store was used after ``close()``."""


class ArrayNotFoundError(ScdlError, KeyError):
    """An archive holds no array, table or column of that name."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument, which quotes the sentence.
        return str(self.args[0]) if self.args else ""


class RangeError(ScdlError, IndexError):
    """A requested range lies outside an array, or ends before it starts."""


class OutputError(ScdlError, ValueError):
    """Values or an output array have the wrong dtype, shape or memory layout."""


class BackendNotFoundError(ScdlError, ValueError):
    """No storage backend of that name is installed."""


class BackendOptionError(ScdlError, ValueError):
    """A storage backend was given an option, or a value of one, that it does not know."""


class MissingCodecError(ScdlError, ImportError):
    """A package that a compression needs is not installed."""


class PathError(ScdlError, ValueError):
    """What was given as a path can be none, or names another format than is written."""


class PathTypeError(PathError, TypeError):
    """What was given as a path is an object of another kind, such as an AnnData."""


class RemoteError(ScdlError, OSError):
    """A store elsewhere failed or did not answer, in spite of retries."""


@contextlib.contextmanager
def refused_write(path: str) -> Iterator[None]:
    """Turn what the operating system says of a write into an ArchiveWriteError."""
    try:
        yield
    except ScdlError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise ArchiveWriteError(error.errno, f"cannot write: {reason}", path) from error


def one_line(error: BaseException) -> str:
    """What another library's error says, as a part of a sentence."""
    said: object = error
    if isinstance(error, KeyError) and error.args:
        # Its text is the repr of the key.
        said = error.args[0]
    elif isinstance(error, OSError) and error.strerror and not isinstance(error, ScdlError):
        said = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(said).split()) or type(error).__name__
