"""Random assignment of cells and groups to the parts of a split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.errors import SplitError
from scdl.kernels import hashing
from scdl.training import orders
from scdl.training.grouping import Groups, cells_by_code
from scdl.training.vocabulary import CELLS_AT_ONCE, narrow_type

#: Code of cells that are in no part.
NO_PART = 255
#: Cells of a stratum up to which it is drawn together with others.
_FEW_CELLS = 1 << 12


@dataclass(frozen=True)
class Drawing:
    """Assigns cells and groups at random to parts, which are numbered from 0.

    Parameters
    ----------
    shares
        Share of each drawn part; held-out parts are numbered after them.
    strata
        Stratum code of each cell; None: no strata.
    seed
        Seed of the assignment.
    """

    shares: NDArray[np.float64]
    strata: NDArray[Any] | None
    seed: int

    def by_cell(self, n: int) -> NDArray[np.uint8]:
        """Part of each cell, drawn cell by cell."""
        if self.strata is None:
            edges = np.rint(np.cumsum(self.shares)[:-1] * n)
            return _assign(n, edges, self.seed)
        return _assign_each(_fill_missing(self.strata), self.shares, self.seed, 1)

    def by_group(
        self, groups: Groups, control: int | None, held_out: Mapping[str, list[int]]
    ) -> NDArray[np.uint8]:
        """Part of each cell; every group is in one part only, except for the controls."""
        # Cells without a group form a group.
        group_of = _fill_missing(groups.values)
        part_of_group = np.full(group_of.max(initial=-1) + 1, -1)
        for number, codes in enumerate(held_out.values(), len(self.shares)):
            for code in codes:
                if part_of_group[code] >= 0 or code == control:
                    assert groups.names is not None
                    label = groups.names[code]
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
                "for other parts, or name all groups in held_out"
            )
        for groups_of_stratum in self._in_random_order(rest, group_of):
            self._draw_groups(groups_of_stratum, counts, part_of_group)
        # Cells of the control have no part yet.
        of_group = np.where(part_of_group < 0, NO_PART, part_of_group).astype(np.uint8)
        part_of: NDArray[np.uint8] = of_group[group_of]
        if control is not None:
            n_parts = len(self.shares) + len(held_out)
            self._assign_controls(np.flatnonzero(group_of == control), part_of, n_parts)
        return part_of

    def _in_random_order(
        self, groups: NDArray[np.int64], group_of: NDArray[np.int64]
    ) -> list[NDArray[np.int64]]:
        """The groups of each stratum, in random order."""
        if self.strata is None:
            return [groups[orders.Random().positions(len(groups), self.seed, 0)[:]]]
        strata = _fill_missing(self.strata)
        least = np.full(group_of.max(initial=-1) + 1, np.iinfo(np.int64).max)
        most = np.full(len(least), -1)
        np.minimum.at(least, group_of, strata)
        np.maximum.at(most, group_of, strata)
        mixed = (least != most)[groups]
        if mixed.any():
            cell = int(np.flatnonzero(group_of == groups[mixed.argmax()])[0])
            raise SplitError(
                f"the group of cell {cell} and {int(mixed.sum()) - 1} others have cells of several "
                "strata, and cannot be both in one part and stratified; leave out by= or stratify="
            )
        shuffled = groups[
            np.lexsort((hashing.hashed(groups, hashing.mixed(self.seed, 2)), least[groups]))
        ]
        return np.split(shuffled, np.flatnonzero(np.diff(least[shuffled])) + 1)

    def _draw_groups(
        self,
        groups: NDArray[np.int64],
        counts: NDArray[np.int64],
        part_of_group: NDArray[np.int64],
    ) -> None:
        """Assign groups, one after the other, to the part that lacks most; no part stays empty."""
        wanted = self.shares * counts[groups].sum()
        empty = np.ones(len(self.shares), bool)
        for done, group in enumerate(groups):
            n_left = len(groups) - done
            part = int(np.where(empty if n_left <= empty.sum() else True, wanted, -np.inf).argmax())
            part_of_group[group], empty[part] = part, False
            wanted[part] -= counts[group]

    def _assign_controls(
        self, cells: NDArray[np.int64], part_of: NDArray[np.uint8], n_parts: int
    ) -> None:
        """Assign controls to every part, in proportion to its other cells."""
        others = np.bincount(part_of, minlength=NO_PART + 1)[:n_parts]
        if len(cells) < n_parts:
            raise SplitError(
                f"there are {len(cells)} controls for {n_parts} parts; use fewer parts"
            )
        if not others.all():
            raise SplitError("a part would hold only controls: there are too few other groups")
        shares = others / others.sum()
        strata = np.zeros(len(cells), np.int64)
        if self.strata is not None:
            strata = _fill_missing(self.strata)[cells]
        part_of[cells] = _assign_each(strata, shares, self.seed, 3)
        for part in range(n_parts):
            counts = np.bincount(part_of[cells], minlength=n_parts)
            if not counts[part]:
                part_of[cells[part_of[cells] == counts.argmax()][0]] = part


def _assign(n: int, edges: NDArray[np.float64], seed: int) -> NDArray[np.uint8]:
    """Shuffle `n` cells and cut them at `edges`; the part of each cell."""
    part_of = np.empty(n, np.uint8)
    positions = orders.Random().positions(n, seed, 0)
    for start, stop in csr.spans(n, CELLS_AT_ONCE):
        parts = np.searchsorted(edges, np.arange(start, stop), side="right")
        part_of[positions[start:stop]] = parts
    return part_of


def _assign_each(
    codes: NDArray[Any], shares: NDArray[np.float64], seed: int, purpose: int
) -> NDArray[np.uint8]:
    """Part of each cell, drawn among the cells of its code: those are shuffled and cut by shares.

    Rounding is random, and less than one cell.
    """
    cells, counts = cells_by_code(codes)
    counts = counts[counts > 0]
    stops = np.cumsum(counts)
    key = hashing.mixed(seed, purpose)
    seeds = hashing.hashed(np.arange(len(counts)), key)
    offsets = hashing.uniform(hashing.hashed(seeds.view(np.int64), 0))
    edges = np.floor(np.outer(counts, np.cumsum(shares)[:-1]) + offsets[:, None])
    part_of = np.empty(len(codes), np.uint8)
    is_large = counts > _FEW_CELLS
    for i in np.flatnonzero(is_large).tolist():
        chosen = cells[stops[i] - counts[i] : stops[i]]
        part_of[chosen] = _assign(len(chosen), edges[i], int(seeds[i]))
    small = np.flatnonzero(~is_large)
    # Thousands of codes are drawn together.
    ends = np.flatnonzero(np.diff(np.cumsum(counts[small]) // CELLS_AT_ONCE)) + 1
    for some in np.split(small, ends):
        sizes = counts[some]
        number = np.repeat(some, sizes)
        rank = np.arange(len(number)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        chosen = cells[(stops - counts)[number] + rank]
        shuffled = chosen[np.lexsort((hashing.hashed(chosen, key), number))]
        part_of[shuffled] = (rank[:, None] >= edges[number]).sum(axis=1)
    return part_of


def _fill_missing(codes: NDArray[Any]) -> NDArray[Any]:
    """Codes with missing ones (-1) replaced by a new code."""
    new = int(codes.max(initial=-1)) + 1
    filled = codes.astype(narrow_type(new + 1))
    filled[filled < 0] = new
    return filled
