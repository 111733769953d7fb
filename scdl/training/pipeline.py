"""Plan, read and assemble the batches of an epoch ahead of the consumer."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from scdl.dataset.batch import CellBatch
from scdl.kernels import hashing
from scdl.training.content import BatchContent
from scdl.training.epochs import Epoch, ReadPlan
from scdl.training.schedule import Schedule
from storage_backends.compute.threads import ahead, n_threads, pool_of, work_alone

#: Minimum number of cells per task; smaller batches are combined.
_TASK_CELLS = 512
#: Cells that are planned first in an epoch.
_FIRST_CELLS = 1 << 12
#: What to do where memory ends, added to the error of what asked for it.
_OUT_OF_MEMORY = (
    "the loader holds several batches of {:,} cells ahead of the model: take fewer cells for a "
    "batch (batch_size), less ahead (prefetch=1, threads=1, a smaller memory_mb), or "
    "layout='csr' instead of 'dense'"
)
#: Name prefix of the threads that read ahead.
THREADS = "scdl-loader"


class CellsRead(NamedTuple):
    """The cells of batches that were read together.

    Attributes
    ----------
    cells, neighbors
        The cells of the batches, and their sampled neighbours.
    sizes
        Number of cells of each batch.
    keys
        Random key of each batch.
    """

    cells: CellBatch
    neighbors: CellBatch | None
    sizes: list[int]
    keys: list[int]

    def split(self, n: int) -> Iterator[CellsRead]:
        """Yield parts of `n` batches, whose arrays are views."""
        start = 0
        k = len(self.neighbors) // max(len(self.cells), 1) if self.neighbors is not None else 0
        for i in range(0, len(self.sizes), n):
            sizes = self.sizes[i : i + n]
            stop = start + sum(sizes)
            neighbors = None if self.neighbors is None else self.neighbors[start * k : stop * k]
            yield CellsRead(self.cells[start:stop], neighbors, sizes, self.keys[i : i + n])
            start = stop


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The batches of one epoch.

    Parameters
    ----------
    content, schedule
        What batches hold, and the batches of all epochs.
    epoch, run
        The epoch, and its batches to yield.
    buffer, window
        Cells that are planned together and announced to the storage; cells that are read together
        if they are stored in chunks.
    """

    content: BatchContent
    schedule: Schedule
    epoch: int
    run: Epoch
    buffer: int
    window: int

    def __iter__(self) -> Generator[Any]:
        # Reading chunks uses its own threads; two concurrent reads would only block each other.
        chunks, n = self.content.in_chunks, self.content.options["threads"]
        alone = {"initializer": work_alone} if not chunks and n >= n_threads() else {}
        with (
            pool_of(n, THREADS, **alone) as pool,
            pool_of(1, THREADS) if chunks else nullcontext(pool) as reader,
        ):
            buffers = self._buffers()
            # The storage fetches the cells of the next buffer while those of this one are used.
            planned = ahead(pool, (partial(self._plan, batches) for batches in buffers), 1)
            try:
                yield from self._produce(itertools.chain.from_iterable(planned), reader, pool)
            except MemoryError as error:
                error.add_note(_OUT_OF_MEMORY.format(self.schedule.batch_size))
                raise

    def _buffers(self) -> Iterator[range]:
        """Batches that are planned together, at first few, so that an epoch begins at once."""
        for batches in self.run.windows(self.buffer):
            n = max(1, _FIRST_CELLS // self.schedule.batch_size)
            if batches.start == self.run.first and not self.content.in_chunks and n < len(batches):
                yield batches[:n]
                batches = batches[n:]
            yield batches

    def _produce(
        self, plans: Iterable[ReadPlan], reader: ThreadPoolExecutor, pool: ThreadPoolExecutor
    ) -> Iterator[Any]:
        """Yield batches; the batches of one read may be assembled by several tasks."""
        at_once, is_large = self._task_batches, self.content.assembly.is_large
        if self.content.in_chunks or is_large:
            # Assembled batches may be many times larger than the cells read for them.
            at_once = 1 if is_large else at_once
            reads = ahead(reader, (partial(self._read, plan) for plan in plans), 1)
            parts = itertools.chain.from_iterable(read.split(at_once) for read in reads)
            tasks = (partial(self._assemble, part) for part in parts)
        else:
            tasks = (partial(self._read_and_assemble, plan) for plan in plans)
        options = self.content.options
        n_ahead = max(options["threads"], options["prefetch"] // at_once)
        return itertools.chain.from_iterable(ahead(pool, tasks, n_ahead))

    @property
    def _task_batches(self) -> int:
        return -(-_TASK_CELLS // self.schedule.batch_size)

    def _plan(self, batches: range) -> list[ReadPlan]:
        """Plan which cells of a buffer are read together, and announce them to the storage."""
        content = self.content
        plans: list[ReadPlan] = []
        for window in self.run.windows(self.window, batches):
            at_once = len(window) if self.content.in_chunks else self._task_batches
            plans += self.run.read_plans(window, at_once, len(content))
        if content.rows is not None:
            plans = [plan._replace(cells=content.rows[plan.cells]) for plan in plans]
        if not plans:
            return plans
        rows = np.concatenate([plan.cells for plan in plans])
        fetched = content.will_need(rows)
        return [plan._replace(fetched=fetched) for plan in plans]

    def _read(self, plan: ReadPlan) -> CellsRead:
        """Read the cells of some batches, and their neighbours."""
        content, seed = self.content, self.schedule.seed
        cells, sizes = content.read_rows(plan.cells), plan.sizes
        # Computing a key takes time for each batch, so only random batches get one.
        keys = [0] * len(sizes)
        if content.assembly.is_random:
            epoch_key = seed, self.epoch, self.schedule.rank
            keys = [hashing.mixed(*epoch_key, batch) for batch in plan.batches]
        n_neighbors, graph = content.options["neighbors"], content.cells.graph
        if not n_neighbors:
            return CellsRead(cells, None, sizes, keys)
        assert graph is not None
        draws = hashing.draws(plan.positions, n_neighbors, seed, self.epoch)
        neighbors = graph.sample_many(plan.cells, draws)
        return CellsRead(cells, content.read_rows(neighbors.ravel()), sizes, keys)

    def _assemble(self, read: CellsRead) -> list[Any]:
        parts = read.split(1) if len(read.sizes) > 1 else (read,)
        return [self.content.assemble(part.cells, part.neighbors, part.keys[0]) for part in parts]

    def _read_and_assemble(self, plan: ReadPlan) -> list[Any]:
        return self._assemble(self._read(plan))
