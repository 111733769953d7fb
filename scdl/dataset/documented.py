"""BioNeMo-SCDL's documented methods, on top of those of a reader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, cast, overload

import numpy as np
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.archive.features import VarFeatures
from scdl.archive.requests import RowForm
from scdl.archive.schema import check_columns
from scdl.dataset.batch import CellBatch
from scdl.dataset.map_dataset import MapDataset
from scdl.dataset.rows import RowReader
from scdl.errors import RowIndexError

if TYPE_CHECKING:
    import torch

#: Values and column ids of one cell.
Row = tuple[NDArray[Any], NDArray[Any]]
#: Columns of var, or columns of var and values of obs; None if not requested.
Features = tuple[list[Any] | None, ...]
_Requested = tuple[bool | None, Sequence[str] | None]
_NOTHING: _Requested = (None, None)


class DocumentedReader(RowReader, MapDataset):
    """The methods for reading cells that BioNeMo-SCDL documents."""

    def features(self) -> VarFeatures:
        """The same as :meth:`var_features`.

        Examples
        --------
        >>> data.features().lookup(0, "var_feature_id")
        ([array(['CD19', 'CD3E', 'GNLY', 'LYZ'], dtype=object)], 'cells.h5ad')
        """
        return self.var_features()

    def number_of_rows(self) -> int:
        """Number of cells.

        Examples
        --------
        >>> data.number_of_rows()
        6
        """
        return self.n_obs

    def number_of_variables(self) -> list[int]:
        """Number of genes of each feature block.

        Examples
        --------
        >>> data.number_of_variables()
        [4]
        """
        return self.n_vars

    def number_of_values(self) -> int:
        """Cells times genes, summed over the feature blocks.

        Examples
        --------
        >>> data.number_of_values()
        24
        """
        return sum(self.var_features().number_of_values())

    def shape(self) -> tuple[int, list[int]]:
        """Number of cells, and number of genes of each feature block.

        Examples
        --------
        >>> data.shape()
        (6, [4])
        """
        return self.n_obs, self.n_vars

    def sparsity(self) -> float:
        """Share of the values that are not stored; 1.0 if there are no values at all.

        Examples
        --------
        >>> round(data.sparsity(), 3)
        0.542
        """
        values = self.number_of_values()
        return 1.0 - self.number_nonzero_values() / values if values else 1.0

    def _row(self, index: SupportsIndex) -> Row:
        batch = self.read_rows(np.array([csr.position(index, self.n_obs)]))
        # Read-only, as rows of mapped arrays are.
        batch.data.flags.writeable = batch.indices.flags.writeable = False
        return batch.data, batch.indices

    @overload
    def __getitem__(self, index: SupportsIndex) -> torch.Tensor: ...  # type: ignore[overload-overlap]

    @overload
    def __getitem__(self, index: slice | Sequence[int] | NDArray[Any]) -> list[torch.Tensor]: ...

    def __getitem__(self, index: csr.Rows) -> torch.Tensor | list[torch.Tensor]:
        """One cell as a tensor of shape [2, nnz], values then column ids; or a list of them.

        A slice, positions or a mask return a list, read together, which the documented collate
        functions accept. :meth:`read_rows` returns the same cells as one batch of arrays.
        """
        if type(index) is not int and csr.are_several(index):
            return self.__getitems__(csr.positions(index, self.n_obs).tolist())
        row = cast(SupportsIndex, index)
        values, columns = self._row(row)
        from scdl.dataset.collate import row_tensor

        alone = len(self.info.blocks) == 1
        if alone or (spaces := self.spaces_of(row)) is None:
            return row_tensor(values, columns, self.max_n_vars)
        return row_tensor(values, columns, self._n_vars_of(row), int(spaces[0]))

    def __getitems__(self, indices: Sequence[int]) -> list[torch.Tensor]:
        """Cells of a batch, read together; called by ``DataLoader``.

        For collate functions they are the tensors of ``ds[i]``; ours uses the underlying batch.
        """
        if type(self).__getitem__ is not DocumentedReader.__getitem__:
            # A subclass may return something else for a cell.
            return [self[i] for i in indices]
        from scdl.dataset.collate import RowTensors

        return RowTensors(self._read_for_tensors(indices))

    def _read_for_tensors(self, rows: csr.Rows) -> CellBatch:
        """Read cells as one batch, with the column id dtype of tensors if that is safe."""
        safe = np.can_cast(self.index_dtype, np.int64, "safe")
        at = csr.positions(rows, self.n_obs)
        # The dtype of values in tensors of cells, see tensors.row_values.
        summed = np.dtype(np.int64) if self.data_dtype.kind != "f" else None
        # Read concurrently, as a DataLoader process reads nothing else meanwhile.
        form = RowForm(True, np.int64 if safe else None, summed, concurrently=True)
        batch = self._read(at, form)
        return self._with_spaces(batch, compared=True)

    def get_row(
        self,
        index: SupportsIndex,
        return_features: bool = False,
        feature_vars: Sequence[str] | None = None,
        return_obs_features: bool | None = None,
        obs_feature_names: Sequence[str] | None = None,
        *,
        return_var_features: bool | None = None,
        var_feature_names: Sequence[str] | None = None,
    ) -> tuple[Row, *Features]:
        """Stored values of one cell.

        Parameters
        ----------
        index
            Row; negative ones count from the end.
        return_features
            Whether to return columns of var.
        feature_vars
            Which columns; default all.
        return_obs_features, obs_feature_names
            The same for the cell's values of columns of obs.
        return_var_features, var_feature_names
            Other names of `return_features` and `feature_vars`, from BioNeMo-SCDL 0.1.3.

        Returns
        -------
        (values, column_ids), features
            Values with the archive's dtype and their column ids in ascending order, both read-only;
            `features` is None, or one array of n_vars for each column.
        (values, column_ids), var_features, obs_features
            The same if one of the last four parameters is given, as in BioNeMo-SCDL 0.1.3;
            `obs_features` is None, or one value for each column.

        Raises
        ------
        RowIndexError
            The row is out of range.
        FeatureNotFoundError
            There is no such column.

        Examples
        --------
        >>> (values, genes), _ = data.get_row(0)
        >>> values, genes
        (array([2., 1.], dtype=float32), array([1, 3], dtype=uint8))
        >>> (values, genes), features = data.get_row(0, return_features=True)
        >>> features[0][genes]
        array(['CD3E', 'LYZ'], dtype=object)
        """
        obs, renamed = (
            (return_obs_features, obs_feature_names),
            (return_var_features, var_feature_names),
        )
        if not return_features and obs == renamed == _NOTHING:
            return self._row(index), None
        features = self._features(index, (return_features, feature_vars), obs, renamed)
        return self._row(index), *features

    def get_row_padded(
        self,
        index: SupportsIndex,
        return_features: bool = False,
        feature_vars: Sequence[str] | None = None,
        return_obs_features: bool | None = None,
        obs_feature_names: Sequence[str] | None = None,
        *,
        return_var_features: bool | None = None,
        var_feature_names: Sequence[str] | None = None,
    ) -> tuple[NDArray[Any], *Features]:
        """One cell as a dense array of its block's n_vars; otherwise as :meth:`get_row`.

        Examples
        --------
        >>> cell, _ = data.get_row_padded(-2)
        >>> cell
        array([0., 4., 0., 2.], dtype=float32)
        """
        documented, obs = (return_features, feature_vars), (return_obs_features, obs_feature_names)
        renamed = return_var_features, var_feature_names
        features = self._features(index, documented, obs, renamed)
        values, columns = self._row(index)
        dense = np.zeros(self._n_vars_of(index), values.dtype)
        check_columns(columns, len(dense))
        dense[columns] = values
        return dense, *features

    def get_row_column(
        self, index: SupportsIndex, column: SupportsIndex, impute_missing_zeros: bool = True
    ) -> float | None:
        """One value; if none is stored 0.0, or None without `impute_missing_zeros`.

        Examples
        --------
        >>> data.get_row_column(0, 1), data.get_row_column(0, 2)
        (2.0, 0.0)
        >>> data.get_row_column(0, 2, impute_missing_zeros=False) is None
        True
        """
        values, columns = self._row(index)
        n_vars = self._n_vars_of(index)
        gene = int(column.__index__())
        if not 0 <= gene < n_vars:
            raise RowIndexError(f"column {gene} is out of range for {n_vars} genes")
        at = int(np.searchsorted(columns, gene))
        if at < len(columns) and columns[at] == gene:
            value: float = values[at].item()
            return value
        return 0.0 if impute_missing_zeros else None

    def _features(
        self, index: SupportsIndex, documented: _Requested, obs: _Requested, var: _Requested
    ) -> Features:
        """Features of a cell for :meth:`get_row`, given which are requested, and their columns."""
        (wanted, names), (other, other_names), (from_obs, obs_names) = documented, var, obs
        of_var = None
        if wanted or other:
            chosen = names if other_names is None else other_names
            of_var = self.var_features().lookup(csr.position(index, self.n_obs), chosen)[0]
        if from_obs is None and obs_names is None and other is None and other_names is None:
            return (of_var,)
        if not from_obs:
            return of_var, None
        row = csr.position(index, self.n_obs)
        return of_var, self._required_obs().lookup(row, obs_names)[0]
