"""Integrity of the files of an archive: comparison with checksums, and replacing files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from storage_backends.base import ArrayStore
from storage_backends.capabilities import Examination, Finding, Verdict
from storage_backends.directory import files as archive_files
from storage_backends.directory.checksums import (
    FileChecksums,
    RunningChecksums,
    Table,
    file_checksums,
)
from storage_backends.directory.comparison import (
    PIECE,
    ArchivePaths,
    Comparison,
    unreadable_finding,
)
from storage_backends.directory.staging import remove_leftovers, rewriting
from storage_backends.errors import (
    ArchiveChangedError,
    ArchiveFormatError,
    OutputError,
    refused_write,
)

#: Opens the archive at a path; calls a function with the key of each file before reading it.
OpenChecked = Callable[[str, Callable[[str], None]], ArrayStore]


def examine_files(
    root: str,
    checksums: str,
    reads: Callable[[str], bool],
    order: Callable[[str], Any] | None = None,
    open_: OpenChecked | None = None,
    grows: Callable[[str], bool] = lambda key: False,
    ignored: str | None = None,
) -> Examination:
    """Compare the files of an archive with its checksums.

    Parameters
    ----------
    root
        Directory of the archive.
    checksums
        Relative path of the file of checksums.
    reads
        Whether the archive may contain a file with a given key; other files give a remark.
    order
        Sort key for the order of comparison; default: the order of writing.
    open_
        Opens the archive for reading during the comparison.
    grows
        Whether a file may be longer than listed, since an append is under way or was interrupted.
    ignored
        Relative path of a file that marks such an archive.
    """
    paths = ArchivePaths(root, checksums)
    try:
        table = read_table(paths.table)
    except ArchiveFormatError as error:
        return Examination([Finding(str(error))])
    except OSError as error:
        return Examination([unreadable_finding(paths.table, error)])
    if table is None:
        missing = (
            f"{root}: there are no checksums, so it is unknown whether its bytes are intact; "
            "`scdl verify --add-checksums` adds checksums of the current bytes"
        )
        return Examination([Finding(missing, Verdict.UNKNOWN)])
    sizes = dict(_file_sizes(root))
    for key in filter(None, (checksums, ignored)):
        sizes.pop(key.replace(os.sep, "/"), None)
    longer = list(_longer(paths, table, sizes, grows))
    findings = [
        *longer,
        *_missing(paths, table, sizes),
        *_unlisted(root, table, sizes, reads),
    ]
    complete = [key for key, sums in table.files.items() if sizes.get(key) == sums.size]
    if order is not None:
        complete.sort(key=order)
    files = {key: table.files[key] for key in complete}
    comparison = Comparison(paths, files, table.block)
    nbytes = sum(sums.size for sums in files.values())
    open_store = None if open_ is None else partial(open_, root, comparison.require)
    return Examination(findings, comparison, nbytes, True, open_store)


def read_table(path: str) -> Table | None:
    """Read the file of checksums; None if it does not exist."""
    try:
        return Table.from_bytes(archive_files.read_path(path), path)
    except FileNotFoundError:
        return None


def fingerprint(root: str, checksums: str) -> str | None:
    """Hash of the checksums of all files; None if there are none."""
    try:
        content = archive_files.read_file(root, checksums)
    except ArchiveFormatError:
        return None
    return hashlib.sha256(content).hexdigest()[:32]


def _file_sizes(root: str) -> Iterator[tuple[str, int]]:
    """Yield the key and size of every file of an archive."""
    for key in archive_files.file_sizes(root):
        # Skip dangling links, and links that lead out of the archive.
        with contextlib.suppress(FileNotFoundError, ArchiveFormatError):
            status = os.stat(archive_files.file_path(root, key))
            # Skip pipes: reading them could block.
            if stat.S_ISREG(status.st_mode):
                yield key, status.st_size


def _longer(
    paths: ArchivePaths, table: Table, sizes: dict[str, int], grows: Callable[[str], bool]
) -> Iterator[Finding]:
    """Remarks on files with bytes that do not belong to the archive; corrects their sizes."""
    for key, sums in table.files.items():
        if grows(key) and (more := sizes.get(key, 0) - sums.size) > 0:
            sizes[key] = sums.size
            yield Finding(
                f"{paths.file(key)}: its last {more:,} bytes are not read: an append is under way, "
                "or was interrupted; the next append or `scdl verify --repair` removes them",
                Verdict.SOUND,
                mendable=True,
            )


def _missing(paths: ArchivePaths, table: Table, sizes: dict[str, int]) -> Iterator[Finding]:
    """Findings for files that are missing, or whose size differs from the listed one."""
    for key, sums in table.files.items():
        if sizes.get(key) != sums.size:
            found = f"{sizes[key]:,}" if key in sizes else "no file"
            if key not in sizes and (message := _external_link(paths, key)) is not None:
                yield Finding(message, Verdict.UNKNOWN)
                continue
            yield Finding(
                f"{paths.file(key)}: expected {sums.size:,} bytes, found {found}; {paths.advice}"
            )


def _external_link(paths: ArchivePaths, key: str) -> str | None:
    """Message if a file is a link out of the archive, which is not followed; else None."""
    try:
        archive_files.file_path(paths.root, key)
    except ArchiveFormatError as error:
        return str(error)
    return None


def _unlisted(
    root: str, table: Table, sizes: dict[str, int], reads: Callable[[str], bool]
) -> Iterator[Finding]:
    """Findings for files without checksums."""
    unlisted = sorted(set(sizes) - set(table.files))
    unknown = [key for key in unlisted if reads(key)]
    foreign = [key for key in unlisted if not reads(key)]
    if unknown:
        yield Finding(
            f"{root}: there are no checksums of {_enumerate(unknown)}, added after the archive was "
            "written; remove files that do not belong to it",
            Verdict.UNKNOWN,
        )
    if foreign:
        yield Finding(
            f"{root}: {_enumerate(foreign)} does not belong to the archive, and is not read",
            Verdict.SOUND,
        )


def _enumerate(keys: Sequence[str]) -> str:
    return ", ".join(keys[:5]) + (" and others" if len(keys) > 5 else "")


# -- changing files of an archive ----------------------------------------------------------


def add_checksums(root: str, checksums: str) -> int:
    """Add checksums to an archive that has none; returns the number of bytes covered."""
    remove_leftovers(root)
    if os.path.lexists(os.path.join(root, checksums)):
        raise OutputError(
            f"{root}: the archive already has checksums; if its current content is right, remove "
            f"{os.path.join(root, checksums)} first"
        )
    with refused_write(root), rewriting(root) as staged:
        # Read the staged files, which no other process changes.
        files = {key: _checksums_of(os.path.join(staged, key)) for key, _ in _file_sizes(staged)}
        table = Table(files)
        _replace_file(os.path.join(staged, checksums), table.to_bytes())
    return sum(sums.size for sums in table.files.values())


def _checksums_of(path: str) -> FileChecksums:
    running, buffer = RunningChecksums(), memoryview(bytearray(PIECE))
    with open(path, "rb", buffering=0) as stream:
        while n := stream.readinto(buffer):
            running.update(buffer[:n])
    return running.result()


def replace_files(
    root: str, checksums: str, files: Mapping[str, bytes], is_current: Callable[[], bool]
) -> None:
    """Replace small files of an archive and their checksums in one atomic step.

    Parameters
    ----------
    is_current
        Whether the archive is still the one that the files were made for.

    Raises
    ------
    ArchiveChangedError
        The archive was replaced.
    """
    with refused_write(root), rewriting(root) as staged:
        if not is_current():
            raise ArchiveChangedError(f"{root}: the archive was changed meanwhile; try again")
        table = read_table(os.path.join(staged, checksums))
        for key, data in files.items():
            _replace_file(os.path.join(staged, key), data)
        if table is not None:
            path = os.path.join(staged, checksums)
            _replace_file(path, table.updated(files).to_bytes())


def matches_checksums(root: str, checksums: str, key: str, data: bytes) -> bool | None:
    """Whether `data` matches the recorded checksums of a file; None if there are none."""
    table = read_table(os.path.join(root, checksums))
    if table is None or key not in table.files:
        return None
    actual, expected = file_checksums(data, table.block), table.files[key]
    return actual.size == expected.size and np.array_equal(actual.blocks, expected.blocks)


def _replace_file(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
    with open(path, "xb") as stream:
        stream.write(data)
