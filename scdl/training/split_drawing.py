"""Dealing cells and groups out to the parts of a split, at random."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdl.errors import SplitError
from scdl.kernels import hashing
from scdl.training import orders
from scdl.training.grouping import Groups


@dataclass(frozen=True)
class Drawing:
    """How cells and groups are dealt out to parts, which are numbers from 0.

    Parameters
    ----------
    shares
        Of the parts that are drawn; those that are held out come after them.
    strata
        Stratum of each cell; None: all are of one.
    seed
        Of the drawing.
    """

    shares: NDArray[np.float64]
    strata: NDArray[Any] | None
    seed: int

    def by_cell(self, n: int) -> NDArray[np.int64]:
        """The part of each cell."""
        if self.strata is None:
            edges = np.rint(np.cumsum(self.shares)[:-1] * n)
            return _dealt(n, edges, self.seed)
        part_of = np.empty(n, np.int64)
        for number, cells in enumerate(_members(_with_missing(self.strata))):
            part_of[cells] = _dealt_fairly(len(cells), self.shares, self.seed, 1, number)
        return part_of

    def by_group(
        self, found: Groups, control: int | None, held_out: Mapping[str, list[int]]
    ) -> NDArray[np.int64]:
        """The part of each cell, of whose groups each is in one part, but for the controls."""
        # Cells without a group are one of their own.
        group_of = _with_missing(found.values)
        part_of_group = np.full(group_of.max(initial=-1) + 1, -1)
        for number, codes in enumerate(held_out.values(), len(self.shares)):
            for code in codes:
                if part_of_group[code] >= 0 or code == control:
                    assert found.names is not None
                    label = found.names[code]
                    raise SplitError(
                        f"held_out names the group {label!r} twice, or it is the control"
                    )
                part_of_group[code] = number
        counts = np.bincount(group_of, minlength=len(part_of_group))
        rest = np.flatnonzero((counts > 0) & (part_of_group < 0))
        rest = rest[rest != (-1 if control is None else control)]
        if len(rest) and not len(self.shares):
            raise SplitError(
                f"{counts[rest].sum()} cells of {len(rest)} groups are in no part; give fractions "
                "of other parts, or name all groups in held_out"
            )
        for seed, some in self._strata_of(rest, group_of):
            self._draw_groups(some, counts, part_of_group, seed)
        part_of = part_of_group[group_of]
        if control is not None:
            n_parts = len(self.shares) + len(held_out)
            self._deal_controls(np.flatnonzero(group_of == control), part_of, n_parts)
        return part_of

    def _strata_of(
        self, some: NDArray[np.int64], group_of: NDArray[np.int64]
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Groups of one stratum after the other, and a seed for each."""
        if self.strata is None:
            yield self.seed, some
            return
        strata = _with_missing(self.strata)
        least = np.full(group_of.max(initial=-1) + 1, np.iinfo(np.int64).max)
        most = np.full(len(least), -1)
        np.minimum.at(least, group_of, strata)
        np.maximum.at(most, group_of, strata)
        mixed = (least != most)[some]
        if mixed.any():
            cell = int(np.flatnonzero(group_of == some[mixed.argmax()])[0])
            raise SplitError(
                f"the group of cell {cell} and {int(mixed.sum()) - 1} others have cells of several "
                "strata, and cannot be both in one part and stratified; leave out by= or stratify="
            )
        for stratum in np.unique(least[some]).tolist():
            yield hashing.mixed(self.seed, 2, stratum), some[least[some] == stratum]

    def _draw_groups(
        self,
        some: NDArray[np.int64],
        counts: NDArray[np.int64],
        part_of_group: NDArray[np.int64],
        seed: int,
    ) -> None:
        """Groups in random order, each to the part that lacks most cells, but some to every."""
        wanted = self.shares * counts[some].sum()
        empty = np.ones(len(self.shares), bool)
        for left, at in enumerate(orders.Random().positions(len(some), seed, 0)[:]):
            group, n_left = some[at], len(some) - left
            part = int(np.where(empty if n_left <= empty.sum() else True, wanted, -np.inf).argmax())
            part_of_group[group], empty[part] = part, False
            wanted[part] -= counts[group]

    def _deal_controls(
        self, cells: NDArray[np.int64], part_of: NDArray[np.int64], n_parts: int
    ) -> None:
        """Controls to every part, in proportion to the other cells that it has."""
        others = np.bincount(part_of[part_of >= 0], minlength=n_parts)
        if len(cells) < n_parts:
            raise SplitError(f"there are {len(cells)} controls for {n_parts} parts; take fewer")
        if not others.all():
            raise SplitError("a part would have controls alone: there are too few other groups")
        shares = others / others.sum()
        strata = np.zeros(len(cells), np.int64)
        if self.strata is not None:
            strata = _with_missing(self.strata)[cells]
        for number, some in enumerate(_members(strata)):
            chosen = cells[some]
            part_of[chosen] = _dealt_fairly(len(chosen), shares, self.seed, 3, number)
        for part in range(n_parts):
            counts = np.bincount(part_of[cells], minlength=n_parts)
            if not counts[part]:
                part_of[cells[part_of[cells] == counts.argmax()][0]] = part


def _dealt(n: int, edges: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    """Parts of so many cells in random order, of which each part ends at an edge."""
    part_of = np.empty(n, np.int64)
    order = orders.Random().positions(n, seed, 0)[:]
    part_of[order] = np.searchsorted(edges, np.arange(n), side="right")
    return part_of


def _dealt_fairly(n: int, shares: NDArray[np.float64], *key: int) -> NDArray[np.int64]:
    """The same by shares, none of which is missed by a whole cell, nor always in one direction."""
    seed = hashing.mixed(*key)
    offset = hashing.mixed(seed, 0) * 2.0**-64
    return _dealt(n, np.floor(np.cumsum(shares)[:-1] * n + offset), seed)


def _with_missing(codes: NDArray[Any]) -> NDArray[np.int64]:
    """Codes, with one more for those that have none."""
    return np.where(codes < 0, codes.max(initial=-1) + 1, codes).astype(np.int64)


def _members(codes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The positions of each code that occurs."""
    order = np.argsort(codes, kind="stable")
    return [part for part in np.split(order, np.cumsum(np.bincount(codes))[:-1]) if len(part)]
