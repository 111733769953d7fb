"""Compressing the drafts of sparse matrices, of which some may repeat each other.

Matrices of the same cells and genes often have the same ids, as raw counts and normalised ones, and
values that follow from the counts by a table of each cell. Their arrays refer to one another if a
comparison of all their numbers shows that they may.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from storage_backends.directory.recorder import Recorder
from storage_backends.zarr import gene_order
from storage_backends.zarr.chunks.repeating import OfBuilder, SameBuilder, UnrelatedError
from storage_backends.zarr.chunks.sizes import encoded_bytes
from storage_backends.zarr.chunks.writing import ArrayBuilder
from storage_backends.zarr.codecs import row_tables
from storage_backends.zarr.codecs.profiles import Profile
from storage_backends.zarr.fitting import fitted
from storage_backends.zarr.gene_order import Rows

_PARTS = ("data", "indices")


class Group(NamedTuple):
    """Matrices with the same ids.

    Attributes
    ----------
    prefixes
        Prefixes of their names.
    ids, values
        The matrix that has the ids, and the one that has the values from which others may follow.
    """

    prefixes: Sequence[str]
    ids: str
    values: str

    @classmethod
    def of(
        cls, prefixes: Iterable[str], samples: Samples, has_ids: Callable[[str, str], bool]
    ) -> Self:
        """Matrices with the ids of the one that has the smallest type of ids.

        Parameters
        ----------
        has_ids
            Whether a matrix has the ids of another one.
        """
        first = min(prefixes, key=samples.id_bytes)
        found = [prefix for prefix in prefixes if prefix == first or has_ids(prefix, first)]
        return cls(found, first, min(found, key=samples.size))


class Samples:
    """The same rows of several matrices, with the profiles that are fitted to them.

    Parameters
    ----------
    profile
        The profile of the archive.
    rows
        For each matrix its values and ids, and where rows end, by prefix.
    lengths
        Number of values of each matrix as a whole.
    """

    def __init__(
        self,
        profile: Profile,
        rows: Mapping[str, Mapping[str, NDArray[Any]]],
        lengths: Mapping[str, int],
    ) -> None:
        self._rows, self._fits = rows, profile.fits
        self.profiles = {
            prefix + part: fitted(profile, prefix + part, one[part], one["ends"], lengths[prefix])
            for prefix, one in rows.items()
            for part in _PARTS
        }

    @classmethod
    def of(cls, profile: Profile, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Samples of arrays that are in memory, by their names."""
        rows = {}
        for prefix in gene_order.prefixes(arrays):
            ends = arrays[f"{prefix}indptr"][1:].astype(np.int64)
            rows[prefix] = {part: arrays[prefix + part] for part in _PARTS} | {"ends": ends}
        return cls(profile, rows, {prefix: len(one["data"]) for prefix, one in rows.items()})

    def size(self, prefix: str, part: str = "data") -> int:
        """Bytes of the values or ids of a matrix on their own."""
        one, name = self._rows[prefix], prefix + part
        return encoded_bytes(name, one[part], self.profiles[name], one["ends"])

    def size_by_tables(self, prefix: str, other: str) -> int | None:
        """Bytes of values by tables of another matrix, if they follow from it and are smaller."""
        one, others = self._rows[prefix], self._rows[other]["data"]
        data = row_tables.encode(one["data"], others, one["ends"])
        return len(data) if data is not None and len(data) < self.size(prefix) else None

    def encoded_bytes(self) -> dict[str, int]:
        """Bytes of the values and ids of all matrices, some of which may repeat each other."""
        found = {p + part: self.size(p, part) for p in self._rows for part in _PARTS}
        if not self._fits:
            return found
        group = Group.of(self._rows, self, self._has_ids)
        for prefix in group.prefixes:
            if prefix != group.ids:
                found[f"{prefix}indices"] = 0
            if prefix != group.values:
                one, other = self._rows[prefix]["data"], self._rows[group.values]["data"]
                is_same = one.dtype == other.dtype and one.tobytes() == other.tobytes()
                by_tables = 0 if is_same else self.size_by_tables(prefix, group.values)
                found[f"{prefix}data"] = found[f"{prefix}data"] if by_tables is None else by_tables
        return found

    def _has_ids(self, prefix: str, other: str) -> bool:
        one, two = self._rows[prefix], self._rows[other]
        return all(np.array_equal(one[part], two[part]) for part in ("indices", "ends"))

    def id_bytes(self, prefix: str) -> int:
        """Bytes of one id."""
        return self._rows[prefix]["indices"].dtype.itemsize


