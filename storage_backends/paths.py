"""Normalisation of user-given paths: text, ``os.PathLike``, ``~`` or URLs.

All functions that take a path call this module first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

from storage_backends.errors import PathError, PathTypeError

__all__ = ["RAM", "Path", "absolute", "is_url", "path_of", "paths_of"]

#: Types accepted as a path.
Path = str | os.PathLike[str]
#: Prefix of the paths of archives in memory.
RAM = "ram:"
_SCHEME = "[A-Za-z][A-Za-z0-9+.-]*"
_URL = re.compile(rf"{_SCHEME}(::{_SCHEME})*://|{RAM}")
#: A URL whose double slash ``pathlib`` has collapsed.
_FLATTENED = re.compile(r"(s3|gs|gcs|az|abfs|https?|ftp|sftp|memory):/[^/]")

_HDF5 = "give the path of the file, not the open file"
_ZARR = "give the path of the store, not the open store"
_OPEN = "it is already open; give the path of its archive, such as data_path"
_TABLE = "make it an anndata.AnnData, and convert that with scdl.convert(adata, path)"
_FILE = "give its path, not the open file"
#: Advice for objects of other types, by package, or by package and class.
_ADVICE = {
    "anndata": "convert it first, with scdl.convert(adata, path), and give the path",
    "mudata": "convert it first, with scdl.convert(mdata, path, modality=NAME), and give the path",
    "spatialdata": "convert one of its tables, with scdl.convert(sdata.tables[NAME], path)",
    "h5py": _HDF5,
    "tables": _HDF5,
    "zarr": _ZARR,
    "numpy": _TABLE,
    "pandas": _TABLE,
    "pyarrow": _TABLE,
    "polars": _TABLE,
    "scipy": _TABLE,
    "torch": _TABLE,
    "dask": _TABLE,
    "scdl": _OPEN,
    "storage_backends": _OPEN,
    "_io": _FILE,
    "tempfile": _FILE,
    "bytes": "decode it with os.fsdecode",
}
#: Types that may hold a list of paths, of packages in `_ADVICE`.
_LISTS = {"numpy.ndarray", "pandas.Series", "pandas.Index"}


def is_url(path: str) -> bool:
    """Whether a path is a URL or in memory; a file name with a colon is not."""
    return _URL.match(path) is not None


def path_of(path: object, wanted: str = "a path") -> str:
    """A path as text, with ``~`` replaced by the home directory; URLs are not changed.

    Parameters
    ----------
    path
        Text or ``os.PathLike``; ``file://`` URLs become local paths.
    wanted
        Description of the expected path, for messages.

    Raises
    ------
    PathTypeError
        `path` is neither text nor ``os.PathLike``.
    PathError
        `path` is empty or invalid.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(text, str):
        raise _type_error(path, wanted)
    if not text.strip():
        raise PathError(f"expected {wanted}, found an empty string")
    if "\0" in text:
        raise PathError(f"expected {wanted}, found {text!r:.200}, which has a null character")
    if text is not path and _FLATTENED.match(text) and not os.path.lexists(text):
        raise PathError(f"{text}: a URL has two slashes; give it as text, not as a pathlib.Path")
    if text.startswith("file:///"):
        from urllib.parse import unquote

        text = unquote(text.removeprefix("file://"))
    return text if is_url(text) else os.path.expanduser(text)


def paths_of(paths: object, wanted: str = "a path or a list of paths") -> list[str]:
    """One path or several, each normalised by :func:`path_of`.

    Raises
    ------
    PathTypeError, PathError
        As :func:`path_of`; also for a mapping or a set.
    """
    if isinstance(paths, str | bytes | os.PathLike):
        return [path_of(paths, wanted)]
    is_list = isinstance(paths, list | tuple) or any(
        _class_name(base) in _LISTS for base in type(paths).__mro__
    )
    if not isinstance(paths, Iterable) or not (is_list or _advice(paths) is None):
        raise _type_error(paths, wanted)
    try:
        several = list(paths)
    except TypeError as error:
        raise _type_error(paths, wanted) from error
    return [path_of(path, wanted) for path in several]


def absolute(path: object, wanted: str = "a path") -> str:
    """As :func:`path_of`, but independent of the working directory."""
    text = path_of(path, wanted)
    return text if is_url(text) else os.path.abspath(text)


def _type_error(value: object, wanted: str) -> PathTypeError:
    plain = value is None or isinstance(value, bool | int | float | bytes)
    shown = f"{value!r:.100}" if plain else f"an object of type {_class_name(type(value))}"
    advice = _advice(value) or "a path is a str or an os.PathLike"
    return PathTypeError(f"expected {wanted}, found {shown}; {advice}")


def _advice(value: object) -> str | None:
    """Advice for an object that is not a path, if there is any."""
    keys = [key for base in type(value).__mro__ for key in (_class_name(base), _package(base))]
    known = next((_ADVICE[key] for key in keys if key in _ADVICE), None)
    if known is None and isinstance(value, Mapping | set | frozenset):
        return "give the paths as a list"
    if known is None and isinstance(value, list | tuple):
        return "give one path; SingleCellCollection combines several archives"
    return known


def _package(class_: type) -> str:
    return class_.__module__.partition(".")[0]


def _class_name(class_: type) -> str:
    """Name of a class in its top-level package, as users write it."""
    package = _package(class_)
    return class_.__qualname__ if package == "builtins" else f"{package}.{class_.__qualname__}"
