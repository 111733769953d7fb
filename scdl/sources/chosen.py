"""Sources of which only some cells, genes and columns are converted, for all formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scdl.archive.schema import DATA, OBS
from scdl.archive.tables import TableInMemory, TableSource, row_names
from scdl.errors import SourceError
from scdl.sources.base import Source, SparseParts, axes_of, in_memory, matrix_of
from scdl.sources.chosen_tables import Renamed, Trimmed, kept_columns, taken
from scdl.sources.cuts import ChosenItems, Cut, Mapped, cut_matrix, places
from scdl.sources.matrices import Matrix, Reader
from scdl.sources.quality import Counted, Figures
from scdl.sources.wrapped import Wrapped
from storage_backends.compute.caching import cached_property

_Positions = NDArray[np.int64]


class Chosen(Wrapped):
    """Some cells, genes and columns of a source, with everything that belongs to them.

    The result is that of a copy of a view of an AnnData: elements are cut along the cells, and
    along the genes of the matrix; neighbours in graphs are renumbered; categories that do not occur
    are left out, with their colours in uns. Elements of other genes (raw beside X) keep all genes.

    Parameters
    ----------
    source
        The source.
    cut
        The cells and genes.
    obs_columns, var_columns
        Name in the source of each column to have; None: all columns. Those that the source lacks
        are left out.
    figures
        Receives the quality of the cells when the matrix is read; None: nobody needs it.
    """

    obs: TableSource

    def __init__(
        self,
        source: Source,
        cut: Cut,
        obs_columns: Mapping[str, str] | None = None,
        var_columns: Mapping[str, str] | None = None,
        figures: Figures | None = None,
    ) -> None:
        super().__init__(source)
        self.cut = cut
        self._var_columns = var_columns
        matrix = cut_matrix(source.matrix, cut.rows, None)
        matrix = matrix if figures is None else Counted(matrix, figures)
        self.matrix = cut_matrix(matrix, None, cut.genes)
        self.fields = {name: cut_matrix(field, *cut) for name, field in source.fields.items()}
        #: Rows of the archive among which neighbours are, and those that are kept.
        self.neighbors = cut.rows
        self._is_view = cut.rows is not None or cut.genes is not None
        table = source.obs if cut.rows is None else taken(source.obs, cut.rows)
        #: obs as in a view, before columns are chosen.
        self._cells: TableSource = Trimmed(table) if self._is_view else table
        self._obs_columns = kept_columns(table.schema, obs_columns)
        self.obs = self._cells if obs_columns is None else Renamed(self._cells, self._obs_columns)
        rows, genes = cut
        self.left_out = (
            0 if rows is None else source.n_obs - len(rows),
            0 if genes is None else source.n_vars - len(genes),
        )

    # -- tables ------------------------------------------------------------------------------

    @property
    def n_vars(self) -> int:
        return self._source.n_vars if self.cut.genes is None else len(self.cut.genes)

    def var(self) -> pa.Table:
        return self._var

    @cached_property
    def _genes(self) -> TableSource:
        """Var as in a view, before columns are chosen."""
        table = TableInMemory(self._source.var())
        if self.cut.genes is not None:
            return Trimmed(taken(table, self.cut.genes))
        return Trimmed(table) if self._is_view and self.genes == "var" else table

    @cached_property
    def _var(self) -> pa.Table:
        table = self._genes
        if self._var_columns is not None:
            table = Renamed(table, kept_columns(table.schema, self._var_columns))
        return pa.Table.from_batches([table.read(0, table.num_rows)])

    @property
    def unread(self) -> Sequence[str]:
        return [*self._source.unread, *self._dropped()]

    def not_carried(self, carried: set[str]) -> list[str]:
        return [*self._source.not_carried(carried), *self._dropped()]

    def _dropped(self) -> list[str]:
        """Names of the columns that are not kept."""
        found = _dropped(OBS, self._cells.schema, self._obs_columns)
        if self._var_columns is not None:
            schema = self._genes.schema
            found += _dropped(self.genes, schema, kept_columns(schema, self._var_columns))
        return found

    # -- elements ----------------------------------------------------------------------------

    @property
    def kept_dtypes(self) -> Mapping[str, np.dtype[Any]]:
        kept = self._source.kept_dtypes
        # Fewer genes may need a smaller type of column ids.
        return kept if self.cut.genes is None else {k: v for k, v in kept.items() if k == DATA}

    def graph(self, key: str) -> Matrix | None:
        graph = self._source.graph(key)
        if graph is None or self.cut.rows is None or self.neighbors is None:
            return graph
        rows = cut_matrix(graph, self.cut.rows, None)
        return Mapped(rows, places(self.neighbors, graph.shape[1]), len(self.neighbors))

    def vectors(self, key: str) -> Reader:
        vectors = self._source.vectors(key)
        return vectors if self.cut.rows is None else ChosenItems(vectors, self.cut.rows)

    def element_of_rest(self, name: str) -> Any:
        element = in_memory(name, self._source.element_of_rest(name))
        if name.partition("/")[0] == "uns":
            return self._uns(name, element)
        axes = axes_of(name) or ()
        cuts = [self._chosen_along(axis) for axis in axes]
        if hasattr(element, "columns"):
            return self._frame(name, element, axes)
        if all(positions is None for positions in cuts):
            return element
        self._check(name, element, axes)
        rows, columns = (*cuts, None)[:2]
        if isinstance(element, SparseParts):
            element = matrix_of(f"{self.path}: {name}", element)
        if isinstance(element, Matrix):
            return cut_matrix(element, rows, columns)
        if isinstance(element, Reader):
            return ChosenItems(element, rows, columns)
        return _cut_object(element, rows, columns)

    def _chosen_along(self, axis: str) -> _Positions | None:
        """The chosen cells or genes along an axis; None: all."""
        if axis == OBS:
            return self.cut.rows
        return self.cut.genes if axis == self.genes else None

    def _check(self, name: str, element: Any, axes: Sequence[str]) -> None:
        """Raise SourceError for an element that does not fit the cells and genes of the source."""
        lengths = self._lengths
        if isinstance(element, SparseParts):
            shape: tuple[int, ...] = element.sparse.shape
        elif isinstance(element, Reader):
            shape = len(element), *element.item_shape
        else:
            shape = tuple(getattr(element, "shape", None) or (len(element),))
        for axis, found in zip(axes, shape, strict=False):
            if axis in lengths and lengths[axis] != found:
                raise SourceError(
                    f"{self.path}: {name} has shape {shape}, expected {lengths[axis]} by {axis}"
                )

    @cached_property
    def _lengths(self) -> Mapping[str, int]:
        """Number of cells, and of genes of the matrix, of the source."""
        return {OBS: self._source.n_obs, self.genes: self._source.n_vars}

    def _frame(self, name: str, frame: Any, axes: Sequence[str]) -> Any:
        """A table, which in obsm gets the names that cells have in the archive."""
        self._check(name, frame, axes)
        rows = self._chosen_along(axes[0]) if axes else None
        frame = frame if rows is None else frame.iloc[rows]
        if self._is_view and not name.startswith("raw/"):
            frame = _trimmed(frame)
        if axes != (OBS,):
            return frame
        # Other names than those of the cells are an error when the table is written.
        is_named = list(frame.index) == row_names(self._cells)
        return frame.set_axis(row_names(self.obs), axis=0) if is_named else frame

    def _uns(self, name: str, element: Any) -> Any:
        """An entry of uns, or all of it, as archives have it."""
        if name != "uns" or not isinstance(element, Mapping):
            return self._colours(name, element)
        kept = {}
        for key, value in element.items():
            # Colours that do not belong to the categories are left out.
            with suppress(SourceError):
                kept[key] = self._colours(f"uns/{key}", value)
        return kept

    def _colours(self, name: str, colours: Any) -> Any:
        """An entry of uns; colours of categories are those of the categories that occur."""
        column = name.removeprefix("uns/").removesuffix("_colors")
        if not self._is_view or not name.endswith("_colors"):
            return colours
        known = (_used(self._cells), self._used_in_var)
        for used in (table[column] for table in known if column in table):
            colours = np.array(colours)
            if not colours.ndim:
                colours = colours[None]
                continue
            if len(colours) != len(used):
                raise SourceError(
                    f"{self.path}: {name} has {len(colours)} colours for {len(used)} categories"
                )
            colours = colours[used]
        return colours

    @cached_property
    def _used_in_var(self) -> Mapping[str, NDArray[np.bool_]]:
        """Which categories occur in the columns of var, even if raw is converted."""
        if self.genes == "var" or "var" not in self.names_of_rest():
            return _used(self._genes)
        frame: Any = self._source.element_of_rest("var")
        categories = {name: column.cat for name, column in frame.items() if hasattr(column, "cat")}
        return {
            name: one.categories.isin(one.remove_unused_categories().cat.categories)
            for name, one in categories.items()
        }


def _used(table: TableSource) -> Mapping[str, NDArray[np.bool_]]:
    """Which categories occur in the columns of a table, if they are known."""
    return table.used if isinstance(table, Trimmed) else {}


def _dropped(table: str, schema: pa.Schema, kept: Mapping[str, str]) -> list[str]:
    """Names of columns that are not kept."""
    return [f"{table}/{name}" for name in schema.names if name not in {*kept.values()}]


def _cut_object(element: Any, rows: _Positions | None, columns: _Positions | None) -> Any:
    """Some rows and columns of an object in memory."""
    if rows is not None:
        element = element.iloc[rows] if hasattr(element, "iloc") else element[rows]
    return element if columns is None else element[:, columns]


def _trimmed(frame: Any) -> Any:
    """A table without the categories that do not occur."""
    frame = frame.copy()
    for name, column in frame.items():
        if hasattr(column, "cat"):
            frame[name] = column.cat.remove_unused_categories()
    return frame
