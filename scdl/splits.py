"""Splits of a dataset into training, validation and test cells."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scdl import samplers
from scdl.errors import SplitError
from scdl.rows import CellReader
from scdl.vocabulary import codes
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
    """Disjoint parts of the cells of a dataset, by name; each rising rows, int64.

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
        self._parts, self.n_obs, self.how = dict(parts), n_obs, dict(how)

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
        beside = f"{path}.{os.getpid()}.part"
        try:
            with open(beside, "wb") as file:
                text = np.frombuffer(json.dumps(about).encode(), np.uint8)
                np.savez_compressed(file, part_of=part_of, about=text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(beside)

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


def split(
    dataset: CellReader,
    fractions: Mapping[str, float] | Sequence[float],
    *,
    by: str | None = None,
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
        Column of obs, such as the donor, of which each value is to be in one part only; drawn one
        after the other, they go where most is missing. Default: cells are drawn one by one.
    seed
        Of the drawing.

    Returns
    -------
    Splits
        The same whenever dataset and arguments are the same.

    Raises
    ------
    SplitError
        The fractions are no shares, or a part would be empty.
    FeatureNotFoundError, ColumnTypeError
        There is no such column, or it holds no labels.
    """
    if not isinstance(fractions, Mapping):
        if len(fractions) > len(_NAMES):
            raise SplitError(f"more than {len(_NAMES)} fractions need names: {{name: fraction}}")
        fractions = dict(zip(_NAMES, fractions, strict=False))
    shares = np.array([float(share) for share in fractions.values()])
    if not 0 < len(shares) < _NO_PART or (shares <= 0).any() or not np.isclose(shares.sum(), 1):
        raise SplitError(f"fractions must be positive and sum to 1, not {dict(fractions)}")
    n = dataset.n_obs
    part_of = _by_cell(n, shares, seed) if by is None else _by_group(dataset, by, shares, seed)
    parts = {name: np.flatnonzero(part_of == i) for i, name in enumerate(fractions)}
    empty = [name for name, rows in parts.items() if len(rows) == 0]
    if empty:
        raise SplitError(
            f"the part {empty[0]!r} would be empty: there are too few "
            + ("cells" if by is None else f"values of {by!r}")
        )
    how = {"fractions": {k: float(v) for k, v in fractions.items()}, "by": by, "seed": int(seed)}
    return Splits(parts, n, how)


def _by_cell(n: int, shares: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    edges = np.rint(np.cumsum(shares)[:-1] * n).astype(np.int64)
    order = samplers.Random().positions(n, seed, 0)[:]
    part_of = np.empty(n, np.int64)
    part_of[order] = np.searchsorted(edges, np.arange(n), side="right")
    return part_of


def _by_group(
    dataset: CellReader, by: str, shares: NDArray[np.float64], seed: int
) -> NDArray[np.int64]:
    """Groups in random order, each to the part that lacks most cells, but some to every part.

    Cells without a group are one of their own.
    """
    groups = codes(dataset, by).values
    groups = np.where(groups < 0, groups.max(initial=-1) + 1, groups)
    counts = np.bincount(groups)
    there = np.flatnonzero(counts)
    wanted = shares * len(groups)
    empty = np.ones(len(shares), bool)
    part_of = np.zeros(len(counts), np.int64)
    for left, at in enumerate(samplers.Random().positions(len(there), seed, 0)[:]):
        group = there[at]
        n_left = len(there) - left
        part = int(np.where(empty if n_left <= empty.sum() else True, wanted, -np.inf).argmax())
        part_of[group], empty[part] = part, False
        wanted[part] -= counts[group]
    found: NDArray[np.int64] = part_of[groups]
    return found
