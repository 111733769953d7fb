"""Reading categories: a file with one row of lists, of which many archives have the same."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from storage_backends.compute import arrow
from storage_backends.compute.caching import LRUCache
from storage_backends.errors import ArchiveFormatError
from storage_backends.memmap.parquet import ParquetFile, readable


def to_categorical(column: pa.ChunkedArray, empty: pa.DictionaryArray) -> pa.ChunkedArray:
    """Encode the values of a column by their codes in the stored categories."""
    chunks = []
    for chunk in column.chunks:
        if pa.types.is_dictionary(chunk.type):
            # Few positions are narrowed rather than many codes.
            codes = pc.index_in(chunk.dictionary, empty.dictionary)
            if codes.type != empty.type.index_type:
                codes = codes.cast(empty.type.index_type)
            codes = arrow.taken(codes, chunk.indices)
        else:
            codes = pc.index_in(chunk, empty.dictionary)
            codes = pc.if_else(pc.is_null(chunk), pa.scalar(None, codes.type), codes)
            codes = codes.cast(empty.type.index_type)
        # These codes are in range, which need not be checked.
        chunks.append(
            pa.DictionaryArray.from_arrays(
                codes, empty.dictionary, ordered=empty.type.ordered, safe=False
            )
        )
    return pa.chunked_array(chunks or [empty])


def lists_in(file: ParquetFile | None) -> Mapping[str, pa.DictionaryArray]:
    """The lists of categories in a file, parsed once for all files of the same content."""
    if file is None:
        return {}
    found = _parsed.get(file.content)
    if found is None:
        with readable(f"{file}: the table of categories"):
            found = _parsed.setdefault(file.content, _parse_categories(file))
    return found


def _parse_categories(file: ParquetFile) -> Mapping[str, pa.DictionaryArray]:
    if file.num_rows != 1:
        raise ArchiveFormatError(f"{file}: expected one row of categories")
    found = {}
    table = file.read_all()
    for field in table.schema:
        # See `table_writer._category_table`.
        values = table[field.name].chunk(0).flatten()
        meta = field.metadata or {}
        index_type = pa.type_for_alias(meta.get(b"index", b"int32").decode())
        found[field.name] = pa.DictionaryArray.from_arrays(
            pa.nulls(0, index_type), values, ordered=meta.get(b"ordered") == b"1"
        )
    return found


#: Categories by the content of their file, as many archives of one collection often share them.
_parsed = LRUCache[bytes, Mapping[str, pa.DictionaryArray]](
    1 << 22, lambda found: sum(array.dictionary.nbytes for array in found.values()) + 1
)
