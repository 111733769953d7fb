"""Lists of genes and of their values, one of each for a cell, as a matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scdl.archive.csr import SparseRows, groups
from scdl.archive.schema import smallest_unsigned
from scdl.errors import OptionError, SourceError
from scdl.kernels import memory as recycled
from scdl.sources.columnar_files import ColumnarFiles, Piece, is_list
from scdl.sources.gene_vocabulary import GeneVocabulary, is_text_or_labels
from scdl.sources.matrices import Bounds, Matrix

#: What to do with ids that a vocabulary does not have.
UnknownGenes = Literal["error", "drop"]


def choose_lists(
    where: str, schema: pa.Schema, gene_ids: str | None, gene_values: str | None
) -> tuple[str, str]:
    """Columns with the lists of genes and of their values.

    Parameters
    ----------
    where
        Path of the source, for messages.
    gene_ids, gene_values
        The chosen columns; None: the only ones that are possible.

    Raises
    ------
    SourceError
        There are no such columns.
    OptionError
        There are several.
    """
    lists = {f.name: f.type for f in schema if is_list(f.type)}
    for option, name in {"gene_ids": gene_ids, "gene_values": gene_values}.items():
        if name is not None and name not in lists:
            raise OptionError(
                f"{where}: {option}={name!r} is not a column of lists; there are: {_named(lists)}"
            )
    ids = [name for name, type_ in lists.items() if _are_ids(type_.value_type)]
    values = [name for name, type_ in lists.items() if _are_numbers(type_.value_type)]
    pairs = [
        (one, other)
        for one, other in product(
            ids if gene_ids is None else [gene_ids],
            values if gene_values is None else [gene_values],
        )
        if one != other
        and one in ids
        and other in values
        and (None not in (gene_ids, gene_values) or _width(lists[one]) == _width(lists[other]))
    ]
    if len(pairs) == 1:
        return pairs[0]
    if pairs:
        raise OptionError(
            f"{where}: several columns could hold the genes of cells or their values; choose them "
            f"with gene_ids= and gene_values=: {_named({n: lists[n] for n in (*ids, *values)})}"
        )
    raise SourceError(
        f"{where}: expected a column of lists of genes (integers or text) and one of lists of "
        f"their values (numbers), found {_named(lists)}"
    )


def has_lists(schema: pa.Schema) -> bool:
    """Whether a table has columns that could be the genes of cells and their values."""
    lists = [field.type for field in schema if is_list(field.type)]
    ids = sum(_are_ids(type_.value_type) for type_ in lists)
    values = sum(_are_numbers(type_.value_type) for type_ in lists)
    return len(lists) > 1 and ids > 0 and values > 0


def _named(lists: dict[str, pa.DataType]) -> str:
    return ", ".join(f"{name} ({type_})" for name, type_ in lists.items()) or "none"


def _width(type_: pa.DataType) -> int | None:
    """Number of values of each list, if it is fixed."""
    return type_.list_size if pa.types.is_fixed_size_list(type_) else None


def _are_ids(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_)) or is_text_or_labels(type_)


def _are_numbers(type_: pa.DataType) -> bool:
    kinds = pa.types
    return bool(kinds.is_integer(type_) or kinds.is_floating(type_) or kinds.is_boolean(type_))


class ListMatrix(Matrix):
    """The matrix of cells whose genes and values are lists.

    Parameters
    ----------
    path
        Path of the source, for messages.
    files
        The files.
    ids, values
        Names of the columns of lists.
    vocabulary
        Which gene each id stands for.
    unknown
        ``"drop"``: leave out the values of ids that the vocabulary does not have.

    Raises
    ------
    SourceError
        A file does not have the columns.
    """

    def __init__(
        self,
        path: str,
        files: ColumnarFiles,
        ids: str,
        values: str,
        vocabulary: GeneVocabulary,
        unknown: UnknownGenes,
    ) -> None:
        self.where = f"{path}: {values}"
        self.shape = (sum(files.num_rows), vocabulary.table.num_rows)
        self.size = files.sizes[values]
        self.dtype = np.result_type(*(_dtype(files, values)))
        self._files, self._columns = files, (ids, values)
        self._vocabulary, self._drops = vocabulary, unknown == "drop"
        #: Number of values that were left out, and some of their ids.
        self._n_dropped, self._dropped = 0, dict[object, None]()

    @property
    def dropped(self) -> Sequence[str]:
        """What has been left out so far, in words."""
        if not self._n_dropped:
            return ()
        few = ", ".join(map(repr, [*self._dropped][:3]))
        return (f"{self._n_dropped:,} values of ids that are not in the vocabulary, such as {few}",)

    def blocks(self, bounds: Bounds) -> Iterator[SparseRows]:
        self._n_dropped = 0
        per_row = max(self._files.per_row[name] for name in self._columns)
        at_once = int(max(1, min(bounds.rows, bounds.values // max(per_row, 1))))
        for piece in self._files.pieces(self._columns, at_once):
            rows = self._rows(piece)
            for start, stop in groups(rows.indptr, bounds.values):
                first, last = rows.indptr[start], rows.indptr[stop]
                yield SparseRows(
                    rows.data[first:last],
                    rows.indices[first:last],
                    rows.indptr[start : stop + 1] - first,
                )

    def part(self, start: int, stop: int) -> Matrix | None:
        return None

    def _rows(self, piece: Piece) -> SparseRows:
        ids, values = (piece.rows.column(name) for name in self._columns)
        lengths, others = (
            pc.list_value_length(lists).fill_null(0).to_numpy() for lists in (ids, values)
        )
        if (lengths != others).any():
            row = int((lengths != others).argmax())
            raise SourceError(
                f"{piece.path}: row {piece.first + row} has {lengths[row]} {self._columns[0]} and "
                f"{others[row]} {self._columns[1]}, expected as many of both"
            )
        indptr = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=indptr[1:])
        ids, values = ids.flatten(), values.flatten()
        for name, flat in zip(self._columns, (ids, values), strict=True):
            if flat.null_count:
                row = piece.first + _row_of(indptr, int(pc.index(flat.is_null(), True).as_py()))
                raise SourceError(
                    f"{piece.path}: row {row} has a missing value in {name}, expected none in lists"
                )
        return self._translated(piece, ids, values.to_numpy(zero_copy_only=False), indptr)

    def _translated(
        self, piece: Piece, ids: pa.Array, values: NDArray[Any], indptr: NDArray[np.int64]
    ) -> SparseRows:
        """Rows with columns in the place of ids."""
        from scdl.kernels.vocabulary import translate

        numbers, places = self._vocabulary.numbers(ids), self._vocabulary.places
        columns = recycled.empty(len(numbers), smallest_unsigned(self.shape[1] - 1))
        data = recycled.empty(len(values), values.dtype)
        # The kernel is compiled for each size of values, rather than for each type.
        bits = np.dtype(f"u{values.itemsize}")
        arrays = _read_only(numbers), _read_only(values).view(bits)
        before = indptr.copy()
        n = translate(*arrays, indptr, places, columns, data.view(bits))
        if n < len(numbers):
            self._n_dropped += len(numbers) - n
            if not (self._drops and self._dropped):
                self._tell_unknown(piece, ids, numbers, before)
        return SparseRows(data[:n], columns[:n], indptr)

    def _tell_unknown(
        self, piece: Piece, ids: pa.Array, numbers: NDArray[np.int64], indptr: NDArray[np.int64]
    ) -> None:
        """Note some of the unknown ids; raise SourceError if there may be none."""
        places = self._vocabulary.places
        is_known = (numbers >= 0) & (numbers < len(places))
        is_known[is_known] = places[numbers[is_known]] >= 0
        unknown = np.flatnonzero(~is_known)
        if not self._drops:
            row = piece.first + _row_of(indptr, int(unknown[0]))
            raise SourceError(
                f"{piece.path}: row {row} has the id {ids[int(unknown[0])]!s} in "
                f"{self._columns[0]}, which is not in the vocabulary; pass the vocabulary of these "
                "files, or unknown_genes='drop' to leave out such ids"
            )
        self._dropped = dict.fromkeys(ids[int(i)].as_py() for i in unknown[:100])


def is_text(files: ColumnarFiles, ids: str) -> bool:
    """Whether lists of genes hold their names.

    Raises
    ------
    SourceError
        Files have no such column, or one of another kind.
    """
    kinds = {}
    for type_, path in _types(files, ids):
        if not _are_ids(type_):
            raise SourceError(f"{path}: column {ids!r} has lists of {type_}, expected genes")
        kinds[is_text_or_labels(type_)] = path
    if len(kinds) > 1:
        raise SourceError(
            f"{kinds[True]}: column {ids!r} has lists of text, but of integers in {kinds[False]}; "
            "convert such files separately"
        )
    return True in kinds


def _dtype(files: ColumnarFiles, values: str) -> Iterator[np.dtype[np.generic]]:
    for type_, path in _types(files, values):
        if not _are_numbers(type_):
            raise SourceError(f"{path}: column {values!r} has lists of {type_}, expected numbers")
        yield np.dtype(type_.to_pandas_dtype())


def _types(files: ColumnarFiles, name: str) -> Iterator[tuple[pa.DataType, str]]:
    """Types of the values of a column of lists, with the path of a file of each."""
    for schema, path in files.schemas.items():
        found = schema.field(name).type if schema.names.count(name) == 1 else None
        if found is None or not is_list(found):
            raise SourceError(
                f"{path}: expected lists in a column {name!r}, found "
                f"{'none' if found is None else found}; leave this file out, or pass a list of the "
                "files to convert"
            )
        yield found.value_type, path


def names_in(files: ColumnarFiles, ids: str) -> pa.Array:
    """The different names in lists of genes, sorted; reads these lists."""
    names = pa.array([], pa.large_string())
    for piece in files.pieces([ids], 1 << 12):
        found = piece.rows.column(ids).flatten()
        found = found.dictionary if pa.types.is_dictionary(found.type) else pc.unique(found)
        names = pc.unique(pa.concat_arrays([names, found.cast(pa.large_string()).drop_null()]))
    return names.take(pc.sort_indices(names))


def _read_only(values: NDArray[Any]) -> NDArray[Any]:
    """A view that cannot be written; kernels are compiled separately for such arrays."""
    view = values.view()
    view.flags.writeable = False
    return view


def _row_of(indptr: NDArray[np.int64], at: int) -> int:
    """Row of the value at a position."""
    return int(np.searchsorted(indptr, at, side="right")) - 1
