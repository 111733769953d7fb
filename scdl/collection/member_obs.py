"""The tables of cells of the members of a collection, each on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pyarrow as pa

from scdl.archive.schema import OBS
from scdl.archive.tables import EncodedTable, NoTable, StoredTable, TableSource
from scdl.collection.members import Members
from storage_backends.capabilities import TableStore
from storage_backends.compute.arrow import Coder
from storage_backends.compute.steps import Steps
from storage_backends.compute.threads import FILES_TOGETHER, for_each_file
from storage_backends.errors import ArrayNotFoundError

#: Maximum number of cells of members of which columns are read together.
_CELLS_TOGETHER = 1 << 20


def obs_tables(members: Members, columns: Sequence[str] | None = None) -> list[TableSource]:
    """The table of cells of each member, or some columns of it, read from disk.

    Raises
    ------
    OptionError
        A member has a column named like the label.
    """
    stores = members.stores()
    # Members are looked up for each read, so that they need not stay open.
    tables: list[TableSource] = [
        StoredTable(partial(stores.__getitem__, i), OBS, record.n_obs, columns=columns)
        if record.has_obs
        else NoTable(record.n_obs)
        for i, record in enumerate(members.records)
    ]
    return _labelled(members, tables, columns)


def obs_columns(members: Members, names: Sequence[str]) -> list[TableSource]:
    """Columns of the table of cells of each member, in memory; each member is opened once.

    Raises
    ------
    OptionError
        A member has a column named like the label, which is among `names`.
    """
    tables: list[TableSource] = [NoTable(record.n_obs) for record in members.records]
    labels: dict[bytes, Coder] = {}

    def load(number: int) -> Steps[None]:
        reader = members.tables_of(number)
        yield
        table = yield from _present(reader, names)
        yield
        if table is not None:
            tables[number] = EncodedTable(table, labels)

    having = [i for i, record in enumerate(members.records) if record.has_obs]
    for_each_file(load, having, _together(members))
    return _labelled(members, tables, names)


def obs_table(
    members: Members, number: int, chosen: Callable[[Sequence[str]], list[str]]
) -> pa.Table:
    """Columns of the table of cells of a member that are chosen among those that exist."""
    record, origins = members.records[number], members.origins
    table = pa.table({"": pa.nulls(record.n_obs)})
    if record.has_obs:
        reader = members.tables_of(number)
        if columns := chosen(reader.table_schema(OBS).names):
            table = reader.read_table(OBS, columns)
    if origins is not None and chosen([origins.column]):
        source = origins.labelled(NoTable(record.n_obs), number, record.path)
        table = table.append_column(
            source.schema.field(0), source.column(origins.column, 0, record.n_obs)
        )
    return table


def _labelled(
    members: Members, tables: list[TableSource], columns: Sequence[str] | None
) -> list[TableSource]:
    origins = members.origins
    if origins is None or (columns is not None and origins.column not in columns):
        return tables
    numbered = zip(range(len(members)), tables, members.records, strict=True)
    return [origins.labelled(table, i, record.path) for i, table, record in numbered]


def _together(members: Members) -> int:
    """Number of members of which columns are read together; few if they have many cells."""
    largest = max((record.n_obs for record in members.records), default=0)
    return max(1, min(FILES_TOGETHER, _CELLS_TOGETHER // max(largest, 1)))


def _present(reader: TableStore, names: Sequence[str]) -> Steps[pa.Table | None]:
    """Those columns of obs that exist; None if none does."""
    try:
        return (yield from reader.reading(OBS, names))
    except ArrayNotFoundError:
        stored = reader.table_schema(OBS).names
        present = [name for name in names if name in stored]
        return reader.read_table(OBS, present) if present else None
