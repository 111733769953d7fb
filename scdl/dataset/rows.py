"""Reading cells in batches: the methods that all readers of cells share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, Unpack

import numpy as np
from numpy.typing import DTypeLike, NDArray

from scdl.archive import csr
from scdl.archive.gene_space import is_own
from scdl.archive.joining import encoded_rows, read_rows
from scdl.archive.requests import Request, RowForm
from scdl.archive.schema import names_of
from scdl.dataset.batch import CellBatch
from scdl.dataset.cells import Cells
from scdl.errors import OptionError
from storage_backends.compute.traffic import TRAFFIC
from storage_backends.encoded import Allocate, EncodedRows

if TYPE_CHECKING:
    from anndata import AnnData

    from scdl.dataset.gene_view import GeneOptions, Genes, GeneView
    from scdl.dataset.head import Head


class RowReader(Cells):
    """Reads cells by row.

    Subclasses provide the metadata (:attr:`info` and the other properties) and implement
    :meth:`_request` and :meth:`_vectors`.
    """

    def read_rows(
        self,
        rows: csr.Rows,
        *,
        obs: str | Sequence[str] = (),
        obsm: str | Sequence[str] = (),
        fields: str | Sequence[str] = (),
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
            One row, a slice, positions in any order (repeated and negative ones are allowed), or a
            boolean mask of all cells.
        obs
            One or several columns of obs to include; categorical columns are returned as values.
        obsm
            One or several keys of dense vectors to include.
        fields
            One or several names of further matrices of the cells to include (see :attr:`fields`),
            with the same genes. Each is a batch in ``fields`` of the batch.
        genes
            The genes to read, which every cell must have; :meth:`select_genes` has other policies,
            and is faster for many reads. ``"own"``: all genes of each cell, even if they differ
            between cells; the column ids of a cell then refer to its own gene space, which is given
            in ``spaces`` of the batch.
        ordered
            Whether to sort the genes of each cell and sum the values of repeated genes. False saves
            time for archives that store genes unsorted if the batch is converted to a dense array.
        index_dtype
            A wider integer dtype for the column ids; None: the stored dtype.
        sum_dtype
            Dtype of the values if they are summed because a cell repeats a gene or several genes
            map to one; None: the dtype of the values.
        totals
            Whether to compute the sum of the stored values of each cell, over all its genes even if
            `genes` selects some; see ``totals`` of the batch.

        Returns
        -------
        CellBatch
            Cells in the order of `rows`. The number of columns is that of the gene space of the
            cells. If the cells have different genes, it is that of the widest gene space, and
            converting the batch to a matrix raises GeneError unless `genes` was given.

        Raises
        ------
        RowIndexError
            A row is out of range, or a mask has the wrong length.
        FeatureNotFoundError
            A column of obs, key of obsm or field does not exist.
        GeneError
            Some cells lack some of the `genes`.
        OutputError
            `index_dtype` cannot represent the column ids. Fields whose ids it cannot represent keep
            their dtype.
        CastError
            The dtype of the values, or `sum_dtype`, cannot represent a sum.

        Examples
        --------
        >>> batch = data.read_rows([4, 0], obs=["donor"], fields=["spliced"])
        >>> batch.data, batch.indices, batch.indptr
        (array([4., 2., 2., 1.], dtype=float32), array([1, 3, 1, 3], dtype=uint8), array([0, 2, 4]))
        >>> batch.to_dense()
        array([[0., 4., 0., 2.],
               [0., 2., 0., 1.]], dtype=float32)
        >>> batch.obs["donor"]
        array(['d3', 'd1'], dtype=object)
        >>> batch.fields["spliced"].to_dense()
        array([[0., 2., 0., 1.],
               [0., 1., 0., 0.]], dtype=float32)
        """
        cells, own = self, is_own(genes)
        if genes is not None and not own:
            cells = self.select_genes(genes)
        summed = None if sum_dtype is None else np.dtype(sum_dtype)
        form = RowForm(ordered, index_dtype, summed, totals)
        batch = cells._read(csr.positions(rows, self.n_obs), form)
        batch = cells._with_spaces(batch, own=own)
        if totals and batch.totals is None:
            batch = replace(batch, totals=batch.row_totals())
        if not (obs or obsm or fields):
            return batch
        return replace(
            batch,
            obs={
                name: self._required_obs().columns.values(name, batch.rows)
                for name in names_of(obs, "obs")
            },
            obsm={key: self._vectors(key, batch.rows) for key in names_of(obsm, "obsm")},
            fields={
                name: cells._read_field(name, batch, form) for name in names_of(fields, "fields")
            },
        )

    def _read_field(self, name: str, batch: CellBatch, form: RowForm) -> CellBatch:
        """Read a field of the cells of a batch, in the genes of the batch."""
        form, stored = form._replace(totals=False), self._field(name).index_dtype
        if form.index_dtype is not None and not np.can_cast(stored, form.index_dtype, "safe"):
            form = form._replace(index_dtype=None)
        return replace(
            self._read(batch.rows, form, name),
            n_vars=batch.n_vars,
            present=batch.present,
            spaces=batch.spaces,
            own_genes=batch.own_genes,
        )

    def _read(self, at: NDArray[np.int64], form: RowForm, field: str = "") -> CellBatch:
        """Read the matrix or a field of cells at positions, without obs, obsm and gene spaces.

        The caller computes totals if the batch has all genes.
        """
        if not field:
            TRAFFIC.read(len(at))
        request = self._request(at, field)
        data, indices, indptr, largest, _ = read_rows(request, form)
        n_vars = request.matrices.n_vars
        return CellBatch(data, indices, indptr, n_vars=n_vars, rows=at, largest=largest)

    def _encoded(
        self, at: NDArray[np.int64], allocate: Allocate
    ) -> tuple[EncodedRows, NDArray[np.int64]] | None:
        """The matrix of cells at positions, encoded, and its offsets; None if it is not."""
        return encoded_rows(self._request(at), allocate)

    @abstractmethod
    def _request(self, at: NDArray[np.int64], field: str = "") -> Request:
        """The archives, and the rows in their matrix or a field, of the cells at positions."""

    @abstractmethod
    def _vectors(self, key: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Read the dense vectors `key` of cells."""

    def _vector_keys(self) -> list[str]:
        """Keys of the dense vectors that all cells have with the same width."""
        return []

    def to_anndata(self, rows: csr.Rows | None = None) -> AnnData:
        """Read cells into an in-memory AnnData with X, obs, var, obsm and fields as layers.

        Parameters
        ----------
        rows
            The cells to read, as for :meth:`read_rows`; None: all cells.

        Returns
        -------
        anndata.AnnData
            Its var has the columns that all sources of the cells share.

        Raises
        ------
        RowIndexError
            A row is out of range.
        GeneError
            The cells have different genes; use :meth:`select_genes` to map them to one gene space.

        Examples
        --------
        >>> cells = scdl.open("atlas", load_neighbors=False)
        >>> cells.to_anndata(rows=slice(4, 8)).obs_names.to_list()
        ['cell4', 'cell5', 'more0', 'more1']
        """
        from scdl.dataset.anndata_assembly import assemble

        return assemble(self, None if rows is None else csr.positions(rows, self.n_obs))

    def head(self, n: int = 5, genes: int = 10) -> Head:
        """The first cells, to look at: what obs says of them, and their largest genes.

        Parameters
        ----------
        n
            Number of cells.
        genes
            Number of genes of each cell, those of the largest values.

        Returns
        -------
        Head
            ``str()`` shows it, and ``cells`` has the cells one by one.

        Raises
        ------
        OptionError
            A number is negative.

        Examples
        --------
        >>> print(data.head(1))
        the first 1 of 6 cells
        <BLANKLINE>
        cell0
          obs    cell_type B, donor d1
          genes  2 stored, sum 3
          most   CD3E 2, LYZ 1
        """
        from scdl.dataset.head import head_of

        return head_of(self, n, genes)

    @abstractmethod
    def will_need(self, rows: NDArray[np.int64], fields: Sequence[str] = ()) -> Any:
        """Announce cells that will be read soon, so that the storage can prefetch them.

        `fields` names the fields that will be read with the matrix.
        Does not wait. What it returns may hold what was fetched, and is kept until they were read.
        """

    # -- genes -----------------------------------------------------------------------------

    def select_genes(self, genes: Genes, **options: Unpack[GeneOptions]) -> GeneView:
        """The same cells, mapped to one gene space.

        Parameters
        ----------
        genes
            ``"union"`` of the genes of all feature blocks in order of first occurrence,
            ``"intersection"`` in the order of the first block, a list of gene ids, or the path of a
            text file with one gene id per line.
        **options
            - ``gene_column``: column of var with the gene ids; default: the names of the genes.
            - ``missing``: how to treat genes that a feature block lacks. ``"error"`` (default)
              raises GeneError; ``"zero"`` treats them as not expressed; ``"mask"`` does the same,
              and batches report the existing genes in ``present`` and ``spaces``.
            - ``duplicates``: how to treat several genes of a block with the same id: ``"error"``
              (default), ``"sum"`` of their values, or only the ``"first"``.

        Raises
        ------
        GeneError
            Genes are missing or their ids are not unique, and the policy is ``"error"``; or a list
            of genes repeats an id, is empty, or has no gene in common with the cells.
        GeneListNotFoundError
            The file does not exist.
        FeatureNotFoundError
            A feature block lacks the column.

        Examples
        --------
        >>> chosen = data.select_genes(["LYZ", "CD3E"])
        >>> chosen.read_rows([0, 1]).to_dense()
        array([[1., 2.],
               [0., 0.]], dtype=float32)
        """
        from scdl.dataset.gene_view import GeneView

        return GeneView(self, genes, **options)

    def select_matrix(self, matrix: str) -> Self:
        """The same cells with another matrix; raises OptionError except for single archives.

        Examples
        --------
        >>> atlas.select_matrix("layers/spliced")
        Traceback (most recent call last):
            ...
        scdl.errors.OptionError: ...
        """
        raise OptionError(
            f"{self!r}: there is no other matrix to choose; select the matrix of one archive "
            f"first, with scdl.open(path, matrix={matrix!r})"
        )

    def _with_spaces(
        self, batch: CellBatch, *, own: bool = False, compared: bool = False
    ) -> CellBatch:
        """Add the gene space of each cell to a batch if cells of the dataset have different ones.

        If all cells of the batch share a gene space, the batch gets its number of genes. `compared`
        batches are combined with others, so that gene spaces must be comparable.
        """
        blocks = self.info.blocks
        if len(blocks) > 1 and len(batch) and not (own or compared):
            ends = int(batch.rows.min()), int(batch.rows.max())
            first, last = map(self.info.block_of, ends)
            if first == last:
                # Avoids reading the gene names of other blocks.
                return replace(batch, n_vars=blocks[first].n_vars)
        if batch.present is not None or (spaces := self.spaces_of(batch.rows)) is None:
            return batch
        n_vars = batch.n_vars
        if not own and len(spaces) and (spaces == spaces[0]).all():
            n_vars = self._n_vars_of(batch.rows[0])
        return replace(batch, spaces=spaces, own_genes=own, n_vars=n_vars)
