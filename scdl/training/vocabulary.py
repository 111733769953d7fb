"""Columns of obs as numbers: labels become codes of a vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.archive.frames import are_floats
from scdl.errors import ColumnTypeError, FeatureNotFoundError

if TYPE_CHECKING:
    import pyarrow as pa

    from scdl.archive.tables import Encoded
    from scdl.dataset.reader import CellReader


#: Cells that are handled together, where each takes many bytes meanwhile.
CELLS_AT_ONCE = 1 << 18


class ObsColumn(NamedTuple):
    """A column of obs as numbers.

    Attributes
    ----------
    values
        One number or boolean per cell; for labels their codes, of the smallest signed type that
        holds them, -1 if missing.
    names
        The label of each code; None if the column holds numbers.
    """

    values: NDArray[Any]
    names: tuple[Any, ...] | None


def obs_column(cells: CellReader, name: str) -> ObsColumn:
    """A column of obs for all cells.

    Codes of a categorical column are positions in its categories, whether or not they occur; those
    of text are positions in its sorted values. They depend only on the archive.

    Raises
    ------
    FeatureNotFoundError
        There is no such column, or no obs.
    ColumnTypeError
        The column does not hold numbers, booleans, text or categories; or it holds integers too
        large for int64, or for the floats that replace integers with nulls.
    """
    column = _read_column(cells, name)
    values = column.values
    if values.dtype == np.uint64 and len(values) and values.max() > np.iinfo(np.int64).max:
        raise ColumnTypeError(
            f"obs column {name!r} holds {values.max()}, which exceeds int64, the largest integer "
            "type of tensors; convert the column to text, or leave it out"
        )
    return column


def label_codes(cells: CellReader, name: str) -> ObsColumn:
    """A column of obs as label codes; numbers and booleans are labels, too.

    Raises
    ------
    FeatureNotFoundError, ColumnTypeError
        As for :func:`obs_column`.
    """
    column = _read_column(cells, name)
    if column.names is not None:
        return column
    # Few values repeat; blocks bound the memory that sorting takes.
    values = column.values
    parts = [slice(*span) for span in csr.spans(len(values), CELLS_AT_ONCE)]
    found = [np.unique(values[part]) for part in parts]
    names = np.unique(np.concatenate([values[:0], *found]))
    if names.dtype.kind == "f":
        names = names[~np.isnan(names)]
    codes = np.full(len(values), -1, narrow_type(len(names)))
    for part in parts:
        known = np.ones(len(values[part]), bool)
        if names.dtype.kind == "f":
            known = ~np.isnan(values[part])
        codes[part][known] = np.searchsorted(names, values[part][known])
    return ObsColumn(codes, tuple(names.tolist()))


def narrow_type(n_labels: int) -> np.dtype[Any]:
    """The smallest signed type for the codes of labels."""
    from scdl.archive.tables import code_type

    dtype: np.dtype[Any] = np.dtype(code_type(n_labels).to_pandas_dtype())
    return dtype


def _read_column(cells: CellReader, name: str) -> ObsColumn:
    features = cells.obs_features()
    if features is None:
        raise FeatureNotFoundError(f"there is no obs to take {name!r} from")
    return _as_obs_column(features.columns.encoded(name), name)


def _as_obs_column(column: Encoded | pa.Array, name: str) -> ObsColumn:
    import pyarrow as pa

    from scdl.archive.tables import Encoded
    from storage_backends.compute.arrow import to_numpy

    if isinstance(column, Encoded):
        return _labels(column)
    array, type_ = column, column.type
    if pa.types.is_boolean(type_):
        if array.null_count:
            codes = array.cast(pa.int8()).fill_null(-1).to_numpy()
            return ObsColumn(codes, (False, True))
        return ObsColumn(array.to_numpy(zero_copy_only=False), None)
    if pa.types.is_integer(type_) or pa.types.is_floating(type_):
        # Integers with nulls become floats with NaN, as in pandas.
        if array.null_count and pa.types.is_integer(type_) and not are_floats(array):
            raise ColumnTypeError(
                f"obs column {name!r} holds integers beyond 2^53 and missing values, which no "
                "tensor type can hold together; convert the column to text"
            )
        if not array.null_count:
            return ObsColumn(to_numpy(array), None)
        return ObsColumn(array.to_numpy(zero_copy_only=False), None)
    raise ColumnTypeError(
        f"obs column {name!r} holds {type_}; only numbers, booleans, text and categories can be "
        "converted to a tensor"
    )


def _labels(column: Encoded) -> ObsColumn:
    """Codes of categories as they are, and those of text by the order of its values."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from storage_backends.compute.arrow import to_numpy

    labels = column.labels
    if pa.types.is_dictionary(column.type):
        return ObsColumn(column.codes, tuple(labels.to_pylist()))
    order = pc.sort_indices(labels)
    ranks = np.empty(len(labels), np.int64)
    ranks[to_numpy(order)] = np.arange(len(labels))
    codes = np.empty_like(column.codes)
    column.recoded(ranks, codes)
    return ObsColumn(codes, tuple(labels.take(order).to_pylist()))
