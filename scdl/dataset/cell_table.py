"""The table of cells: reading its columns, and finding cells by them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scdl.archive.features import ObsFeatures
from scdl.archive.frames import frame_of
from scdl.archive.schema import INDEX, names_of
from scdl.errors import FeatureNotFoundError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from pyarrow.compute import Expression


class CellTable(ABC):
    """The table of cells of one or many archives."""

    _obs: ObsFeatures | None

    @property
    def obs(self) -> pd.DataFrame:
        """The table of cells, indexed by their names if these are stored; not cached.

        :meth:`read_obs` reads some of the columns, or all in less memory.
        """
        return self.read_obs()

    def read_obs(
        self,
        columns: str | Sequence[str] | None = None,
        *,
        index: bool = True,
        arrow_strings: bool = False,
    ) -> pd.DataFrame:
        """Read columns of the table of cells.

        Parameters
        ----------
        columns
            One or several columns, in this order; None: all.
        index
            Whether to read the names of the cells, which often take most of the time and memory;
            without them cells are numbered from 0.
        arrow_strings
            Whether text is kept in Arrow's memory, as pandas 3 does by default: the dtype ``str``,
            which needs a third of the memory of objects. anndata before 0.13 cannot write it.

        Returns
        -------
        pandas.DataFrame
            One row for each cell. Categorical columns have all their categories, and columns with
            nulls keep their types.

        Raises
        ------
        FeatureNotFoundError
            There is no such column, or no obs.

        Examples
        --------
        >>> data.read_obs("donor", index=False)["donor"].value_counts().to_dict()
        {'d1': 2, 'd2': 2, 'd3': 2}
        """
        names = None if columns is None else names_of(columns, "columns")
        columns_of_obs = self._required_obs().columns
        # Nothing here refers to the table, so that its columns are freed one by one.
        return frame_of(columns_of_obs.table(names, index=index), arrow_strings=arrow_strings)

    def where(self, condition: str | Expression) -> NDArray[np.int64]:
        """The cells for which a condition on columns of obs is true.

        Parameters
        ----------
        condition
            Comparisons of columns with values, or with each other, such as
            ``"cell_type == 'T' and n_genes > 500"``: ``==``, ``!=``, ``<``, ``<=``, ``>``, ``>=``,
            ``in [...]``, ``not in [...]``, ``is None``, ``is not None``, and columns of truth
            values, joined by ``and``, ``or``, ``not`` and parentheses. Names with other characters
            than letters, digits and ``_`` are in backticks. Or an expression of
            ``pyarrow.compute``.

        Returns
        -------
        numpy.ndarray
            Positions of the cells, int64, ascending: `rows` for :meth:`read_rows`, loaders, splits
            and exports.

        Raises
        ------
        FilterError
            The condition is not valid, or compares a column with a value of another kind.
        FeatureNotFoundError
            There is no such column, or no obs.

        Notes
        -----
        As in SQL, a comparison with a missing value is neither true nor false, and so is its
        negation: ``x != 5`` and ``not x == 5`` leave out cells without `x`. NaN is a missing value.
        Ordered categories are compared by their order. obs is read in batches, so that memory does
        not grow with the number of cells, except for the result.

        Examples
        --------
        >>> rows = data.where("cell_type in ['T', 'B'] and donor != 'd3'")
        >>> rows
        array([0, 1, 3])
        >>> loader = scdl.SingleCellLoader(data, 2, rows=rows)
        """
        from scdl.archive.filters import Filter

        features = self._required_obs()
        chosen, absent, present = Filter(condition), set[str](), set[str]()
        found = [np.empty(0, np.int64)]
        for start, table in self._obs_batches(chosen.columns):
            present.update(table.schema.names)
            found.append(chosen.positions(table, absent) + start)
        if unknown := sorted(absent - present):
            known = ", ".join(features.columns.names) or "none"
            raise FeatureNotFoundError(
                f"{self!r}: the filter names the column {unknown[0]!r}, which obs lacks; it has: "
                f"{known}"
            )
        return np.concatenate(found)

    @abstractmethod
    def _obs_batches(
        self, chosen: Callable[[Sequence[str]], list[str]]
    ) -> Iterator[tuple[int, pa.Table]]:
        """Yield columns of obs in batches, and the first cell of each.

        `chosen` returns the columns to read, given those that exist, which may differ by batch.
        """

    @property
    def obs_names(self) -> NDArray[Any]:
        """Names of the cells, as objects."""
        return self._required_obs().columns.column(INDEX)

    def _required_obs(self) -> ObsFeatures:
        features = self.obs_features()
        if features is None:
            raise FeatureNotFoundError(f"{self!r}: there is no obs")
        return features

    def obs_features(self) -> ObsFeatures | None:
        """Columns of obs by cell, null if an archive lacks them; None if there is no obs.

        Examples
        --------
        >>> data.obs_features()[0]
        (['B', 'd1'], 'cells.h5ad')
        """
        return self._obs
