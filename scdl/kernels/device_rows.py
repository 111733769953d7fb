"""Kernels of ``numba.cuda`` that lay out rows on a GPU, with a block of threads for each row."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from storage_backends.compute.device import cuda, device_kernel, lesser

#: Threads of a block.
THREADS = 128
#: Most columns of sorted rows: a bit and a share of a count of each are in the shared memory of a
#: block, 48 KiB.
MOST_COLUMNS = 150_000
_WORD = 32


@device_kernel
def _lay_out(
    data: Any, ids: Any, indptr: Any, n_columns: int, target_sum: float, logs: bool, dense: bool,
    values: Any, columns: Any, problem: Any,
) -> None:  # fmt: skip
    shares = cuda.shared.array(THREADS, np.float64)
    counts = cuda.shared.array(THREADS, np.int32)
    # One bit for each column, then the number of bits before each word.
    words = cuda.shared.array(0, numba.uint32)
    row, thread, step = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
    start, stop = indptr[row], indptr[row + 1]
    n_words = (n_columns + _WORD - 1) // _WORD
    for word in range(thread, n_words, step):
        words[word] = 0
    total = 0.0
    for k in range(start + thread, stop, step):
        total += data[k]
    shares[thread] = total
    cuda.syncthreads()
    for k in range(start + thread, stop, step):
        column = np.int64(ids[k])
        if column < n_columns:
            bit = np.uint32(1) << np.uint32(column % _WORD)
            if cuda.atomic.or_(words, column // _WORD, bit) & bit:
                problem[0] = 1
        else:
            problem[0] = 1
    cuda.syncthreads()
    per_thread = (n_words + step - 1) // step
    first, last = lesser(n_words, thread * per_thread), lesser(n_words, (thread + 1) * per_thread)
    n_bits = 0
    for word in range(first, last):
        n_bits += cuda.popc(words[word])
    counts[thread] = n_bits
    cuda.syncthreads()
    n_bits, total = 0, 0.0
    for other in range(step):
        n_bits += counts[other] if other < thread else 0
        total += shares[other]
    for word in range(first, last):
        words[n_words + word] = n_bits
        n_bits += cuda.popc(words[word])
    cuda.syncthreads()
    scales = target_sum > 0.0 and total != 0.0
    scale = target_sum / total if scales else 1.0
    for k in range(start + thread, stop, step):
        column = np.int64(ids[k])
        if column < n_columns:
            below = (np.uint32(1) << np.uint32(column % _WORD)) - np.uint32(1)
            rank = cuda.popc(words[column // _WORD] & below) + words[n_words + column // _WORD]
            at = row * n_columns + column if dense else start + np.int64(rank)
            # Stored after each step, as its rounding to the type of the output is part of the step.
            values[at] = data[k]
            if scales:
                values[at] = values[at] * scale
            if logs:
                values[at] = math.log1p(values[at])
            if not dense:
                columns[at] = column


def lay_out(
    data: Any,
    ids: Any,
    indptr: Any,
    n_columns: int,
    values: Any,
    columns: Any,
    problem: Any,
    *,
    target_sum: float = 0.0,
    logs: bool = False,
    dense: bool = False,
) -> None:
    """Enqueue the kernel that normalises rows and lays them out.

    Each array is one that kernels of ``numba.cuda`` take.

    Parameters
    ----------
    data, ids, indptr
        Rows in CSR form; the ids of a row in any order.
    n_columns
        Number of columns, at most :data:`MOST_COLUMNS`.
    values
        Output, float32 or float64: the values in the order of their ids; or if `dense`, one for
        each row and column, which are 0 before.
    columns
        Output, int32, the sorted ids; not used if `dense`.
    problem
        Output, set to 1 if an id is not a column, or repeats in its row.
    target_sum
        Total to which to scale each row with another total than 0; 0: values are not scaled.
    logs
        Whether to replace each value x by log(1 + x) after that.
    """
    n_bytes = 8 * ((n_columns + _WORD - 1) // _WORD)
    _lay_out[len(indptr) - 1, THREADS, 0, n_bytes](
        data, ids, indptr, n_columns, target_sum, logs, dense, values, columns, problem
    )
