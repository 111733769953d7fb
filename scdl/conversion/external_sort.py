"""Rows of Arrow batches in another order, sorted outside memory.

As many rows as fit into a buffer are sorted by their new positions and written to a temporary file,
divided into buckets of consecutive positions. Then the buckets are read one after the other, each
from all parts of the file, and sorted in memory. What was read no longer takes space on the disk.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scdl.conversion.tables import bytes_of
from scdl.sources.matrices import Bounds, scratch_file
from storage_backends.compute import arrow
from storage_backends.compute.c_library import c_function
from storage_backends.compute.threads import prefetch

#: Bytes of rows that are sorted at once.
_BUFFER = 1 << 25
#: Mean bytes of a bucket in one part of the temporary file, at least: the size of its reads. A
#: buffer grows with the square root of the data to keep it.
_READ = 1 << 16
_PLACE = pa.field("", pa.int64())
#: Flags of ``fallocate``: free the space of a range, and keep the size of the file.
_PUNCH_HOLE = 3


def in_order(
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    nbytes: int,
    n_rows: int,
    places: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    bounds: Bounds,
) -> Iterator[pa.RecordBatch]:
    """Sort the rows of batches by their new positions.

    Parameters
    ----------
    nbytes, n_rows
        Size of all batches, or an upper bound, and number of their rows.
    places
        Returns the new positions of rows, which are numbered from 0.
    bounds
        Where the temporary file is created.
    """
    if n_rows < 2:
        yield from batches
        return
    buffer, n_buckets = sizes(nbytes, n_rows)
    edges = np.linspace(0, n_rows, n_buckets + 1).astype(np.int64)
    runs = prefetch(_sorted_runs(batches, schema, buffer, places))
    with scratch_file(bounds) as file:
        places_in_file = _write_runs(runs, schema, edges, file)
        yield from prefetch(_buckets(file, places_in_file))


def _sorted_runs(
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    buffer: int,
    places: Callable[[NDArray[np.int64]], NDArray[np.int64]],
) -> Iterator[pa.RecordBatch]:
    """Rows of about `buffer` bytes, with their new positions as last column, in this order."""
    first = 0
    for run in _runs(batches, schema, buffer):
        new = places(np.arange(first, first + run.num_rows))
        first += run.num_rows
        rows = run.append_column(_PLACE, pa.chunked_array([arrow.numbers(new)]))
        yield from rows.take(arrow.numbers(np.argsort(new))).combine_chunks().to_batches()


def sizes(nbytes: int, n_obs: int) -> tuple[int, int]:
    """Size of the buffer for a run or a bucket, in bytes, and the number of buckets."""
    buffer = max(_BUFFER, math.isqrt(nbytes * _READ))
    return buffer, max(1, min(-(-nbytes // buffer), n_obs))


def _write_runs(
    runs: Iterable[pa.RecordBatch], schema: pa.Schema, edges: NDArray[np.int64], file: BinaryIO
) -> list[list[int]]:
    """Write sorted runs, each as one batch for each bucket.

    Returns, for each run, where its batches begin in the file and the last one ends.
    """
    written = []
    with pa.ipc.new_file(file, schema.append(_PLACE)) as sink:
        for run in runs:
            at = [file.tell()]
            stops = np.searchsorted(arrow.to_numpy(run.column(-1)), edges).tolist()
            for start, stop in itertools.pairwise(stops):
                sink.write_batch(run.slice(start, stop - start))
                at.append(file.tell())
            written.append(at)
    return written


def _runs(batches: Iterable[pa.RecordBatch], schema: pa.Schema, buffer: int) -> Iterator[pa.Table]:
    """Unite batches to tables of about `buffer` bytes, with at least one row."""
    run: list[pa.RecordBatch] = []
    nbytes = 0
    for batch in batches:
        if batch.num_rows:
            run.append(batch)
            nbytes += bytes_of(batch)
        if nbytes >= buffer:
            yield pa.Table.from_batches(run, schema)
            run, nbytes = [], 0
    if run:
        yield pa.Table.from_batches(run, schema)


def _buckets(file: BinaryIO, written: list[list[int]]) -> Iterator[pa.RecordBatch]:
    """Read each bucket from all runs, sorted by position, and free its space."""
    if not written:
        return
    source, n_buckets = pa.ipc.open_file(file), len(written[0]) - 1
    for bucket in range(n_buckets):
        parts = [source.get_batch(run * n_buckets + bucket) for run in range(len(written))]
        for at in written:
            # From the first bucket, since only whole blocks of the file system are freed.
            _free(file, at[0], at[bucket + 1])
        table = pa.Table.from_batches(parts)
        del parts
        places = arrow.to_numpy(table.column(-1).combine_chunks())
        table = table.select(range(table.num_columns - 1)).take(arrow.numbers(np.argsort(places)))
        yield from table.combine_chunks().to_batches()


def _free(file: BinaryIO, start: int, stop: int) -> None:
    """Free the space of a range of a file, where the system and the file system can."""
    types = ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64
    # Only Linux has it.
    if fallocate := c_function("fallocate", *types):
        fallocate(file.fileno(), _PUNCH_HOLE, start, stop - start)
