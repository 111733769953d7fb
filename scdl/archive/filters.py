"""Filters of cells: conditions on columns of obs, as text or as expressions of Arrow."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scdl.archive.conditions import Condition
from scdl.errors import FilterError
from storage_backends.errors import one_line

_MISSING_COLUMN = re.compile(r"No match for FieldRef\.Name\((.*?)\) in", re.DOTALL)


class Filter:
    """A condition on columns of a table.

    Parameters
    ----------
    condition
        Text, or an expression of ``pyarrow.compute``.
    table
        Name of the table, for messages.

    Raises
    ------
    FilterError
        The condition is not valid.
    """

    def __init__(self, condition: str | pc.Expression, table: str = "obs") -> None:
        self._expression: pc.Expression | None = None
        self._parsed: Condition | None = None
        if isinstance(condition, pc.Expression):
            self._expression = condition
        elif isinstance(condition, str):
            self._parsed = Condition(condition, table)
        else:
            raise FilterError(
                f"a filter must be text or a pyarrow.compute.Expression, not {condition!r:.200}"
            )

    @property
    def names(self) -> set[str]:
        """Names of the columns; unknown, and empty, for an expression of Arrow."""
        return set() if self._parsed is None else self._parsed.names

    def columns(self, known: Sequence[str]) -> list[str]:
        """Those of the known columns that :meth:`positions` may need."""
        if self._parsed is not None:
            return [name for name in known if name in self._parsed.names]
        # Arrow does not list the columns of an expression, but its text contains their names.
        return [name for name in known if name in str(self._expression)]

    def positions(self, table: pa.Table, absent: set[str]) -> NDArray[np.int64]:
        """Positions of the rows for which the condition is true, ascending.

        Parameters
        ----------
        table
            The needed columns, as far as they exist; those that do not are missing in every row.
        absent
            Receives the names of needed columns that do not exist.

        Raises
        ------
        FilterError
            A column cannot be compared as the condition says.
        """
        try:
            if self._parsed is not None:
                absent.update(self._parsed.names.difference(table.schema.names))
                chosen = self._parsed.evaluate(table)
            else:
                chosen = self._chosen(table, absent)
        except pa.ArrowException as error:
            raise FilterError(f"the filter cannot be applied ({one_line(error)})") from error
        found: NDArray[np.int64] = np.flatnonzero(
            chosen.fill_null(False).to_numpy(zero_copy_only=False)
        )
        return found

    def _chosen(self, table: pa.Table, absent: set[str]) -> pa.Array:
        """Whether the expression is true for each row."""
        # Imports pandas.
        import pyarrow.acero as acero

        names = [f"condition{i}" for i in range(len(table.schema.names))]
        (name, *_) = [name for name in ("condition", *names) if name not in table.schema.names]
        while True:
            try:
                declared = acero.Declaration.from_sequence(
                    [
                        acero.Declaration("table_source", acero.TableSourceNodeOptions(table)),
                        acero.Declaration(
                            "project", acero.ProjectNodeOptions([self._expression], [name])
                        ),
                    ]
                )
                chosen = declared.to_table(use_threads=False).column(0).combine_chunks()
            except pa.ArrowInvalid as error:
                missing = _MISSING_COLUMN.search(str(error))
                if missing is None or missing[1] in table.schema.names:
                    raise
                absent.add(missing[1])
                table = table.append_column(missing[1], pa.nulls(table.num_rows))
                continue
            if not pa.types.is_boolean(chosen.type):
                raise FilterError(
                    f"a filter must be true or false for each cell, but {self._expression} is "
                    f"{chosen.type}"
                )
            return chosen
