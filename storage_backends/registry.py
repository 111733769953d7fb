"""Finding storage backends: by name, or by what stands at a path.

A third party announces a backend as an entry point of the group ``scdl.storage_backends`` whose
value is a :class:`storage_backends.base.Backend`.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from importlib import import_module
from importlib.metadata import entry_points

from storage_backends import _zarr_detection, other_formats
from storage_backends.base import ArrayStore, Backend
from storage_backends.errors import (
    ArchiveFormatError,
    ArchiveNotFoundError,
    BackendNotFoundError,
    ScdlWarning,
)
from storage_backends.paths import is_url, path_of

__all__ = ["ENTRY_POINTS", "backend", "detect", "for_target", "known", "names", "open_archive"]

ENTRY_POINTS = "scdl.storage_backends"

#: Modules of the backends that come with the package; each defines ``BACKEND``.
_BUILTIN = {
    "memmap": "storage_backends.memmap",
    "memory": "storage_backends.memory",
    "zarr": "storage_backends.zarr",
}
#: What tells, of a backend that takes long to import, whether one of its archives may be at a path.
_DETECTION = {"zarr": "storage_backends._zarr_detection"}
#: Of an archive whose path does not say.
DEFAULT = "memmap"
#: What is expected where an archive is opened, for messages.
_ARCHIVE = "the path of an archive"


def names() -> list[str]:
    """Names of the installed backends, ours first."""
    return [
        *_BUILTIN,
        *(p.name for p in entry_points(group=ENTRY_POINTS) if p.name not in _BUILTIN),
    ]


def backend(name: str) -> Backend:
    """The backend called `name`; BackendNotFoundError names those there are."""
    if name in _BUILTIN:
        found: Backend = import_module(_BUILTIN[name]).BACKEND
        return found
    for point in entry_points(group=ENTRY_POINTS, name=name):
        try:
            found = point.load()
        except (ImportError, AttributeError) as error:
            raise BackendNotFoundError(
                f"the storage backend {name!r} is installed, but {point.value} cannot be "
                f"imported: {error}"
            ) from error
        return found
    raise BackendNotFoundError(
        f"there is no storage backend {name!r}; installed are: {', '.join(names())}"
    )


def for_target(path: str | os.PathLike[str], name: str | None = None) -> Backend:
    """The backend to write an archive with: the one called `name`, or what the path ends in."""
    if name is not None:
        return backend(name)
    ending = os.path.splitext(path_of(path).rstrip("/"))[1]
    # A suffix is the backend's name: those of other names are not imported only to be asked.
    own = ending.removeprefix(".")
    if own in _BUILTIN and backend(own).suffix == ending:
        return backend(own)
    return backend(DEFAULT)


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
        schemes = ", ".join((*_zarr_detection.OBSTORE, *_zarr_detection.FSSPEC))
        return f"{path}: no archive is read from such a URL; schemes that are: {schemes}"
    if os.path.islink(path) or other_formats.is_file_name(path):
        return other_formats.missing(path)
    return (
        f"{path}: there is no archive here; make one with scdl.convert(h5ad, path) "
        f"or `scdl convert FILE.h5ad {path}`"
    )


def known(path: str) -> Backend | None:
    """The backend whose archive stands at `path`; None where there is none."""
    for name in _BUILTIN:
        if name in _DETECTION and not import_module(_DETECTION[name]).detect(path):
            continue
        candidate = backend(name)
        if candidate.store.detect(path):
            return candidate
    for name in names()[len(_BUILTIN) :]:
        with contextlib.suppress(BackendNotFoundError):
            candidate = backend(name)
            if candidate.store.detect(path):
                return candidate
    return None
