"""The batches of a loader as a PyTorch dataset."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from scdl.training.progress import Place, Progress

if TYPE_CHECKING:
    from scdl.training.loader import SingleCellLoader


class LoaderDataset(IterableDataset[Any]):
    """The batches of a loader as a PyTorch dataset, of which workers give one each in turn.

    Each iteration is the next epoch, as far as a process can know: workers that start anew for
    every epoch begin with the one that was set last, so call :meth:`set_epoch` before each.

    Parameters
    ----------
    loader
        What makes the batches; the first iteration begins where it stands.
    """

    def __init__(self, loader: SingleCellLoader) -> None:
        self._loader = loader
        self._progress = Progress(*loader._progress.now)
        # How often it was set, epoch and first batch; shared with workers that live on.
        state = torch.tensor([0, *self._progress.now])
        self._set: torch.Tensor = state.share_memory_()  # type: ignore[no-untyped-call]
        self._seen = -1

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        """The batches of this worker.

        The iteration has its place from now on, so that a state that is taken before its first
        batch is of this epoch.
        """
        self._take_what_was_set()
        return self._batches(self._progress.begin())

    def _batches(self, place: Place) -> Generator[Any]:
        info = get_worker_info()
        worker, n_workers = (0, 1) if info is None else (info.id, info.num_workers)
        try:
            for batch in self._loader._batches(place.epoch, place.batch, worker, n_workers):
                self._progress.gave(place, n_workers)
                yield batch
        except BaseException:
            self._progress.left(place)
            raise
        self._progress.finished(place, moves_on=False)

    def _take_what_was_set(self) -> None:
        times, epoch, batch = self._set.tolist()
        if times != self._seen:
            self._seen = times
            self._progress.set(epoch, batch)

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be that epoch, from its beginning."""
        self.resume(epoch, 0)

    def resume(self, epoch: int, batch: int) -> None:
        """Let the next iteration begin with a batch of an epoch."""
        self._set[:] = torch.tensor([int(self._set[0]) + 1, epoch, batch])

    def state_dict(self) -> dict[str, Any]:
        """Where this process stands, for torchdata's ``StatefulDataLoader``.

        After the last batch of an epoch nothing of it is left; the iteration after that is the
        next epoch.
        """
        self._take_what_was_set()
        return self._loader._state(*self._progress.now)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a process of as many workers stood; errors as those of a loader."""
        epoch, batch = self._loader._checked(state)
        self._take_what_was_set()
        self._progress.set(epoch, batch)
        # Workers that start anew afterwards begin with the next epoch.
        self._set[1:] = torch.tensor([epoch + 1, 0])
