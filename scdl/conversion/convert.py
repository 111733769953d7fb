"""From AnnData files to an archive, in one streaming code path."""

from __future__ import annotations

import inspect
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict, Unpack, cast

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray
from tqdm import tqdm

from scdl.archive import csr
from scdl.archive.casting import DATA_DTYPES, Caster
from scdl.archive.csr import SparseRows
from scdl.archive.gene_space import Duplicates, Genes, Missing, gene_orders
from scdl.archive.schema import (
    DATA,
    GRAPH_DTYPES,
    INDICES,
    INDPTR,
    OBS,
    Info,
    graph_array,
    names_of,
    obsm_array,
    smallest_unsigned,
)
from scdl.archive.tables import United, write_var
from scdl.conversion.elements import write_rest
from scdl.conversion.origins import Origins, origins_of
from scdl.errors import (
    ArchiveFormatError,
    BackendOptionError,
    OptionError,
    ScdlWarning,
    SourceError,
    UnknownOptionError,
)
from scdl.sources.base import ArchiveSource, Source, Tally
from scdl.sources.gene_selection import GeneChoice, choice_of, selected
from scdl.sources.h5ad import H5adFile
from scdl.sources.hdf5 import prefetch, recyclable
from scdl.sources.matrices import BLOCK_VALUES, Bounds, Matrix, Offsets, Reader
from storage_backends import other_formats, registry
from storage_backends.base import ArrayStore, ArrayWriter
from storage_backends.errors import one_line
from storage_backends.paths import is_url, path_of

Path = str | os.PathLike[str]

#: What is expected of a target, for messages.
TARGET = "where the archive goes, as a path"


