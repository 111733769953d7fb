"""Errors of damaged sources: what libraries raise, as one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from scdl.errors import ScdlError, SourceError
from storage_backends.errors import one_line

#: What is said of a file of which a part may be missing.
CUT_SHORT = "the file cannot be read, or is cut short"


@contextmanager
def readable_by(
    problem: str, where: str, *, errors: tuple[type[Exception], ...] = (Exception,)
) -> Iterator[None]:
    """Convert what a library raises for a damaged file to a SourceError with one sentence."""
    try:
        yield
    except ScdlError:
        raise
    except errors as error:
        raise SourceError(f"{where}: {problem}: {one_line(error):.300}") from error
