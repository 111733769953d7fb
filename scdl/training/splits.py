"""Splits of a dataset into training, validation and test cells."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scdl.dataset.reader import CellReader, as_cells
from scdl.errors import OptionError, SplitError
from scdl.training.grouping import groups
from scdl.training.split_drawing import Drawing
from storage_backends.directory import publication
from storage_backends.paths import path_of

_FORMAT = "scdl split 1"
#: Of cells that are in no part.
_NO_PART = 255
_NAMES = ("train", "validation", "test")
#: What NumPy and zipfile raise of a file that is no split.
_DAMAGE = (
    OSError, EOFError, ValueError, TypeError, KeyError, RuntimeError, zlib.error,
    zipfile.BadZipFile,
)  # fmt: skip


class Splits(Mapping[str, NDArray[np.int64]]):
    """Disjoint parts of the cells of a dataset, by name; each rising rows, int64, read-only.

    Attributes
    ----------
    n_obs
        Cells of the dataset.
    how
        What the split was made with.
    """

    def __init__(
        self, parts: Mapping[str, NDArray[np.int64]], n_obs: int, how: Mapping[str, Any]
    ) -> None:
        self.n_obs, self.how = n_obs, dict(how)
        # Copies that stay as they are: who shuffles one shuffles a copy of it.
        self._parts = {name: _frozen(rows) for name, rows in parts.items()}

    def __getitem__(self, name: str) -> NDArray[np.int64]:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {len(rows):,}" for name, rows in self.items())
        return f"Splits({sizes}; {self.hash})"

    @property
    def hash(self) -> str:
        """Tells whether two splits have the same cells in the same parts."""
        digest = hashlib.sha256(str(self.n_obs).encode())
        for name, rows in self.items():
            digest.update(f"{name}{len(rows)}".encode() + rows.astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the split as an npz archive of NumPy; replaces what is there, atomically."""
        part_of = np.full(self.n_obs, _NO_PART, np.uint8)
        for i, rows in enumerate(self.values()):
            part_of[rows] = i
        about = {"format": _FORMAT, "hash": self.hash, "parts": list(self), "how": self.how}
        path = path_of(path, "where the split goes, as a path")
        text = np.frombuffer(json.dumps(about).encode(), np.uint8)
        with publication.new_file(path) as part, open(part, "wb") as file:
            np.savez_compressed(file, part_of=part_of, about=text)

    @classmethod
    def load(cls, path: str | os.PathLike[str], dataset: CellReader | None = None) -> Self:
        """Read a split, of `dataset` where one is given.

        Raises
        ------
        SplitError
            The file is no split, is damaged, or is of another dataset.
        """
        where = path_of(path, "the path of a split")
        try:
            with open(where, "rb") as file, np.load(file, allow_pickle=False) as stored:
                part_of, about = stored["part_of"], json.loads(stored["about"].tobytes())
            parts = {str(n): np.flatnonzero(part_of == i) for i, n in enumerate(about["parts"])}
            splits = cls(parts, len(part_of), about["how"])
            sound = about["format"] == _FORMAT and about["hash"] == splits.hash
        except FileNotFoundError as error:
            raise SplitError(f"{where}: there is no split here") from error
        except _DAMAGE as error:
            raise SplitError(f"{where}: this is no split: {error!r}") from error
        if not sound:
            raise SplitError(f"{where}: the split was changed or is damaged; make it again")
        if dataset is not None and dataset.n_obs != splits.n_obs:
            raise SplitError(
                f"{where}: the split is of {splits.n_obs} cells, the dataset has {dataset.n_obs}"
            )
        return splits


