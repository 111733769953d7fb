"""A common gene space for feature blocks with different genes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scdl.archive.schema import INDEX
from scdl.errors import GeneError, GeneListNotFoundError
from storage_backends.compute.caching import cached_property
from storage_backends.paths import path_of

if TYPE_CHECKING:
    import pyarrow as pa

#: ``"union"``, ``"intersection"``, gene ids, or the path of a file with one id per line. Readers
#: also accept ``"own"``: column ids refer to the gene space of each cell.
Genes = str | os.PathLike[str] | Sequence[str]
#: Value of `genes` that leaves column ids as they are stored.
OWN = "own"
Missing = Literal["error", "zero", "mask"]
Duplicates = Literal["error", "sum", "first"]


class BlockGenes(NamedTuple):
    """The genes of a feature block.

    Attributes
    ----------
    where
        Name of the block in messages.
    ids
        Id of each gene; null where a gene has none.
    """

    where: str
    ids: pa.Array


@dataclass(frozen=True, eq=False)
class GeneSpace:
    """A vocabulary of genes, and the positions of the genes of feature blocks in it.

    Blocks with the same genes share a lookup table.

    Parameters
    ----------
    names
        Ids of the genes, as strings.
    genes, bounds
        Concatenated lookup tables: position of each gene of a block in the vocabulary, int32, -1 if
        it is not included; and the offsets of the tables, int64, with the end of the last.
    table_of
        Index of the table of each block, int64.
    in_order
        For each table, whether positions are strictly increasing, so that sorted genes stay sorted.
    present
        Boolean array, tables x genes: which genes of the vocabulary each table contains.
    """

    names: pa.Array
    genes: NDArray[np.int32]
    bounds: NDArray[np.int64]
    table_of: NDArray[np.int64]
    in_order: NDArray[np.bool_]
    present: NDArray[np.bool_]

    @classmethod
    def of(
        cls, names: pa.Array, tables: Sequence[NDArray[np.int32]], table_of: Sequence[int]
    ) -> GeneSpace:
        """Create a gene space from a vocabulary and its lookup tables."""
        present = np.zeros((len(tables), len(names)), np.bool_)
        included = [table[table >= 0] for table in tables]
        for places, row in zip(included, present, strict=True):
            row[places] = True
        return cls(
            names,
            np.concatenate(tables),
            np.cumsum([0, *map(len, tables)]),
            np.asarray(table_of, np.int64),
            np.array([bool((places[1:] > places[:-1]).all()) for places in included]),
            present,
        )

    @property
    def tables(self) -> list[NDArray[np.int32]]:
        """The lookup tables as separate arrays."""
        return np.split(self.genes, self.bounds[1:-1])

    @cached_property
    def most_repeats(self) -> int:
        """Largest number of genes of one block that map to the same gene of the vocabulary."""
        counts = [np.bincount(table[table >= 0]).max(initial=0) for table in self.tables]
        return int(max(counts))

    def then(self, selection: GeneSpace) -> GeneSpace:
        """Compose with a selection of these genes, for the same blocks."""
        (chosen,) = selection.tables
        tables = []
        for table in self.tables:
            places = chosen[table]
            places[table < 0] = -1
            tables.append(places)
        return GeneSpace.of(selection.names, tables, self.table_of.tolist())


class Vocabulary:
    """The table of genes of a vocabulary, with only their names."""

    def __init__(self, names: pa.Array) -> None:
        self.path = "the vocabulary"
        self._names = names

    def table_schema(self, name: str, /) -> pa.Schema:
        """Names and types of the columns."""
        return self.read_table(name).schema

    def read_table(self, name: str, /, columns: Sequence[str] | None = None) -> pa.Table:
        """The table."""
        import pyarrow as pa

        return pa.table({INDEX: self._names})


def is_own(genes: Any) -> bool:
    """Whether `genes` is ``"own"``."""
    return isinstance(genes, str) and genes == OWN


def gene_space(
    genes: Genes,
    blocks: Sequence[BlockGenes],
    table_of: Sequence[int],
    missing: Missing,
    duplicates: Duplicates,
) -> GeneSpace:
    """Create the gene space of a vocabulary for feature blocks.

    Parameters
    ----------
    genes
        As for :meth:`scdl.SingleCellDataset.select_genes`.
    blocks
        One block for each distinct set of genes.
    table_of
        For every block of the archives, the index of its set of genes in `blocks`.
    missing, duplicates
        Policies, as for :meth:`scdl.SingleCellDataset.select_genes`.

    Raises
    ------
    GeneError, GeneListNotFoundError
        As for :meth:`scdl.SingleCellDataset.select_genes`.
    """
    _check_choice("missing", missing, Missing)
    _check_choice("duplicates", duplicates, Duplicates)
    names = _vocabulary(genes, blocks)
    space = GeneSpace.of(names, [_table(block, names, duplicates) for block in blocks], table_of)
    if not space.present.any():
        ids = blocks[0].ids
        example = f"genes such as {ids[0].as_py()!r}" if len(ids) else "no genes"
        raise GeneError(
            f"none of the requested genes, such as {names[0].as_py()!r}, is in {blocks[0].where}, "
            f"which has {example}; pass gene_column= if another column of var has the gene ids"
        )
    if missing == "error":
        _check_present(names, space.present, blocks)
    return space


def _vocabulary(genes: Genes, blocks: Sequence[BlockGenes]) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    if is_own(genes):
        raise GeneError(
            "genes='own' keeps the column ids of each gene space, so it is not one gene space; "
            "pass it to read_rows or to a loader, or use 'union', 'intersection' or a list here"
        )
    if isinstance(genes, str) and genes in ("union", "intersection"):
        lists = [pc.drop_null(pc.unique(block.ids)) for block in blocks]
        if genes == "union":
            names = pc.unique(pa.concat_arrays(lists))
        else:
            names = lists[0]
            for ids in lists[1:]:
                names = names.filter(pc.is_in(names, ids))
        if len(names) == 0:
            listed = ", ".join(block.where for block in blocks[:3])
            more = f" and {len(blocks) - 3} more" if len(blocks) > 3 else ""
            raise GeneError(f"the {genes} of the genes of {listed}{more} is empty")
        return names
    if isinstance(genes, str | os.PathLike):
        genes = _read_genes(path_of(genes))
    ids = list(genes)
    if any(isinstance(gene, bool | np.bool_) for gene in ids):
        raise GeneError("genes= lists ids, found a mask; pass the ids, as in data.var_names[mask]")
    names = pa.array([str(gene) for gene in ids], pa.large_string())
    if len(names) == 0:
        raise GeneError("the list of genes is empty")
    counts = pc.value_counts(names)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        gene = repeated[0]["values"].as_py()
        raise GeneError(f"the list of genes has {gene!r} more than once; list each gene once")
    return names


def read_list(path: str) -> list[str]:
    """The lines of a UTF-8 text file that are not empty, without surrounding spaces."""
    with open(path, encoding="utf-8") as file:
        return [line.strip() for line in file if line.strip()]


def _read_genes(path: str) -> list[str]:
    try:
        return read_list(path)
    except (FileNotFoundError, IsADirectoryError):
        raise GeneListNotFoundError(
            f"{path}: this file of gene ids does not exist; pass 'union', 'intersection', a list, "
            "or the path of a text file with one gene id per line"
        ) from None
    except UnicodeDecodeError as error:
        raise GeneError(
            f"{path}: expected a UTF-8 text file with one gene id per line ({error})"
        ) from error


def _table(block: BlockGenes, names: pa.Array, duplicates: Duplicates) -> NDArray[np.int32]:
    """Position of each gene of a block in the vocabulary, -1 if it is not included."""
    import pyarrow.compute as pc

    positions = pc.index_in(block.ids, names, skip_nulls=True).fill_null(-1).to_numpy()
    table: NDArray[np.int32] = positions.astype(np.int32)
    included = np.flatnonzero(table >= 0)
    _, first = np.unique(table[included], return_index=True)
    if len(first) == len(included):
        return table
    if duplicates == "error":
        repeated = table[np.delete(included, first)]
        others = len(np.unique(repeated)) - 1
        raise GeneError(
            f"{block.where}: {names[int(repeated[0])].as_py()!r} is the id of several genes"
            + (f", as are {others} others" if others else "")
            + "; choose another gene_column, or pass duplicates='sum' or 'first'"
        )
    if duplicates == "first":
        table[np.delete(included, first)] = -1
    return table


def _check_present(
    names: pa.Array, present: NDArray[np.bool_], blocks: Sequence[BlockGenes]
) -> None:
    lacking = np.flatnonzero(~present.all(axis=1))
    if len(lacking) == 0:
        return
    block, absent = blocks[lacking[0]], np.flatnonzero(~present[lacking[0]])
    raise GeneError(
        f"{block.where} lacks {len(absent):,} of {len(names):,} genes, such as "
        f"{names[int(absent[0])].as_py()!r}; pass missing='zero' to read missing genes as zero, "
        "or missing='mask' to also get a mask of the genes that are present"
    )


def _check_choice(name: str, value: Any, choices: Any) -> None:
    known = choices.__args__
    if value not in known:
        raise GeneError(f"{name} must be one of {', '.join(map(repr, known))}, not {value!r}")
