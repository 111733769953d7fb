"""Changing and copying an archive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack

from numpy.typing import DTypeLike

from scdl.dataset.opened import OpenedArchive
from scdl.errors import OptionError
from storage_backends import registry
from storage_backends.base import ArrayStore
from storage_backends.paths import Path, absolute

if TYPE_CHECKING:
    from scdl.archive.gene_space import Duplicates, Missing
    from scdl.conversion.cell_names import CellNames
    from scdl.conversion.convert import Convertible
    from scdl.conversion.options import ConvertOptions
    from scdl.conversion.reporting import ConversionReport


class RewritableArchive(OpenedArchive):
    """An open archive that is rewritten in place, or copied."""

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

        Examples
        --------
        >>> data.save("copy.scdl")
        True
        >>> len(scdl.open("copy.scdl"))
        6
        """
        if output_path is not None or self._store.stale:
            self._write([self._store], output_path, replace=replace)
        return True

    def cast_data_to_dtype(
        self, dtype: DTypeLike, output_path: Path | None = None, *, replace: bool = False
    ) -> None:
        """Store the values with another dtype, in place and atomically.

        Parameters
        ----------
        dtype
            uint8 to uint64, or float16 to float64.
        output_path
            Path of a copy with this dtype, stored like this archive; default: in place.
        replace
            Whether to replace an archive that is at `output_path`, atomically.

        Raises
        ------
        CastError
            The dtype cannot represent a value. The archive is not changed.
        ArchiveLockedError
            Another process or thread is changing the archive.
        ArchiveChangedError
            The archive was changed, moved or replaced since it was opened. Another archive that is
            now at its path is not changed.
        ArchiveExistsError, ArchivePlaceError
            As for :meth:`save`.

        Examples
        --------
        >>> data.cast_data_to_dtype("uint16", "small.scdl")
        >>> scdl.open("small.scdl").data_dtype
        dtype('uint16')
        """
        self._write([self._store], output_path, replace=replace, dtype=dtype)

    def concat(
        self,
        other_dataset: OpenedArchive | Iterable[OpenedArchive],
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

        Examples
        --------
        >>> data.concat(scdl.open("atlas/more.scdl"), output_path="joined.scdl")
        >>> len(scdl.open("joined.scdl"))
        12
        """
        from scdl.conversion.writing import check_storage
        from scdl.dataset.appending import archives, concatenated

        own_backend = registry.of(self._store).name
        check_storage(backend or own_backend, options, RewritableArchive.concat)
        own = self._store.options if backend in (None, own_backend) else {}
        storage = {"backend": backend or own_backend, **own, **options}
        stores = [self._store, *(other.store for other in archives(other_dataset))]
        target = self._store.path if output_path is None else absolute(output_path)
        is_new, removes = output_path is not None and not replace, destroy_on_copy
        how: dict[str, Any] = {"chunk_bytes": extend_copy_size, "lossless": removes}
        with concatenated(stores, target, cell_names, removes=removes, is_new=is_new) as obs:
            self._write(stores, output_path, storage, replace=replace, obs=obs, **how)

    def append(
        self,
        sources: Convertible | Sequence[Convertible] | Mapping[str, Convertible],
        *,
        label: str | None = None,
        keys: Sequence[str] | None = None,
        genes: Literal["archive"] | None = None,
        gene_column: str | None = None,
        missing: Missing = "error",
        duplicates: Duplicates = "error",
        progress: bool = False,
        **options: Unpack[ConvertOptions],
    ) -> ConversionReport:
        """Add cells to the archive, without rewriting it where its backend can.

        The archive changes atomically: a failed or killed call leaves it as it was. Whoever has it
        open, in any process, keeps the cells that it had. Values are stored as the archive stores
        them. Columns of obs are united: cells without a value get nulls. Columns of var are those
        of the archive. In graphs, cells of a source without the graph have no neighbours.

        Parameters
        ----------
        sources
            What :func:`scdl.convert` takes: a path or an AnnData, several, or a dict of them.
        label, keys
            As for :func:`scdl.convert`; the column of obs may exist in the archive.
        genes
            ``"archive"``: map the genes of the sources by name to those of the archive, and leave
            out others. Default: the sources have the genes of the archive, in any order.
        gene_column, missing, duplicates
            As for :func:`scdl.convert`, with `genes`: ``missing="zero"`` accepts sources that lack
            genes.
        progress
            Whether to show a progress bar.
        **options
            Options of :func:`scdl.convert` for its sources, such as ``matrix``, ``where`` and
            ``obs``. Fields of the archive get the layers with their names, unless ``layers`` names
            others.

        Returns
        -------
        ConversionReport
            ``n_obs`` and ``nnz`` are those of the added cells, ``nbytes`` of the whole archive.

        Raises
        ------
        SourceNotFoundError, SourceError
            A source cannot be read; it lacks dense vectors or fields of the archive; or the archive
            has elements that cannot get further cells, such as text in obsm.
        GeneError
            The genes differ, or cannot be mapped.
        CastError
            The dtype of the archive cannot represent a value.
        OptionError
            The archive determines an option, or has other fields.
        ArchiveLockedError, ArchiveChangedError
            As for :meth:`cast_data_to_dtype`.

        Examples
        --------
        >>> _ = scdl.convert("cells.h5ad", "grown.scdl")
        >>> grown = scdl.open("grown.scdl")
        >>> report = grown.append("more.h5ad")
        >>> report.n_obs, len(grown)
        (6, 12)
        """
        from scdl.conversion.growing import grow

        self._check_whole()
        policies = {"gene_column": gene_column, "missing": missing, "duplicates": duplicates}
        how: dict[str, Any] = {"label": label, "keys": keys, "genes": genes, "policies": policies}
        report = grow(self._store, sources, options, progress=progress, **how)
        self._reopen(self._store.path)
        return report

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

        `storage` has the ``backend`` and its options, by default those of this archive; `how` is
        for :func:`scdl.conversion.concatenation.concatenate`.
        """
        from scdl.conversion.concatenation import concatenate
        from scdl.dataset.appending import is_at

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
