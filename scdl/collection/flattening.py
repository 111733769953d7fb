"""Writing a collection as one archive, and comparing it with the members."""

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
    """The obs of each member, with the new names of cells; see :func:`named`."""
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
        `lossless` is true, and a part of a member would be left out.
    """
    with registry.create(path, registry.for_target(path, backend), **options) as writer:
        stores = members.stores()
        concatenate(stores, writer, chunk_bytes=chunk_bytes, obs=obs, lossless=lossless, view=view)


def check_flat(
    members: Members, flat: ArrayStore, obs: Sequence[TableSource], identities: Sequence[Any]
) -> None:
    """Compare a flat archive with the members of the collection; see :func:`check_copied`.

    Parameters
    ----------
    identities
        Identity of each member when it was copied.
    """
    for start, store, table, identity in zip(
        members.starts, members.stores(), obs, identities, strict=False
    ):
        check_same(store, identity)
        check_copied(store, flat, int(start), table)
