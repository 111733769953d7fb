"""Options of ``scdl convert``, by subject."""

from __future__ import annotations

from typing import Annotated

import typer

Backend = Annotated[
    str | None,
    typer.Option(help="Storage backend. [default: zarr if DEST ends in .zarr, else memmap]"),
]
Compression = Annotated[
    str | None,
    typer.Option(
        help="Profile of the zarr backend: fast, balanced, packed, packed-fast, archive, portable."
    ),
]
Shuffle = Annotated[
    int | None,
    typer.Option(
        metavar="SEED",
        help="Write the cells in a random order, a function of this number. Their rows in the "
        "sources become a column of obs.",
    ),
]
RowColumn = Annotated[
    str | None, typer.Option(help="Name of that column, with --shuffle. [default: source_row]")
]
ShardCells = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="With --shuffle: write a collection of archives of N cells each.",
    ),
]

Sources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SRC...",
        help="AnnData (h5ad, zarr), MuData (h5mu, zarr), Loom, TileDB-SOMA, outputs of 10x "
        "Cell Ranger (h5, matrix.mtx), Parquet, data sets of Hugging Face or archives, or a "
        "single directory of such files.",
    ),
]
Dest = Annotated[
    str | None,
    typer.Argument(
        metavar="DEST",
        help="Path of the new archive; a name that ends in .zarr selects the zarr backend. "
        "For a directory of h5ad files: the directory of the new archives.",
    ),
]
OnlyMatrix = Annotated[
    bool, typer.Option("--only-matrix", help="Leave out elements that training does not need.")
]
Matrix = Annotated[
    str | None,
    typer.Option(
        help="Matrix to convert: X, raw/X or layers/<key>. [default: raw/X if present, else X]"
    ),
]
Genome = Annotated[
    str | None, typer.Option(help="Of an output of Cell Ranger: genome whose genes to convert.")
]
FeatureType = Annotated[
    list[str] | None,
    typer.Option(
        help="Of an output of Cell Ranger: type of features to convert, or all; may be "
        "repeated. [default: Gene Expression]"
    ),
]
Obs = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Table (csv, tsv, txt, parquet) whose columns to add to obs; its first column has "
        "the names of cells.",
    ),
]
Var = Annotated[str | None, typer.Option(metavar="FILE", help="The same for genes and var.")]
Modality = Annotated[
    str | None,
    typer.Option(help="Of MuData: modality to convert. [default: the only one]"),
]
ObsNames = Annotated[
    str | None,
    typer.Option(
        help="Of Loom, Parquet or a data set of Hugging Face: attribute or column with the "
        "names of cells. [default: CellID, or the index of pandas, else numbers]"
    ),
]
VarNames = Annotated[
    str | None,
    typer.Option(
        help="Of Loom: attribute with the names of genes; of a vocabulary: its column with "
        "them. [default: Gene; the first column of text]"
    ),
]
Measurement = Annotated[
    str | None,
    typer.Option(
        help="Of a TileDB-SOMA experiment: measurement to convert. [default: the only one, or RNA]"
    ),
]
ObsQuery = Annotated[
    str | None,
    typer.Option(help="Of a TileDB-SOMA experiment: filter of cells, as tiledbsoma takes it."),
]
GeneIds = Annotated[
    str | None,
    typer.Option(
        help="Of Parquet or a data set of Hugging Face: column with the lists of genes. "
        "[default: the only possible one]"
    ),
]
GeneValues = Annotated[
    str | None, typer.Option(help="The same: column with the lists of their values.")
]
Vocabulary = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="The same: the gene of each id; a gene in each line, a table (CSV, TSV, Parquet, "
        "JSON), or a JSON object of ids by gene.",
    ),
]
VocabularyIds = Annotated[
    str | None,
    typer.Option(
        help="Column of that table with the ids. [default: the only one of integers, else "
        "positions from 0]"
    ),
]
UnknownGenes = Annotated[
    str | None,
    typer.Option(help="Ids that are not in that table: error, or drop. [default: error]"),
]
Obsm = Annotated[
    list[str] | None,
    typer.Option(help="Key of obsm whose dense vectors to convert; may be repeated."),
]
Layer = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[=MATRIX]",
        help="Further matrix to store beside the first, under NAME: the layer of that name, or "
        "MATRIX (X, raw/X or layers/<key>); may be repeated.",
    ),
]
NeighborKey = Annotated[
    list[str] | None, typer.Option(help="Key of obsp whose graph to convert; may be repeated.")
]
DataDtype = Annotated[
    str | None,
    typer.Option(
        help="Dtype of the stored values: uint8 to uint64, or float16 to float64. "
        "[default: that of the source if all elements are kept, else float32]"
    ),
]
DataDtypeTolerance = Annotated[
    float, typer.Option(help="Largest rounding error that is accepted without a warning.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of worker processes. [default: one per core for a directory, else 1]",
    ),
]
Dask = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Address of the scheduler of a Dask cluster to use."),
]
SplitBytes = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Divide larger files of a directory among the workers. [default: the share of one "
        "worker, at least 1 GiB]",
    ),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="For a directory: skip files that have an archive already."),
]
SkipFailed = Annotated[
    bool,
    typer.Option(
        "--skip-failed",
        help="For a directory: if only some files fail, report them and exit with code 3.",
    ),
]
Label = Annotated[
    str | None,
    typer.Option(help="Name of a column of obs to add, with the source of each cell."),
]
Key = Annotated[
    list[str] | None,
    typer.Option(
        help="Name of a source in that column; repeat it for each source. [default: 0, 1, …]"
    ),
]
Where = Annotated[
    str | None,
    typer.Option(
        metavar="CONDITION",
        help="Convert only cells for which a condition on columns of obs is true, such as "
        "\"tissue == 'lung' and n_genes > 200\".",
    ),
]
Cells = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Convert only the cells that a text file names, one per line."
    ),
]
GenesWhere = Annotated[
    str | None,
    typer.Option(
        metavar="CONDITION",
        help="Convert only genes for which a condition on columns of var is true.",
    ),
]
ObsColumn = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[=NEW]", help="Column of obs to keep, or to rename; may be repeated."
    ),
]
VarColumn = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[=NEW]", help="Column of var to keep, or to rename; may be repeated."
    ),
]
UniqueNames = Annotated[
    bool, typer.Option("--unique-names", help="Append numbers to repeated names of cells.")
]
Quality = Annotated[
    bool,
    typer.Option("--quality", help="Add n_genes and n_counts of each cell to obs."),
]
QualityGroup = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=REGEX",
        help="Add pct_NAME, too: the percent of the counts in genes whose names match, such as "
        "mt=^MT-; may be repeated.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Write nothing: tell what would be taken, how large it would be and how long it "
        "would take, estimated from a sample of cells.",
    ),
]
