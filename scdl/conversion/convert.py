"""Conversion of AnnData files and archives to one archive, streamed by blocks of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, Unpack

from scdl.archive.gene_space import Duplicates, Genes, Missing
from scdl.conversion.opening import open_sources
from scdl.conversion.options import (
    TARGET,
    ConvertOptions,
    Settings,
    check_options,
)
from scdl.conversion.origins import origins_of
from scdl.conversion.planning import plan
from scdl.conversion.reporting import ConversionReport
from scdl.conversion.row_order import SOURCE_ROW, Shuffle
from scdl.conversion.writing import check_free, write_archive
from scdl.errors import SourceError
from scdl.progress import progress_bar
from scdl.sources.formats import sources_of
from scdl.sources.gene_selection import gene_choice
from storage_backends import registry
from storage_backends.paths import Path, path_of

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


#: A source of a conversion.
Convertible: TypeAlias = "Path | AnnData | MuData"


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
    dry_run: bool = False,
    **options: Unpack[ConvertOptions],
) -> ConversionReport:
    """Convert AnnData, other single-cell formats, and archives to an archive.

    Sources are read in blocks of rows, so memory use does not depend on their size. The archive
    appears only when it is complete; a failed conversion leaves nothing behind.

    Parameters
    ----------
    sources
        One source or several. Paths of h5ad files, of AnnData in Zarr stores, of MuData (``.h5mu``
        or Zarr), of Loom files, of TileDB-SOMA experiments, of outputs of Cell Ranger
        (``.h5``, or a directory with ``matrix.mtx``, which may be compressed), of Parquet files
        with lists of genes, directories of them or data sets of Hugging Face, or of archives of
        any backend; or AnnData or MuData objects, in memory, backed by a file or with Dask arrays.
        Their cells are concatenated; consecutive sources with the same var share a feature block.
        The keys of a dict are the names of the sources, used by `label`.
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
    dry_run
        Whether to write nothing: the sources are opened and checked, and a sample of their values
        is read. The report says what would be taken, how large the archive would be, and how long
        that would take.
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
    modality : str, optional
        Of MuData: the modality to convert. Default: the only one.
    obs_names, var_names : str, optional
        The attributes or columns with the names of cells and of genes. Of a Loom file, default:
        ``CellID`` and ``Gene``, or ``obs_names`` and ``var_names``, else the positions. Of a
        Parquet file or a data set of Hugging Face, and of its vocabulary, default: the index that
        pandas stored, else positions, and the first column of text.
    measurement : str, optional
        Of a TileDB-SOMA experiment: the measurement to convert. Default: the only one, or ``RNA``.
    obs_query : str, optional
        Of a TileDB-SOMA experiment: a filter of cells that tiledbsoma applies, such as
        ``"cell_type == 'B cell' and is_primary_data == True"``. Default: all cells.
    gene_ids, gene_values : str, optional
        Of a Parquet file or a data set of Hugging Face: the columns with the lists of genes
        (integers or names) and of their values. Default: the only ones that are possible.
    vocabulary : path, sequence of str or mapping of str to int, optional
        Which gene each integer stands for: a text file with a gene in each line or a list, whose
        first gene has the id 0; a table (CSV, TSV, Parquet, JSON), which becomes var; or ids by
        gene, in a JSON file or a dict. Names in angle brackets, such as ``<cls>``, are not genes.
        Genes are in the order of their ids. Default, if the lists hold names: all names, sorted.
    vocabulary_ids : str, optional
        Column of that table with the ids. Default: its only column of integers, or positions from
        0.
    unknown_genes : {"error", "drop"}, default "error"
        What to do with ids that the vocabulary does not have, such as special tokens: raise an
        error, or leave out their values, which the report counts.
    obsm : str or sequence of str, optional
        Keys of dense vectors to convert.
    layers : str, sequence of str or mapping, optional
        Further matrices to store as fields, which are read beside the matrix: names of layers, or
        a dict of the name of each field to a matrix of the sources, such as ``{"spliced":
        "layers/spliced"}``. They need the genes of the matrix, and keep their dtypes. Default: the
        fields of archives.
    data_dtype : dtype, optional
        Dtype of the stored values of the matrix: uint8 to uint64, or float16 to float64. Default:
        the dtype of the source if all its elements are kept or it is an archive, else float32.
    data_dtype_tolerance : float, default 1e-8
        Largest absolute rounding error that is accepted without a warning.
    where : str, optional
        Condition on columns of obs, such as ``"tissue == 'lung' and n_genes > 200"``, in the
        language of :meth:`scdl.SingleCellDataset.where`; only cells for which it is true are
        converted. It sees the columns of the sources, under their names there, and the figures of
        `quality`, which take precedence; if it uses such a figure, the values are read twice. A
        column that only some sources have is missing in the others.
    cells : array-like, slice or path, optional
        A boolean mask, row numbers, or names of cells; or the path of a text file with one name per
        line. Masks and row numbers count the cells of all sources. Together with `where`, both must
        hold. Cells keep the order of the sources.
    genes_where : str, optional
        Condition on columns of the var of the matrix, such as ``"highly_variable"``. It is applied
        before `genes`; columns of var are kept.
    obs_columns, var_columns : sequence of str, or mapping, optional
        Columns to keep, in this order; a mapping gives them new names. Names of cells and genes are
        always kept.
    unique_names : bool, default False
        Whether to append numbers to names of cells that an earlier cell of the archive has, like
        ``obs_names_make_unique`` of anndata. Takes up to 80 bytes of memory per cell.
    quality : bool or mapping, optional
        Whether to add the columns ``n_genes`` (int32, number of genes with a value other than 0)
        and ``n_counts`` (float64, sum of the values) to obs, over all genes that the matrix has
        before genes are chosen. They replace columns of these names. The items of a mapping add
        ``pct_<key>`` (float64), the percent of `n_counts` in a group of genes: a regular expression
        that is searched in names of genes, a boolean column of var, or a list of names, as in
        ``{"mt": "^MT-"}``.
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
    FilterError, FeatureNotFoundError
        A condition is not valid, or does not fit the columns; a column does not exist.
    CellNotFoundError, CellListNotFoundError, RowIndexError
        Chosen cells do not exist, row numbers repeat, or a mask has the wrong length.
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
    >>> report = scdl.convert("cells.h5ad", "counts.scdl", data_dtype="uint16")
    >>> print(report)
    counts.scdl (memmap): 6 cells x 4 genes, 11 values as uint16 from X
    0.0 MB in ... s
    not carried over: uns, layers/spliced, obsm/X_pca, obsp/connectivities

    Several sources, in a random order that is stored:

    >>> _ = scdl.convert(["cells.h5ad", "more.h5ad"], "shuffled.scdl", shuffle=42)
    >>> scdl.open("shuffled.scdl").obs["source_row"].head(3)
    cell4    4
    cell2    2
    more2    8
    Name: source_row, dtype: int64

    Some of the cells, by a condition, with figures of quality:

    >>> report = scdl.convert("cells.h5ad", "t.scdl", where="cell_type == 'T'", quality=True)
    >>> scdl.open("t.scdl").obs[["n_genes", "n_counts"]]
           n_genes  n_counts
    cell1        1       3.0
    cell3        2       2.0
    cell5        2       3.0
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
    opened = partial(open_sources, opening, settings, path)
    if dry_run:
        check_free(path, replace=replace)
        return plan(opened, path, settings)
    with progress_bar(unit="value", unit_scale=True, show=progress) as bar:
        return write_archive(opened, path, settings, bar, replace=replace)
