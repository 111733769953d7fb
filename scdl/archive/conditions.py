"""Conditions on columns of obs, parsed from text.

Conditions are parsed as Python expressions with a list of allowed nodes, and are never evaluated as
Python. They have three values, as those of SQL: a comparison with a missing value is neither true
nor false.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scdl.archive.frames import with_values
from scdl.errors import FilterError
from storage_backends.compute.arrow import is_missing, is_text

#: Functions of Arrow and of Python for each comparison, and the comparison with sides exchanged.
_COMPARISONS: dict[type[ast.cmpop], tuple[Any, Any, type[ast.cmpop]]] = {
    ast.Eq: (pc.equal, operator.eq, ast.Eq),
    ast.NotEq: (pc.not_equal, operator.ne, ast.NotEq),
    ast.Lt: (pc.less, operator.lt, ast.Gt),
    ast.LtE: (pc.less_equal, operator.le, ast.GtE),
    ast.Gt: (pc.greater, operator.gt, ast.Lt),
    ast.GtE: (pc.greater_equal, operator.ge, ast.LtE),
}
#: Text in quotes, or a name in backticks.
_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|`([^`]*)`""")
_SYNTAX = (
    "a condition compares columns with values, as in \"cell_type == 'T' and n_genes > 500\", by "
    "==, !=, <, <=, >, >=, in [...], not in [...], is None, is not None, joined by and, or, not "
    "and parentheses; names with other characters than letters, digits and _ are in backticks"
)


#: Maximum number of conditions within each other.
_MAX_DEPTH = 100


class Condition:
    """A parsed condition.

    Parameters
    ----------
    text
        The condition.
    table
        Name of the table with the columns, for messages.

    Attributes
    ----------
    names
        Names of the columns.
    """

    def __init__(self, text: str, table: str = "obs") -> None:
        self._text, self._table = text, table
        quoted: list[str] = []

        def replace(match: re.Match[str]) -> str:
            if match[1] is None:
                return match[0]
            quoted.append(match[1])
            return f"__column_{len(quoted) - 1}__"

        try:
            self._tree = ast.parse(_QUOTED.sub(replace, text).strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            self._refuse(f"{getattr(error, 'msg', error)}")
        self._quoted = {f"__column_{i}__": name for i, name in enumerate(quoted)}
        self.names: set[str] = set()
        try:
            self._check(self._tree)
        except RecursionError:
            self._refuse("it is nested too deeply")

    def _refuse(self, problem: str) -> NoReturn:
        raise FilterError(f"the filter {self._text!r:.200} is not valid: {problem}; {_SYNTAX}")

    def _name(self, node: ast.expr) -> str | None:
        """The column that a node names, or None."""
        return self._quoted.get(node.id, node.id) if isinstance(node, ast.Name) else None

    def _check(self, node: ast.expr, depth: int = 0) -> None:
        """Check the syntax, and collect the names of the columns."""
        if depth > _MAX_DEPTH:
            self._refuse(f"it is nested more than {_MAX_DEPTH} times")
        if isinstance(node, ast.BoolOp):
            for part in node.values:
                self._check(part, depth + 1)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self._check(node.operand, depth + 1)
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            for left, op, right in zip(sides, node.ops, sides[1:], strict=False):
                self._check_comparison(left, op, right)
        elif (name := self._name(node)) is not None:
            self.names.add(name)
        elif not (isinstance(node, ast.Constant) and isinstance(node.value, bool)):
            self._refuse(f"{ast.unparse(node)!r:.100} is no condition")

    def _check_comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> None:
        names = [name for side in (left, right) if (name := self._name(side)) is not None]
        self.names.update(names)
        if isinstance(op, ast.Is | ast.IsNot):
            if self._name(left) is None or not _is_none(right):
                self._refuse("'is' compares a column with None only")
        elif isinstance(op, ast.In | ast.NotIn):
            if self._name(left) is None or not isinstance(right, ast.List | ast.Tuple | ast.Set):
                self._refuse("'in' compares a column with a list of values")
            for item in right.elts:
                self._constant(item)
        else:
            for side in (left, right):
                if self._name(side) is None:
                    self._constant(side)
            if not names:
                self._refuse(f"{ast.unparse(left)!r:.100} is compared without a column")

    def _constant(self, node: ast.expr) -> Any:
        sign = 1
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            sign, node = -1 if isinstance(node.op, ast.USub) else 1, node.operand
        value = node.value if isinstance(node, ast.Constant) else None
        if isinstance(value, int | float) and (sign == 1 or not isinstance(value, bool)):
            return sign * value if sign < 0 else value
        if isinstance(value, str) and sign == 1:
            return value
        problem = f"{ast.unparse(node)!r:.100} is neither a column, nor a number, text or bool"
        if _is_none(node):
            problem = "a comparison with None is never true; use 'is None' or 'is not None'"
        return self._refuse(problem)

    # -- evaluation ------------------------------------------------------------------------

    def _misfit(self, problem: str) -> NoReturn:
        raise FilterError(f"the filter {self._text!r:.200} does not fit {self._table}: {problem}")

    def evaluate(self, table: pa.Table) -> pa.Array:
        """Whether the condition is true for each row; null if that is unknown."""
        return self._evaluate(self._tree, table)

    def _evaluate(self, node: ast.expr, table: pa.Table) -> pa.Array:
        if isinstance(node, ast.BoolOp):
            join = pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene
            first, *others = (self._evaluate(part, table) for part in node.values)
            for other in others:
                first = join(first, other)
            return first
        if isinstance(node, ast.UnaryOp):
            return pc.invert(self._evaluate(node.operand, table))
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            found = None
            for left, op, right in zip(sides, node.ops, sides[1:], strict=False):
                part = self._compare(left, op, right, table)
                found = part if found is None else pc.and_kleene(found, part)
            return found
        if isinstance(node, ast.Constant):
            return pa.array(np.full(table.num_rows, node.value))
        name = self._name(node)
        assert name is not None
        values = _column(table, name)
        if _kind(values.type) not in ("bool", "null"):
            self._misfit(f"the column {name!r} holds {_described(values.type)}, no truth values")
        return _decoded(values).cast(pa.bool_())

    def _compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr, table: pa.Table) -> pa.Array:
        if isinstance(op, ast.Is | ast.IsNot):
            absent = is_missing(_column(table, self._name(left)))
            return absent if isinstance(op, ast.Is) else pc.invert(absent)
        if isinstance(op, ast.In | ast.NotIn):
            assert isinstance(right, ast.List | ast.Tuple | ast.Set)
            found = self._is_in(self._name(left), right.elts, table)
            return found if isinstance(op, ast.In) else pc.invert(found)
        function, of_numbers, exchanged = _COMPARISONS[type(op)]
        first, second = self._name(left), self._name(right)
        if first is None:
            return self._compare(right, exchanged(), left, table)
        values = _column(table, first)
        if second is not None:
            others = _decoded(_column(table, second))
            values = _decoded(values)
            if not _agree(values.type, _kind(others.type)):
                self._mismatch(first, values.type, f"the column {second!r} of {others.type}")
            return function(values, others)
        value = self._constant(right)
        if not _agree(values.type, _kind_of(value)):
            self._mismatch(first, values.type, repr(value))
        is_order = not isinstance(op, ast.Eq | ast.NotEq)
        if pa.types.is_dictionary(values.type) and is_order:
            return self._ordered(first, values, value, of_numbers)
        return _each(values, lambda some: function(some, _scalar(value, some.type)))

    def _is_in(self, name: str | None, items: Sequence[ast.expr], table: pa.Table) -> pa.Array:
        assert name is not None
        values = _column(table, name)
        wanted = [self._constant(item) for item in items]
        for value in wanted:
            if not _agree(values.type, _kind_of(value)):
                self._mismatch(name, values.type, repr(value))

        def test(some: pa.Array) -> pa.Array:
            found = pa.array(np.zeros(len(some), bool))
            found = pc.if_else(some.is_null(), pa.scalar(None, pa.bool_()), found)
            for value in dict.fromkeys(wanted):
                found = pc.or_kleene(found, pc.equal(some, _scalar(value, some.type)))
            return found

        return _each(values, test)

    def _ordered(
        self, name: str, values: pa.Array, value: Any, compare: Callable[[Any, Any], Any]
    ) -> pa.Array:
        """Compare categories by their order."""
        categories = values.dictionary.to_pylist()
        if not values.type.ordered or value not in categories:
            problem = "whose categories have no order; use == or in"
            if values.type.ordered:
                problem = f"which has no category {value!r}; it has: {categories!r:.200}"
            self._misfit(f"the order of the column {name!r} is asked for, {problem}")
        is_chosen = compare(np.arange(len(categories)), categories.index(value))
        return pa.array(is_chosen).take(values.indices)

    def _mismatch(self, name: str, type_: pa.DataType, other: str) -> NoReturn:
        self._misfit(f"the column {name!r} holds {_described(type_)} and is compared with {other}")


