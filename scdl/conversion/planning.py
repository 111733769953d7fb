"""What a conversion would do: its size and duration, from a sample of rows that is only read."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.archive.schema import (
    DATA,
    GRAPH_DTYPES,
    INDICES,
    INDPTR,
    field_element,
    field_prefix,
    smallest_unsigned,
)
from scdl.archive.tables import ROWS_AT_ONCE
from scdl.conversion.options import Settings, storage_options
from scdl.conversion.reporting import ConversionReport
from scdl.conversion.run import Conversion
from scdl.conversion.samples import Followers, Sample, sampled
from scdl.conversion.trials import seconds_of
from scdl.conversion.var_tables import write_var
from scdl.sources.anndata_object import storable
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
        #: Elements that are sampled with the matrix.
        self._sampled, fields = {*map(field_element, self._fields)}, self._fields
        if self._whole:
            with_followers = Followers(self._files[0], self._sampled)
            self._files = self._opened = [with_followers]
            self._sampled |= {*with_followers.elements}
            fields = {name: self._field_rows(name) for name in with_followers.fields}
        self._beside = {field_prefix(name): rows for name, rows in fields.items()}

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
        sample = sampled({"": self._rows, **self._beside}, n_values, self._bounds)
        n_cells = len(sample.rows[""].indptr) - 1
        nbytes = self._encoded(sample, max(n_vars))
        elements, tally = self._element_bytes(), self.tally
        seconds = self._seconds(sample.nnz[""], elements / nbytes if nbytes else 0.0)
        return ConversionReport(
            path=self._path,
            backend=self._target.name,
            n_obs=blocks[-1].stop,
            n_vars=n_vars,
            nnz=sample.nnz[""],
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

    def _seconds(self, nnz: int, elements: float) -> float:
        """Expected duration; `elements` is the size of those that are kept, over the matrix."""
        how = self._opened, self._path, self._settings, self.caster, nnz
        seconds = seconds_of(*how, only_matrix=self._whole)
        if seconds is None:
            return math.nan
        return self._opening_seconds + seconds * (1 + elements * self._whole)

    def _encoded(self, sample: Sample, n_vars: int) -> int:
        """Bytes of the matrix, and of those beside it, as a whole."""
        n_obs, nbytes = sum(file.n_obs for file in self._files), 0
        lengths, found = dict[str, int](), dict[str, NDArray[Any]]()
        for prefix, rows in sample.rows.items():
            nnz = sample.nnz[prefix]
            offsets, n = smallest_unsigned(nnz), {DATA: nnz, INDICES: nnz, INDPTR: n_obs + 1}
            rows = rows._replace(indptr=rows.indptr.astype(offsets))
            arrays = {DATA: rows.data, INDICES: rows.indices, INDPTR: rows.indptr}
            if not len(rows.data):
                nbytes += sum(n[part] * values.dtype.itemsize for part, values in arrays.items())
                continue
            lengths |= {prefix + part: n[part] for part in arrays}
            found |= {prefix + part: values for part, values in arrays.items()}
        if not found:
            return nbytes
        sizes = self._encode(found, n_vars)
        return nbytes + sum(sizes[name] * n // len(found[name]) for name, n in lengths.items())

    def _encode(self, arrays: Mapping[str, NDArray[Any]], n_vars: int) -> Mapping[str, int]:
        return self._target.writer.encoded_bytes(arrays, n_vars=n_vars, **self._storage)

    def _table_bytes(self) -> int:
        """Estimated bytes of obs and var."""
        nbytes = sum(map(compressed_bytes, (file.var() for file in self._files)))
        for table in self._cells:
            if n := min(table.num_rows, ROWS_AT_ONCE) * bool(table.schema.names):
                rows = pa.Table.from_batches([table.read(0, n)])
                nbytes += compressed_bytes(rows) * table.num_rows // n
        return nbytes

    def _element_bytes(self) -> int:
        """Estimated bytes of other elements; entries of uns count nothing."""
        elements: list[Any] = [reader for readers in self._obsm.values() for reader in readers]
        if self._whole:
            (file,) = self._files
            names = [name for name in file.names_of_rest() if name not in self._sampled]
            names = [name for name in names if not name.startswith("uns/")]
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
        if hasattr(element, "columns"):
            return compressed_bytes(storable("", element)[0].table)
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
        arrays = {DATA: rows.data, INDICES: rows.indices, INDPTR: rows.indptr.astype(np.int32)}
        found = self._encode(arrays, width)
        return (found[DATA] + found[INDICES]) * nnz // len(rows.data)


def compressed_bytes(table: pa.Table) -> int:
    """Bytes of a table as compressed columns, as all backends store it."""
    sink, options = pa.MockOutputStream(), pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return int(sink.size())
