"""Arrow tables written as dataframes of AnnData in Zarr groups, block by block.

AnnData finds every column that it can have under its name and in its encoding. What it has no
encoding for is stored as something else that it can show, or out of its sight, and an attribute of
the group tells ``reading`` what it was. Source: anndata's on-disk format specification.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.dtype import VariableLengthUTF8

from storage_backends.anndata_format.nulls import is_nullable
from storage_backends.base import INDEX, INDEX_NAME, NULLABLE
from storage_backends.compute.claims import FREE_BYTES
from storage_backends.errors import OutputError, refused_write
from storage_backends.zarr import layout
from storage_backends.zarr.tables.reading import ATTRIBUTE, stand_in
from storage_backends.zarr.tables.text import LENGTH_BYTES

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows of one chunk; a table with fewer has one chunk of its length.
_ROWS = 1 << 16
#: Bytes of text that a chunk holds as long as no string is longer than those of the first rows.
_TEXT_BYTES = FREE_BYTES >> 2
#: Bytes of a key that is a file's name, with room for what stores append.
_LONGEST_KEY = 200


def write(
    group: zarr.Group,
    name: str,
    table: pa.Table | pa.RecordBatchReader,
    *,
    array_options: Mapping[str, Any] = MappingProxyType({}),
) -> int:
    """Write a table, whole or as a stream, as the new dataframe `name` of a group.

    Parameters
    ----------
    group
        Of Zarr format 3.
    name
        Key of the dataframe in the group.
    table
        A stream is written in blocks; its batches may differ in their categories. A table without
        names of rows gets their numbers, which only AnnData sees.
    array_options
        Given to every ``create_array``, for example ``compressors``.

    Returns
    -------
    int
        The rows written.

    Raises
    ------
    OutputError
        Names of columns repeat, a type cannot be stored, or there are more categories than the
        type of their codes can number.
    ArchiveWriteError
        The operating system refuses.
    """
    import pyarrow as pa

    # A store that records what it writes says that it wraps another one.
    where = f"{group.store_path}/{name}".removeprefix("wrapping-").removeprefix("file://")
    _check(where, table.schema)
    with refused_write(where):
        target = _Target(where, group.create_group(name), table.schema, array_options)
    columns = target.columns()
    if isinstance(table, pa.Table):
        for column, values in zip(columns, table.columns, strict=False):
            for chunk in values.chunks:
                # It has categories where it has no rows.
                column.encode(chunk.slice(0, 0))
        table = table.to_reader(_ROWS)
    num_rows = 0
    # What the stream itself raises is not about our writing.
    for block in _blocks(_encoded(table, columns)):
        with refused_write(where):
            for column, part in zip(columns, block.columns, strict=True):
                column.write(part)
        num_rows += block.num_rows
    with refused_write(where):
        target.finish(columns, num_rows)
    return num_rows


def _check(where: str, schema: pa.Schema) -> None:
    repeated = [name for name, n in Counter(schema.names).items() if n > 1]
    if repeated:
        raise OutputError(f"{where}: names of columns repeat: {', '.join(map(repr, repeated))}")
    for field in schema:
        if stand_in(field.type) is None:
            raise OutputError(
                f"{where}: cannot store column {field.name!r} of {field.type}; expected numbers, "
                "text, times or categories of these"
            )


def _encoded(batches: pa.RecordBatchReader, columns: Sequence[_Column]) -> Iterator[pa.RecordBatch]:
    """What the columns store of each batch, in pieces that are not large."""
    import pyarrow as pa

    names = [str(i) for i in range(len(columns))]
    # A stream without batches makes empty arrays too.
    yield pa.RecordBatch.from_arrays([pa.array([], c.stored) for c in columns], names)
    n = 0
    for batch in batches:
        # A batch without rows may have categories.
        for start in range(0, max(batch.num_rows, 1), _ROWS):
            piece = batch.slice(start, _ROWS)
            arrays = piece.columns
            if len(arrays) < len(columns):
                numbers = np.arange(n, n + piece.num_rows)
                arrays = [*arrays, pa.array(numbers).cast(pa.large_string())]
            n += piece.num_rows
            yield pa.RecordBatch.from_arrays(
                [column.encode(array) for column, array in zip(columns, arrays, strict=True)], names
            )


def _blocks(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Cut batches anew, so that every chunk is written once; at least one, which may be empty."""
    held: list[pa.RecordBatch] = []
    n_held, n_blocks = 0, 0
    for batch in batches:
        held.append(batch)
        n_held += batch.num_rows
        if n_held >= _ROWS:
            rows = _joined(held)
            for start in range(0, n_held - _ROWS + 1, _ROWS):
                yield rows.slice(start, _ROWS)
                n_blocks += 1
            n_held %= _ROWS
            held = [rows.slice(rows.num_rows - n_held)]
    if n_held or not n_blocks:
        yield _joined(held)


