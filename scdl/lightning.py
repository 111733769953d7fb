"""Loaders for PyTorch Lightning (extra ``lightning``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import numpy as np
from lightning import LightningDataModule
from numpy.typing import NDArray

from scdl.archive import csr
from scdl.dataset.reader import CellReader, as_cells
from scdl.errors import SplitError
from scdl.training.loader import LoaderOptions, LoaderStats, SingleCellLoader
from scdl.training.named_orders import ORDER_OPTIONS, order_name
from scdl.training.options import complete
from scdl.training.orders import Order
from scdl.training.splits import Splits

__all__ = ["SingleCellDataModule"]


#: Accepted names of the parts of a split, by purpose.
_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
    "predict": ("predict", "prediction"),
}


class SingleCellDataModule(LightningDataModule):
    """Loaders for training, validation, test and prediction over a split of one dataset.

    Training cells come in the given order, the others in stored order. The progress of training
    is saved in checkpoints; a resumed run continues with the remaining batches.

    Parameters
    ----------
    dataset
        Dataset or collection.
    splits
        Parts ``train`` (or ``training``), ``validation`` (``val``, ``valid``), ``test``
        (``testing``) and ``predict`` (``prediction``), each of which may be missing.
    batch_size, order, seed
        As for :class:`scdl.SingleCellLoader`.
    **options
        Further options of the loader. Those of the order apply only to training.

    Raises
    ------
    SplitError
        A part has an unknown name, or two parts have the same purpose; or the split is of another
        dataset.
    LoaderError
        An option does not exist or has an invalid value.

    Examples
    --------
    >>> from scdl.lightning import SingleCellDataModule
    >>> parts = scdl.split(data, {"train": 0.5, "val": 0.5}, seed=1)
    >>> module = SingleCellDataModule(data, parts, batch_size=2, obs=["cell_type"])
    >>> len(module.train_dataloader()), len(module.val_dataloader())
    (1, 2)
    """

    def __init__(
        self,
        dataset: CellReader,
        splits: Mapping[str, csr.Rows],
        batch_size: int = 64,
        *,
        order: str | Order | None = None,
        seed: int = 0,
        **options: Unpack[LoaderOptions],
    ) -> None:
        super().__init__()
        self._cells, self._batch_size = as_cells(dataset), batch_size
        self._rows = _parts(splits, self._cells.n_obs)
        # Checked and copied now; loaders are created later, when the process group exists.
        self._order, self._seed, self._options = order, seed, complete(options)
        self._loaders: dict[str, SingleCellLoader] = {}
        self._state: dict[str, Any] | None = None

    def train_dataloader(self) -> SingleCellLoader:
        """Loader of the part ``train``; the last batch is dropped if it is incomplete.

        Raises
        ------
        SplitError
            The split has no such part.
        """
        if "train" not in self._rows:
            raise SplitError(
                f"the split has no part 'train' to train on, only {', '.join(self._rows) or 'none'}"
            )
        if "train" not in self._loaders:
            self._loaders["train"] = SingleCellLoader(
                self._cells,
                self._batch_size,
                order=self._order,
                rows=self._rows["train"],
                seed=self._seed,
                drop_last=True,
                **self._options,
            )
        loader = self._loaders["train"]
        if self._state is not None:
            loader.load_state_dict(self._state)
            self._state = None
        return loader

    def val_dataloader(self) -> Any:
        """Loader of the part ``validation``; an empty list if there is none."""
        return self._in_order("validation")

    def test_dataloader(self) -> Any:
        """Loader of the part ``test``; an empty list if there is none."""
        return self._in_order("test")

    def predict_dataloader(self) -> Any:
        """Loader of the part ``predict``, or of all cells in stored order if there is none."""
        return self._in_order("predict")

    def _in_order(self, part: str) -> Any:
        rows = self._rows.get(part)
        if rows is None and part != "predict":
            return []
        if part not in self._loaders:
            ordering = {name for names in ORDER_OPTIONS.values() for name in names}
            options: Any = {n: v for n, v in self._options.items() if n not in ordering}
            n_cells = self._cells.n_obs if rows is None else len(rows)
            # A part for evaluation may have fewer cells than a batch for training.
            self._loaders[part] = SingleCellLoader(
                self._cells, max(1, min(self._batch_size, n_cells)), order="sequential", rows=rows,
                seed=self._seed, **options,
            )  # fmt: skip
        return self._loaders[part]

    def stats(self) -> dict[str, LoaderStats]:
        """Statistics of the last epoch of each loader, by part."""
        return {part: loader.stats() for part, loader in self._loaders.items()}

    def __repr__(self) -> str:
        order = order_name(self._order, self._options)
        parts = [
            f"  {part}: {len(rows):,} cells" + (f", order {order}" if part == "train" else "")
            for part, rows in self._rows.items()
        ]
        head = f"SingleCellDataModule of {self._cells!r}, batches of {self._batch_size}"
        return "\n".join([head, *parts])

    def __str__(self) -> str:
        # The method of LightningDataModule would create all loaders.
        return repr(self)

    def state_dict(self) -> dict[str, Any]:
        """Progress of training, for checkpoints."""
        training = self._loaders.get("train")
        return {} if training is None else {"train": training.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a checkpoint."""
        self._state = state_dict.get("train")


def _parts(splits: Mapping[str, csr.Rows], n_obs: int) -> dict[str, NDArray[np.int64]]:
    """Rows of each part, by purpose; SplitError if a name is unknown."""
    if not isinstance(splits, Mapping):
        raise SplitError(
            f"splits must map names of parts to cells, as scdl.split returns, not {splits!r:.200}"
        )
    if isinstance(splits, Splits) and splits.n_obs != n_obs:
        raise SplitError(
            f"the split was made for {splits.n_obs} cells, but the dataset has {n_obs}"
        )
    usual = {name: part for part, names in _NAMES.items() for name in names}
    found: dict[str, NDArray[np.int64]] = {}
    for name, rows in splits.items():
        if name not in usual:
            known = ", ".join(names[0] for names in _NAMES.values())
            raise SplitError(f"the split has an unknown part {name!r}; use the names {known}")
        if usual[name] in found:
            raise SplitError(f"the split has two parts for {usual[name]!r}: {', '.join(splits)}")
        found[usual[name]] = csr.positions(rows, n_obs).copy()
    return found
