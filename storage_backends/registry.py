"""Finding storage backends: by name, or by what stands at a path.

A third party announces a backend as an entry point of the group ``scdl.storage_backends`` whose
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

__all__ = [
    "ENTRY_POINTS",
    "backend",
    "check_place",
    "check_target",
    "create",
    "detect",
    "for_target",
    "is_archive",
    "is_within",
    "known",
    "names",
    "of",
    "open_archive",
    "rewrite",
]

ENTRY_POINTS = "scdl.storage_backends"

#: Modules of the backends that come with the package; each defines ``BACKEND``.
_BUILTIN = {
    "memmap": "storage_backends.memmap",
    "memory": "storage_backends.memory",
    "zarr": "storage_backends.zarr",
}
#: Of an archive whose path does not say.
DEFAULT = "memmap"
#: What is expected where an archive is opened, for messages.
_ARCHIVE = "the path of an archive"


def _announced() -> dict[str, EntryPoint]:
    """Entry points of third parties by name."""
    points = entry_points(group=ENTRY_POINTS)
    return {point.name: point for point in points if point.name not in _BUILTIN}


@cache
def _found_once(search_path: tuple[str, ...]) -> list[str]:
    """Names of the installed backends; looking for them takes milliseconds."""
    return names()


def names() -> list[str]:
    """Names of the installed backends, ours first."""
    return [*_BUILTIN, *_announced()]


def backend(name: str) -> Backend:
    """The backend called `name`; BackendNotFoundError names those there are."""
    if name in _BUILTIN:
        found: Backend = import_module(_BUILTIN[name]).BACKEND
        return found
    point = _announced().get(name)
    if point is None:
        raise BackendNotFoundError(
            f"there is no storage backend {name!r}; installed are: {', '.join(names())}"
        )
    try:
        found = point.load()
    except (ImportError, AttributeError) as error:
        raise BackendNotFoundError(
            f"the storage backend {name!r} is installed, but {point.value} cannot be imported: "
            f"{error}"
        ) from error
    return found


def _usable() -> Iterator[Backend]:
    """All backends that can be imported, ours first."""
    for name in _found_once(tuple(sys.path)):
        with contextlib.suppress(BackendNotFoundError):
            yield backend(name)


def for_target(path: str | os.PathLike[str], name: str | None = None) -> Backend:
    """The backend to write an archive with: the one called `name`, or what the path ends in."""
    if name is not None:
        return backend(name)
    text = path_of(path).rstrip("/")
    ending = os.path.splitext(text)[1]
    chosen = (found for found in _usable() if ending and found.suffix == ending)
    return next(chosen, None) or backend(DEFAULT)


def of(store: ArrayStore) -> Backend:
    """The backend that an open archive is of."""
    kind = type(store)
    for found in _usable():
        if found.store_class in (kind, f"{kind.__module__}:{kind.__qualname__}"):
            return found
    return detect(store.path)


def is_within(path: str, directory: str) -> bool:
    """Whether a path is a directory, or below it."""
    path, directory = os.path.realpath(path), os.path.realpath(directory)
    return path == directory or path.startswith(directory.rstrip(os.sep) + os.sep)


def create(
    path: str | os.PathLike[str], chosen: Backend, *, replace: bool = False, **options: Any
) -> ArrayWriter:
    """Begin an archive where one may stand.

    Raises
    ------
    ArchivePlaceError
        `path` is inside another archive, of which it would become a part.
    ArchiveExistsError
        Something stands at `path`, and `replace` was not asked for or it is no archive.
    BackendOptionError
        This backend does not take an option.
    PathError
        The name of the path says another format.
    """
    path = path_of(path)
    check_target(path, replace=replace)
    return _begun(path, chosen, replace, options)


def rewrite(store: ArrayStore, chosen: Backend | None = None, **options: Any) -> ArrayWriter:
    """Begin what takes the place of an open archive, as long as that stands there still.

    Parameters
    ----------
    store
        The archive: what was opened, whatever its path leads to now.
    chosen
        Backend of the new one; default that of the archive.
    **options
        Of the backend.

    Raises
    ------
    ArchiveChangedError
        It was changed, moved or replaced since.
    ArchiveLockedError
        Another process or thread is changing it.
    """
    store.check_current()
    writer = _begun(store.path, chosen or of(store), True, options)
    try:
        # The lock is held: nobody changes the archive from here on.
        store.check_current()
    except BaseException:
        writer.abort()
        raise
    return writer


def _begun(path: str, chosen: Backend, replace: bool, options: Mapping[str, Any]) -> ArrayWriter:
    if replace or not os.path.lexists(path):
        other_formats.check_target(path, chosen.suffix)
    for name in options:
        if name not in chosen.options:
            raise BackendOptionError(
                f"{path}: the storage backend {chosen.name} has no option {name!r}; it takes: "
                f"{', '.join(chosen.options) or 'none'}"
                + ("; end the path in .zarr for that" if name == "compression" else "")
            )
    return chosen.writer.open(path, replace=replace, **options)


def check_target(path: str, *, replace: bool) -> None:
    """Refuse to write where an archive would be in another one, or replace what is none.

    Raises
    ------
    ArchivePlaceError, ArchiveExistsError
        As :func:`create`.
    """
    if is_url(path):
        return
    check_place(path)
    if replace and _holds_others(path):
        raise ArchiveExistsError(
            f"{path}: what stands here is no archive, and nothing else is replaced; remove it, or "
            "choose another path"
        )


def check_place(path: str) -> None:
    """ArchivePlaceError where a path is inside an archive."""
    above = os.path.dirname(os.path.realpath(path))
    while above != os.path.dirname(above):
        if is_archive(above):
            raise ArchivePlaceError(
                f"{path}: this is inside the archive {above}, with which it would be replaced and "
                "removed; choose a path outside"
            )
        above = os.path.dirname(above)


def _holds_others(path: str) -> bool:
    """Whether something stands at a path that is no archive and not empty."""
    if not os.path.lexists(path) or is_archive(path):
        return False
    return not os.path.isdir(path) or bool(os.listdir(path))


def is_archive(path: str) -> bool:
    """Whether an installed backend knows what stands at a path."""
    return known(path) is not None


def open_archive(path: str | os.PathLike[str], *, hold: bool = True) -> ArrayStore:
    """Open the archive at `path`, as ``ArrayStore.open`` does, and warn of its remarks."""
    path = path_of(path, _ARCHIVE)
    store = detect(path).store.open(path, hold=hold)
    for remark in store.remarks:
        warnings.warn(remark, ScdlWarning, stacklevel=5)
    return store


def detect(path: str | os.PathLike[str]) -> Backend:
    """The backend whose archive stands at `path`.

    Raises
    ------
    ArchiveNotFoundError
        Nothing stands there.
    ArchiveFormatError
        No installed backend knows what stands there.
    """
    path = path_of(path, _ARCHIVE)
    said = other_formats.described(path) if is_url(path) else None
    found = None if said else known(path)
    if found is not None:
        return found
    if said or os.path.exists(path):
        raise ArchiveFormatError(said or other_formats.described(path) or _no_archive(path))
    raise ArchiveNotFoundError(_nothing(path))


def _no_archive(path: str) -> str:
    """Says that what stands at a path is no archive, and what to do."""
    if other_formats.is_hdf5(path):
        what = "an HDF5 file; if it is an h5ad file, convert it first"
        how = f"`scdl convert {path} DEST`"
    else:
        what = "a directory that is none" if os.path.isdir(path) else "something else"
        what += "; make one of an h5ad file"
        how = "`scdl convert FILE.h5ad DEST`"
    return (
        f"{path}: expected an archive of an installed backend ({', '.join(names())}), found "
        f"{what}, with scdl.convert or {how}"
    )


def _nothing(path: str) -> str:
    """Says that no archive stands at a path, and what to do."""
    if "://" in path and is_url(path):
        schemes = ", ".join((*OBSTORE, *FSSPEC))
        return f"{path}: no archive is read from such a URL; schemes that are: {schemes}"
    if os.path.islink(path) or other_formats.is_file_name(path):
        return other_formats.missing(path)
    return (
        f"{path}: there is no archive here; make one with scdl.convert(h5ad, path) "
        f"or `scdl convert FILE.h5ad {path}`"
    )


def known(path: str) -> Backend | None:
    """The backend whose archive stands at `path`; None where there is none."""
    return next((found for found in _usable() if found.detect(path)), None)
