"""Other modalities of the cells to load: datasets with the same cells, matched by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from scdl.archive.gene_names import check_one_space, strings
from scdl.archive.schema import INDEX
from scdl.dataset.batch import CellBatch
from scdl.dataset.reader import CellReader, as_cells
from scdl.errors import CellNotFoundError, LoaderError

if TYPE_CHECKING:
    import pyarrow as pa

#: Names that a message mentions.
_MENTIONED = 3


@dataclass(frozen=True)
class Modality:
    """A dataset with the cells of another one.

    Parameters
    ----------
    cells
        The dataset.
    rows
        Its row for each cell of the other dataset, -1 if it has none; None: the same rows.
    """

    cells: CellReader
    rows: NDArray[np.int64] | None

    @classmethod
    def of(cls, name: str, given: object, cells: CellReader) -> Self:
        """Match the cells of a dataset by name.

        Parameters
        ----------
        name
            Name of the modality, for messages.
        given
            Its dataset.
        cells
            The cells to match with.

        Raises
        ------
        LoaderError
            `cells` have a field of that name, or names of cells are missing or repeated.
        GeneError
            The dataset has cells with different genes.
        DatasetTypeError
            It is not a dataset.
        """
        if name in cells.fields:
            raise LoaderError(
                f"modalities={{{name!r}: …}}: {cells!r} has a field of that name; choose another"
            )
        other = as_cells(given)
        check_one_space(other.gene_spaces, repr(other))
        ours, theirs = (_names(one) for one in (cells, other))
        if ours.equals(theirs):
            return cls(other, None)
        return cls(other, _places(ours, theirs, (repr(cells), repr(other))))

    def check(self, name: str, cells: CellReader, rows: NDArray[np.int64] | None) -> None:
        """Raise CellNotFoundError if some of the other dataset's cells are not in this one.

        Parameters
        ----------
        rows
            The cells to look for; None: all.
        """
        if self.rows is None:
            return
        rows = np.arange(len(self.rows)) if rows is None else rows
        missing = rows[self.rows[rows] < 0]
        if not len(missing):
            return
        first = ", ".join(map(repr, _names(cells).take(missing[:_MENTIONED]).to_pylist()))
        theirs = ", ".join(map(repr, _names(self.cells)[:_MENTIONED].to_pylist())) or "none"
        raise CellNotFoundError(
            f"modalities={{{name!r}: …}}: {self.cells!r} lacks {len(missing):,} of the "
            f"{len(rows):,} cells to load, such as {first}; its own are {theirs} and so on; to "
            f"load the cells that both have, pass rows=np.isin(data.obs_names, {name}.obs_names)"
        )

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows in this dataset of cells of the other one."""
        return rows if self.rows is None else self.rows[rows]

    def read(self, batch: CellBatch, **options: Any) -> CellBatch:
        """Read the cells of a batch of the other dataset, which keep their rows there."""
        read = self.cells.read_rows(self.places(batch.rows), **options)
        return replace(read, rows=batch.rows)


def modalities_of(
    given: Mapping[str, object], cells: CellReader, rows: NDArray[np.int64] | None
) -> dict[str, Modality]:
    """Match the cells of datasets, given by name, with the cells to load, which are `rows`.

    Raises
    ------
    CellNotFoundError
        A dataset lacks some of them.
    LoaderError, GeneError, DatasetTypeError
        As :meth:`Modality.of`.
    """
    found = {name: Modality.of(name, one, cells) for name, one in given.items()}
    for name, modality in found.items():
        modality.check(name, cells, rows)
    return found


def _names(cells: CellReader) -> pa.Array:
    """Names of cells; LoaderError if there are none."""
    import pyarrow as pa

    obs = cells.obs_features()
    table = None if obs is None else obs.columns.table([], index=True)
    if table is None or INDEX not in table.schema.names:
        raise LoaderError(f"{cells!r}: its cells have no names by which modalities are matched")
    return pa.concat_arrays(
        [strings(part) for part in table[INDEX].chunks] or [strings(pa.array([]))]
    )


def _places(ours: pa.Array, theirs: pa.Array, of: tuple[str, str]) -> NDArray[np.int64]:
    """The position among their names of each of ours, -1 if there is none."""
    import pyarrow.compute as pc

    for names, where in zip((ours, theirs), of, strict=True):
        if names.null_count or pc.count_distinct(names).as_py() < len(names):
            raise LoaderError(
                f"{where}: modalities are matched by the names of cells, but some of these are "
                "missing or repeated, and they are not those of the other dataset in its order; "
                "make them unique with scdl.convert(…, unique_names=True)"
            )
    places: NDArray[np.int64] = pc.index_in(ours, theirs).fill_null(-1).to_numpy().astype(np.int64)
    return places
