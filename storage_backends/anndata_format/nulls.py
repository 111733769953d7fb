"""Columns that pandas has in types of their own for nulls."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from storage_backends.base import NULLABLE

if TYPE_CHECKING:
    import pyarrow as pa


def is_nullable(field: pa.Field) -> bool:
    """Whether a column is of a type of its own for nulls."""
    return (field.metadata or {}).items() >= NULLABLE.items()


def is_for_nulls(na_value: object) -> bool:
    """Whether anndata makes a column of an encoding for nulls one of pandas' types for them.

    Plain text of pandas 3 has that encoding too, with NaN for what is missing; pandas 2 has no such
    text, and gets the type for nulls.

    Parameters
    ----------
    na_value
        Attribute ``na-value`` of the column; None: there is none.
    """
    plain = na_value in ("NaN", b"NaN")
    return not plain or int(version("pandas").partition(".")[0]) < 3
