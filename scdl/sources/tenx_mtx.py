"""Directories of Cell Ranger with a matrix in Matrix Market form, its genes and its barcodes.

Files may be compressed, and may have a common prefix, as in downloads from GEO. Source: "Feature-
Barcode Matrices" of the documentation of Cell Ranger.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Unpack

import pyarrow as pa
import pyarrow.csv

from scdl.archive.schema import INDEX
from scdl.archive.tables import TableInMemory
from scdl.errors import SourceError, SourceNotFoundError
from scdl.sources.base import Source
from scdl.sources.market import MarketMatrix, opened, readable
from scdl.sources.tenx import Features, TenxOptions, TenxSource

#: Suffixes of compressed files.
_PACKED = ("", ".gz", ".bz2", ".zst", ".lz4")
_MATRIX = "matrix.mtx"
FILES = tuple(f"*{_MATRIX}{packed}" for packed in _PACKED)
#: Files with the genes: of version 3 and newer, with types; of version 2.
_GENES = ("features.tsv", "genes.tsv")
_BARCODES = "barcodes.tsv"


def is_tenx(path: str) -> bool:
    """Whether a path is a matrix in Matrix Market form, or a directory with one."""
    return bool(_matrix_files(path))


def _matrix_files(path: str) -> list[str]:
    """Paths of the matrices in a directory; a path of a matrix itself."""
    names = tuple(_MATRIX + packed for packed in _PACKED)
    if os.path.isfile(path):
        return [path] if path.endswith(names) else []
    try:
        return sorted(os.path.join(path, n) for n in os.listdir(path) if n.endswith(names))
    except OSError:
        return []


def open_sources(
    path: str, matrix: str | None, stack: ExitStack, **options: Unpack[TenxOptions]
) -> list[Source]:
    """Open a directory, or its matrix, as a source; see :func:`scdl.convert` for the options.

    Raises
    ------
    SourceError
        A file is missing or damaged, or the directory has several matrices.
    OptionError
        There is no such feature type; these files do not name genomes.
    """
    files = _matrix_files(path)
    if len(files) > 1:
        raise SourceError(
            f"{path}: the directory has several matrices; give the path of one, or a list: "
            f"{', '.join(files)}"
        )
    prefix = files[0][: files[0].rindex(_MATRIX)]
    genes, barcodes = _table(path, prefix, _GENES), _table(path, prefix, (_BARCODES,))
    if genes.num_columns < 2:
        raise SourceError(f"{prefix}{_GENES[0]}: expected ids and names of genes, found one column")
    columns = {"gene_ids": genes.column(0).combine_chunks()}
    if genes.num_columns > 2:
        columns["feature_types"] = genes.column(2).combine_chunks()
    names = genes.column(1).combine_chunks()
    features = Features(path, names, columns, **options)
    cells = TableInMemory(barcodes.select([0]).rename_columns([INDEX]))
    values = MarketMatrix(files[0], (cells.num_rows, features.n_all))
    return [TenxSource(path, matrix, features, cells, values)]


def _table(path: str, prefix: str, names: Sequence[str]) -> pa.Table:
    """The columns of a file without a header, as text."""
    candidates = [prefix + name + packed for name in names for packed in _PACKED]
    found = next((one for one in candidates if os.path.isfile(one)), None)
    if found is None:
        raise SourceNotFoundError(
            f"{path}: there is no {prefix}{' or '.join(names)}, compressed or not, beside the "
            "matrix"
        )
    options = pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False)
    with readable(found), opened(found) as stream:
        text = stream.read(1 << 16)
    kinds = {f"f{i}": pa.large_string() for i in range(text.split(b"\n")[0].count(b"\t") + 1)}
    if not text:
        # A matrix of no cells, for which Arrow would raise an error.
        return pa.schema(kinds).empty_table()
    with readable(found), opened(found) as stream:
        return pyarrow.csv.read_csv(
            stream,
            pyarrow.csv.ReadOptions(autogenerate_column_names=True),
            options,
            pyarrow.csv.ConvertOptions(column_types=kinds),
        )
