"""Registration of a storage backend."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage_backends.base import ArrayStore, ArrayWriter


#: Imports the class at a location; found once, as collections open thousands of archives.
_class = cache(resolve_name)


@dataclass(frozen=True)
class CacheOptions:
    """A local cache of data from remote archives.

    Parameters
    ----------
    directory
        Path of the cache.
    megabytes
        Maximum size of the cache in megabytes.

    Examples
    --------
    >>> from storage_backends.backend import CacheOptions
    >>> CacheOptions("/scratch/cells", 200_000).megabytes
    200000
    """

    directory: str
    megabytes: float


@dataclass(frozen=True)
class Backend:
    """A storage backend, built in or registered by an entry point.

    Parameters
    ----------
    name
        Name of the backend, as in ``backend=``.
    store_class, writer_class
        Classes of the backend, or their location (``module:name``), imported on first use.
    options
        Keywords of ``writer.open`` besides `replace`; conversions pass them on.
    suffix
        Suffix of paths that selects this backend if none is named.
    markers
        Names of files; the directory of every archive contains at least one.
    elsewhere
        Returns whether a path that is not a directory, such as a URL, is an archive. It must be
        cheap and never raise.

    Examples
    --------
    >>> from storage_backends import registry
    >>> backend = registry.backend("zarr")
    >>> backend.suffix, backend.options
    ('.zarr', ('compression',))
    """

    name: str
    store_class: type[ArrayStore] | str
    writer_class: type[ArrayWriter] | str
    options: tuple[str, ...] = ()
    suffix: str | None = None
    markers: tuple[str, ...] = ()
    elsewhere: Callable[[str], bool] | None = None

    @property
    def store(self) -> type[ArrayStore]:
        """Class that opens archives."""
        found: Any = self.store_class
        store_class: type[ArrayStore] = _class(found) if isinstance(found, str) else found
        return store_class

    @property
    def writer(self) -> type[ArrayWriter]:
        """Class that writes archives."""
        found: Any = self.writer_class
        writer_class: type[ArrayWriter] = _class(found) if isinstance(found, str) else found
        return writer_class

    def detect(self, path: str) -> bool:
        """Whether the path looks like an archive of this backend."""
        for name in self.markers:
            if os.path.isfile(os.path.join(path, name)):
                return True
        return self.elsewhere is not None and self.elsewhere(path)
