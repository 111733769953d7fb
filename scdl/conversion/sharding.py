"""Shuffled concatenation of archives to several archives of equal size."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pyarrow as pa

from scdl.archive import csr
from scdl.archive.csr import SparseRows
from scdl.archive.elements import graph_keys
from scdl.archive.schema import OBS, Info, field_element, field_prefix
from scdl.archive.tables import TableSource
from scdl.conversion.concatenation import keeping, shared_fields, shared_vectors, var_parts
from scdl.conversion.joined_rows import JoinedRows
from scdl.conversion.losses import begin_elements, begin_fields, report_left_out, report_losses
from scdl.conversion.row_order import Shuffle
from scdl.conversion.tables import United
from scdl.conversion.var_tables import write_var
from scdl.errors import CollectionError, ScdlWarning
from storage_backends.base import ArrayStore, ArrayWriter

if TYPE_CHECKING:
    from scdl.dataset.reader import CellReader

_T = TypeVar("_T")


def concatenate_in_shards(
    stores: Sequence[ArrayStore],
    begin: Callable[[int], ArrayWriter],
    shard_cells: int,
    shuffle: Shuffle,
    chunk_bytes: int,
    obs: Sequence[TableSource],
    view: CellReader | None,
    *,
    lossless: bool = False,
) -> None:
    """Write the shuffled cells of archives to archives of `shard_cells` cells each.

    All rows are sorted once, and the shards are written from the front. The matrix, fields, obs and
    dense vectors are read at the same time, so that their temporary files exist together. Graphs,
    whose cells would be in other shards, and other elements are left out with a warning.

    Parameters
    ----------
    begin
        Returns the writer of a shard by its number, from 0.
    shard_cells
        Number of cells of each shard; the last one has the remaining cells.
    stores, shuffle, chunk_bytes, obs, view, lossless
        As for :func:`scdl.conversion.concatenation.concatenate`.
    """
    infos = [Info.from_attrs(store.attrs, store.path) for store in stores]
    names, fields = shared_vectors(stores, infos), shared_fields(stores, infos)
    n_obs = sum(info.n_obs for info in infos)
    with begin(0) as first, ExitStack() as stack:
        n_vars = max(info.max_n_vars for info in infos) if view is None else view.max_n_vars
        refused = begin_elements(stores, first, names, ())
        refused |= begin_fields(first, fields, (min(shard_cells, n_obs), n_vars))
        kept = [*names, *map(field_element, fields)]
        report_losses(stores, first, kept, refused, lossless=lossless)
        _report_graphs(stores, first.path, lossless=lossless)
        order = Shuffle.order(shuffle, n_obs, first.path)
        caster = keeping(stores, first)
        at_once = max(1, chunk_bytes // caster.dtype.itemsize)
        joined = JoinedRows(stores, infos, order, caster, at_once, view)
        ((var, _, label),), left_out = order.var(var_parts(stores, infos, view), first.path)
        report_left_out(first, left_out, lossless=lossless)
        united = United(order.obs(obs))
        united.warn(first.path)
        matrices = {"": joined}
        for name, dtype in fields.items():
            if field_element(name) not in refused:
                matrices[name] = joined.of_field(name, dtype)
        dtypes = {name: one.dtypes(n_vars) for name, one in matrices.items()}
        table = _Stream(stack, iter(order.table(united)), len, lambda b, i, j: b.slice(i, j - i))
        rows = {
            name: _Stream(stack, one.matrix(dtypes[name][1]), _n_rows, _row_range)
            for name, one in matrices.items()
        }
        vectors = {
            name: _Stream(stack, joined.vectors(name), len, lambda v, i, j: v[i:j])
            for name in names
            if name not in refused
        }
        for number, start in enumerate(range(0, max(n_obs, 1), shard_cells)):
            n = min(shard_cells, n_obs - start)
            with begin(number) if number else first as writer:
                begin_elements(stores, writer, [*vectors] if number else (), ())
                further = [name for name in matrices if name]
                begin_fields(writer, further, (n, n_vars))
                blocks, _ = write_var(writer, [(var, n, label)])
                batches = pa.RecordBatchReader.from_batches(united.schema, table.take(n))
                writer.write_table(OBS, batches)
                for name, stream in vectors.items():
                    for values in stream.take(n):
                        writer.append(name, values)
                for name, matrix in rows.items():
                    csr.write_rows(writer, field_prefix(name), matrix.take(n), dtypes[name])
                origins = tuple(dict.fromkeys(m for info in infos for m in info.matrices))
                made = Info(blocks, is_sorted=True, matrices=origins, fields=tuple(further))
                writer.commit(made.to_attrs())


class _Stream(Generic[_T]):
    """Pieces of rows, taken from the front in numbers of rows; `part` slices a piece."""

    def __init__(
        self,
        stack: ExitStack,
        pieces: Any,
        length: Callable[[_T], int],
        part: Callable[[_T, int, int], _T],
    ) -> None:
        self._pieces: Iterator[_T] = stack.enter_context(closing(pieces))
        self._length, self._part = length, part
        self._piece: _T | None = None
        self._at = 0

    def take(self, n: int) -> Iterator[_T]:
        """The next `n` rows, or all if fewer are left, in pieces; must be exhausted."""
        while n:
            if self._piece is None:
                self._piece, self._at = next(self._pieces, None), 0
                if self._piece is None:
                    return
            stop = min(self._at + n, self._length(self._piece))
            yield self._part(self._piece, self._at, stop)
            n -= stop - self._at
            self._at = stop
            if stop == self._length(self._piece):
                self._piece = None


def _n_rows(rows: SparseRows) -> int:
    return len(rows.indptr) - 1


def _row_range(rows: SparseRows, start: int, stop: int) -> SparseRows:
    offsets = rows.indptr[start : stop + 1]
    stored = slice(offsets[0], offsets[-1])
    return SparseRows(rows.data[stored], rows.indices[stored], offsets - offsets[0])


def _report_graphs(stores: Sequence[ArrayStore], where: str, *, lossless: bool) -> None:
    """Warn about graphs, which are left out; with `lossless`, raise CollectionError."""
    if keys := dict.fromkeys(key for store in stores for key in graph_keys(store)):
        names = ", ".join(f"obsp/{key}" for key in keys)
        text = f"{where}: {names} is left out: neighbours of a cell would be in other shards"
        if lossless:
            raise CollectionError(f"{text}; leave out destroy_on_copy")
        warnings.warn(text, ScdlWarning, stacklevel=4)
