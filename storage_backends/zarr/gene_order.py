"""Genes in order of decreasing detection rate, so that column ids compress better.

Genes that many cells express come first, so that most differences between consecutive ids of a cell
are small. Among genes of similar rates, those that the same cells express are adjacent. Readers of
AnnData see only a different order of var.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage_backends.base import INDEX
from storage_backends.compute import threads
from storage_backends.compute.jit import kernel
from storage_backends.compute.rowsort import sort_rows
from storage_backends.zarr.chunks.reading import ZarrArray
from storage_backends.zarr.chunks.writing import ArrayBuilder
from storage_backends.zarr.layout import MATRIX_PARTS, ORDER
from storage_backends.zarr.plan import Bound

if TYPE_CHECKING:
    # They take long to import, and only the writer orders genes.
    import pandas as pd
    import pyarrow as pa
    import scipy.sparse as sp

#: Prefixes of elements that may be aligned with the genes, see :func:`aligned`.
ALIGNED = ("raw/varm/", "var")
_VALUES_AT_ONCE = 1 << 20
#: Bands of similar detection rates per factor of two.
_BANDS_PER_OCTAVE = 2
#: Cells sampled for co-expression of genes, and rounds of subspace iteration.
_SAMPLE_CELLS, _ROUNDS = 1_024, 6
#: Cells to which tables are fitted.
_FITTED_CELLS = 1_024


class Rows(NamedTuple):
    """The draft arrays of a sparse matrix."""

    data: ArrayBuilder
    indices: ArrayBuilder
    indptr: ArrayBuilder


def by_detection(rows: Rows, n_vars: int) -> NDArray[np.int64]:
    """Genes by decreasing number of cells that express them, in bands of a factor of √2.

    Within a band, genes follow the main axis of correspondence analysis, in alternating directions.
    Source: Greenacre, Theory and Applications of Correspondence Analysis, 1984.
    """
    axis = threads.submit(_main_axis, _sample(rows, n_vars))
    counts = np.zeros(n_vars, np.int64)
    for values in _pieces(rows.indices.reader()):
        _count(values, counts)
    return _in_bands(counts, axis.result())


def _in_bands(counts: NDArray[np.int64], axis: NDArray[np.float64]) -> NDArray[np.int64]:
    """Genes in bands of similar counts, ordered within them by their position on an axis."""
    band = np.floor(_BANDS_PER_OCTAVE * np.log2(np.maximum(counts, 0.5)))
    return np.lexsort((np.where(band % 2, axis, -axis), -band))


def reordered(rows: Mapping[str, NDArray[Any]], n_vars: int) -> dict[str, NDArray[Any]]:
    """Rows in memory as :func:`rewrite` writes them, with genes by detection among these rows.

    Parameters
    ----------
    rows
        Arrays of the matrix and of fields, by name.
    """
    import scipy.sparse as sp

    offsets, ids = rows["indptr"].astype(np.int64), rows["indices"].astype(np.int64)
    ones = np.ones(len(ids), np.float32)
    cells = sp.csr_matrix((ones, ids, offsets), (len(offsets) - 1, n_vars))
    order = _in_bands(np.bincount(ids, minlength=n_vars), _main_axis(cells[:_SAMPLE_CELLS]))
    found = dict(rows)
    for prefix in prefixes(rows):
        data, indices, indptr = (rows[prefix + part] for part in MATRIX_PARTS)
        ids = _ranks(order, indices.dtype)[indices]
        values = _sorted(data, ids, indptr.astype(np.int64), n_vars)
        found |= {f"{prefix}data": values[0], f"{prefix}indices": values[1]}
    return found


def prefixes(names: Iterable[str]) -> list[str]:
    """Prefixes of the names of the arrays of matrices by rows."""
    holders = (name.rpartition("/") for name in names)
    return [*dict.fromkeys(holder + slash for holder, slash, _ in holders)]


def _sorted(
    values: NDArray[Any],
    ids: NDArray[Any],
    offsets: NDArray[np.int64],
    n_vars: int,
    found: tuple[NDArray[Any], NDArray[Any]] | None = None,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Values and ids of rows, sorted by id; values with the same id keep their order.

    `found` is memory for them.
    """
    found = found or (np.empty_like(values), np.empty_like(ids))
    if sort_rows(values, ids, offsets, n_vars, *found) < 0:
        rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        order = np.lexsort((ids, rows))
        return values[order], ids[order]
    return found


