"""A column of obs with the source of each cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from scdl.archive.tables import Extended, TableSource
from scdl.errors import OptionError
from storage_backends.compute import arrow


@dataclass(frozen=True)
class Origins:
    """Names of sources, and the name of the obs column that contains them.

    Parameters
    ----------
    column
        Name of the column.
    names
        Unique names of the sources: the categories of the column, in this order.
    """

    column: str
    names: tuple[str, ...]

    def labelled(self, obs: TableSource, number: int, where: str) -> TableSource:
        """Append the column to the table of cells of one source.

        Parameters
        ----------
        obs
            The table; it may have no columns.
        number
            Index of the source.
        where
            Start of error messages.

        Raises
        ------
        OptionError
            The table already has a column of that name.
        """
        if self.column in obs.schema.names:
            raise OptionError(
                f"{where}: obs has a column {self.column!r} already; choose another label"
            )
        names = pa.array(self.names, pa.large_string())

        def label(start: int, stop: int) -> pa.Array:
            codes = arrow.numbers(np.full(stop - start, number, np.int32))
            return pa.DictionaryArray.from_arrays(codes, names)

        return Extended(obs, pa.field(self.column, label(0, 0).type), label)


def origins_of(
    sources: Any,
    label: str | None,
    keys: Sequence[str] | None,
    listed: Callable[[Any], list[Any]],
) -> tuple[list[Any], Origins | None]:
    """The sources as a list, and the labels of their cells if `label` is given.

    Parameters
    ----------
    sources
        One source, several, or a dict of sources by name.
    label
        Name of the column.
    keys
        Names of the sources; default: the keys of a dict, else ``"0"``, ``"1"`` and so on.
    listed
        Returns one source, or several, as a list.

    Raises
    ------
    OptionError
        Names are given without a label, in two ways, repeatedly, or not one per source.
    """
    # Only dicts: other mappings, such as open HDF5 files, are not valid sources.
    if isinstance(sources, dict):
        if keys is not None:
            raise OptionError("the keys of a dict of sources are their names; leave out keys=")
        keys, given = list(sources), listed(list(sources.values()))
    else:
        given = listed(sources)
    if label is None:
        if keys is not None:
            raise OptionError(
                "keys= has no effect without label=; pass label=, the name of the column of obs "
                "that stores them"
            )
        return given, None
    if isinstance(keys, str):
        raise OptionError(f"keys must be a list with one name per source, not {keys!r}")
    names = tuple(map(str, range(len(given)) if keys is None else keys))
    if len(names) != len(given):
        raise OptionError(f"keys has {len(names)} names, expected {len(given)}, one per source")
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise OptionError(f"keys has {repeated!r} more than once; give each source another name")
    return given, Origins(label, names)
