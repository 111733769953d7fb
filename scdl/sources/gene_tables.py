"""Tables of genes from files: a gene in each line, CSV, TSV, Parquet and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from scdl.archive.schema import INDEX
from scdl.errors import GeneError, GeneListNotFoundError, OptionError
from scdl.sources.market import readable
from storage_backends.compute import arrow
from storage_backends.paths import Path, is_url, path_of

#: Genes in order, ids by gene, or the path of a file with either.
Genes = Path | Sequence[str] | Mapping[str, int]
#: Suffixes of compressed files of text.
_PACKED = (".gz", ".bz2", ".zst", ".lz4", ".xz")
#: What separates columns of text, by suffix.
SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}


def table_of_genes(given: Genes) -> tuple[str, pa.Table]:
    """A vocabulary as a table, and its origin for messages.

    Without columns, names are in a column ``_index``, and the ids of a mapping in ``id``.

    Raises
    ------
    GeneListNotFoundError
        The file does not exist.
    GeneError, SourceError, OptionError
        It is empty, damaged, or a pickle.
    """
    if isinstance(given, Mapping):
        where, table = "vocabulary", _of_ids("vocabulary", given)
    elif isinstance(given, str | os.PathLike):
        where = path_of(given, "the path of a file of genes")
        table = _read(where)
    else:
        where, table = "vocabulary", _of_names("vocabulary", list(given))
    if not table.num_rows:
        raise GeneError(f"{where}: there is no gene in this vocabulary")
    return where, table


def _read(path: str) -> pa.Table:
    if is_url(path) or not os.path.isfile(path):
        raise GeneListNotFoundError(f"{path}: this file of genes does not exist")
    suffix = suffix_of(path)
    if suffix in (".pkl", ".pickle"):
        raise OptionError(
            f"{path}: a pickle can run any code when it is read; load it yourself, and pass the "
            "dict of gene to id as vocabulary="
        )
    with readable(path):
        if suffix == ".parquet":
            return read_parquet(path)
        with pa.input_stream(path, compression="detect") as stream:
            data = stream.read()
    if suffix in SEPARATORS:
        return _of_lines(path, data, SEPARATORS[suffix])
    try:
        text = data.decode()
        if suffix in (".jsonl", ".ndjson"):
            return _of_json(path, [json.loads(line) for line in text.splitlines() if line.strip()])
        if suffix == ".json":
            return _of_json(path, json.loads(text))
    except (ValueError, RecursionError) as error:
        raise GeneError(f"{path}: expected UTF-8 text of genes ({error!s:.200})") from error
    return _of_names(path, [line.strip() for line in text.rstrip().splitlines()])


def read_parquet(path: str) -> pa.Table:
    """Read a Parquet file; Arrow trusts what it reads, so the table is checked."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        table, n_rows = file.read(), file.metadata.num_rows
    table.validate(full=True)
    if table.num_columns and table.num_rows != n_rows:
        raise ValueError(f"expected {n_rows} rows, found {table.num_rows}")
    return table


def _of_lines(path: str, data: bytes, separator: str) -> pa.Table:
    import pyarrow.csv

    options = pyarrow.csv.ParseOptions(delimiter=separator)
    with readable(path):
        table = pyarrow.csv.read_csv(pa.BufferReader(data), parse_options=options)
    for name in table.schema.names:
        if name.lstrip("+-").isdigit():
            raise GeneError(f"{path}: expected names of columns in its first line, found {name!r}")
    return table


def _of_json(path: str, value: Any) -> pa.Table:
    """Genes in order, ids by gene, or rows of a table."""
    if isinstance(value, dict):
        return _of_ids(path, value)
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        with readable(path):
            return pa.Table.from_pylist(value)
    return _of_names(path, value)


def _of_names(where: str, names: Any) -> pa.Table:
    several = names if isinstance(names, list) else [names]
    for name in several:
        if not isinstance(name, str) or not name:
            raise GeneError(
                f"{where}: expected a name for each gene, in the order of the ids, found "
                f"{name!r:.100}"
            )
    return pa.table({INDEX: arrow.text(several)})


def _of_ids(where: str, ids: Mapping[str, int]) -> pa.Table:
    for name, number in ids.items():
        if not isinstance(name, str) or type(number) is not int or not -1 < number < 1 << 63:
            raise GeneError(f"{where}: expected an id for each gene, found {name!r}: {number!r}")
    numbers = np.fromiter(ids.values(), np.int64, len(ids))
    return pa.table({INDEX: arrow.text(list(ids)), "id": arrow.numbers(numbers)})


def has_heading(where: str) -> bool:
    """Whether the first line of a file names its columns."""
    return suffix_of(where) in SEPARATORS


def suffix_of(path: str) -> str:
    """The suffix of a file, without that of compression."""
    stem = path.lower()
    stem = next((stem.removesuffix(p) for p in _PACKED if stem.endswith(p)), stem)
    return os.path.splitext(stem)[1]
