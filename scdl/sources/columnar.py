"""Parquet files and data sets of Hugging Face as sources: a row for each cell, with lists of genes.

A source is a file, a directory of Parquet files, which may be divided by values of columns
(``drug=x/0.parquet``), or what ``save_to_disk`` of Hugging Face's datasets wrote.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, get_args

import pyarrow as pa

from scdl.errors import OptionError, SourceError
from scdl.sources.base import Source
from scdl.sources.columnar_files import ColumnarFiles, is_columnar_file, schema_of
from scdl.sources.columnar_lists import (
    ListMatrix,
    UnknownGenes,
    choose_lists,
    has_lists,
    is_text,
    names_in,
)
from scdl.sources.columnar_obs import ColumnarObs
from scdl.sources.gene_tables import Genes
from scdl.sources.gene_vocabulary import named_genes, read_vocabulary
from storage_backends import registry
from storage_backends.paths import is_url

#: Options of a conversion for these formats.
OPTIONS = (
    "gene_ids",
    "gene_values",
    "vocabulary",
    "vocabulary_ids",
    "var_names",
    "unknown_genes",
    "obs_names",
)
_PARQUET, _ARROW = ".parquet", ".arrow"
#: Files with which ``save_to_disk`` describes a data set.
_STATE, _DESCRIPTION = "state.json", "dataset_info.json"
#: Endings of files that are sources on their own.
_OTHERS = (".h5ad", ".h5", ".h5mu", ".loom", "matrix.mtx", "matrix.mtx.gz")


def is_columnar(path: str) -> bool:
    """Whether a path is a Parquet or Arrow file, or a directory that is a source as a whole."""
    if is_url(path):
        return False
    return _is_whole(path) if os.path.isdir(path) else is_columnar_file(path)


def sources_below(directory: str) -> Iterator[str]:
    """Paths of the files and directories in a directory that are sources.

    Parquet files are sources one by one if the directory also has sources of other formats. Those
    that belong to archives, and tables without lists of genes, are none.
    """
    seen = set()
    for path, below, names in os.walk(directory, followlinks=True):
        real = os.path.realpath(path)
        if real in seen or registry.is_archive(path):
            below.clear()
        elif _is_whole(path):
            below.clear()
            yield path
        else:
            below[:] = [name for name in below if _is_visible(name)]
            files = [os.path.join(path, name) for name in names if name.endswith(_PARQUET)]
            yield from (file for file in files if _is_visible(file) and _has_lists(file))
        seen.add(real)


def _is_whole(directory: str) -> bool:
    """Whether a directory is one source."""
    try:
        names = os.listdir(directory)
        if registry.is_archive(directory):
            return False
        if _STATE in names:
            return _DESCRIPTION in names and any(name.endswith(_ARROW) for name in names)
        if any(name.endswith(_OTHERS) for name in names):
            return False
        return any(_has_lists(file) for file in _parquet_files(directory, names))
    except OSError:
        return False


def _parquet_files(directory: str, names: Sequence[str]) -> Iterator[str]:
    """Parquet files of a directory, sorted; without any, those of directories like ``drug=x``."""
    shown = sorted(name for name in names if _is_visible(name))
    files = [os.path.join(directory, name) for name in shown if name.endswith(_PARQUET)]
    files = [file for file in files if os.path.isfile(file)]
    yield from files
    below = [os.path.join(directory, name) for name in shown if "=" in name]
    for path in [] if files else filter(os.path.isdir, below):
        yield from _parquet_files(path, os.listdir(path))


def _is_visible(path: str) -> bool:
    """Whether a name does not begin as those of files that describe others, or are temporary."""
    return not os.path.basename(path).startswith((".", "_"))


def _has_lists(path: str) -> bool:
    try:
        return is_columnar_file(path) and has_lists(schema_of(path))
    except SourceError:
        # Converting it says what is wrong.
        return True


def _files_of(path: str) -> list[str]:
    """The files of a source, in order."""
    if not os.path.isdir(path):
        return [path]
    names = os.listdir(path)
    if _STATE not in names:
        return [*_parquet_files(path, names)]
    where = os.path.join(path, _STATE)
    try:
        with open(where, encoding="utf-8") as file:
            state = json.load(file)
        files = [str(entry["filename"]) for entry in state["_data_files"]]
        chosen = state.get("_indices_data_files")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SourceError(f"{where}: expected the state of a data set ({error!r:.200})") from error
    outside = [name for name in files if os.path.basename(name) != name]
    if chosen or outside or not files:
        raise SourceError(
            f"{where}: the data set is a selection of rows of other files, or empty; open it with "
            "datasets.load_from_disk, and save it again with save_to_disk"
        )
    return [os.path.join(path, name) for name in files]


class ColumnarSource(Source):
    """Cells whose genes and values are lists.

    Parameters
    ----------
    path
        Path of the file or directory.
    matrix
        Name of the matrix that the user chose; only ``X`` exists.
    gene_ids, gene_values, vocabulary, vocabulary_ids, var_names, unknown_genes, obs_names
        As for :func:`scdl.convert`.
    """

    matrix: ListMatrix

    def __init__(
        self,
        path: str,
        matrix: str | None,
        *,
        gene_ids: str | None = None,
        gene_values: str | None = None,
        vocabulary: Genes | None = None,
        vocabulary_ids: str | None = None,
        var_names: str | None = None,
        unknown_genes: UnknownGenes = "error",
        obs_names: str | None = None,
    ) -> None:
        if matrix not in (None, "X"):
            raise SourceError(f"{path}: there is no matrix {matrix}; the file has: X")
        if unknown_genes not in get_args(UnknownGenes):
            raise OptionError(
                f"unknown_genes must be 'error' or 'drop', not {unknown_genes!r:.100}"
            )
        self.path = self.label = path
        self.matrix_name = self.element = "X"
        files = ColumnarFiles([file for file in _files_of(path) if not _is_same(file, vocabulary)])
        ids, values = choose_lists(path, next(iter(files.schemas)), gene_ids, gene_values)
        of_text, left_out = is_text(files, ids), list[str]()
        if vocabulary is not None:
            genes, left_out = read_vocabulary(
                vocabulary, vocabulary_ids, var_names, of_text=of_text
            )
        elif of_text:
            genes = named_genes(names_in(files, ids))
        else:
            raise OptionError(
                f"{path}: the column {ids!r} has numbers of genes, not their names; pass the file "
                "that lists the genes, or ids by gene, as vocabulary="
            )
        self._genes = genes.table
        self.obs = obs = ColumnarObs(path, files, (ids, values), obs_names)
        self.matrix = ListMatrix(path, files, ids, values, genes, unknown_genes)
        self._unread = [*obs.unread, *left_out]

    def var(self) -> pa.Table:
        return self._genes

    @property
    def unread(self) -> Sequence[str]:
        return self._unread

    @property
    def dropped(self) -> Sequence[str]:
        return self.matrix.dropped


def _is_same(path: str, vocabulary: Genes | None) -> bool:
    """Whether a file is that of the vocabulary, which may lie beside the others."""
    if not isinstance(vocabulary, str | os.PathLike):
        return False
    return os.path.realpath(path) == os.path.realpath(os.path.expanduser(vocabulary))


def open_sources(path: str, matrix: str | None, stack: ExitStack, **options: Any) -> list[Source]:
    """Open a file or directory as a source; see :func:`scdl.convert` for the options.

    Raises
    ------
    SourceError
        A file is damaged, or lacks lists of genes and values.
    OptionError
        A column does not exist or must be chosen, or lists of numbers lack a vocabulary.
    GeneError, GeneListNotFoundError
        The vocabulary is not valid, or does not exist.
    """
    return [ColumnarSource(path, matrix, **options)]
