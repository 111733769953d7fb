"""A dataset of one archive: creating, opening and reading it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

from scdl.archive import csr
from scdl.archive.neighbor_choice import NeighborSamplingStrategy
from scdl.archive.schema import NEIGHBOR_KEY
from scdl.dataset.opened import CACHE_MB, OBS_INDEX_NAMES, VAR_INDEX_NAMES, cache_options
from scdl.dataset.rewritable import RewritableArchive
from storage_backends import registry
from storage_backends.paths import Path, absolute, path_of

if TYPE_CHECKING:
    from anndata import AnnData
    from pyarrow.compute import Expression

    from scdl.conversion.options import ConvertOptions
    from scdl.conversion.reporting import ConversionReport
    from scdl.verification.verify import VerificationReport


class SingleCellDataset(RewritableArchive):
    """An archive of any backend, as a dataset that is read by row and by batch.

    It is a map-style dataset for the ``DataLoader`` of PyTorch.
    Pickles contain paths, never data.

    Parameters
    ----------
    path
        Path of the archive to open or to create.
    h5ad_path
        AnnData file to convert; without one, the archive at `path` is opened.
    backend
        Storage backend of a new archive, as for :func:`scdl.convert`; that of an existing archive
        is detected.
    load_neighbors
        Whether to use a neighbour graph, and to convert that of an AnnData file. None: use a graph
        if the archive has one.
    neighbor_key
        Key of the graph in ``obsp``.
    neighbor_sampling_strategy
        Strategy of :meth:`sample_neighbors`: ``"random"``, ``"first"`` or ``"weighted"``, in
        proportion to the weights.
    fallback_to_identity
        Whether a cell without neighbours is its own neighbour.
    cache_dir, cache_mb
        Local directory to keep what is read from a URL, so that the next epoch reads it there, and
        its maximum size in megabytes. Processes may share it; other archives may, too.
    **options
        Options of conversions, also of :meth:`load_h5ad`; see :func:`scdl.convert`. Without
        `h5ad_path`, ``matrix`` selects another matrix of an AnnData that the archive keeps
        completely: ``X``, ``raw/X`` or ``layers/<key>``, stored by rows. Such a dataset cannot
        change the archive.

    Raises
    ------
    ArchiveNotFoundError
        There is nothing at `path`, and no `h5ad_path`.
    ArchiveExistsError
        `path` exists, and an `h5ad_path` is given.
    ArchiveFormatError
        `path` is not an archive, or the archive is damaged.
    SourceError
        `h5ad_path` cannot be converted.

    Examples
    --------
    >>> data = scdl.SingleCellDataset("cells.scdl")
    >>> data
    SingleCellDataset('.../cells.scdl'): 6 cells x 4 genes
    >>> data[1]  # values, then column ids
    tensor([[3.],
            [0.]])
    >>> data.read_rows([4, 0], obs=["cell_type"]).to_dense()
    array([[0., 4., 0., 2.],
           [0., 2., 0., 1.]], dtype=float32)
    """

    def __init__(
        self,
        path: Path,
        h5ad_path: Path | None = None,
        *,
        backend: str | None = None,
        load_neighbors: bool | None = None,
        neighbor_key: str = NEIGHBOR_KEY,
        neighbor_sampling_strategy: NeighborSamplingStrategy
        | str = NeighborSamplingStrategy.RANDOM,
        fallback_to_identity: bool = True,
        cache_dir: Path | None = None,
        cache_mb: float = CACHE_MB,
        **options: Unpack[ConvertOptions],
    ) -> None:
        # Messages show the path as given.
        given = path_of(path, "the path of an archive")
        self.data_path = absolute(given)
        self._load_neighbors = load_neighbors
        self._neighbor_key = neighbor_key
        self._sampling: dict[str, Any] = {
            "strategy": NeighborSamplingStrategy(neighbor_sampling_strategy),
            "fallback_to_identity": fallback_to_identity,
        }
        self._cache = cache_options(cache_dir, cache_mb)
        self._var_index_names = VAR_INDEX_NAMES
        self._obs_index_names = OBS_INDEX_NAMES
        self._options = options
        #: Name of a matrix other than the default one, or None.
        self._matrix = options.get("matrix") if h5ad_path is None else None
        if options:
            from scdl.conversion.options import check_options

            check_options(options, SingleCellDataset, registry.for_target(given, backend))
        if h5ad_path is not None:
            from scdl.conversion.convert import convert

            key = neighbor_key if load_neighbors else None
            convert(h5ad_path, given, backend=backend, neighbor_key=key, **options)
        self._open(given)

    def to_anndata(self, rows: csr.Rows | None = None) -> AnnData:
        """Read the archive into memory as an AnnData: X, obs, var and all other elements.

        Parameters
        ----------
        rows
            Cells to include, as for :meth:`read_rows`; None: all.

        Returns
        -------
        anndata.AnnData
            Genes in the order of the source. X and obsp are CSR matrices.

        Raises
        ------
        RowIndexError
            A row is out of range.
        SourceError
            The cells are of several feature blocks, which have no common var.

        Examples
        --------
        >>> data.to_anndata(rows=[0, 1])
        AnnData object with n_obs × n_vars = 2 × 4
            obs: 'cell_type', 'donor'
            obsm: 'X_pca'
            layers: 'spliced'
            obsp: 'connectivities'
        """
        from scdl.conversion.export import to_anndata

        at = None if rows is None else csr.positions(rows, self.n_obs)
        return to_anndata(self._store, at)

    def subset(
        self,
        output_path: Path,
        *,
        where: str | Expression | None = None,
        rows: csr.Rows | None = None,
        **options: Any,
    ) -> ConversionReport:
        """Write some cells, and some genes, as a new archive, in bounded memory.

        Parameters
        ----------
        output_path
            Path of the new archive; nothing may exist there.
        where
            Condition on columns of obs, as for :meth:`where`. Default: all cells.
        rows
            Cells to choose from, as for :meth:`read_rows`, in ascending order and without
            repetition. Default: all.
        **options
            Those of :func:`scdl.convert`, such as ``genes``, ``backend``, ``compression``,
            ``replace`` and ``progress``.

        Returns
        -------
        ConversionReport

        Raises
        ------
        FilterError, FeatureNotFoundError
            `where` is not valid, or does not fit the columns.
        RowIndexError
            `rows` are not cells of the archive.
        GeneError, GeneListNotFoundError
            The archive lacks some of the ``genes``.
        ArchiveChangedError
            The archive was changed, moved or replaced since it was opened.
        ScdlError
            As :func:`scdl.convert`.

        Examples
        --------
        >>> report = data.subset("t-cells.scdl", where="cell_type == 'T'")
        >>> report.n_obs
        3
        """
        from scdl.conversion.convert import convert

        self._check_whole()
        self._store.check_current()
        cells = None if rows is None else csr.positions(rows, self.n_obs)
        chosen: dict[str, Any] = {"where": where, "cells": cells}
        return convert(self._store.path, output_path, **chosen, **options)

    def verify(self, *, deep: bool = False, progress: bool = False) -> VerificationReport:
        """Verify the archive that is now at the path.

        Parameters
        ----------
        deep, progress
            As for :func:`scdl.verify`.

        Returns
        -------
        VerificationReport
            The ``verdict`` and all findings.

        Examples
        --------
        >>> data.verify(deep=True).is_sound
        True
        """
        from scdl.verification.verify import verify_archive

        return verify_archive(self._store.path, deep=deep, progress=progress)

    def load(self, stored_path: Path) -> None:
        """Close this archive and open another one.

        Examples
        --------
        >>> dataset = scdl.open("cells.scdl")
        >>> dataset.load("atlas/more.scdl")
        >>> dataset.obs_names[0]
        'more0'
        """
        given = path_of(stored_path, "the path of an archive")
        path = absolute(given)
        self._reopen(given)
        self.data_path = path

    def load_h5ad(self, anndata_path: Path) -> None:
        """Replace the archive by a conversion of an AnnData file, atomically.

        The options are those given when the dataset was created.

        Raises
        ------
        ArchiveLockedError, ArchiveChangedError
            As for :meth:`cast_data_to_dtype`.

        Examples
        --------
        >>> _ = scdl.convert("cells.h5ad", "reloaded.scdl")
        >>> dataset = scdl.open("reloaded.scdl")
        >>> dataset.load_h5ad("more.h5ad")
        >>> dataset.obs_names[0]
        'more0'
        """
        from scdl.conversion.writing import reconvert

        self._check_whole()
        key = self._neighbor_key if self._load_neighbors else None
        options: Mapping[str, Any] = {**self._store.options, **self._options}
        reconvert(anndata_path, self._store, key, options)
        self._reopen(self._store.path)