def _frozen(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    rows = np.array(rows)
    rows.flags.writeable = False
    return rows


def split(
    dataset: CellReader,
    fractions: Mapping[str, float] | Sequence[float] = (),
    *,
    by: str | Sequence[str] | None = None,
    stratify: str | Sequence[str] | None = None,
    held_out: Mapping[str, Any] | None = None,
    control: Any = None,
    seed: int = 0,
) -> Splits:
    """Divide the cells of a dataset at random, by cell or by group.

    Parameters
    ----------
    dataset
        The cells.
    fractions
        Share of each part, in sum 1: by name, or of ``train``, ``validation`` and ``test``.
    by
        Column of obs, such as the donor, of which each value is to be in one part only; of several
        columns each combination of values. Drawn one after the other, they go where most is
        missing. Default: cells are drawn one by one.
    stratify
        Column of obs, or several, of whose values (combinations) each part gets its share. With
        `by` all cells of a group must have the same.
    held_out
        Parts that consist of groups by name, such as ``{"test": ["d3", "d7"]}``; `fractions` are
        those of the others. Labels are values of `by`, tuples of them for several columns.
    control
        The group of the controls, a value of `by`: its cells are in every part, in proportion to
        the other cells there.
    seed
        Of the drawing.

    Returns
    -------
    Splits
        The same whenever dataset and arguments are the same.

    Raises
    ------
    SplitError
        The fractions are no shares, a part would be empty, a group is not there, or options
        contradict each other.
    FeatureNotFoundError, ColumnTypeError
        There is no such column, or it holds no labels.
    """
    shares = _shares(fractions)
    parts = _lists(held_out, several=not isinstance(by, str) and len(by or ()) > 1)
    names = [*shares, *parts]
    if not 0 < len(names) < _NO_PART:
        raise SplitError(f"fractions must be positive and sum to 1, not {fractions!r}")
    if len(set(names)) < len(names):
        raise SplitError(f"a part is in fractions or held_out, not both: {', '.join(names)}")
    if by is None and (held_out is not None or control is not None):
        raise SplitError("held_out= and control= are groups of cells, and need by=")
    n = as_cells(dataset).n_obs
    try:
        strata = groups(dataset, stratify, "stratify").values if stratify is not None else None
        found = None if by is None else groups(dataset, by)
        of_control = None if found is None or control is None else found.code_of(control, "control")
        given = {
            part: [found.code_of(label, "held_out") for label in labels]
            for part, labels in parts.items()
            if found is not None
        }
    except OptionError as error:
        raise SplitError(str(error)) from error
    drawing = Drawing(np.array(list(shares.values())), strata, int(seed))
    part_of = drawing.by_cell(n) if found is None else drawing.by_group(found, of_control, given)
    rows = {name: np.flatnonzero(part_of == i) for i, name in enumerate(names)}
    empty = [name for name, of_part in rows.items() if len(of_part) == 0]
    if empty:
        raise SplitError(
            f"the part {empty[0]!r} would be empty: there are too few "
            + ("cells" if by is None else f"values of {by!r}")
        )
    how: dict[str, Any] = {"fractions": shares, "by": _plain(by), "seed": int(seed)}
    more = {"stratify": _plain(stratify), "held_out": _plain(parts) or None, "control": control}
    how.update({name: _plain(value) for name, value in more.items() if value is not None})
    return Splits(rows, n, how)


def _shares(fractions: Mapping[str, float] | Sequence[float]) -> dict[str, float]:
    """Share of each part by name."""
    if isinstance(fractions, int | float | str):
        raise SplitError(
            f"fractions are a share for each part, such as (0.8, 0.2), not {fractions!r}"
        )
    if not isinstance(fractions, Mapping):
        if len(fractions) > len(_NAMES):
            raise SplitError(f"more than {len(_NAMES)} fractions need names: {{name: fraction}}")
        fractions = dict(zip(_NAMES, fractions, strict=False))
    shares = {name: float(share) for name, share in fractions.items()}
    if shares and (min(shares.values()) <= 0 or not np.isclose(sum(shares.values()), 1)):
        raise SplitError(f"fractions must be positive and sum to 1, not {dict(fractions)}")
    return shares


def _lists(held_out: Mapping[str, Any] | None, *, several: bool) -> dict[str, list[Any]]:
    """Labels of the groups of each part; by several columns a tuple is one label."""
    if held_out is not None and not isinstance(held_out, Mapping):
        raise SplitError(f"held_out must be {{part: labels}}, not {held_out!r:.200}")
    lists = (
        (list, set, frozenset, np.ndarray) if several else (tuple, list, set, frozenset, np.ndarray)
    )
    return {
        part: list(labels) if isinstance(labels, lists) else [labels]
        for part, labels in (held_out or {}).items()
    }


def _plain(value: Any) -> Any:
    """Labels and names as JSON has them."""
    if isinstance(value, Mapping):
        return {str(name): _plain(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
