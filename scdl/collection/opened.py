"""Opening collections, and changing their members."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from scdl.archive.casting import common_dtype
from scdl.archive.neighbor_choice import NeighborSamplingStrategy
from scdl.archive.schema import NEIGHBOR_KEY, names_of
from scdl.collection.discovery import describe_all, find_members
from scdl.collection.joined_cells import JoinedCells
from scdl.collection.kept_columns import kept_names, remove_kept, write_kept
from scdl.collection.manifest import (
    check_unchanged,
    locked,
    manifest_identity,
    write_manifest,
)
from scdl.collection.member import Member
from scdl.collection.member_obs import obs_columns
from scdl.collection.members import Datasets, Members
from scdl.collection.paths import has_manifest, resolved
from scdl.dataset import summary
from scdl.dataset.dataset import SingleCellDataset
from scdl.dataset.opened import CACHE_MB
from scdl.errors import ArchiveNotFoundError, CollectionError, OptionError
from storage_backends.errors import refused_write
from storage_backends.paths import Path, is_url, paths_of
from storage_backends.registry import is_archive


class OpenedCollection(JoinedCells):
    """An open collection: its members and its manifest.

    The parameters are those of :class:`SingleCellCollection`.
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
        cache_dir: Path | None = None,
        cache_mb: float = CACHE_MB,
    ) -> None:
        self._neighbors: dict[str, Any] = {
            "load_neighbors": load_neighbors,
            "neighbor_key": neighbor_key,
            "neighbor_sampling_strategy": neighbor_sampling_strategy,
            "fallback_to_identity": fallback_to_identity,
            "cache_dir": cache_dir,
            "cache_mb": cache_mb,
        }
        if max_open < 1:
            raise OptionError(f"max_open must be at least 1, not {max_open}")
        self._max_open, self._label = max_open, label
        #: The directory of the collection; None if it was opened from a list of paths.
        self.data_path: str | None = None
        #: Identity of the manifest that was read, and the columns of obs that it keeps.
        self._manifest: tuple[int, int] | None = None
        self._kept: list[str] = []
        if isinstance(data_path, str | os.PathLike):
            self.data_path = resolved(data_path)
            self._manifest = manifest_identity(self.data_path)
            self._set_members(find_members(self.data_path))
            self._kept = kept_names(self.data_path, self._members.records)
        else:
            wanted = "a directory of archives, or a list of their paths"
            self._set_members(describe_all([], paths_of(data_path, wanted)))

    def _set_members(self, records: Sequence[Member]) -> None:
        """Replace the members of the collection, atomically."""
        if records:
            common_dtype((record.path, record.dtypes[0]) for record in records)
        missing = [r.path for r in records if not (is_url(r.path) or os.path.lexists(r.path))]
        if missing:
            more = f", as are {len(missing) - 1:,} others" if len(missing) > 1 else ""
            raise ArchiveNotFoundError(
                f"{missing[0]}: this member of the collection is missing{more}; restore it, or "
                "open a list of paths without it"
            )
        members = Members(records, self._max_open, self._neighbors, self._label)
        members.manifest_in = self.data_path
        if self._label is not None:
            obs_columns(members, [self._label])
        self._members = members

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_neighbors", "_max_open", "_label", "data_path", "_manifest", "_kept")
        return {name: self.__dict__[name] for name in kept} | {"records": self._members.records}

    def __setstate__(self, state: dict[str, Any]) -> None:
        records = state.pop("records")
        self.__dict__.update(state)
        self._members = Members(records, self._max_open, self._neighbors, self._label)
        self._members.manifest_in = self.data_path

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
            # Columns of all members would require opening them all.
            "obs": f"{summary.names(first.columns.names)}, in the first" if first else None,
            "graphs": summary.names(self.neighbor_keys),
        }

    # -- members ---------------------------------------------------------------------------

    @property
    def fname_to_mmap(self) -> Mapping[Path, SingleCellDataset]:
        """Mapping of the path of each member to its dataset, which is opened on access."""
        return Datasets(self._members)

    @property
    def member_names(self) -> list[str]:
        """Unique names of the members, derived from the names of their directories."""
        return self._members.names

    def add(self, paths: Path | Sequence[Path]) -> None:
        """Append the cells of further archives; an existing manifest is updated.

        Raises
        ------
        CollectionError
            An archive is already a member, is a collection, or cannot be read.
        ArchiveNotFoundError, ArchiveFormatError
            An archive does not exist or is damaged.
        ArchiveLockedError, ArchiveChangedError
            Another process or thread is changing the manifest, or has changed it since it was read.

        Examples
        --------
        >>> pair = scdl.SingleCellCollection(["cells.scdl"])
        >>> pair.add("atlas/more.scdl")
        >>> len(pair)
        12
        """
        more = paths_of(paths, "the path of an archive, or a list of them")
        with self._locked():
            self._append(more, save=self._has_manifest)

    def refresh(self) -> None:
        """Update the descriptions of all members, after one was changed on purpose.

        Examples
        --------
        >>> atlas.refresh()
        """
        with self._locked():
            paths = [record.path for record in self._members.records]
            self._replace_members(describe_all([], paths, self.data_path), save=self._has_manifest)

    def check(self) -> None:
        """Open every member and compare it with its description.

        Raises
        ------
        CollectionError
            A member changed, or cannot be read.
        ArchiveNotFoundError, ArchiveFormatError
            A member is missing or damaged.

        Examples
        --------
        >>> atlas.check()
        """
        for record, store in zip(self._members.records, self._members.stores(), strict=True):
            record.check(store, genes=True)

    def save_manifest(
        self, directory: Path | None = None, *, obs: str | Sequence[str] | None = None
    ) -> None:
        """Write the manifest with the descriptions of all members, for faster opening.

        Paths are stored relative to the directory, so it can be moved together with its members.

        Parameters
        ----------
        directory
            Directory of the manifest; default that of the collection. It becomes the directory of
            the collection, and is created if it does not exist.
        obs
            Columns of obs to keep beside the manifest, compressed: loaders, orders and splits then
            take them from there instead of reading every member. They are used only while the
            content of every member is the same. Default: the columns that are kept already, as far
            as they still exist; ``()``: none.

        Raises
        ------
        CollectionError
            There is no directory, or it is an archive; or columns are to be kept, but a member has
            no checksums, by which changes are noticed.
        FeatureNotFoundError
            No member has a column of `obs`.
        ArchiveWriteError
            The directory is not writable.

        Examples
        --------
        >>> pair = scdl.SingleCellCollection(["cells.scdl", "atlas/more.scdl"])
        >>> pair.save_manifest("pair", obs=["cell_type", "donor"])
        >>> loader = scdl.SingleCellLoader(scdl.open("pair"), 4, obs=["cell_type"])
        """
        wanted = None if obs is None else names_of(obs, "obs")
        target = self.data_path if directory is None else resolved(directory)
        if target is None or is_url(target) or is_archive(target):
            raise CollectionError(
                f"{target or 'this collection'}: a manifest must be in a local directory that is "
                "not an archive; pass one to save_manifest(directory)"
            )
        with refused_write(target):
            os.makedirs(target, exist_ok=True)
        if target == self.data_path:
            with self._locked(saves=True):
                self._save(target, wanted)
        else:
            with locked(target):
                self._save(target, wanted)
            self.data_path = target

    def _save(self, directory: str, obs: Sequence[str] | None = None) -> None:
        members = self._members
        records = members.complete()
        if obs is None and self._kept:
            found = self.obs_features()
            known = {} if found is None else {*found.columns.names}
            obs = [name for name in self._kept if name in known]
        obs = obs or ()
        # The files are named by the content of the members, so that none is taken for that of
        # others before the manifest is replaced, or if it cannot be.
        files = []
        for name in obs:
            values = self._required_obs().columns.encoded(name)
            files.append(write_kept(directory, records, name, values))
        write_manifest(directory, records)
        remove_kept(directory, but=files)
        self._manifest, self._kept = manifest_identity(directory), list(obs)
        members.manifest_in = directory

    @property
    def _has_manifest(self) -> bool:
        return self.data_path is not None and has_manifest(self.data_path)

    @contextmanager
    def _locked(self, *, saves: bool = False) -> Iterator[None]:
        """Context manager that locks the directory, if any, and checks that it is unchanged.

        `saves`: whether a manifest will be written even if there is none.
        """
        if self.data_path is None or not os.path.isdir(self.data_path):
            yield
            return
        with locked(self.data_path):
            known = [record.path for record in self._members.records]
            check_unchanged(self.data_path, self._manifest, known if saves else None)
            yield

    def _append(self, paths: Sequence[Path], *, save: bool) -> None:
        self._replace_members(describe_all(self._members.records, paths, self.data_path), save=save)

    def _replace_members(self, records: Sequence[Member], *, save: bool) -> None:
        """Replace the members, also in the manifest; an error leaves both unchanged."""
        before = self._members.records
        self._set_members(records)
        if save and self.data_path is not None:
            try:
                self._save(self.data_path)
            except BaseException:
                self._set_members(before)
                raise