def _joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    import pyarrow as pa

    table = pa.Table.from_batches(batches)
    # Its batches would be none where there are no rows.
    columns = [column.combine_chunks() for column in table.columns]
    return pa.RecordBatch.from_arrays(columns, schema=table.schema)


class _Target:
    """The group of a dataframe, and where in it everything lies."""

    def __init__(
        self, where: str, group: zarr.Group, schema: pa.Schema, options: Mapping[str, Any]
    ) -> None:
        self.where = where
        self.group = group
        self._schema = schema
        # Chunks of zeros are written too, else a lost one could not be told from them.
        self._options: Mapping[str, Any] = {
            "compressors": layout.CHECKED,
            "config": {"write_empty_chunks": True},
            **options,
        }
        name = (schema.metadata or {}).get(INDEX_NAME)
        self._index_name = None if name is None else name.decode()
        #: Group of what AnnData is not to see.
        self._unseen = "scdl"
        while self._unseen in (*schema.names, self._index_name):
            self._unseen += "_"
        # AnnData too calls an index by its name, unless a column has it.
        free = self._index_name not in schema.names and _is_key(self._index_name or "")
        self._index = self._index_name if self._index_name and free else INDEX

    def columns(self) -> list[_Column]:
        """What writes each column, and then the numbers of rows where they have no names."""
        import pyarrow as pa

        columns = [self._column(i, field) for i, field in enumerate(self._schema)]
        if not any(column.path == self._index for column in columns):
            field = pa.field(INDEX, pa.large_string())
            columns.append(_Column(self, field, self._index, self.unseen("names")))
        return columns

    def _column(self, i: int, field: pa.Field) -> _Column:
        import pyarrow as pa

        if field.name == INDEX:
            path = self._index if _is_index(field.type) else self.unseen(str(i))
        else:
            path = field.name if _is_key(field.name) else self.unseen(str(i))
        kind = _Column
        if pa.types.is_dictionary(field.type):
            kind = _Categories
        elif pa.types.is_floating(field.type):
            kind = _Floats
        return kind(self, field, path, self.unseen(f"{i}-nulls"))

    def unseen(self, key: str) -> str:
        """Path of what AnnData is not to see."""
        return f"{self._unseen}/{key}"

    def array(self, path: str, type_: pa.DataType, chunk: int) -> zarr.Array[Any]:
        """Create an empty array for values of a type; `chunk` is their number in one chunk."""
        is_text = str(type_) == "large_string"
        dtype: Any = VariableLengthUTF8() if is_text else type_.to_pandas_dtype()
        return self.group.create_array(
            path,
            shape=(0,),
            chunks=(max(chunk, 1),),
            dtype=dtype,
            attributes=_encoding("string-array" if is_text else "array", "0.2.0"),
            **self._options,
        )

    def finish(self, columns: Sequence[_Column], num_rows: int) -> None:
        """Write categories, which may have grown until now, and attributes."""
        import pyarrow as pa

        for column in columns:
            column.finish()
        fields = [
            field.with_metadata(NULLABLE) if is_nullable(field) else field.remove_metadata()
            for field in self._schema
        ]
        metadata = {INDEX_NAME: self._index_name} if self._index_name is not None else None
        schema = pa.schema(fields, metadata=metadata).serialize().to_pybytes()
        written = columns[: len(fields)]
        self.group.attrs.update(
            {
                **_encoding("dataframe", "0.2.0"),
                "_index": self._index,
                "column-order": [c.path for c in written if c.is_seen and c.path != self._index],
                ATTRIBUTE: {
                    "schema": base64.b64encode(schema).decode(),
                    "num_rows": num_rows,
                    "paths": {c.name: c.path for c in written if c.path != c.name},
                    "nulls": {c.name: c.nulls for c in written if c.has_unseen_nulls},
                },
            }
        )


