"""Random assignment of cells and groups to the parts of a split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
        part_of = np.empty(n, np.uint8)
        for number, cells in enumerate(_positions_by_code(_fill_missing(self.strata))):
            part_of[cells] = _assign_by_shares(len(cells), self.shares, self.seed, 1, number)
        return part_of

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
        for seed, stratum_groups in self._strata_of(rest, group_of):
            self._draw_groups(stratum_groups, counts, part_of_group, seed)
        # Cells of the control have no part yet.
        of_group = np.where(part_of_group < 0, NO_PART, part_of_group).astype(np.uint8)
        part_of: NDArray[np.uint8] = of_group[group_of]
        if control is not None:
            n_parts = len(self.shares) + len(held_out)
            self._assign_controls(np.flatnonzero(group_of == control), part_of, n_parts)
        return part_of

    def _strata_of(
        self, groups: NDArray[np.int64], group_of: NDArray[np.int64]
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield a seed and the groups of each stratum."""
        if self.strata is None:
            yield self.seed, groups
            return
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
        for stratum in np.unique(least[groups]).tolist():
            yield hashing.mixed(self.seed, 2, stratum), groups[least[groups] == stratum]

    def _draw_groups(
        self,
        groups: NDArray[np.int64],
        counts: NDArray[np.int64],
        part_of_group: NDArray[np.int64],
        seed: int,
    ) -> None:
        """Assign groups in random order to the part that lacks most cells; no part stays empty."""
        wanted = self.shares * counts[groups].sum()
        empty = np.ones(len(self.shares), bool)
        for done, at in enumerate(orders.Random().positions(len(groups), seed, 0)[:]):
            group, n_left = groups[at], len(groups) - done
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
        for number, positions in enumerate(_positions_by_code(strata)):
            chosen = cells[positions]
            part_of[chosen] = _assign_by_shares(len(chosen), shares, self.seed, 3, number)
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


def _assign_by_shares(n: int, shares: NDArray[np.float64], *key: int) -> NDArray[np.uint8]:
    """Shuffle `n` cells and cut them by shares; rounding is random, and less than one cell."""
    seed = hashing.mixed(*key)
    offset = hashing.mixed(seed, 0) * 2.0**-64
    return _assign(n, np.floor(np.cumsum(shares)[:-1] * n + offset), seed)


def _fill_missing(codes: NDArray[Any]) -> NDArray[Any]:
    """Codes with missing ones (-1) replaced by a new code."""
    new = int(codes.max(initial=-1)) + 1
    filled = codes.astype(narrow_type(new + 1))
    filled[filled < 0] = new
    return filled


def _positions_by_code(codes: NDArray[Any]) -> list[NDArray[np.int64]]:
    """The positions of each code that occurs."""
    cells, counts = cells_by_code(codes)
    return [part for part in np.split(cells, np.cumsum(counts)[:-1]) if len(part)]