def _sample(rows: Rows, n_vars: int) -> sp.csr_matrix:
    """Binary expression matrix of cells sampled evenly across the archive."""
    import scipy.sparse as sp

    offsets, ids = sampled(rows.indptr, _SAMPLE_CELLS, rows.indices)
    shape = len(offsets) - 1, n_vars
    return sp.csr_matrix((np.ones(len(ids), np.float32), ids.astype(np.int64), offsets), shape)


def sampled(indptr: ArrayBuilder, n: int, *parts: ArrayBuilder) -> list[NDArray[Any]]:
    """Offsets, and items of parts, of `n` rows at most that are evenly apart."""
    stored = indptr.reader()
    n_obs = stored.spec.length - 1
    chosen = np.unique(np.linspace(0, n_obs, n, endpoint=False).astype(np.int64))
    chosen = chosen[chosen < n_obs]
    bounds = np.empty(2 * len(chosen), stored.spec.dtype)
    stored.read(chosen, chosen + 2, bounds)
    starts, stops = bounds.reshape(-1, 2).T.astype(np.int64, order="C")
    found = [np.concatenate([[0], np.cumsum(stops - starts)])]
    for part in parts:
        found.append(np.empty(found[0][-1], part.spec.dtype))
        part.reader().read(starts, stops, found[-1])
    return found


def _main_axis(cells: sp.csr_matrix) -> NDArray[np.float64]:
    """Position of each gene on the first axis of correspondence analysis; 0 if no cell has it."""
    if 0 in cells.shape:
        return np.zeros(cells.shape[1])
    n_cells = np.bincount(cells.indices, minlength=cells.shape[1]).astype(np.float64)
    weights = np.divide(1.0, np.sqrt(n_cells), where=n_cells > 0, out=np.zeros(len(n_cells)))
    # Subspace iteration; the first axis is trivial and reflects only the detection rate.
    axes, columns = np.random.default_rng(0).standard_normal((len(n_cells), 2)), cells.T
    for _ in range(_ROUNDS):
        places = cells @ (weights[:, np.newaxis] * axes)
        axes = np.linalg.qr(weights[:, np.newaxis] * (columns @ places))[0]
    place: NDArray[np.float64] = axes[:, -1] * weights
    return place


def rewrite(
    drafts: Rows,
    data: ArrayBuilder | None,
    indices: ArrayBuilder | None,
    order: NDArray[np.int64] | None,
) -> None:
    """Append drafts to the builders of the final arrays, with genes reordered.

    Parameters
    ----------
    data, indices
        None for an array that is not written.
    order
        Original position of each gene in the new order; None keeps the order.
    """
    if order is None:
        for draft, final in ((drafts.data, data), (drafts.indices, indices)):
            if final is not None:
                for values in _pieces(draft.reader()):
                    final.append(values)
        return
    read_data, read_indices = drafts.data.reader(), drafts.indices.reader()
    read_indices.bound = Bound.of(mapping=_ranks(order, np.dtype(np.uint32)))
    memory = _Memory(drafts), _Memory(drafts)
    for indptr in _row_blocks(drafts.indptr.reader()):
        first, last = int(indptr[0]), int(indptr[-1])
        values, ids = memory[0].arrays(last - first)
        read_data.read(np.array([first]), np.array([last]), values)
        read_indices.read(np.array([first]), np.array([last]), ids)
        found = memory[1].arrays(last - first)
        values, ids = _sorted(values, ids, indptr - first, len(order), found)
        for final, items in ((data, values), (indices, ids)):
            if final is not None:
                ends = indptr[1:] - first + final.length
                final.append(items)
                final.end_rows(ends)