class ConvertOptions(TypedDict, total=False):
    """What of a source is carried over, and how; every key may be left out."""

    compression: str | None
    only_matrix: bool
    matrix: str | None
    obsm: str | Sequence[str]
    data_dtype: DTypeLike | None
    data_dtype_tolerance: float
    block_values: int
    block_rows: int


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion wrote.

    Parameters
    ----------
    path, backend
        Where, and by which backend.
    n_obs, n_vars, nnz
        Cells, genes of each feature block, stored values.
    dtype
        Type of the values.
    matrices
        Which matrix of each file was taken.
    rows_sorted, duplicates_summed
        Rows whose genes were out of order, and stored values that were added to another of the same
        gene.
    reordered
        Sources whose genes are those of an earlier source in another order, which were brought into
        that order.
    differing_var
        Columns of var that sources with the same genes do not share; each source keeps its own.
    not_carried
        What is in the files and not in the archive.
    max_rounding
        Largest difference that rounding to `dtype` made.
    is_counts
        Whether all values of the matrix are whole and not negative, as counts are.
    nbytes
        Bytes on disk.
    seconds
        Time it took.
    requires
        Packages that other programs need to read the archive.
    changed_columns
        Columns of obs whose types differ among the sources and whose values changed when they
        were united, each with what became of it: ``obs/flag (bool and int64 become int64)``.
    """

    path: str
    backend: str
    n_obs: int
    n_vars: list[int]
    nnz: int
    dtype: str
    matrices: list[str]
    rows_sorted: int
    duplicates_summed: int
    reordered: tuple[str, ...]
    differing_var: tuple[str, ...]
    not_carried: tuple[str, ...]
    max_rounding: float
    nbytes: int
    seconds: float
    requires: tuple[str, ...] = ()
    is_counts: bool = True
    changed_columns: tuple[str, ...] = ()

    def __str__(self) -> str:
        genes = " + ".join(f"{n:,}" for n in self.n_vars)
        source = ", ".join(dict.fromkeys(self.matrices))
        lines = [
            f"{self.path} ({self.backend}): {self.n_obs:,} cells x {genes} genes, "
            f"{self.nnz:,} values as {self.dtype} from {source}",
            f"{self.nbytes / 1e6:,.1f} MB in {self.seconds:.1f} s",
        ]
        if not self.is_counts:
            lines.append(f"not counts: values of {source} are negative or not whole numbers")
        if self.rows_sorted:
            lines.append(f"sorted: {self.rows_sorted:,} cells whose genes were out of order")
        if self.duplicates_summed:
            lines.append(f"summed: {self.duplicates_summed:,} repeated entries of a cell and gene")
        if self.reordered:
            lines.append(f"genes brought into the order of the first: {', '.join(self.reordered)}")
        if self.differing_var:
            names = ", ".join(self.differing_var)
            lines.append(f"columns of var that differ, kept for each source: {names}")
        if self.max_rounding:
            lines.append(f"rounded: by up to {self.max_rounding:.3g}")
        if self.not_carried:
            lines.append(f"not carried over: {', '.join(self.not_carried)}")
        if self.requires:
            lines.append(needed(self.requires))
        if self.changed_columns:
            lines.append(f"changed: {'; '.join(self.changed_columns)}")
        return "\n".join(lines)


def needed(packages: Sequence[str]) -> str:
    """Says which packages other programs need to read an archive, and how to do without."""
    return (
        f"other programs that read this AnnData need {', '.join(packages)} installed; those of the "
        "compressions fast and portable need nothing"
    )


def convert(
    sources: Path | Sequence[Path] | Mapping[str, Path],
    path: Path,
    *,
    label: str | None = None,
    keys: Sequence[str] | None = None,
    genes: Genes | None = None,
    gene_column: str | None = None,
    missing: Missing = "error",
    duplicates: Duplicates = "error",
    backend: str | None = None,
    neighbor_key: str | Sequence[str] | None = None,
    progress: bool = False,
    replace: bool = False,
    **options: Unpack[ConvertOptions],
) -> ConversionReport:
    """Convert AnnData files (h5ad, Zarr) and archives to an archive.

    Sources are read by blocks of rows, so that memory does not depend on their size. The archive
    appears when it is complete; a conversion that fails leaves nothing behind.

    Parameters
    ----------
    sources
        One source or several, whose cells follow one another: h5ad files, AnnData in Zarr stores,
        archives of any backend. Those with the same var share a feature block. A dict gives them
        names, for `label`.
    path
        Where the archive goes; nothing may be there.
    label
        Name of a categorical column of obs to add, which says which source each cell comes from.
    keys
        Names of the sources in that column, in their order; default: those of a dict, else
        ``"0"``, ``"1"`` and so on, as by :func:`anndata.concat`.
    genes
        Genes that the archive has, in their order, whatever genes each source has: ``"union"``,
        ``"intersection"``, a list, or the path of a text file. Columns of var are left out, as is
        what an AnnData has besides. Default: all genes of each source.
    gene_column, missing, duplicates
        As for :meth:`scdl.SingleCellDataset.select_genes`; ``missing`` is ``"error"`` or
        ``"zero"``.
    backend
        Storage backend. Default: the one that the end of `path` asks for, as ``.zarr`` does, else
        ``memmap``.
    neighbor_key
        Key of ``obsp`` whose graph to carry over, or several; where no file has one, there is a
        warning.
    progress
        Whether to show a progress bar.
    replace
        Whether to replace what is at `path`, atomically.
    compression : str, optional
        How to compress, for a backend that does: a profile of the zarr backend.
    only_matrix : bool, default False
        Whether to leave out what of an AnnData training has no use for. A backend that can keeps
        all of it for a single source; of several sources, and by the other backends, only the
        matrix, obs and what is asked for are carried over.
    matrix : str, optional
        ``X``, ``raw/X`` (with ``raw/var``) or ``layers/<key>``. Default: ``raw/X`` where a file has
        it, else ``X``.
    obsm : str or sequence of str, optional
        Keys of dense vectors to carry over.
    data_dtype : dtype, optional
        Type of the stored values: uint8 to uint64, or float16 to float64. Default: that of the
        source where all of it is kept or it is an archive, else float32.
    data_dtype_tolerance : float, default 1e-8
        Largest absolute difference made by rounding that is passed over without a warning.
    block_values, block_rows : int, optional
        Most stored values, and most rows, handled at once; the result does not depend on them.

    Returns
    -------
    ConversionReport

    Raises
    ------
    SourceNotFoundError
        A file does not exist.
    SourceError
        A file is no valid AnnData file, or lacks what was asked for.
    CastError
        `data_dtype` cannot hold a value.
    OptionError
        `keys` are not one name for each source, or obs has the column `label` already; or policies
        for `genes` without those.
    GeneError, GeneListNotFoundError
        The sources cannot be brought into the gene space `genes`.
    ArchiveExistsError
        Something is at `path`, and `replace` is False; or it is no archive.
    ArchivePlaceError
        `path` is inside another archive.
    ArchiveWriteError
        The archive cannot be written, for example because the disk is full.
    """
    check_options(options, convert)
    paths, origins = origins_of(sources, label, keys)
    path = path_of(path, TARGET)
    if not paths:
        raise SourceError("there is nothing to convert: the list of files is empty")
    policies = {"gene_column": gene_column, "missing": missing, "duplicates": duplicates}
    choice = choice_of(genes, policies)
    settings = Settings(backend, neighbor_key, options, origins=origins, genes=choice)
    with tqdm(unit="value", unit_scale=True, disable=not progress) as bar:
        return write_archive(
            lambda stack: open_sources(paths, settings, stack),
            path,
            settings,
            bar,
            replace=replace,
        )


def reconvert(
    source: Path, store: ArrayStore, neighbor_key: str | None, options: Mapping[str, Any]
) -> None:
    """Replace an open archive by what a source holds, as :func:`convert` does.

    Raises
    ------
    ArchiveChangedError, ArchiveLockedError
        As :func:`storage_backends.registry.rewrite`.
    """
    backend, given = registry.of(store).name, cast(ConvertOptions, options)
    settings = Settings(backend, neighbor_key, given)
    with tqdm(disable=True) as bar:
        write_archive(
            lambda stack: open_sources([source], settings, stack),
            store.path,
            settings,
            bar,
            instead_of=store,
        )


@dataclass(frozen=True)
class Settings:
    """How to convert, whatever the sources are.

    Parameters
    ----------
    backend, neighbor_key, options
        As for :func:`convert`.
    caster
        Makes values of the stored type; None: by the sources and the options.
    origins
        What the cells of each source are labelled with; None: nothing.
    genes
        The gene space of the archive; None: the genes of each source.
    """

    backend: str | None = None
    neighbor_key: str | Sequence[str] | None = None
    options: ConvertOptions = field(default_factory=lambda: ConvertOptions())
    caster: Caster | None = None
    origins: Origins | None = None
    genes: GeneChoice | None = None


class Meter(Protocol):
    """Is told how much there is to do and what has been done, as a bar of tqdm is."""

    def reset(self, total: float | None = None) -> object:
        """Begin, with so much to do."""

    def update(self, n: float = 1) -> object:
        """So much more is done."""


def write_archive(
    opening: Callable[[ExitStack], Sequence[Source]],
    path: Path,
    settings: Settings,
    meter: Meter,
    *,
    replace: bool = False,
    instead_of: ArrayStore | None = None,
) -> ConversionReport:
    """Write one archive of sources that are opened once its place is known to be free.

    Parameters
    ----------
    opening
        Opens the sources, and has the stack close them.
    path, settings, replace
        As for :func:`convert`.
    meter
        Is told of stored values.
    instead_of
        An open archive at the path, which is replaced if it stands there still.
    """
    started = time.perf_counter()
    options = settings.options
    target = registry.for_target(path, settings.backend)
    storage = {"compression": options["compression"]} if options.get("compression") else {}
    with ExitStack() as stack:
        if instead_of is None:
            writer = registry.create(path_of(path, TARGET), target, replace=replace, **storage)
        else:
            writer = registry.rewrite(instead_of, target, **storage)
        stack.enter_context(writer)
        opened = opening(stack)
        conversion = Conversion(opened, writer.path, settings, keeps_elements=writer.keeps_elements)
        meter.reset(sum(source.matrix.size for source in opened))
        info = conversion.run(writer, meter)
    with target.store.open(writer.path) as store:
        nnz, nbytes, requires = store.spec(DATA).length, store.nbytes, tuple(store.requires)
    tally = conversion.tally
    return ConversionReport(
        path=path_of(path),
        backend=target.name,
        n_obs=info.n_obs,
        n_vars=[block.n_vars for block in info.blocks],
        nnz=nnz,
        dtype=conversion.caster.dtype.name,
        matrices=list(info.matrices),
        rows_sorted=tally.rows_sorted,
        duplicates_summed=tally.duplicates_summed,
        reordered=conversion.reordered,
        differing_var=conversion.differing_var,
        not_carried=conversion.not_carried,
        changed_columns=conversion.changed_columns,
        max_rounding=tally.max_rounding,
        nbytes=nbytes,
        seconds=time.perf_counter() - started,
        requires=requires,
        is_counts=tally.is_counts,
    )


def check_options(
    options: Mapping[str, Any], call: Callable[..., Any], also: Sequence[str] = ()
) -> None:
    """UnknownOptionError for a key that :class:`ConvertOptions` does not have.

    Parameters
    ----------
    call
        Whose keywords are named besides.
    also
        Further ones that it takes.
    """
    unknown = set(options) - set(ConvertOptions.__annotations__)
    if unknown:
        known = [*keywords(call), *also, *ConvertOptions.__annotations__]
        raise UnknownOptionError(
            f"there is no option {', '.join(map(repr, sorted(unknown)))}; there are: "
            f"{', '.join(dict.fromkeys(known))}"
        )


def check_storage(backend: str, options: Mapping[str, Any], call: Callable[..., Any]) -> None:
    """BackendOptionError for an option that neither a backend nor a function takes."""
    known = registry.backend(backend).options
    for name in options:
        if name not in known:
            raise BackendOptionError(
                f"the storage backend {backend} has no option {name!r}; there are: "
                f"{', '.join([*keywords(call), *known])}"
            )


def keywords(call: Callable[..., Any]) -> list[str]:
    """Names of the keywords of a function that can be given by name only."""
    parameters = inspect.signature(call).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


def open_sources(paths: Sequence[Path], settings: Settings, stack: ExitStack) -> list[Source]:
    """What all paths hold, open until the stack ends; obs as it will be."""
    found = []
    for number, path in enumerate(paths):
        for source in _opened(path, settings.options.get("matrix"), stack):
            if settings.origins is not None:
                source.labelled = settings.origins.labelled(source.obs, number, source.path)
            found.append(source)
    return found


def _opened(path: Path, matrix: str | None, stack: ExitStack) -> list[Source]:
    """What a path holds: an h5ad file, or a source for each feature block of an archive."""
    path = path_of(path)
    is_file = not os.path.isdir(path) and not is_url(path)
    if is_file and (other_formats.is_hdf5(path) or registry.known(path) is None):
        return [stack.enter_context(H5adFile(path, matrix))]
    try:
        store = stack.enter_context(registry.open_archive(path))
    except ArchiveFormatError as error:
        if registry.known(path) is None and _has_archives(path):
            raise SourceError(
                f"{path}: this is a directory of archives; give them as a list, or flatten the "
                f"collection: `scdl flatten {path} DEST`"
            ) from error
        raise SourceError(one_line(error)) from error
    info = Info.from_attrs(store.attrs, store.path)
    return [ArchiveSource(store, info, i, matrix) for i in range(len(info.blocks))]


def _has_archives(directory: str) -> bool:
    """Whether there are archives in a directory."""
    try:
        paths = [os.path.join(directory, name) for name in os.listdir(directory)]
    except OSError:
        return False
    return any(registry.known(path) is not None for path in paths)


class Conversion:
    """One run: sources that are open and are checked here, before anything is written.

    Parameters
    ----------
    files
        The sources, at least one.
    target
        Where the archive goes: temporary files go beside it.
    settings
        How to convert.
    keeps_elements
        Whether the archive can keep all that an AnnData consists of.

    Raises
    ------
    SourceError
        A source lacks what was asked for, or the sources do not fit each other.
    """

    def __init__(
        self,
        files: Sequence[Source],
        target: str,
        settings: Settings,
        *,
        keeps_elements: bool,
    ) -> None:
        neighbor_key, options = settings.neighbor_key, settings.options
        taken = {file.matrix_name: file.path for file in reversed(files)}
        if len(taken) > 1:
            named = ", ".join(f"{name} of {path}" for name, path in sorted(taken.items()))
            raise SourceError(
                f"the files hold different matrices: {named}; say which to take with matrix="
            )
        if settings.genes is not None:
            files = selected(files, settings.genes)
        self._files = files
        self._gene_orders = gene_orders(file.var() for file in files) if len(files) > 1 else [None]
        self.differing_var: tuple[str, ...] = ()
        self._writer: ArrayWriter
        self._alone = files[0] if len(files) == 1 else None
        #: Whether the archive becomes all that the source is.
        only_matrix = options.get("only_matrix", False) or settings.genes is not None
        self._whole = self._alone is not None and keeps_elements and not only_matrix
        # Opened here, so that a key that a file lacks is found before anything is written.
        asked = names_of(options.get("obsm"), "obsm") or _shared(
            file.kept_vectors for file in files
        )
        self._obsm = {key: [file.vectors(key) for file in files] for key in asked}
        wanted = None if neighbor_key is None else names_of(neighbor_key, "neighbor_key")
        self._graphs = list(dict.fromkeys(wanted or _shared(f.kept_graphs for f in files)))
        self.caster = settings.caster or self._make_caster(options)
        self._bounds = Bounds(
            values=_positive("block_values", options.get("block_values", BLOCK_VALUES)),
            rows=min(
                _positive("block_rows", options.get("block_rows", Bounds().rows)), Bounds().rows
            ),
            target=target,
        )
        # The types of an archive stay, where all sources have the same.
        first, *others = (file.kept_dtypes for file in files)
        kept = first if all(other == first for other in others) else {}
        largest = max(file.n_vars for file in files) - 1
        self._index_dtype = _unsigned(kept.get(INDICES)) or smallest_unsigned(largest)
        self._indptr_dtype = _unsigned(kept.get(INDPTR))
        self._rows_sorted = sum(file.tally.rows_sorted for file in files)
        self._duplicates_summed = sum(file.tally.duplicates_summed for file in files)
        self.caster.max_rounding = max(file.tally.max_rounding for file in files)
        self.caster.is_counts = all(file.tally.is_counts for file in files)
        carried = {obsm_array(key) for key in self._obsm}
        carried |= {f"{kind}/{key}" for key in self._graphs for kind in ("obsp", "graphs")}
        self.not_carried = self._left_out(carried)
        self.changed_columns: tuple[str, ...] = ()

    def _make_caster(self, options: ConvertOptions) -> Caster:
        """The source's type where all of it is kept, else the one asked for, else float32."""
        dtype = options.get("data_dtype")
        source = np.result_type(*(file.matrix.dtype for file in self._files))
        if dtype is None and self._whole and source.kind in "iuf":
            return Caster.keeping(source)
        if dtype is None:
            archives = all(file.kept_dtypes for file in self._files)
            dtype = source if archives and source.name in DATA_DTYPES else np.float32
        return Caster(dtype, options.get("data_dtype_tolerance", 1e-8))

    def _left_out(self, carried: set[str]) -> tuple[str, ...]:
        if self._whole:
            assert self._alone is not None
            return tuple(self._alone.unread)
        names = (name for file in self._files for name in file.not_carried(carried))
        return tuple(dict.fromkeys(names))

    @property
    def reordered(self) -> tuple[str, ...]:
        """Sources whose genes are brought into the order of an earlier one."""
        pairs = zip(self._files, self._gene_orders, strict=True)
        return tuple(file.path for file, order in pairs if order is not None)

    @property
    def tally(self) -> Tally:
        """What was done to the values so far."""
        rounding, is_counts = self.caster.max_rounding, self.caster.is_counts
        return Tally(self._rows_sorted, self._duplicates_summed, rounding, is_counts)

    def run(self, writer: ArrayWriter, meter: Meter) -> Info:
        """Write everything and commit; once."""
        self._writer = writer
        blocks, self.differing_var = write_var(
            self._writer,
            (
                (file.var() if order is None else file.var().take(order), file.n_obs, file.label)
                for file, order in zip(self._files, self._gene_orders, strict=True)
            ),
        )
        # A table without columns has no rows either.
        if any(file.cells.schema.names for file in self._files):
            united = United([file.cells for file in self._files])
            united.warn(writer.path)
            self.changed_columns = tuple(f"obs/{change}" for change in united.changes)
            self._writer.write_table(OBS, united.reader())
        # Arrow's allocator would keep what the tables took through the rest of the conversion.
        pa.default_memory_pool().release_unused()
        if self._whole:
            for key in self._graphs:
                self._warn_of_absence(key)
            lost = write_rest(self._files[0], self._writer, self._bounds, self._graphs)
            self.not_carried = (*lost, *self.not_carried)
        else:
            for key, readers in self._obsm.items():
                self._write_vectors(key, readers)
            for key in self._graphs:
                if self._warn_of_absence(key):
                    self._write_graph(key)
        self._write_matrix(meter)
        matrices = tuple(file.matrix_name for file in self._files)
        element = self._files[0].element if self._whole else "X"
        info = Info(blocks, is_sorted=True, matrices=matrices, element=element)
        # Before the commit: a warning may be an error to the caller.
        self.caster.warn(self._writer.path)
        self._writer.commit(info.to_attrs())
        return info

    def _write_matrix(self, meter: Meter) -> None:
        with Offsets(self._bounds) as offsets:
            for file, order in zip(self._files, self._gene_orders, strict=True):
                where = file.matrix.where
                places = None if order is None else np.argsort(order)
                for block in prefetch(file.matrix.blocks(self._bounds)):
                    rows = self._clean(block, file.n_vars, where, places)
                    self._append(DATA, self.caster(rows.data, where), self.caster.dtype)
                    self._append(INDICES, rows.indices, self._index_dtype)
                    offsets.add(rows.indptr)
                    meter.update(len(block.data))
            self._append(DATA, np.empty(0, self.caster.dtype), self.caster.dtype)
            self._append(INDICES, np.empty(0, self._index_dtype), self._index_dtype)
            for values in offsets.read(self._offsets_dtype(offsets.total)):
                self._writer.append(INDPTR, values)

    def _offsets_dtype(self, total: int) -> np.dtype[Any]:
        kept = self._indptr_dtype
        return kept if kept and total <= np.iinfo(kept).max else smallest_unsigned(total)

    def _append(self, name: str, values: NDArray[Any], dtype: np.dtype[Any]) -> None:
        self._writer.append(name, values.astype(dtype, copy=False))

    def _clean(
        self, block: SparseRows, n_vars: int, where: str, places: NDArray[np.int64] | None
    ) -> SparseRows:
        """Genes of each cell in rising order, each once.

        Parameters
        ----------
        places
            Where each gene goes; None: it stays.
        """
        if places is not None:
            block = csr.ordered(block, n_vars, where)[0]
            block = block._replace(indices=places[block.indices])
        indices = recyclable(block.indices.shape, self._index_dtype)
        np.copyto(indices, block.indices, casting="unsafe")
        falls = recyclable((max(len(indices) - 1, 0),), np.dtype(bool))
        np.less_equal(indices[1:], indices[:-1], out=falls)
        inner = block.indptr[(block.indptr > 0) & (block.indptr < len(indices))]
        falls[inner - 1] = False
        block = SparseRows(block.data, indices, block.indptr)
        if not falls.any():
            return block
        ordered, n_unsorted = csr.ordered(block, n_vars, where)
        summed = csr.without_duplicates(ordered)
        self._rows_sorted += n_unsorted if places is None else 0
        self._duplicates_summed += len(block.data) - len(summed.data)
        return summed

    def _write_vectors(self, key: str, readers: Sequence[Reader]) -> None:
        items = {
            (str(reader.dtype.newbyteorder("=")), reader.item_shape): file.path
            for reader, file in zip(readers, self._files, strict=True)
        }
        if len(items) > 1:
            named = ", ".join(f"{dtype} {shape} in {at}" for (dtype, shape), at in items.items())
            raise SourceError(
                f"obsm/{key} differs between the files: {named}; make it alike, or leave it out"
            )
        for reader in readers:
            rows = max(1, self._bounds.values // max(int(np.prod(reader.item_shape)), 1))
            for values in prefetch(_pieces(reader, rows)):
                # Archives store no booleans.
                plain = values.astype(np.uint8) if values.dtype == bool else values
                self._writer.append(obsm_array(key), plain)

    def _warn_of_absence(self, key: str) -> bool:
        """Whether any file has a graph; warns where none has."""
        if any(file.graph(key) for file in self._files):
            return True
        message = f"no file has obsp/{key}; the archive has no neighbours of that key"
        warnings.warn(message, ScdlWarning, stacklevel=5)
        return False

    def _write_graph(self, key: str) -> None:
        """The graphs of all files, shifted to where their cells are."""
        graphs = [file.graph(key) for file in self._files]
        if sum(file.n_obs for file in self._files) > 1 << 32:
            raise SourceError(f"obsp/{key}: a graph may have at most 2^32 cells")
        first_row = 0
        names = {part: graph_array(key, part) for part in GRAPH_DTYPES}
        caster = Caster(GRAPH_DTYPES[DATA], np.inf)
        with Offsets(self._bounds) as offsets:
            for file, graph in zip(self._files, graphs, strict=True):
                for block in _graph_blocks(graph, file.n_obs, self._bounds):
                    where = graph.where if graph else file.path
                    neighbors = block.indices.astype(np.int64) + (first_row - file.first_row)
                    self._append(names[DATA], caster(block.data, where), caster.dtype)
                    self._append(names[INDICES], neighbors, GRAPH_DTYPES[INDICES])
                    offsets.add(block.indptr)
                first_row += file.n_obs
            for part in (DATA, INDICES):
                self._writer.append(names[part], np.empty(0, GRAPH_DTYPES[part]))
            for values in offsets.read(GRAPH_DTYPES[INDPTR]):
                self._writer.append(names[INDPTR], values)


def _shared(keys: Iterable[Sequence[str]]) -> list[str]:
    """Keys that all of several lists have, in the order of the first."""
    first, *others = keys
    return [key for key in first if all(key in other for other in others)]


def _unsigned(dtype: np.dtype[Any] | None) -> np.dtype[Any] | None:
    return dtype if dtype is not None and dtype.kind == "u" else None


def _graph_blocks(graph: Matrix | None, n_obs: int, bounds: Bounds) -> Iterable[SparseRows]:
    if graph is None:
        nothing = np.empty(0, GRAPH_DTYPES[DATA])
        return [SparseRows(nothing, nothing.astype(np.int64), np.zeros(n_obs + 1, np.int64))]
    return prefetch(graph.blocks(bounds))


def _pieces(reader: Reader, rows: int) -> Iterator[NDArray[Any]]:
    for start in range(0, max(len(reader), 1), rows):
        yield reader.read(start, min(start + rows, len(reader)))


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise OptionError(f"{name} must be at least 1, not {value}")
    return value
