"""Conversion of AnnData files and archives to one archive, streamed by blocks of rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack, cast

from tqdm import tqdm

from scdl.archive.gene_space import Duplicates, Genes, Missing
from scdl.conversion.options import (
    TARGET,
    ConversionReport,
    ConvertOptions,
    Meter,
    Settings,
    check_options,
    keywords,
    storage_options,
)
from scdl.conversion.origins import origins_of
from scdl.conversion.reporting import report_of
from scdl.conversion.row_order import SOURCE_ROW, Shuffle
from scdl.conversion.run import Conversion
from scdl.errors import BackendOptionError, SourceError
from scdl.sources.base import Source
from scdl.sources.beside import Beside
from scdl.sources.formats import open_source, sources_of
from scdl.sources.gene_selection import gene_choice
from storage_backends import registry
from storage_backends.base import ArrayStore
from storage_backends.paths import Path, path_of

if TYPE_CHECKING:
    from anndata import AnnData


#: A source of a conversion.
Convertible: TypeAlias = "Path | AnnData"


def convert(
    sources: Convertible | Sequence[Convertible] | Mapping[str, Convertible],
    path: Path,
    *,
    label: str | None = None,
    keys: Sequence[str] | None = None,
    genes: Genes | None = None,
    gene_column: str | None = None,
    missing: Missing = "error",
    duplicates: Duplicates = "error",
    shuffle: int | None = None,
    row_column: str = SOURCE_ROW,
    backend: str | None = None,
    neighbor_key: str | Sequence[str] | None = None,
    progress: bool = False,
    replace: bool = False,
    **options: Unpack[ConvertOptions],
) -> ConversionReport:
    """Convert AnnData, outputs of 10x Genomics' Cell Ranger, and archives to an archive.

    Sources are read in blocks of rows, so memory use does not depend on their size. The archive
    appears only when it is complete; a failed conversion leaves nothing behind.

    Parameters
    ----------
    sources
        One source or several. Paths of h5ad files, of AnnData in Zarr stores, of outputs of Cell
        Ranger (``.h5``, or a directory with ``matrix.mtx``, which may be compressed), or of
        archives of any backend; or AnnData objects, in memory, backed by a file or with Dask
        arrays. Their cells are concatenated; consecutive sources with the same var share a feature
        block. The keys of a dict are the names of the sources, used by `label`.
    path
        Path of the archive; nothing may exist there.
    label
        Name of a categorical column to add to obs with the source of each cell.
    keys
        Names of the sources in that column, in order. Default: the keys of a dict, else ``"0"``,
        ``"1"`` and so on, as in :func:`anndata.concat`.
    genes
        Genes of the archive, in order: ``"union"``, ``"intersection"``, a list, or the path of a
        text file. Columns of var and other elements of an AnnData are then left out. Default: all
        genes of each source.
    gene_column, missing, duplicates
        As for :meth:`scdl.SingleCellDataset.select_genes`; ``missing`` is ``"error"`` or
        ``"zero"``.
    shuffle
        Seed of a random order of the cells of all sources; the order depends only on it and on the
        number of cells. The sources need the same genes, or `genes`; columns of var that they do
        not share are left out. Default: the order of the sources.
    row_column
        Name of the int64 column of obs that a shuffled archive has in addition, with the row of
        each cell in the sources, counted over all of them.
    backend
        Storage backend. Default: the one of the suffix of `path`, such as ``.zarr``, else
        ``memmap``.
    neighbor_key
        Key or keys of ``obsp`` whose graphs to convert; a key that no source has causes a warning.
    progress
        Whether to show a progress bar.
    replace
        Whether to replace an existing archive at `path`, atomically.
    compression : str, optional
        Compression profile, for backends that compress (zarr).
    only_matrix : bool, default False
        Whether to leave out elements of an AnnData that training does not need. Backends that
        support it (zarr) keep all elements of a single source by default; with several sources, or
        other backends, only the matrix, var, obs and requested elements are converted.
    matrix : str, optional
        ``X``, ``raw/X`` (with ``raw/var``) or ``layers/<key>``. Default: ``raw/X`` if a file has
        it, else ``X``.
    genome : str, optional
        Of an output of Cell Ranger: the genome whose genes to convert. Default: all genomes.
    feature_types : str or sequence of str, optional
        Of an output of Cell Ranger: the types of features to convert, or ``"all"``. Default:
        ``"Gene Expression"`` if there are such features.
    obs, var : path, pandas.DataFrame or pyarrow.Table, optional
        Tables whose columns to add to obs and var of every source, by the names of cells and genes.
        Names are the index of a data frame, or the first column of a file (``.csv``, ``.tsv``,
        ``.txt``, which may be compressed, or ``.parquet``). Cells and genes without a row get
        nulls; the report counts them.
    obsm : str or sequence of str, optional
        Keys of dense vectors to convert.
    data_dtype : dtype, optional
        Dtype of the stored values: uint8 to uint64, or float16 to float64. Default: the dtype of
        the source if all its elements are kept or it is an archive, else float32.
    data_dtype_tolerance : float, default 1e-8
        Largest absolute rounding error that is accepted without a warning.
    block_values, block_rows : int, optional
        Largest number of stored values and of rows processed at a time; the result does not depend
        on them.

    Returns
    -------
    ConversionReport

    Raises
    ------
    SourceNotFoundError
        A file does not exist.
    SourceError
        A file is not a valid AnnData file, or lacks a requested element.
    CastError
        `data_dtype` cannot represent a value.
    OptionError
        `keys` does not have one name per source; obs already has the column `label` or
        `row_column`; `shuffle` is not an integer; or a gene policy is given without `genes`.
    GeneError, GeneListNotFoundError
        The sources cannot be mapped to the gene space `genes`, or are shuffled and have different
        genes.
    ArchiveExistsError
        Something exists at `path`, and `replace` is False or it is not an archive.
    ArchivePlaceError
        `path` is inside another archive.
    ArchiveWriteError
        The archive cannot be written, for example because the disk is full.

    Examples
    --------
    >>> report = scdl.convert("cells.h5ad", "shuffled.scdl", shuffle=42)  # doctest: +SKIP
    >>> scdl.open("shuffled.scdl").obs["source_row"]  # doctest: +SKIP
    """
    opening, origins = origins_of(sources, label, keys, sources_of)
    path = path_of(path, TARGET)
    check_options(options, convert, registry.for_target(path, backend))
    if not opening:
        raise SourceError("there is nothing to convert: the list of files is empty")
    policies = {"gene_column": gene_column, "missing": missing, "duplicates": duplicates}
    choice = gene_choice(genes, policies)
    order = Shuffle.of(shuffle, row_column)
    settings = Settings(backend, neighbor_key, options, None, origins, choice, order)
    with tqdm(unit="value", unit_scale=True, disable=not progress) as bar:
        opened = partial(open_sources, opening, settings)
        return write_archive(opened, path, settings, bar, replace=replace)


def reconvert(
    source: Path, store: ArrayStore, neighbor_key: str | None, options: Mapping[str, Any]
) -> None:
    """Replace an open archive with the converted contents of a source; see :func:`convert`.

    Raises
    ------
    ArchiveChangedError, ArchiveLockedError
        As raised by :func:`storage_backends.registry.rewrite`.
    """
    backend, given = registry.of(store).name, cast(ConvertOptions, options)
    settings = Settings(backend, neighbor_key, given)
    opening = partial(open_sources, [source], settings)
    write_archive(opening, store.path, settings, instead_of=store)


def write_archive(
    opening: Callable[[ExitStack], Sequence[Source]],
    path: Path,
    settings: Settings,
    meter: Meter | None = None,
    *,
    replace: bool = False,
    instead_of: ArrayStore | None = None,
) -> ConversionReport:
    """Write one archive; the sources are opened after its path was checked and reserved.

    Parameters
    ----------
    opening
        Opens the sources and registers them with the stack, which closes them.
    path, settings, replace
        As for :func:`convert`.
    meter
        Receives the progress, in stored values.
    instead_of
        An open archive at the path; it is replaced unless it was changed in the meantime.
    """
    started = time.perf_counter()
    meter = tqdm(disable=True) if meter is None else meter
    options = settings.options
    target = registry.for_target(path, settings.backend)
    storage = storage_options(options, target)
    with ExitStack() as stack:
        if instead_of is None:
            writer = registry.create(path_of(path, TARGET), target, replace=replace, **storage)
        else:
            writer = registry.rewrite(instead_of, target, **storage)
        stack.enter_context(writer)
        opened = opening(stack)
        conversion = Conversion(opened, writer.path, settings, keeps_elements=writer.keeps_elements)
        meter.reset(conversion.work)
        info = conversion.run(writer, meter)
    return report_of(
        path_of(path),
        writer.path,
        target,
        info,
        conversion.caster.dtype,
        conversion.tally,
        started,
        reordered=conversion.reordered,
        differing_var=conversion.differing_var,
        not_carried=conversion.not_carried,
        changed_columns=conversion.changed_columns,
        unmatched=tuple(line for source in opened for line in source.unmatched),
    )


def check_storage(backend: str, options: Mapping[str, Any], call: Callable[..., Any]) -> None:
    """Raise BackendOptionError for an option that the backend does not have."""
    known = registry.backend(backend).options
    for name in options:
        if name not in known:
            raise BackendOptionError(
                f"the storage backend {backend} has no option {name!r}; there are: "
                f"{', '.join([*keywords(call), *known])}"
            )


def open_sources(opening: Sequence[Any], settings: Settings, stack: ExitStack) -> list[Source]:
    """Open paths and objects until the stack closes, with the label column, if any."""
    sources, options = [], settings.options
    tables = Beside(options.get("obs"), options.get("var"))
    for number, one in enumerate(opening):
        for source in map(tables.joined, open_source(one, options.get("matrix"), stack, options)):
            if settings.origins is not None:
                source.labelled = settings.origins.labelled(source.obs, number, source.path)
            sources.append(source)
    return sources
