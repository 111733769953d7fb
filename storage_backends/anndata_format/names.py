"""AnnData's names on disk. Source: anndata's on-disk format specification."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from storage_backends.base import NULLABLE

if TYPE_CHECKING:
    import pyarrow as pa

#: Attributes of a data frame: the member that is its index, and its columns in order.
INDEX_NAMED, COLUMN_ORDER = "_index", "column-order"
#: Group in which data frames of anndata 0.7 and SeuratDisk have categories, by names of columns.
OLD_CATEGORIES = "__categories"
#: How the names of encodings for columns with nulls begin.
NULLABLE_PREFIX = "nullable-"
#: Attribute of columns with nulls: what stands for a null in memory.
NA_VALUE = "na-value"

#: Version of each encoding that is written.
_VERSIONS = {
    "anndata": "0.1.0",
    "array": "0.2.0",
    "categorical": "0.2.0",
    "csc_matrix": "0.1.0",
    "csr_matrix": "0.1.0",
    "dataframe": "0.2.0",
    "dict": "0.1.0",
    "nullable-boolean": "0.1.0",
    "nullable-integer": "0.1.0",
    "nullable-string-array": "0.1.0",
    "raw": "0.1.0",
    "string-array": "0.2.0",
}


def encoding(kind: str, **more: Any) -> dict[str, Any]:
    """Attributes of an element of a kind, and more of them."""
    return {"encoding-type": kind, "encoding-version": _VERSIONS[kind], **more}


def encoding_of(element: Any) -> str:
    """Kind of a group or array of HDF5 or Zarr; empty where nothing says so."""
    return text(element.attrs.get("encoding-type", ""))


def text(value: Any) -> str:
    """The text of an attribute, which HDF5 may give as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def is_nullable(field: pa.Field) -> bool:
    """Whether pandas has a column in a type of its own for nulls."""
    return (field.metadata or {}).items() >= NULLABLE.items()


def is_for_nulls(na_value: object) -> bool:
    """Whether anndata reads an encoding for nulls as one of pandas' types for nulls.

    Plain text of pandas 3 has that encoding too, with NaN for a missing value; pandas 2 has no such
    text, and gets the type for nulls.

    Parameters
    ----------
    na_value
        Attribute :data:`NA_VALUE` of the column; None: there is none.
    """
    plain = na_value in ("NaN", b"NaN")
    return not plain or int(version("pandas").partition(".")[0]) < 3
