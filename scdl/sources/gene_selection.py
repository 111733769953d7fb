"""Mapping the sources of a conversion to one gene space."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scdl.archive.gene_names import strings
from scdl.archive.gene_space import BlockGenes, Duplicates, Genes, Missing, gene_space
from scdl.archive.schema import DATA, INDEX
from scdl.errors import GeneError, OptionError
from scdl.sources.base import Source
from scdl.sources.cuts import Mapped
from scdl.sources.wrapped import Wrapped


@dataclass(frozen=True)
class GeneChoice:
    """The gene space in which an archive is written; see :meth:`CellReader.select_genes`."""

    genes: Genes
    gene_column: str | None = None
    missing: Missing = "error"
    duplicates: Duplicates = "error"


def gene_choice(genes: Genes | None, policies: Mapping[str, Any]) -> GeneChoice | None:
    """Validate `genes` and its policies; None if all genes of all sources are written.

    Parameters
    ----------
    policies
        ``gene_column``, ``missing`` and ``duplicates``.

    Raises
    ------
    OptionError
        Policies are given without `genes`, or need information that archives do not store.
    """
    if genes is None:
        for name, value in policies.items():
            if value != getattr(GeneChoice, name):
                raise OptionError(f"{name}={value!r} has no effect without genes=; pass genes= too")
        return None
    if policies["missing"] == "mask":
        raise OptionError(
            "missing='mask' applies only to reading, since an archive does not store which genes "
            "each source had; pass missing='zero' or 'error'"
        )
    return GeneChoice(genes, **policies)


def select_source_genes(sources: Sequence[Source], choice: GeneChoice) -> list[Source]:
    """Wrap sources so that all have the selected genes in the same order.

    Raises
    ------
    GeneError, GeneListNotFoundError
        As raised by :meth:`CellReader.select_genes`.
    """
    blocks = [BlockGenes(source.path, _ids(source, choice.gene_column)) for source in sources]
    numbers = range(len(blocks))
    space = gene_space(choice.genes, blocks, numbers, choice.missing, choice.duplicates)
    pairs = zip(sources, space.tables, strict=True)
    var = pa.table({INDEX: space.names})
    return [SelectedGenes(source, var, table) for source, table in pairs]


def _ids(source: Source, column: str | None) -> pa.Array:
    table = source.var()
    if (column or INDEX) not in table.schema.names:
        known = ", ".join(name for name in table.schema.names if name != INDEX) or "none"
        part = "names of genes" if column is None else f"column {column!r}"
        raise GeneError(
            f"{source.path}: var has no {part}; pass one of its columns as gene_column=: {known}"
        )
    return strings(pa.concat_arrays(table.column(column or INDEX).chunks))


class SelectedGenes(Wrapped):
    """A source with selected genes, without other elements that are aligned to genes.

    Parameters
    ----------
    source
        The source.
    var
        The table of the selected genes.
    table
        Position in it of each gene of the source, or -1; None: it has these genes in this order.
    kept
        Columns of the source's var that the table has with the same values.
    """

    def __init__(
        self,
        source: Source,
        var: pa.Table,
        table: NDArray[np.int32] | None,
        kept: Collection[str] = (INDEX,),
    ) -> None:
        super().__init__(source)
        self._var, self._kept = var, kept
        if table is not None:
            n = var.num_rows
            self.matrix = Mapped(source.matrix, table, n)
            self.fields = {name: Mapped(field, table, n) for name, field in source.fields.items()}
            cells, genes = source.left_out
            self.left_out = cells, genes + int(np.count_nonzero(table < 0))

    @property
    def n_vars(self) -> int:
        return int(self._var.num_rows)

    def var(self) -> pa.Table:
        return self._var

    @property
    def kept_dtypes(self) -> Mapping[str, np.dtype[Any]]:
        kept = self._source.kept_dtypes
        return {DATA: kept[DATA]} if DATA in kept else {}

    def not_carried(self, carried: set[str]) -> list[str]:
        columns = [name for name in self._source.var().schema.names if name not in self._kept]
        return [*self._source.not_carried(carried), *(f"{self.genes}/{name}" for name in columns)]

    def names_of_rest(self) -> Sequence[str]:
        return ()
