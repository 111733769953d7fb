"""Columns of obs as numbers: labels become codes of one vocabulary for all cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scdl.archive.frames import are_floats
from scdl.errors import ColumnTypeError, FeatureNotFoundError

if TYPE_CHECKING:
    import pyarrow as pa

    from scdl.dataset.reader import CellReader


class ObsColumn(NamedTuple):
    """A column of obs as numbers.

    Attributes
    ----------
    values
        One number or truth value a cell; of labels their codes, int32, -1 where there is none.
    names
        The label of each code; None where the column holds numbers.
    """

    values: NDArray[Any]
    names: tuple[Any, ...] | None


def obs_column(cells: CellReader, name: str) -> ObsColumn:
    """A column of obs for all cells.

    Codes of a categorical column are positions in its categories, whether or not they occur; those
    of text are positions among its sorted values. They depend on nothing but the archive.

    Raises
    ------
    FeatureNotFoundError
        There is no such column, or no obs.
    ColumnTypeError
        The column holds neither numbers, truth values, text nor categories; or integers that are
        too large for int64, or for the floats that nulls make of them.
    """
    found = _column(cells, name)
    values = found.values
    if values.dtype == np.uint64 and len(values) and values.max() > np.iinfo(np.int64).max:
        raise ColumnTypeError(
            f"obs column {name!r} holds {values.max()}, beyond the int64 of tensors; make text of "
            "it, whose labels are numbered, or leave it out"
        )
    return found


def codes(cells: CellReader, name: str) -> ObsColumn:
    """A column of obs as labels: numbers and truth values are labels of themselves.

    Raises
    ------
    FeatureNotFoundError, ColumnTypeError
        As for :func:`obs_column`.
    """
    column = _column(cells, name)
    if column.names is not None:
        return column
    missing = np.isnan(column.values) if column.values.dtype.kind == "f" else None
    names, found = np.unique(column.values, return_inverse=True)
    if missing is not None:
        found = np.where(missing, -1, found)
        names = names[~np.isnan(names)]
    return ObsColumn(found.astype(np.int32), tuple(names.tolist()))


def _column(cells: CellReader, name: str) -> ObsColumn:
    features = cells.obs_features()
    if features is None:
        raise FeatureNotFoundError(f"there is no obs to take {name!r} from")
    return _numbers(features.columns.array(name), name)


def _numbers(array: pa.Array, name: str) -> ObsColumn:
    import pyarrow as pa
    import pyarrow.compute as pc

    type_ = array.type
    if pa.types.is_dictionary(type_):
        return ObsColumn(_codes(array.indices), tuple(array.dictionary.to_pylist()))
    if str(type_) in ("string", "large_string", "string_view"):
        names = pc.drop_null(pc.unique(array)).sort()
        return ObsColumn(_codes(pc.index_in(array, names)), tuple(names.to_pylist()))
    if pa.types.is_boolean(type_):
        if array.null_count:
            return ObsColumn(_codes(array.cast(pa.int32())), (False, True))
        return ObsColumn(array.to_numpy(zero_copy_only=False), None)
    if pa.types.is_integer(type_) or pa.types.is_floating(type_):
        # Integers with nulls become floats with NaN, as in pandas.
        if array.null_count and pa.types.is_integer(type_) and not are_floats(array):
            raise ColumnTypeError(
                f"obs column {name!r} holds integers beyond 2^53, and none for some cells, which "
                "no tensor does; make text of it"
            )
        return ObsColumn(array.to_numpy(zero_copy_only=False), None)
    raise ColumnTypeError(
        f"obs column {name!r} holds {type_}; a tensor can be made of numbers, truth values, text "
        "and categories"
    )


def _codes(indices: pa.Array) -> NDArray[np.int32]:
    import pyarrow as pa

    found: NDArray[np.int32] = indices.cast(pa.int32()).fill_null(-1).to_numpy()
    return found
