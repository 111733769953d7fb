"""The training loader: ordered batches, divided among ranks and workers, read ahead."""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Generator, Iterator, Mapping
from typing import Any, NoReturn, Unpack
from weakref import WeakSet

import numpy as np
from torch.utils.data import DataLoader

from scdl.archive import csr
from scdl.dataset.reader import CellReader
from scdl.dataset.summary import Facts, Summarized
from scdl.errors import LoaderError
from scdl.kernels import hashing
from scdl.training import orders
from scdl.training.batch import TrainingBatch
from scdl.training.content import BatchContent
from scdl.training.iterable import LoaderDataset
from scdl.training.named_orders import OrderMaker, order_name
from scdl.training.options import LoaderOptions, complete, rank_and_world_size, whole_number
from scdl.training.pipeline import Pipeline
from scdl.training.progress import Progress, parse_state
from scdl.training.schedule import Schedule
from scdl.training.statistics import EpochStatistics, LoaderStats
from storage_backends.compute.caching import cached_property

__all__ = ["LoaderOptions", "LoaderStats", "SingleCellLoader", "TrainingBatch"]

# numba imports most of its modules at the first call of a kernel: now rather than in a batch.
hashing.permuted(np.empty(0, np.int64), 1, 0)

#: Epochs in progress; closed at exit, before the interpreter clears its modules.
_UNFINISHED: WeakSet[Generator[Any]] = WeakSet()


@atexit.register
def _close_unfinished() -> None:
    for batches in list(_UNFINISHED):
        # A generator that another thread is running cannot be closed.
        with contextlib.suppress(ValueError):
            batches.close()


