"""Many archives written as one, and checked before their sources may go."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from scdl.cell_names import CellNames, named
from scdl.comparison import check_copied
from scdl.concatenate import concatenate
from scdl.members import MemberObs, Members
from scdl.tables import TableSource
from storage_backends import registry


def tables_of_cells(members: Members, cell_names: CellNames) -> Sequence[TableSource]:
    """The obs of each member, with the names that cells get; see :func:`named`."""

    def tables(columns: Sequence[str] | None) -> list[TableSource]:
        return [MemberObs(members, i, columns) for i in range(len(members))]

    return named(tables, [record.path for record in members.records], cell_names)


def write_flat(
    members: Members,
    path: str,
    obs: Sequence[TableSource],
    *,
    backend: str | None,
    chunk_bytes: int,
    lossless: bool,
    options: dict[str, Any],
) -> None:
    """Write all members as one archive; see :meth:`scdl.SingleCellCollection.flatten`.

    Raises
    ------
    CollectionError
        Something would be left out, which `lossless` does not allow.
    """
    with registry.for_target(path, backend).create(path, **options) as writer:
        concatenate(members.stores(), writer, chunk_bytes=chunk_bytes, obs=obs, lossless=lossless)


def verify(members: Members, path: str, obs: Sequence[TableSource]) -> None:
    """Compare an archive with the members it was made of; see :func:`check_copied`."""
    with registry.open_archive(path) as flat:
        for start, store, table in zip(members.starts, members.stores(), obs, strict=False):
            check_copied(store, flat, int(start), table)


def is_within(path: str, directory: str) -> bool:
    """Whether a path is a directory, or below it."""
    path, directory = os.path.realpath(path), os.path.realpath(directory)
    return path == directory or path.startswith(directory + os.sep)
