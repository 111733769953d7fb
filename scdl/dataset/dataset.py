"""A dataset of one archive: reading, changing and copying it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from numpy.typing import DTypeLike

from scdl.archive import csr
from scdl.archive.neighbor_choice import NeighborSamplingStrategy
from scdl.archive.schema import NEIGHBOR_KEY
from scdl.dataset.opened import (
    CACHE_MB,
    OBS_INDEX_NAMES,
    VAR_INDEX_NAMES,
    OpenedArchive,
    cache_options,
)
from scdl.errors import OptionError
from storage_backends import registry
from storage_backends.base import ArrayStore
from storage_backends.paths import Path, absolute, path_of

if TYPE_CHECKING:
    from anndata import AnnData

    from scdl.conversion.cell_names import CellNames
    from scdl.conversion.options import ConvertOptions
    from scdl.verification.verify import VerificationReport


class SingleCellDataset(OpenedArchive):
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
        """
        from scdl.conversion.export import to_anndata

        at = None if rows is None else csr.positions(rows, self.n_obs)
        return to_anndata(self._store, at)

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
        """
        from scdl.verification.verify import verify_archive

        return verify_archive(self._store.path, deep=deep, progress=progress)

    def load(self, stored_path: Path) -> None:
        """Close this archive and open another one."""
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
        """
        from scdl.conversion.convert import reconvert

        self._check_whole()
        key = self._neighbor_key if self._load_neighbors else None
        options: Mapping[str, Any] = {**self._store.options, **self._options}
        reconvert(anndata_path, self._store, key, options)
        self._reopen(self._store.path)

    def save(self, output_path: Path | None = None, *, replace: bool = False) -> bool:
        """Repair the header of the archive if it is stale, or copy the archive.

        Archives on disk are always valid. This method rewrites an archive whose header another
        program left stale. With `output_path` it writes a full copy there.

        Parameters
        ----------
        output_path
            Path of the copy; not inside an archive.
        replace
            Whether to replace an archive that is at `output_path`, atomically.

        Returns
        -------
        bool
            True.

        Raises
        ------
        ArchiveExistsError
            Something is at `output_path`.
        ArchivePlaceError
            `output_path` is inside an archive, possibly this one.
        ArchiveLockedError, ArchiveChangedError
            As for :meth:`cast_data_to_dtype`, in place.
        """
        if output_path is not None or self._store.stale:
            self._write([self._store], output_path, replace=replace)
        return True

    def cast_data_to_dtype(self, dtype: DTypeLike) -> None:
        """Store the values with another dtype, in place and atomically.

        Raises
        ------
        CastError
            The dtype cannot represent a value. The archive is not changed.
        ArchiveLockedError
            Another process or thread is changing the archive.
        ArchiveChangedError
            The archive was changed, moved or replaced since it was opened. Another archive that is
            now at its path is not changed.
        """
        self._write([self._store], None, dtype=dtype)

    def concat(
        self,
        other_dataset: SingleCellDataset | Iterable[SingleCellDataset],
        extend_copy_size: int = 10_485_760,
        output_path: Path | None = None,
        destroy_on_copy: bool = False,
        *,
        backend: str | None = None,
        cell_names: CellNames = "keep",
        replace: bool = False,
        **options: Any,
    ) -> None:
        """Append the cells of other datasets: rows, feature blocks, obs, names and graphs.

        Parameters
        ----------
        other_dataset
            One dataset or several.
        extend_copy_size
            Bytes copied at once.
        output_path
            Path of the result; default: in place, atomically.
        destroy_on_copy
            Whether to remove the archives of `other_dataset` after the result was compared with
            each of them. If the result cannot store a part of them, an error is raised before
            anything is copied.
        backend
            Storage backend of the result; default that of this archive.
        cell_names
            As for :meth:`scdl.SingleCellCollection.flatten`, of this archive and the others.
        replace
            Whether to replace an archive that is at `output_path`, atomically.
        **options
            Options of the backend, such as ``compression``; default those of this archive.

        Raises
        ------
        CastError
            Integer data and float data cannot be combined; use ``cast_data_to_dtype`` first.
        ArchiveLockedError, ArchiveChangedError
            As for :meth:`cast_data_to_dtype`, in place; or of an archive that is to be removed.
        ArchiveExistsError, ArchivePlaceError
            As for :meth:`save`.
        CollectionError
            Names of cells must be unique but are not; or the result cannot store a part of the
            archives to be removed, or differs from them. No archive is removed then.
        """
        from scdl.conversion.convert import check_storage
        from scdl.dataset.rewriting import archives, concatenated

        own_backend = registry.of(self._store).name
        check_storage(backend or own_backend, options, SingleCellDataset.concat)
        own = self._store.options if backend in (None, own_backend) else {}
        storage = {"backend": backend or own_backend, **own, **options}
        others = [other.store for other in archives(other_dataset)]
        target = self._store.path if output_path is None else absolute(output_path)
        is_new = output_path is not None and not replace
        with concatenated(
            self._store,
            others,
            target,
            cell_names,
            destroy_on_copy=destroy_on_copy,
            is_new=is_new,
        ) as obs:
            self._write(
                [self._store, *others],
                output_path,
                storage,
                replace=replace,
                chunk_bytes=extend_copy_size,
                obs=obs,
                lossless=destroy_on_copy,
            )

    def _check_whole(self) -> None:
        """Raise OptionError if another matrix was selected, which is only for reading."""
        if self._matrix is not None:
            raise OptionError(
                f"{self.data_path}: opened with matrix={self._matrix!r}, which is read-only; "
                "open the archive without matrix= to change or copy it"
            )

    def _write(
        self,
        stores: Sequence[ArrayStore],
        output_path: Path | None,
        storage: Mapping[str, Any] | None = None,
        *,
        replace: bool = False,
        **how: Any,
    ) -> None:
        """Write the concatenation of archives, in place of this one or to a new path.

        Parameters
        ----------
        stores
            The archives.
        output_path
            Path of the result; None: in place.
        storage
            The ``backend`` and its options; None: those of this archive.
        replace
            Whether an archive at `output_path` is replaced.
        **how
            For :func:`scdl.conversion.concatenation.concatenate`.
        """
        from scdl.conversion.concatenation import concatenate
        from scdl.dataset.rewriting import is_at

        self._check_whole()
        own = self._store
        options = dict(storage or {"backend": registry.of(own).name, **own.options})
        target = registry.backend(options.pop("backend"))
        # The path may lead to this archive by another name.
        in_place = output_path is None or (replace and is_at(own, output_path))
        if in_place or output_path is None:
            begun = registry.rewrite(own, target, **options)
        else:
            begun = registry.create(output_path, target, replace=replace, **options)
        with begun as writer:
            concatenate(stores, writer, **how)
        if in_place:
            self._reopen(own.path)
