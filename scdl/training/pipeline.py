"""The batches of an epoch: planned, read and assembled, ahead of whoever takes them."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scdl.archive.gene_space import OWN
from scdl.dataset.batch import CellBatch
from scdl.dataset.reader import CellReader
from scdl.kernels import hashing
from scdl.training.assembly import Assembly
from scdl.training.epochs import Epoch, Stretch
from storage_backends.compute.caching import cached_property
from storage_backends.compute.threads import ahead, pool_of

#: Cells that one task of a thread takes, if batches are smaller.
_TASK_CELLS = 512
#: Cells that are planned at once; the storage learns early which of them will be read.
_WINDOW_CELLS = 1 << 12
#: What names of threads that read ahead begin with.
THREADS = "scdl-loader"


class Read(NamedTuple):
    """Batches that were read together.

    Attributes
    ----------
    cells, neighbors
        Their cells, and those beside them.
    sizes
        Cells of each batch.
    keys
        What the random numbers of each batch follow from.
    """

    cells: CellBatch
    neighbors: CellBatch | None
    sizes: list[int]
    keys: list[int]

    def cut(self, n: int) -> Iterator[Read]:
        """Parts of `n` batches, whose arrays are views."""
        start = 0
        k = len(self.neighbors) // max(len(self.cells), 1) if self.neighbors is not None else 0
        for i in range(0, len(self.sizes), n):
            sizes = self.sizes[i : i + n]
            stop = start + sum(sizes)
            beside = None if self.neighbors is None else self.neighbors[start * k : stop * k]
            yield Read(self.cells[start:stop], beside, sizes, self.keys[i : i + n])
            start = stop


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Makes the batches of one epoch.

    Parameters
    ----------
    cells, rows
        The cells to read; positions in those, or None for all.
    run
        Which of them are batches.
    epoch, seed, rank
        What random numbers follow from.
    batch_size
        Cells of a batch.
    assembly
        Makes batches of cells.
    columns, gene_names
        Columns of obs to give along; names of genes, for a tokenizer.
    obsm, neighbors, own_genes
        Vectors to give along; neighbours to sample for each cell; whether each cell is read in the
        genes of its own gene space.
    window
        Cells that are read at once where reads are of chunks.
    threads, prefetch
        Threads, and batches that are made ahead.
    """

    cells: CellReader
    rows: NDArray[np.int64] | None
    run: Epoch
    epoch: int
    seed: int
    rank: int
    batch_size: int
    assembly: Assembly
    columns: Mapping[str, NDArray[Any]]
    gene_names: NDArray[Any] | None
    obsm: Sequence[str]
    neighbors: int
    own_genes: bool
    window: int
    threads: int
    prefetch: int

    def __iter__(self) -> Generator[Any]:
        # A read of chunks has threads of its own; two at a time only wait for each other.
        chunks = self._reads_chunks
        with (
            pool_of(self.threads, THREADS) as pool,
            pool_of(1, THREADS) if chunks else nullcontext(pool) as reader,
        ):
            windows = self.run.windows(self.window if chunks else _WINDOW_CELLS)
            # While chunks are read the next ones are planned in any case.
            planned = ahead(pool, (partial(self._plan, w) for w in windows), 0 if chunks else 1)
            yield from self._made(itertools.chain.from_iterable(planned), reader, pool)

    def _made(
        self, stretches: Iterable[Stretch], reader: ThreadPoolExecutor, pool: ThreadPoolExecutor
    ) -> Iterator[Any]:
        """Batches, of which those that are read by one task may be assembled by several."""
        at_once = self._task_batches
        if self._reads_chunks or self.assembly.is_large:
            # Batches may be many times as large as what they are made from.
            at_once = 1 if self.assembly.is_large else at_once
            reads = ahead(reader, (partial(self._read, s) for s in stretches), 1)
            parts = itertools.chain.from_iterable(read.cut(at_once) for read in reads)
            tasks = (partial(self._assemble, part) for part in parts)
        else:
            tasks = (partial(self._read_and_assemble, s) for s in stretches)
        n_ahead = max(self.threads, self.prefetch // at_once)
        return itertools.chain.from_iterable(ahead(pool, tasks, n_ahead))

    @cached_property
    def _reads_chunks(self) -> bool:
        """Whether what is read as one holds several cells, and is best read for all of them."""
        return self.cells.cells_per_chunk > 1

    @cached_property
    def _task_batches(self) -> int:
        return -(-_TASK_CELLS // self.batch_size)

    @cached_property
    def _n_cells(self) -> int:
        return self.cells.n_obs if self.rows is None else len(self.rows)

    @cached_property
    def _read_rows(self) -> partial[CellBatch]:
        # Column ids are read as tensors in CSR form have them, where that is safe.
        fits = np.can_cast(self.cells.index_dtype, np.int32, "safe")
        return partial(
            self.cells.read_rows,
            obsm=self.obsm,
            genes=OWN if self.own_genes else None,
            ordered=self.assembly.needs_order,
            index_dtype=np.int32 if fits and self.assembly.layout == "csr" else None,
            sum_dtype=self.assembly.sum_dtype,
            totals=self.assembly.needs_totals,
        )

    def _plan(self, window: range) -> list[Stretch]:
        """Which cells are read together, and telling the storage of them."""
        at_once = len(window) if self._reads_chunks else self._task_batches
        stretches = self.run.stretches(window, at_once, self._n_cells)
        if self.rows is not None:
            stretches = [s._replace(cells=self.rows[s.cells]) for s in stretches]
        if stretches and not self._reads_chunks:
            self.cells.will_need(np.concatenate([s.cells for s in stretches]))
        return stretches

    def _read(self, stretch: Stretch) -> Read:
        """Read the cells of some batches, and their neighbours."""
        cells, sizes = self._read_rows(stretch.cells), stretch.sizes
        # Of what is not random the key is of no use, and small batches are many.
        keys = [0] * len(sizes)
        if self.assembly.is_random:
            place = self.seed, self.epoch, self.rank
            keys = [hashing.mixed(*place, batch) for batch in stretch.batches]
        if not self.neighbors:
            return Read(cells, None, sizes, keys)
        assert self.cells.graph is not None
        draws = hashing.draws(stretch.positions, self.neighbors, self.seed, self.epoch)
        neighbors = self.cells.graph.sample_many(stretch.cells, draws)
        return Read(cells, self._read_rows(neighbors.ravel()), sizes, keys)

    def _assemble(self, read: Read) -> list[Any]:
        parts = read.cut(1) if len(read.sizes) > 1 else (read,)
        return [
            self.assembly(part.cells, part.neighbors, self.gene_names, self.columns, part.keys[0])
            for part in parts
        ]

    def _read_and_assemble(self, stretch: Stretch) -> list[Any]:
        return self._assemble(self._read(stretch))
