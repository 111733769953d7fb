"""Many archives as one dataset: converted to, verified, flattened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Unpack

from numpy.typing import DTypeLike

from scdl.archive.gene_space import Duplicates, Genes, Missing
from scdl.archive.schema import distinct
from scdl.collection.flattening import check_target, tables_of_cells, verify, write_flat
from scdl.collection.opened import OpenedCollection
from scdl.collection.paths import absolute
from scdl.conversion.cell_names import CellNames
from scdl.conversion.comparison import check_removable, check_same, checking
from scdl.errors import CollectionError
from storage_backends import registry
from storage_backends.errors import refused_write
from storage_backends.paths import Path, paths_of

if TYPE_CHECKING:
    from scdl.conversion.options import ConvertOptions
    from scdl.verification.verify import VerificationReport


class SingleCellCollection(OpenedCollection):
    """Archives of any backends as one dataset, whose cells follow one another; nothing is copied.

    Members are opened when their cells are read, and only the last ones stay open. Consecutive
    members of the same genes share a feature block.

    Parameters
    ----------
    data_path
        A directory, with a manifest or with archives in it or below; where there is nothing yet,
        :meth:`load_h5ad` makes it. Or the paths of archives, in the order of their cells.
    load_neighbors, neighbor_key, neighbor_sampling_strategy, fallback_to_identity
        As for :class:`SingleCellDataset`.
    label
        Name of a categorical column that obs gets, with the name of each cell's member (see
        :attr:`member_names`); nothing is written to the members. Opening them all finds out first
        whether one has such a column.
    max_open
        Members that stay open; each takes some ten file descriptors.

    Raises
    ------
    ArchiveNotFoundError
        There is no archive in the directory, or not at one of the paths.
    ArchiveFormatError
        A member or the manifest is damaged, or of a newer version.
    CollectionError
        A path is itself a collection, or listed twice, or a member cannot be read.
    CastError
        Some members hold integers and others floats.
    OptionError
        A member has a column `label`.
    """

    def verify(self, *, deep: bool = False, progress: bool = False) -> VerificationReport:
        """Find out whether all members are sound, and those that they were.

        Parameters
        ----------
        deep, progress
            As for :func:`scdl.verify`.

        Returns
        -------
        VerificationReport
            Its ``verdict``, and all that was found.
        """
        from scdl.collection.verification import verify_members

        members = {record.path: record for record in self._members.records}
        where = self.data_path or "the collection"
        return verify_members(where, members, deep=deep, progress=progress)

    def load_h5ad(
        self,
        h5ad_path: Path,
        paginated_load_cutoff: int = 10_000,
        load_block_row_size: int = 1_000_000,
        use_X_not_raw: bool = False,
        **options: Unpack[ConvertOptions],
    ) -> None:
        """Convert an AnnData file into the directory of the collection, and append its cells.

        Parameters
        ----------
        h5ad_path
            The file; its stem is the name of the member, with a number where there is one already.
        paginated_load_cutoff, load_block_row_size, use_X_not_raw
            As for :class:`scdl.SingleCellMemMapDataset`.
        **options
            As for :func:`scdl.convert`; values are stored as float32 unless ``data_dtype`` says
            otherwise.
        """
        from scdl.conversion.convert import convert

        given = _documented(load_block_row_size, use_X_not_raw, options)
        self._make_directory()
        with self._changing(saves=True):
            ((source, target),) = self._targets([h5ad_path]).items()
            convert(source, target, neighbor_key=self._carried_key, **given)
            self._append([target], save=True)

    def load_h5ad_multi(
        self,
        directory_path: Path,
        max_workers: int = 5,
        use_processes: bool = False,
        data_dtype: DTypeLike | None = None,
        paginated_load_cutoff: int = 10_000,
        load_block_row_size: int = 1_000_000,
        use_X_not_raw: bool = False,
    ) -> None:
        """Convert all ``*.h5ad`` in a directory and below, and append their cells.

        Parameters
        ----------
        directory_path
            Where the files are.
        max_workers, use_processes
            How many files are converted at the same time, in threads or in processes; see
            :func:`scdl.convert_directory`.
        data_dtype
            Type of the stored values; default float32.
        paginated_load_cutoff, load_block_row_size, use_X_not_raw
            As for :class:`scdl.SingleCellMemMapDataset`; :meth:`load_h5ad` takes further options.

        Raises
        ------
        SourceNotFoundError
            There is no such file.
        ConversionFailedError
            A file cannot be converted; the others are members all the same. ``report`` has all.
        """
        from scdl.conversion.many.directory import convert_files, h5ad_files
        from scdl.conversion.many.report import failure
        from scdl.conversion.options import Settings

        given: ConvertOptions = {} if data_dtype is None else {"data_dtype": data_dtype}
        options = _documented(load_block_row_size, use_X_not_raw, given)
        files = h5ad_files(directory_path)
        self._make_directory()
        with self._changing(saves=True):
            targets = self._targets(files)
            report = convert_files(
                directory_path,
                targets,
                os.path.dirname(next(iter(targets.values()))),
                Settings(None, self._carried_key, options),
                workers=max_workers,
                use_processes=use_processes,
            )
            if report.archives:
                self._append(list(report.archives.values()), save=True)
        if report.failed:
            raise failure(report, "the others are members now")

    def _make_directory(self) -> None:
        """Make the directory of the collection, where it is not there."""
        if self.data_path is None:
            raise CollectionError(
                "a collection of a list of paths has no place for new archives; give "
                "SingleCellCollection a directory"
            )
        with refused_write(self.data_path):
            os.makedirs(self.data_path, exist_ok=True)

    def _targets(self, sources: Sequence[Path]) -> dict[str, str]:
        """Of each file where its archive goes, in the directory of the collection."""
        assert self.data_path is not None
        paths = paths_of(sources)
        stems = [os.path.splitext(os.path.basename(path))[0] for path in paths]
        names = distinct([*os.listdir(self.data_path), *stems])[-len(stems) :]
        targets = (os.path.join(self.data_path, name) for name in names)
        return dict(zip(paths, targets, strict=True))

    @property
    def _carried_key(self) -> str | None:
        """Key of the graph that conversions carry over."""
        key: str = self._neighbors["neighbor_key"]
        return key if self._neighbors["load_neighbors"] else None

    def flatten(
        self,
        output_path: Path,
        destroy_on_copy: bool = False,
        extend_copy_size: int = 10_485_760,
        *,
        backend: str | None = None,
        cell_names: CellNames = "keep",
        genes: Genes | None = None,
        gene_column: str | None = None,
        missing: Missing = "error",
        duplicates: Duplicates = "error",
        replace: bool = False,
        **options: Any,
    ) -> None:
        """Write all members as one archive, in bounded memory.

        Feature blocks keep their genes; obs has the columns of all members, null where one lacks
        them; graphs are shifted to where their cells are; obsm is kept where all members have it.

        Parameters
        ----------
        output_path
            Where the archive goes; nothing may be there.
        destroy_on_copy
            Whether to remove the members, and empty the manifest, after the archive was opened and
            compared with all that each of them has. What it has no place for is an error before
            anything is copied; after any error the members are as they were.
        extend_copy_size
            Bytes of stored values copied at once.
        backend
            Storage backend; default ``zarr`` where the path ends so, else ``memmap``.
        cell_names
            ``"keep"``: as they are. ``"unique"``: the same, and an error where two cells have one
            name. ``"prefix"``: with the name of their member in front, ``member-name``, and an
            error where two are the same all the same.
        genes
            Genes that the archive has, in their order, whatever genes each member has; columns of
            var are left out. Default: the genes of each member, in feature blocks.
        gene_column, missing, duplicates
            As for :meth:`select_genes`; ``missing`` is ``"error"`` or ``"zero"``.
        replace
            Whether to replace an archive that is at `output_path`, atomically.
        **options
            Of the backend, such as ``compression``.

        Raises
        ------
        ArchiveExistsError
            Something is at `output_path`.
        CollectionError
            There are no members; `output_path` would be inside one of them, or be found as one;
            names are not unique; or, where members are to be removed, something of them has no
            place in the archive, or it is not all that they are.
        OptionError
            Policies for `genes` are given without those.
        GeneError, GeneListNotFoundError
            The members cannot be brought into the gene space `genes`.
        ArchivePlaceError
            `output_path` is inside another archive.
        ArchiveLockedError, ArchiveChangedError, ArchiveWriteError
            A member that is to be removed is being changed, or was; or its directory cannot be
            written.
        """
        from scdl.conversion.convert import check_storage
        from scdl.sources.gene_selection import choice_of

        path, members = absolute(output_path), self._members
        chosen = registry.for_target(path, backend).name
        check_storage(chosen, options, SingleCellCollection.flatten)
        policies = {"gene_column": gene_column, "missing": missing, "duplicates": duplicates}
        choice = choice_of(genes, policies)
        if choice is not None and destroy_on_copy:
            raise CollectionError(
                f"{path}: genes= may leave out genes, and leaves out columns of var, of archives "
                "that are to be removed; leave out destroy_on_copy"
            )
        check_target(members, self.data_path, path)
        going = check_removable(members.stores(), [path]) if destroy_on_copy else []
        obs = tables_of_cells(members, cell_names)
        write_flat(
            members,
            path,
            obs,
            backend=chosen,
            chunk_bytes=extend_copy_size,
            lossless=destroy_on_copy,
            view=None if choice is None else self.select_genes(**asdict(choice)),
            options={"replace": replace, **options},
        )
        if not destroy_on_copy:
            return
        with ExitStack() as stack:
            with checking(path, is_new=not replace) as flat:
                stack.enter_context(self._changing())
                verify(members, flat, obs, going)
                # First, for a manifest must not list what is not there.
                self._become([], save=self._has_manifest)
            for store, identity in zip(members.stores(), going, strict=True):
                check_same(store, identity)
                store.remove()


def _documented(block_rows: int, use_X_not_raw: bool, options: ConvertOptions) -> ConvertOptions:
    """Options of conversions, and what the documented ones mean."""
    given: ConvertOptions = {"data_dtype": "float32", "block_rows": block_rows}
    if use_X_not_raw:
        given["matrix"] = "X"
    return {**given, **options}
