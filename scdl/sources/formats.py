"""Registry of source formats. Each is implemented in its own module.

Third parties register a format as an entry point of the group ``scdl.source_formats`` whose value
is a :class:`SourceFormat`.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from scdl.errors import OptionError, SourceError
from scdl.sources import (
    anndata_object,
    archive,
    columnar,
    h5ad,
    loom,
    mudata,
    soma,
    tenx,
    tenx_h5,
    tenx_mtx,
)
from scdl.sources.base import Source
from storage_backends import other_formats, registry
from storage_backends.paths import is_url, path_of, paths_of

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
        Called with a path, the name of the matrix to read (None: the default of the format), a
        stack that closes open resources, and those of `options` that the user gave, by keyword.
        Returns a source for each set of cells with the same genes.
    options
        Names of options of :func:`scdl.convert` that only some formats have.
    files
        Patterns of the names of files with this format, which conversions of directories find.
    of_objects
        Whether `detect` and `open` take objects in memory, such as an AnnData, instead of paths.
    below
        Yields the paths of sources in a directory and its subdirectories, if they are not just the
        files with such names; must never raise.
    """

    name: str
    detect: Callable[[Any], bool]
    open: Callable[..., Sequence[Source]]
    options: Sequence[str] = ()
    files: Sequence[str] = ()
    of_objects: bool = False
    below: Callable[[str], Iterable[str]] | None = None


ANNDATA = SourceFormat(
    "AnnData in memory", anndata_object.is_anndata, anndata_object.open_sources, of_objects=True
)
TENX_H5 = SourceFormat(
    "10x HDF5", tenx_h5.is_tenx, tenx_h5.open_sources, tenx.OPTIONS, tenx_h5.FILES
)
TENX_MTX = SourceFormat(
    "10x Matrix Market", tenx_mtx.is_tenx, tenx_mtx.open_sources, tenx.OPTIONS, tenx_mtx.FILES
)
MUDATA_OBJECT = SourceFormat(
    "MuData in memory", mudata.is_object, mudata.open_object, mudata.OPTIONS, of_objects=True
)
MUDATA = SourceFormat("MuData", mudata.is_mudata, mudata.open_sources, mudata.OPTIONS, mudata.FILES)
LOOM = SourceFormat("Loom", loom.is_loom, loom.open_sources, loom.OPTIONS, loom.FILES)
SOMA = SourceFormat(
    "TileDB-SOMA", soma.is_soma, soma.open_sources, soma.OPTIONS, below=soma.sources_below
)
H5AD = SourceFormat("h5ad", other_formats.is_hdf5, h5ad.open_sources, files=("*.h5ad",))
ARCHIVE = SourceFormat("archive", registry.is_archive, archive.open_sources)
COLUMNAR = SourceFormat(
    "Parquet or Arrow",
    columnar.is_columnar,
    columnar.open_sources,
    columnar.OPTIONS,
    below=columnar.sources_below,
)


@cache
def _announced(search_path: tuple[str, ...]) -> list[EntryPoint]:
    """Entry points of third parties; cached because the search takes milliseconds."""
    return [*entry_points(group=ENTRY_POINTS)]


def formats() -> Iterator[SourceFormat]:
    """All formats, built-in ones first; third-party formats that fail to import are skipped."""
    yield from (ANNDATA, MUDATA_OBJECT)
    yield from (MUDATA, LOOM, SOMA, TENX_H5, TENX_MTX, H5AD, ARCHIVE, COLUMNAR)
    for point in _announced(tuple(sys.path)):
        with suppress(ImportError, AttributeError):
            yield point.load()


def options() -> list[str]:
    """Names of the options that only some formats have."""
    return list(dict.fromkeys(name for known in formats() for name in known.options))


def files_below(directory: str, kinds: Iterable[SourceFormat] | None = None) -> list[str]:
    """Sorted paths of all sources in a directory and its subdirectories, most of them files.

    Parameters
    ----------
    kinds
        The formats to find; None: all.
    """
    found: set[str] = set()
    for known in kinds or formats():
        for pattern in known.files:
            below = os.path.join(glob.escape(directory), "**", pattern)
            paths = (path for path in glob.iglob(below, recursive=True) if os.path.isfile(path))
            # A damaged h5ad file is a failure; a file of another kind is none of ours.
            found.update(path for path in paths if known is H5AD or known.detect(path))
        if known.below is not None:
            found.update(known.below(directory))
    return sorted(found)


def is_source(path: str) -> bool:
    """Whether what is at a path can be converted as a whole."""
    return any(not known.of_objects and known.detect(path) for known in formats())


def is_object(source: Any) -> bool:
    """Whether a source is an object in memory that can be converted."""
    return any(known.of_objects and known.detect(source) for known in formats())


def sources_of(sources: Any) -> list[Any]:
    """One or several sources as a list of normalised paths and objects.

    Raises
    ------
    PathTypeError, PathError
        A source is neither a path nor an object that can be converted.
    """
    wanted = "an AnnData, the path of an h5ad file, a Zarr store or an archive, or several"
    several = sources if isinstance(sources, list | tuple) else [sources]
    if any(map(is_object, several)):
        return [one if is_object(one) else path_of(one, wanted) for one in several]
    return [*paths_of(sources, wanted)]


def open_source(
    source: Any,
    matrix: str | None,
    stack: ExitStack,
    given: Mapping[str, Any],
) -> Sequence[Source]:
    """Open the sources at a path, or in an object; they stay open until the stack closes.

    Parameters
    ----------
    given
        Options of the conversion; those that are not among :func:`options` are ignored.

    Raises
    ------
    SourceError
        The format is unknown, or the file is damaged.
    OptionError
        The format lacks an option.
    """
    if not is_object(source):
        source = path_of(source)
    known = _format_of(source)
    chosen = {name: given[name] for name in options() if given.get(name) is not None}
    for name in chosen:
        if name not in known.options:
            having = ", ".join(other.name for other in formats() if name in other.options)
            raise OptionError(
                f"{source}: the option {name} is for {having}, but this is {known.name}; leave it "
                "out"
            )
    return known.open(source, matrix, stack, **chosen)


def _format_of(source: Any) -> SourceFormat:
    """The format of an object or a path."""
    of_objects = is_object(source)
    for known in formats():
        if known.of_objects == of_objects and known.detect(source):
            return known
    if os.path.isdir(source) and _has_archives(source):
        raise SourceError(
            f"{source}: this is a directory of archives; pass them as a list, or flatten the "
            f"collection with `scdl flatten {source} DEST`"
        )
    # Opening the path as either format raises an error that explains what is wrong.
    is_file = not os.path.isdir(source) and not is_url(source)
    return H5AD if is_file else ARCHIVE


def _has_archives(directory: str) -> bool:
    """Whether a directory contains archives."""
    try:
        paths = [os.path.join(directory, name) for name in os.listdir(directory)]
    except OSError:
        return False
    return any(map(registry.is_archive, paths))
