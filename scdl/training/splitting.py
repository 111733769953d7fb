"""Dividing the cells of a dataset into training, validation and test cells."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scdl.archive import csr
from scdl.dataset.reader import CellReader, as_cells
from scdl.errors import OptionError, ScdlWarning, SplitError
from scdl.training.grouping import group_cells
from scdl.training.lazy_positions import digest
from scdl.training.split_drawing import NO_PART, Drawing
from scdl.training.splits import Splits

_DEFAULT_PARTS = ("train", "validation", "test")


def split(
    dataset: CellReader,
    fractions: Mapping[str, float] | Sequence[float] = (),
    *,
    by: str | Sequence[str] | None = None,
    stratify: str | Sequence[str] | None = None,
    held_out: Mapping[str, Any] | None = None,
    control: Any = None,
    rows: csr.Rows | None = None,
    seed: int = 0,
) -> Splits:
    """Divide the cells of a dataset at random, by cell or by group.

    Parameters
    ----------
    dataset
        Dataset or collection to split.
    fractions
        Share of each part, with sum 1: by name, or of ``train``, ``validation`` and ``test``.
    by
        Column of obs, such as the donor, or several; each value (or combination of values) is in
        one part only. Groups are drawn in random order, and each is assigned to the part that
        lacks most cells; cells without a value are a group. Without `fractions` and `held_out`,
        each value is a part, named by it, and cells without a value are in no part. Default: cells
        are drawn one by one.
    stratify
        Column of obs, or several; each part gets its share of the cells of every value (or
        combination of values). With `by`, all cells of a group must have the same value.
    held_out
        Parts that consist of given groups, such as ``{"test": ["d3", "d7"]}``; `fractions` are
        those of the other parts. Labels are values of `by`, or tuples of values if `by` is several
        columns.
    control
        The group of the controls, a value of `by`: its cells are in every part, in proportion to
        the other cells of the part.
    rows
        Cells to divide, as for ``read_rows``, such as those of ``dataset.where(…)``; the others are
        in no part. Default: all.
    seed
        Seed of the random split.

    Returns
    -------
    Splits
        The split; it depends only on the dataset and the arguments.

    Raises
    ------
    SplitError
        The fractions are invalid, a part would be empty, a group does not exist, or options
        contradict each other.
    FeatureNotFoundError, ColumnTypeError
        There is no such column, or it holds no labels.
    RowIndexError
        `rows` are not cells of the dataset.

    Examples
    --------
    >>> parts = scdl.split(data, {"train": 0.6, "test": 0.4}, by="donor", seed=0)
    >>> {name: len(rows) for name, rows in parts.items()}
    {'train': 4, 'test': 2}
    >>> set(data.obs["donor"].iloc[parts["test"]])
    {'d3'}
    """
    if by is not None and not fractions and held_out is control is stratify is None:
        return _split_by_value(dataset, by, rows)
    shares = _shares(fractions)
    parts = _lists(held_out, several=not isinstance(by, str) and len(by or ()) > 1)
    names = [*shares, *parts]
    if not 0 < len(names) < NO_PART:
        raise SplitError(f"fractions must be positive and sum to 1, not {fractions!r}")
    if len(set(names)) < len(names):
        raise SplitError(
            f"a part must be in fractions or in held_out, not in both: {', '.join(names)}"
        )
    if by is None and (held_out is not None or control is not None):
        raise SplitError("held_out= and control= name groups of cells, and require by=")
    n = as_cells(dataset).n_obs
    at = None if rows is None else np.unique(csr.positions(rows, n))
    try:
        strata = None
        if stratify is not None:
            strata = group_cells(dataset, stratify, "stratify", at).values
        groups = None if by is None else group_cells(dataset, by, rows=at)
        control_code = None
        if groups is not None and control is not None:
            control_code = groups.code_of(control, "control")
        held_out_codes = {
            part: [groups.code_of(label, "held_out") for label in labels]
            for part, labels in parts.items()
            if groups is not None
        }
    except OptionError as error:
        raise SplitError(str(error)) from error
    drawing = Drawing(np.array(list(shares.values())), strata, int(seed))
    if groups is None:
        part_of = drawing.by_cell(n if at is None else len(at))
    else:
        part_of = drawing.by_group(groups, control_code, held_out_codes)
    found = {name: np.flatnonzero(part_of == i) for i, name in enumerate(names)}
    if at is not None:
        found = {name: at[positions] for name, positions in found.items()}
    empty = [name for name, part_rows in found.items() if len(part_rows) == 0]
    if empty:
        raise SplitError(
            f"the part {empty[0]!r} would be empty: there are too few "
            + ("cells" if by is None else f"values of {by!r}")
        )
    how: dict[str, Any] = {"fractions": shares, "by": _to_json(by), "seed": int(seed)}
    more = {"stratify": _to_json(stratify), "held_out": _to_json(parts) or None, "control": control}
    if at is not None:
        more["rows"] = digest(at)
    how.update({name: _to_json(value) for name, value in more.items() if value is not None})
    return Splits(found, n, how, copy=False)


def _split_by_value(dataset: CellReader, by: str | Sequence[str], rows: csr.Rows | None) -> Splits:
    """A part for each value of a column, or combination of values of several."""
    n = as_cells(dataset).n_obs
    at = np.arange(n) if rows is None else np.unique(csr.positions(rows, n))
    found = {label: at[i] for label, i in group_cells(dataset, by, rows=at).cells().items()}
    if not 0 < len(found) < NO_PART:
        raise SplitError(
            f"by={by!r}: there are {len(found)} values with cells, expected 1 to {NO_PART - 1} to "
            "make a part of each; give fractions= to draw parts of many values"
        )
    if without := len(at) - sum(map(len, found.values())):
        warnings.warn(
            f"{dataset!r}: {without:,} cells have no value of {by!r}, and are in no part",
            ScdlWarning,
            stacklevel=3,
        )
    how = {"by": _to_json(by)} | ({} if rows is None else {"rows": digest(at)})
    return Splits(found, n, how, copy=False)


def _shares(fractions: Mapping[str, float] | Sequence[float]) -> dict[str, float]:
    """Share of each part by name."""
    if isinstance(fractions, int | float | str):
        raise SplitError(
            f"fractions must be one share per part, such as (0.8, 0.2), not {fractions!r}"
        )
    if not isinstance(fractions, Mapping):
        if len(fractions) > len(_DEFAULT_PARTS):
            raise SplitError(
                f"more than {len(_DEFAULT_PARTS)} fractions need names: {{name: fraction}}"
            )
        fractions = dict(zip(_DEFAULT_PARTS, fractions, strict=False))
    shares = {name: float(share) for name, share in fractions.items()}
    if shares and (min(shares.values()) <= 0 or not np.isclose(sum(shares.values()), 1)):
        raise SplitError(f"fractions must be positive and sum to 1, not {dict(fractions)}")
    return shares


def _lists(held_out: Mapping[str, Any] | None, *, several: bool) -> dict[str, list[Any]]:
    """Labels of each held-out part as a list; with several columns a tuple is one label."""
    if held_out is not None and not isinstance(held_out, Mapping):
        raise SplitError(f"held_out must be {{part: labels}}, not {held_out!r:.200}")
    lists = (
        (list, set, frozenset, np.ndarray) if several else (tuple, list, set, frozenset, np.ndarray)
    )
    return {
        part: list(labels) if isinstance(labels, lists) else [labels]
        for part, labels in (held_out or {}).items()
    }


def _to_json(value: Any) -> Any:
    """Labels and names as types that JSON supports."""
    if isinstance(value, Mapping):
        return {str(name): _to_json(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
