"""The arrays of one archive, and how they are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdl.archive.schema import DATA, INDICES, INDPTR, graph_array
from scdl.dataset.cells import Storage
from scdl.dataset.reader import CellReader
from storage_backends.base import ArrayStore
from storage_backends.compute.caching import cached_property

#: Assumed ratio of the bytes of cells in memory to those in a storage that does not tell.
_COMPRESSED = 5


class StoredCells(CellReader):
    """Cells of one archive, whose arrays can be accessed as a whole."""

    _store: ArrayStore

    @property
    def store(self) -> ArrayStore:
        """The open archive of the storage backend."""
        return self._store

    @property
    def data(self) -> NDArray[Any]:
        """All stored values, read-only; memory-mapped if the backend supports it."""
        return self._whole(DATA)

    @property
    def col_index(self) -> NDArray[Any]:
        """Gene of every stored value, read-only."""
        return self._whole(INDICES)

    @property
    def row_index(self) -> NDArray[Any]:
        """n_obs + 1 offsets, read-only."""
        return self._whole(INDPTR)

    def _whole(self, name: str) -> NDArray[Any]:
        view = self._store.view(name)
        if view is None:
            view = self._store.read(name)
            view.flags.writeable = False
        return view

    @property
    def dtypes(self) -> dict[str, str]:
        """Dtypes of the arrays by documented file name."""
        files = {"data.npy": DATA, "col_ptr.npy": INDICES, "row_ptr.npy": INDPTR}
        found = {file: self._store.spec(name).dtype.name for file, name in files.items()}
        if self.graph is not None:
            parts = {DATA: "values", INDICES: "indices", INDPTR: "indptr"}
            for part, name in parts.items():
                spec = self._store.spec(graph_array(self.graph.key, part))
                found[f"neighbor_{name}.npy"] = spec.dtype.name
        return found

    @property
    def metadata(self) -> dict[str, int]:
        """The documented ``{"num_rows": n_obs}``."""
        return {"num_rows": self.n_obs}

    def number_nonzero_values(self) -> int:
        """Number of stored values.

        Examples
        --------
        >>> data.number_nonzero_values()
        11
        """
        return self._store.spec(DATA).length

    @property
    def data_dtype(self) -> np.dtype[Any]:
        """Dtype of the stored values."""
        return self._store.spec(DATA).dtype

    @property
    def index_dtype(self) -> np.dtype[Any]:
        """Dtype of the stored column ids, unsigned."""
        return self._store.spec(INDICES).dtype

    @property
    def bytes_per_cell(self) -> float:
        """Average bytes in memory of the stored values and column ids of a cell."""
        value_bytes = sum(self._store.spec(name).dtype.itemsize for name in (DATA, INDICES))
        return self.number_nonzero_values() * value_bytes / max(self.n_obs, 1)

    @cached_property
    def storage(self) -> Storage:
        """How the cells are stored."""
        per_chunk = self._store.chunk_length(DATA) * self.n_obs
        stored, request_bytes = self.bytes_per_cell, self._store.request_bytes
        if request_bytes:
            sizes = self._store.stored_bytes
            # Servers that list no files do not tell; compressed cells have about this size.
            stored = sum(sizes[name] for name in (DATA, INDICES)) / max(self.n_obs, 1)
            stored = stored or self.bytes_per_cell / _COMPRESSED
        return Storage(per_chunk / max(self.number_nonzero_values(), 1), stored, request_bytes)
