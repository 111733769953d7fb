"""Appending archives to another: their obs meanwhile, and their removal afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from scdl.archive.tables import TableSource
from scdl.conversion.cell_names import CellNames, rename_cells
from scdl.conversion.comparison import check_copied
from scdl.conversion.concatenation import obs_tables
from scdl.conversion.removal import check_removable, open_for_check
from scdl.dataset.opened import OpenedArchive
from scdl.dataset.reader import CellReader
from scdl.errors import CollectionError
from storage_backends.base import ArrayStore
from storage_backends.paths import Path, absolute


def is_at(store: ArrayStore, path: Path) -> bool:
    """Whether an archive stands at a path."""
    path = absolute(path)
    return path == store.path or os.path.realpath(path) == store.path


def archives(datasets: OpenedArchive | Iterable[OpenedArchive]) -> list[OpenedArchive]:
    """One dataset or several, as several; CollectionError for anything else."""
    # Datasets are iterable, too: over their cells.
    several = isinstance(datasets, Iterable) and not isinstance(datasets, CellReader | str)
    given: list[Any] = [*datasets] if several else [datasets]  # type: ignore[misc]
    for one in given:
        if not isinstance(one, OpenedArchive):
            raise CollectionError(
                f"expected open archives, as returned by scdl.open, found {one!r}; flatten a "
                "collection to one archive first"
            )
    return given


@contextmanager
def concatenated(
    stores: Sequence[ArrayStore], target: str, cell_names: CellNames, *, removes: bool, is_new: bool
) -> Iterator[Sequence[TableSource]]:
    """The obs of each archive, while they are written one after the other to `target`.

    Parameters
    ----------
    cell_names
        See :func:`~scdl.conversion.cell_names.rename_cells`.
    removes
        Whether all archives but the first are afterwards compared with the result and removed.
    is_new
        Whether nothing was at `target`, so that a result that is not right is removed.

    Raises
    ------
    CollectionError
        Names of cells are not unique; or the result lacks something of an archive that is to be
        removed. They stay.
    """
    first, *others = stores
    removed = {store.path: store for store in others} if removes else {}
    if removed:
        check_removable(list(removed.values()), [first.path, target])
    obs = rename_cells(partial(obs_tables, stores), [store.path for store in stores], cell_names)
    starts = [obs[0].num_rows]
    for table in obs[1:]:
        starts.append(starts[-1] + table.num_rows)
    yield obs
    if removed:
        with open_for_check(target, is_new=is_new) as (result,):
            for start, store, table in zip(starts, others, obs[1:], strict=False):
                check_copied(store, result, start, table)
        for store in removed.values():
            store.remove()
