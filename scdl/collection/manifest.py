"""The manifest of a collection, which stores the descriptions of its members."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

from scdl.collection.member import MAX_COUNT, Member, count_in
from scdl.collection.paths import KEPT_PREFIX, MANIFEST, archives_below, has_manifest, resolved
from scdl.errors import ArchiveChangedError, ArchiveFormatError
from storage_backends.directory import locks, publication
from storage_backends.errors import newer_format, refused_write

_FORMAT = 1


def read_manifest(directory: str) -> list[Member]:
    """Read the members listed in the manifest of a directory.

    Raises
    ------
    ArchiveFormatError
        The manifest is invalid, or of a newer version.
    """
    file = os.path.join(directory, MANIFEST)
    with open(file, "rb") as stream:
        return parse_manifest(stream.read(), directory)


def parse_manifest(data: bytes, directory: str) -> list[Member]:
    """Parse the content of the file of :func:`read_manifest`."""
    file = os.path.join(directory, MANIFEST)
    try:
        manifest = json.loads(data)
        version = count_in(manifest["format"])
        if version > _FORMAT:
            raise newer_format(file, version, _FORMAT)
        directory = os.path.realpath(directory)
        members = [Member.from_json(entry, directory) for entry in manifest["members"]]
        if sum(member.n_obs for member in members) > MAX_COUNT:
            raise ValueError("too many cells")
        return members
    except ArchiveFormatError:
        raise
    except (
        ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError
    ) as error:  # fmt: skip
        raise ArchiveFormatError(
            f"{file}: this is not a valid manifest ({error!r:.300}); open a list of the paths of "
            "the archives, and write it again with save_manifest"
        ) from error


def manifest_identity(directory: str) -> tuple[int, int] | None:
    """Identifies the manifest of a directory until it is replaced; None if there is none."""
    try:
        status = os.stat(os.path.join(directory, MANIFEST))
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


@contextmanager
def locked(directory: str) -> Iterator[None]:
    """Context manager that locks a directory to change its manifest.

    Raises
    ------
    ArchiveLockedError
        Another process or thread holds the lock.
    """
    with locks.write_locked(directory):
        # With the lock held, unfinished manifests are leftovers of killed processes.
        for pattern in (f".{MANIFEST}.*", f".{KEPT_PREFIX}*"):
            for leftover in glob.glob(os.path.join(glob.escape(directory), pattern)):
                publication.remove(leftover)
        publication.finish_removals(directory)
        yield


def check_unchanged(
    directory: str, identity: tuple[int, int] | None, members: Collection[str] | None
) -> None:
    """Compare a locked directory with what was read from it.

    Parameters
    ----------
    directory
        The directory of the manifest.
    identity
        Identity of the manifest that was read.
    members
        Paths that a new manifest will list; None if one is written only in place of another.

    Raises
    ------
    ArchiveChangedError
        The manifest was changed since it was read, or an archive was added that the new manifest
        would leave out.
    """
    file = os.path.join(directory, MANIFEST)
    if manifest_identity(directory) != identity:
        raise ArchiveChangedError(
            f"{file}: another process or thread changed the manifest since the collection was "
            "opened, and its changes would be lost; open it again"
        )
    if members is not None and not has_manifest(directory):
        for path in archives_below(directory):
            if resolved(path) not in members:
                raise ArchiveChangedError(
                    f"{path}: this archive was added since the collection was opened, and the "
                    "manifest would omit it; add it, or open the collection again"
                )


def write_manifest(directory: str, members: Iterable[Member]) -> None:
    """Write the manifest of a directory; replaces an existing one atomically."""
    file = os.path.join(directory, MANIFEST)
    # One line a member; json has no faster way to write lines.
    lines = (json.dumps(member.to_json(directory)) for member in members)
    text = f'{{"format": {_FORMAT}, "members": [\n' + ",\n".join(lines) + "\n]}"
    with (
        refused_write(file),
        publication.new_file(file) as part,
        open(part, "w", encoding="utf-8") as stream,
    ):
        stream.write(text + "\n")
