"""Tables of genes of a new archive, for each feature block or for shuffled cells."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeAlias

import pyarrow as pa

from scdl.archive.gene_names import space_key
from scdl.archive.schema import Block, var_table
from scdl.errors import GeneError
from storage_backends.base import ArrayWriter
from storage_backends.compute import arrow

#: The var table, number of cells and label of a part of the cells.
VarPart: TypeAlias = tuple[pa.Table, int, str | None]


def write_var(
    writer: ArrayWriter, parts: Iterable[VarPart]
) -> tuple[tuple[Block, ...], tuple[str, ...]]:
    """Write var tables, one for every run of parts with the same table.

    Returns
    -------
    blocks, differing
        A block for each table; and the columns of var that blocks of one gene space do not share,
        in order of first occurrence.
    """
    blocks: list[Block] = []
    spaces = _Spaces()
    previous: pa.Table | None = None
    stop = 0
    for table, n_obs, label in parts:
        stop += n_obs
        if previous is not None and _is_same(table, previous):
            blocks[-1] = replace(blocks[-1], stop=stop)
            continue
        writer.write_table(var_table(len(blocks)), table)
        blocks.append(Block(stop, table.num_rows, label, spaces.add(table)))
        previous = table
    return tuple(blocks), tuple(spaces.differing)


def shared_var(parts: Iterable[VarPart], where: str) -> tuple[list[VarPart], list[str]]:
    """One part for cells of all parts in any order, with the columns that all parts share.

    Parts without cells are left out if others have cells.

    Returns
    -------
    parts, left_out
        The only part, and the names of columns of var that are not in all parts with equal values.

    Raises
    ------
    GeneError
        The parts have different genes; the message starts with `where`.
    """
    first: VarPart | None = None
    key = ""
    names: dict[str, None] = {}
    for part in parts:
        if first is None or not first[1]:
            first, key, names = part, space_key(part[0]), dict.fromkeys(part[0].schema.names)
        elif part[1]:
            table, n_obs, label = first
            if space_key(part[0]) != key:
                raise GeneError(
                    f"{where}: the sources have different genes, and the cells of a shuffled "
                    "archive need one gene space; pass genes='union' with missing='zero', "
                    "genes='intersection' or a list of genes"
                )
            names |= dict.fromkeys(part[0].schema.names)
            label = label if label == part[2] else None
            first = arrow.shared_columns([table, part[0]]), n_obs + part[1], label
    assert first is not None, "there is at least one part"
    return [first], [name for name in names if name not in first[0].schema.names]


def _is_same(table: pa.Table, other: pa.Table) -> bool:
    """Whether two tables have the same columns in the same order and the same index name."""
    return bool(table.schema.equals(other.schema)) and all(
        arrow.equal_columns(table[name], other[name]) for name in table.schema.names
    )


class _Spaces:
    """Gene spaces of var tables, and the columns in which tables of one gene space differ."""

    def __init__(self) -> None:
        self._shared: dict[str, tuple[int, pa.Table]] = {}
        #: Used as an ordered set.
        self.differing: dict[str, None] = {}

    def add(self, table: pa.Table) -> int:
        """The number of a table's gene space."""
        key = space_key(table)
        number, known = self._shared.get(key, (len(self._shared), table))
        shared = arrow.shared_columns([known, table])
        self._shared[key] = number, shared
        kept = {*shared.schema.names}
        names = [*known.schema.names, *table.schema.names]
        self.differing |= dict.fromkeys(name for name in names if name not in kept)
        return number
