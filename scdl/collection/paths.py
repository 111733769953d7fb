"""Which paths are archives, collections, or URLs."""

from __future__ import annotations

import os
from collections.abc import Iterator

from storage_backends.paths import is_url as is_url
from storage_backends.paths import path_of
from storage_backends.registry import is_archive as is_archive

#: Name of the file in the directory of a collection.
MANIFEST = "collection.json"


def absolute(path: str | os.PathLike[str]) -> str:
    """A path that stays what it is when the working directory or a link changes."""
    text = path_of(path, "the path of an archive, or of a directory of archives")
    return text if is_url(text) else os.path.realpath(text)


def archives_below(directory: str) -> Iterator[str]:
    """Archives in a directory and those below it; hidden ones are left out."""
    for above, names, files in os.walk(directory):
        for name in sorted(files):
            # A store in one file, as people pass them on.
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
        # What is within an archive is a part of it.
        names[:] = deeper


def has_manifest(directory: str) -> bool:
    """Whether a directory is a collection with a manifest."""
    return not is_url(directory) and os.path.isfile(os.path.join(directory, MANIFEST))


def is_collection(path: str) -> bool:
    """Whether a path is a directory with a manifest, or one of archives."""
    return has_manifest(path) or (
        os.path.isdir(path) and not is_archive(path) and any(archives_below(path))
    )
