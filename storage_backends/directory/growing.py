"""Adding cells to archives that are local directories, without rewriting them.

The new archive is a directory of hard links to the files of the old one, and of new files. Large
files grow in place, behind the bytes that the old archive has. The new directory replaces the old
one atomically at the commit. Until then, and after a crash, the archive at the path has files that
are longer than it says; whoever reads it uses the lengths that it says.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from storage_backends.base import ArraySpec, ArrayStore
from storage_backends.directory import integrity, locks, publication
from storage_backends.directory.checksums import BLOCK, Table
from storage_backends.directory.recorder import CheckedFile, Recorder
from storage_backends.directory.staging import link_tree
from storage_backends.directory.writer import DirectoryWriter
from storage_backends.errors import ArchiveFormatError, OutputError, refused_write

#: Rows of a table that are read at once.
_ROWS_AT_ONCE = 1 << 16
_MATRIX = ("data", "indices", "indptr")


def checksums_of(store: ArrayStore, checksums: str) -> Table | None:
    """Checksums of an archive, if they cover all of its files as far as these are read."""
    try:
        table = integrity.read_table(os.path.join(store.path, checksums))
    except (ArchiveFormatError, OSError):
        return None
    if table is None or table.block != BLOCK:
        return None
    for key, sums in table.files.items():
        try:
            if os.stat(os.path.join(store.path, key)).st_size < sums.size:
                return None
        except OSError:
            return None
    return table


def remove_unpublished(
    root: str, checksums: str, marker: str, grows: Callable[[str], Callable[[str], bool]]
) -> list[str]:
    """Remove what an interrupted append left behind the bytes of an archive.

    Parameters
    ----------
    root
        Directory of the archive.
    checksums, marker
        Relative paths of the checksums, and of the file that marks such an archive.
    grows
        Returns which files may be longer than published, by their key.

    Returns
    -------
    list of str
        A sentence for each file that was shortened.
    """
    done: list[str] = []
    if not os.path.lexists(os.path.join(root, marker)):
        return done
    with refused_write(root):
        if (descriptor := locks.lock(root)) is None:
            # The append is under way.
            return done
        try:
            table = integrity.read_table(os.path.join(root, checksums))
            may_grow, is_shared = grows(root), table is None
            for key, sums in table.files.items() if table is not None else ():
                status = os.stat(path := os.path.join(root, key))
                if not may_grow(key) or status.st_size <= sums.size:
                    continue
                if status.st_nlink > 1:
                    # Another archive may use the rest of content that they share.
                    is_shared = True
                    continue
                os.truncate(path, sums.size)
                done.append(f"{path}: shortened to the {sums.size:,} bytes of the archive")
            if not is_shared:
                os.unlink(os.path.join(root, marker))
        finally:
            locks.unlock(descriptor)
    return done


class GrowingWriter(DirectoryWriter):
    """Adds cells to an archive; to be combined with the writer of a backend.

    A subclass may open files with :meth:`grow_file`; its readers then accept files that are longer
    than published while there is the file :attr:`marker`.
    """

    #: Relative path of the file that marks the archive at the path while its files grow in place.
    marker: ClassVar[str] = ""

    _store: ArrayStore
    #: Arrays that got items.
    _arrays: dict[str, Any]
    #: The directory at the path when the append began.
    _published: os.stat_result

    def __init__(self, path: str, **options: Any) -> None:
        #: Files that grow in place, with their published sizes.
        self._in_place: dict[str, int] = {}
        #: Arrays that are written anew.
        self._anew: set[str] = set()
        self._owner = os.getpid()
        super().__init__(path, **options)

    @classmethod
    def begin(cls, store: ArrayStore, before: Table, **options: Any) -> Self:
        """Begin to add cells to an open archive whose files have the given checksums.

        Raises
        ------
        ArchiveChangedError, ArchiveLockedError, ArchiveWriteError
            As :meth:`Growing.grow`.
        """
        writer = cls(store.path, replace=True, **options)
        try:
            # The writer holds the lock, so the archive can no longer change.
            store.check_current()
            writer._published = os.stat(store.path)
            writer._store = store
            with refused_write(writer.path):
                link_tree(store.path, writer.directory)
                for key in filter(None, (cls.checksums, cls.marker)):
                    publication.remove(os.path.join(writer.directory, key))
                writer.recorder = Recorder(writer.directory, before)
                writer._resume()
        except BaseException:
            writer.abort()
            raise
        return writer

    def _resume(self) -> None:
        """Take the arrays and tables of the archive as those written so far."""
        contents = self._store.contents
        self.specs = dict(contents.arrays)
        self._last_offset = self.specs["data"].length
        blocks = contents.attrs["blocks"]
        self.table_rows = {f"var/{i}": block["n_vars"] for i, block in enumerate(blocks)}
        if "obs" in contents.tables:
            self.table_rows["obs"] = blocks[-1]["stop"]

    def _restarted(
        self, name: str, dtype: np.dtype[Any], item_shape: tuple[int, ...] | None
    ) -> None:
        """Take an array as empty, with other items; OutputError if that is impossible."""
        if name not in self._store.arrays or name in _MATRIX:
            raise OutputError(f"{self.path}: there is no array {name} to write anew")
        if name in self._arrays or name in self._anew:
            raise OutputError(f"{self.path}: {name} has got items, so that it is not written anew")
        shape = self.specs[name].item_shape if item_shape is None else item_shape
        self.specs[name] = ArraySpec(dtype.newbyteorder("<"), 0, shape)
        self._anew.add(name)

    def _widen_offsets(self, name: str, dtype: np.dtype[Any]) -> None:
        """Take a wider type of offsets for an array that has not grown yet."""
        spec = self.specs[name]
        if name.rpartition("/")[2] == "indptr" and np.can_cast(spec.dtype, dtype):
            self.specs[name] = replace(spec, dtype=dtype.newbyteorder("<"))

    def _joined(self, name: str, start: int, table: pa.RecordBatchReader) -> pa.RecordBatchReader:
        """The stored rows of a table from `start` on, with all categories, and new ones."""
        batches, stop = iter(table), self.table_rows[name]
        # Without new rows there are no new categories.
        first = next(batches, None)

        def rows() -> Iterator[pa.RecordBatch]:
            for at in range(start, stop, _ROWS_AT_ONCE):
                old = self._store.read_table(name, None, at, min(at + _ROWS_AT_ONCE, stop))
                yield _recoded(old, first)
            if first is not None:
                yield first
            yield from batches

        return pa.RecordBatchReader.from_batches(table.schema, rows())

    def grow_file(self, path: str) -> CheckedFile:
        """Open a file to append to it: in place, unless another archive shares its content."""
        size = self.recorder.size(path)
        # One link is in this directory, and one in the archive that it replaces.
        if os.stat(path).st_nlink > 2 or os.path.islink(path):
            copy = f"{path}.copy"
            shutil.copy2(path, copy)
            os.replace(copy, path)
        else:
            self._mark()
            self._in_place[path] = size
        return self.recorder.grow(path)

    def _mark(self) -> None:
        """Mark the archive at the path, durably, before its first file grows."""
        if not self._in_place:
            marker = os.path.join(self.path, self.marker)
            with open(marker, "wb"):
                publication.flush(os.path.dirname(marker))

    def commit(self, attrs: Mapping[str, Any]) -> None:
        n_obs = self.specs["indptr"].length - 1
        for name, spec in self.specs.items():
            holder, _, part = name.rpartition("/")
            sparse = self._store.sparse.get(holder)
            is_part = sparse is not None or not holder or holder.startswith("graphs/")
            is_part &= part in _MATRIX
            if sparse is not None and sparse.format == "csc" and not holder.startswith("obsp/"):
                is_whole = name in self._anew
            else:
                is_offsets = is_part and part == "indptr"
                is_whole = (is_part and not is_offsets) or spec.length == n_obs + is_offsets
                if holder == "obsp":
                    is_whole &= spec.item_shape == (n_obs,)
            if not is_whole:
                raise OutputError(
                    f"{self.path}: cannot commit: {name} has {spec.length} items for {n_obs} cells"
                )
        super().commit(attrs)

    def abort(self) -> None:
        if self._staging is not None and self._in_place and os.getpid() == self._owner:
            self._close()
            self.recorder.discard()
            with suppress(OSError):
                # After the exchange of directories, which cannot be undone, the new one is right.
                if os.path.samestat(os.stat(self.path), self._published):
                    for path, size in self._in_place.items():
                        os.truncate(path, size)
                    os.unlink(os.path.join(self.path, self.marker))
        super().abort()


def _recoded(rows: pa.Table, like: pa.RecordBatch | None) -> pa.RecordBatch:
    """Rows with the categories of another batch, if any, which begin with theirs."""
    columns = []
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        array = pa.concat_arrays(column.chunks)
        if like is not None and pa.types.is_dictionary(array.type):
            categories, ordered = like.column(name).dictionary, array.type.ordered
            array = pa.DictionaryArray.from_arrays(array.indices, categories, ordered=ordered)
        columns.append(array)
    return pa.RecordBatch.from_arrays(columns, schema=rows.schema)
