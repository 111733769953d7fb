"""Choice of genes in outputs of 10x Genomics' Cell Ranger.

A matrix has features of several types, such as antibodies or CRISPR guides beside genes, and
possibly of several genomes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict, Unpack

import numpy as np
import pyarrow as pa

from scdl.archive.schema import INDEX
from scdl.archive.tables import TableSource
from scdl.errors import OptionError, SourceError
from scdl.sources.base import Source
from scdl.sources.cuts import Mapped
from scdl.sources.matrices import Matrix

#: The type of features that are genes.
GENES = "Gene Expression"
#: Value of `feature_types` for all of them.
ALL = "all"


class TenxOptions(TypedDict, total=False):
    """Options of a conversion for these formats, as for :func:`scdl.convert`."""

    genome: str
    feature_types: str | Sequence[str]


OPTIONS = tuple(TenxOptions.__annotations__)


class Features:
    """The features of a matrix, and which of them are converted.

    Parameters
    ----------
    where
        Path of the source, for messages.
    names
        Names of the features.
    columns
        Other columns by name: ``gene_ids``, and ``feature_types`` and ``genome`` if known.
    **options
        Which genome and types to choose.

    Raises
    ------
    OptionError
        There is no such genome or type.
    """

    def __init__(
        self,
        where: str,
        names: pa.Array,
        columns: Mapping[str, pa.Array],
        **options: Unpack[TenxOptions],
    ) -> None:
        n = len(names)
        for name, column in columns.items():
            if len(column) != n:
                raise SourceError(f"{where}: {name} has {len(column)} values, expected {n} genes")
        chosen = np.ones(n, bool)
        types, feature_types = columns.get("feature_types"), options.get("feature_types")
        if feature_types is None and types is not None:
            # As scanpy's readers do.
            feature_types = GENES if GENES in set(types.to_pylist()) else ALL
        wanted = [feature_types] if isinstance(feature_types, str) else list(feature_types or ())
        if wanted and ALL not in wanted:
            chosen &= _among(where, "feature type", types, wanted)
        if (genome := options.get("genome")) is not None:
            chosen &= _among(where, "genome", columns.get("genome"), [genome])
        self.table = pa.table({INDEX: names, **columns}).filter(pa.array(chosen))
        self.n_all = n
        self._places = np.where(chosen, np.cumsum(chosen) - 1, -1).astype(np.int32)
        self.left_out = [] if types is None else _counted(types.filter(pa.array(~chosen)))

    def select(self, matrix: Matrix) -> Matrix:
        """The columns of the chosen features of a matrix of all features."""
        if self.table.num_rows == self.n_all:
            return matrix
        return Mapped(matrix, self._places, self.table.num_rows)


def _among(where: str, what: str, column: pa.Array | None, wanted: Sequence[str]) -> np.ndarray:
    """Whether the value of each feature is among those wanted; OptionError if one never occurs."""
    values = [] if column is None else column.to_pylist()
    known = list(dict.fromkeys(values))
    for value in wanted:
        if value not in known:
            raise OptionError(
                f"{where}: there is no {what} {value!r}; the file has: {', '.join(known) or 'none'}"
            )
    return np.isin(np.array(values, object), list(wanted))


def _counted(types: pa.Array) -> list[str]:
    """Names and numbers of features by type."""
    return [f"{count['counts']} features of type {count['values']}"
            for count in types.value_counts().to_pylist()]  # fmt: skip


class TenxSource(Source):
    """A matrix of Cell Ranger.

    Parameters
    ----------
    path
        Path of the file or directory.
    matrix
        Name of the matrix that the user chose; only ``X`` exists.
    features
        The features.
    cells
        Names of the cells, and other columns of obs.
    values
        The matrix of cells by all features.
    outside
        Names of contents of the file that are not converted.
    """

    def __init__(
        self,
        path: str,
        matrix: str | None,
        features: Features,
        cells: TableSource,
        values: Matrix,
        outside: Sequence[str] = (),
    ) -> None:
        if matrix not in (None, "X"):
            raise SourceError(f"{path}: there is no matrix {matrix}; the file has: X")
        self.path = self.label = path
        self.matrix_name = self.element = "X"
        self._features = features
        self.obs = cells
        self.outside = outside
        self.matrix = features.select(values)

    def var(self) -> pa.Table:
        return self._features.table

    @property
    def unread(self) -> Sequence[str]:
        return self._features.left_out
