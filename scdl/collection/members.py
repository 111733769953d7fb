"""The members of a collection, opened lazily, with a limited number open at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from scdl.archive.fields import Field, joint_field
from scdl.archive.requests import MAX_MATRICES, Matrices, Request, StoredMatrix
from scdl.archive.schema import field_prefix
from scdl.collection.member import Member
from scdl.collection.paths import resolved
from scdl.conversion.cell_names import archive_names
from scdl.conversion.origins import Origins
from scdl.dataset.dataset import SingleCellDataset
from scdl.dataset.opened import cache_options
from scdl.errors import ArchiveNotFoundError, CollectionError, ScdlError
from storage_backends import registry
from storage_backends.base import ArrayStore
from storage_backends.capabilities import TableStore
from storage_backends.compute.caching import LRUCache, cached_property
from storage_backends.compute.threads import for_each_file
from storage_backends.errors import one_line
from storage_backends.paths import is_url

_T = TypeVar("_T")


class Members(Sequence[SingleCellDataset]):
    """The members of a collection as datasets; the most recently used ones stay open.

    Parameters
    ----------
    records
        Descriptions of the members.
    max_open
        Maximum number of open members.
    options
        Options of :class:`SingleCellDataset` about neighbours.
    label
        Column to add to obs, with the name of each cell's member; None: no column.
    """

    def __init__(
        self,
        records: Sequence[Member],
        max_open: int,
        options: Mapping[str, Any],
        label: str | None = None,
    ) -> None:
        self.records = list(records)
        self.names = archive_names(record.path for record in self.records)
        stops = np.cumsum([record.n_obs for record in self.records], dtype=np.int64)
        #: First row of each member, and the number of cells.
        self.starts: NDArray[np.int64] = np.concatenate([np.zeros(1, np.int64), stops])
        self._options = options
        self.origins = None if label is None else Origins(label, tuple(self.names))
        self._open = LRUCache[int, SingleCellDataset](max_open)
        #: Matrices that must be read, by number of the member and name of the field.
        self._read = LRUCache[tuple[int, str], StoredMatrix](MAX_MATRICES)
        #: Of each field that was read, and of the expression matrix, under an empty name.
        self._matrices: dict[str, Matrices] = {}
        self._joint_fields: dict[str, Field] = {}
        #: Directory of a manifest of these members, which may keep columns of obs.
        self.manifest_in: str | None = None
        #: Members whose genes were compared with their descriptions.
        self._checked: set[int] = set()

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> SingleCellDataset: ...
    @overload
    def __getitem__(self, index: slice) -> list[SingleCellDataset]: ...
    def __getitem__(self, index: int | slice) -> SingleCellDataset | list[SingleCellDataset]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        if (member := self._open.get(number)) is not None:
            return member
        return self._open.setdefault(number, self._open_member(number))

    def _open_member(self, number: int) -> SingleCellDataset:
        record = self.records[number]
        with self._opening(record):
            member = SingleCellDataset(record.path, **self._options)
        self._check(number, member.store)
        return member

    @staticmethod
    @contextmanager
    def _opening(record: Member) -> Iterator[None]:
        """Raise errors that say that the archive is a member."""
        try:
            yield
        except ArchiveNotFoundError:
            raise ArchiveNotFoundError(
                f"{record.path}: this member of the collection is missing; restore it, or open a "
                "list of paths without it"
            ) from None
        except ScdlError:
            raise
        except OSError as error:
            raise CollectionError(
                f"{record.path}: this member of the collection cannot be read: {one_line(error)}"
            ) from error

    def _briefly_open(self, number: int, *, hold: bool = True) -> ArrayStore:
        """The archive of a member, which need not stay open; without `hold` only for its arrays."""
        if (member := self._open.get(number)) is not None:
            return member.store
        record = self.records[number]
        with self._opening(record):
            cache = cache_options(self._options["cache_dir"], self._options["cache_mb"])
            store = registry.open_archive(record.path, hold=hold, cache=cache)
        self._check(number, store)
        return store

    def tables_of(self, number: int) -> TableStore:
        """The tables of a member, without opening its arrays if it did not change."""
        record = self.records[number]
        if number not in self._open and record.content is not None and not is_url(record.path):
            with self._opening(record):
                tables = registry.detect(record.path).store.open_tables(
                    record.path, record.content, record.n_obs, record.values
                )
            if tables is not None:
                return tables
        return self._briefly_open(number)

    def _check(self, number: int, store: ArrayStore) -> None:
        """Compare a member with its description when it is opened; its genes only once."""
        self.records[number].check(store, genes=number not in self._checked)
        self._checked.add(number)

    @cached_property
    def data_dtype(self) -> np.dtype[Any]:
        """Common dtype of the values."""
        dtypes = {record.dtypes[0] for record in self.records}
        return np.result_type(*dtypes) if dtypes else np.dtype(np.float32)

    @cached_property
    def index_dtype(self) -> np.dtype[Any]:
        """Common dtype of the column ids."""
        dtypes = {record.dtypes[1] for record in self.records}
        return np.result_type(*dtypes) if dtypes else np.dtype(np.uint8)

    @cached_property
    def max_n_vars(self) -> int:
        """Largest number of genes of a feature block."""
        return max((n for record in self.records for n in record.n_vars), default=0)

    def genes(self, number: int) -> tuple[str, ...]:
        """Hashes of the genes of a member's feature blocks, computed lazily."""
        if not self.records[number].genes:
            self._describe_genes(number)
        return self.records[number].genes

    def spaces(self, number: int) -> tuple[str, ...]:
        """Keys of the gene spaces of a member's feature blocks, computed lazily."""
        if not self.records[number].spaces:
            self._describe_genes(number)
        return self.records[number].spaces

    def _describe_genes(self, number: int) -> None:
        self.records[number] = self.records[number].with_genes(self.tables_of(number))

    def complete(self) -> Sequence[Member]:
        """Complete descriptions of all members, including their genes."""
        incomplete = [i for i, record in enumerate(self.records) if not record.spaces]
        for_each_file(self._describe_genes, incomplete)
        for number in range(len(self)):
            self.fields(number)
        return self.records

    def fields(self, number: int) -> Mapping[str, Field]:
        """The fields of a member."""
        known = self.records[number].fields
        if known is None:
            known = self[number]._fields
            self.records[number] = replace(self.records[number], fields=known)
        return known

    @property
    def with_cells(self) -> Sequence[int]:
        """Numbers of the members that have cells; of all if none has."""
        numbers = range(len(self))
        return [i for i in numbers if self.records[i].n_obs] or numbers

    def field(self, name: str) -> Field:
        """A field of the members that have cells, which must have it; errors of `joint_field`."""
        known = self._joint_fields.get(name)
        if known is None:
            parts = {self.records[i].path: self.fields(i)[name] for i in self.with_cells}
            known = self._joint_fields.setdefault(name, joint_field(parts))
        return known

    def stores(self) -> Sequence[ArrayStore]:
        """The archives of the members, opened lazily."""
        return _Each(len(self), lambda number: self[number].store)

    def request(self, at: NDArray[np.int64], field: str = "") -> Request:
        """The request to read the matrix or a field of some cells from their members."""
        known = self._matrices.get(field)
        if known is None:
            known = self._matrices.setdefault(field, self._joined(field))
        return Request(known, *self.find(at))

    def find(self, at: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The member of each cell, and its row there."""
        from scdl.kernels import rows as kernels

        which, rows = np.empty_like(at), np.empty_like(at)
        kernels.find_archives(at, self.starts, which, rows)
        return which, rows

    def _joined(self, field: str) -> Matrices:
        dtypes = self.data_dtype, self.index_dtype
        is_sorted = all(record.is_sorted for record in self.records)
        if field:
            stored = self.field(field)
            dtypes = np.dtype(stored.dtype), np.dtype(stored.index_dtype)
            is_sorted = stored.is_sorted
        paths = [record.path for record in self.records]
        matrices = _Each(len(self), partial(self.matrix, field=field))
        return Matrices(matrices, paths, *dtypes, self.max_n_vars, is_sorted)

    def matrix(self, number: int, field: str = "") -> StoredMatrix:
        """The matrix or a field of a member, which need not be among the open ones."""
        if (member := self._open.get(number)) is not None:
            return member.matrix_of(field)
        if (matrix := self._read.get((number, field))) is not None:
            return matrix
        is_sorted = self.records[number].is_sorted
        if field:
            is_sorted = self.fields(number)[field].is_sorted
        store = self._briefly_open(number, hold=False)
        matrix = StoredMatrix.of(store, field_prefix(field), is_sorted=is_sorted)
        # Mapped matrices are kept by their addresses.
        return matrix if matrix.views else self._read.setdefault((number, field), matrix)

    def split(self, at: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64], Any]]:
        """Yield each member, the rows of its cells, and their positions in `at`."""
        which, rows = self.find(at)
        for number in np.unique(which).tolist():
            positions = np.flatnonzero(which == number)
            yield number, rows[positions], positions


class _Each(Sequence[_T]):
    """Something of each member, computed on access."""

    def __init__(self, n: int, compute: Callable[[int], _T]) -> None:
        self._n, self._compute = n, compute

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> _T: ...
    @overload
    def __getitem__(self, index: slice) -> list[_T]: ...
    def __getitem__(self, index: int | slice) -> _T | list[_T]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._n))]
        return self._compute(range(self._n)[index])


class Datasets(Mapping[str | os.PathLike[str], SingleCellDataset]):
    """The members by path."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self._numbers = {record.path: i for i, record in enumerate(members.records)}

    def __getitem__(self, path: str | os.PathLike[str]) -> SingleCellDataset:
        return self._members[self._numbers[resolved(path)]]

    def __iter__(self) -> Iterator[Path]:
        return map(Path, self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)
