"""Compressing the drafts of sparse matrices, of which some may repeat each other.

Matrices of the same cells and genes often have the same ids, as raw counts and normalised ones, and
values that follow from the counts by a table of each cell. Their arrays refer to one another if a
comparison of all their numbers shows that they may.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage_backends.directory.recorder import Recorder
from storage_backends.zarr import gene_order
from storage_backends.zarr.chunks.repeating import OfBuilder, SameBuilder, UnrelatedError
from storage_backends.zarr.chunks.writing import ArrayBuilder, encoded_bytes
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
        self._samples, self._profiles = {}, {}
        for prefix, rows in drafts.items():
            sample = self._samples[prefix] = gene_order.sample(rows, self._orders[prefix])
            for part, b in zip(_PARTS, rows[:2], strict=True):
                how = profile, b.name, sample[part], sample["ends"], b.spec.length
                self._profiles[b.name] = fitted(*how)
        may_repeat = order is not None and profile.fits and drafts[""].data.spec.length
        self._group = self._find_group(aligned) if may_repeat else Group((), "", "")

    def run(self) -> dict[str, ArrayBuilder]:
        """Write the final arrays, by their names, and remove the drafts."""
        finals: dict[str, ArrayBuilder] = {}
        for prefix in sorted(self._drafts, key=lambda prefix: prefix != self._group.values):
            finals |= self._ids_and_values(prefix, finals)
        for rows in self._drafts.values():
            rows.data.remove()
            rows.indices.remove()
        return finals

    def _find_group(self, aligned: Sequence[str]) -> Group:
        """Matrices with the ids of the one that has the smallest type of ids."""
        first = min(aligned, key=lambda prefix: self._drafts[prefix].indices.spec.dtype.itemsize)
        found = [
            prefix
            for prefix in aligned
            if prefix == first
            or all(map(gene_order.is_same, self._drafts[prefix][1:], self._drafts[first][1:]))
        ]
        return Group(found, first, min(found, key=lambda prefix: self._encoded_bytes(prefix)))

    def _encoded_bytes(self, prefix: str) -> int:
        """Bytes of values of the sample."""
        sample, name = self._samples[prefix], f"{prefix}data"
        return encoded_bytes(name, sample["data"], self._profiles[name], sample["ends"])

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
            elif self._is_smaller_by_tables(prefix):
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

    def _is_smaller_by_tables(self, prefix: str) -> bool:
        """Whether the values of the sample follow from the others by tables, and are smaller."""
        sample, others = self._samples[prefix], self._samples[self._group.values]["data"]
        data = row_tables.encode(sample["data"], others, sample["ends"])
        return data is not None and len(data) < self._encoded_bytes(prefix)

    def _alone(self, draft: ArrayBuilder) -> ArrayBuilder:
        path, _ = self._paths(draft.name)
        profile = self._profiles[draft.name]
        return ArrayBuilder(self._recorder, path, draft.name, draft.empty(), profile)

    def _same(self, draft: ArrayBuilder, other: str) -> SameBuilder:
        path, profile = self._paths(draft.name)[0], self._profiles[draft.name]
        how = draft.name, draft.empty(), profile, self._paths(other)[1], draft.spec.length
        return SameBuilder(self._recorder, path, *how)

    def _of(self, draft: ArrayBuilder, other: ArrayBuilder) -> OfBuilder:
        path, profile = self._paths(draft.name)[0], self._profiles[draft.name]
        how = draft.name, draft.empty(), profile, other.reader(), self._paths(other.name)[1]
        return OfBuilder(self._recorder, path, *how)
