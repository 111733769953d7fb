"""A batch of cells as plain arrays, and its conversions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from scdl.archive import csr
from scdl.archive.casting import cast_values, computable
from scdl.archive.gene_names import check_one_space
from scdl.archive.schema import check_columns
from scdl.dataset import summary
from scdl.errors import CastError, OptionError

if TYPE_CHECKING:
    import scipy.sparse
    import torch

Layout = Literal["csr", "coo", "dense"]


@dataclass(frozen=True, eq=False, repr=False)
class CellBatch(summary.Summarized):
    """Cells in compressed sparse row form.

    Plain arrays are cheap to send between processes; consumers build sparse tensors from them.

    Parameters
    ----------
    data
        Stored values, with the archive's dtype.
    indices
        Gene of each stored value, sorted within a cell; with the archive's unsigned dtype.
    indptr
        n + 1 offsets into `data` and `indices` from 0, int64.
    n_vars
        Number of genes.
    rows
        Row of each cell in its dataset, int64.
    obs
        Requested columns of obs, one value per cell.
    obsm
        Requested dense vectors, n x width.
    largest
        Upper bound of the column ids, if known.
    present
        In a gene space with ``missing="mask"``: whether a gene space of the archives has a gene,
        spaces x n_vars.
    spaces
        Gene space of each cell, int64; None if the cells are known to share one. With
        `present`, the row of it for each cell.
    own_genes
        Whether column ids refer to each cell's own gene space, on request. Otherwise cells of
        different gene spaces cannot form a matrix.
    totals
        Sum of the stored values of each cell over all genes, including those left out by a
        selection, on request.
    fields
        Requested fields, further matrices of the same cells and genes, by name. Values and column
        ids have their own dtypes; `rows`, the number of genes and the gene spaces are those of
        this batch.

    Examples
    --------
    >>> batch = data.read_rows([0, 2])
    >>> len(batch), batch.shape
    (2, (2, 4))
    >>> batch.data, batch.indices, batch.indptr
    (array([2., 1., 5., 1.], dtype=float32), array([1, 3, 2, 3], dtype=uint8), array([0, 2, 4]))
    >>> batch[1:].to_dense()
    array([[0., 0., 5., 1.]], dtype=float32)
    """

    data: NDArray[Any]
    indices: NDArray[Any]
    indptr: NDArray[np.int64]
    n_vars: int
    rows: NDArray[np.int64]
    obs: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    obsm: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    largest: int | None = None
    present: NDArray[np.bool_] | None = None
    spaces: NDArray[np.int64] | None = None
    own_genes: bool = False
    totals: NDArray[np.float64] | None = None
    fields: Mapping[str, CellBatch] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, cells: slice) -> CellBatch:
        """Consecutive cells as a batch, whose arrays are views of this batch's arrays."""
        if not isinstance(cells, slice):
            # No IndexError, which would end a loop over the batch without a word.
            raise OptionError(
                f"a batch is indexed by slices, such as batch[3:4] for one cell, not {cells!r:.200}"
            )
        start, stop, step = cells.indices(len(self))
        if step != 1:
            raise OptionError(f"slices of a batch must have step 1, not {step}")
        stop = max(start, stop)
        first, last = int(self.indptr[start]), int(self.indptr[stop])
        # Loaders slice every batch: `dataclasses.replace` would double the time, and empty
        # comprehensions take a tenth of it.
        obs, obsm, fields = self.obs, self.obsm, self.fields
        return CellBatch(
            self.data[first:last],
            self.indices[first:last],
            self.indptr[start : stop + 1] - first,
            self.n_vars,
            self.rows[start:stop],
            {name: values[start:stop] for name, values in obs.items()} if obs else {},
            {key: vectors[start:stop] for key, vectors in obsm.items()} if obsm else {},
            self.largest,
            self.present,
            None if self.spaces is None else self.spaces[start:stop],
            self.own_genes,
            None if self.totals is None else self.totals[start:stop],
            {name: read[start:stop] for name, read in fields.items()} if fields else {},
        )

    def __repr__(self) -> str:
        return summary.text(*self._summary())

    def _summary(self) -> tuple[str, summary.Facts]:
        n, genes = len(self.data), len(self) * self.n_vars
        facts = {
            "values": summary.values(n, genes, self.data.dtype, self.indices.dtype),
            "rows": summary.names(self.rows),
            "obs": summary.names(list(self.obs)),
            "obsm": summary.names([f"{key} ({v.shape[1]})" for key, v in self.obsm.items()]),
            "fields": summary.names(list(self.fields)),
        }
        return f"CellBatch: {summary.size(len(self), [self.n_vars])}", facts

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells and genes."""
        return len(self.rows), self.n_vars

    def row_totals(self) -> NDArray[np.float64]:
        """Sum of the values of each cell in this batch.

        Examples
        --------
        >>> data.read_rows([0, 1]).row_totals()
        array([3., 3.])
        """
        from scdl.kernels import dense as dense_kernels

        data = self.data.astype(computable(self.data.dtype), copy=False)
        out = np.empty(len(self), np.float64)
        dense_kernels.sum_rows(data, self.indptr, out)
        return out

    def check_genes(self) -> None:
        """Raise GeneError if cells of different gene spaces would share a column axis.

        Examples
        --------
        >>> data.read_rows([0, 1]).check_genes()
        """
        if self.spaces is not None and self.present is None and not self.own_genes:
            check_one_space(self.spaces, "the cells of this batch")

    def check_columns(self) -> None:
        """Raise ArchiveFormatError if a column id is not below `n_vars`.

        Examples
        --------
        >>> data.read_rows([0]).check_columns()
        """
        if self.largest is None or self.largest >= self.n_vars:
            check_columns(self.indices, self.n_vars)

    def to_scipy(self) -> scipy.sparse.csr_matrix:
        """Convert to a scipy CSR matrix, n x n_vars; float16 becomes float32, as scipy requires.

        Raises
        ------
        GeneError
            The cells are of different gene spaces.

        Examples
        --------
        >>> matrix = data.read_rows([0, 1]).to_scipy()
        >>> matrix.shape, matrix.nnz
        ((2, 4), 3)
        """
        import scipy.sparse

        self.check_genes()
        self.check_columns()
        rows = csr.SparseRows(self.data, self.indices, self.indptr)
        matrix: scipy.sparse.csr_matrix = csr.scipy_matrix(
            scipy.sparse.csr_matrix, rows, self.shape
        )
        return matrix

    def to_dense(self, dtype: DTypeLike | None = None) -> NDArray[Any]:
        """Convert to a dense array, n x n_vars, with the stored dtype or another.

        Raises
        ------
        GeneError
            The cells are of different gene spaces.
        CastError
            The dtype cannot represent a value, or the sum of repeated entries.

        Examples
        --------
        >>> data.read_rows([0, 1]).to_dense("uint8")
        array([[0, 2, 0, 1],
               [3, 0, 0, 0]], dtype=uint8)
        """
        from scdl.kernels import dense as dense_kernels
        from scdl.kernels import memory as recycled

        self.check_genes()
        wanted = self.data.dtype if dtype is None else np.dtype(dtype)
        filled = computable(wanted)
        data = self.data.astype(computable(self.data.dtype), copy=False)
        if data.dtype != filled and (
            data.dtype == np.float64 or not np.can_cast(data.dtype, filled, "same_kind")
        ):
            data = cast_values(data, filled, "a value of a cell")
        out = recycled.empty(self.shape, filled)
        done = dense_kernels.fill_dense(data, self.indices, self.indptr, filled.kind in "iu", out)
        if done == dense_kernels.OUT_OF_RANGE:
            check_columns(self.indices, self.n_vars)
        if done == dense_kernels.OVERFLOW:
            raise CastError(
                f"{wanted} cannot hold the sum of repeated entries of a cell and gene; use a "
                "wider dtype"
            )
        return out if wanted == filled else cast_values(out, wanted, "a value of a cell")

    def to_torch(self, layout: Layout = "csr") -> torch.Tensor:
        """Convert to a torch tensor, n x n_vars: ``csr``, ``coo`` or ``dense``.

        Values keep their dtype if torch computes with it; unsigned integers wider than uint8
        become the next wider signed dtype.

        Examples
        --------
        >>> data.read_rows([0, 1]).to_torch("dense")
        tensor([[0., 2., 0., 1.],
                [3., 0., 0., 0.]])
        """
        from scdl.dataset import tensors

        self.check_genes()
        return tensors.batch_tensor(self, layout)

    def pin_memory(self) -> CellBatch:
        """Copy the batch to page-locked memory; without a GPU return the batch itself.

        Examples
        --------
        >>> batch = data.read_rows([0, 1]).pin_memory()
        """
        from scdl.dataset import tensors

        return tensors.pinned(self)


class NeighborPair(dict[str, Any]):
    """A cell and its neighbour, with the number of genes and the gene spaces for collating.

    The key ``var_features`` of BioNeMo-SCDL 0.1.3 and ``features`` of 0.1.1 are synonyms.
    """

    def __init__(
        self, pair: dict[str, Any], n_vars: int, spaces: tuple[int, int] | None = None
    ) -> None:
        super().__init__(pair)
        self.n_vars, self.spaces = n_vars, spaces

    def __missing__(self, key: str) -> Any:
        if key == "obs_features":
            return None
        for name, other in (("features", "var_features"), ("var_features", "features")):
            if key == name and other in self:
                return self[other]
        raise KeyError(key)

    def __reduce__(self) -> tuple[Any, ...]:
        return NeighborPair, (dict(self), self.n_vars, self.spaces)
