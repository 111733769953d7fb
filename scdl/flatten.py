"""Many archives written as one, and checked before their sources may go."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scdl.concatenate import clean_rows, concatenate
from scdl.dataset import SingleCellDataset
from scdl.errors import CollectionError
from scdl.members import MemberObs, Members
from scdl.schema import INDEX, Info
from storage_backends import registry
from storage_backends.base import ArrayStore

#: Names of cells: as they are, each once in all members, or with the name of their member in front.
CellNames = Literal["keep", "unique", "prefix"]

_NAMES_AT_ONCE = 1 << 16
_VALUES_AT_ONCE = 1 << 20


class _Sums(NamedTuple):
    """What must be the same of cells wherever they are stored; sums modulo 2**64."""

    n_obs: int
    values: int
    data: int
    indices: int
    rows: int


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
    prefixes = [f"{name}-" if cell_names == "prefix" else "" for name in members.names]
    obs = [MemberObs(members, i, None, prefix) for i, prefix in enumerate(prefixes)]
    if cell_names != "keep":
        _check_unique(members, prefixes)
    with registry.for_target(path, backend).create(path, **options) as writer:
        concatenate(members.stores(), writer, chunk_bytes=chunk_bytes, obs=obs)


def verify(members: Members, path: str) -> None:
    """Compare an archive with the members it was made of: cells, values, and sums of each.

    Raises
    ------
    CollectionError
        They differ.
    """
    flat = SingleCellDataset(path)
    for i, store in enumerate(members.stores()):
        start, stop = members.starts[i : i + 2].tolist()
        there = Info.from_attrs(store.attrs, store.path)
        expected = _sums(store, there, 0, there.n_obs, flat.data_dtype)
        found = _sums(flat.store, flat.info, start, min(stop, flat.n_obs), flat.data_dtype)
        if found != expected:
            name = next(n for n in _Sums._fields if getattr(found, n) != getattr(expected, n))
            raise CollectionError(
                f"{path}: the cells of {store.path} are not what they were ({name}: "
                f"{getattr(expected, name)} became {getattr(found, name)}); the sources are kept"
            )
    if flat.n_obs != members.starts[-1]:
        raise CollectionError(
            f"{path}: expected {members.starts[-1]} cells, found {flat.n_obs}; the sources are kept"
        )


def _sums(store: ArrayStore, info: Info, start: int, stop: int, dtype: np.dtype[Any]) -> _Sums:
    """Counts and sums over rows, which do not depend on how they are read."""
    values, data, indices, lengths = 0, 0, 0, 0
    unit = np.dtype(f"u{dtype.itemsize}")
    row = 0
    for part in clean_rows(store, info, _VALUES_AT_ONCE, start, stop):
        n = len(part.indptr) - 1
        # Of the bits: sums of floats would depend on their order.
        data += int(part.data.astype(dtype, copy=False).view(unit).sum(dtype=np.uint64))
        indices += int(part.indices.sum(dtype=np.uint64))
        values += len(part.data)
        counts = np.diff(part.indptr).astype(np.uint64)
        lengths += int((counts * np.arange(row, row + n, dtype=np.uint64)).sum())
        row += n
    modulus = 1 << 64
    return _Sums(row, values, data % modulus, indices % modulus, lengths % modulus)


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
