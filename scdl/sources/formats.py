"""Registry of source formats. Each is implemented in its own module.

Third parties register a format as an entry point of the group ``scdl.source_formats`` whose value
is a :class:`SourceFormat`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from scdl.errors import SourceError
from scdl.sources import archive, h5ad
from scdl.sources.base import Source
from storage_backends import other_formats, registry
from storage_backends.paths import Path, is_url, path_of

ENTRY_POINTS = "scdl.source_formats"


@dataclass(frozen=True)
class SourceFormat:
    """A format from which cells are converted.

    Parameters
    ----------
    name
        Name of the format.
    detect
        Whether a path has this format; must be cheap and never raise.
    open
        Called with a path, the name of the matrix to read (None: the default of the format) and a
        stack that closes open resources. Returns a source for each set of cells with the same
        genes.
    """

    name: str
    detect: Callable[[str], bool]
    open: Callable[[str, str | None, ExitStack], Sequence[Source]]


H5AD = SourceFormat("h5ad", other_formats.is_hdf5, h5ad.open_sources)
ARCHIVE = SourceFormat("archive", registry.is_archive, archive.open_sources)


@cache
def _announced(search_path: tuple[str, ...]) -> list[EntryPoint]:
    """Entry points of third parties; cached because the search takes milliseconds."""
    return [*entry_points(group=ENTRY_POINTS)]


def formats() -> Iterator[SourceFormat]:
    """All formats, built-in ones first; third-party formats that fail to import are skipped."""
    yield from (H5AD, ARCHIVE)
    for point in _announced(tuple(sys.path)):
        with suppress(ImportError, AttributeError):
            yield point.load()


def open_source(path: Path, matrix: str | None, stack: ExitStack) -> Sequence[Source]:
    """Open the sources at a path; they stay open until the stack closes.

    Raises
    ------
    SourceError
        The format is unknown, or the file is damaged.
    """
    path = path_of(path)
    for known in formats():
        if known.detect(path):
            return known.open(path, matrix, stack)
    if os.path.isdir(path) and _has_archives(path):
        raise SourceError(
            f"{path}: this is a directory of archives; pass them as a list, or flatten the "
            f"collection with `scdl flatten {path} DEST`"
        )
    # Opening the path as either format raises an error that explains what is wrong.
    is_file = not os.path.isdir(path) and not is_url(path)
    return (H5AD if is_file else ARCHIVE).open(path, matrix, stack)


def _has_archives(directory: str) -> bool:
    """Whether a directory contains archives."""
    try:
        paths = [os.path.join(directory, name) for name in os.listdir(directory)]
    except OSError:
        return False
    return any(map(registry.is_archive, paths))
