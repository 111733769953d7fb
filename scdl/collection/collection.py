"""Collections: verification and flattening."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from scdl.archive.gene_space import Duplicates, Genes, Missing
from scdl.collection.converted import ConvertedCollection
from scdl.collection.flattening import (
    check_shards,
    check_target,
    new_collection,
    shard_writers,
    shards_for_check,
)
from scdl.collection.member_obs import obs_tables
from scdl.collection.opened import OpenedCollection
from scdl.collection.paths import resolved
from scdl.conversion.cell_names import CellNames, rename_cells
from scdl.conversion.comparison import check_copied
from scdl.conversion.concatenation import concatenate
from scdl.conversion.removal import check_removable, check_unchanged, open_for_check
from scdl.conversion.row_order import SOURCE_ROW, Shuffle
from scdl.conversion.sharding import concatenate_in_shards
from scdl.conversion.shuffled_comparison import check_comparable, check_shuffled
from scdl.errors import CollectionError
from storage_backends import registry
from storage_backends.base import ArrayStore
from storage_backends.paths import Path

if TYPE_CHECKING:
    from scdl.archive.tables import TableSource
    from scdl.verification.verify import VerificationReport


class SingleCellCollection(ConvertedCollection):
    """Archives of any backends as one dataset of concatenated cells; nothing is copied.

    Members are opened when their cells are read, and only the most recently used stay open.
    Consecutive members with the same genes share a feature block.

    Parameters
    ----------
    data_path
        A directory that has a manifest, or archives in it or its subdirectories; if it does not
        exist, :meth:`load_h5ad` creates it. Or the paths of archives, in the order of their cells.
    load_neighbors, neighbor_key, neighbor_sampling_strategy, fallback_to_identity
        As for :class:`SingleCellDataset`.
    cache_dir, cache_mb
        As for :class:`SingleCellDataset`; the members share the directory.
    label
        Name of a categorical column to add to obs, with the name of each cell's member (see
        :attr:`member_names`); members are not modified. All members are opened to check that they
        have no such column.
    max_open
        Maximum number of members that stay open, for tables and graphs. The matrices of up to 5,000
        members stay usable in any case.

    Raises
    ------
    ArchiveNotFoundError
        There is no archive in the directory, or at one of the paths.
    ArchiveFormatError
        A member or the manifest is damaged, or of a newer version.
    CollectionError
        A path is a collection, or is listed twice, or a member cannot be read.
    CastError
        Some members hold integers and others floats.
    OptionError
        A member has a column `label`.

    Examples
    --------
    >>> atlas = scdl.SingleCellCollection(["cells.scdl", "atlas/more.scdl"], label="sample")
    >>> atlas
    SingleCellCollection(2 paths): 2 archives, 12 cells
    >>> atlas.obs["sample"].value_counts().to_dict()
    {'cells.scdl': 6, 'more.scdl': 6}
    """

    def verify(self, *, deep: bool = False, progress: bool = False) -> VerificationReport:
        """Verify all members, and compare them with their descriptions.

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
        >>> atlas.verify().verdict.name
        'SOUND'
        """
        from scdl.collection.verification import verify_members

        members = {record.path: record for record in self._members.records}
        where = self.data_path or "the collection"
        return verify_members(where, members, deep=deep, progress=progress)

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
        shuffle: int | None = None,
        row_column: str = SOURCE_ROW,
        shard_cells: int | None = None,
        replace: bool = False,
        **options: Any,
    ) -> None:
        """Write all members as one archive, in bounded memory.

        Feature blocks keep their genes. obs has the columns of all members, null if a member lacks
        them. Ids of graphs are shifted to the rows of their cells. obsm is kept if all members have
        it.

        Parameters
        ----------
        output_path
            Path of the archive, which must not exist.
        destroy_on_copy
            Whether to remove the members, and empty the manifest, after the archive was opened and
            compared with each of them. If the archive cannot store a part of a member, or a part
            cannot be compared after a shuffle, an error is raised before anything is copied; after
            any error the members are unchanged.
        extend_copy_size
            Bytes of stored values copied at once.
        backend
            Storage backend; default ``zarr`` if the path ends in ``.zarr``, else ``memmap``.
        cell_names
            ``"keep"``: keep the names. ``"unique"``: keep them, and raise an error if two cells
            have the same name. ``"prefix"``: prefix them with the name of the member,
            ``member-name``, and raise an error if two are the same nevertheless.
        genes
            Genes of the archive, in this order, whatever genes each member has; columns of var are
            left out. Default: the genes of each member, in feature blocks.
        gene_column, missing, duplicates
            As for :meth:`select_genes`; ``missing`` is ``"error"`` or ``"zero"``.
        shuffle
            Seed of a random order of the cells of all members; the order depends only on it and on
            the number of cells. The members need the same genes, or `genes`; columns of var that
            they do not share are left out with a warning. Default: the order of the members.
        row_column
            Name of the int64 column of obs that a shuffled archive has in addition, with the row
            of each cell in this collection.
        shard_cells
            Write a directory of shuffled archives of this number of cells each (the last one may
            have fewer), which is a collection with a manifest. Graphs are left out with a warning.
            Default: one archive.
        replace
            Whether to atomically replace an existing archive at `output_path`.
        **options
            Options of the backend, such as ``compression``.

        Raises
        ------
        ArchiveExistsError
            `output_path` exists.
        CollectionError
            There are no members; `output_path` is inside a member, or would become a member itself;
            names are not unique; or members are to be removed, but the archive cannot store a part
            of them, or differs from them.
        OptionError
            Policies for `genes` are given without `genes`; `shuffle` is not an integer; obs has
            the column `row_column` already; or `shard_cells` is less than 1, or is given without
            `shuffle` or with `replace`.
        GeneError, GeneListNotFoundError
            The members cannot be mapped to the gene space `genes`, or are shuffled and have
            different genes.
        ArchivePlaceError
            `output_path` is inside another archive.
        ArchiveLockedError, ArchiveChangedError, ArchiveWriteError
            A member to be removed is being changed, or was changed, or its directory is not
            writable.

        Examples
        --------
        >>> report = atlas.flatten("flat.scdl", shuffle=42)
        >>> flat = scdl.open("flat.scdl")
        >>> sorted(flat.obs["source_row"]) == list(range(12))
        True
        """
        from scdl.conversion.writing import check_storage
        from scdl.sources.gene_selection import gene_choice

        path, members = resolved(output_path), self._members
        chosen = registry.for_target(path, backend)
        check_storage(chosen.name, options, SingleCellCollection.flatten)
        policies = {"gene_column": gene_column, "missing": missing, "duplicates": duplicates}
        choice = gene_choice(genes, policies)
        if choice is not None and destroy_on_copy:
            raise CollectionError(
                f"{path}: genes= leaves out genes and columns of var, so the members must not be "
                "removed; leave out destroy_on_copy"
            )
        order = Shuffle.of(shuffle, row_column)
        if shard_cells is not None:
            check_shards(path, order, shard_cells, replace=replace)
        check_target(members, self.data_path, path)
        identities = check_removable(members.stores(), [path]) if destroy_on_copy else []
        if order is not None and destroy_on_copy:
            check_comparable(members.stores())
        obs = rename_cells(
            partial(obs_tables, members), [record.path for record in members.records], cell_names
        )
        view = None if choice is None else self.select_genes(**asdict(choice))
        stores, size = members.stores(), extend_copy_size
        if shard_cells is not None and order is not None:
            with new_collection(path) as directory:
                begin = shard_writers(directory, chosen, options)
                concatenate_in_shards(
                    stores, begin, shard_cells, order, size, obs, view, lossless=destroy_on_copy
                )
                OpenedCollection(directory).save_manifest()
            if destroy_on_copy:
                self._remove_copied(shards_for_check(path), identities, obs, order)
            return
        with registry.create(path, chosen, replace=replace, **options) as writer:
            lossless = destroy_on_copy
            concatenate(
                stores, writer, None, size, obs, lossless=lossless, view=view, shuffle=order
            )
        if destroy_on_copy:
            self._remove_copied(open_for_check(path, is_new=not replace), identities, obs, order)

    def _remove_copied(
        self,
        copy: AbstractContextManager[Sequence[ArrayStore]],
        identities: Sequence[Any],
        obs: Sequence[TableSource],
        order: Shuffle | None,
    ) -> None:
        """Remove the members after comparing them with their copy, and empty the manifest."""
        members = self._members
        with ExitStack() as stack:
            with copy as archives:
                stack.enter_context(self._locked())
                for store, identity in zip(members.stores(), identities, strict=True):
                    check_unchanged(store, identity)
                if order is not None:
                    check_shuffled(members.stores(), archives, order, obs)
                else:
                    copies = zip(members.stores(), members.starts, obs, strict=False)
                    for store, start, table in copies:
                        check_copied(store, archives[0], int(start), table)
                # Empty the manifest first, so that it never lists missing archives.
                self._replace_members([], save=self._has_manifest)
            for store, identity in zip(members.stores(), identities, strict=True):
                check_unchanged(store, identity)
                store.remove()