class SingleCellLoader(Summarized):
    """Iterable over training batches of cells; yields :class:`~scdl.training.batch.TrainingBatch`.

    Threads read and assemble cells while the model computes. The order is a pure function of the
    number of cells, the seed and the epoch: batches do not depend on threads or workers. Blocks and
    buffers of the block order follow from `memory_mb` and the storage unless they are given. Each
    iteration is the next epoch.

    Parameters
    ----------
    dataset
        Dataset or collection to read; `rows` selects a subset of its cells.
    batch_size
        Cells per batch, on each rank.
    order
        ``"block"``, the default: shuffle blocks of consecutive cells, then the cells of many
        blocks together. ``"random"``: shuffle single cells. ``"sequential"``: keep the stored
        order. ``"weighted"``, the default if `weights` are given: draw cells in proportion to
        their weights. ``"balanced"``: draw cells so that each value of the obs column `by` is
        equally likely. ``"grouped"``: take every batch from one value of `by`; with `control`, the
        second half of every batch holds cells of that value, each with the same value in the obs
        column `match` as its counterpart in the first half. `by` and `match` may be several
        columns: each combination is a value. Or any :class:`scdl.training.orders.Order`. An option
        that the order does not use is an error.
    rows
        Cells to use, as for ``read_rows``; ``"sequential"`` visits them in this order.
    seed
        Seed of the order, of sampled neighbours and of random transforms.
    drop_last
        Whether to leave out an incomplete last batch; by default the ranks share its cells.
    **options
        - ``layout``: ``"csr"``, ``"coo"``, ``"dense"`` or ``"padded"``, which holds `length` values
          of each cell and their genes. ``choose`` selects them in cells that have more:
          ``"first"``, the default: those with the lowest gene ids; ``"largest"`` (also
          ``by_value=True``): the largest values, in descending order; ``"random"``: a new random
          sample in every epoch.
        - ``dtype``: torch or NumPy dtype of the values, default ``torch.float32``; None keeps the
          stored one. A value that it cannot represent is an error.
        - ``obs``, ``obsm``: one or several columns and dense vectors to include; :attr:`vocabulary`
          holds the labels of their codes.
        - ``fields``: one or several further matrices of the cells to include in ``fields`` of the
          batch, as stored: names of ``dataset.fields``, in the layout of the loader, or a dict of
          name to layout. A padded field has the length and choice of the matrix, or its own, as in
          ``{"spliced": {"layout": "padded", "length": 64, "choose": "largest"}}``, and its genes in
          ``field_genes``. ``"aligned"``: the values of the genes that the batch has of a padded
          matrix.
        - ``modalities``: further datasets of the same cells by name, such as ``{"protein":
          protein}``, matched by the names of cells, in any order. Each is in ``fields`` of the
          batch, with the genes of its dataset; `fields` may name its layout.
        - ``matrix``: another matrix of an AnnData that the archive keeps completely, such as
          ``layers/counts``.
        - ``genes``, ``gene_column``, ``missing``, ``duplicates``: one gene space for cells of
          different genes, as for :meth:`~scdl.SingleCellDataset.select_genes`; ``genes="own"``
          gives column ids in each cell's own genes instead, and ``spaces`` in the batch.
        - ``neighbors``: how many neighbours to sample for each cell.
        - ``transforms``: :class:`~scdl.training.transforms.NormalizeTotal`,
          :class:`~scdl.training.transforms.Log1p`, then any functions of the batch. A function with
          a parameter `rng` gets a :class:`numpy.random.Generator` that depends only on the seed,
          the epoch, the rank and the batch.
        - ``tokenizer``: takes a :class:`~scdl.CellBatch` and the gene names, and `rng` if it has
          such a parameter; its result is the batch's ``tokens``.
        - ``remainder``: for the order ``"grouped"``, how to treat cells of a group that do not fill
          a batch: ``"smaller"``: give a smaller batch; ``"fill"``: fill it with other cells of the
          group, drawn with replacement; ``"drop"``: leave them out of the epoch. By default they
          are left out, different ones in each epoch, and a group smaller than a batch is an error.
        - ``memory_mb``: megabytes for cells in memory or in the page cache, default 256; determines
          `block` and `buffer` of the block order, in cells, unless they are given.
        - ``prefetch``: batches to assemble ahead, default 4; small batches are assembled in tasks
          of some 500 cells, and each of the ``threads``, default 2, is one task ahead.
        - ``workers``: processes that do so instead, default 0.
        - ``rank``, ``world_size``: default to those of ``torch.distributed``, if initialised.

    Raises
    ------
    LoaderError
        Options contradict each other or the data.
    OrderError
        The weights, groups or controls do not fit the order.
    FeatureNotFoundError, ColumnTypeError
        There is no such column of obs, key of obsm or field, or it cannot become a tensor.
    GeneError
        The cells have different genes, and no `genes` were given.
    CellNotFoundError
        A modality lacks some of the cells.
    RowIndexError
        `rows` are not cells of the dataset.
    DatasetTypeError
        `dataset` is neither a dataset nor a collection, such as a path or an AnnData.

    Examples
    --------
    >>> loader = scdl.SingleCellLoader(data, batch_size=2, layout="dense", obs=["cell_type"])
    >>> len(loader)
    3
    >>> for batch in loader:
    ...     assert batch.x.shape == (2, 4)
    ...     assert batch.obs["cell_type"].dtype == batch.rows.dtype  # int64
    >>> loader.vocabulary["cell_type"]
    ('B', 'NK', 'T')
    """

    def __init__(
        self,
        dataset: CellReader,
        batch_size: int = 64,
        *,
        order: str | orders.Order | None = None,
        rows: csr.Rows | None = None,
        seed: int = 0,
        drop_last: bool = False,
        **options: Unpack[LoaderOptions],
    ) -> None:
        self._options: LoaderOptions = complete(options)
        self._content = BatchContent.of(dataset, rows, self._options)
        self.cells, self.drop_last = self._content.cells, bool(drop_last)
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.seed = whole_number("seed", seed)
        self._custom_order = None if order is None or isinstance(order, str) else order
        self._order_name = order_name(order, self._options)
        self.rank, self.world_size = rank_and_world_size(
            self._options["rank"], self._options["world_size"]
        )
        self._progress = Progress()
        self._statistics: EpochStatistics | None = None
        self._content.check()
        self._schedule.check()

    @cached_property
    def order(self) -> orders.Order:
        """Order in which cells are visited."""
        if self._custom_order is not None:
            return self._custom_order
        return self._order_maker.make(self._order_name)

    @cached_property
    def _buffer(self) -> int:
        """Cells that are planned together: those of the order, or what fits into memory."""
        return int(getattr(self.order, "buffer", 0) or self._order_maker.budget)

    @property
    def _order_maker(self) -> OrderMaker:
        return OrderMaker(self._content, self.batch_size, drop_last=self.drop_last)

    @cached_property
    def _schedule(self) -> Schedule:
        return Schedule(
            order=self.order,
            name=self._order_name,
            n=len(self._content),
            batch_size=self.batch_size,
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
            drop_last=self.drop_last,
        )

    @property
    def vocabulary(self) -> Mapping[str, tuple[Any, ...]]:
        """Labels by code, for every column of obs that holds labels."""
        columns = self._content.columns.items()
        return {name: column.names for name, column in columns if column.names is not None}

    def __len__(self) -> int:
        """Batches per epoch, the same for every rank."""
        return self._schedule.n_batches(self.epoch)

    def __repr__(self) -> str:
        title, facts = self._summary()
        return "\n".join([title, *(f"  {name}: {fact}" for name, fact in facts.items())])

    def _summary(self) -> tuple[str, Facts]:
        content = self._content
        of_all = "" if content.rows is None else f"{len(content):,} cells of "
        ranks = "" if self.world_size == 1 else f", rank {self.rank} of {self.world_size}"
        last = ", the last one left out if not whole" if self.drop_last else ""
        facts = {
            "batches": f"{len(self):,} per epoch of {self.batch_size} cells{last}{ranks}",
            "order": f"{self._order_name}, seed {self.seed}, epoch {self.epoch}",
            "gives": str(content),
        }
        return f"SingleCellLoader of {of_all}{self.cells!r}", facts

    def __getitem__(self, index: object) -> NoReturn:
        # A DataLoader treats an object with a length as a dataset of items.
        raise LoaderError(
            "a loader has no items by position; iterate over it, or pass its dataset to a "
            "DataLoader: DataLoader(loader.dataset(), batch_size=None)"
        )

    # -- reading ---------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the next epoch, or over the rest of a resumed one.

        Several iterations may be in use at once: each is a different epoch.
        """
        batches = self._epoch_batches()
        _UNFINISHED.add(batches)
        return batches

    def _epoch_batches(self) -> Generator[Any]:
        iteration, in_workers = self._progress.begin(), self._options["workers"] > 0
        run = self._from_workers if in_workers else self._batches
        self._statistics = statistics = EpochStatistics(
            self.batch_size,
            self._content.bytes_per_cell,
            reads=not in_workers,
            n_datasets=1 + len(self._content.modalities),
        )
        try:
            with contextlib.closing(run(iteration.epoch, iteration.batch)) as batches:
                for batch in statistics.measured(batches):
                    self._progress.advance(iteration)
                    yield batch
        except BaseException:
            self._progress.abandon(iteration)
            raise
        self._progress.finish(iteration, moves_on=True)

    def _from_workers(self, epoch: int, first: int) -> Generator[Any]:
        """Yield the same batches from the worker processes of a DataLoader."""
        dataset = self.dataset()
        dataset.resume(epoch, first)
        n_workers = self._options["workers"]
        per_worker = max(1, self._options["prefetch"] // n_workers)
        yield from DataLoader(
            dataset, batch_size=None, num_workers=n_workers, prefetch_factor=per_worker
        )

    def _batches(
        self, epoch: int, first: int, worker: int = 0, n_workers: int = 1
    ) -> Generator[Any]:
        """Yield the batches of one worker: every `n_workers`-th one from `first` on."""
        self._content.check_unchanged()
        yield from Pipeline(
            content=self._content,
            schedule=self._schedule,
            epoch=epoch,
            run=self._schedule.batches(epoch, first, worker, n_workers),
            buffer=self._buffer,
            window=getattr(self.order, "window", None) or self._buffer,
        )

    def dataset(self) -> LoaderDataset:
        """The dataset for ``DataLoader(loader.dataset(), batch_size=None, num_workers=…)``.

        Examples
        --------
        >>> from torch.utils.data import DataLoader
        >>> loader = scdl.SingleCellLoader(data, batch_size=2)
        >>> batches = DataLoader(loader.dataset(), batch_size=None)
        >>> len(list(batches))
        3
        """
        return LoaderDataset(self)

    def __getstate__(self) -> dict[str, Any]:
        # Workers make the order anew.
        return {k: v for k, v in self.__dict__.items() if k not in ("order", "_schedule")}

    # -- progress --------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at the beginning of an epoch.

        Examples
        --------
        >>> loader = scdl.SingleCellLoader(data, batch_size=2)
        >>> loader.set_epoch(3)
        >>> loader.epoch
        3
        """
        self._progress.set(int(epoch))

    @property
    def epoch(self) -> int:
        """The current epoch; between two epochs the next one."""
        return self._progress.current[0]

    def stats(self) -> LoaderStats:
        """Statistics of the last epoch, finished or not.

        Examples
        --------
        >>> loader = scdl.SingleCellLoader(data, batch_size=2)
        >>> _ = list(loader)
        >>> stats = loader.stats()
        >>> stats.cells, stats.batches
        (6, 3)
        """
        return LoaderStats() if self._statistics is None else self._statistics.stats()

    def state_dict(self) -> dict[str, Any]:
        """State of this rank for :meth:`load_state_dict`: plain numbers and text.

        With several iterations in use, the state is that of the one that yielded a batch last. An
        abandoned iteration, such as ``next(iter(loader))``, does not count while another is in use.

        Examples
        --------
        >>> loader = scdl.SingleCellLoader(data, batch_size=2)
        >>> batches = iter(loader)
        >>> _ = next(batches)
        >>> state = loader.state_dict()
        >>> state["epoch"], state["batch"]
        (0, 1)
        """
        return self._state(*self._progress.current)

    def _state(self, epoch: int, batch: int) -> dict[str, Any]:
        return {"epoch": epoch, "batch": batch, "loader": self._fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the next iteration where the state was taken.

        All ranks may load the state of any one rank. A state that was taken after the last batch
        of an epoch continues with the next epoch.

        Raises
        ------
        ResumeError
            The state belongs to a loader with other data, cells, batches, order or seed.

        Examples
        --------
        >>> loader = scdl.SingleCellLoader(data, batch_size=2)
        >>> batches = iter(loader)
        >>> _ = next(batches)
        >>> later = scdl.SingleCellLoader(data, batch_size=2)
        >>> later.load_state_dict(loader.state_dict())
        >>> len(list(later))  # the rest of the epoch
        2
        """
        epoch, batch = parse_state(state, self._fingerprint)
        n_batches = self._schedule.n_batches(epoch)
        self._progress.set(*((epoch, batch) if batch < n_batches else (epoch + 1, 0)))

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        """Everything that must be equal for a saved state to be valid."""
        data = {"cells": self.cells.n_obs, "data": self._content.digest}
        return {**data, **self._schedule.fingerprint()}
