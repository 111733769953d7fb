"""A single conversion run: writes matrices, tables and elements in order."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.archive.casting import DATA_DTYPES, Caster
from scdl.archive.fields import shared_names
from scdl.archive.gene_names import gene_orders
from scdl.archive.schema import (
    DATA,
    GRAPH_DTYPES,
    OBS,
    Info,
    field_element,
    graph_array,
    names_of,
    obsm_array,
)
from scdl.conversion.elements import write_rest
from scdl.conversion.options import ConvertOptions, Meter, Settings, bounds_of, layers_of
from scdl.conversion.row_order import Shuffle
from scdl.conversion.source_rows import SourceRows
from scdl.conversion.tables import United
from scdl.conversion.var_tables import write_var
from scdl.errors import OptionError, OutputError, ScdlWarning, SourceError
from scdl.sources.base import Source, Tally
from scdl.sources.gene_selection import select_source_genes
from scdl.sources.matrices import Reader, pieces
from storage_backends.base import DTYPES, ArrayWriter
from storage_backends.capabilities import Sparse
from storage_backends.compute.threads import prefetch


class Conversion:
    """A conversion run. The open sources are checked here, before anything is written.

    Parameters
    ----------
    files
        The sources, at least one.
    target
        Path of the archive; temporary files are created next to it.
    settings
        Settings of the conversion.
    keeps_elements
        Whether the archive can store all elements of an AnnData.

    Raises
    ------
    SourceError
        A source lacks a requested element, or the sources are not compatible.
    """

    def __init__(
        self, files: Sequence[Source], target: str, settings: Settings, *, keeps_elements: bool
    ) -> None:
        neighbor_key, options = settings.neighbor_key, settings.options
        taken = {file.matrix_name: file.path for file in reversed(files)}
        if len(taken) > 1:
            named = ", ".join(f"{name} of {path}" for name, path in sorted(taken.items()))
            raise SourceError(
                f"the files have different default matrices: {named}; choose one with matrix="
            )
        outside = dict.fromkeys(name for file in files for name in file.outside)
        if settings.genes is not None:
            files = select_source_genes(files, settings.genes)
        self._files = files
        self._gene_orders = gene_orders(file.var() for file in files) if len(files) > 1 else [None]
        self.differing_var: tuple[str, ...] = ()
        self._writer: ArrayWriter
        only_matrix = options.get("only_matrix", False) or settings.genes is not None
        n_obs = sum(file.n_obs for file in files)
        self._order = Shuffle.order(settings.shuffle, n_obs, target)
        self._cells = self._order.obs([file.cells for file in files], _source_rows(files))
        #: Figures of quality are known when the matrix was read, and are columns of obs.
        self._obs_is_last = any(file.obs_is_last for file in files)
        self.left_out = tuple(zip(*(file.left_out for file in files), strict=True))
        #: Whether all elements of a single source are kept.
        self._whole = len(files) == 1 and keeps_elements and not only_matrix
        # Opened here to detect missing keys before anything is written.
        vectors = names_of(options.get("obsm"), "obsm")
        graphs = () if neighbor_key is None else names_of(neighbor_key, "neighbor_key")
        #: Elements that the user asked for; an archive keeps others only if it can.
        self._asked = {*map(obsm_array, vectors), *(f"obsp/{key}" for key in graphs)}
        keys = vectors or _common_keys(file.kept_vectors for file in files)
        self._obsm = {key: [file.vectors(key) for file in files] for key in keys}
        self._graphs = list(dict.fromkeys(graphs or _common_keys(f.kept_graphs for f in files)))
        self.caster = settings.caster or self._make_caster(options)
        self._bounds = bounds_of(options, target)
        self._rows = SourceRows(files, self._gene_orders, self._order, self.caster, self._bounds)
        layers = layers_of(options.get("layers")) or {}
        self._fields = {n: self._field_rows(n) for n in shared_names([f.fields for f in files])}
        if self._whole:
            self._check_fields(layers)
        carried = {obsm_array(key) for key in self._obsm}
        carried |= {layers.get(name, field_element(name)) for name in self._fields}
        self._asked |= {field_element(name) for name in layers}
        carried |= {f"{kind}/{key}" for key in self._graphs for kind in ("obsp", "graphs")}
        if self._whole:
            names: Iterable[str] = files[0].unread
        else:
            names = dict.fromkeys(name for file in files for name in file.not_carried(carried))
        self.not_carried = (*names, *outside)
        self.changed_columns: tuple[str, ...] = ()

    def _make_caster(self, options: ConvertOptions) -> Caster:
        """Caster to the requested dtype; default: that of the sources if kept, else float32."""
        dtype = options.get("data_dtype")
        source = np.result_type(*(file.matrix.dtype for file in self._files))
        if dtype is None and self._whole and source.kind in "iuf":
            return Caster.keeping(source)
        if dtype is None:
            archives = all(file.kept_dtypes for file in self._files)
            dtype = source if archives and source.name in DATA_DTYPES else np.float32
        return Caster(dtype, options.get("data_dtype_tolerance", 1e-8))

    def _field_rows(self, name: str) -> SourceRows:
        """The rows of a field, in the dtype of the sources."""
        dtype = np.result_type(*(file.fields[name].dtype for file in self._files))
        # Archives do not store booleans and extended floats.
        dtype = {"b": np.dtype(np.uint8)}.get(dtype.kind, dtype).newbyteorder("=")
        caster = Caster.keeping(dtype) if dtype in DTYPES else Caster(np.float64)
        how = self._files, self._gene_orders, self._order, caster, self._bounds
        return SourceRows(*how, field=name)

    def _check_fields(self, layers: Mapping[str, str]) -> None:
        """Raise OptionError if a field would take the place of another element of the source."""
        source = self._files[0]
        for name, matrix in layers.items():
            element = field_element(name)
            is_other = element != matrix and element in source.names_of_rest()
            if is_other or element == source.element:
                raise OptionError(
                    f"{source.path}: the archive keeps {element} as it is, so {matrix} cannot be "
                    f"the field {name!r}; choose another name, or pass only_matrix=True"
                )

    @property
    def work(self) -> int:
        """Number of stored values to process, as the progress counts them."""
        return (1 + self._order.moves) * sum(rows.n_values for rows in self._all_rows)

    @property
    def _all_rows(self) -> list[SourceRows]:
        return [self._rows, *self._fields.values()]

    @property
    def reordered(self) -> tuple[str, ...]:
        """Sources whose genes are reordered to match an earlier source."""
        pairs = zip(self._files, self._gene_orders, strict=True)
        return tuple(file.path for file, order in pairs if order is not None)

    @property
    def tally(self) -> Tally:
        """Statistics of the values processed so far; rounding and counts of the matrix alone."""
        n_sorted, n_summed, *_ = zip(*(rows.tally for rows in self._all_rows), strict=True)
        return self._rows.tally._replace(rows_sorted=sum(n_sorted), duplicates_summed=sum(n_summed))

    def run(self, writer: ArrayWriter, meter: Meter) -> Info:
        """Write everything and commit. May be called only once."""
        self._writer = writer
        parts = (
            (file.var() if order is None else file.var().take(order), file.n_obs, file.label)
            for file, order in zip(self._files, self._gene_orders, strict=True)
        )
        var, left_out = self._order.var(parts, writer.path)
        blocks, self.differing_var = write_var(self._writer, var)
        self.not_carried = (*self.not_carried, *(f"var/{name}" for name in left_out))
        if not self._obs_is_last:
            self._write_obs()
        if self._whole:
            for key in self._graphs:
                self._warn_of_absence(key)
            file, order = self._files[0], self._order
            without = {field_element(name) for name in self._fields}
            lost = write_rest(file, self._writer, self._bounds, self._graphs, order, without)
            self.not_carried = (*lost, *self.not_carried)
        else:
            for key, readers in self._obsm.items():
                self._write_vectors(key, readers)
            for key in self._graphs:
                if self._warn_of_absence(key):
                    self._write_graph(key)
        n_vars = max(block.n_vars for block in blocks)
        shape = sum(file.n_obs for file in self._files), n_vars
        fields = [name for name in self._fields if self._begins_field(name, shape)]
        for name in fields:
            self._fields[name].write_matrix(writer, meter)
        self._rows.write_matrix(writer, meter)
        if self._obs_is_last:
            self._write_obs()
        dropped = dict.fromkeys(text for file in self._files for text in file.dropped)
        self.not_carried = (*self.not_carried, *dropped)
        matrices = tuple(file.matrix_name for file in self._files)
        element = self._files[0].element if self._whole else "X"
        info = Info(blocks, True, matrices, element, tuple(fields))
        # Warn before the commit, since warning filters may turn the warning into an error.
        for rows in self._all_rows:
            rows.caster.warn(self._writer.path)
        self._writer.commit(info.to_attrs())
        return info

    def _write_obs(self) -> None:
        # A table without columns cannot have rows.
        if any(table.schema.names for table in self._cells):
            united = United(self._cells)
            self.changed_columns = united.warn(self._writer.path)
            self._writer.write_table(OBS, self._order.table(united))
        # Otherwise Arrow's allocator keeps the memory of the tables during the whole conversion.
        pa.default_memory_pool().release_unused()

    def _write_vectors(self, key: str, readers: Sequence[Reader]) -> None:
        items = {
            (str(reader.dtype.newbyteorder("=")), reader.item_shape): file.path
            for reader, file in zip(readers, self._files, strict=True)
        }
        if len(items) > 1:
            named = ", ".join(f"{dtype} {shape} in {at}" for (dtype, shape), at in items.items())
            raise SourceError(
                f"obsm/{key} has different dtypes or shapes in the files: {named}; convert them "
                "to one dtype and shape, or leave it out"
            )
        # Archives do not store booleans.
        dtype = readers[0].dtype.newbyteorder("=")
        dtype = np.dtype(np.uint8) if dtype.kind == "b" else dtype
        empty = np.empty((0, *readers[0].item_shape), dtype)
        if not self._begins(obsm_array(key), empty, f"obsm/{key}"):
            return
        values = (
            piece.astype(empty.dtype, copy=False)
            for reader in readers
            for piece in prefetch(pieces(reader, self._bounds.values))
        )
        for vectors in self._order.items(values, empty):
            self._writer.append(obsm_array(key), vectors)

    def _begins(self, array: str, empty: NDArray[Any], element: str) -> bool:
        """Create an array; False if its name is refused, unless the user asked for the element."""
        return self._accepts(partial(self._writer.append, array, empty), element)

    def _begins_field(self, name: str, shape: tuple[int, int]) -> bool:
        """Begin a field; False if the archive stores none, unless the user asked for it."""
        element = field_element(name)
        begin = partial(self._writer.write_sparse, element, Sparse("csr", shape))
        return self._accepts(begin, element)

    def _accepts(self, begin: Callable[[], None], element: str) -> bool:
        try:
            begin()
        except OutputError:
            if element in self._asked:
                raise
            self.not_carried = (*self.not_carried, element)
            return False
        return True

    def _warn_of_absence(self, key: str) -> bool:
        """Whether any file has the graph; warn if none has."""
        if any(file.graph(key) for file in self._files):
            return True
        text = f"no file has obsp/{key}; the archive is written without this graph"
        warnings.warn(text, ScdlWarning, stacklevel=5)
        return False

    def _write_graph(self, key: str) -> None:
        """Write the graphs of all files, with neighbours renumbered for the archive."""
        if sum(file.n_obs for file in self._files) > 1 << 32:
            raise SourceError(f"obsp/{key}: a graph may have at most 2^32 cells")
        empty = np.empty(0, GRAPH_DTYPES[DATA])
        if not self._begins(graph_array(key, DATA), empty, f"obsp/{key}"):
            return
        rows, dtypes = self._rows.graph(key), [*GRAPH_DTYPES.values()]
        csr.write_rows(self._writer, graph_array(key, ""), rows, dtypes)


def _source_rows(files: Sequence[Source]) -> list[NDArray[np.int64]] | None:
    """The row of each cell, counted over what all sources have; None if all cells are chosen."""
    found, first = [], 0
    for file in files:
        if (rows := file.cut.rows) is None:
            return None
        found.append(rows + first)
        first += len(rows) + file.left_out[0]
    return found


def _common_keys(keys: Iterable[Sequence[str]]) -> list[str]:
    """Keys that all lists contain, in the order of the first."""
    first, *others = keys
    return [key for key in first if all(key in other for other in others)]
