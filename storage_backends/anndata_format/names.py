"""AnnData's names on disk. Source: anndata's on-disk format specification."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from storage_backends.base import NULLABLE

if TYPE_CHECKING:
    import pyarrow as pa

#: Attributes of a data frame: the member that is its index, and its columns in order.
INDEX_NAMED, COLUMN_ORDER = "_index", "column-order"
#: Group of the categories, by column, in data frames of anndata 0.7 and SeuratDisk.
OLD_CATEGORIES = "__categories"
#: Prefix of the encodings of columns with nulls.
NULLABLE_PREFIX = "nullable-"
#: Attribute of columns with nulls: the value of a null in memory.
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
    """Encoding attributes of an element, with additional ones."""
    return {"encoding-type": kind, "encoding-version": _VERSIONS[kind], **more}


def encoding_of(element: Any) -> str:
    """Encoding type of a group or array of HDF5 or Zarr; empty if it has none."""
    return text(element.attrs.get("encoding-type", ""))


def text(value: Any) -> str:
    """The text of an attribute, which HDF5 may return as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def is_nullable(field: pa.Field) -> bool:
    """Whether a column has a nullable type in pandas."""
    return (field.metadata or {}).items() >= NULLABLE.items()


def is_for_nulls(na_value: object) -> bool:
    """Whether anndata reads a nullable encoding as a nullable type of pandas.

    Text of pandas 3 has this encoding, too, with NaN for a missing value. pandas 2 lacks this text
    type and uses the nullable one.

    Parameters
    ----------
    na_value
        Attribute :data:`NA_VALUE` of the column; None if it is absent.
    """
    plain = na_value in ("NaN", b"NaN")
    return not plain or int(version("pandas").partition(".")[0]) < 3
