"""Schema of an archive: names and meaning of its arrays, tables and attributes.

========================== =====================================================================
array                      content
========================== =====================================================================
``data``                   stored values of the expression matrix, in row order
``indices``                column id (gene) of each stored value, unsigned
``indptr``                 n_obs + 1 offsets into these two, unsigned
``graphs/<key>/data`` …    a cells x cells graph in the same form: weights, neighbours, offsets
``layers/<name>/data`` …   a field: a further matrix of cells and genes in the same form
``obsm/<key>``             one dense vector per cell
========================== =====================================================================

The tables are ``obs`` and one ``var/<i>`` per feature block; names of cells and genes are in the
column ``_index``. :class:`Info` describes the attributes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
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

#: Largest allowed number of cells or genes.
_MOST = np.iinfo(np.int64).max

DATA, INDICES, INDPTR = "data", "indices", "indptr"
MATRIX = (DATA, INDICES, INDPTR)
OBS = "obs"

#: Key of ``obsp`` from which the documented API reads a neighbour graph.
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


def field_element(name: str) -> str:
    """AnnData name of a field."""
    return f"layers/{name}"


def field_prefix(name: str) -> str:
    """Prefix of the names of the arrays of a field, or of the expression matrix, if empty."""
    return f"{field_element(name)}/" if name else ""


def obsm_array(key: str) -> str:
    """Name of the array of dense vectors `key`."""
    return f"obsm/{key}"


def smallest_unsigned(largest: int) -> np.dtype[Any]:
    """The smallest unsigned dtype that can represent `largest`."""
    return np.min_scalar_type(max(int(largest), 0))


def check_columns(columns: NDArray[Any], n_vars: int) -> None:
    """Raise ArchiveFormatError for column ids of `n_vars` or more."""
    if len(columns) and int(columns.max()) >= n_vars:
        raise ArchiveFormatError(
            f"found column id {int(columns.max())}, expected less than {n_vars}, the number of "
            "genes; the archive is damaged, convert the source again"
        )


@dataclass(frozen=True)
class Block:
    """Consecutive cells that share a var table.

    Parameters
    ----------
    stop
        End of the block: row number of its last cell plus one.
    n_vars
        Number of genes.
    label
        Source file of the cells, or None if unknown.
    space
        Number of the gene space, shared by all blocks with the same gene names in the same order.
        None if the archive does not store it, in which case names must be compared.
    """

    stop: int
    n_vars: int
    label: str | None = None
    space: int | None = None


@dataclass(frozen=True)
class Info:
    """Description of an archive, stored in its attributes.

    Parameters
    ----------
    blocks
        Feature blocks; the stop of the last one is n_obs.
    is_sorted
        Whether the column ids of each cell are stored in strictly increasing order; False if
        unknown.
    matrices
        The matrix that was converted from each source file, such as ``raw/X``.
    element
        AnnData name of the matrix, in an archive that keeps the other elements too.
    fields
        Names of layers that were converted as fields: they have the genes of the matrix, and their
        rows are sorted if those of the matrix are.
    """

    blocks: tuple[Block, ...]
    is_sorted: bool = False
    matrices: tuple[str, ...] = ()
    element: str = "X"
    fields: tuple[str, ...] = ()

    def sorts(self, field: str) -> bool:
        """Whether the column ids of each row of a field are stored in strictly increasing order."""
        return self.is_sorted and field in self.fields

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.blocks[-1].stop

    @cached_property
    def max_n_vars(self) -> int:
        """Number of genes of the widest block, an upper bound for every row."""
        return max(self.blocks, key=attrgetter("n_vars")).n_vars

    def block_of(self, row: int) -> int:
        """Index of the block that contains a row."""
        if len(self.blocks) == 1:
            return 0
        return int(np.searchsorted(self._stops, row, side="right"))

    def blocks_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Index of the block of each row."""
        return np.searchsorted(self._stops, rows, side="right")

    @cached_property
    def _stops(self) -> NDArray[np.int64]:
        return np.array([block.stop for block in self.blocks], np.int64)

    @property
    def block_lengths(self) -> list[int]:
        """Number of cells of each block."""
        lengths: list[int] = np.diff(self._stops, prepend=0).tolist()
        return lengths

    def to_attrs(self) -> dict[str, Any]:
        """Convert to the JSON object that a backend stores."""
        blocks = []
        for b in self.blocks:
            block = {"stop": b.stop, "n_vars": b.n_vars, "label": b.label}
            # A single block has no other to share a gene space with.
            alone = len(self.blocks) == 1 or b.space is None
            blocks.append(block if alone else {**block, "space": b.space})
        return {
            "blocks": blocks,
            "sorted": self.is_sorted,
            "matrices": list(self.matrices),
            **({} if self.element == "X" else {"element": self.element}),
            **({"fields": list(self.fields)} if self.fields else {}),
        }

    @classmethod
    def of(cls, store: ArrayStore) -> Info:
        """Read the description of an archive; raise ArchiveFormatError if it has no matrix."""
        contents = store.contents
        if missing := sorted(set(MATRIX).difference(contents.arrays)):
            present = ", ".join([*store.sparse, *contents.arrays]) or "no matrix"
            raise ArchiveFormatError(
                f"{store.path}: expected a matrix X in CSR form, but {', '.join(missing)} is "
                f"missing, found {present}; convert it with scdl.convert or `scdl convert`"
            )
        info = cls.from_attrs(contents.attrs, store.path)
        stop, n_obs = info.blocks[-1].stop, contents.arrays[INDPTR].length - 1
        if stop != n_obs:
            raise ArchiveFormatError(
                f"{store.path}: its feature blocks end at row {stop}, but it has {n_obs} cells; "
                f"{COPY_AGAIN}"
            )
        return info

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any], where: str) -> Info:
        """Parse the JSON object; messages of ArchiveFormatError start with `where`."""
        blocks: list[Block] = []
        try:
            for b in attrs["blocks"]:
                label, space = b["label"] and str(b["label"]), b.get("space")
                space = None if space is None else int(space)
                blocks.append(Block(int(b["stop"]), int(b["n_vars"]), label, space))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ArchiveFormatError(
                f"{where}: the attribute 'blocks' is missing or invalid: {error!r}; {COPY_AGAIN}"
            ) from error
        stop, widths, in_order = 0, dict[int, int](), bool(blocks)
        for block in blocks:
            in_order &= stop <= block.stop <= _MOST and 0 <= block.n_vars <= _MOST
            stop = block.stop
            if block.space is None or widths.setdefault(block.space, block.n_vars) == block.n_vars:
                continue
            raise ArchiveFormatError(
                f"{where}: feature blocks of one gene space have different numbers of genes; "
                f"{COPY_AGAIN}"
            )
        if not in_order:
            raise ArchiveFormatError(
                f"{where}: its feature blocks are empty or out of order; {COPY_AGAIN}"
            )
        matrices, fields = attrs.get("matrices"), attrs.get("fields")
        names = tuple(map(str, matrices)) if isinstance(matrices, list) else ()
        fields = tuple(map(str, fields)) if isinstance(fields, list) else ()
        element = str(attrs.get("element", "X"))
        return cls(tuple(blocks), attrs.get("sorted") is True, names, element, fields)


def unique_names(names: Iterable[str]) -> list[str]:
    """Make names unique by appending a number to repeated ones."""
    taken: set[str] = set()
    out = []
    for name in names:
        candidate, number = name, 1
        while candidate in taken:
            number += 1
            candidate = f"{name}-{number}"
        taken.add(candidate)
        out.append(candidate)
    return out


def names_of(names: str | Iterable[str] | None, option: str) -> tuple[str, ...]:
    """Normalise an option that takes one name or several to a tuple.

    Raises
    ------
    OptionError
        `names` contains something other than strings; the message mentions `option`.
    """
    if names is None:
        return ()
    if isinstance(names, str):
        return (names,)
    several = tuple(names) if isinstance(names, Iterable) else (names,)
    for name in several:
        if not isinstance(name, str):
            raise OptionError(f"{option} must be a name or a list of names, found {name!r:.200}")
    return tuple(map(str, several))
