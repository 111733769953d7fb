"""The training loader: ordered batches, divided among ranks and workers, read ahead."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Generator, Iterator, Mapping
from typing import Any, NoReturn, Unpack

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from scdl.archive import csr
from scdl.archive.gene_names import check_one_space
from scdl.archive.gene_space import is_own
from scdl.archive.schema import INDEX
from scdl.dataset.reader import CellReader, as_cells
from scdl.errors import LoaderError, OrderError, ResumeError
from scdl.kernels import hashing
from scdl.training import orders
from scdl.training.assembly import Assembly
from scdl.training.batch import TrainingBatch
from scdl.training.epochs import Epoch, Share, cells_at, share_of
from scdl.training.iterable import LoaderDataset
from scdl.training.modalities import modalities_of
from scdl.training.named_orders import OrderMaker, check_unused, order_name
from scdl.training.options import (
    LoaderOptions,
    LoaderStats,
    complete,
    rank_and_world_size,
    whole_number,
)
from scdl.training.pipeline import Pipeline
from scdl.training.progress import Progress
from scdl.training.reading import EpochReading
from scdl.training.vocabulary import ObsColumn, obs_column
from storage_backends.compute.caching import cached_property

__all__ = ["LoaderOptions", "LoaderStats", "SingleCellLoader", "TrainingBatch"]

#: The fingerprint of an order without a method `fingerprint` hashes up to this many samples of up
#: to this many consecutive positions.
_FINGERPRINT_SAMPLES, _SAMPLE_LENGTH = 1 << 10, 1 << 10
# numba imports most of its modules at the first call of a kernel: now rather than in a batch.
hashing.permuted(np.empty(0, np.int64), 1, 0)


class SingleCellLoader:
    """Iterable over training batches of cells; yields :class:`TrainingBatch`.

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
        ``layout``: ``"csr"``, ``"coo"``, ``"dense"`` or ``"padded"``, which holds `length` values
        of each cell and their genes. ``choose`` selects them in cells that have more:
        ``"first"``, the default: those with the lowest gene ids; ``"largest"`` (also
        ``by_value=True``): the largest values, in descending order; ``"random"``: a new random
        sample in every epoch.
        ``dtype``: torch or NumPy dtype of the values, default ``torch.float32``; None keeps the
        stored one. A value that it cannot represent is an error.
        ``obs``, ``obsm``: one or several columns and dense vectors to include;
        :attr:`vocabulary` holds the labels of their codes.
        ``fields``: one or several further matrices of the cells to include in ``fields`` of the
        batch, as stored: names of ``dataset.fields``, in the layout of the loader, or a dict of
        name to layout. A padded field has the length and choice of the matrix, or its own, as in
        ``{"spliced": {"layout": "padded", "length": 64, "choose": "largest"}}``, and its genes in
        ``field_genes``. ``"aligned"``: the values of the genes that the batch has of a padded
        matrix.
        ``modalities``: further datasets of the same cells by name, such as
        ``{"protein": protein}``, matched by the names of cells, in any order. Each is in ``fields``
        of the batch, with the genes of its dataset; `fields` may name its layout.
        ``matrix``: another matrix of an AnnData that the archive keeps completely, such as
        ``layers/counts``.
        ``genes``, ``gene_column``, ``missing``, ``duplicates``: one gene space for cells of
        different genes, as for :meth:`~scdl.SingleCellDataset.select_genes`; ``genes="own"`` gives
        column ids in each cell's own genes instead, and ``spaces`` in the batch.
        ``neighbors``: how many neighbours to sample for each cell.
        ``transforms``: :class:`~scdl.training.transforms.NormalizeTotal`,
        :class:`~scdl.training.transforms.Log1p`, then any functions of the batch. A function with
        a parameter `rng` gets a :class:`numpy.random.Generator` that depends only on the seed, the
        epoch, the rank and the batch.
        ``tokenizer``: takes a :class:`~scdl.CellBatch` and the gene names, and `rng` if it has
        such a parameter; its result is the batch's ``tokens``.
        ``remainder``: for the order ``"grouped"``, how to treat cells of a group that do not fill
        a batch: ``"smaller"``: give a smaller batch; ``"fill"``: fill it with other cells of the
        group, drawn with replacement; ``"drop"``: leave them out of the epoch. By default they are
        left out, different ones in each epoch, and a group smaller than a batch is an error.
        ``memory_mb``: megabytes for cells in memory or in the page cache, default 256; determines
        `block` and `buffer` of the block order, in cells, unless they are given.
        ``prefetch``: batches to assemble ahead, default 4; small batches are assembled in tasks of
        some 500 cells, and each of the ``threads``, default 2, is one task ahead. ``workers``:
        processes that do so instead, default 0.
        ``rank``, ``world_size``: default to those of ``torch.distributed``, if initialised.

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
        dataset = as_cells(dataset)
        if self._options["matrix"] is not None:
            dataset = dataset.select_matrix(self._options["matrix"])
        self._own_genes = is_own(self._options["genes"])
        if self._options["genes"] is not None and not self._own_genes:
            dataset = dataset.select_genes(
                self._options["genes"],
                gene_column=self._options["gene_column"],
                missing=self._options["missing"],
                duplicates=self._options["duplicates"],
            )
        self.cells, self.drop_last = dataset, bool(drop_last)
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.seed = whole_number("seed", seed)
        # A copy, so that later changes of the caller's array have no effect.
        self._rows = None if rows is None else csr.positions(rows, dataset.n_obs).copy()
        self._n = dataset.n_obs if self._rows is None else len(self._rows)
        self._custom_order = None if order is None or isinstance(order, str) else order
        if isinstance(order, str) or order is None:
            self._order_name = order_name(order, self._options)
        else:
            self._order_name = type(order).__name__
        # Any cell may be a neighbour.
        needed = None if self._options["neighbors"] else self._rows
        self._modalities = modalities_of(self._options["modalities"], dataset, needed)
        self._initial_identity = self._identity
        self.rank, self.world_size = rank_and_world_size(
            options.get("rank"), options.get("world_size")
        )
        self._assembly = Assembly(
            layout=self._options["layout"],
            dtype=self._options["dtype"],  # type: ignore[arg-type]
            length=self._options["length"],
            choose=self._options["choose"],
            transforms=self._options["transforms"],
            tokenizer=self._options["tokenizer"],
            fields=self._options["fields"],  # type: ignore[arg-type]
        )
        self._progress = Progress()
        self._stats = LoaderStats()
        self._reading: EpochReading | None = None
        self._check()

    def _check(self) -> None:
        if self._n == 0:
            raise LoaderError("there are no cells to load: the dataset or the subset is empty")
        if self._custom_order is not None:
            self._check_custom_order(self._custom_order)
        width = getattr(self._custom_order, "batch_size", self.batch_size)
        if width != self.batch_size:
            raise LoaderError(
                f"the order was made for batches of {width} cells, not of {self.batch_size}"
            )
        if self._options["neighbors"] and self.cells.graph is None:
            raise LoaderError(
                "neighbors=… needs a neighbour graph, which the dataset lacks or was opened without"
            )
        if not self._own_genes or self._options["tokenizer"] is not None:
            rows = self._rows
            spaces = self.cells.gene_spaces if rows is None else self.cells.spaces_of(rows)
            if spaces is not None:
                check_one_space(spaces, "the cells to load")
        for name, laid in self._assembly.laid_fields.items():
            if name in self._modalities and laid.kind.follows:
                raise LoaderError(
                    f"the modality {name!r} has other genes than the matrix, so that its layout "
                    f"cannot be {laid.layout!r}"
                )
        self._columns  # noqa: B018 - report unknown columns now, not in the first batch
        if self._options["obsm"]:
            self.cells.read_rows([], obsm=self._options["obsm"])
        self._bytes_per_cell  # noqa: B018 - the same for unknown fields
        positions = self._positions(0)
        n_cells = len(positions)
        if n_cells:
            cells_at(positions, 0, 1, self._n)
        if self.batch_size > n_cells:
            raise LoaderError(
                f"batch_size {self.batch_size} is more than the {n_cells} cells of an epoch; use "
                f"at most {n_cells}"
            )
        if len(self) == 0:
            raise LoaderError(
                f"{n_cells} cells are too few for a batch of {self.batch_size} on each of "
                f"{self.world_size} ranks; use smaller batches, or drop_last=False"
            )

    def _check_custom_order(self, order: Any) -> None:
        if isinstance(order, type) or not hasattr(order, "positions"):
            raise LoaderError(
                f"order must be a name or an object with positions(n, seed, epoch), not {order!r}"
            )
        check_unused("a custom order", self._options, ())

    # -- columns ---------------------------------------------------------------------------

    @cached_property
    def _columns(self) -> dict[str, ObsColumn]:
        return {name: obs_column(self.cells, name) for name in self._options["obs"]}

    @property
    def vocabulary(self) -> Mapping[str, tuple[Any, ...]]:
        """Labels by code, for every column of obs that holds labels."""
        return {n: c.names for n, c in self._columns.items() if c.names is not None}

    @cached_property
    def _gene_names(self) -> NDArray[Any] | None:
        if self._options["tokenizer"] is None:
            return None
        first = 0 if self._rows is None else int(self._rows[0])
        return self.cells.var_features().blocks[self.cells.info.block_of(first)].column(INDEX)

    @property
    def _identity(self) -> tuple[Any, ...]:
        """A key that differs if archives at the same paths change."""
        of_others = [modality.cells.identity for modality in self._modalities.values()]
        return (*self.cells.identity, *of_others)

    @cached_property
    def _bytes_per_cell(self) -> float:
        """Average bytes of a cell in memory, with the fields and modalities that are read."""
        names = [name for name in self._assembly.fields if name not in self._modalities]
        further = sum(self.cells._field(name).nbytes for name in names)
        others = sum(modality.cells.bytes_per_cell for modality in self._modalities.values())
        return self.cells.bytes_per_cell + others + further / max(self.cells.n_obs, 1)

    # -- order -----------------------------------------------------------------------------

    @cached_property
    def order(self) -> orders.Order:
        """Order in which cells are visited."""
        if self._custom_order is not None:
            return self._custom_order
        return self._order_maker.make(self._order_name)

    @property
    def _order_maker(self) -> OrderMaker:
        return OrderMaker(
            cells=self.cells,
            rows=self._rows,
            batch_size=self.batch_size,
            bytes_per_cell=self._bytes_per_cell,
            memory=self._options["memory_mb"] * 1e6,
            drop_last=self.drop_last,
            options=self._options,
        )

    def _positions(self, epoch: int) -> orders.Positions:
        positions = self.order.positions(self._n, self.seed, epoch)
        if not hasattr(positions, "__len__") or not hasattr(positions, "__getitem__"):
            raise OrderError(
                "the positions of an order must have a length and return arrays for slices, found "
                f"{type(positions).__name__}"
            )
        return positions

    def _share(self, positions: orders.Positions) -> Share:
        return share_of(
            positions, self.batch_size, self.rank, self.world_size, drop_last=self.drop_last
        )

    def __len__(self) -> int:
        """Batches per epoch, the same for every rank."""
        return len(self._share(self._positions(self.epoch)))

    def __repr__(self) -> str:
        options = self._options
        gives = [f"{options['layout']} {self._assembly.dtype or 'as stored'}".replace("torch.", "")]
        for column in options["obs"]:
            names = self._columns[column].names
            gives.append(f"obs {column!r}" + ("" if names is None else f" ({len(names)} labels)"))
        gives += [f"obsm {key!r}" for key in options["obsm"]]
        fields = self._assembly.laid_fields
        for name, laid in fields.items():
            kind = "modality" if name in self._modalities else "field"
            gives.append(f"{kind} {name!r} ({laid.layout})")
        if options["tokenizer"] is not None:
            gives[0] = "tokens"
        if options["neighbors"]:
            gives.append(f"{options['neighbors']} neighbours a cell")
        of_all = "" if self._rows is None else f"{self._n:,} cells of "
        ranks = "" if self.world_size == 1 else f", rank {self.rank} of {self.world_size}"
        last = ", the last one left out if not whole" if self.drop_last else ""
        return (
            f"SingleCellLoader of {of_all}{self.cells!r}\n"
            f"  batches: {len(self):,} an epoch of {self.batch_size} cells{last}{ranks}\n"
            f"  order: {self._order_name}, seed {self.seed}, epoch {self.epoch}\n"
            f"  gives: {', '.join(gives)}"
        )

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
        iteration = self._progress.begin()
        run = self._from_workers if self._options["workers"] else self._batches
        try:
            with contextlib.closing(run(iteration.epoch, iteration.batch)) as batches:
                for batch in self._measured(batches):
                    self._progress.advance(iteration)
                    yield batch
        except BaseException:
            self._progress.abandon(iteration)
            raise
        self._progress.finish(iteration, moves_on=True)

    def _measured(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield the batches and update :meth:`stats`."""
        per_cell = self._bytes_per_cell
        began = requested = time.perf_counter()
        waited, cells = 0.0, 0
        self._stats = LoaderStats()
        # Workers read in their own processes.
        n_datasets = 1 + len(self._modalities)
        reading = self._reading = None if self._options["workers"] else EpochReading(n_datasets)
        try:
            for number, batch in enumerate(batches, 1):
                now = time.perf_counter()
                waited += now - requested
                # A transform may have replaced the batch by any object.
                cells += len(batch) if isinstance(batch, TrainingBatch) else self.batch_size
                self._stats = LoaderStats(cells, number, int(cells * per_cell), now - began, waited)
                yield batch
                requested = time.perf_counter()
        finally:
            if reading is not None:
                reading.finish()

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
        if self._identity != self._initial_identity:
            raise LoaderError(
                "an archive was replaced since the loader was created; open the dataset again and "
                "create a new loader"
            )
        positions, options = self._positions(epoch), self._options
        buffer = int(getattr(self.order, "buffer", self._order_maker.budget))
        yield from Pipeline(
            cells=self.cells,
            modalities=self._modalities,
            rows=self._rows,
            run=Epoch(positions, self._share(positions), first, worker, n_workers),
            epoch=epoch,
            seed=self.seed,
            rank=self.rank,
            batch_size=self.batch_size,
            assembly=self._assembly,
            columns={name: column.values for name, column in self._columns.items()},
            gene_names=self._gene_names,
            obsm=options["obsm"],
            neighbors=options["neighbors"],
            own_genes=self._own_genes,
            buffer=buffer,
            window=getattr(self.order, "window", None) or buffer,
            threads=options["threads"],
            prefetch=options["prefetch"],
        )

    # -- PyTorch ---------------------------------------------------------------------------

    def dataset(self) -> LoaderDataset:
        """The dataset for ``DataLoader(loader.dataset(), batch_size=None, num_workers=…)``."""
        return LoaderDataset(self)

    def __getstate__(self) -> dict[str, Any]:
        # Workers recompute what derives from the archive and the options.
        derived = ("_columns", "_gene_names", "order")
        return {k: v for k, v in self.__dict__.items() if k not in derived}

    # -- progress --------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at the beginning of an epoch."""
        self._progress.set(int(epoch))

    @property
    def epoch(self) -> int:
        """The current epoch; between two epochs the next one."""
        return self._progress.current[0]

    def stats(self) -> LoaderStats:
        """Statistics of the last epoch, finished or not."""
        reading = self._reading
        if reading is None:
            return self._stats
        return dataclasses.replace(self._stats, **reading.measured()._asdict())

    def state_dict(self) -> dict[str, Any]:
        """State of this rank for :meth:`load_state_dict`: plain numbers and text.

        With several iterations in use, the state is that of the one that yielded a batch last. An
        abandoned iteration, such as ``next(iter(loader))``, does not count while another is in use.
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
        """
        epoch, batch = self._parse_state(state)
        n_batches = len(self._share(self._positions(epoch)))
        self._progress.set(*((epoch, batch) if batch < n_batches else (epoch + 1, 0)))

    def _parse_state(self, state: Mapping[str, Any]) -> tuple[int, int]:
        """Epoch and batch of a state; ResumeError if the state is not of this loader."""
        try:
            epoch, batch, saved = int(state["epoch"]), int(state["batch"]), state["loader"]
        except (KeyError, TypeError, ValueError) as error:
            raise ResumeError(f"this is not the state of a loader: {error!r}") from error
        ours = self._fingerprint
        if not isinstance(saved, Mapping) or dict(saved) != ours:
            theirs = dict(saved) if isinstance(saved, Mapping) else {}
            other = [name for name in ours if theirs.get(name) != ours[name]]
            raise ResumeError(
                "the state belongs to another loader: "
                + ", ".join(f"{n} was {theirs.get(n)!r} and is {ours[n]!r}" for n in other)
            )
        if epoch < 0 or batch < 0:
            raise ResumeError(f"there is no batch {batch} of epoch {epoch}")
        return epoch, batch

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        """Everything that must be equal for a saved state to be valid."""
        rows = b"" if self._rows is None else self._rows.tobytes()
        return {
            "cells": self.cells.n_obs,
            "data": hashlib.sha256(repr(self._initial_identity).encode() + rows).hexdigest()[:16],
            "batch_size": self.batch_size,
            "order": self._order_fingerprint,
            "seed": self.seed,
            "drop_last": self.drop_last,
            "world_size": self.world_size,
        }

    @property
    def _order_fingerprint(self) -> str:
        """The order's own fingerprint, or a hash of samples of its positions."""
        own = getattr(self.order, "fingerprint", None)
        if own is not None:
            return str(own() if callable(own) else own)
        digest = hashlib.sha256()
        for epoch in (0, 1):
            positions = self.order.positions(self._n, self.seed, epoch)
            step = max(1, len(positions) // _FINGERPRINT_SAMPLES)
            for start in range(0, len(positions), step):
                stop = min(start + min(step, _SAMPLE_LENGTH), len(positions))
                digest.update(cells_at(positions, start, stop, self._n).tobytes())
        return f"{self._order_name} {digest.hexdigest()[:16]}"
