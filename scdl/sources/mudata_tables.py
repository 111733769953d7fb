"""The tables of a MuData, and how a modality gets the columns that only the whole has.

Columns of the table of cells of all modalities that a modality lacks are added to its own, as
``MuData.push_obs`` does; its own columns are never replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scdl.archive.schema import INDEX
from scdl.archive.tables import Extended, NoTable, TableSource
from scdl.errors import OptionError, SourceError
from scdl.sources.base import Source

#: Group of the modalities in files.
MODALITIES = "mod"


@dataclass(frozen=True)
class Whole:
    """A MuData without its modalities.

    Parameters
    ----------
    path
        Its path, for messages.
    modalities
        Names of the modalities, in order.
    obs
        The table of cells of all modalities; it may have columns of each, named ``rna:n_genes``.
    var_columns
        Names of the columns of the table of genes.
    elements
        Names of other elements, such as ``obsm/X_umap``.
    """

    path: str
    modalities: Sequence[str]
    obs: TableSource = field(default_factory=lambda: NoTable(0))
    var_columns: Sequence[str] = ()
    elements: Sequence[str] = ()

    def choose(self, modality: str | None) -> str:
        """The chosen modality, or the only one.

        Raises
        ------
        SourceError
            There are several, or none, and none is chosen.
        OptionError
            There is no such modality.
        """
        known = ", ".join(self.modalities) or "none"
        if modality is None and len(self.modalities) == 1:
            return self.modalities[0]
        if modality is None:
            raise SourceError(
                f"{self.path}: this MuData has several modalities; choose one with modality=: "
                f"{known}" if self.modalities else f"{self.path}: this MuData has no modality"
            )  # fmt: skip
        if modality not in self.modalities:
            raise OptionError(
                f"{self.path}: there is no modality {modality!r}; the MuData has: {known}"
            )
        return modality

    def join(self, source: Source, name: str, places: NDArray[Any] | None) -> Source:
        """Add the columns of cells that a modality lacks, and name what is not converted.

        Parameters
        ----------
        source
            The modality.
        name
            Its name.
        places
            For each cell of the MuData its position in the modality plus 1, 0 if the modality does
            not have it; None if it is not known.

        Raises
        ------
        SourceError
            The positions do not match the tables.
        """
        others = [other for other in self.modalities if other != name]
        lacking = _lacking(self.obs.schema.names, source.obs.schema.names, name, others)
        if places is None:
            lacking = {}
        elif lacking:
            rows = self._rows(name, places, source.n_obs)
            for column, own in lacking.items():
                source.obs = _extended(source.obs, own, self.obs, column, rows)
        genes = _lacking(self.var_columns, source.var().schema.names, name, others)
        ours = [c for c in self.obs.schema.names if _is_shared(c, self.modalities)]
        lost = [f"obs/{column}" for column in ours if column not in lacking]
        lost += [f"var/{column}" for column in genes]
        source.outside = [f"{MODALITIES}/{other}" for other in others]
        source.outside += [f"MuData/{element}" for element in [*lost, *self.elements]]
        return source

    def _rows(self, name: str, places: NDArray[Any], n_obs: int) -> NDArray[np.int64]:
        """Row of each cell of a modality in the table of all cells."""
        where = f"{self.path}: obsmap/{name}"
        if places.shape != (self.obs.num_rows,) or places.dtype.kind not in "iu":
            raise SourceError(
                f"{where}: expected an integer for each of {self.obs.num_rows} cells, found "
                f"{places.dtype} values of shape {places.shape}; write the file again with mudata"
            )
        present = np.flatnonzero(places)
        own = places[present].astype(np.int64) - 1
        if len(own) != n_obs or not np.array_equal(np.sort(own), np.arange(n_obs)):
            raise SourceError(
                f"{where}: its positions do not name each of the {n_obs} cells of {name} once; "
                "call update() of the MuData and write it again"
            )
        rows = np.empty(n_obs, np.int64)
        rows[own] = present
        return rows


def _is_shared(column: str, modalities: Sequence[str]) -> bool:
    """Whether a column is not that of one modality, which has its name as a prefix."""
    prefix, colon, _ = column.partition(":")
    return column != INDEX and not (colon and prefix in modalities)


def _lacking(
    columns: Sequence[str], own: Sequence[str], name: str, others: Sequence[str]
) -> dict[str, str]:
    """Columns of the whole that a modality lacks, and their names in the modality."""
    found: dict[str, str] = {}
    for column in columns:
        if column != INDEX and _is_shared(column, others):
            new = column.removeprefix(f"{name}:")
            if new not in own and new not in found.values():
                found[column] = new
    return found


def _extended(
    table: TableSource, name: str, whole: TableSource, column: str, rows: NDArray[np.int64]
) -> TableSource:
    """A table with an additional column, taken from rows of another table."""

    def values(start: int, stop: int) -> pa.Array:
        at = rows[start:stop]
        if not len(at):
            return whole.column(column, 0, 0)
        # The cells of a modality are usually in the order of the MuData.
        first = int(at.min())
        return whole.column(column, first, int(at.max()) + 1).take(pa.array(at - first))

    return Extended(table, whole.schema.field(column).with_name(name), values)
