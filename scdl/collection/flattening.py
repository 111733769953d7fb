"""Many archives written as one, and checked before their sources may go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scdl.archive.tables import TableSource
from scdl.collection.members import Members
from scdl.conversion.cell_names import CellNames, named
from scdl.conversion.comparison import check_copied, check_same
from scdl.conversion.concatenation import concatenate
from scdl.dataset.reader import CellReader
from storage_backends import registry
from storage_backends.base import ArrayStore


def tables_of_cells(members: Members, cell_names: CellNames) -> Sequence[TableSource]:
    """The obs of each member, with the names that cells get; see :func:`named`."""
    return named(members.obs, [record.path for record in members.records], cell_names)


def write_flat(
    members: Members,
    path: str,
    obs: Sequence[TableSource],
    *,
    backend: str | None,
    chunk_bytes: int,
    lossless: bool,
    view: CellReader | None,
    options: dict[str, Any],
) -> None:
    """Write all members as one archive; see :meth:`scdl.SingleCellCollection.flatten`.

    Raises
    ------
    CollectionError
        Something would be left out, which `lossless` does not allow.
    """
    with registry.create(path, registry.for_target(path, backend), **options) as writer:
        stores = members.stores()
        concatenate(stores, writer, chunk_bytes=chunk_bytes, obs=obs, lossless=lossless, view=view)


def verify(
    members: Members, flat: ArrayStore, obs: Sequence[TableSource], identities: Sequence[Any]
) -> None:
    """Compare an archive with the members it was made of; see :func:`check_copied`.

    Parameters
    ----------
    identities
        What told each member from others when it was copied.
    """
    for start, store, table, identity in zip(
        members.starts, members.stores(), obs, identities, strict=False
    ):
        check_same(store, identity)
        check_copied(store, flat, int(start), table)
