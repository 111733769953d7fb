"""The batches of a loader as a PyTorch dataset."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from scdl.training.progress import Iteration, Progress, parse_state

if TYPE_CHECKING:
    from scdl.training.loader import SingleCellLoader


class LoaderDataset(IterableDataset[Any]):
    """The batches of a loader as a PyTorch dataset; workers yield one batch each in turn.

    Each iteration is the next epoch. Workers that are started anew for every epoch know only the
    epoch that was set last, so call :meth:`set_epoch` before each.

    Parameters
    ----------
    loader
        The loader; the first iteration begins at its current epoch and batch.

    Examples
    --------
    >>> from torch.utils.data import DataLoader
    >>> batches = DataLoader(scdl.SingleCellLoader(data, 2).dataset(), batch_size=None)
    >>> for epoch in range(2):
    ...     batches.dataset.set_epoch(epoch)
    ...     assert sum(len(batch) for batch in batches) == len(data)
    """

    def __init__(self, loader: SingleCellLoader) -> None:
        self._loader = loader
        self._progress = Progress(*loader._progress.current)
        # How often the start was set, its epoch and its batch; shared with persistent workers.
        state = torch.tensor([0, *self._progress.current])
        self._shared_start: torch.Tensor = state.share_memory_()  # type: ignore[no-untyped-call]
        self._applied = -1

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the batches of this worker.

        The iteration begins at this call, so that a state that is taken before the first batch
        belongs to this epoch.
        """
        self._apply_shared_start()
        return self._batches(self._progress.begin())

    def _batches(self, iteration: Iteration) -> Generator[Any]:
        info = get_worker_info()
        worker, n_workers = (0, 1) if info is None else (info.id, info.num_workers)
        try:
            for batch in self._loader._batches(iteration.epoch, iteration.batch, worker, n_workers):
                self._progress.advance(iteration, n_workers)
                yield batch
        except BaseException:
            self._progress.abandon(iteration)
            raise
        self._progress.finish(iteration, moves_on=False)

    def _apply_shared_start(self) -> None:
        times, epoch, batch = self._shared_start.tolist()
        if times != self._applied:
            self._applied = times
            self._progress.set(epoch, batch)

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at the beginning of an epoch."""
        self.resume(epoch, 0)

    def resume(self, epoch: int, batch: int) -> None:
        """Start the next iteration at a batch of an epoch."""
        self._shared_start[:] = torch.tensor([int(self._shared_start[0]) + 1, epoch, batch])

    def state_dict(self) -> dict[str, Any]:
        """State of this process, for torchdata's ``StatefulDataLoader``.

        A state that was taken after the last batch of an epoch resumes with an empty iteration;
        the one after it is the next epoch.
        """
        self._apply_shared_start()
        return self._loader._state(*self._progress.current)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from the state of a process with the same number of workers.

        Raises
        ------
        ResumeError
            As for :meth:`scdl.SingleCellLoader.load_state_dict`.
        """
        epoch, batch = parse_state(state, self._loader._fingerprint)
        self._apply_shared_start()
        self._progress.set(epoch, batch)
        # Workers that are started afterwards begin with the next epoch.
        self._shared_start[1:] = torch.tensor([epoch + 1, 0])