class _Column:
    """Writes one column: an array, or from the first null on a group of values and their mask.

    Parameters
    ----------
    target
        The dataframe.
    field
        Name and type.
    path
        Of the column in the group of the dataframe.
    nulls
        Path of what AnnData has no place for.
    """

    has_unseen_nulls = False
    #: What stands where there is a null.
    _null: Any = 0

    def __init__(self, target: _Target, field: pa.Field, path: str, nulls: str) -> None:
        self.name = field.name
        self.path = path
        self.nulls = nulls
        #: Whether AnnData is to see it.
        self.is_seen = "/" not in path
        self._nullable = is_nullable(field)
        self._target = target
        #: Type of what ``encode`` gives.
        self.stored: Any = stand_in(field.type)
        self._is_text = str(self.stored) == "large_string"
        self._values: zarr.Array[Any] | None = None
        self._mask: zarr.Array[Any] | None = None

    def encode(self, array: pa.Array) -> pa.Array:
        """The values as the type that is stored."""
        return _as_stored(array, self.stored)

    def write(self, part: pa.Array) -> None:
        """Append what ``encode`` gave; the first part has the length of a chunk."""
        if self._values is None:
            self._values = self._begin(self._chunk_of(part))
        self._check_text(part, self._values.chunks[0])
        if (part.null_count or self._nullable) and self._mask is None:
            self._values, self._mask = self._begin_mask(self._values)
        _append(self._values, _to_numpy(part, self._null))
        if self._mask is not None:
            _append(self._mask, part.is_null().to_numpy(zero_copy_only=False))

    def finish(self) -> None:
        """Write what is only known at the end."""

    def _chunk_of(self, part: pa.Array) -> int:
        """Rows of a chunk: a part, but of long text so few that no reader takes it for a bomb."""
        if not self._is_text or not len(part):
            return len(part)
        most = max(_TEXT_BYTES // int(_text_sizes(part).max()), 1)
        # Parts consist of whole chunks.
        return min(len(part), 1 << most.bit_length() - 1)

    def _check_text(self, part: pa.Array, chunk: int) -> None:
        """OutputError for text that would be written and not be read again."""
        if self._is_text and len(part):
            sizes = np.add.reduceat(_text_sizes(part), np.arange(0, len(part), chunk))
            if sizes.max() > FREE_BYTES:
                raise OutputError(
                    f"{self._target.where}: column {self.name!r} has {sizes.max():,} bytes of text "
                    f"in {chunk:,} rows, more than the {FREE_BYTES:,} that an archive takes; "
                    "shorten it, or leave the column out"
                )

    def _begin(self, chunk: int) -> zarr.Array[Any]:
        return self._target.array(self.path, self.stored, chunk)

    def _begin_mask(self, values: zarr.Array[Any]) -> tuple[zarr.Array[Any], zarr.Array[Any]]:
        # An array cannot be moved into the group that takes its place.
        target, chunk, aside = self._target, values.chunks[0], f"{self.nulls}-aside"
        copied = _copy(values, target.array(aside, self.stored, chunk)) if values.shape[0] else None
        del target.group[self.path]
        attributes = _encoding(*_nullable(self.stored))
        if self._is_text and not self._nullable:
            # Which tells readers with pandas 3 that it is plain text.
            attributes["na-value"] = "NaN"
        target.group.create_group(self.path, attributes=attributes)
        values = target.array(f"{self.path}/values", self.stored, chunk)
        if copied is not None:
            values = _copy(copied, values)
            del target.group[aside]
        return values, self._empty_mask(f"{self.path}/mask", values)

    def _empty_mask(self, path: str, values: zarr.Array[Any]) -> zarr.Array[Any]:
        import pyarrow as pa

        mask = self._target.array(path, pa.bool_(), values.chunks[0])
        for start in range(0, values.shape[0], values.chunks[0]):
            _append(mask, np.zeros(min(values.shape[0] - start, values.chunks[0]), np.bool_))
        return mask


class _Floats(_Column):
    """Writes floats: AnnData sees NaN for a null, and does not see which of them are."""

    _null = np.nan

    def _begin_mask(self, values: zarr.Array[Any]) -> tuple[zarr.Array[Any], zarr.Array[Any]]:
        self.has_unseen_nulls = True
        return values, self._empty_mask(self.nulls, values)


class _Categories(_Column):
    """Writes a categorical column; -1 is the code of a null."""

    _null = -1

    def __init__(self, target: _Target, field: pa.Field, path: str, nulls: str) -> None:
        import pyarrow as pa

        super().__init__(target, field, path, nulls)
        self._ordered = field.type.ordered
        index_type = field.type.index_type
        # Codes are signed, so that there is a code of nulls.
        width = index_type.bit_width * (2 - pa.types.is_signed_integer(index_type))
        self._type = self.stored.value_type
        self.stored = pa.type_for_alias(f"int{min(width, 64)}")
        self._limit = np.iinfo(index_type.to_pandas_dtype()).max
        self._known = _bits(pa.array([], self._type))
        #: The last dictionary, and the codes of its values.
        self._seen: pa.Array | None = None
        self._code_of: pa.Array | None = None

    def encode(self, array: pa.Array) -> pa.Array:
        self._learn(array.dictionary)
        assert self._code_of is not None
        return self._code_of.take(array.indices)

    def _learn(self, dictionary: pa.Array) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        if self._seen is not None and dictionary.equals(self._seen):
            return
        values = _bits(_as_stored(dictionary, self._type))
        new = values.filter(pc.invert(pc.is_in(values, self._known))).drop_null()
        self._known = pa.concat_arrays([self._known, pc.unique(new)])
        if len(self._known) - 1 > self._limit:
            raise OutputError(
                f"{self._target.where}: column {self.name!r} has {len(self._known)} "
                f"categories, but its codes end at {self._limit}"
            )
        self._code_of = pc.index_in(values, self._known).cast(self.stored)
        self._seen = dictionary

    def _begin(self, chunk: int) -> zarr.Array[Any]:
        attributes = {"ordered": self._ordered, **_encoding("categorical", "0.2.0")}
        self._target.group.create_group(self.path, attributes=attributes)
        return self._target.array(f"{self.path}/codes", self.stored, chunk)

    def write(self, part: pa.Array) -> None:
        if self._values is None:
            self._values = self._begin(len(part))
        _append(self._values, _to_numpy(part, self._null))

    def finish(self) -> None:
        categories = _to_numpy(self._known.view(self._type), self._null)
        array = self._target.array(f"{self.path}/categories", self._type, len(categories))
        _append(array, categories)
        if categories.dtype.kind == "f":
            # pandas has no categories of NaN, of equal numbers or of float16.
            n_distinct = len(set(categories[~np.isnan(categories)].tolist()))
            self.is_seen &= n_distinct == len(categories) and categories.dtype != np.float16


def _is_key(name: str) -> bool:
    """Whether a column can be stored under its name."""
    return (
        name not in ("", ".", "..", "zarr.json")
        and not {"/", "\\", "\0"} & set(name)
        and len(name.encode()) <= _LONGEST_KEY
    )


def _is_index(type_: pa.DataType) -> bool:
    """Whether pandas has an index of what AnnData reads of the type."""
    import pyarrow as pa

    type_ = type_.value_type if pa.types.is_dictionary(type_) else type_
    return pa.types.is_integer(type_) or str(stand_in(type_)) == "large_string"


def _encoding(name: str, version: str) -> dict[str, Any]:
    return {"encoding-type": name, "encoding-version": version}


def _nullable(type_: pa.DataType) -> tuple[str, str]:
    names = {"bool": "nullable-boolean", "large_string": "nullable-string-array"}
    return names.get(str(type_), "nullable-integer"), "0.1.0"


def _as_stored(array: pa.Array, type_: pa.DataType) -> pa.Array:
    import pyarrow as pa

    if array.type == type_:
        return array
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), type_)
    return array.cast(type_) if pa.types.is_large_string(type_) else array.view(type_)


