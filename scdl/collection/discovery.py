"""Finding and describing the members of a collection."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from scdl.archive.schema import var_table
from scdl.collection.manifest import read_manifest
from scdl.collection.member import Member
from scdl.collection.paths import MANIFEST, archives_below, has_manifest, is_archive, resolved
from scdl.errors import ArchiveFormatError, ArchiveNotFoundError, CollectionError, ScdlError
from storage_backends import registry
from storage_backends.compute.steps import Steps
from storage_backends.compute.threads import for_each_file
from storage_backends.paths import Path
from storage_backends.registry import is_within

#: Different tables of genes to read when members are described. Most collections have fewer; those
#: of others are read when genes are needed, as that takes longer than opening a member.
_MOST_TABLES = 16


def find_members(directory: str) -> Sequence[Member]:
    """Descriptions of the archives in a directory; empty if it is empty or does not exist.

    Raises
    ------
    CollectionError
        The directory is an archive, or an archive cannot be read.
    ArchiveNotFoundError
        The directory has other contents, but no archive.
    ArchiveFormatError
        The manifest or an archive is damaged.
    """
    if has_manifest(directory):
        return read_manifest(directory)
    if is_archive(directory):
        raise CollectionError(
            f"{directory}: this is an archive, not a directory of archives; open it with "
            "scdl.open, or pass a list of paths"
        )
    is_empty = os.path.isdir(directory) and not os.listdir(directory)
    if is_empty or not os.path.lexists(directory):
        return []
    archives = sorted(archives_below(directory))
    if not archives:
        raise ArchiveNotFoundError(
            f"{directory}: there is no archive in this directory or its subdirectories, and no "
            f"{MANIFEST}; create archives with scdl.convert or load_h5ad_multi"
        )
    return describe_all([], archives, directory)


def describe_all(
    records: Sequence[Member], paths: Sequence[Path], directory: str | None = None
) -> list[Member]:
    """The records, and descriptions of further archives, each of which is opened once, in threads.

    Parameters
    ----------
    directory
        Directory of the collection, which cannot be its own member; None: there is none.
    """
    wanted = [resolved(path) for path in paths]
    known = {record.path for record in records}
    for path in wanted:
        if path in known:
            raise CollectionError(f"{path}: this archive is listed twice; list it once")
        known.add(path)
    described: dict[str, Member] = {}
    reads = iter(range(_MOST_TABLES))

    def may_read() -> bool:
        return next(reads, None) is not None

    def describe(path: str) -> Steps[None]:
        described[path] = yield from _describe(path, directory, may_read)

    for_each_file(describe, wanted)
    return [*records, *(described[path] for path in wanted)]


def _describe(path: str, directory: str | None, may_read: Callable[[], bool]) -> Steps[Member]:
    """The description of an archive, with its genes if tables are known by a fingerprint."""
    try:
        with registry.open_archive(path, hold=False) as store:
            yield
            member = Member.of(path, store)
            yield
            # A table that cannot be read raises an error when it is needed.
            with suppress(ScdlError):
                if store.table_fingerprint(var_table(0)) is not None:
                    return member.with_genes(store, may_read)
            return member
    except ArchiveFormatError:
        if not is_archive(path):
            _refuse_collection(path, directory)
        raise
    except ScdlError:
        raise
    except OSError as error:
        raise CollectionError(f"{path}: the archive cannot be read: {error}") from error


def _refuse_collection(path: str, directory: str | None) -> None:
    """Raise CollectionError if a path is a collection."""
    if directory is not None and is_within(directory, path):
        raise CollectionError(
            f"{path}: a collection cannot be inside itself; list its archives instead"
        )
    if has_manifest(path) or any(archives_below(path)):
        raise CollectionError(
            f"{path}: this is a collection, not an archive; list its members, or flatten it"
        )
