"""Registry of storage backends: find backends by name, or by the archive at a path.

Other packages register a backend as an entry point of the group ``scdl.storage_backends`` whose
value is a :class:`storage_backends.base.Backend`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from storage_backends import other_formats
from storage_backends.backend import CacheOptions
from storage_backends.base import ArrayStore, ArrayWriter, Backend
from storage_backends.errors import (
    ArchiveExistsError,
    ArchiveFormatError,
    ArchiveNotFoundError,
    ArchivePlaceError,
    BackendNotFoundError,
    BackendOptionError,
    ScdlWarning,
)
from storage_backends.paths import is_url, path_of
from storage_backends.zarr.detection import FSSPEC, OBSTORE

ENTRY_POINTS = "scdl.storage_backends"

#: Modules of the built-in backends; each defines ``BACKEND``.
_BUILTIN = {
    "memmap": "storage_backends.memmap",
    "memory": "storage_backends.memory",
    "zarr": "storage_backends.zarr",
}
#: Backend of new archives whose path has no known suffix.
DEFAULT = "memmap"


def _entry_points() -> dict[str, EntryPoint]:
    """Entry points of other packages by name."""
    points = entry_points(group=ENTRY_POINTS)
    return {point.name: point for point in points if point.name not in _BUILTIN}


@cache
def _cached_names(search_path: tuple[str, ...]) -> list[str]:
    """Names of the installed backends; cached, as finding entry points takes milliseconds."""
    return names()


def names() -> list[str]:
    """Names of the installed backends, built-in ones first.

    Examples
    --------
    >>> from storage_backends import registry
    >>> registry.names()
    ['memmap', 'memory', 'zarr']
    """
    return [*_BUILTIN, *_entry_points()]


def backend(name: str) -> Backend:
    """The backend named `name`; BackendNotFoundError lists the installed backends.

    Examples
    --------
    >>> from storage_backends import registry
    >>> registry.backend("memmap").name
    'memmap'
    """
    if name in _BUILTIN:
        return _builtin(name)
    point = _entry_points().get(name)
    if point is None:
        raise BackendNotFoundError(
            f"there is no storage backend {name!r}; installed backends: {', '.join(names())}"
        )
    try:
        loaded: Backend = point.load()
    except (ImportError, AttributeError) as error:
        raise BackendNotFoundError(
            f"the storage backend {name!r} is installed, but {point.value} cannot be imported: "
            f"{error}"
        ) from error
    return loaded


@cache
def _builtin(name: str) -> Backend:
    found: Backend = import_module(_BUILTIN[name]).BACKEND
    return found


def _importable() -> Iterator[Backend]:
    """All backends that can be imported, built-in ones first."""
    yield from map(_builtin, _BUILTIN)
    for name in _cached_names(tuple(sys.path))[len(_BUILTIN) :]:
        with contextlib.suppress(BackendNotFoundError):
            yield backend(name)


def for_target(path: str | os.PathLike[str], name: str | None = None) -> Backend:
    """The backend to write an archive with: by `name`, or by the suffix of the path."""
    if name is not None:
        return backend(name)
    text = path_of(path).rstrip("/")
    suffix = os.path.splitext(text)[1]
    matching = (found for found in _importable() if suffix and found.suffix == suffix)
    return next(matching, None) or backend(DEFAULT)


def of(store: ArrayStore) -> Backend:
    """The backend of an open archive."""
    class_ = type(store)
    for candidate in _importable():
        if candidate.store_class in (class_, f"{class_.__module__}:{class_.__qualname__}"):
            return candidate
    return detect(store.path)


def is_within(path: str, directory: str) -> bool:
    """Whether a path is equal to a directory or below it."""
    path, directory = os.path.realpath(path), os.path.realpath(directory)
    return path == directory or path.startswith(directory.rstrip(os.sep) + os.sep)


def create(
    path: str | os.PathLike[str], chosen: Backend, *, replace: bool = False, **options: Any
) -> ArrayWriter:
    """Begin an archive at a valid path.

    Raises
    ------
    ArchivePlaceError
        `path` is inside another archive.
    ArchiveExistsError
        `path` exists, and `replace` is false or it is not an archive.
    BackendOptionError
        The backend does not support an option.
    PathError
        The suffix of the path is that of another format.

    Examples
    --------
    >>> from storage_backends import registry
    >>> from storage_backends.testing import small_archive
    >>> contents = small_archive()
    >>> with registry.create("made.scdl", registry.backend("memmap")) as writer:
    ...     contents.write(writer)
    ...     writer.commit(contents.attrs)
    >>> len(scdl.open("made.scdl"))
    60
    """
    path = path_of(path)
    check_target(path, replace=replace)
    return _open_writer(path, chosen, replace, options)


def rewrite(store: ArrayStore, chosen: Backend | None = None, **options: Any) -> ArrayWriter:
    """Begin an archive that will replace an open one.

    Parameters
    ----------
    store
        The open archive, which must still be the one at its path.
    chosen
        Backend of the new archive; default that of the open one.
    **options
        Options of the backend.

    Raises
    ------
    ArchiveChangedError
        The archive was changed, moved or replaced since it was opened.
    ArchiveLockedError
        Another process or thread is changing the archive.
    """
    store.check_current()
    writer = _open_writer(store.path, chosen or of(store), True, options)
    try:
        # Check again: the writer now holds the lock, so the archive can no longer change.
        store.check_current()
    except BaseException:
        writer.abort()
        raise
    return writer


def _open_writer(
    path: str, chosen: Backend, replace: bool, options: Mapping[str, Any]
) -> ArrayWriter:
    if replace or not os.path.lexists(path):
        other_formats.check_target(path, chosen.suffix)
    for name in options:
        if name not in chosen.options:
            raise BackendOptionError(
                f"{path}: the storage backend {chosen.name} has no option {name!r}; it takes: "
                f"{', '.join(chosen.options) or 'none'}"
                + ("; use a path that ends in .zarr" if name == "compression" else "")
            )
    return chosen.writer.open(path, replace=replace, **options)


def check_target(path: str, *, replace: bool) -> None:
    """Check that a path is not inside another archive, and that only archives are replaced.

    Raises
    ------
    ArchivePlaceError, ArchiveExistsError
        As :func:`create`.
    """
    if is_url(path):
        return
    check_place(path)
    is_free = not os.path.lexists(path) or (os.path.isdir(path) and not os.listdir(path))
    if replace and not (is_free or is_archive(path)):
        raise ArchiveExistsError(
            f"{path}: this is not an archive, and replace=True replaces only archives; remove it, "
            "or choose another path"
        )


def check_place(path: str) -> None:
    """Raise ArchivePlaceError if a path is inside an archive."""
    parent = os.path.dirname(os.path.realpath(path))
    while parent != os.path.dirname(parent):
        if is_archive(parent):
            raise ArchivePlaceError(
                f"{path}: this path is inside the archive {parent}, and would be replaced or "
                "removed together with it; choose a path outside"
            )
        parent = os.path.dirname(parent)


def is_archive(path: str) -> bool:
    """Whether a path is an archive of an installed backend.

    Examples
    --------
    >>> from storage_backends import registry
    >>> registry.is_archive("cells.scdl"), registry.is_archive("cells.h5ad")
    (True, False)
    """
    return known(path) is not None


def open_archive(
    path: str | os.PathLike[str], *, hold: bool = True, cache: CacheOptions | None = None
) -> ArrayStore:
    """Open the archive at `path`, as ``ArrayStore.open`` does, and warn of its remarks.

    Parameters
    ----------
    cache
        Local cache for data from a URL; backends that read URLs take this keyword.

    Examples
    --------
    >>> from storage_backends import registry
    >>> with registry.open_archive("cells.scdl") as store:
    ...     ids = store.read("indices")
    >>> ids.dtype, len(ids)
    (dtype('uint8'), 11)
    """
    path = path_of(path, "the path of an archive")
    # Local archives need no cache.
    options = {"cache": cache} if cache is not None and is_url(path) else {}
    store = detect(path).store.open(path, hold=hold, **options)
    for remark in store.remarks:
        warnings.warn(remark, ScdlWarning, stacklevel=5)
    return store


def detect(path: str | os.PathLike[str]) -> Backend:
    """The backend of the archive at `path`.

    Raises
    ------
    ArchiveNotFoundError
        `path` does not exist.
    ArchiveFormatError
        `path` is not an archive of an installed backend.

    Examples
    --------
    >>> from storage_backends import registry
    >>> registry.detect("cells.scdl").name
    'memmap'
    """
    path = path_of(path, "the path of an archive")
    other_format = other_formats.described(path) if is_url(path) else None
    detected = None if other_format else known(path)
    if detected is not None:
        return detected
    if other_format or os.path.exists(path):
        raise ArchiveFormatError(
            other_format or other_formats.described(path) or _unknown_format(path)
        )
    raise ArchiveNotFoundError(_not_found(path))


def _has_archives(path: str) -> bool:
    """Whether a path is a directory of archives, as far as it can be read."""
    try:
        return any(is_archive(os.path.join(path, name)) for name in os.listdir(path))
    except OSError:
        return False


def _unknown_format(path: str) -> str:
    """Message for a path that is not an archive."""
    if other_formats.is_hdf5(path):
        found = "an HDF5 file; if it is an h5ad file, convert it first"
        command = f"`scdl convert {path} DEST`"
    elif _has_archives(path):
        return (
            f"{path}: expected an archive, found a directory of archives; open it with scdl.open, "
            f"or write one archive of them with `scdl flatten {path} DEST`"
        )
    else:
        found = "another directory" if os.path.isdir(path) else "another file"
        found += "; convert an h5ad file"
        command = "`scdl convert FILE.h5ad DEST`"
    return (
        f"{path}: expected an archive of an installed backend ({', '.join(names())}), found "
        f"{found}, with scdl.convert or {command}"
    )


def _not_found(path: str) -> str:
    """Message for a path that does not exist."""
    if "://" in path and is_url(path):
        schemes = ", ".join((*OBSTORE, *FSSPEC))
        return f"{path}: archives cannot be read from such a URL; supported schemes: {schemes}"
    if os.path.islink(path) or other_formats.is_file_name(path):
        return other_formats.missing(path)
    return (
        f"{path}: there is no archive here; create one with scdl.convert(h5ad, path) "
        f"or `scdl convert FILE.h5ad {path}`"
    )


def known(path: str) -> Backend | None:
    """The backend of the archive at `path`; None if it is not an archive."""
    for candidate in _importable():
        if candidate.detect(path):
            return candidate
    return None
