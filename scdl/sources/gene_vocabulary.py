"""Vocabularies: which gene each id in a list stands for."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scdl.archive.gene_names import strings
from scdl.archive.schema import INDEX, INDEX_NAME
from scdl.errors import GeneError, OptionError
from scdl.sources.gene_tables import Genes, has_heading, table_of_genes
from storage_backends.base import is_column_type
from storage_backends.compute import arrow

#: Largest id for which a table of all ids is used: 16 MB.
_MOST_TABULATED = 1 << 22
#: Names of special tokens of models, which are no genes: ``<cls>``, ``<pad>``.
_SPECIAL = "^<.*>$"


class GeneVocabulary:
    """Genes and the ids that stand for them.

    Parameters
    ----------
    where
        Origin of the vocabulary, for messages.
    names
        Name of each gene.
    ids
        Id of each gene: integers or text. Genes are put in the order of integers.
    columns
        Further columns of var.

    Raises
    ------
    GeneError
        An id is missing, negative, or stands for several genes.

    Attributes
    ----------
    table
        The table of genes, without special tokens such as ``<cls>``.
    places
        Row in that table of each number from 0, or -1; see :meth:`numbers`.
    """

    def __init__(
        self, where: str, names: pa.Array, ids: pa.Array, columns: Mapping[str, pa.Array]
    ) -> None:
        if ids.null_count:
            row = pc.index(ids.is_null(), True)
            raise GeneError(f"{where}: row {row} has no id; give every gene an id")
        counts = pc.value_counts(ids)
        if len(counts) < len(ids):
            repeated = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
            raise GeneError(f"{where}: the id {repeated!r} stands for several genes")
        special = pc.match_substring_regex(names, _SPECIAL).fill_null(False)
        chosen = pc.indices_nonzero(pc.invert(special))
        if pa.types.is_integer(ids.type):
            chosen = chosen.take(pc.sort_indices(ids.take(chosen)))
        self.table = pa.table({INDEX: names, **columns}).take(chosen)
        self._keys = ids.take(chosen)
        self._is_tabulated = False
        self.places = np.arange(len(self._keys), dtype=np.int32)
        if not pa.types.is_integer(ids.type):
            return
        numbers = arrow.to_numpy(self._keys.cast(pa.int64()))
        if len(numbers) and numbers[0] < 0:
            raise GeneError(f"{where}: found the id {numbers[0]}, expected ids from 0")
        self._numbers = numbers
        if len(numbers) and numbers[-1] < _MOST_TABULATED:
            self._is_tabulated = True
            self.places = np.full(int(numbers[-1]) + 1, -1, np.int32)
            self.places[numbers] = np.arange(len(numbers), dtype=np.int32)

    def numbers(self, ids: pa.Array) -> NDArray[np.int64]:
        """A number of each id, of which `places` tells the gene.

        Parameters
        ----------
        ids
            Integers, text, or dictionaries of text, as those of the vocabulary; no nulls.
        """
        if pa.types.is_dictionary(ids.type):
            of_labels = self.numbers(ids.dictionary)
            return of_labels.take(arrow.to_numpy(ids.indices))
        if not pa.types.is_integer(ids.type):
            found = pc.index_in(ids.cast(self._keys.type), self._keys).fill_null(-1)
            places: NDArray[np.int64] = arrow.to_numpy(found).astype(np.int64)
            return places
        # Numbers that are too large for the type become negative, which no id is.
        given: NDArray[np.int64] = arrow.to_numpy(ids).astype(np.int64, copy=False)
        if self._is_tabulated or not len(self._numbers):
            return given
        at = np.searchsorted(self._numbers, given)
        at[at == len(self._numbers)] = 0
        return np.where(self._numbers[at] == given, at, -1)


def named_genes(names: pa.Array) -> GeneVocabulary:
    """The vocabulary of lists that hold names of genes, which are `names`."""
    names = strings(names)
    return GeneVocabulary("the lists", names, names, {})


def read_vocabulary(
    given: Genes, ids_column: str | None, names_column: str | None, *, of_text: bool
) -> tuple[GeneVocabulary, list[str]]:
    """Read the vocabulary of lists of ids or, with `of_text`, of lists of names.

    Parameters
    ----------
    given
        As `vocabulary` of :func:`scdl.convert`.
    ids_column, names_column
        As `vocabulary_ids` and `var_names` of :func:`scdl.convert`.

    Returns
    -------
    vocabulary, left_out
        The genes, and the names of columns that archives do not store.

    Raises
    ------
    GeneListNotFoundError
        The file does not exist.
    GeneError, SourceError
        The vocabulary is damaged, empty, or gives an id to several genes.
    OptionError
        A column does not exist, or has to be chosen.
    """
    where, table = table_of_genes(given)
    names = _names_column(where, table, names_column)
    ids: pa.Array
    if ids_column is not None:
        ids = _column(where, table, ids_column, "vocabulary_ids")
    elif of_text:
        ids = _column(where, table, names, "var_names")
    else:
        ids = _ids(where, table, names, named=names_column is not None)
    if of_text:
        ids = strings(ids)
    elif not pa.types.is_integer(ids.type):
        raise OptionError(
            f"{where}: vocabulary_ids={ids_column!r} is a column of {ids.type}, but the lists hold "
            "integers; choose a column of integers"
        )
    others = [name for name in table.schema.names if name not in (names, INDEX)]
    kept = {n: table[n].combine_chunks() for n in others if is_column_type(table[n].type)}
    left_out = [f"var/{name}" for name in others if name not in kept]
    found = strings(_column(where, table, names, "var_names"))
    vocabulary = GeneVocabulary(where, found, ids, kept)
    if names not in ("", INDEX):
        schema = vocabulary.table.schema.with_metadata({INDEX_NAME: names})
        vocabulary.table = vocabulary.table.cast(schema)
    return vocabulary, left_out


def _ids(where: str, table: pa.Table, names: str, *, named: bool) -> pa.Array:
    """The ids of genes: the only column of integers, or positions if there is none."""
    whole = [f.name for f in table.schema if pa.types.is_integer(f.type) and f.name != names]
    if len(whole) == 1:
        return table[whole[0]].combine_chunks()
    if whole:
        raise OptionError(
            f"{where}: several columns could hold the ids of genes; choose one with "
            f"vocabulary_ids=: {', '.join(whole)}"
        )
    if has_heading(where) and not named:
        raise OptionError(
            f"{where}: without a column of ids, the first gene has the id 0, but the first line "
            f"may be a heading; pass var_names={names!r} if it is, else rename the file to .txt"
        )
    return arrow.numbers(np.arange(table.num_rows))


def _names_column(where: str, table: pa.Table, chosen: str | None) -> str:
    """Column with the names of genes: the chosen one, the index of pandas, or the first text."""
    if chosen is not None:
        return chosen
    texts: list[str] = [f.name for f in table.schema if is_text_or_labels(f.type)]
    stored = index_of_pandas(table.schema)
    if stored is not None and stored in texts:
        return stored
    if not texts:
        raise OptionError(
            f"{where}: no column holds text; choose the one with the names of genes with "
            f"var_names=: {', '.join(table.schema.names) or 'there is none'}"
        )
    return texts[0]


def is_text_or_labels(type_: pa.DataType) -> bool:
    """Whether values of a type are text, or categories of text."""
    return arrow.is_text(type_.value_type if pa.types.is_dictionary(type_) else type_)


def index_of_pandas(schema: pa.Schema) -> str | None:
    """The column that pandas stored as the index of rows; None if it stored no or several."""
    try:
        columns = json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
    except (KeyError, ValueError, TypeError):
        return None
    is_one = isinstance(columns, list) and len(columns) == 1 and columns[0] in schema.names
    return str(columns[0]) if is_one and isinstance(columns[0], str) else None


def _column(where: str, table: pa.Table, name: str, option: str) -> pa.Array:
    if table.schema.names.count(name) != 1:
        raise OptionError(
            f"{where}: {option}={name!r} is not one of its columns: {', '.join(table.schema.names)}"
        )
    return table[name].combine_chunks()
