"""Figures of the quality of cells, computed while their values are read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.archive.csr import SparseRows
from scdl.archive.gene_names import strings
from scdl.archive.schema import INDEX
from scdl.archive.tables import Extended, TableSource
from scdl.errors import GeneError, OptionError
from scdl.sources.matrices import Bounds, Matrix
from storage_backends.compute import arrow

#: A group of genes: a regular expression on their names, a boolean column of var, or a list.
Group: TypeAlias = str | Sequence[str]
N_GENES, N_COUNTS, PERCENT = "n_genes", "n_counts", "pct_"


class Groups:
    """Named groups of genes, whose shares of the counts of cells are computed.

    Parameters
    ----------
    groups
        The groups, by name.

    Raises
    ------
    OptionError
        A group is neither text nor a list of names, or its regular expression is not valid.
    """

    def __init__(self, groups: Mapping[str, Group]) -> None:
        self._groups: dict[str, str | list[str]] = {}
        for name, group in groups.items():
            if not isinstance(name, str) or not name:
                raise OptionError(f"quality: the name of a group must be text, not {name!r:.100}")
            self._groups[name] = group if isinstance(group, str) else _listed(name, group)

    @property
    def columns(self) -> list[str]:
        """Names of the columns of obs."""
        return [N_GENES, N_COUNTS, *(PERCENT + name for name in self._groups)]

    def members(self, vars_: Sequence[pa.Table]) -> list[NDArray[np.bool_]]:
        """Which genes of each var table belong to each group, of shape (groups, genes).

        Raises
        ------
        GeneError
            A group has no gene in any of the tables, or a listed gene is in none.
        OptionError
            A regular expression is not valid.
        """
        found = [np.zeros((len(self._groups), table.num_rows), bool) for table in vars_]
        for i, (name, group) in enumerate(self._groups.items()):
            absent = set(() if isinstance(group, str) else group)
            for table, members in zip(vars_, found, strict=True):
                members[i] = _members(name, group, table)
                absent -= set(_names(table)) if absent else set()
            if absent:
                raise GeneError(
                    f"quality: {len(absent):,} genes of {name!r} do not exist, such as "
                    f"{min(absent)!r}; correct the list"
                )
            if not any(members[i].any() for members in found):
                raise GeneError(
                    f"quality: no gene belongs to {name!r} ({group!r:.100}); names of genes are "
                    "compared as they are written, so that '^MT-' and '^mt-' differ"
                )
        return found


def _listed(name: str, group: Sequence[str]) -> list[str]:
    genes = list(group) if hasattr(group, "__iter__") else [group]
    if not all(isinstance(gene, str) for gene in genes):
        raise OptionError(
            f"quality: the group {name!r} must be a regular expression, a boolean column of var or "
            f"a list of genes, not {group!r:.100}"
        )
    return [str(gene) for gene in genes]


def _names(table: pa.Table) -> list[str]:
    """Names of genes, empty for those without one."""
    if INDEX not in table.schema.names:
        return [""] * table.num_rows
    return [name or "" for name in strings(table[INDEX].combine_chunks()).to_pylist()]


def _members(name: str, group: str | list[str], table: pa.Table) -> NDArray[np.bool_]:
    if isinstance(group, str) and group in table.schema.names:
        column = table[group]
        if pa.types.is_boolean(column.type):
            return np.asarray(column.fill_null(False).to_numpy(), bool)
    if isinstance(group, list):
        among = set(group)
        return np.array([gene in among for gene in _names(table)], bool)
    try:
        matches = re.compile(group).search
    except re.error as error:
        raise OptionError(
            f"quality: {group!r:.100} of {name!r} is no regular expression ({error})"
        ) from error
    return np.array([matches(gene) is not None for gene in _names(table)], bool)


class Figures:
    """The figures of some cells, in arrays that are filled while their values are read.

    Parameters
    ----------
    columns
        Names of the columns; see :attr:`Groups.columns`.
    members
        Which genes belong to each group.
    n_obs
        Number of cells.

    Attributes
    ----------
    values
        The columns by name: ``n_genes`` (int32), the number of genes of each cell with a value
        other than 0; ``n_counts`` (float64), the sum of its values; and for each group its percent
        of this sum (float64), NaN if the sum is 0.
    """

    def __init__(self, columns: Sequence[str], members: NDArray[np.bool_], n_obs: int) -> None:
        self._members = members
        self.values: dict[str, NDArray[Any]] = {name: np.zeros(n_obs) for name in columns}
        self.values[N_GENES] = np.zeros(n_obs, np.int32)

    def fill(self, first: int, block: SparseRows, where: str) -> None:
        """Compute the figures of consecutive cells from all their values."""
        if not _are_increasing(block):
            # Genes may be repeated, in which case their sums count.
            block = csr.clean(block, self._members.shape[1], where, sum_dtype=np.dtype(np.float64))
        rows = slice(first, first + len(block.indptr) - 1)
        genes, counts, *groups = (values[rows] for values in self.values.values())
        zeros = np.flatnonzero(block.data == 0)
        genes[:] = np.diff(block.indptr) - np.diff(np.searchsorted(zeros, block.indptr))
        counts[:] = _sums(block.data, block.indptr)
        for members, percent in zip(self._members, groups, strict=True):
            belonging = np.flatnonzero(members[block.indices])
            indptr = np.searchsorted(belonging, block.indptr)
            with np.errstate(divide="ignore", invalid="ignore"):
                percent[:] = _sums(block.data[belonging], indptr) / counts * 100

    def chosen(self, rows: NDArray[np.int64]) -> Figures:
        """The figures of some of the cells."""
        chosen = Figures((), self._members, 0)
        chosen.values = {name: values[rows] for name, values in self.values.items()}
        return chosen

    def appended_to(self, table: TableSource) -> TableSource:
        """A table with the figures as columns, which are read when rows of the table are."""
        for name, values in self.values.items():
            field = pa.field(name, pa.from_numpy_dtype(values.dtype))
            table = Extended(table, field, _slices(values))
        return table


def _are_increasing(rows: SparseRows) -> bool:
    """Whether the genes of each row are in strictly increasing order."""
    falls = rows.indices[1:] <= rows.indices[:-1]
    inner = rows.indptr[(rows.indptr > 0) & (rows.indptr < len(rows.indices))]
    falls[inner - 1] = False
    return not falls.any()


def _slices(values: NDArray[Any]) -> Any:
    return lambda start, stop: arrow.numbers(values[start:stop])


def _sums(values: NDArray[Any], indptr: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum of the values of each row."""
    sums = np.zeros(len(indptr) - 1)
    filled = np.flatnonzero(np.diff(indptr))
    if len(filled):
        sums[filled] = np.add.reduceat(values, indptr[filled], dtype=np.float64)
    return sums


class Counted(Matrix):
    """A matrix that computes the figures of its cells when it is read."""

    def __init__(self, matrix: Matrix, figures: Figures) -> None:
        self.where, self.dtype, self.size = matrix.where, matrix.dtype, matrix.size
        self.shape, self.by_rows, self.is_counted = matrix.shape, matrix.by_rows, matrix.is_counted
        self._matrix, self._figures = matrix, figures

    def blocks(self, bounds: Bounds) -> Iterator[SparseRows]:
        first = 0
        for block in self._matrix.blocks(bounds):
            self._figures.fill(first, block, self.where)
            yield block
            first += len(block.indptr) - 1

    def part(self, start: int, stop: int) -> Matrix | None:
        # The figures of parts that other processes read would be lost.
        return None
