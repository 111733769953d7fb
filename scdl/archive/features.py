"""The feature indexes of the documented API: columns of var and obs by cell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scdl.archive.columns import Columns
from scdl.archive.csr import position
from scdl.archive.gene_names import number_keys, space_key
from scdl.archive.schema import INDEX, OBS, Info, var_table
from storage_backends import __version__
from storage_backends.capabilities import TableReader

if TYPE_CHECKING:
    import pyarrow as pa

    from scdl.archive.tables import Encoded


def spaces_of(store: TableReader, info: Info) -> NDArray[np.int64]:
    """The gene space of each feature block, numbered from 0.

    Blocks with the same gene names in the same order share a gene space. The numbers stored in the
    archive are used if every block has one; otherwise the gene names are compared.
    """
    if len(info.blocks) == 1:
        return np.zeros(1, np.int64)
    keys: list[Any] = [block.space for block in info.blocks]
    if None in keys:
        keys = [block_space_key(store, i) for i in range(len(keys))]
    return number_keys(keys)


def shared_var(store: TableReader, blocks: Iterable[int]) -> pa.Table:
    """The var columns shared by feature blocks of one gene space."""
    from storage_backends.compute.arrow import shared_columns

    return shared_columns(store.read_table(var_table(i)) for i in blocks)


def block_space_key(store: TableReader, block: int) -> str:
    """The :func:`~scdl.archive.gene_names.space_key` of a feature block."""
    name = var_table(block)
    named = INDEX in store.table_schema(name).names
    return space_key(store.read_table(name, [INDEX] if named else None))


class _Features:
    """What both feature indexes have."""

    def __init__(self, info: Info) -> None:
        self._info = info

    def number_of_rows(self) -> int:
        """Number of cells."""
        return self._info.n_obs

    def version(self) -> str:
        """Version of this package."""
        return __version__


class VarFeatures(_Features):
    """Columns of var by cell, as ``features()`` of the documented API gives them.

    Parameters
    ----------
    store, info
        The archive.
    index_names
        Column names that refer to the gene names.
    """

    def __init__(self, store: TableReader, info: Info, index_names: Sequence[str]) -> None:
        super().__init__(info)
        self.blocks = [Columns(store, var_table(i), index_names) for i in range(len(info.blocks))]

    def lookup(
        self, row: int, select_features: Sequence[str] | str | None = None
    ) -> tuple[list[NDArray[Any]], str | None]:
        """Columns of the feature block of a cell, one array of n_vars each, and the block's label.

        Raises
        ------
        RowIndexError
            The row is out of range.
        FeatureNotFoundError
            There is no such column.
        """
        block = self._info.block_of(position(row, self._info.n_obs))
        columns = self.blocks[block]
        names = columns.chosen(select_features)
        return [columns.column(name) for name in names], self._info.blocks[block].label

    def __len__(self) -> int:
        """Number of feature blocks."""
        return len(self._info.blocks)

    def number_vars_at_row(self, row: int) -> int:
        """Number of genes in the feature block of a cell."""
        return self._info.blocks[self._info.block_of(position(row, self._info.n_obs))].n_vars

    def column_dims(self) -> list[int]:
        """Number of genes of each feature block."""
        return [block.n_vars for block in self._info.blocks]

    def number_of_values(self) -> list[int]:
        """Number of cells times number of genes, for each feature block."""
        lengths = self._info.block_lengths
        return [n * b.n_vars for n, b in zip(lengths, self._info.blocks, strict=True)]


class ObsFeatures(_Features):
    """Columns of obs by cell, as ``obs_features()`` of the documented API gives them.

    Parameters
    ----------
    store, info
        The archive.
    index_names
        Column names that refer to the names of the cells.
    read_encoded
        As for :class:`Columns`.
    """

    def __init__(
        self,
        store: TableReader,
        info: Info,
        index_names: Sequence[str],
        read_encoded: Callable[[str], Encoded | pa.Array] | None = None,
    ) -> None:
        super().__init__(info)
        self.columns = Columns(store, OBS, index_names, read_encoded)

    def lookup(
        self, row: int, select_features: Sequence[str] | str | None = None
    ) -> tuple[list[Any], str | None]:
        """Values of one cell, and the label of its feature block."""
        at = position(row, self._info.n_obs)
        names = self.columns.chosen(select_features)
        values = [self.columns.values(name, slice(at, at + 1))[0] for name in names]
        return values, self._info.blocks[self._info.block_of(at)].label

    def __getitem__(
        self, rows: int | slice
    ) -> tuple[list[Any], str | None] | tuple[list[dict[str, NDArray[Any]]], list[str | None]]:
        """Values and label of one cell; for a slice, columns and label of each feature block."""
        if not isinstance(rows, slice):
            return self.lookup(rows)
        selected = np.arange(*rows.indices(self._info.n_obs))
        block_of = self._info.blocks_of(selected)
        parts, labels = [], []
        for block in np.unique(block_of):
            part = selected[block_of == block]
            parts.append({name: self.columns.values(name, part) for name in self.columns.names})
            labels.append(self._info.blocks[block].label)
        return parts, labels

    def __len__(self) -> int:
        """Number of blocks: always 1, since obs is one table of all cells."""
        return 1

    def number_vars_at_row(self, row: int) -> int:
        """Number of obs columns; `row` is only checked."""
        position(row, self._info.n_obs)
        return len(self.columns.names)

    def column_dims(self) -> list[int]:
        """Number of columns."""
        return [len(self.columns.names)]

    def number_of_values(self) -> list[int]:
        """Number of cells times number of columns."""
        return [self._info.n_obs * len(self.columns.names)]
