"""Conditions for the removal of archives after they were copied."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from scdl.errors import ArchiveChangedError, CollectionError
from storage_backends import registry
from storage_backends.base import ArrayStore


def check_removable(stores: Sequence[ArrayStore], kept: Sequence[str]) -> list[Any]:
    """Check, before copying, that archives can be removed afterwards.

    Parameters
    ----------
    stores
        The archives to remove.
    kept
        Paths that are kept or will be created.

    Returns
    -------
    list
        The identity of each archive.

    Raises
    ------
    CollectionError
        A path to keep is, or is inside, an archive to remove.
    ArchiveChangedError, ArchiveWriteError
        As raised by :meth:`ArrayStore.check_removable`.
    """
    identities = []
    for store in stores:
        for path in kept:
            if registry.is_within(path, store.path) or _is_same(path, store.path):
                raise CollectionError(
                    f"{path}: this path would be removed with {store.path} after the copy; leave "
                    "out destroy_on_copy, or choose another path"
                )
        store.check_removable()
        identities.append(store.identity)
    return identities


def check_unchanged(store: ArrayStore, identity: Any) -> None:
    """Raise ArchiveChangedError if the identity of an archive has changed."""
    if store.identity != identity:
        raise ArchiveChangedError(
            f"{store.path}: the archive changed while it was copied, so it was not removed; copy "
            "it again"
        )


@contextmanager
def open_for_check(path: str, *, is_new: bool) -> Iterator[Sequence[ArrayStore]]:
    """Open an archive for comparison with its sources; remove a new one if that fails."""
    with registry.open_archive(path) as archive:
        try:
            yield [archive]
        except BaseException:
            if is_new:
                archive.remove()
            raise


def _is_same(one: str, other: str) -> bool:
    """Whether two paths refer to the same file or directory, for example through links."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
