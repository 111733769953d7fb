"""From AnnData files to an archive, in one streaming code path."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Unpack, cast

from tqdm import tqdm

from scdl.archive.gene_space import Duplicates, Genes, Missing
from scdl.archive.schema import DATA
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
from scdl.conversion.run import Conversion
from scdl.errors import BackendOptionError, SourceError
from scdl.sources.base import Source
from scdl.sources.formats import open_source
from scdl.sources.gene_selection import choice_of
from storage_backends import registry
from storage_backends.base import ArrayStore
from storage_backends.paths import Path, path_of


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
    paths, origins = origins_of(sources, label, keys)
    path = path_of(path, TARGET)
    check_options(options, convert, registry.for_target(path, backend))
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
    storage = storage_options(options, target)
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


def check_storage(backend: str, options: Mapping[str, Any], call: Callable[..., Any]) -> None:
    """BackendOptionError for an option that neither a backend nor a function takes."""
    known = registry.backend(backend).options
    for name in options:
        if name not in known:
            raise BackendOptionError(
                f"the storage backend {backend} has no option {name!r}; there are: "
                f"{', '.join([*keywords(call), *known])}"
            )


def open_sources(paths: Sequence[Path], settings: Settings, stack: ExitStack) -> list[Source]:
    """What all paths hold, open until the stack ends; obs as it will be."""
    found = []
    for number, path in enumerate(paths):
        for source in open_source(path, settings.options.get("matrix"), stack):
            if settings.origins is not None:
                source.labelled = settings.origins.labelled(source.obs, number, source.path)
            found.append(source)
    return found
