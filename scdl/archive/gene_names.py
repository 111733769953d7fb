"""Comparison of gene names between archives."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scdl.errors import GeneError
from storage_backends.base import INDEX

if TYPE_CHECKING:
    import pyarrow as pa


def strings(ids: pa.Array) -> pa.Array:
    """Convert gene ids of any type to strings."""
    import pyarrow as pa

    if pa.types.is_dictionary(ids.type):
        ids = ids.dictionary_decode()
    return ids.cast(pa.large_string())


def names_hash(names: pa.ChunkedArray) -> str:
    """Hash of gene names, which depends on their order."""
    import pyarrow as pa

    return table_hash(pa.table({"": strings(names.combine_chunks())}))


def space_key(table: pa.Table) -> str:
    """A key that is equal for var tables of the same gene space only.

    It is a hash of the gene names; for a table without names, a hash of the whole table.
    """
    return names_hash(table[INDEX]) if INDEX in table.schema.names else table_hash(table)


def table_hash(table: pa.Table) -> str:
    """Hash of the names, types and values of the columns of a table."""
    import pyarrow as pa

    table = table.replace_schema_metadata(None).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return hashlib.sha256(sink.getvalue()).hexdigest()[:32]


def check_one_space(spaces: NDArray[np.int64], cells: str) -> None:
    """Raise GeneError if cells or feature blocks have different gene spaces.

    Parameters
    ----------
    spaces
        Gene space of each cell or block.
    cells
        Description of the cells or blocks, with which the message starts.
    """
    if len(spaces) and int(spaces.min()) != int(spaces.max()):
        raise GeneError(
            f"{cells} have different genes, in {len(np.unique(spaces))} gene spaces, so a column "
            "would stand for several genes; pass genes='union', 'intersection' or a list to map "
            "them to one gene space, or genes='own' to keep the column ids of each gene space"
        )


def gene_orders(tables: Iterable[pa.Table]) -> list[NDArray[np.int64] | None]:
    """Permutations into the gene order of the first table with the same set of genes.

    Parameters
    ----------
    tables
        var tables.

    Returns
    -------
    list
        For each table, the positions of its genes in that order. None where nothing changes: no
        earlier table has the same genes, the order is the same, or names are missing or repeated.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    known: dict[str, pa.Array] = {}
    orders: list[NDArray[np.int64] | None] = []
    for table in tables:
        orders.append(None)
        if INDEX not in table.schema.names:
            continue
        names = strings(table[INDEX].combine_chunks())
        if names.null_count or len(pc.unique(names)) < len(names):
            continue
        in_order = pa.chunked_array([names.take(pc.sort_indices(names))])
        first = known.setdefault(names_hash(in_order), names)
        if not names.equals(first):
            orders[-1] = pc.index_in(first, names).to_numpy().astype(np.int64)
    return orders


def order_onto(
    table: pa.Table, known: pa.Table, where: str, advice: str
) -> NDArray[np.int64] | None:
    """Positions of the genes of a var table in the order of another one.

    Returns
    -------
    ndarray of int64, or None
        As for :func:`gene_orders`.

    Raises
    ------
    GeneError
        The genes differ; the message starts with `where` and ends with `advice`.
    """
    if space_key(table) == space_key(known):
        return None
    if INDEX not in known.schema.names and table.num_rows == known.num_rows:
        # Without names the genes are the same if their columns are.
        names = known.schema.names
        shared = [name for name in names if name in table.schema.names]
        if shared == names and table_hash(table.select(names)) == table_hash(known):
            return None
    order = gene_orders([known, table])[1]
    if order is not None:
        return order
    if INDEX not in table.schema.names or INDEX not in known.schema.names:
        found = f"{table.num_rows:,} genes, expected {known.num_rows:,} of the same names"
    else:
        own, others = (strings(t[INDEX].combine_chunks()).to_pylist() for t in (table, known))
        lacks, more = _some(others, own), _some(own, others)
        parts = [lacks and f"it lacks {lacks}", more and f"it has in addition {more}"]
        found = "; ".join(filter(None, parts))
        found = found or "names of genes are repeated, in another order"
    raise GeneError(f"{where}: its genes are not those of the archive: {found}; {advice}")


def _some(names: list[str], but: list[str]) -> str:
    """How many names are not among others, and the first of them."""
    known = set(but)
    rest = [name for name in names if name not in known]
    shown = ", ".join(map(str, rest[:3])) + (" and others" if len(rest) > 3 else "")
    return f"{len(rest):,} ({shown})" if rest else ""


def number_keys(keys: Iterable[Any]) -> NDArray[np.int64]:
    """Number distinct keys from 0 in order of first occurrence."""
    known: dict[Any, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], np.int64)
