"""Casting stored values to another dtype without losing information."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from scdl.errors import CastError, ScdlWarning

#: Data types in which an archive can store values.
DATA_DTYPES = (
    "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
)  # fmt: skip
#: Number of values checked at a time.
_PIECE = 1 << 16
_CHOICE = f"choose one of {', '.join(DATA_DTYPES)}"


def common_dtype(
    archives: Iterable[tuple[str, DTypeLike]],
    advice: str = "convert them to one dtype with cast_data_to_dtype",
) -> np.dtype[Any]:
    """The dtype that represents the values of all archives exactly.

    Parameters
    ----------
    archives
        Path and value dtype of each archive; at least one archive.
    advice
        What to do about an error, for its message.

    Raises
    ------
    CastError
        Some archives hold integers and others floats, or no integer dtype represents all values.
    """
    by_dtype = {np.dtype(dtype): path for path, dtype in archives}
    common = np.result_type(*by_dtype)
    if len({dtype.kind == "f" for dtype in (*by_dtype, common)}) > 1:
        listed = ", ".join(f"{path} has {dtype}" for dtype, path in by_dtype.items())
        raise CastError(
            f"no dtype represents the values of all archives exactly: {listed}; {advice}"
        )
    return common


def cast_values(
    values: NDArray[Any],
    dtype: np.dtype[Any],
    where: str,
    advice: str = "choose a wider dtype, or convert the stored values with cast_data_to_dtype",
) -> NDArray[Any]:
    """Cast values to a dtype, rounding floats; error messages start with `where`.

    Raises
    ------
    CastError
        The dtype cannot represent a value: it overflows, or `dtype` is an integer type and the
        value is negative, fractional or not finite.
    """
    if np.can_cast(values.dtype, dtype) or not len(values):
        return values.astype(dtype, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        cast: NDArray[Any] = values.astype(dtype)
    if dtype.kind == "f":
        infinite = np.isinf(cast)
        lost = values[infinite & np.isfinite(values)] if infinite.any() else []
    else:
        is_float = values.dtype.kind == "f"
        lost = values[~np.isfinite(values) | (np.rint(values) != values)] if is_float else []
        if not len(lost):
            # Python integers compare exactly, whatever the dtypes are.
            limits = np.iinfo(np.uint8 if dtype.kind == "b" else dtype)
            most = 1 if dtype.kind == "b" else limits.max
            extremes = values.min().item(), values.max().item()
            lost = [extreme for extreme in extremes if not limits.min <= extreme <= most]
    if len(lost):
        raise CastError(f"{where}: {dtype} cannot hold the value {lost[0]}; {advice}")
    return cast


def computable(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which SciPy and numba compute, which do not support float16."""
    return np.dtype(np.float32) if dtype == np.float16 else dtype


class Caster:
    """Cast blocks of values to one dtype and record properties of the values.

    Parameters
    ----------
    dtype
        One of :data:`DATA_DTYPES`.
    tolerance
        Largest absolute rounding error that is accepted silently; :meth:`warn` reports larger ones.

    Attributes
    ----------
    max_rounding
        Largest absolute rounding error so far.
    is_counts
        Whether all values so far are non-negative integers.

    Raises
    ------
    CastError
        An archive cannot store this dtype.
    """

    def __init__(self, dtype: DTypeLike, tolerance: float = 1e-8) -> None:
        try:
            self.dtype = np.dtype(dtype)
        except TypeError:
            raise CastError(f"there is no dtype {dtype!r}; {_CHOICE}") from None
        if self.dtype.name not in DATA_DTYPES:
            raise CastError(f"values cannot be stored as {self.dtype}; {_CHOICE}")
        self.max_rounding = 0.0
        self.is_counts = True
        self._tolerance = tolerance

    @classmethod
    def keeping(cls, dtype: np.dtype[Any], tolerance: float = 1e-8) -> Self:
        """A caster to a numeric dtype of values, also one outside :data:`DATA_DTYPES`."""
        caster = cls(np.float64, tolerance)
        caster.dtype = dtype.newbyteorder("=")
        return caster

    def __call__(self, values: NDArray[Any], where: str) -> NDArray[Any]:
        """Cast values to the dtype; error messages start with `where`.

        Raises
        ------
        CastError
            A value overflows, or the dtype is an unsigned integer type and a value is negative,
            fractional or not finite.
        """
        self.is_counts = self.is_counts and _are_counts(values)
        if values.dtype == self.dtype or not len(values):
            return values.astype(self.dtype, copy=False)
        cast = cast_values(values, self.dtype, where, "choose another data_dtype")
        if self.dtype.kind == "f" and not self._is_exact(values):
            wide = np.float64 if values.dtype.kind == "f" else np.longdouble
            with np.errstate(invalid="ignore"):
                errors = np.abs(cast.astype(wide) - values.astype(wide))
            largest = errors[np.isfinite(values)].max(initial=0.0)
            self.max_rounding = max(self.max_rounding, float(largest))
        return cast

    def _is_exact(self, values: NDArray[Any]) -> bool:
        if values.dtype.kind == "f":
            return bool(np.can_cast(values.dtype, self.dtype))
        # np.can_cast considers the cast of 64-bit integers to float64 safe, although it rounds.
        most = 2 << np.finfo(self.dtype).nmant
        return -most <= int(values.min()) <= int(values.max()) <= most

    def warn(self, where: str) -> None:
        """Warn if the largest rounding error exceeds the tolerance."""
        if self.max_rounding > self._tolerance:
            warnings.warn(
                f"{where}: storing the values as {self.dtype} rounded them by up to "
                f"{self.max_rounding:.3g}, more than the tolerance of {self._tolerance:g}; "
                "choose a wider data_dtype to keep them exact",
                ScdlWarning,
                stacklevel=5,
            )


def _are_counts(values: NDArray[Any]) -> bool:
    """Whether values are finite, non-negative integers."""
    if values.dtype.kind in "bu":
        return True
    # Pieces that fit into the CPU cache make the check cheap compared with reading.
    pieces = (values[i : i + _PIECE] for i in range(0, len(values), _PIECE))
    if values.dtype.kind == "i":
        return all(int(piece.min()) >= 0 for piece in pieces)
    return all(
        float(piece.min()) >= 0
        and float(piece.max()) < np.inf
        and np.array_equal(np.trunc(piece), piece)
        for piece in pieces
    )
