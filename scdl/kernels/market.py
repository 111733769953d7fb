"""Parsing the entries of matrices in Matrix Market form."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.compute.jit import helper, kernel

#: Digits of a number that always fit into an int64.
_MOST_DIGITS = 18
#: Exponent of numbers that the kernel cannot parse.
UNPARSED = 1 << 14
# Positions and characters are unsigned: signed ones could be negative, which indexing would test.
_ONE, _TEN, _ZERO = np.uint64(1), np.uint64(10), np.uint64(ord("0"))
_SPACE, _TAB, _RETURN, _NEWLINE = (np.uint8(ord(c)) for c in " \t\r\n")
_DOT, _PLUS, _MINUS, _E, _LOWER_E = (np.uint8(ord(c)) for c in ".+-Ee")


@helper
def _after_blanks(text: NDArray[np.uint8], at: Any) -> Any:
    while text[at] == _SPACE or text[at] == _TAB or text[at] == _RETURN:
        at += _ONE
    return at


@helper
def _digits(text: NDArray[np.uint8], at: Any, number: Any) -> tuple[Any, Any]:
    """Append the digits from a position to a number; returns it and the position after them."""
    while True:
        # Other characters than digits wrap around.
        digit = np.uint64(text[at]) - _ZERO
        if digit >= _TEN:
            return number, at
        number = number * _TEN + digit
        at += _ONE


@helper
def _decimal(text: NDArray[np.uint8], at: Any) -> tuple[Any, Any, Any]:
    """Mantissa and exponent of a number, and the position after it."""
    is_negative = text[at] == _MINUS
    if is_negative or text[at] == _PLUS:
        at += _ONE
    first = at
    number, at = _digits(text, at, np.uint64(0))
    n_digits, exponent = np.int64(at - first), np.int64(0)
    if text[at] == _DOT:
        first = at + _ONE
        number, at = _digits(text, first, number)
        exponent = -np.int64(at - first)
        n_digits -= exponent
    if text[at] == _E or text[at] == _LOWER_E:
        at += _ONE
        sinks = text[at] == _MINUS
        if sinks or text[at] == _PLUS:
            at += _ONE
        first = at
        power, at = _digits(text, first, np.uint64(0))
        # Four digits suffice for any float.
        if not 0 < at - first <= 4:
            n_digits = np.int64(0)
        exponent += -np.int64(power) if sinks else np.int64(power)
    if not 0 < n_digits <= _MOST_DIGITS:
        exponent = np.int64(UNPARSED)
    mantissa = np.int64(number)
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
) -> tuple[Any, Any]:
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
    n, at = np.uint64(0), np.uint64(0)
    while at < len(text):
        start = at = _after_blanks(text, at)
        if text[at] == _NEWLINE:
            at += _ONE
            continue
        row, at = _digits(text, start, np.uint64(0))
        is_entry = 0 < at - start <= _MOST_DIGITS
        between = _after_blanks(text, at)
        column, at = _digits(text, between, np.uint64(0))
        is_entry &= 0 < at - between <= _MOST_DIGITS
        rows[n], columns[n], mantissas[n], exponents[n] = row, column, 1, 0
        at = _after_blanks(text, at)
        if has_values and is_entry:
            value = at
            values_at[n] = value
            mantissas[n], exponents[n], at = _decimal(text, value)
            at = _after_blanks(text, at)
            if text[at] != _NEWLINE:
                exponents[n] = UNPARSED
                while text[at] != _NEWLINE:
                    at += _ONE
            is_entry = at > value
        if not is_entry or text[at] != _NEWLINE:
            return np.int64(n), np.int64(start)
        at += _ONE
        n += _ONE
    return np.int64(n), np.int64(-1)
