"""Errors of the storage layer.

Every error derives from :class:`ScdlError` and from the builtin exception that it refines, so
callers may catch either. A message is one or two sentences: what is wrong, where, what was
expected, what was found, and what to do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

#: Advice for archives with damaged bytes.
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
    "NewerFormatError",
    "OutputError",
    "PathError",
    "PathTypeError",
    "RangeError",
    "RemoteError",
    "ScdlError",
    "ScdlWarning",
    "newer_format",
    "one_line",
    "refused_write",
]


class ScdlError(Exception):
    """Base class of all errors that scdl raises."""


class ScdlWarning(UserWarning):
    """Category of all warnings that scdl issues."""


class ArchiveNotFoundError(ScdlError, FileNotFoundError):
    """The path of an archive does not exist."""


class ArchiveExistsError(ScdlError, FileExistsError):
    """The path of an archive to write already exists."""


class ArchivePlaceError(ScdlError, ValueError):
    """An archive cannot be written to a path inside another archive."""


class ArchiveFormatError(ScdlError, ValueError):
    """A path is not an archive, or the archive is damaged."""


class NewerFormatError(ArchiveFormatError):
    """A newer release wrote the archive, in a format that this release does not read."""


class ArchiveLinkError(ArchiveFormatError):
    """A link points outside an archive, and is not followed."""


class ArchiveWriteError(ScdlError, OSError):
    """The operating system refused a write; ``errno`` is the reason."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}" if self.filename else super().__str__()


class ArchiveLockedError(ScdlError, BlockingIOError):
    """An archive or a collection is being changed by another process or thread."""


class ArchiveChangedError(ScdlError, RuntimeError):
    """An archive or a collection was changed or replaced since it was opened."""


class ArchiveClosedError(ScdlError, ValueError):
    """A store was used after ``close()``."""


class ArrayNotFoundError(ScdlError, KeyError):
    """An archive has no array, table or column of that name."""

    def __str__(self) -> str:
        # KeyError would show the message in quotes.
        return str(self.args[0]) if self.args else ""


class RangeError(ScdlError, IndexError):
    """A requested range lies outside an array, or ends before it starts."""


class OutputError(ScdlError, ValueError):
    """Values or an output array have the wrong dtype, shape or memory layout."""


class BackendNotFoundError(ScdlError, ValueError):
    """No storage backend of that name is installed."""


class BackendOptionError(ScdlError, ValueError):
    """A storage backend does not support an option, or its value."""


class MissingCodecError(ScdlError, ImportError):
    """A package that a codec needs is not installed."""


class PathError(ScdlError, ValueError):
    """A path is invalid, or its suffix is that of a different format."""


class PathTypeError(PathError, TypeError):
    """An argument is not a path but another object, such as an AnnData."""


class RemoteError(ScdlError, OSError):
    """A remote store failed or did not respond, despite retries."""


class RefusedError(RemoteError):
    """A remote store refused a request."""


@contextlib.contextmanager
def refused_write(path: str) -> Iterator[None]:
    """Context manager that converts an OSError of a write to an ArchiveWriteError.

    Examples
    --------
    >>> from storage_backends.errors import ArchiveWriteError, refused_write
    >>> try:
    ...     with refused_write("cells.scdl"):
    ...         raise OSError(28, "No space left on device")
    ... except ArchiveWriteError as error:
    ...     print(error)
    cells.scdl: cannot write: No space left on device
    """
    try:
        yield
    except ScdlError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise ArchiveWriteError(error.errno, f"cannot write: {reason}", path) from error


def newer_format(where: str, found: object, most: object) -> NewerFormatError:
    """The error for a file whose format is newer than the newest that this release reads.

    Examples
    --------
    >>> from storage_backends.errors import newer_format
    >>> print(newer_format("cells.zarr", 3, 1))
    cells.zarr: its format is 3, this release reads up to 1; upgrade scdl-store
    """
    return NewerFormatError(
        f"{where}: its format is {found}, this release reads up to {most}; upgrade scdl-store"
    )


def one_line(error: BaseException) -> str:
    r"""Message of another library's error on one line, as a part of a sentence.

    Examples
    --------
    >>> from storage_backends.errors import one_line
    >>> one_line(ValueError("damaged\n  at byte 3"))
    'damaged at byte 3'
    """
    message: object = error
    if isinstance(error, KeyError) and error.args:
        # The text of a KeyError is the repr of the key.
        message = error.args[0]
    elif isinstance(error, OSError) and error.strerror and not isinstance(error, ScdlError):
        message = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(message).split()) or type(error).__name__
