"""Parsing the entries of matrices in Matrix Market form."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import kernel

#: Digits of a number that always fit into an int64.
_MOST_DIGITS = 18
#: Exponent of numbers that the kernel cannot parse.
UNPARSED = 1 << 14
_SPACE, _TAB, _NEWLINE, _RETURN = 32, 9, 10, 13
_ZERO, _NINE, _DOT, _PLUS, _MINUS, _E, _LOWER_E = 48, 57, 46, 43, 45, 69, 101


@kernel
def _after_blanks(text: NDArray[np.uint8], at: int) -> int:
    while text[at] == _SPACE or text[at] == _TAB or text[at] == _RETURN:
        at += 1
    return at


@kernel
def _integer(text: NDArray[np.uint8], at: int) -> tuple[Any, int]:
    """An unsigned integer and the position after it; -1 if there is none."""
    start, number = at, np.int64(0)
    while _ZERO <= text[at] <= _NINE:
        number = number * 10 + (np.int64(text[at]) - _ZERO)
        at += 1
    return (number if 0 < at - start <= _MOST_DIGITS else -1), at


@kernel
def _decimal(text: NDArray[np.uint8], at: int) -> tuple[Any, int, int]:
    """Mantissa and exponent of a number, and the position after it."""
    is_negative = text[at] == _MINUS
    if is_negative or text[at] == _PLUS:
        at += 1
    mantissa, exponent, digits, is_fraction = np.int64(0), 0, 0, False
    while _ZERO <= text[at] <= _NINE or (text[at] == _DOT and not is_fraction):
        if text[at] == _DOT:
            is_fraction = True
        else:
            mantissa = mantissa * 10 + (np.int64(text[at]) - _ZERO)
            digits += 1
            exponent -= is_fraction
        at += 1
    if text[at] == _E or text[at] == _LOWER_E:
        at += 1
        sinks = text[at] == _MINUS
        if sinks or text[at] == _PLUS:
            at += 1
        power, at = _integer(text, at)
        # Four digits suffice for any float.
        digits = 0 if power < 0 or power > 9999 else digits
        exponent += -power if sinks else power
    if digits == 0 or digits > _MOST_DIGITS:
        exponent = UNPARSED
    return (-mantissa if is_negative else mantissa), exponent, at


@kernel
def parse_entries(
    text: NDArray[np.uint8],
    has_values: bool,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    mantissas: NDArray[np.int64],
    exponents: NDArray[np.int16],
    values_at: NDArray[np.int64],
) -> tuple[int, int]:
    """Parse lines of a row, a column and a value, which count rows and columns from 1.

    Parameters
    ----------
    text
        Complete lines; the last byte is a newline. Blank lines are skipped.
    has_values
        Whether lines have a value.
    rows, columns
        Outputs, at least one item for each line.
    mantissas, exponents
        Outputs: values as decimal mantissas and exponents; an exponent of :data:`UNPARSED` marks
        those with too many digits, and those that are no plain numbers.
    values_at
        Output: position in `text` of the value.

    Returns
    -------
    n, bad
        Number of entries; position of the first line that is not an entry, or -1.
    """
    n, at = 0, 0
    while at < len(text):
        start = at
        at = _after_blanks(text, at)
        if text[at] == _NEWLINE:
            at += 1
            continue
        rows[n], at = _integer(text, at)
        between = _after_blanks(text, at)
        columns[n], at = _integer(text, between)
        if rows[n] < 0 or columns[n] < 0:
            return n, start
        mantissas[n], exponents[n] = 1, 0
        at = _after_blanks(text, at)
        if has_values:
            values_at[n] = at
            mantissas[n], exponents[n], at = _decimal(text, at)
            at = _after_blanks(text, at)
            if exponents[n] == UNPARSED or text[at] != _NEWLINE:
                exponents[n] = UNPARSED
                while text[at] != _NEWLINE:
                    at += 1
                if at == values_at[n]:
                    return n, start
        if text[at] != _NEWLINE:
            return n, start
        at += 1
        n += 1
    return n, -1
