"""Formats that are converted: a module for each, and a line here.

A third party announces a format as an entry point of the group ``scdl.source_formats`` whose value
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
    """A format that cells are converted from.

    Parameters
    ----------
    name
        What it is called.
    detect
        Whether what stands at a path is of this format; cheap, never raises.
    open
        Opens a path: the matrix to take (None: what the format has for counts), and a stack that
        closes what is open. Gives a source for each set of cells that share their genes.
    """

    name: str
    detect: Callable[[str], bool]
    open: Callable[[str, str | None, ExitStack], Sequence[Source]]


H5AD = SourceFormat("h5ad", other_formats.is_hdf5, h5ad.opened)
ARCHIVE = SourceFormat("archive", registry.is_archive, archive.opened)


@cache
def _announced(search_path: tuple[str, ...]) -> list[EntryPoint]:
    """Entry points of third parties; looking for them takes milliseconds."""
    return [*entry_points(group=ENTRY_POINTS)]


def formats() -> Iterator[SourceFormat]:
    """All formats, ours first; those of third parties that cannot be imported are left out."""
    yield from (H5AD, ARCHIVE)
    for point in _announced(tuple(sys.path)):
        with suppress(ImportError, AttributeError):
            yield point.load()


def open_source(path: Path, matrix: str | None, stack: ExitStack) -> Sequence[Source]:
    """What a path holds, open until the stack ends.

    Raises
    ------
    SourceError
        It is of no format that is known, or damaged.
    """
    path = path_of(path)
    for known in formats():
        if known.detect(path):
            return known.open(path, matrix, stack)
    if os.path.isdir(path) and _has_archives(path):
        raise SourceError(
            f"{path}: this is a directory of archives; give them as a list, or flatten the "
            f"collection: `scdl flatten {path} DEST`"
        )
    # Each says what is wrong with what it cannot read.
    is_file = not os.path.isdir(path) and not is_url(path)
    return (H5AD if is_file else ARCHIVE).open(path, matrix, stack)


def _has_archives(directory: str) -> bool:
    """Whether there are archives in a directory."""
    try:
        paths = [os.path.join(directory, name) for name in os.listdir(directory)]
    except OSError:
        return False
    return any(map(registry.is_archive, paths))