class _Memory:
    """Values and ids of rows, whose memory is used again for other rows."""

    def __init__(self, rows: Rows) -> None:
        self._parts = [part.empty() for part in rows[:2]]

    def arrays(self, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Values and ids of `n` items."""
        if n > len(self._parts[0]):
            self._parts = [np.empty(max(n, _VALUES_AT_ONCE), p.dtype) for p in self._parts]
        return self._parts[0][:n], self._parts[1][:n]


def is_same(draft: ArrayBuilder, other: ArrayBuilder) -> bool:
    """Whether two arrays have the same integers, or the same numbers of one type bit by bit."""
    dtypes = draft.spec.dtype, other.spec.dtype
    kinds = {dtype.kind for dtype in dtypes}
    if draft.spec.length != other.spec.length or not (len({*dtypes}) == 1 or kinds <= {*"iu"}):
        return False
    pieces = zip(_pieces(draft.reader()), _pieces(other.reader()), strict=True)
    if len({*dtypes}) == 1:
        bits = f"u{dtypes[0].itemsize}"
        return all(np.array_equal(one.view(bits), two.view(bits)) for one, two in pieces)
    return all(np.array_equal(one, two) for one, two in pieces)


def sample(drafts: Rows, order: NDArray[np.int64] | None) -> dict[str, NDArray[Any]]:
    """Some rows of drafts, as :func:`rewrite` writes them."""
    offsets, values, ids = sampled(drafts.indptr, _FITTED_CELLS, drafts.data, drafts.indices)
    if order is not None:
        values, ids = _sorted(values, _ranks(order, ids.dtype)[ids], offsets, len(order))
    return {"data": values, "indices": ids, "ends": offsets[1:]}


@kernel
def _count(ids: NDArray[Any], counts: NDArray[np.int64]) -> None:
    """Add to the counts of ids; those that are not genes are reported on reading them."""
    for k in range(len(ids)):
        gene = np.uint64(ids[k])
        if gene < np.uint64(len(counts)):
            counts[gene] += 1


def _ranks(order: NDArray[np.int64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Position of each gene in the new order."""
    rank = np.empty(len(order), dtype)
    rank[order] = np.arange(len(order), dtype=dtype)
    return rank


def aligned(element: str, *, follows: bool) -> tuple[str, ...]:
    """Prefixes of further elements that are aligned with the genes.

    Parameters
    ----------
    element
        The element that contains the matrix.
    follows
        Whether the genes of the AnnData have the order of those of raw/X.
    """
    if element == "raw/X":
        return ("raw/varm/", "var") if follows else ("raw/varm/",)
    return ("varm/", "varp/") if element == "X" else ()


def can_follow(names: Iterable[str], prefixes: Sequence[str]) -> bool:
    """Whether X and layers beside the matrix, among the names, are matrices with these prefixes."""
    beside = {name for name in names if name == "X" or name.startswith(("X/", "layers/"))}
    return beside <= {prefix + part for prefix in prefixes for part in MATRIX_PARTS}


def has_genes(var: pd.DataFrame, raw_var: pa.Table, widths: Sequence[int]) -> bool:
    """Whether var, of matrices of some widths, has the genes of raw/var in the same order."""
    if INDEX not in raw_var.column_names or ORDER in var.columns or {*widths} - {len(var)}:
        return False
    names: list[str] = raw_var.column(INDEX).to_pylist()
    return names == list(var.index)


def permute(name: str, value: Any, order: NDArray[np.int64]) -> Any:
    """Reorder an element that is aligned with the genes."""
    rows = value.iloc[order] if hasattr(value, "iloc") else value[order]
    return rows[:, order] if name.startswith("varp/") else rows


def read(array: ZarrArray, start: int, stop: int) -> NDArray[Any]:
    """Read items of an array that is not part of a store yet."""
    out = np.empty((stop - start, *array.spec.item_shape), array.spec.dtype)
    array.read(np.array([start]), np.array([stop]), out)
    return out


def _pieces(array: ZarrArray) -> Iterator[NDArray[Any]]:
    for start in range(0, array.spec.length, _VALUES_AT_ONCE):
        yield read(array, start, min(start + _VALUES_AT_ONCE, array.spec.length))


def _row_blocks(indptr: ZarrArray) -> Iterator[NDArray[np.int64]]:
    """Offsets of blocks of rows with a bounded number of values; at least one row each."""
    start, n_rows = 0, indptr.spec.length - 1
    while start < n_rows:
        ahead = read(indptr, start, min(start + (1 << 16), n_rows) + 1).astype(np.int64)
        fits = int(np.searchsorted(ahead, ahead[0] + _VALUES_AT_ONCE, side="right")) - 1
        rows = min(max(fits, 1), len(ahead) - 1)
        yield ahead[: rows + 1]
        start += rows
