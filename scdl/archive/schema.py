"""Names and rules of an archive: what its arrays, tables and attributes are called and mean.

========================== =====================================================================
array                      content
========================== =====================================================================
``data``                   stored values of the expression matrix, cell by cell
``indices``                gene of each stored value, unsigned
``indptr``                 n_obs + 1 offsets into the two, unsigned
``graphs/<key>/data`` …    a cells x cells graph in the same form: weights, neighbours, offsets
``obsm/<key>``             one dense vector a cell
========================== =====================================================================

The tables are ``obs`` and one ``var/<i>`` a feature block; names of cells and genes are their
column ``_index``. The attributes are those of :class:`Info`.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdl.errors import ArchiveFormatError, OptionError
from storage_backends.base import INDEX as INDEX
from storage_backends.base import INDEX_NAME as INDEX_NAME
from storage_backends.base import NULLABLE as NULLABLE
from storage_backends.base import ArrayStore
from storage_backends.compute.caching import cached_property
from storage_backends.errors import COPY_AGAIN

#: No count of cells or genes is larger.
_MOST = np.iinfo(np.int64).max

DATA, INDICES, INDPTR = "data", "indices", "indptr"
MATRIX = (DATA, INDICES, INDPTR)
OBS = "obs"

#: Key of ``obsp`` that the documented API reads a neighbour graph from.
NEIGHBOR_KEY = "next_cell_ids"

#: Types of a graph's weights, neighbours and offsets, as documented.
GRAPH_DTYPES: dict[str, np.dtype[Any]] = {
    DATA: np.dtype(np.float32),
    INDICES: np.dtype(np.uint32),
    INDPTR: np.dtype(np.uint64),
}


def var_table(block: int) -> str:
    """Name of the var table of a feature block."""
    return f"var/{block}"


def graph_array(key: str, part: str) -> str:
    """Name of one of the three arrays of a graph."""
    return f"graphs/{key}/{part}"


def obsm_array(key: str) -> str:
    """Name of the array of dense vectors `key`."""
    return f"obsm/{key}"


def smallest_unsigned(largest: int) -> np.dtype[Any]:
    """The smallest unsigned type that holds `largest`."""
    return np.min_scalar_type(max(int(largest), 0))


def check_columns(columns: NDArray[Any], n_vars: int) -> None:
    """ArchiveFormatError where a gene is not below `n_vars`."""
    if len(columns) and int(columns.max()) >= n_vars:
        raise ArchiveFormatError(
            f"column id {int(columns.max())} is stored for {n_vars} genes; the archive is damaged, "
            "convert the source again"
        )


@dataclass(frozen=True)
class Block:
    """Consecutive cells that share a var table.

    Parameters
    ----------
    stop
        Row after the last cell of the block.
    n_vars
        Genes.
    label
        File that the cells came from, where known.
    space
        Gene space: a number that the block shares with the blocks that have the same gene names in
        the same order. None where the archive does not say, so that names must be compared.
    """

    stop: int
    n_vars: int
    label: str | None = None
    space: int | None = None


@dataclass(frozen=True)
class Info:
    """What an archive says of itself in its attributes.

    Parameters
    ----------
    blocks
        Feature blocks; the last one's stop is n_obs.
    is_sorted
        Whether the genes of each cell are stored in rising order, each once; False also where an
        archive does not say.
    matrices
        Which matrix of each source file was taken, such as ``raw/X``.
    element
        Element of an AnnData that the matrix is, in an archive that keeps the others too.
    """

    blocks: tuple[Block, ...]
    is_sorted: bool = False
    matrices: tuple[str, ...] = ()
    element: str = "X"

    @property
    def n_obs(self) -> int:
        """Cells."""
        return self.blocks[-1].stop

    @cached_property
    def max_n_vars(self) -> int:
        """Genes of the widest block: as wide as any row can be."""
        return max(block.n_vars for block in self.blocks)

    def block_of(self, row: int) -> int:
        """Index of the block that holds a row."""
        if len(self.blocks) == 1:
            return 0
        return bisect.bisect_right([block.stop for block in self.blocks], row)

    def to_attrs(self) -> dict[str, Any]:
        """As the JSON object that a backend stores."""
        blocks = []
        for b in self.blocks:
            block = {"stop": b.stop, "n_vars": b.n_vars, "label": b.label}
            # One block has nothing to share.
            alone = len(self.blocks) == 1 or b.space is None
            blocks.append(block if alone else {**block, "space": b.space})
        return {
            "blocks": blocks,
            "sorted": self.is_sorted,
            "matrices": list(self.matrices),
            **({} if self.element == "X" else {"element": self.element}),
        }

    @classmethod
    def of(cls, store: ArrayStore) -> Info:
        """What an archive says of its matrix; ArchiveFormatError where it has none to read."""
        if missing := [part for part in MATRIX if part not in store.arrays]:
            there = ", ".join([*store.sparse, *store.arrays]) or "no matrix"
            raise ArchiveFormatError(
                f"{store.path}: expected a matrix X in CSR form, but {', '.join(missing)} is "
                f"missing, found {there}; convert it with scdl.convert or `scdl convert`"
            )
        info = cls.from_attrs(store.attrs, store.path)
        n_obs = store.spec(INDPTR).length - 1
        if info.n_obs != n_obs:
            raise ArchiveFormatError(
                f"{store.path}: its feature blocks end at row {info.n_obs}, but it has {n_obs} "
                f"cells; {COPY_AGAIN}"
            )
        return info

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any], where: str) -> Info:
        """From the JSON object; ArchiveFormatError opens with `where`."""
        try:
            blocks = tuple(
                Block(int(b["stop"]), int(b["n_vars"]), b["label"] and str(b["label"]), _space(b))
                for b in attrs["blocks"]
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ArchiveFormatError(
                f"{where}: its attributes lack valid blocks: {error!r}"
            ) from error
        rising = all(a.stop <= b.stop for a, b in pairwise(blocks))
        counts = [n for b in blocks for n in (b.stop, b.n_vars)]
        if not blocks or not rising or min(counts) < 0 or max(counts) > _MOST:
            raise ArchiveFormatError(f"{where}: its feature blocks are empty or out of order")
        widths = {(b.space, b.n_vars) for b in blocks if b.space is not None}
        if len(widths) > len({space for space, _ in widths}):
            raise ArchiveFormatError(
                f"{where}: feature blocks of one gene space have different numbers of genes; "
                f"{COPY_AGAIN}"
            )
        matrices = attrs.get("matrices")
        names = tuple(map(str, matrices)) if isinstance(matrices, list) else ()
        return cls(blocks, attrs.get("sorted") is True, names, str(attrs.get("element", "X")))


def _space(block: Mapping[str, Any]) -> int | None:
    space = block.get("space")
    return None if space is None else int(space)


def distinct(names: Iterable[str]) -> list[str]:
    """The same names, with a number behind those that came before."""
    taken: set[str] = set()
    out = []
    for name in names:
        made, number = name, 1
        while made in taken:
            number += 1
            made = f"{name}-{number}"
        taken.add(made)
        out.append(made)
    return out


def names_of(names: str | Iterable[str] | None, option: str) -> tuple[str, ...]:
    """Names that an option gives: several, or a single one as text.

    Raises
    ------
    OptionError
        `names` are not names; it says so of `option`.
    """
    if names is None:
        return ()
    if isinstance(names, str):
        return (names,)
    found = tuple(names) if isinstance(names, Iterable) else (names,)
    for name in found:
        if not isinstance(name, str):
            raise OptionError(f"{option} must be a name or a list of names, found {name!r:.200}")
    return tuple(map(str, found))
