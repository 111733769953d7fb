"""The tables of the members of a collection as those of one archive."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from scdl.archive.schema import OBS, var_table
from scdl.archive.tables import Encoded, as_array
from scdl.collection.kept_columns import read_kept
from scdl.collection.member_obs import obs_columns, obs_tables
from scdl.collection.members import Members
from scdl.conversion.tables import United
from storage_backends.compute.caching import cached_property
from storage_backends.errors import ArrayNotFoundError


class MemberTables:
    """The tables of members as those of one archive: concatenated obs, one var per block.

    Parameters
    ----------
    path
        Start of error messages.
    blocks
        For each feature block a member that has it, and the index of the block there.
    """

    def __init__(self, path: str, members: Members, blocks: Sequence[tuple[int, int]]) -> None:
        self.path = path
        self._members = members
        self._blocks = {var_table(i): place for i, place in enumerate(blocks)}

    def table_schema(self, name: str, /) -> pa.Schema:
        """Names and types of a table's columns."""
        if name == OBS:
            return self._obs.schema
        member, block = self._blocks[name]
        return self._members[member].store.table_schema(var_table(block))

    def read_table(self, name: str, /, columns: Sequence[str] | None = None) -> pa.Table:
        """Some columns of a table, or all of them."""
        if name == OBS and columns is not None:
            return self._columns(columns)
        if name == OBS:
            return self._obs.reader().read_all()
        member, block = self._blocks[name]
        return self._members[member].store.read_table(var_table(block), columns)

    def _columns(self, names: Sequence[str]) -> pa.Table:
        if not names:
            n_obs = int(self._members.starts[-1])
            return pa.table({"": pa.nulls(n_obs)}).select([])
        united = self._united(names)
        columns = [as_array(united.encoded(name)) for name in names]
        fields = [
            united.schema.field(name).with_type(column.type)
            for name, column in zip(names, columns, strict=True)
        ]
        return pa.Table.from_arrays(columns, schema=pa.schema(fields, united.schema.metadata))

    def encoded(self, name: str) -> Encoded | pa.Array:
        """A column of obs, labels as codes: those that the manifest keeps, if there are any."""
        members = self._members
        is_label = members.origins is not None and members.origins.column == name
        if members.manifest_in is not None and not is_label:
            kept = read_kept(members.manifest_in, members.records, name)
            if kept is not None:
                return kept
        return self._united([name]).encoded(name)

    def _united(self, names: Sequence[str]) -> United:
        united = United(obs_columns(self._members, names))
        found = united.schema.names
        if missing := [name for name in names if name not in found]:
            raise ArrayNotFoundError(f"{self.path}: no member has the obs column {missing[0]!r}")
        return united

    @cached_property
    def _obs(self) -> United:
        united = United(obs_tables(self._members))
        united.warn(self.path)
        return united