def _column(table: pa.Table, name: str | None) -> pa.Array:
    """A column with null for NaN; null in every row if it does not exist."""
    if name not in table.schema.names:
        return pa.nulls(table.num_rows)
    values = with_values(table[name].combine_chunks())
    if pa.types.is_float16(values.type):
        values = values.cast(pa.float32())
    if pa.types.is_floating(values.type):
        values = pc.if_else(is_missing(values), pa.scalar(None, values.type), values)
    return values


def _each(values: pa.Array, test: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """Test each value, or each category once."""
    if pa.types.is_dictionary(values.type):
        return test(values.dictionary).take(values.indices)
    return test(values)


def _decoded(values: pa.Array) -> pa.Array:
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _scalar(value: Any, type_: pa.DataType) -> pa.Scalar:
    """A constant to compare with values of a type; floats are rounded as the values were."""
    return pa.scalar(value, type_ if pa.types.is_floating(type_) or is_text(type_) else None)


def _kind(type_: pa.DataType) -> str:
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    if is_text(type_):
        return "text"
    if pa.types.is_boolean(type_):
        return "bool"
    if pa.types.is_null(type_):
        return "null"
    return "number" if pa.types.is_integer(type_) or pa.types.is_floating(type_) else str(type_)


def _kind_of(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    return "bool" if isinstance(value, bool) else "number"


def _agree(type_: pa.DataType, kind: str) -> bool:
    """Whether values of a type can be compared with others of a kind."""
    kinds = {_kind(type_), kind}
    return len(kinds) == 1 or "null" in kinds


def _described(type_: pa.DataType) -> str:
    if pa.types.is_dictionary(type_):
        return f"categories of {_kind(type_)}"
    return "text" if is_text(type_) else str(type_)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
