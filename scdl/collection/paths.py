"""Classification of paths: archives, collections and URLs."""

from __future__ import annotations

import os
from collections.abc import Iterator

from storage_backends.paths import is_url as is_url
from storage_backends.paths import path_of
from storage_backends.registry import is_archive as is_archive

#: Name of the manifest in the directory of a collection.
MANIFEST = "collection.json"
#: Start of the names of files of obs columns beside the manifest.
KEPT_PREFIX = "collection.obs-"


def resolved(path: str | os.PathLike[str]) -> str:
    """An absolute path without links, independent of the working directory; URLs are kept."""
    text = path_of(path, "the path of an archive, or of a directory of archives")
    return text if is_url(text) else os.path.realpath(text)


def archives_below(directory: str) -> Iterator[str]:
    """Yield the archives in a directory and its subdirectories, except hidden ones."""
    for above, names, files in os.walk(directory):
        for name in sorted(files):
            # Zarr stores in a single file.
            if name.endswith(".zarr.zip") and not name.startswith("."):
                yield os.path.join(above, name)
        deeper = []
        for name in sorted(names):
            path = os.path.join(above, name)
            if name.startswith("."):
                continue
            if is_archive(path):
                yield path
            else:
                deeper.append(name)
        # Do not search within archives.
        names[:] = deeper


def has_manifest(directory: str) -> bool:
    """Whether a directory is a collection with a manifest."""
    return not is_url(directory) and os.path.isfile(os.path.join(directory, MANIFEST))


def is_collection(path: str) -> bool:
    """Whether a path is a directory with a manifest, or a directory of archives."""
    return has_manifest(path) or (
        os.path.isdir(path) and not is_archive(path) and any(archives_below(path))
    )
