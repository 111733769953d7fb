"""Paths as users give them: text or ``os.PathLike``, ``~`` for the home directory, or a URL.

Everything that takes a path passes it through here first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

from storage_backends.errors import PathError, PathTypeError

__all__ = ["RAM", "Path", "absolute", "is_url", "path_of", "paths_of"]

#: What is taken as a path.
Path = str | os.PathLike[str]
#: What the paths of archives in memory begin with.
RAM = "ram:"
_SCHEME = "[A-Za-z][A-Za-z0-9+.-]*"
_URL = re.compile(rf"{_SCHEME}(::{_SCHEME})*://|{RAM}")
#: A URL as ``pathlib`` leaves it.
_FLATTENED = re.compile(r"(s3|gs|gcs|az|abfs|https?|ftp|sftp|memory):/[^/]")

_WRITE = "write it to a file first, with {}, and give the path of the file"
_HDF5 = "give the path of the file, not the open file"
_ZARR = "give the path of the store, not the open store"
_OPEN = "it is open already: give the path of its archive, such as data_path"
_TABLE = "make an anndata.AnnData of it and " + _WRITE.format("adata.write_h5ad(file)")
_FILE = "give its path, not the open file"
#: What to do with objects of other kinds, by their package, or package and class.
_ADVICE = {
    "anndata": _WRITE.format("adata.write_h5ad(file)"),
    "mudata": _WRITE.format("mdata['NAME of one modality'].write_h5ad(file)"),
    "spatialdata": _WRITE.format("sdata.tables['NAME of one table'].write_h5ad(file)"),
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
#: Lists of paths, of packages whose other objects are none.
_LISTS = {"numpy.ndarray", "pandas.Series", "pandas.Index"}


def is_url(path: str) -> bool:
    """Whether a path is no file here, but a URL or in memory; a name with a colon is a file."""
    return _URL.match(path) is not None


def path_of(path: object, wanted: str = "a path") -> str:
    """A path as text, with the home directory for ``~``; URLs stay as they are.

    Parameters
    ----------
    path
        Text or ``os.PathLike``; ``file://`` names what is here.
    wanted
        What is expected, for messages.

    Raises
    ------
    PathTypeError
        It is an object of another kind.
    PathError
        It is empty, or no path can be so.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(text, str):
        raise _other_kind(path, wanted)
    if not text.strip():
        raise PathError(f"expected {wanted}, found an empty text")
    if "\0" in text:
        raise PathError(f"expected {wanted}, found {text!r:.200}, which has a null character")
    if text is not path and _FLATTENED.match(text) and not os.path.lexists(text):
        raise PathError(f"{text}: a URL has two slashes; give it as text, not as a pathlib.Path")
    if text.startswith("file:///"):
        from urllib.parse import unquote

        text = unquote(text.removeprefix("file://"))
    return text if is_url(text) else os.path.expanduser(text)


def paths_of(paths: object, wanted: str = "a path or a list of paths") -> list[str]:
    """One path or several, as :func:`path_of` gives each.

    Raises
    ------
    PathTypeError, PathError
        As :func:`path_of`; also for a mapping or a set, which are no lists.
    """
    if isinstance(paths, str | bytes | os.PathLike):
        return [path_of(paths, wanted)]
    is_list = isinstance(paths, list | tuple) or bool(_kinds(paths) & _LISTS)
    if not isinstance(paths, Iterable) or not (is_list or _advice(paths) is None):
        raise _other_kind(paths, wanted)
    try:
        several = list(paths)
    except TypeError as error:
        raise _other_kind(paths, wanted) from error
    return [path_of(path, wanted) for path in several]


def absolute(path: object, wanted: str = "a path") -> str:
    """As :func:`path_of`, and so that it stays what it is when the working directory changes."""
    text = path_of(path, wanted)
    return text if is_url(text) else os.path.abspath(text)


def _other_kind(found: object, wanted: str) -> PathTypeError:
    plain = found is None or isinstance(found, bool | int | float | bytes)
    shown = f"{found!r:.100}" if plain else f"an object of type {_name(type(found))}"
    advice = _advice(found) or "a path is a str or an os.PathLike"
    return PathTypeError(f"expected {wanted}, found {shown}; {advice}")


def _advice(found: object) -> str | None:
    """What to do with an object instead, where that is known."""
    kinds = [kind for base in type(found).__mro__ for kind in (_name(base), _root(base))]
    known = next((_ADVICE[kind] for kind in kinds if kind in _ADVICE), None)
    if known is None and isinstance(found, Mapping | set | frozenset):
        return "give the paths as a list"
    if known is None and isinstance(found, list | tuple):
        return "give one path; of several archives, SingleCellCollection makes one dataset"
    return known


def _kinds(found: object) -> set[str]:
    return {_name(base) for base in type(found).__mro__}


def _root(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _name(kind: type) -> str:
    """Name of a class as users write it: of the package, not of a module in it."""
    root = _root(kind)
    return kind.__qualname__ if root == "builtins" else f"{root}.{kind.__qualname__}"
