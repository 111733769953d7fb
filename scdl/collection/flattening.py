"""Where a collection can be written, as one archive or as a collection of shuffled ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from scdl.collection.members import Members
from scdl.collection.opened import OpenedCollection
from scdl.collection.paths import has_manifest
from scdl.conversion.many.drafts import drafts_beside
from scdl.conversion.row_order import Shuffle
from scdl.errors import ArchiveExistsError, CollectionError, OptionError
from storage_backends import registry
from storage_backends.base import ArrayStore, ArrayWriter, Backend
from storage_backends.directory import publication
from storage_backends.errors import refused_write
from storage_backends.paths import is_url
from storage_backends.registry import is_within


def check_target(members: Members, directory: str | None, path: str) -> None:
    """Raise CollectionError if members cannot be written as one archive to a path.

    Parameters
    ----------
    directory
        Directory of the collection; None if it is a list of paths.
    """
    if not members:
        raise CollectionError(
            f"{directory or 'the collection'}: there are no members to flatten; add archives first"
        )
    for record in members.records:
        if is_url(record.path):
            continue
        if is_within(path, record.path) or is_within(record.path, path):
            raise CollectionError(
                f"{path}: this path is inside the member {record.path}, or contains it, and "
                "both would be replaced or removed together; choose a path outside"
            )
    if directory is not None and is_within(path, directory) and not has_manifest(directory):
        raise CollectionError(
            f"{path}: at this path the archive would become a member of the collection itself; "
            f"choose a path outside {directory}, or call save_manifest() first"
        )


def check_shards(path: str, shuffle: Shuffle | None, shard_cells: int, *, replace: bool) -> None:
    """Raise OptionError or ArchiveExistsError if shards cannot be written to a path."""
    if shuffle is None:
        raise OptionError("shard_cells= divides shuffled cells; pass shuffle=, the seed, too")
    if not isinstance(shard_cells, int) or shard_cells < 1:
        raise OptionError(f"shard_cells must be at least 1, not {shard_cells!r:.200}")
    if replace:
        raise OptionError(
            "replace=True replaces one archive, but shard_cells= writes a directory of archives; "
            "choose a path where nothing exists"
        )
    if os.path.lexists(path):
        raise ArchiveExistsError(f"{path}: something exists here already; choose another path")


@contextmanager
def new_collection(path: str) -> Iterator[str]:
    """A hidden directory that appears at `path` on success, and is removed otherwise."""
    parent, name = os.path.split(path)
    with refused_write(path):
        publication.require_parent(path)
    with drafts_beside(parent) as drafts:
        directory = os.path.join(drafts, name)
        with refused_write(path):
            os.mkdir(directory)
        yield directory
        with refused_write(path):
            publication.flush_tree(directory)
            publication.move(directory, path)


def shard_writers(
    directory: str, backend: Backend, options: Mapping[str, Any]
) -> Callable[[int], ArrayWriter]:
    """Function that begins the archive of a number in a directory."""

    def begin(number: int) -> ArrayWriter:
        name = f"{number:06}{backend.suffix or ''}"
        return registry.create(os.path.join(directory, name), backend, **options)

    return begin


@contextmanager
def shards_for_check(path: str) -> Iterator[Sequence[ArrayStore]]:
    """The archives of a new collection, for comparison; it is removed if that fails."""
    try:
        yield OpenedCollection(path)._members.stores()
    except BaseException:
        publication.remove_atomically(path)
        raise
