"""Plan, read and assemble the batches of an epoch ahead of the consumer."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scdl.archive.gene_space import OWN
from scdl.dataset.batch import CellBatch
from scdl.dataset.reader import CellReader
from scdl.kernels import hashing
from scdl.training.assembly import Assembly
from scdl.training.epochs import Epoch, ReadPlan
from scdl.training.modalities import Modality
from storage_backends.compute.caching import cached_property
from storage_backends.compute.threads import ahead, pool_of

#: Minimum number of cells per task; smaller batches are combined.
_TASK_CELLS = 512
#: Cells that are planned first in an epoch.
_FIRST_CELLS = 1 << 12
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
    cells, rows
        Dataset, and its rows to use, or None for all.
    modalities
        Other datasets of its cells, by the name of the field that they become.
    run
        Division of the epoch into batches.
    epoch, seed, rank
        Keys of random numbers.
    batch_size
        Cells per batch.
    assembly
        Assembles batches from cells.
    columns, gene_names
        Columns of obs to include; names of genes, for a tokenizer.
    obsm, neighbors, own_genes
        Keys of obsm to include; neighbours to sample per cell; whether each cell is read in the
        genes of its own gene space.
    buffer, window
        Cells that are planned together and announced to the storage; cells that are read together
        if they are stored in chunks.
    threads, prefetch
        Number of threads, and of batches to assemble ahead.
    """

    cells: CellReader
    modalities: Mapping[str, Modality]
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
    buffer: int
    window: int
    threads: int
    prefetch: int

    def __iter__(self) -> Generator[Any]:
        # Reading chunks uses its own threads; two concurrent reads would only block each other.
        chunks = self._reads_chunks
        with (
            pool_of(self.threads, THREADS) as pool,
            pool_of(1, THREADS) if chunks else nullcontext(pool) as reader,
        ):
            buffers = self._buffers()
            # The storage fetches the cells of the next buffer while those of this one are used.
            planned = ahead(pool, (partial(self._plan, batches) for batches in buffers), 1)
            yield from self._produce(itertools.chain.from_iterable(planned), reader, pool)

    def _buffers(self) -> Iterator[range]:
        """Batches that are planned together, at first few, so that an epoch begins at once."""
        for batches in self.run.windows(self.buffer):
            n = max(1, _FIRST_CELLS // self.batch_size)
            if batches.start == self.run.first and not self._reads_chunks and n < len(batches):
                yield batches[:n]
                batches = batches[n:]
            yield batches

    def _produce(
        self, plans: Iterable[ReadPlan], reader: ThreadPoolExecutor, pool: ThreadPoolExecutor
    ) -> Iterator[Any]:
        """Yield batches; the batches of one read may be assembled by several tasks."""
        at_once = self._task_batches
        if self._reads_chunks or self.assembly.is_large:
            # Assembled batches may be many times larger than the cells read for them.
            at_once = 1 if self.assembly.is_large else at_once
            reads = ahead(reader, (partial(self._read, plan) for plan in plans), 1)
            parts = itertools.chain.from_iterable(read.split(at_once) for read in reads)
            tasks = (partial(self._assemble, part) for part in parts)
        else:
            tasks = (partial(self._read_and_assemble, plan) for plan in plans)
        n_ahead = max(self.threads, self.prefetch // at_once)
        return itertools.chain.from_iterable(ahead(pool, tasks, n_ahead))

    @cached_property
    def _reads_chunks(self) -> bool:
        """Whether the archive is stored in chunks of several cells, best read together."""
        datasets = [self.cells, *(modality.cells for modality in self.modalities.values())]
        return any(cells.storage.cells_per_chunk > 1 for cells in datasets)

    @cached_property
    def _task_batches(self) -> int:
        return -(-_TASK_CELLS // self.batch_size)

    @cached_property
    def _n_cells(self) -> int:
        return self.cells.n_obs if self.rows is None else len(self.rows)

    @cached_property
    def _fields(self) -> tuple[str, ...]:
        """Names of the fields of the dataset itself."""
        return tuple(name for name in self.assembly.fields if name not in self.modalities)

    def _read_rows(self, rows: NDArray[np.int64]) -> CellBatch:
        """Read cells, with their modalities as fields."""
        read = self._read_own_rows(rows)
        if not self.modalities:
            return read
        how = {"ordered": self.assembly.needs_order, "sum_dtype": self.assembly.sum_dtype}
        others = {name: modality.read(read, **how) for name, modality in self.modalities.items()}
        return replace(read, fields={**read.fields, **others})

    @cached_property
    def _read_own_rows(self) -> partial[CellBatch]:
        # Read column ids with the dtype of CSR tensors if it holds them all.
        fits = np.can_cast(self.cells.index_dtype, np.int32, "safe")
        return partial(
            self.cells.read_rows,
            obsm=self.obsm,
            fields=self._fields,
            genes=OWN if self.own_genes else None,
            ordered=self.assembly.needs_order,
            index_dtype=np.int32 if fits and self.assembly.layout == "csr" else None,
            sum_dtype=self.assembly.sum_dtype,
            totals=self.assembly.needs_totals,
        )

    def _plan(self, batches: range) -> list[ReadPlan]:
        """Plan which cells of a buffer are read together, and announce them to the storage."""
        plans: list[ReadPlan] = []
        for window in self.run.windows(self.window, batches):
            at_once = len(window) if self._reads_chunks else self._task_batches
            plans += self.run.read_plans(window, at_once, self._n_cells)
        if self.rows is not None:
            plans = [plan._replace(cells=self.rows[plan.cells]) for plan in plans]
        if not plans:
            return plans
        rows = np.concatenate([plan.cells for plan in plans])
        others = [one.cells.will_need(one.places(rows)) for one in self.modalities.values()]
        fetched = [self.cells.will_need(rows, self._fields), *others]
        return [plan._replace(fetched=fetched) for plan in plans]

    def _read(self, plan: ReadPlan) -> CellsRead:
        """Read the cells of some batches, and their neighbours."""
        cells, sizes = self._read_rows(plan.cells), plan.sizes
        # Computing a key takes time for each batch, so only random batches get one.
        keys = [0] * len(sizes)
        if self.assembly.is_random:
            keys = [
                hashing.mixed(self.seed, self.epoch, self.rank, batch) for batch in plan.batches
            ]
        if not self.neighbors:
            return CellsRead(cells, None, sizes, keys)
        assert self.cells.graph is not None
        draws = hashing.draws(plan.positions, self.neighbors, self.seed, self.epoch)
        neighbors = self.cells.graph.sample_many(plan.cells, draws)
        return CellsRead(cells, self._read_rows(neighbors.ravel()), sizes, keys)

    def _assemble(self, read: CellsRead) -> list[Any]:
        parts = read.split(1) if len(read.sizes) > 1 else (read,)
        return [
            self.assembly(part.cells, part.neighbors, self.gene_names, self.columns, part.keys[0])
            for part in parts
        ]

    def _read_and_assemble(self, plan: ReadPlan) -> list[Any]:
        return self._assemble(self._read(plan))
