"""What a conversion would do: its size and duration, from a sample of rows that is only read."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from scdl.archive import csr
from scdl.archive.csr import SparseRows
from scdl.archive.schema import DATA, GRAPH_DTYPES, INDICES, INDPTR, smallest_unsigned
from scdl.conversion.options import Settings, storage_options
from scdl.conversion.reporting import ConversionReport
from scdl.conversion.run import Conversion
from scdl.conversion.tables import United
from scdl.conversion.trials import seconds_of
from scdl.conversion.var_tables import write_var
from scdl.sources.base import Source, SparseParts, in_memory
from scdl.sources.matrices import Bounds, CsrPart, Reader
from storage_backends import registry

#: Stored values in the sample of a conversion.
SAMPLE_VALUES = 1 << 20
#: Stored values in that of another element.
_ELEMENT_VALUES = 1 << 17
#: Archive in memory that receives tables of genes, and is never committed.
_NOWHERE = "ram:plan"


def plan(
    opening: Callable[[ExitStack], Sequence[Source]],
    path: str,
    settings: Settings,
    *,
    n_values: int = SAMPLE_VALUES,
) -> ConversionReport:
    """The report that a conversion is expected to give, with ``dry_run``; nothing is written.

    Parameters
    ----------
    opening, path, settings
        As for :func:`scdl.conversion.writing.write_archive`.
    n_values
        Number of stored values to read.

    Raises
    ------
    ScdlError
        As the conversion, as far as the sources and a sample of their values tell.
    """
    with ExitStack() as stack:
        started = time.perf_counter()
        files = opening(stack)
        opened = time.perf_counter() - started
        return _Plan(files, path, settings, opened).report(n_values)


class _Sample(NamedTuple):
    """A sample of rows.

    Attributes
    ----------
    rows
        The rows in their final form.
    nnz
        Estimated number of stored values of all rows.
    """

    rows: SparseRows
    nnz: int


class _Plan(Conversion):
    """A conversion of which only a sample of rows is read."""

    def __init__(
        self, files: Sequence[Source], path: str, settings: Settings, opening_seconds: float
    ) -> None:
        self._opening_seconds, self._settings = opening_seconds, settings
        self._path, self._target = path, registry.for_target(path, settings.backend)
        self._opened = files
        self._storage = storage_options(settings.options, self._target)
        keeps_elements = self._target.writer.keeps_elements
        super().__init__(files, path, settings, keeps_elements=keeps_elements)

    def report(self, n_values: int) -> ConversionReport:
        """The expected report."""
        parts = [
            (file.var() if order is None else file.var().take(order), file.n_obs, file.label)
            for file, order in zip(self._files, self._gene_orders, strict=True)
        ]
        var, left_out = self._order.var(parts, self._path)
        with registry.backend("memory").writer.open(_NOWHERE, replace=True) as memory:
            blocks, differing = write_var(memory, var)
        n_vars = [block.n_vars for block in blocks]
        sample = self._sample(n_values)
        n_cells = len(sample.rows.indptr) - 1
        nbytes = self._encoded(sample, max(n_vars))
        elements, tally = self._element_bytes(), self.tally
        seconds = self._seconds(sample.nnz, elements / nbytes if nbytes else 0.0)
        return ConversionReport(
            path=self._path,
            backend=self._target.name,
            n_obs=blocks[-1].stop,
            n_vars=n_vars,
            nnz=sample.nnz,
            dtype=self.caster.dtype.name,
            matrices=[file.matrix_name for file in self._files],
            rows_sorted=tally.rows_sorted,
            duplicates_summed=tally.duplicates_summed,
            reordered=self.reordered,
            differing_var=differing,
            not_carried=(*self.not_carried, *(f"var/{name}" for name in left_out)),
            unmatched=tuple(line for source in self._opened for line in source.unmatched),
            max_rounding=tally.max_rounding,
            nbytes=nbytes + elements + self._table_bytes(),
            seconds=seconds,
            is_counts=tally.is_counts,
            cells_left_out=sum(self.left_out[0]),
            genes_left_out=self.left_out[1],
            fields=tuple(self._fields),
            dry_run=True,
            sampled_cells=n_cells,
        )

    def _sample(self, n_values: int) -> _Sample:
        """Read rows of all sources, in proportion to their values."""
        no_rows = SparseRows(
            np.empty(0, self.caster.dtype), np.empty(0, np.uint8), np.zeros(1, np.int64)
        )
        found, nnz = [no_rows], 0
        for file, order in zip(self._files, self._gene_orders, strict=True):
            share = math.ceil(n_values * file.matrix.size / max(self._rows.n_values, 1))
            stored, first = 0, len(found)
            for n, rows in self._rows.sample(file, order, share):
                stored += n
                # The memory of blocks is used again.
                data, indices, indptr = (part.copy() for part in rows[:3])
                found.append(SparseRows(data, indices, indptr))
            n_cells = sum(len(rows.indptr) - 1 for rows in found[first:])
            kept = sum(len(rows.data) for rows in found[first:])
            if file.matrix.is_counted or not n_cells:
                nnz += file.matrix.size * kept // stored if stored else file.matrix.size
            else:
                nnz += file.n_obs * kept // n_cells
        return _Sample(_joined(found), nnz)

    def _seconds(self, nnz: int, elements: float) -> float:
        """Expected duration; `elements` is the size of those that are kept, over the matrix."""
        how = self._opened, self._path, self._settings, self.caster, nnz
        seconds = seconds_of(*how, only_matrix=self._whole)
        if seconds is None:
            return math.nan
        return self._opening_seconds + seconds * (1 + elements * self._whole)

    def _encoded(self, sample: _Sample, n_vars: int) -> int:
        """Bytes of the whole matrix."""
        rows, n_obs = sample.rows, sum(file.n_obs for file in self._files)
        offsets = smallest_unsigned(sample.nnz)
        lengths = {DATA: sample.nnz, INDICES: sample.nnz, INDPTR: n_obs + 1}
        if not len(rows.data):
            dtypes = self.caster.dtype, smallest_unsigned(n_vars - 1), offsets
            sizes = zip(lengths.values(), dtypes, strict=True)
            return sum(n * dtype.itemsize for n, dtype in sizes)
        found = self._encode(rows._replace(indptr=rows.indptr.astype(offsets)), n_vars)
        held = {DATA: len(rows.data), INDICES: len(rows.data), INDPTR: len(rows.indptr)}
        return sum(found[name] * n // held[name] for name, n in lengths.items())

    def _encode(self, rows: SparseRows, n_vars: int) -> Mapping[str, int]:
        arrays = {DATA: rows.data, INDICES: rows.indices, INDPTR: rows.indptr}
        return self._target.writer.encoded_bytes(arrays, n_vars=n_vars, **self._storage)

    def _table_bytes(self) -> int:
        """Estimated bytes of obs and var."""
        nbytes: int = sum(file.var().nbytes for file in self._files)
        if any(table.schema.names for table in self._cells):
            nbytes += United(self._cells).estimate_bytes()
        return nbytes

    def _element_bytes(self) -> int:
        """Estimated bytes of other elements; tables and entries of uns count nothing."""
        elements: list[Any] = [reader for readers in self._obsm.values() for reader in readers]
        if self._whole:
            (file,) = self._files
            names = [name for name in file.names_of_rest() if not name.startswith("uns/")]
            elements = [in_memory(name, file.element_of_rest(name)) for name in names]
        else:
            graphs = [file.graph(key) for key in self._graphs for file in self._files]
            width = sum(dtype.itemsize for dtype in (GRAPH_DTYPES[DATA], GRAPH_DTYPES[INDICES]))
            elements += [graph.size * width for graph in graphs if graph is not None]
        return sum(self._bytes_of(element) for element in elements)

    def _bytes_of(self, element: Any) -> int:
        if isinstance(element, SparseParts):
            return self._sparse_bytes(element)
        if isinstance(element, Reader):
            return len(element) * math.prod(element.item_shape) * int(element.dtype.itemsize)
        return element if isinstance(element, int) else 0

    def _sparse_bytes(self, element: SparseParts) -> int:
        """Bytes of a sparse element, from a sample of its rows, or columns if it is CSC."""
        sparse, parts, _ = element
        n, width = sparse.shape if sparse.format == "csr" else sparse.shape[::-1]
        nnz = len(parts[DATA])
        half = CsrPart("", parts, (n // 2, n), width)
        block = next(half.blocks(Bounds(values=_ELEMENT_VALUES)), None)
        if block is None or not len(block.data):
            return nnz * sum(parts[name].dtype.itemsize for name in (DATA, INDICES))
        rows = csr.clean(block, width, "")
        found = self._encode(rows._replace(indptr=rows.indptr.astype(np.int32)), width)
        return (found[DATA] + found[INDICES]) * nnz // len(rows.data)


def _joined(parts: Sequence[SparseRows]) -> SparseRows:
    """Rows of several blocks as one."""
    starts = np.cumsum([0, *(len(part.data) for part in parts)])
    indptr = [part.indptr[1:] + start for part, start in zip(parts, starts, strict=False)]
    data, indices = (np.concatenate([getattr(p, name) for p in parts]) for name in (DATA, INDICES))
    return SparseRows(data, indices, np.concatenate([[0], *indptr]))