def _bits(array: pa.Array) -> pa.Array:
    """Values that differ wherever the given ones differ in a bit; for NaN and zeros."""
    import pyarrow as pa

    if not pa.types.is_floating(array.type):
        return array
    return array.view(pa.type_for_alias(f"uint{array.type.bit_width}"))


def _to_numpy(array: pa.Array, null: Any) -> NDArray[Any]:
    import pyarrow as pa

    if pa.types.is_large_string(array.type):
        values: NDArray[Any] = array.fill_null("").to_numpy(zero_copy_only=False)
        return values
    if pa.types.is_boolean(array.type):
        return np.asarray(array.fill_null(False).to_numpy(zero_copy_only=False))
    # pyarrow would make nulls of integers NaN.
    buffers = [None, array.buffers()[1]]
    valid = pa.Array.from_buffers(array.type, len(array), buffers, offset=array.offset)
    values = valid.to_numpy()
    if array.null_count:
        values = values.copy()
        values[array.is_null().to_numpy(zero_copy_only=False)] = null
    return values


def _text_sizes(part: pa.Array) -> NDArray[np.int64]:
    """Bytes of each string in a chunk."""
    import pyarrow.compute as pc

    lengths = pc.binary_length(part).fill_null(0).to_numpy(zero_copy_only=False)
    return np.asarray(lengths, np.int64) + LENGTH_BYTES


def _append(array: zarr.Array[Any], values: NDArray[Any]) -> None:
    if len(values):
        start = array.shape[0]
        array.resize((start + len(values),))
        array[start:] = values


def _copy(source: zarr.Array[Any], to: zarr.Array[Any]) -> zarr.Array[Any]:
    for start in range(0, source.shape[0], source.chunks[0]):
        _append(to, np.asarray(source[start : start + source.chunks[0]]))
    return to
