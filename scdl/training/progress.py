"""Where iterations stand: each owns its place, and the next one begins at the next epoch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(eq=False)
class Place:
    """Where one iteration stands.

    Attributes
    ----------
    epoch
        The epoch that it gives.
    batch
        The next batch of the epoch.
    """

    epoch: int
    batch: int


class Progress:
    """Where the iterations of a loader stand.

    Several may be in use at once: :attr:`now` is the place of the one that gave a batch last. One
    that is left before its end, as by ``next(iter(loader))``, does not count while another one is
    still in use.

    Parameters
    ----------
    epoch, batch
        Where the next iteration begins.
    """

    def __init__(self, epoch: int = 0, batch: int = 0) -> None:
        self.set(epoch, batch)

    def set(self, epoch: int, batch: int = 0) -> None:
        """Let the next iteration begin at a batch of an epoch."""
        self._next = Place(epoch, batch)
        self._latest = self._next
        self._in_use: list[Place] = []

    @property
    def now(self) -> tuple[int, int]:
        """Epoch, and the next batch of it."""
        return self._latest.epoch, self._latest.batch

    def begin(self) -> Place:
        """The place of a new iteration."""
        place, self._next = replace(self._next), Place(self._next.epoch + 1, 0)
        self._latest = place
        return place

    def gave(self, place: Place, batches: int = 1) -> None:
        """An iteration gives a batch, the next of which is `batches` later."""
        place.batch += batches
        self._latest = place
        if not (self._in_use and self._in_use[-1] is place):
            self._drop(place)
            self._in_use.append(place)

    def left(self, place: Place) -> None:
        """An iteration was left before its end."""
        self._drop(place)
        if self._latest is place and self._in_use:
            self._latest = self._in_use[-1]

    def finished(self, place: Place, *, moves_on: bool) -> None:
        """An iteration has given its last batch; `moves_on` to where the next one begins."""
        self._drop(place)
        if moves_on and self._latest is place:
            self._latest = self._next

    def _drop(self, place: Place) -> None:
        self._in_use = [other for other in self._in_use if other is not place]

    def __getstate__(self) -> dict[str, Any]:
        # Iterations stay in their process.
        return {**self.__dict__, "_in_use": []}
