"""Reading ranges of rows of HDF5 datasets with parallel decompression.

HDF5 decompresses one chunk at a time under a global lock. Chunks compressed with gzip, alone or
after the shuffle filter, are therefore read raw and decompressed in threads, by ISA-L in less than
half of the time of zlib; all others are read by h5py.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import h5py
import numpy as np
from h5py.h5z import FILTER_DEFLATE, FILTER_SHUFFLE
from isal import isal_zlib
from numpy.typing import NDArray

from scdl.errors import SourceError, SourceNotFoundError
from scdl.kernels.memory import recyclable
from scdl.sources import hdf5_guard
from scdl.sources.damage import readable_by
from scdl.sources.ranges import RangeReader as RangeReader
from storage_backends import other_formats
from storage_backends.compute import threads
from storage_backends.errors import one_line

_T = TypeVar("_T")


#: Converts errors of HDF5, as for damaged files, to a SourceError.
readable = partial(readable_by, "HDF5 cannot read it")


def open_file(path: str) -> h5py.File:
    """Open an HDF5 file for reading.

    Raises
    ------
    SourceNotFoundError
        The file does not exist.
    SourceError
        The file cannot be read, is not HDF5, or is damaged.
    """
    try:
        if os.path.isdir(path):
            raise SourceError(f"{path}: expected an h5ad file, found a directory")
        os.stat(path)
        if other := other_formats.described(path):
            raise SourceError(other)
        hdf5_guard.check_heaps(path)
        return h5py.File(path, "r")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceNotFoundError(other_formats.missing(path)) from error
    except OSError as error:
        raise SourceError(f"{path}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    """Describe why an existing file cannot be opened."""
    if error.errno in (errno.EAGAIN, errno.EDEADLK, errno.ENOLCK):
        return (
            "the file is locked by another program that has it open for writing; close it there "
            "and try again"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return "permission denied: the file exists, but this user may not read it"
    if error.errno:
        return f"the file cannot be read ({os.strerror(error.errno)})"
    truncated = "truncated" in str(error)
    problem = "the HDF5 file is truncated" if truncated else "not an HDF5 file"
    return f"{problem} ({one_line(error)})"


class RowReader:
    """Reads rows of an HDF5 dataset of numbers.

    Parameters
    ----------
    dataset
        Dataset with at least one dimension.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset = dataset
        plist = dataset.id.get_create_plist()
        self._filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
        self._raw = self._filters in ([FILTER_DEFLATE], [FILTER_SHUFFLE, FILTER_DEFLATE])
        # Cache of the last chunks: blocks of rows rarely end at a chunk boundary, so the next block
        # begins with the same chunks.
        self._last: dict[tuple[int, ...], NDArray[Any]] = {}

    def __len__(self) -> int:
        return int(self._dataset.shape[0])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Stored dtype of the numbers."""
        dtype: np.dtype[Any] = self._dataset.dtype
        return dtype

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return tuple(int(n) for n in self._dataset.shape[1:])

    @property
    def chunk_rows(self) -> int:
        """Number of rows of a chunk, which are read together."""
        return int(self._dataset.chunks[0]) if self._dataset.chunks else 1

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Read rows ``[start, stop)`` in the stored dtype."""
        shape = (stop - start, *self._dataset.shape[1:])
        if 0 in shape:
            return np.empty(shape, self.dtype)
        with readable(f"{self._dataset.file.filename}: {self._dataset.name}"):
            out = recyclable(shape, self.dtype)
            if not (self._raw and self._inflate_into(out, start, stop)):
                self._dataset.read_direct(out, np.s_[start:stop])
            return out

    def _inflate_into(self, out: NDArray[Any], start: int, stop: int) -> bool:
        """Fill `out` by decompressing in threads; return False if a chunk needs h5py."""
        size = self._dataset.chunks
        grids = [range(start // size[0] * size[0], stop, size[0])]
        grids += [range(0, n, c) for n, c in zip(self._dataset.shape[1:], size[1:], strict=True)]
        offsets = list(itertools.product(*grids))
        last_row = offsets[-1][0]
        raw: dict[tuple[int, ...], bytes] = {}
        for offset in offsets:
            if offset in self._last:
                continue
            try:
                mask, raw[offset] = self._dataset.id.read_direct_chunk(offset)
            except (OSError, RuntimeError, ValueError):
                return False  # not allocated; h5py returns the fill value or raises an error
            if mask:
                return False  # a filter was skipped for this chunk

        last_chunks = {}

        def place(group: Sequence[tuple[int, ...]]) -> None:
            for offset in group:
                chunk = self._last[offset] if offset in self._last else self._inflate(raw[offset])
                self._place(chunk, offset, out, start, stop)
                if offset[0] == last_row:
                    last_chunks[offset] = chunk

        # Several groups per thread balance the load.
        step = -(-len(offsets) // (4 * threads.n_threads()))
        groups = [offsets[i : i + step] for i in range(0, len(offsets), step)]
        threads.for_each(place, groups)
        self._last = last_chunks
        return True

    def _inflate(self, raw: bytes) -> NDArray[Any]:
        size, itemsize = self._dataset.chunks, self.dtype.itemsize
        expected = math.prod(size) * itemsize
        # Limit the output to the size of a chunk, whatever the compressed bytes expand to.
        decompressor = isal_zlib.decompressobj()
        plain = decompressor.decompress(raw, expected)
        if len(plain) != expected or decompressor.decompress(decompressor.unconsumed_tail, 1):
            raise ValueError(f"the decompressed size of a chunk is not {expected} bytes")
        values = np.frombuffer(plain, np.uint8)
        if FILTER_SHUFFLE in self._filters and itemsize > 1:
            values = np.ascontiguousarray(values.reshape(itemsize, -1).T).reshape(-1)
        return values.view(self.dtype).reshape(size)

    def _place(
        self, chunk: NDArray[Any], offset: tuple[int, ...], out: NDArray[Any], start: int, stop: int
    ) -> None:
        """Copy the part of a chunk that is in rows ``[start, stop)`` and within the dataset."""
        first, last = max(offset[0], start), min(offset[0] + len(chunk), stop)
        rest = list(zip(offset[1:], chunk.shape[1:], self._dataset.shape[1:], strict=True))
        columns = tuple(slice(o, min(o + n, end)) for o, n, end in rest)
        inside = tuple(slice(0, c.stop - c.start) for c in columns)
        piece = chunk[(slice(first - offset[0], last - offset[0]), *inside)]
        out[(slice(first - start, last - start), *columns)] = piece


def field_reader(dataset: h5py.Dataset, name: str) -> RangeReader:
    """Reads one field of a compound dataset, as written by old releases; items may be arrays."""

    def read(start: int, stop: int) -> NDArray[Any]:
        with readable(f"{dataset.file.filename}: {dataset.name}"):
            rows: NDArray[Any] = dataset.fields(name)[start:stop]
        return rows

    field: np.dtype[Any] = dataset.dtype[name]
    return RangeReader(read, int(dataset.shape[0]), field.base, field.shape)


def numbers(where: str, dataset: h5py.Dataset) -> h5py.Dataset:
    """Return the dataset; raise SourceError if it is not numeric."""
    if dataset.dtype.kind not in "biuf":
        raise SourceError(f"{where}: expected numbers, found {dataset.dtype} values")
    return dataset


def readers(where: str, group: h5py.Group, *parts: str) -> dict[str, RowReader]:
    """Create readers of the datasets of a sparse matrix; the first has the values."""
    found = {}
    for part in parts:
        dataset = group.get(part)
        if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1:
            raise SourceError(
                f"{where}: expected a one-dimensional dataset {part}, found {dataset}"
            )
        if part != parts[0] and dataset.dtype.kind not in "iu":
            raise SourceError(f"{where}/{part}: expected integers, found {dataset.dtype} values")
        found[part] = RowReader(numbers(f"{where}/{part}", dataset))
    return found
