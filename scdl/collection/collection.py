"""Many archives as one dataset, and opening whatever stands at a path."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Unpack

from numpy.typing import DTypeLike

from scdl.archive.casting import common_dtype
from scdl.archive.gene_space import Duplicates, Genes, Missing
from scdl.archive.graph import NeighborSamplingStrategy
from scdl.archive.schema import NEIGHBOR_KEY, distinct
from scdl.collection.flattening import tables_of_cells, verify, write_flat
from scdl.collection.joined_cells import JoinedCells
from scdl.collection.manifest import (
    Member,
    changing,
    is_archive,
    is_url,
    manifest_identity,
    read_manifest,
    write_manifest,
)
from scdl.collection.members import Datasets, Members
from scdl.collection.paths import MANIFEST, absolute, archives_below, has_manifest
from scdl.conversion.cell_names import CellNames
from scdl.conversion.comparison import check_removable, check_same, checking
from scdl.dataset import summary
from scdl.dataset.dataset import SingleCellDataset
from scdl.errors import (
    ArchiveChangedError,
    ArchiveFormatError,
    ArchiveNotFoundError,
    CollectionError,
    OptionError,
    ScdlError,
)
from storage_backends import registry
from storage_backends.errors import refused_write
from storage_backends.paths import Path, paths_of
from storage_backends.registry import is_within

if TYPE_CHECKING:
    from scdl.conversion.options import ConvertOptions

if TYPE_CHECKING:
    from scdl.conversion.options import ConvertOptions
    from scdl.verification.verify import VerificationReport


class SingleCellCollection(JoinedCells):
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

    def __init__(
        self,
        data_path: Path | Sequence[Path],
        *,
        label: str | None = None,
        load_neighbors: bool | None = None,
        neighbor_key: str = NEIGHBOR_KEY,
        neighbor_sampling_strategy: NeighborSamplingStrategy
        | str = NeighborSamplingStrategy.RANDOM,
        fallback_to_identity: bool = True,
        max_open: int = 64,
    ) -> None:
        self._neighbors: dict[str, Any] = {
            "load_neighbors": load_neighbors,
            "neighbor_key": neighbor_key,
            "neighbor_sampling_strategy": neighbor_sampling_strategy,
            "fallback_to_identity": fallback_to_identity,
        }
        if max_open < 1:
            raise OptionError(f"max_open must be at least 1, not {max_open}")
        self._max_open, self._label = max_open, label
        #: The directory of the collection; None where it was made of a list of paths.
        self.data_path: str | None = None
        #: What tells the manifest that was read from others.
        self._manifest: tuple[int, int] | None = None
        if isinstance(data_path, str | os.PathLike):
            self.data_path = absolute(data_path)
            self._manifest = manifest_identity(self.data_path)
            self._use(self._in_directory(self.data_path))
        else:
            wanted = "a directory of archives, or a list of their paths"
            self._use(self._described([], paths_of(data_path, wanted)))

    def _in_directory(self, directory: str) -> Sequence[Member]:
        if has_manifest(directory):
            return read_manifest(directory)
        if is_archive(directory):
            raise CollectionError(
                f"{directory}: this is an archive, not a directory of archives; open it with "
                "scdl.open, or give a list of paths"
            )
        if not os.path.lexists(directory) or (os.path.isdir(directory) and _is_empty(directory)):
            return []
        found = sorted(archives_below(directory))
        if not found:
            raise ArchiveNotFoundError(
                f"{directory}: there is no archive here or below, and no {MANIFEST}; make some "
                "with scdl.convert or load_h5ad_multi"
            )
        return self._described([], found)

    def _described(self, records: Sequence[Member], paths: Sequence[Path]) -> list[Member]:
        """Records and those of further paths, each of which is opened once."""
        described = list(records)
        known = {record.path for record in records}
        for path in map(absolute, paths):
            if path in known:
                raise CollectionError(f"{path}: this archive is listed twice; list each once")
            known.add(path)
            described.append(self._describe(path))
        return described

    def _describe(self, path: str) -> Member:
        try:
            with registry.open_archive(path, hold=False) as store:
                return Member.of(path, store)
        except ArchiveFormatError:
            if not is_archive(path):
                self._refuse_collection(path)
            raise
        except ScdlError:
            raise
        except OSError as error:
            raise CollectionError(f"{path}: the archive cannot be read: {error}") from error

    def _refuse_collection(self, path: str) -> None:
        """CollectionError where a collection stands at a path."""
        if self.data_path is not None and is_within(self.data_path, path):
            raise CollectionError(f"{path}: a collection cannot be inside itself; list archives")
        if has_manifest(path) or any(archives_below(path)):
            raise CollectionError(
                f"{path}: this is a collection, not an archive; list its members, or flatten it"
            )

    def _use(self, records: Sequence[Member]) -> None:
        """Become the collection of these members, in one step."""
        if records:
            common_dtype((record.path, record.dtypes[0]) for record in records)
        gone = [r.path for r in records if not (is_url(r.path) or os.path.lexists(r.path))]
        if gone:
            more = f", as are {len(gone) - 1:,} others" if len(gone) > 1 else ""
            raise ArchiveNotFoundError(
                f"{gone[0]}: this member of the collection is missing{more}; put back what is, or "
                "leave it out of a list of paths"
            )
        members = Members(records, self._max_open, self._neighbors, self._label)
        if self._label is not None:
            members.obs([self._label])
        self._members = members

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_neighbors", "_max_open", "_label", "data_path", "_manifest")
        return {name: self.__dict__[name] for name in kept} | {"records": self._members.records}

    def __setstate__(self, state: dict[str, Any]) -> None:
        records = state.pop("records")
        self.__dict__.update(state)
        self._members = Members(records, self._max_open, self._neighbors, self._label)

    def __repr__(self) -> str:
        where = repr(self.data_path) if self.data_path else f"{len(self._members)} paths"
        return f"SingleCellCollection({where}): {len(self._members)} archives, {self.n_obs} cells"

    def _facts(self) -> summary.Facts:
        stored, dtypes = self.number_nonzero_values(), (self.data_dtype, self.index_dtype)
        members = self._members
        first = members[0].obs_features() if len(members) else None
        return {
            "path": self.data_path,
            "archives": f"{len(members):,}: {summary.names(members.names)}",
            "values": summary.values(stored, self.number_of_values(), *dtypes),
            # Of all would mean to open all.
            "obs": f"{summary.names(first.columns.names)}, in the first" if first else None,
            "graphs": summary.names(self.neighbor_keys),
        }

    # -- members ---------------------------------------------------------------------------

    @property
    def fname_to_mmap(self) -> Mapping[Path, SingleCellDataset]:
        """Path of each member to its dataset, which is opened when it is asked for."""
        return Datasets(self._members)

    @property
    def member_names(self) -> list[str]:
        """What members are called: the names of their directories, each once."""
        return self._members.names

    def add(self, paths: Path | Sequence[Path]) -> None:
        """Append the cells of further archives; the manifest follows, where there is one.

        Raises
        ------
        CollectionError
            One is a member already, is itself a collection, or cannot be read.
        ArchiveNotFoundError, ArchiveFormatError
            There is no archive, or a damaged one.
        ArchiveLockedError, ArchiveChangedError
            Another process or thread changes the manifest, or changed it since it was read.
        """
        more = paths_of(paths, "the path of an archive, or a list of them")
        with self._changing():
            self._append(more, save=self._has_manifest)

    def refresh(self) -> None:
        """Describe all members anew, after one was changed on purpose."""
        with self._changing():
            self._become(
                self._described([], [record.path for record in self._members.records]),
                save=self._has_manifest,
            )

    def check(self) -> None:
        """Open every member and compare it with its description.

        Raises
        ------
        CollectionError
            One changed, or cannot be read.
        ArchiveNotFoundError, ArchiveFormatError
            One is missing or damaged.
        """
        for record, store in zip(self._members.records, self._members.stores(), strict=True):
            record.check(store, genes=True)

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

    def save_manifest(self, directory: Path | None = None) -> None:
        """Write what opening the members found, so that the next opening need not.

        Paths are stored relative to the directory: it can be moved together with its members.

        Parameters
        ----------
        directory
            Where; default the directory of the collection. It becomes that, and is made where it
            does not exist.

        Raises
        ------
        CollectionError
            There is no directory, or it is an archive.
        ArchiveWriteError
            It cannot be written.
        """
        target = self.data_path if directory is None else absolute(directory)
        if target is None or is_url(target) or is_archive(target):
            raise CollectionError(
                f"{target}: a manifest goes into a directory of its own or of archives; name one "
                "with save_manifest(directory)"
            )
        with refused_write(target):
            os.makedirs(target, exist_ok=True)
        if target == self.data_path:
            with self._changing(saves=True):
                self._save(target)
        else:
            with changing(target):
                self._save(target)
            self.data_path = target

    def _save(self, directory: str) -> None:
        write_manifest(directory, self._members.complete())
        self._manifest = manifest_identity(directory)

    @property
    def _has_manifest(self) -> bool:
        return self.data_path is not None and has_manifest(self.data_path)

    @contextmanager
    def _changing(self, *, saves: bool = False) -> Iterator[None]:
        """Hold the lock of the directory, if there is one, as it was when it was read.

        Parameters
        ----------
        saves
            Whether a manifest will be written, also where there is none.

        Raises
        ------
        ArchiveLockedError
            Another process or thread changes it.
        ArchiveChangedError
            Another one changed the manifest since; or put an archive there that a manifest would
            leave out.
        """
        if self.data_path is None or not os.path.isdir(self.data_path):
            yield
            return
        with changing(self.data_path):
            if manifest_identity(self.data_path) != self._manifest:
                raise ArchiveChangedError(
                    f"{os.path.join(self.data_path, MANIFEST)}: another process or thread changed "
                    "it since the collection was opened, which would be undone; open it again"
                )
            if saves and not self._has_manifest:
                known = {record.path for record in self._members.records}
                for path in archives_below(self.data_path):
                    if absolute(path) not in known:
                        raise ArchiveChangedError(
                            f"{path}: this archive was put here since the collection was opened, "
                            "and would be left out; add it, or open the collection again"
                        )
            yield

    def _append(self, paths: Sequence[Path], *, save: bool) -> None:
        self._become(self._described(self._members.records, paths), save=save)

    def _become(self, records: Sequence[Member], *, save: bool) -> None:
        """Become the collection of these members, also on disk, or of those before."""
        before = self._members.records
        self._use(records)
        if save and self.data_path is not None:
            try:
                self._save(self.data_path)
            except BaseException:
                self._use(before)
                raise

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

    # -- one archive -----------------------------------------------------------------------

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
        self._check_target(path)
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

    def _check_target(self, path: str) -> None:
        if not self._members:
            raise CollectionError(
                f"{self.data_path or 'the collection'}: there are no members to flatten; add "
                "archives first"
            )
        for record in self._members.records:
            if is_url(record.path):
                continue
            if is_within(path, record.path) or is_within(record.path, path):
                raise CollectionError(
                    f"{path}: this is inside the member {record.path}, or that inside this, and "
                    "both would be replaced and removed together; choose a path outside"
                )
        directory = self.data_path
        if directory is not None and is_within(path, directory) and not has_manifest(directory):
            raise CollectionError(
                f"{path}: here it would become a member of the collection itself; take a path "
                f"outside {directory}, or call save_manifest() first"
            )


def _documented(block_rows: int, use_X_not_raw: bool, options: ConvertOptions) -> ConvertOptions:
    """Options of conversions, and what the documented ones mean."""
    given: ConvertOptions = {"data_dtype": "float32", "block_rows": block_rows}
    if use_X_not_raw:
        given["matrix"] = "X"
    return {**given, **options}


def _is_empty(directory: str) -> bool:
    with os.scandir(directory) as entries:
        return next(entries, None) is None
