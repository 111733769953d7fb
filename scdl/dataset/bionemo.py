"""The documented class of BioNeMo-SCDL."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from numpy.typing import DTypeLike

from scdl.archive.neighbor_choice import NeighborSamplingStrategy
from scdl.archive.schema import NEIGHBOR_KEY
from scdl.dataset.dataset import SingleCellDataset
from scdl.dataset.opened import OBS_INDEX_NAMES, VAR_INDEX_NAMES
from scdl.errors import OptionError
from storage_backends.paths import Path

if TYPE_CHECKING:
    from scdl.conversion.options import ConvertOptions


class SingleCellMemMapDataset(SingleCellDataset):
    """The documented class of BioNeMo-SCDL: an archive of the memmap backend.

    Parameters
    ----------
    data_path, h5ad_path
        As for :class:`SingleCellDataset`.
    num_elements, num_rows
        Not supported; they raise a TypeError. Use :func:`scdl.convert`.
    mode
        Stored but without effect; archives are opened read-only.
    paginated_load_cutoff
        Accepted but without effect; every file is read in blocks.
    load_block_row_size
        Maximum number of rows to read at once in a conversion; it does not affect the result.
    feature_index_name, var_feature_index_name, obs_feature_index_name
        Column names for gene and cell names. Positional arguments in the order of
        BioNeMo-SCDL 0.1.3 raise an error that requests keywords.
    load_neighbors, neighbor_key, neighbor_sampling_strategy, fallback_to_identity
        As for :class:`SingleCellDataset`.
    data_dtype, data_dtype_tolerance
        Type of the stored values, default float32; see :func:`scdl.convert`.
    use_X_not_raw
        Whether to use ``X`` even if the file has ``raw/X``, which is preferred by default.

    Attributes
    ----------
    mode
        As given.

    Examples
    --------
    >>> dataset = scdl.SingleCellMemMapDataset("migrated", "cells.h5ad")
    >>> dataset.get_row(0)
    ((array([2., 1.], dtype=float32), array([1, 3], dtype=uint8)), None)
    >>> scdl.SingleCellMemMapDataset("migrated").number_of_rows()
    6
    """

    def __init__(
        self,
        data_path: Path,
        h5ad_path: Path | None = None,
        num_elements: int | None = None,
        num_rows: int | None = None,
        mode: Any = "r",
        paginated_load_cutoff: int = 10_000,
        load_block_row_size: int = 1_000_000,
        feature_index_name: str = "feature_id",
        load_neighbors: bool = False,
        neighbor_key: str = NEIGHBOR_KEY,
        neighbor_sampling_strategy: NeighborSamplingStrategy
        | str = NeighborSamplingStrategy.RANDOM,
        fallback_to_identity: bool = True,
        *,
        var_feature_index_name: str = "var_feature_id",
        obs_feature_index_name: str = "obs_feature_id",
        data_dtype: DTypeLike | None = None,
        data_dtype_tolerance: float = 1e-8,
        use_X_not_raw: bool = False,
    ) -> None:
        if num_elements is not None or num_rows is not None:
            raise TypeError(
                "num_elements and num_rows make empty arrays to fill in place, which is not "
                "supported; write an archive with scdl.convert(h5ad_path, path)"
            )
        if isinstance(load_neighbors, str):
            raise OptionError(
                f"load_neighbors is true or false, not {load_neighbors!r}; in BioNeMo-SCDL 0.1.3 "
                "obs_feature_index_name stands in this place: give arguments after "
                "load_block_row_size by name"
            )
        self.mode = mode
        options: ConvertOptions = {
            "data_dtype": "float32" if data_dtype is None else data_dtype,
            "data_dtype_tolerance": data_dtype_tolerance,
            "block_rows": load_block_row_size,
        }
        # When opening an archive, `matrix` would select another matrix to read.
        matrix: ConvertOptions = {"matrix": "X"} if use_X_not_raw else {}
        if h5ad_path is not None:
            options.update(matrix)
        super().__init__(
            data_path,
            h5ad_path,
            load_neighbors=load_neighbors,
            neighbor_key=neighbor_key,
            neighbor_sampling_strategy=neighbor_sampling_strategy,
            fallback_to_identity=fallback_to_identity,
            **options,
        )
        self._options = {**options, **matrix}
        self._var_index_names = (var_feature_index_name, feature_index_name, *VAR_INDEX_NAMES)
        self._obs_index_names = (obs_feature_index_name, *OBS_INDEX_NAMES)

    @property
    def header_path(self) -> str:
        """Path of the header of a memmap archive."""
        return os.path.join(self.data_path, "header.sch")

    @property
    def load_neighbors(self) -> bool:
        """Whether neighbours were requested."""
        return bool(self._load_neighbors)

    @property
    def neighbor_key(self) -> str:
        """Key of the requested graph."""
        return self._neighbor_key

    @property
    def neighbor_sampling_strategy(self) -> NeighborSamplingStrategy:
        """How neighbours are sampled."""
        strategy: NeighborSamplingStrategy = self._sampling["strategy"]
        return strategy

    @property
    def fallback_to_identity(self) -> bool:
        """Whether a cell without neighbours is its own neighbour."""
        return bool(self._sampling["fallback_to_identity"])
