"""Measure how fast an archive is loaded on this machine, and what bounds that."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from scdl.archive.gene_space import OWN
from scdl.dataset.reader import CellReader
from scdl.training import machine as machines
from scdl.training.bounds import Machine, Measurement
from scdl.training.epochs import cells_at
from scdl.training.layouts import LAYOUTS
from scdl.training.loader import SingleCellLoader
from scdl.training.options import DEFAULTS
from scdl.training.orders import Order, Random
from scdl.training.statistics import EpochStatistics
from scdl.training.vocabulary import label_codes
from storage_backends.compute.threads import n_threads
from storage_backends.compute.traffic import TRAFFIC, Counts
from storage_backends.paths import is_url

#: Orders and layouts to choose from, and the length of cells in layouts that take one.
ORDERS, ALL_LAYOUTS, LENGTH = ("block", "random", "sequential"), ("csr", "dense", "padded"), 1024
#: Default number of cells per batch.
BATCH_SIZE = 64
#: The first batch takes at most a fifth of the time of a measurement.
_FIRST_BATCHES = 5
#: Consecutive cells that are read to learn what cells need: so many, and so many chunks, more than
#: are cached.
_SAMPLE_CELLS, _SAMPLE_CHUNKS = 1024, 32
#: Batches whose label entropy is averaged.
_ENTROPY_BATCHES = 256


@dataclass(frozen=True)
class Options:
    """Options of measurements.

    Parameters
    ----------
    seconds
        Least seconds of each measurement; epochs are repeated as often as needed.
    batch_size
        Cells per batch; default 64, or all cells if there are fewer.
    memory_mb, threads
        As for :class:`~scdl.SingleCellLoader`.
    obs
        Column of obs whose entropy in batches is compared with that of random order.

    Examples
    --------
    >>> from scdl.training.measurement import Options
    >>> Options(seconds=10, batch_size=1024, obs="cell_type").threads
    2
    """

    seconds: float = 3.0
    batch_size: int | None = None
    memory_mb: float = DEFAULTS["memory_mb"]
    threads: int = DEFAULTS["threads"]
    obs: str | None = None


def machine_of(path: str, opening: Counts) -> Machine:
    """What the machine can do, and the network if the archive is remote.

    Parameters
    ----------
    opening
        What was counted while the archive was opened.
    """
    return Machine(
        cores=n_threads(),
        copy_rate=machines.copy_rate(),
        plain_rate=None if is_url(path) else machines.plain_rate(path),
        latency=opening.request_seconds / opening.requests if opening.requests else None,
    )


def measure(
    data: CellReader,
    orders: Sequence[str] = ORDERS,
    layouts: Sequence[str] = ("csr",),
    options: Options | None = None,
) -> Iterator[Measurement]:
    """Yield a measurement for each order and layout.

    Cells of different genes are loaded with ``genes="own"``. Nothing is written, and the page
    cache is used as it is: what is not in it yet comes from the disk in the first measurement.

    Raises
    ------
    LoaderError
        An order or layout does not exist or needs further options, or an option is invalid.
    FeatureNotFoundError, ColumnTypeError
        There is no such column of obs, or it cannot be labels.

    Examples
    --------
    >>> from scdl.training.measurement import Options, measure
    >>> for measured in measure(data, ["block"], options=Options(seconds=0.01)):
    ...     assert measured.cells_per_second > 0
    """
    options = options or Options()
    codes = None if options.obs is None else label_codes(data, options.obs).values
    for order, layout in itertools.product(orders, layouts):
        # Wrong options are an error before anything is measured.
        _loader(data, order, layout, options)
    sample = _Sample.of(data)
    for order, layout in itertools.product(orders, layouts):
        yield _measured(data, order, layout, options, sample, codes)


def _loader(
    data: CellReader, order: str, layout: str, options: Options, rows: Any = None
) -> SingleCellLoader:
    takes_length = layout in LAYOUTS and LAYOUTS[layout].takes_length
    return SingleCellLoader(
        data,
        min(BATCH_SIZE, data.n_obs) if options.batch_size is None else options.batch_size,
        order=order,
        rows=rows,
        layout=layout,
        length=LENGTH if takes_length else None,
        genes=_genes(data),
        memory_mb=options.memory_mb,
        threads=options.threads,
    )


def _genes(data: CellReader) -> str | None:
    """How cells are read: in their own genes if these differ."""
    return OWN if len(data.info.blocks) > 1 and data.gene_spaces.any() else None


class _Sample(NamedTuple):
    """What consecutive cells need on average, as far as some of them tell.

    Attributes
    ----------
    n_bytes
        Bytes of the storage per cell; None if the backend does not tell.
    cpu_seconds
        Time on a core to read a cell, if cells are stored in chunks.
    """

    n_bytes: float | None
    cpu_seconds: float

    @classmethod
    def of(cls, data: CellReader) -> _Sample:
        per_chunk = data.storage.cells_per_chunk
        n = min(data.n_obs, max(_SAMPLE_CELLS, int(_SAMPLE_CHUNKS * per_chunk)))
        before = TRAFFIC.counts()
        rows = np.arange(n)
        # Keeps what a remote storage sends, so that only decoding is timed.
        fetched = data.will_need(rows)
        # The first time, code is compiled and files are read.
        n_values = len(data.read_rows(rows, genes=_genes(data)).data)
        asked = TRAFFIC.counts().since(before).asked
        began = time.process_time()
        data.read_rows(rows, genes=_genes(data))
        seconds = time.process_time() - began
        del fetched
        # These cells may have more values than others.
        per_cell = data.number_nonzero_values() / data.n_obs / max(n_values, 1)
        return cls(
            asked * per_cell if asked else None, seconds * per_cell if per_chunk > 1 else 0.0
        )


class _Run(NamedTuple):
    """What was measured while a loader was iterated over; numbers as in :class:`Measurement`."""

    cells: int
    seconds: float
    first_batch: float
    waited: float
    cpu_seconds: float
    queued_seconds: float
    read_bytes: int | None
    in_flight_bytes: int
    counts: Counts

    @classmethod
    def of(cls, make: Callable[[], SingleCellLoader], seconds: float) -> _Run:
        """Take batches for some seconds, and for several times as long as the first one takes."""
        reading, counts = EpochStatistics(), TRAFFIC.counts()
        began, cpu = time.perf_counter(), time.process_time()
        loader, first_batch = make(), 0.0
        cells, waited, queued, most = 0, 0.0, 0.0, 0
        while True:
            queue = machines.Queue()
            with contextlib.closing(cast("Generator[Any]", iter(loader))) as batches:
                for _ in batches:
                    now = time.perf_counter() - began
                    first_batch = first_batch or now
                    if now >= max(seconds, _FIRST_BATCHES * first_batch):
                        break
                # Before the threads that read ahead are waited for.
                ended, cpu_ended = time.perf_counter() - began, time.process_time() - cpu
                stats, read = loader.stats(), reading.stats().read_bytes
                queued += queue.seconds()
            cells, waited = cells + stats.cells, waited + stats.waited
            most = max(most, stats.in_flight_bytes or 0)
            if ended >= max(seconds, _FIRST_BATCHES * first_batch):
                since = TRAFFIC.counts().since(counts)
                return cls(cells, ended, first_batch, waited, cpu_ended, queued, read, most, since)


def _measured(
    data: CellReader,
    order: str,
    layout: str,
    options: Options,
    sample: _Sample,
    codes: NDArray[Any] | None,
) -> Measurement:
    # Code that is compiled, and modules that are imported at first use, are not measured.
    loader = _loader(data, order, layout, options)
    warm = _loader(data, "sequential", layout, options, np.arange(loader.batch_size))
    next(iter(warm))
    with machines.MemoryWatch() as memory:
        run = _Run.of(partial(_loader, data, order, layout, options), options.seconds)
    counts = run.counts
    asked = counts.asked / counts.rows if counts.asked else None
    waste = asked / sample.n_bytes if asked and sample.n_bytes else 1.0
    cores = n_threads()
    return Measurement(
        order=order,
        layout=layout,
        cells=run.cells,
        seconds=run.seconds,
        first_batch=run.first_batch,
        wait_share=run.waited / run.seconds,
        cpu_seconds=run.cpu_seconds,
        queued_seconds=run.queued_seconds,
        decoding_seconds=sample.cpu_seconds * waste * run.cells,
        usable_cores=cores if data.storage.cells_per_chunk > 1 else min(options.threads, cores),
        asked_bytes=asked,
        needed_bytes=sample.n_bytes,
        # Reading is as far ahead as announcing.
        read_bytes=None if run.read_bytes is None else run.read_bytes / counts.rows,
        requests=counts.requests,
        request_seconds=counts.request_seconds,
        busy_seconds=counts.busy_seconds,
        in_flight_bytes=run.in_flight_bytes,
        memory_bytes=memory.more,
        entropy_share=None if codes is None else _entropy_share(loader, codes),
    )


def _entropy_share(loader: SingleCellLoader, codes: NDArray[Any]) -> float | None:
    """Label entropy of batches over that of random order; None if that is 0."""
    of_random = _mean_entropy(Random(), loader.batch_size, codes)
    if not of_random:
        return None
    return _mean_entropy(loader.order, loader.batch_size, codes) / of_random


def _mean_entropy(order: Order, batch_size: int, codes: NDArray[Any]) -> float:
    """Mean entropy of the labels of a batch in bits, over batches from the whole epoch."""
    n = len(codes)
    positions = order.positions(n, 0, 0)
    last = len(positions) // batch_size - 1
    entropies = []
    for batch in np.unique(np.linspace(0, last, _ENTROPY_BATCHES).astype(int)).tolist():
        cells = cells_at(positions, batch * batch_size, (batch + 1) * batch_size, n)
        shares = np.unique(codes[cells], return_counts=True)[1] / batch_size
        entropies.append(-(shares * np.log2(shares)).sum())
    return float(np.mean(entropies))