class Compression:
    """Drafts of sparse matrices that are being compressed.

    Parameters
    ----------
    recorder, profile
        What writes the files of the store, and the profile of the archive.
    paths
        Returns the path of an array while it is written, and that in the finished store.
    drafts
        The drafts, by the prefix of their names.
    order
        Original position of each gene in the new order; None keeps the order.
    aligned
        Prefixes of the matrices whose genes are reordered.
    """

    def __init__(
        self,
        recorder: Recorder,
        profile: Profile,
        paths: Callable[[str], tuple[str, str]],
        drafts: Mapping[str, Rows],
        order: NDArray[np.int64] | None,
        aligned: Sequence[str],
    ) -> None:
        self._recorder, self._paths, self._drafts = recorder, paths, drafts
        self._orders = {prefix: order if prefix in aligned else None for prefix in drafts}
        rows = {p: gene_order.sample(d, self._orders[p]) for p, d in drafts.items() if profile.fits}
        lengths = {prefix: one.data.spec.length for prefix, one in drafts.items()}
        self._profile, self._samples = profile, Samples(profile, rows, lengths)
        self._group = Group((), "", "")
        if order is not None and profile.fits and lengths[""]:
            self._group = Group.of(aligned, self._samples, self._has_ids)

    def run(self) -> dict[str, ArrayBuilder]:
        """Write the final arrays, by their names, and remove the drafts."""
        finals: dict[str, ArrayBuilder] = {}
        for prefix in sorted(self._drafts, key=lambda prefix: prefix != self._group.values):
            finals |= self._ids_and_values(prefix, finals)
        for rows in self._drafts.values():
            rows.data.remove()
            rows.indices.remove()
        return finals

    def _has_ids(self, prefix: str, other: str) -> bool:
        pairs = zip(self._drafts[prefix][1:], self._drafts[other][1:], strict=True)
        return all(gene_order.is_same(*pair) for pair in pairs)

    def _ids_and_values(
        self, prefix: str, finals: Mapping[str, ArrayBuilder]
    ) -> dict[str, ArrayBuilder]:
        """Write the arrays of a matrix, after that of the values from which others may follow."""
        rows, group = self._drafts[prefix], self._group
        repeats = prefix in group.prefixes
        values: ArrayBuilder | None = None
        ids: ArrayBuilder | None = None
        if repeats and prefix != group.ids:
            ids = self._same(rows.indices, f"{group.ids}indices")
        if repeats and prefix != group.values:
            other = finals[f"{group.values}data"]
            if gene_order.is_same(rows.data, self._drafts[group.values].data):
                values = self._same(rows.data, other.name)
            elif self._samples.size_by_tables(prefix, group.values) is not None:
                with suppress(UnrelatedError):
                    return self._written(prefix, self._of(rows.data, other), ids)
        return self._written(prefix, values, ids)

    def _written(
        self, prefix: str, values: ArrayBuilder | None, ids: ArrayBuilder | None
    ) -> dict[str, ArrayBuilder]:
        """Write the arrays of a matrix that are not given, and those of values by tables."""
        rows = self._drafts[prefix]
        values, ids = values or self._alone(rows.data), ids or self._alone(rows.indices)
        data, indices = (None if isinstance(b, SameBuilder) else b for b in (values, ids))
        if data or indices:
            try:
                gene_order.rewrite(rows, data, indices, self._orders[prefix])
                values.close()
                ids.close()
            except UnrelatedError:
                for builder in filter(None, (data, indices)):
                    builder.abort()
                    builder.remove()
                raise
        return {values.name: values, ids.name: ids}

    def _profile_of(self, draft: ArrayBuilder) -> Profile:
        return self._samples.profiles.get(draft.name, self._profile)

    def _alone(self, draft: ArrayBuilder) -> ArrayBuilder:
        path, _ = self._paths(draft.name)
        profile = self._profile_of(draft)
        return ArrayBuilder(self._recorder, path, draft.name, draft.empty(), profile)

    def _same(self, draft: ArrayBuilder, other: str) -> SameBuilder:
        path, profile = self._paths(draft.name)[0], self._profile_of(draft)
        how = draft.name, draft.empty(), profile, self._paths(other)[1], draft.spec.length
        return SameBuilder(self._recorder, path, *how)

    def _of(self, draft: ArrayBuilder, other: ArrayBuilder) -> OfBuilder:
        path, profile = self._paths(draft.name)[0], self._profile_of(draft)
        how = draft.name, draft.empty(), profile, other.reader(), self._paths(other.name)[1]
        return OfBuilder(self._recorder, path, *how)
