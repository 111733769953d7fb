"""Choosing cells by their names, their rows, a mask or a condition."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scdl.archive.csr import Rows, positions, spans
from scdl.archive.filters import Filter
from scdl.archive.gene_names import strings
from scdl.archive.gene_space import read_list
from scdl.archive.schema import INDEX
from scdl.archive.tables import ROWS_AT_ONCE, TableSource
from scdl.errors import (
    CellListNotFoundError,
    CellNotFoundError,
    FeatureNotFoundError,
    OptionError,
    RowIndexError,
)
from scdl.sources.base import Source
from scdl.sources.chosen_tables import taken, unknown
from scdl.sources.quality import Figures
from storage_backends.compute import arrow
from storage_backends.paths import path_of

_Positions: TypeAlias = NDArray[np.int64]
#: Cells: a mask, row numbers, names, or the path of a file of names.
Cells: TypeAlias = Rows | Sequence[str] | str | os.PathLike[str]
#: Names that are compared at once.
_MANY_ROWS = 16 * ROWS_AT_ONCE


def chosen_rows(sources: Sequence[Source], cells: Cells) -> list[_Positions]:
    """The chosen rows of each source, ascending.

    Parameters
    ----------
    cells
        A mask or row numbers, which count the cells of all sources; names; or the path of a file
        with one name per line.

    Raises
    ------
    CellNotFoundError, CellListNotFoundError, RowIndexError
        Cells do not exist, row numbers repeat, or a mask has the wrong length.
    """
    if isinstance(cells, str | os.PathLike):
        return _rows_named(sources, _read_names(path_of(cells)))
    if isinstance(cells, slice):
        values: Any = cells
    else:
        values = np.asarray([*cells] if isinstance(cells, set | frozenset) else cells)
        if values.dtype.kind in "OUT" and values.size:
            if all(isinstance(one, str) for one in values.flat):
                return _rows_named(sources, values.tolist())
            # Masks of pandas are objects if they may have missing values.
            is_mask = all(isinstance(one, bool | np.bool_) for one in values.flat)
            values = values.astype(bool) if is_mask else values
    stops = [*accumulate((source.n_obs for source in sources), initial=0)]
    rows = np.sort(positions(values, stops[-1]))
    if (repeated := rows[1:][rows[1:] == rows[:-1]]).size:
        raise RowIndexError(f"cells= has row {repeated[0]} more than once; give each row once")
    edges = pairwise(np.searchsorted(rows, stops).tolist())
    return [rows[slice(*edge)] - stop for edge, stop in zip(edges, stops, strict=False)]


def _rows_named(sources: Sequence[Source], names: Sequence[str]) -> list[_Positions]:
    wanted = pc.unique(pa.array([*names], pa.large_string()))
    found = np.zeros(len(wanted), bool)
    rows = []
    for source in sources:
        own = [np.empty(0, np.int64)]
        if INDEX in source.obs.schema.names:
            for start, stop in spans(source.n_obs, _MANY_ROWS):
                cells = strings(source.obs.column(INDEX, start, stop))
                at = pc.index_in(cells, wanted, skip_nulls=True)
                found[arrow.to_numpy(at.drop_null())] = True
                own.append(np.flatnonzero(at.is_valid().to_numpy(False)) + start)
        rows.append(np.concatenate(own))
    if not found.all():
        absent = wanted.filter(arrow.numbers(~found))
        some = ", ".join(repr(name) for name in absent[:3].to_pylist())
        raise CellNotFoundError(
            f"{', '.join(source.path for source in sources[:3])}: {len(absent):,} of "
            f"{len(wanted):,} cells do not exist, such as {some}; correct cells="
        )
    return rows


def _read_names(path: str) -> list[str]:
    try:
        return read_list(path)
    except (FileNotFoundError, IsADirectoryError):
        raise CellListNotFoundError(
            f"{path}: this file of cell names does not exist; pass the path of a text file with "
            "one name per line, or a list"
        ) from None
    except UnicodeDecodeError as error:
        raise OptionError(
            f"{path}: expected a UTF-8 text file with one cell name per line ({error})"
        ) from error


def matching(
    condition: Filter,
    sources: Sequence[Source],
    rows: Sequence[_Positions | None],
    figures: Sequence[Figures | None],
) -> list[_Positions]:
    """Positions, among `rows` of each source, of the cells for which a condition is true."""
    absent, present = set[str](), set[str]()
    found = []
    for source, own, values in zip(sources, rows, figures, strict=True):
        table = source.obs if own is None else taken(source.obs, own)
        numbers = {} if values is None else values.values
        names = [*dict.fromkeys([*table.schema.names, *numbers])]
        present.update(names)
        found.append(_matching_rows(condition, table, numbers, condition.columns(names), absent))
    if missing := sorted(absent - present):
        raise FeatureNotFoundError(
            f"{', '.join(source.path for source in sources[:3])}: where names the column "
            f"{missing[0]!r}, which obs lacks; {unknown(missing[0], sorted(present))}"
        )
    return found


def _matching_rows(
    condition: Filter,
    table: TableSource,
    numbers: Mapping[str, NDArray[Any]],
    names: Sequence[str],
    absent: set[str],
) -> _Positions:
    found = [np.empty(0, np.int64)]
    for start, stop in spans(table.num_rows, ROWS_AT_ONCE):
        columns = {
            name: arrow.numbers(numbers[name][start:stop])
            if name in numbers
            else table.column(name, start, stop)
            for name in names
        }
        # Without any column a table would have no rows.
        batch = pa.table(columns or {"": pa.nulls(stop - start)})
        found.append(condition.positions(batch, absent) + start)
    return np.concatenate(found)
