"""Where a collection can be written as one archive."""

from __future__ import annotations

from scdl.collection.manifest import is_url
from scdl.collection.members import Members
from scdl.collection.paths import has_manifest
from scdl.errors import CollectionError
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
