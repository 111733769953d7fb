"""Columns of obs that a manifest keeps, so that they need not be read from thousands of members.

The file of a column lies beside the manifest. Its name contains a hash of the column's name and of
the content of all members in their order, so that the file of other members, or of members that
were changed since, is never found. It is a stream of Arrow with compressed buffers, followed by the
SHA-256 of the stream.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable, Sequence

import pyarrow as pa

from scdl.archive.tables import Encoded, as_array, encode
from scdl.collection.member import Member
from scdl.collection.paths import KEPT_PREFIX
from scdl.errors import ArchiveFormatError, CollectionError
from storage_backends import registry
from storage_backends.compute.threads import for_each_file
from storage_backends.directory import publication
from storage_backends.errors import one_line, refused_write

_SUFFIX = ".codes"
_DIGEST_BYTES = hashlib.sha256().digest_size
#: Metadata of a column of text, which is stored as categories.
_TEXT = {"scdl": "text"}


def _file(directory: str, members: Sequence[Member], column: str) -> str | None:
    """Path of the file of a column; None if there are no checksums to recognise the members by."""
    if not members or any(member.content is None for member in members):
        return None
    # Also the column and the order of the members.
    digest = hashlib.sha256(f"1 {column!r}".encode())
    for member in members:
        digest.update(f" {member.n_obs} {member.content!r}".encode())
    return os.path.join(directory, f"{KEPT_PREFIX}{digest.hexdigest()[:32]}{_SUFFIX}")


def read_kept(directory: str, members: Sequence[Member], column: str) -> Encoded | pa.Array | None:
    """A kept column of obs for all cells; None if it is not kept, or a member changed since.

    Raises
    ------
    ArchiveFormatError
        The file is damaged.
    """
    file = _file(directory, members, column)
    if file is None or not os.path.isfile(file) or not _are_unchanged(members):
        return None
    try:
        with pa.memory_map(file) as stored:
            data = memoryview(stored.read_buffer())
        content, digest = data[:-_DIGEST_BYTES], bytes(data[-_DIGEST_BYTES:])
        if hashlib.sha256(content).digest() != digest:
            raise ValueError("its checksum differs")
        with pa.ipc.open_stream(pa.py_buffer(content)) as stream:
            table = stream.read_all()
        if table.schema.names != [column]:
            raise ValueError(f"its columns are {table.schema.names}")
        if table.num_rows != sum(member.n_obs for member in members):
            raise ValueError(f"it has {table.num_rows} rows")
    except (pa.ArrowException, ValueError, OSError) as error:
        raise ArchiveFormatError(
            f"{file}: the kept column {column!r} is damaged ({one_line(error)}); remove the file, "
            "or write it again with save_manifest"
        ) from error
    found = encode(table[column])
    is_text = (table.schema.field(0).metadata or {}).get(b"scdl") == b"text"
    if isinstance(found, Encoded) and is_text:
        return found._replace(type=found.labels.type)
    return found


def _are_unchanged(members: Sequence[Member]) -> bool:
    """Whether the content of all members is as described; it is not enough that the files exist."""
    changed: list[Member] = []

    def check(member: Member) -> None:
        backend = None if changed else registry.known(member.path)
        assert member.content is not None
        if backend is None or not backend.store.has_content(member.path, member.content):
            changed.append(member)

    for_each_file(check, members)
    return not changed


def write_kept(
    directory: str, members: Sequence[Member], column: str, values: Encoded | pa.Array
) -> str:
    """Keep a column of obs of all cells; returns the path of its file, written atomically.

    Raises
    ------
    CollectionError
        A member has no checksums, so that a change of it could not be noticed.
    ArchiveWriteError
        The directory is not writable.
    """
    file = _file(directory, members, column)
    if file is None:
        where = next((m.path for m in members if m.content is None), directory)
        raise CollectionError(
            f"{where}: there are no checksums, so that the manifest could keep the obs column "
            f"{column!r} after a change of the archive; add them with `scdl verify "
            "--add-checksums`, call refresh(), or leave out obs="
        )
    coded, metadata = as_array(values), None
    if isinstance(values, Encoded) and not pa.types.is_dictionary(values.type):
        type_ = pa.dictionary(pa.from_numpy_dtype(values.codes.dtype), values.type)
        coded, metadata = values._replace(type=type_).array(), _TEXT
    schema = pa.schema([pa.field(column, coded.type, metadata=metadata)])
    options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, schema, options=options) as stream:
        stream.write_batch(pa.RecordBatch.from_arrays([coded], schema=schema))
    content = memoryview(buffer.getvalue())
    with refused_write(file), publication.new_file(file) as part, open(part, "wb") as target:
        target.write(content)
        target.write(hashlib.sha256(content).digest())
    return file


def kept_names(directory: str, members: Sequence[Member]) -> list[str]:
    """Names of the columns that are kept for these members."""
    found = []
    for file in _files(directory):
        try:
            with pa.memory_map(file) as stored, pa.ipc.open_stream(stored) as stream:
                (name,) = stream.schema.names
        except (pa.ArrowException, ValueError, OSError):
            continue
        if _file(directory, members, name) == file:
            found.append(name)
    return sorted(found)


def remove_kept(directory: str, but: Iterable[str] = ()) -> None:
    """Remove the files of columns other than these; call with the directory locked."""
    for file in {*_files(directory)}.difference(but):
        publication.remove(file)


def _files(directory: str) -> list[str]:
    return glob.glob(os.path.join(glob.escape(directory), f"{KEPT_PREFIX}*{_SUFFIX}"))
