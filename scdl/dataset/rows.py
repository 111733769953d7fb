"""Cells read in batches, over what a dataset can read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, Unpack

import numpy as np
from numpy.typing import DTypeLike, NDArray

from scdl.archive import csr
from scdl.archive.gene_space import is_own
from scdl.archive.joining import read_rows
from scdl.archive.requests import Request
from scdl.archive.schema import names_of
from scdl.dataset.batch import CellBatch
from scdl.dataset.cells import Cells
from scdl.errors import OptionError

if TYPE_CHECKING:
    from anndata import AnnData

    from scdl.dataset.gene_view import GeneOptions, Genes, GeneView


class RowReader(Cells):
    """Cells by row, over a few primitives.

    A subclass says what it holds (:attr:`info` and the other properties), and where:
    :meth:`_request` and :meth:`_vectors`.
    """

    def read_rows(
        self,
        rows: csr.Rows,
        *,
        obs: str | Sequence[str] = (),
        obsm: str | Sequence[str] = (),
        genes: Genes | None = None,
        ordered: bool = True,
        index_dtype: DTypeLike | None = None,
        sum_dtype: DTypeLike | None = None,
        totals: bool = False,
    ) -> CellBatch:
        """Read cells as one batch.

        Parameters
        ----------
        rows
            One row, a slice, positions in any order (they may repeat; negative ones count from
            the end), or a mask of all cells.
        obs
            Columns of obs to read along, or one; categorical ones give their categories' values.
        obsm
            Dense vectors to read along, by key, or those of one.
        genes
            The genes to read, all of which every cell must have; :meth:`select_genes` has the
            other policies, and is what to use for many reads. ``"own"``: all genes of each cell,
            also where cells have different ones; the column ids of a cell then mean the genes of
            its own gene space, which the batch names in ``spaces``.
        ordered
            Whether the genes of each cell must come in rising order, each once. False saves time
            where an archive stores them otherwise and the batch becomes dense.
        index_dtype
            A wider integer type for the column ids; None: the one that they are stored in.
        sum_dtype
            Type of the values where an archive repeats a gene of a cell, or several genes are one,
            and their values are added; None: that of the values.
        totals
            Whether to add up the stored values of each cell, over all genes also where `genes`
            are fewer: the batch's ``totals``.

        Returns
        -------
        CellBatch
            In the order of `rows`, as wide as the gene space of its cells. Where these have
            different genes it is as wide as the widest, and is no matrix: its conversions raise
            GeneError unless `genes` was given.

        Raises
        ------
        RowIndexError
            A row is out of range, or a mask has the wrong length.
        FeatureNotFoundError
            There is no such column of obs, or no such key of obsm.
        GeneError
            `genes` are not in all cells.
        OutputError
            `index_dtype` does not hold the column ids.
        CastError
            The type of the values, or `sum_dtype`, cannot hold a sum.
        """
        cells, own = self, is_own(genes)
        if genes is not None and not own:
            cells = self.select_genes(genes)
        summed = None if sum_dtype is None else np.dtype(sum_dtype)
        at = csr.positions(rows, self.n_obs)
        batch = cells._read(at, ordered, index_dtype, sum_dtype=summed, totals=totals)
        batch = cells._with_spaces(batch, own=own)
        if totals and batch.totals is None:
            batch = replace(batch, totals=batch.row_totals())
        if not (obs or obsm):
            return batch
        return replace(
            batch,
            obs={
                name: self._required_obs().columns.values(name, batch.rows)
                for name in names_of(obs, "obs")
            },
            obsm={key: self._vectors(key, batch.rows) for key in names_of(obsm, "obsm")},
        )

    def _read(
        self,
        at: NDArray[np.int64],
        ordered: bool,
        index_dtype: DTypeLike | None,
        *,
        concurrently: bool = False,
        sum_dtype: np.dtype[Any] | None = None,
        totals: bool = False,
    ) -> CellBatch:
        """The cells at some positions, without obs, obsm and gene spaces.

        Totals are left to the caller where the batch has all genes.
        """
        request = self._request(at)
        data, indices, indptr, largest = read_rows(
            request, index_dtype, ordered=ordered, sum_dtype=sum_dtype, concurrently=concurrently
        )
        n_vars = request.matrices.n_vars
        return CellBatch(data, indices, indptr, n_vars=n_vars, rows=at, largest=largest)

    @abstractmethod
    def _request(self, at: NDArray[np.int64]) -> Request:
        """Which rows of which archives the cells at some positions are."""

    @abstractmethod
    def _vectors(self, key: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The dense vectors `key` of cells."""

    def _vector_keys(self) -> list[str]:
        """Keys of the dense vectors that all cells have in one width."""
        return []

    def to_anndata(self, rows: csr.Rows | None = None) -> AnnData:
        """Cells in memory as an AnnData: X, obs, var and obsm.

        Parameters
        ----------
        rows
            Which, as for :meth:`read_rows`; None: all.

        Returns
        -------
        anndata.AnnData
            With the columns of var that all sources of the cells share.

        Raises
        ------
        RowIndexError
            A row is out of range.
        GeneError
            The cells have different genes; :meth:`select_genes` brings them into one gene space.
        """
        from scdl.dataset.anndata_assembly import assemble

        return assemble(self, None if rows is None else csr.positions(rows, self.n_obs))

    @abstractmethod
    def will_need(self, rows: NDArray[np.int64]) -> None:
        """Tell that some cells will be read soon, so that the storage may begin; does not wait."""

    # -- genes -----------------------------------------------------------------------------

    def select_genes(self, genes: Genes, **options: Unpack[GeneOptions]) -> GeneView:
        """The same cells in one gene space, whatever genes their archives have.

        Parameters
        ----------
        genes
            ``"union"`` of the genes of all feature blocks in the order they are met,
            ``"intersection"`` in the order of the first block, a list of gene ids, or the path of a
            text file with one a line.
        **options
            ``gene_column``: column of var that has the ids; default the names of the genes.
            ``missing``: what genes are that a cell's block lacks. ``"error"``, the default: there
            must be none; ``"zero"``: as if not expressed; ``"mask"``: the same, and batches tell
            which are there, in ``present`` and ``spaces``.
            ``duplicates``: what several genes of one id in a block are. ``"error"``, the default;
            ``"sum"``; ``"first"``.

        Raises
        ------
        GeneError
            Genes are missing, or have ids that are not unique, and no policy was given; a list
            repeats an id, is empty, or has nothing in common with the cells.
        GeneListNotFoundError
            There is no such file.
        FeatureNotFoundError
            A block lacks the column.
        """
        from scdl.dataset.gene_view import GeneView

        return GeneView(self, genes, **options)

    def select_matrix(self, matrix: str) -> Self:
        """The same cells with another matrix; OptionError where only one archive has others."""
        raise OptionError(
            f"{self}: there is no other matrix to choose; select the matrix of one archive first, "
            f"with scdl.open(path, matrix={matrix!r})"
        )

    def _with_spaces(
        self, batch: CellBatch, *, own: bool = False, compared: bool = False
    ) -> CellBatch:
        """The batch with the gene space of each cell, where cells of the dataset differ.

        Cells of one gene space make a batch that is as wide as that.

        Parameters
        ----------
        own
            Whether column ids were asked for as those of each cell's own genes.
        compared
            Whether the cells will be put together with those of other batches.
        """
        blocks = self.info.blocks
        if len(blocks) > 1 and len(batch) and not (own or compared):
            ends = int(batch.rows.min()), int(batch.rows.max())
            first, last = map(self.info.block_of, ends)
            if first == last:
                # The names of genes of other blocks need not be read.
                return replace(batch, n_vars=blocks[first].n_vars)
        if batch.present is not None or (spaces := self.spaces_of(batch.rows)) is None:
            return batch
        n_vars = batch.n_vars
        if not own and len(spaces) and (spaces == spaces[0]).all():
            n_vars = self._n_vars_of(batch.rows[0])
        return replace(batch, spaces=spaces, own_genes=own, n_vars=n_vars)
