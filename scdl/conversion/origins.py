"""Which source each cell comes from, as a column of obs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from scdl.archive.tables import TableSource
from scdl.errors import OptionError
from storage_backends.paths import Path, paths_of


@dataclass(frozen=True)
class Origins:
    """Names of sources, and the column that gives them.

    Parameters
    ----------
    column
        Name of the column.
    names
        Of each source, each once; the categories of the column, in this order.
    """

    column: str
    names: tuple[str, ...]

    def labelled(self, obs: TableSource, number: int, where: str) -> TableSource:
        """A table of cells of one source, with the column.

        Parameters
        ----------
        obs
            The table; may be one without columns.
        number
            Which source it is of.
        where
            What opens the message of an error.

        Raises
        ------
        OptionError
            The table has a column of that name.
        """
        if self.column in obs.schema.names:
            raise OptionError(
                f"{where}: obs has a column {self.column!r} already, which label= would replace; "
                "choose another label"
            )
        return _Labelled(obs, self, number)


def origins_of(
    sources: Path | Sequence[Path] | Mapping[str, Path],
    label: str | None,
    keys: Sequence[str] | None,
    wanted: str = "the path of an h5ad file, a Zarr store or an archive, or several",
) -> tuple[list[str], Origins | None]:
    """The paths of sources, and what their cells are labelled with, if they are.

    Parameters
    ----------
    sources
        One, several, or several by name.
    label
        Name of the column.
    keys
        Names of the sources; default: those of a dict, else ``"0"``, ``"1"`` and so on.
    wanted
        What sources are expected, for messages.

    Raises
    ------
    PathTypeError, PathError
        A source is no path.
    OptionError
        Names are given without a label or twice, or are not as many as the sources.
    """
    # Other mappings, such as open files, are no sources.
    if isinstance(sources, dict):
        if keys is not None:
            raise OptionError("a dict of sources names them; leave out keys=")
        keys, paths = list(sources), paths_of(list(sources.values()), wanted)
    else:
        paths = paths_of(sources, wanted)
    if label is None:
        if keys is not None:
            raise OptionError(
                "sources have names, and no column of obs is to give them; say label=, the name of "
                "the column"
            )
        return paths, None
    if isinstance(keys, str):
        raise OptionError(f"keys must be a list of names, one a source, not {keys!r}")
    names = tuple(map(str, range(len(paths)) if keys is None else keys))
    if len(names) != len(paths):
        raise OptionError(f"keys has {len(names)} names for {len(paths)} sources; give one to each")
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise OptionError(f"keys has {repeated!r} more than once; give each source another name")
    return paths, Origins(label, names)


class _Labelled(TableSource):
    """A table with one more column, in which all values are the same category."""

    def __init__(self, table: TableSource, origins: Origins, number: int) -> None:
        self._table, self._number = table, number
        self._names = pa.array(origins.names, pa.large_string())
        column = pa.field(origins.column, pa.dictionary(pa.int32(), pa.large_string()))
        self.num_rows = table.num_rows
        self.schema = table.schema.append(column)
        self.categories = {**table.categories, origins.column: self._names}

    def read(self, start: int, stop: int) -> pa.RecordBatch:
        batch = self._table.read(start, stop)
        # What has no columns is read with one that has no name.
        there = [batch.column(name) for name in self._table.schema.names]
        codes = pa.array(np.full(stop - start, self._number, np.int32))
        label = pa.DictionaryArray.from_arrays(codes, self._names)
        fields = [*(batch.schema.field(name) for name in self._table.schema.names)]
        schema = pa.schema([*fields, self.schema.field(len(there))], self.schema.metadata)
        return pa.RecordBatch.from_arrays([*there, label], schema=schema)
