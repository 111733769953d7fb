"""Many archives written as one, and checked before their sources may go."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scdl.comparison import check_copied
from scdl.concatenate import concatenate
from scdl.dataset import SingleCellDataset
from scdl.errors import CollectionError
from scdl.members import MemberObs, Members
from scdl.schema import INDEX
from storage_backends import registry

#: Names of cells: as they are, each once in all members, or with the name of their member in front.
CellNames = Literal["keep", "unique", "prefix"]

_NAMES_AT_ONCE = 1 << 16


def write_flat(
    members: Members,
    path: str,
    *,
    backend: str | None,
    cell_names: CellNames,
    chunk_bytes: int,
    options: dict[str, Any],
) -> None:
    """Write all members as one archive.

    Raises
    ------
    CollectionError
        Names of cells are asked to be unique, and are not.
    """
    if cell_names not in CellNames.__args__:  # type: ignore[attr-defined]
        raise CollectionError(
            f"cell_names must be 'keep', 'unique' or 'prefix', not {cell_names!r}"
        )
    prefixes = [_prefix(members, i, cell_names) for i in range(len(members))]
    obs = [MemberObs(members, i, None, prefix) for i, prefix in enumerate(prefixes)]
    if cell_names != "keep":
        _check_unique(members, prefixes)
    with registry.for_target(path, backend).create(path, **options) as writer:
        concatenate(members.stores(), writer, chunk_bytes=chunk_bytes, obs=obs)


def verify(members: Members, path: str, cell_names: CellNames) -> None:
    """Compare an archive with the members it was made of; see :func:`check_copied`."""
    flat = SingleCellDataset(path).store
    for i, store in enumerate(members.stores()):
        obs = MemberObs(members, i, None, _prefix(members, i, cell_names))
        check_copied(store, flat, int(members.starts[i]), obs)


def _prefix(members: Members, number: int, cell_names: CellNames) -> str:
    return f"{members.names[number]}-" if cell_names == "prefix" else ""


def _check_unique(members: Members, prefixes: list[str]) -> None:
    """CollectionError where two cells have one name; eight bytes a cell of memory."""
    from pandas.util import hash_array

    parts = [hash_array(names) for _, names in _names(members, prefixes)]
    hashes = np.sort(np.concatenate(parts)) if parts else np.empty(0, np.uint64)
    suspected = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    if len(suspected) == 0:
        return
    # Different names may have one hash.
    seen: dict[str, int] = {}
    for number, names in _names(members, prefixes):
        for name in names[np.isin(hash_array(names), suspected)].tolist():
            if name in seen:
                where = members.records[seen[name]].path, members.records[number].path
                raise CollectionError(
                    f"the cell name {name!r} is in {where[0]} and in {where[1]}; "
                    "cell_names='prefix' puts the name of its member before each"
                    if where[0] != where[1]
                    else f"the cell name {name!r} is in {where[0]} more than once; "
                    "cell_names='keep' takes names as they are"
                )
            seen[name] = number


def _names(members: Members, prefixes: list[str]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Names of cells, some at a time, with the number of their member."""
    for number, prefix in enumerate(prefixes):
        table = MemberObs(members, number, [INDEX], prefix)
        if INDEX not in table.schema.names:
            continue
        for start in range(0, table.num_rows, _NAMES_AT_ONCE):
            batch = table.read(start, min(start + _NAMES_AT_ONCE, table.num_rows))
            yield number, batch.column(INDEX).drop_null().to_numpy(zero_copy_only=False)


def is_within(path: str, directory: str) -> bool:
    """Whether a path is a directory, or below it."""
    path, directory = os.path.realpath(path), os.path.realpath(directory)
    return path == directory or path.startswith(directory + os.sep)
