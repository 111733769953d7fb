"""Whether the files of an archive in a directory are those that were written, and mending them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from storage_backends.base import ArrayStore
from storage_backends.capabilities import Examination, Finding, Verdict
from storage_backends.directory import files as archive_files
from storage_backends.directory.checksums import Running, Sums, Table, sums_of
from storage_backends.directory.comparison import PIECE, Comparison, Place, unreadable
from storage_backends.directory.staging import Staging, remove_leftovers
from storage_backends.errors import (
    ArchiveChangedError,
    ArchiveFormatError,
    OutputError,
    refused_write,
)

#: Opens the archive at a path, and calls a function with the key of each file before it is read.
Opening = Callable[[str, Callable[[str], None]], ArrayStore]


def examine(
    root: str,
    checksums: str,
    reads: Callable[[str], bool],
    order: Callable[[str], Any] | None = None,
    open_: Opening | None = None,
) -> Examination:
    """Compare the files of a directory with the checksums in one of them.

    Parameters
    ----------
    root
        The archive.
    checksums
        Path of the file within it.
    reads
        Whether an archive may have a file of some key; others are remarked on.
    order
        What keys of files are sorted by before these are compared; default: as they were written.
    open_
        Opens the archive where it can be read meanwhile.
    """
    place = Place(root, checksums)
    try:
        table = read_table(place.table)
    except ArchiveFormatError as error:
        return Examination([Finding(str(error))])
    except OSError as error:
        return Examination([unreadable(place.table, error)])
    if table is None:
        missing = (
            f"{root}: there are no checksums, so that nobody can tell whether its bytes are "
            "those that were written; `scdl verify --add-checksums` takes them as they are now"
        )
        return Examination([Finding(missing, Verdict.UNKNOWN)])
    sizes = dict(_files(root))
    sizes.pop(checksums.replace(os.sep, "/"), None)
    findings = [*_lost(place, table, sizes), *_unlisted(root, table, sizes, reads)]
    whole = [key for key, sums in table.files.items() if sizes.get(key) == sums.size]
    if order is not None:
        whole.sort(key=order)
    files = {key: table.files[key] for key in whole}
    comparison = Comparison(place, files, table.block)
    nbytes = sum(sums.size for sums in files.values())
    opened = None if open_ is None else partial(open_, root, comparison.require)
    return Examination(findings, comparison, nbytes, True, opened)


def read_table(path: str) -> Table | None:
    """Checksums of an archive; None where there is no file of them."""
    try:
        with open(archive_files.open_file(path), "rb") as stream:
            return Table.from_bytes(stream.read(), path)
    except FileNotFoundError:
        return None


def fingerprint(root: str, checksums: str) -> str | None:
    """Hash of the checksums of all files; None where there are none."""
    try:
        content = archive_files.read(root, checksums)
    except ArchiveFormatError:
        return None
    return hashlib.sha256(content).hexdigest()[:32]


def _files(root: str) -> Iterator[tuple[str, int]]:
    """Path and size of every file of an archive."""
    for directory, _, names in os.walk(root):
        for name in names:
            key = os.path.relpath(os.path.join(directory, name), root).replace(os.sep, "/")
            # A link that leads nowhere, or out of the archive, is no file of it.
            with contextlib.suppress(FileNotFoundError, ArchiveFormatError):
                found = os.stat(archive_files.path_of(root, key))
                # Nobody may write to a pipe.
                if stat.S_ISREG(found.st_mode):
                    yield key, found.st_size


def _lost(place: Place, table: Table, sizes: dict[str, int]) -> Iterator[Finding]:
    for key, sums in table.files.items():
        if sizes.get(key) != sums.size:
            found = f"{sizes[key]:,}" if key in sizes else "no file"
            if key not in sizes and (link := _link_out(place, key)) is not None:
                yield Finding(link, Verdict.UNKNOWN)
                continue
            yield Finding(
                f"{place.path(key)}: expected {sums.size:,} bytes, found {found}; {place.advice}"
            )


def _link_out(place: Place, key: str) -> str | None:
    """Says that a file is a link that is not followed; None where it is none."""
    try:
        archive_files.path_of(place.root, key)
    except ArchiveFormatError as error:
        return str(error)
    return None


def _unlisted(
    root: str, table: Table, sizes: dict[str, int], reads: Callable[[str], bool]
) -> Iterator[Finding]:
    unlisted = sorted(set(sizes) - set(table.files))
    unknown = [key for key in unlisted if reads(key)]
    foreign = [key for key in unlisted if not reads(key)]
    if unknown:
        yield Finding(
            f"{root}: there are no checksums of {_named(unknown)}, written since the archive was; "
            "remove what does not belong to it",
            Verdict.UNKNOWN,
        )
    if foreign:
        yield Finding(
            f"{root}: {_named(foreign)} does not belong to the archive, and is not read",
            Verdict.SOUND,
        )


def _named(keys: Sequence[str]) -> str:
    return ", ".join(keys[:5]) + (" and others" if len(keys) > 5 else "")


# -- changing files of an archive ----------------------------------------------------------


def add(root: str, checksums: str) -> int:
    """Give checksums to an archive that has none; returns the bytes they cover."""
    remove_leftovers(root)
    if os.path.lexists(os.path.join(root, checksums)):
        raise OutputError(
            f"{root}: it has checksums already; remove {os.path.join(root, checksums)} first, if "
            "what is there now is right"
        )
    with refused_write(root), rewriting(root) as beside:
        # Of the files that will be the archive, which nobody else changes.
        table = Table({key: _sums_of(os.path.join(beside, key)) for key, _ in _files(beside)})
        _write(os.path.join(beside, checksums), table.to_bytes())
    return sum(sums.size for sums in table.files.values())


def _sums_of(path: str) -> Sums:
    running, buffer = Running(), memoryview(bytearray(PIECE))
    with open(path, "rb", buffering=0) as stream:
        while n := stream.readinto(buffer):
            running.update(buffer[:n])
    return running.sums()


def replace_files(
    root: str, checksums: str, files: Mapping[str, bytes], is_current: Callable[[], bool]
) -> None:
    """Replace small files of an archive by others, all at once, and their checksums with them.

    Parameters
    ----------
    is_current
        Whether the archive is the one that the files were made for; else an ArchiveChangedError.
    """
    with refused_write(root), rewriting(root) as beside:
        if not is_current():
            raise ArchiveChangedError(f"{root}: the archive was changed meanwhile; try again")
        table = read_table(os.path.join(beside, checksums))
        for key, data in files.items():
            _write(os.path.join(beside, key), data)
        if table is not None:
            path = os.path.join(beside, checksums)
            _write(path, table.renewed(files).to_bytes())


def is_what_was_written(root: str, checksums: str, key: str, data: bytes) -> bool | None:
    """Whether a file's content would be the one that was written; None where nobody knows."""
    table = read_table(os.path.join(root, checksums))
    if table is None or key not in table.files:
        return None
    found, expected = sums_of(data, table.block), table.files[key]
    return found.size == expected.size and np.array_equal(found.blocks, expected.blocks)


@contextlib.contextmanager
def rewriting(root: str) -> Iterator[str]:
    """A directory with the files of an archive, as links, which takes its place at the end.

    A file is replaced by removing it and writing another: links share what they hold.
    """
    root = os.path.realpath(root)
    staging = Staging.create(root, replace=True)
    try:
        _link_tree(root, staging.path)
        yield staging.path
        staging.publish()
    finally:
        staging.discard()


def _link_tree(source: str, target: str) -> None:
    """What is in a directory, in another one; ``shutil.copytree`` does not say which error."""
    with os.scandir(source) as entries:
        for entry in entries:
            path = os.path.join(target, entry.name)
            if entry.is_dir(follow_symlinks=False):
                os.mkdir(path)
                _link_tree(entry.path, path)
            else:
                _link(entry.path, path)
    shutil.copystat(source, target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV):
            raise
        # A file system without links.
        shutil.copy2(source, target, follow_symlinks=False)


def _write(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
    with open(path, "xb") as stream:
        stream.write(data)
