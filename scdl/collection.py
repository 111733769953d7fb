"""Many archives as one dataset, and opening whatever stands at a path."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import DTypeLike, NDArray

from scdl import __version__, csr
from scdl.batch import CellBatch
from scdl.dataset import OBS_INDEX_NAMES, VAR_INDEX_NAMES, Path, SingleCellDataset
from scdl.errors import (
    ArchiveNotFoundError,
    CastError,
    CollectionError,
    ConversionError,
    OutputError,
    ScdlError,
    SourceNotFoundError,
)
from scdl.features import ObsFeatures, VarFeatures
from scdl.flatten import CellNames, is_within, verify, write_flat
from scdl.joining import Dtypes, Request, is_cold, join
from scdl.manifest import (
    MANIFEST,
    Member,
    absolute,
    archives_below,
    distinct,
    has_manifest,
    is_archive,
    is_url,
    read_manifest,
    write_manifest,
)
from scdl.members import Datasets, MemberGraph, Members, MemberTables
from scdl.neighbors import NeighborGraph, NeighborSamplingStrategy
from scdl.rows import CellReader, Origin
from scdl.schema import INDEX, NEIGHBOR_KEY, Block, Info

if TYPE_CHECKING:
    import pandas as pd

    from scdl.conversion import ConvertOptions

_DERIVED = ("_members", "_blocks", "_sources", "info", "_tables", "_var", "_obs", "graph")
_NO_CELLS = Info((Block(0, 0),), is_sorted=True)


class SingleCellCollection(CellReader):
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
    """

    def __init__(
        self,
        data_path: Path | Sequence[Path],
        *,
        load_neighbors: bool | None = None,
        neighbor_key: str = NEIGHBOR_KEY,
        neighbor_sampling_strategy: NeighborSamplingStrategy
        | str = NeighborSamplingStrategy.RANDOM,
        fallback_to_identity: bool = True,
        max_open: int = 64,
    ) -> None:
        self._load_neighbors = load_neighbors
        self._neighbors: dict[str, Any] = {
            "load_neighbors": load_neighbors,
            "neighbor_key": neighbor_key,
            "neighbor_sampling_strategy": neighbor_sampling_strategy,
            "fallback_to_identity": fallback_to_identity,
        }
        self._max_open = max_open
        #: Members whose genes need not be compared with their description.
        self._described_here: set[str] = set()
        #: The directory of the collection; None where it was made of a list of paths.
        self.data_path: str | None = None
        if isinstance(data_path, str | os.PathLike):
            self.data_path = absolute(data_path)
            self._use(self._in_directory(self.data_path))
        else:
            self._use(self._described([], data_path))

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
        found = archives_below(directory)
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
        if os.path.isdir(path) and not is_archive(path):
            if self.data_path is not None and is_within(self.data_path, path):
                raise CollectionError(
                    f"{path}: a collection cannot be inside itself; list archives"
                )
            if has_manifest(path) or archives_below(path):
                raise CollectionError(
                    f"{path}: this is a collection, not an archive; list its members, or flatten it"
                )
        try:
            record = Member.of(path, SingleCellDataset(path).store)
        except ScdlError:
            raise
        except OSError as error:
            raise CollectionError(f"{path}: the archive cannot be read: {error}") from error
        self._described_here.add(path)
        return record

    def _use(self, records: Sequence[Member]) -> None:
        """Become the collection of these members, in one step."""
        kinds = {np.dtype(record.dtypes[0]).kind: record for record in records}
        if len(kinds) > 1:
            listed = ", ".join(f"{record.path} has {record.dtypes[0]}" for record in kinds.values())
            raise CastError(
                f"integer and float data cannot be one collection: {listed}; "
                "make them alike with cast_data_to_dtype"
            )
        gone = [r.path for r in records if not (is_url(r.path) or os.path.lexists(r.path))]
        if gone:
            raise ArchiveNotFoundError(
                f"{gone[0]}: this member of the collection is missing, and {len(gone) - 1} others; "
                "put them back, or leave them out of a list of paths"
            )
        members = Members(records, self._max_open, self._neighbors, self._described_here)
        for name in _DERIVED:
            self.__dict__.pop(name, None)
        self._members = members

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in self.__dict__.items() if k not in _DERIVED}
        return state | {"records": self._members.records, "_described_here": set()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        records = state.pop("records")
        self.__dict__.update(state)
        self._members = Members(records, self._max_open, self._neighbors)

    def __repr__(self) -> str:
        where = repr(self.data_path) if self.data_path else f"{len(self._members)} paths"
        return f"SingleCellCollection({where}): {len(self._members)} archives, {self.n_obs} cells"

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
        """
        more = [paths] if isinstance(paths, str | os.PathLike) else paths
        self._use(self._described(self._members.records, more))
        if self.data_path is not None and has_manifest(self.data_path):
            self.save_manifest()

    def refresh(self) -> None:
        """Describe all members anew, after one was changed on purpose."""
        self._use(self._described([], [record.path for record in self._members.records]))
        if self.data_path is not None and has_manifest(self.data_path):
            self.save_manifest()

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
        os.makedirs(target, exist_ok=True)
        write_manifest(target, self._members.records)
        self.data_path = target

    def load_h5ad(self, h5ad_path: Path, **options: Unpack[ConvertOptions]) -> None:
        """Convert an AnnData file into the directory of the collection, and append its cells.

        Parameters
        ----------
        h5ad_path
            The file; its stem is the name of the member, with a number where there is one already.
        **options
            As for :func:`scdl.convert`.
        """
        self.add(self._convert(h5ad_path, options))
        self.save_manifest()

    def load_h5ad_multi(
        self,
        directory_path: Path,
        max_workers: int = 5,
        use_processes: bool = False,
        **options: Unpack[ConvertOptions],
    ) -> None:
        """Convert all ``*.h5ad`` in a directory and below, and append their cells.

        Parameters
        ----------
        directory_path
            Where the files are.
        max_workers, use_processes
            Accepted, and without effect: files are read one after the other, in threads.
        **options
            As for :func:`scdl.convert`.

        Raises
        ------
        SourceNotFoundError
            There is no such file.
        ConversionError
            A file cannot be converted; the others are members all the same.
        """
        pattern = os.path.join(glob.escape(os.fspath(directory_path)), "**", "*.h5ad")
        sources = sorted(glob.glob(pattern, recursive=True))
        if not sources:
            raise SourceNotFoundError(
                f"{os.fspath(directory_path)}: there is no *.h5ad file here or below"
            )
        failures: list[tuple[str, Exception]] = []
        for source in sources:
            try:
                self.add(self._convert(source, options))
            except (ScdlError, OSError, ValueError) as error:
                failures.append((source, error))
        if len(failures) < len(sources):
            self.save_manifest()
        if failures:
            source, reason = failures[0]
            raise ConversionError(
                f"{source} and {len(failures) - 1} others cannot be converted, the other "
                f"{len(sources) - len(failures)} are members now: {reason}"
            ) from reason

    def _convert(self, source: Path, options: ConvertOptions) -> str:
        from scdl.conversion import convert

        if self.data_path is None:
            raise CollectionError(
                "a collection of a list of paths has no place for new archives; give "
                "SingleCellCollection a directory"
            )
        os.makedirs(self.data_path, exist_ok=True)
        stem = os.path.splitext(os.path.basename(os.fspath(source)))[0]
        target = os.path.join(self.data_path, distinct([*os.listdir(self.data_path), stem])[-1])
        key = self._neighbors["neighbor_key"] if self._load_neighbors else None
        convert(source, target, neighbor_key=key, **options)
        return target

    # -- what they hold --------------------------------------------------------------------

    @cached_property
    def _blocks(self) -> list[tuple[int, int, Block]]:
        """Of each feature block the first member that has it, its block there, and what it is."""
        found: list[tuple[int, int, Block]] = []
        previous = None
        for number, record in enumerate(self._members.records):
            start = int(self._members.starts[number])
            for i, block in enumerate(record.blocks):
                stop = start + block.stop
                if record.genes[i] == previous:
                    first, its, same = found[-1]
                    found[-1] = first, its, replace(same, stop=stop)
                else:
                    found.append((number, i, replace(block, stop=stop)))
                previous = record.genes[i]
        return found

    @cached_property
    def info(self) -> Info:
        """Feature blocks of all members; those of the same genes that meet are one."""
        if not self._blocks:
            return _NO_CELLS
        blocks = tuple(block for _, _, block in self._blocks)
        return Info(blocks, is_sorted=all(r.is_sorted for r in self._members.records))

    def origins(self) -> list[Origin]:
        """The members, or the feature blocks of those that have several."""
        out = []
        for number, record in enumerate(self._members.records):
            start = 0
            for i, block in enumerate(record.blocks):
                name = self._members.names[number]
                row = int(self._members.starts[number]) + start
                whole = len(record.blocks) == 1
                out.append(
                    Origin(
                        name if whole else f"{name}, {block.label or f'block {i}'}",
                        min(self.info.block_of(row), len(self.info.blocks) - 1),
                        block.stop - start,
                    )
                )
                start = block.stop
        return out

    def _block_keys(self) -> list[str]:
        return [self._members.records[number].genes[i] for number, i, _ in self._blocks]

    def number_nonzero_values(self) -> int:
        """Stored values."""
        return sum(record.values for record in self._members.records)

    @property
    def data_dtype(self) -> np.dtype[Any]:
        """Type that holds the values of all members."""
        dtypes = {record.dtypes[0] for record in self._members.records}
        return np.result_type(*dtypes) if dtypes else np.dtype(np.float32)

    @property
    def index_dtype(self) -> np.dtype[Any]:
        """Type that holds the column ids of all members."""
        dtypes = {record.dtypes[1] for record in self._members.records}
        return np.result_type(*dtypes) if dtypes else np.dtype(np.uint8)

    @property
    def bytes_per_cell(self) -> float:
        """Bytes that the stored values and column ids of a cell take in memory, on average."""
        value_bytes = self.data_dtype.itemsize + self.index_dtype.itemsize
        return self.number_nonzero_values() * value_bytes / max(self.n_obs, 1)

    @property
    def cells_per_chunk(self) -> float:
        """As for one archive; of the member where it is largest."""
        return max(
            (r.values_per_chunk * r.n_obs / max(r.values, 1) for r in self._members.records),
            default=0.0,
        )

    def version(self) -> str:
        """Version of this package."""
        return __version__

    # -- reading ---------------------------------------------------------------------------

    def _request(self, at: NDArray[np.int64]) -> Request:
        members, which, rows = self._members.find(at)
        return Request([self._members[i]._source for i in members], which, rows)

    def _read(
        self,
        at: NDArray[np.int64],
        ordered: bool,
        index_dtype: DTypeLike | None,
        *,
        concurrently: bool = False,
    ) -> CellBatch:
        given = self.index_dtype if index_dtype is None else np.dtype(index_dtype)
        if not np.can_cast(self.index_dtype, given, "safe"):
            raise OutputError(f"index_dtype {given} does not hold column ids of {self.index_dtype}")
        dtypes = Dtypes(self.data_dtype, self.index_dtype, given)
        request = self._request(at)
        rows = join(request, dtypes, concurrently=concurrently)
        if ordered and not request.is_sorted:
            rows = csr.clean(rows, self.info.max_n_vars, repr(self))
        return CellBatch(*rows, n_vars=self.info.max_n_vars, rows=at)

    def _vectors(self, key: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        parts = [
            (self._members[number]._vectors(key, local), places, number)
            for number, local, places in self._members.split(rows)
        ]
        if not parts:
            return self._members[0]._vectors(key, rows)
        shapes = {vectors.shape[1:]: number for vectors, _, number in parts}
        if len(shapes) > 1:
            listed = ", ".join(
                f"{self._members.names[number]} has {list(shape)}"
                for shape, number in shapes.items()
            )
            raise CollectionError(f"obsm {key!r} is not of one width in all members: {listed}")
        dtype = np.result_type(*(vectors.dtype for vectors, _, _ in parts))
        out = np.empty((len(rows), *next(iter(shapes))), dtype)
        for vectors, places, _ in parts:
            out[places] = vectors
        return out

    def will_need(self, rows: NDArray[np.int64]) -> None:
        """Tell that some cells will be read soon, so that the storage may begin; does not wait."""
        if len(rows) and is_cold(self._request(rows)):
            for number, local, _ in self._members.split(rows):
                self._members[number].will_need(local)

    # -- tables ----------------------------------------------------------------------------

    @cached_property
    def _tables(self) -> MemberTables:
        places = [(number, i) for number, i, _ in self._blocks]
        return MemberTables(repr(self), self._members, places)

    @cached_property
    def _var(self) -> VarFeatures:
        return VarFeatures(self._tables, self.info, VAR_INDEX_NAMES)

    @cached_property
    def _obs(self) -> ObsFeatures | None:
        if not any(record.has_obs for record in self._members.records):
            return None
        return ObsFeatures(self._tables, self.info, OBS_INDEX_NAMES)

    def var_features(self) -> VarFeatures:
        """Columns of var by cell."""
        return self._var

    def obs_features(self) -> ObsFeatures | None:
        """Columns of obs by cell, null where a member lacks them; None where no member has obs."""
        return self._obs

    @property
    def obs(self) -> pd.DataFrame:
        """The table of all cells, indexed by their names; read each time."""
        return self._required_obs().columns.frame()

    @property
    def obs_names(self) -> NDArray[Any]:
        """Names of the cells, as objects."""
        return self._required_obs().columns.column(INDEX)

    @cached_property
    def graph(self) -> NeighborGraph | None:
        """The graphs of the members as one; None where none has the one that was asked for."""
        if self._load_neighbors is False:
            return None
        for number, record in enumerate(self._members.records):
            found = self._members[number].graph if record.graphs else None
            if found is not None:
                fallback = self._neighbors["fallback_to_identity"]
                return MemberGraph(self._members, found.key, fallback_to_identity=fallback)
        return None

    # -- one archive -----------------------------------------------------------------------

    def flatten(
        self,
        output_path: Path,
        destroy_on_copy: bool = False,
        extend_copy_size: int = 10_485_760,
        *,
        backend: str | None = None,
        cell_names: CellNames = "keep",
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
            Whether to remove the members, and the manifest, after the archive was opened and
            compared with each of them: cells, values, and sums of both.
        extend_copy_size
            Bytes of stored values copied at once.
        backend
            Storage backend; default ``zarr`` where the path ends so, else ``memmap``.
        cell_names
            ``"keep"``: as they are. ``"unique"``: the same, and an error where two cells have one
            name. ``"prefix"``: with the name of their member in front, ``member-name``.
        **options
            Of the backend, such as ``compression``.

        Raises
        ------
        ArchiveExistsError
            Something is at `output_path`.
        CollectionError
            There are no members; `output_path` would be inside one of them, or be found as one;
            names are not unique; or the archive is not what the members are.
        """
        path = absolute(output_path)
        self._check_target(path)
        write_flat(
            self._members,
            path,
            backend=backend,
            cell_names=cell_names,
            chunk_bytes=extend_copy_size,
            options=options,
        )
        if destroy_on_copy:
            verify(self._members, path)
            for store in self._members.stores():
                store.remove()
            if self.data_path is not None and has_manifest(self.data_path):
                write_manifest(self.data_path, [])
            self._use([])

    def _check_target(self, path: str) -> None:
        if not self._members:
            raise CollectionError("there are no members to flatten; add archives first")
        for record in self._members.records:
            if not is_url(record.path) and is_within(path, record.path):
                raise CollectionError(f"{path}: this is inside the member {record.path}")
        directory = self.data_path
        if directory is not None and is_within(path, directory) and not has_manifest(directory):
            raise CollectionError(
                f"{path}: here it would become a member of the collection itself; take a path "
                f"outside {directory}, or call save_manifest() first"
            )


def open(path: Path, **options: Any) -> SingleCellDataset | SingleCellCollection:
    """Open an archive of any backend, or a directory of archives as a collection.

    Parameters
    ----------
    path
        Where it is.
    **options
        ``load_neighbors``, ``neighbor_key``, ``neighbor_sampling_strategy`` and
        ``fallback_to_identity``, as for :class:`SingleCellDataset`.

    Raises
    ------
    ArchiveNotFoundError
        There is nothing at `path`.
    ArchiveFormatError
        What is there is no archive, or a damaged one.
    """
    place = os.fspath(path)
    if os.path.isdir(place) and (
        has_manifest(place) or (not is_archive(place) and archives_below(place))
    ):
        return SingleCellCollection(path, **options)
    return SingleCellDataset(path, **options)


def _is_empty(directory: str) -> bool:
    with os.scandir(directory) as entries:
        return next(entries, None) is None
