"""What a conversion or an export reads from: an AnnData file, or an archive of any backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from scdl.archive.schema import MATRIX
from scdl.archive.tables import TableSource
from scdl.errors import SourceError
from scdl.sources.matrices import Csr, Matrix, Reader, Values
from scdl.sources.transposed import Csc
from storage_backends.base import DTYPES
from storage_backends.capabilities import Sparse

#: Matrices by the format of a sparse one.
BY_FORMAT: dict[str, type[Csr] | type[Csc]] = {"csr": Csr, "csc": Csc}


class SparseParts(NamedTuple):
    """A sparse matrix that is copied as it is stored, or with its rows in order.

    Attributes
    ----------
    sparse
        What it is.
    parts
        Readers of its three arrays.
    is_sorted
        Whether the rows may stay as they are.
    """

    sparse: Sparse
    parts: Mapping[str, Reader]
    is_sorted: bool = True


class Tally(NamedTuple):
    """What a conversion did to the values of a matrix; see ``ConversionReport``."""

    rows_sorted: int = 0
    duplicates_summed: int = 0
    max_rounding: float = 0.0
    is_counts: bool = True


class Source(ABC):
    """Cells that share their genes, open for reading.

    Attributes
    ----------
    path
        Where they come from, for messages.
    label
        What the archive remembers as their origin.
    matrix_name
        The matrix taken, such as ``raw/X``; of an archive, what it was taken from.
    element
        Element of the source that it is.
    matrix
        Its rows.
    obs
        The table of cells.
    labelled
        The same with a column more, which is to be written; None: as it is.
    first_row
        What is to be taken from the neighbours of a graph, which may count from other cells.
    tally
        What was done to the values of the matrix before, where that is known.
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

    @property
    def n_obs(self) -> int:
        """Cells."""
        return self.obs.num_rows

    @property
    def cells(self) -> TableSource:
        """The table of cells as it is to be written."""
        return self.obs if self.labelled is None else self.labelled

    @abstractmethod
    def var(self) -> pa.Table:
        """The table of genes."""

    # -- what a format need not have ---------------------------------------------------------

    @property
    def n_vars(self) -> int:
        """Genes."""
        return int(self.var().num_rows)

    def graph(self, key: str) -> Matrix | None:
        """The cells x cells matrix ``obsp[key]``; None where there is none."""
        return None

    def vectors(self, key: str) -> Reader:
        """The dense array ``obsm[key]``, one row a cell; SourceError where there is none."""
        raise SourceError(f"{self.path}: obsm/{key} is missing")

    @property
    def kept_graphs(self) -> Sequence[str]:
        """Graphs that are carried over without being asked for."""
        return ()

    @property
    def kept_vectors(self) -> Sequence[str]:
        """Dense vectors that are carried over without being asked for."""
        return ()

    @property
    def kept_dtypes(self) -> Mapping[str, np.dtype[Any]]:
        """Types of ``data``, ``indices`` and ``indptr`` that the archive gets if it is alone."""
        return {}

    def not_carried(self, carried: set[str]) -> list[str]:
        """Elements that are not among `carried`, by name."""
        return [name for name in self.names_of_rest() if name not in carried] + [*self.unread]

    @property
    def unread(self) -> Sequence[str]:
        """What is lost even where all elements are carried over."""
        return ()

    def names_of_rest(self) -> Sequence[str]:
        """Names of all elements of an AnnData besides the matrix, its genes and obs.

        What is in uns is named piece by piece, as ``uns/neighbors/params/method``.
        """
        return ()

    def element_of_rest(self, name: str) -> SparseParts | Matrix | Reader | Any:
        """One of these: a sparse matrix, a reader of a dense one, or else an object.

        Raises
        ------
        SourceError, ArchiveFormatError
            It cannot be read, or nobody knows its encoding.
        """
        raise SourceError(f"{self.path}: there is no {name}")

    @property
    def genes(self) -> str:
        """The table of genes that the matrix has."""
        return genes_of(self.element)


def in_memory(name: str, element: Any) -> SparseParts | Reader | Any:
    """What of an element that was read as a whole archives have as arrays, as those."""
    if not (is_matrix(name) or name.startswith(("obsm/", "obsp/"))):
        return element
    if getattr(getattr(element, "dtype", None), "newbyteorder", str)("=") not in DTYPES:
        return element
    if getattr(element, "format", None) in BY_FORMAT:
        parts = {part: Values(getattr(element, part)) for part in MATRIX}
        return SparseParts(Sparse(element.format, element.shape), parts)
    return Values(element) if isinstance(element, np.ndarray) else element


def genes_of(matrix: str) -> str:
    """The table of genes that a matrix has."""
    return "raw/var" if matrix == "raw/X" else "var"


def is_matrix(name: str) -> bool:
    """Whether an element is a matrix of cells and genes."""
    return name in ("X", "raw/X") or name.startswith("layers/")
