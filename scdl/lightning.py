"""Loaders for PyTorch Lightning (extra ``lightning``)."""

from __future__ import annotations

from typing import Any, Unpack

from lightning import LightningDataModule

from scdl.loader import LoaderOptions, SingleCellLoader
from scdl.rows import CellReader
from scdl.splits import Splits

__all__ = ["SingleCellDataModule"]


class SingleCellDataModule(LightningDataModule):
    """Training, validation and test loaders over a split of one dataset.

    Training cells come in the order asked for, the others as they are stored. Where training
    stands is saved in checkpoints; a run that is resumed gives the batches that were left.

    Parameters
    ----------
    dataset
        The cells.
    splits
        Parts ``train``, ``validation`` and ``test``, of which the last two may be missing.
    batch_size, order, seed
        As for :class:`scdl.SingleCellLoader`.
    **options
        The others of the loader.
    """

    def __init__(
        self,
        dataset: CellReader,
        splits: Splits,
        batch_size: int = 64,
        *,
        order: Any = "block",
        seed: int = 0,
        **options: Unpack[LoaderOptions],
    ) -> None:
        super().__init__()
        self._cells, self._splits, self._batch_size = dataset, splits, batch_size
        self._order, self._seed, self._options = order, seed, options
        self._training: SingleCellLoader | None = None
        self._state: dict[str, Any] | None = None

    def train_dataloader(self) -> SingleCellLoader:
        """Loader of the part ``train``, whose last batch is left out if it is not whole."""
        if self._training is None:
            self._training = SingleCellLoader(
                self._cells,
                self._batch_size,
                order=self._order,
                rows=self._splits["train"],
                seed=self._seed,
                drop_last=True,
                **self._options,
            )
        if self._state is not None:
            self._training.load_state_dict(self._state)
            self._state = None
        return self._training

    def val_dataloader(self) -> Any:
        """Loader of the part ``validation``; an empty list where there is none."""
        return self._in_order("validation")

    def test_dataloader(self) -> Any:
        """Loader of the part ``test``; an empty list where there is none."""
        return self._in_order("test")

    def _in_order(self, part: str) -> Any:
        if part not in self._splits:
            return []
        rows = self._splits[part]
        # What is only looked at may be less than a batch for training.
        return SingleCellLoader(
            self._cells, min(self._batch_size, len(rows)), order="sequential", rows=rows,
            seed=self._seed, **self._options,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Where training stands, for checkpoints."""
        return {} if self._training is None else {"train": self._training.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._state = state_dict.get("train")
