"""Sources of conversions and exports: AnnData files and archives of any backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from scdl.archive.schema import INDEX, MATRIX
from scdl.archive.tables import TableSource
from scdl.errors import SourceError
from scdl.sources.cuts import Cut
from scdl.sources.matrices import Csr, Dense, Matrix, Reader, Values, check_shape
from scdl.sources.transposed import Csc
from storage_backends.base import DTYPES
from storage_backends.capabilities import Sparse

#: Matrix classes by sparse format.
BY_FORMAT: dict[str, type[Csr] | type[Csc]] = {"csr": Csr, "csc": Csc}


class SparseParts(NamedTuple):
    """A sparse matrix that is copied as stored, or with its rows sorted.

    Attributes
    ----------
    sparse
        Format and shape.
    parts
        Readers of the three arrays.
    is_sorted
        Whether the rows need no sorting.
    """

    sparse: Sparse
    parts: Mapping[str, Reader]
    is_sorted: bool = True


class Tally(NamedTuple):
    """Statistics of the conversion of a matrix; see ``ConversionReport``."""

    rows_sorted: int = 0
    duplicates_summed: int = 0
    max_rounding: float = 0.0
    is_counts: bool = True


def sum_tallies(tallies: Sequence[Tally]) -> Tally:
    """Statistics of several matrices together."""
    rows_sorted, duplicates, rounding, is_counts = zip(*tallies, strict=True)
    return Tally(sum(rows_sorted), sum(duplicates), max(rounding), all(is_counts))


class Source(ABC):
    """Cells with the same genes, open for reading.

    Attributes
    ----------
    path
        Path of the source, for messages.
    label
        Origin of the cells, as stored in the archive.
    matrix_name
        The selected matrix, such as ``raw/X``; of an archive, the matrix it was converted from.
    element
        Name of the selected matrix in the source.
    matrix
        The selected matrix.
    obs
        The table of cells.
    labelled
        The table of cells with a label column, to be written instead of `obs`; None: write `obs`.
    first_row
        Offset to subtract from the neighbours of a graph, which count from the first cell of the
        archive.
    tally
        Statistics of earlier processing of the values, if known.
    cut
        The cells and genes that were chosen of what is at `path`.
    left_out
        Number of cells, and of genes, that were not chosen.
    obs_is_last
        Whether `cells` can be read only when the matrix was read.
    fields
        Further matrices with the same genes to convert, by the names of their fields.
    outside
        Names of contents of the file that do not belong to this AnnData and are never converted.
    """

    path: str
    label: str | None
    matrix_name: str
    element: str
    matrix: Matrix
    obs: TableSource
    labelled: TableSource | None = None
    first_row: int = 0
    tally: Tally = Tally()
    cut: Cut = Cut()
    left_out: tuple[int, int] = (0, 0)
    obs_is_last: bool = False
    fields: Mapping[str, Matrix] = MappingProxyType({})
    outside: Sequence[str] = ()

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.obs.num_rows

    @property
    def cells(self) -> TableSource:
        """The table of cells to write."""
        return self.obs if self.labelled is None else self.labelled

    @abstractmethod
    def var(self) -> pa.Table:
        """The table of genes."""

    def take_fields(self, others: Mapping[str, Source]) -> None:
        """Use the matrices of other sources of the same cells as the fields.

        Raises
        ------
        SourceError
            A matrix has other cells or genes.
        """
        for name, other in others.items():
            where = f"{other.path}: {other.matrix_name}, for the field {name!r},"
            if other.genes != self.genes and _names(other) != _names(self):
                raise SourceError(
                    f"{where} has the genes of {other.genes}, but {self.matrix_name} those of "
                    f"{self.genes}, which differ; choose a matrix with the same genes with matrix="
                )
            check_shape(where, other.matrix.shape, self.matrix.shape)
        self.fields = {name: other.matrix for name, other in others.items()}

    # -- optional for a format ---------------------------------------------------------------

    @property
    def n_vars(self) -> int:
        """Number of genes."""
        return int(self.var().num_rows)

    def graph(self, key: str) -> Matrix | None:
        """The cells x cells matrix ``obsp[key]``, or None."""
        return None

    def vectors(self, key: str) -> Reader:
        """The dense array ``obsm[key]``, one row per cell; raise SourceError if it is missing."""
        raise SourceError(f"{self.path}: obsm/{key} is missing")

    @property
    def kept_graphs(self) -> Sequence[str]:
        """Keys of graphs that are converted by default."""
        return ()

    @property
    def kept_vectors(self) -> Sequence[str]:
        """Keys of dense vectors that are converted by default."""
        return ()

    @property
    def kept_dtypes(self) -> Mapping[str, np.dtype[Any]]:
        """Dtypes of ``data``, ``indices`` and ``indptr`` to keep in the archive; may be empty."""
        return {}

    def not_carried(self, carried: set[str]) -> list[str]:
        """Names of elements that are not in `carried`; the parts of uns count as one."""
        rest = self.names_of_rest()
        names = dict.fromkeys("uns" if name.startswith("uns/") else name for name in rest)
        return [name for name in names if name not in carried] + [*self.unread]

    @property
    def unread(self) -> Sequence[str]:
        """Names of contents that are lost even if all elements are converted."""
        return ()

    @property
    def unmatched(self) -> Sequence[str]:
        """What did not match in joins with other tables, for the report."""
        return ()

    @property
    def dropped(self) -> Sequence[str]:
        """What was left out of the matrix, in words; known when it has been read."""
        return ()

    def names_of_rest(self) -> Sequence[str]:
        """Names of all elements of an AnnData except the matrix, its genes and obs.

        Entries of uns are listed individually, such as ``uns/neighbors/params/method``.
        """
        return ()

    def element_of_rest(self, name: str) -> SparseParts | Matrix | Reader | Any:
        """Read one of these elements: a sparse matrix, a reader of a dense array, or an object.

        Raises
        ------
        SourceError, ArchiveFormatError
            The element cannot be read, or its encoding is unknown.
        """
        raise SourceError(f"{self.path}: there is no {name}")

    @property
    def genes(self) -> str:
        """Name of the table of genes of the matrix."""
        return genes_of(self.element)


def _names(source: Source) -> list[str | None]:
    """Names of the genes of a source."""
    names: list[str | None] = source.var().column(INDEX).to_pylist()
    return names


def in_memory(name: str, element: Any) -> SparseParts | Reader | Any:
    """Wrap an in-memory matrix in readers if archives store it as arrays."""
    return _readers(element) if is_matrix(name) or name.startswith(("obsm/", "obsp/")) else element


def _readers(element: Any) -> SparseParts | Reader | Any:
    if getattr(getattr(element, "dtype", None), "newbyteorder", str)("=") not in DTYPES:
        return element
    if getattr(element, "format", None) in BY_FORMAT:
        parts = {part: Values(getattr(element, part)) for part in MATRIX}
        return SparseParts(Sparse(element.format, element.shape), parts)
    return Values(element) if isinstance(element, np.ndarray) else element


def matrix_of(where: str, element: Any) -> Matrix:
    """An element of two dimensions as a matrix; raise SourceError if it is none of numbers."""
    if getattr(element, "dtype", None) == np.dtype(bool) and not isinstance(element, Matrix):
        # Archives do not store arrays of truth values.
        element = element.astype(np.uint8)
    element = _readers(element)
    if isinstance(element, SparseParts):
        return BY_FORMAT[element.sparse.format](where, element.parts, element.sparse.shape)
    if isinstance(element, Reader) and len(element.item_shape) == 1:
        return Dense(where, element, (len(element), *element.item_shape))
    if isinstance(element, Matrix):
        return element
    found = getattr(element, "dtype", type(element).__name__)
    raise SourceError(
        f"{where}: expected a matrix of numbers, dense or in CSR or CSC form, found {found}"
    )


def choose_matrix(path: str, kind: str, name: str | None, available: Sequence[str]) -> str:
    """The matrix to convert: the chosen one, or ``raw/X`` if there is one, else ``X``.

    Parameters
    ----------
    path, kind
        Path and kind of the source, for messages.
    name
        The chosen matrix; None: the default.
    available
        Names of the matrices that exist.

    Raises
    ------
    SourceError
        The matrix does not exist.
    """
    chosen = name or ("raw/X" if "raw/X" in available else "X")
    if chosen not in available:
        advice = "; choose one with matrix= (--matrix)" if available and name is None else ""
        raise SourceError(
            f"{path}: there is no matrix {chosen}; the {kind} has: "
            f"{', '.join(available) or 'none'}{advice}"
        )
    return chosen


def genes_of(matrix: str) -> str:
    """Name of the table of genes of a matrix."""
    return "raw/var" if matrix == "raw/X" else "var"


#: Axes of the leading dimensions of elements of an AnnData, by their mapping or name.
_AXES = {
    "X": ("obs", "var"), "raw/X": ("obs", "raw/var"), "layers": ("obs", "var"),
    "obsm": ("obs",), "varm": ("var",), "raw/varm": ("raw/var",),
    "obsp": ("obs", "obs"), "varp": ("var", "var"), "var": ("var",), "raw/var": ("raw/var",),
}  # fmt: skip


def axes_of(name: str) -> tuple[str, ...] | None:
    """Axes of the leading dimensions of an element; None if AnnData has no such element."""
    return _AXES.get(name) or _AXES.get(name.rpartition("/")[0])


def is_matrix(name: str) -> bool:
    """Whether an element is a cells x genes matrix."""
    return name in ("X", "raw/X") or name.startswith("layers/")
