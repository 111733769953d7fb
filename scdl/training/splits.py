"""Splits of a dataset: named parts of its cells, saved in a file or written as archives."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from scdl.dataset.reader import CellReader
from scdl.errors import SplitError
from scdl.training.split_drawing import NO_PART
from storage_backends.directory import publication
from storage_backends.paths import Path, path_of

if TYPE_CHECKING:
    from scdl.conversion.reporting import ConversionReport
    from scdl.dataset.dataset import SingleCellDataset

_FORMAT = "scdl split 1"
#: Errors that NumPy and zipfile raise for a file that is not a split.
_READ_ERRORS = (
    OSError, EOFError, ValueError, TypeError, KeyError, RuntimeError, zlib.error,
    zipfile.BadZipFile,
)  # fmt: skip


class Splits(Mapping[str, NDArray[np.int64]]):
    """Disjoint parts of the cells of a dataset: name to sorted rows, int64, read-only.

    Parameters
    ----------
    parts
        Rows of each part.
    n_obs, how
        See below.
    copy
        Whether to copy the rows; otherwise the given arrays become read-only.

    Attributes
    ----------
    n_obs
        Number of cells of the dataset.
    how
        Arguments that created the split.

    Examples
    --------
    >>> parts = scdl.split(data, (0.5, 0.5), seed=0)
    >>> list(parts), len(parts["train"])
    (['train', 'validation'], 3)
    >>> parts == scdl.split(data, (0.5, 0.5), seed=0)
    True
    """

    def __init__(
        self,
        parts: Mapping[str, NDArray[np.int64]],
        n_obs: int,
        how: Mapping[str, Any],
        *,
        copy: bool = True,
    ) -> None:
        self.n_obs, self.how = n_obs, dict(how)
        self._parts = {name: np.array(rows, copy=copy or None) for name, rows in parts.items()}
        for rows in self._parts.values():
            rows.flags.writeable = False

    def __getitem__(self, name: str) -> NDArray[np.int64]:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Splits) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {len(rows):,}" for name, rows in self.items())
        return f"Splits({sizes}; {self.hash})"

    @property
    def hash(self) -> str:
        """Hash of the cells of each part; equal splits have equal hashes."""
        digest = hashlib.sha256(str(self.n_obs).encode())
        for name, rows in self.items():
            digest.update(f"{name}{len(rows)}".encode())
            digest.update(np.ascontiguousarray(rows, "<i8").data)
        return digest.hexdigest()[:16]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the split to a NumPy npz file; replaces an existing file atomically.

        Examples
        --------
        >>> scdl.split(data, (0.5, 0.5)).save("saved.npz")
        """
        part_of = np.full(self.n_obs, NO_PART, np.uint8)
        for i, rows in enumerate(self.values()):
            part_of[rows] = i
        metadata = {"format": _FORMAT, "hash": self.hash, "parts": list(self), "how": self.how}
        path = path_of(path, "where the split goes, as a path")
        text = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
        with publication.new_file(path) as part, open(part, "wb") as file:
            np.savez_compressed(file, part_of=part_of, about=text)

    def write(
        self,
        dataset: SingleCellDataset,
        directory: Path,
        *,
        backend: str | None = None,
        replace: bool = False,
        **options: Any,
    ) -> dict[str, ConversionReport]:
        """Write each part as an archive, such as ``directory/train.scdl``.

        Together they form a collection.

        Parameters
        ----------
        dataset
            The dataset that was split, of one archive.
        directory
            Directory of the archives. A new one appears when all of them are complete.
        backend
            Storage backend; default that of the dataset.
        replace
            Whether to write into a directory that exists, and to replace archives of the same names
            there, each of them atomically. Other archives there are an error, since their cells may
            be in these parts, too.
        **options
            Those of :func:`scdl.convert`, such as ``compression``.

        Returns
        -------
        dict
            The report of each part.

        Raises
        ------
        SplitError
            The dataset has another number of cells.
        ArchiveExistsError
            Something exists at `directory`, and `replace` is False; or it is not a directory.
        ScdlError
            As :meth:`scdl.SingleCellDataset.subset`.

        Examples
        --------
        >>> parts = scdl.split(data, {"train": 0.7, "test": 0.3}, by="donor")
        >>> reports = parts.write(data, "parts")
        >>> {name: report.n_obs for name, report in reports.items()}
        {'train': 4, 'test': 2}
        """
        from scdl.training.split_archives import write_parts

        self._check_size(dataset, "this split")
        how: dict[str, Any] = {"replace": replace, "options": options}
        return write_parts(dataset, self, directory, backend, **how)

    def _check_size(self, dataset: CellReader, where: str) -> None:
        if dataset.n_obs != self.n_obs:
            raise SplitError(
                f"{where}: the split is of {self.n_obs} cells, the dataset has {dataset.n_obs}"
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str], dataset: CellReader | None = None) -> Self:
        """Read a split; if `dataset` is given, check that it has the same number of cells.

        Raises
        ------
        SplitError
            The file does not exist, is not a split, is damaged, or is of another dataset.

        Examples
        --------
        >>> parts = scdl.split(data, (0.5, 0.5))
        >>> parts.save("split.npz")
        >>> scdl.Splits.load("split.npz", data).hash == parts.hash
        True
        """
        path = path_of(path, "the path of a split")
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                part_of, metadata = stored["part_of"], json.loads(stored["about"].tobytes())
            newer = metadata["format"] != _FORMAT
            if not newer:
                names = enumerate(metadata["parts"])
                parts = {str(name): np.flatnonzero(part_of == i) for i, name in names}
                splits = cls(parts, len(part_of), metadata["how"], copy=False)
                sound = metadata["hash"] == splits.hash
        except FileNotFoundError as error:
            raise SplitError(f"{path}: there is no split here") from error
        except _READ_ERRORS as error:
            raise SplitError(f"{path}: this is not a split: {error!r}") from error
        if newer:
            raise SplitError(
                f"{path}: its format is {metadata['format']!r:.50}, this release reads "
                f"{_FORMAT!r}; upgrade scdl-store"
            )
        if not sound:
            raise SplitError(f"{path}: the split was changed or is damaged; create it again")
        if dataset is not None:
            splits._check_size(dataset, path)
        return splits
