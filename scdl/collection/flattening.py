"""Writing a collection as one archive, and comparing it with the members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scdl.archive.tables import TableSource
from scdl.collection.manifest import is_url
from scdl.collection.members import Members
from scdl.collection.paths import has_manifest
from scdl.conversion.cell_names import CellNames, rename_cells
from scdl.conversion.comparison import check_copied, check_unchanged
from scdl.conversion.concatenation import concatenate
from scdl.dataset.reader import CellReader
from scdl.errors import CollectionError
from storage_backends import registry
from storage_backends.base import ArrayStore
from storage_backends.registry import is_within


def tables_of_cells(members: Members, cell_names: CellNames) -> Sequence[TableSource]:
    """The obs of each member, with the new names of cells; see :func:`rename_cells`."""
    return rename_cells(members.obs, [record.path for record in members.records], cell_names)


def check_target(members: Members, directory: str | None, path: str) -> None:
    """CollectionError where members cannot be written to a path.

    Parameters
    ----------
    directory
        Of the collection; None if it is a list of paths.
    """
    if not members:
        raise CollectionError(
            f"{directory or 'the collection'}: there are no members to flatten; add archives first"
        )
    for record in members.records:
        if is_url(record.path):
            continue
        if is_within(path, record.path) or is_within(record.path, path):
            raise CollectionError(
                f"{path}: this path is inside the member {record.path}, or contains it, and "
                "both would be replaced or removed together; choose a path outside"
            )
    if directory is not None and is_within(path, directory) and not has_manifest(directory):
        raise CollectionError(
            f"{path}: at this path the archive would become a member of the collection itself; "
            f"choose a path outside {directory}, or call save_manifest() first"
        )


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
        check_unchanged(store, identity)
        check_copied(store, flat, int(start), table)
