"""Progress of the iterations over a loader; each new iteration is the next epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from scdl.errors import ResumeError


@dataclass(eq=False)
class Iteration:
    """Progress of one iteration.

    Attributes
    ----------
    epoch
        Epoch that it iterates over.
    batch
        Next batch of the epoch.
    """

    epoch: int
    batch: int


class Progress:
    """Progress of all iterations over a loader.

    Several may be in use at once: :attr:`current` is that of the one that yielded a batch last. An
    iteration that is abandoned before its end, as by ``next(iter(loader))``, does not count while
    another one is in use.

    Parameters
    ----------
    epoch, batch
        Where the next iteration begins.
    """

    def __init__(self, epoch: int = 0, batch: int = 0) -> None:
        self.set(epoch, batch)

    def set(self, epoch: int, batch: int = 0) -> None:
        """Start the next iteration at a batch of an epoch."""
        self._next = Iteration(epoch, batch)
        self._latest = self._next
        self._in_use: list[Iteration] = []

    @property
    def current(self) -> tuple[int, int]:
        """Current epoch and its next batch."""
        return self._latest.epoch, self._latest.batch

    def begin(self) -> Iteration:
        """Begin a new iteration."""
        iteration, self._next = replace(self._next), Iteration(self._next.epoch + 1, 0)
        self._latest = iteration
        return iteration

    def advance(self, iteration: Iteration, batches: int = 1) -> None:
        """Record that an iteration yields a batch; its next one is `batches` later."""
        iteration.batch += batches
        self._latest = iteration
        if not (self._in_use and self._in_use[-1] is iteration):
            self._drop(iteration)
            self._in_use.append(iteration)

    def abandon(self, iteration: Iteration) -> None:
        """Record that an iteration was abandoned before its end."""
        self._drop(iteration)
        if self._latest is iteration and self._in_use:
            self._latest = self._in_use[-1]

    def finish(self, iteration: Iteration, *, moves_on: bool) -> None:
        """Record that an iteration yielded its last batch.

        With `moves_on` the beginning of the next iteration becomes current.
        """
        self._drop(iteration)
        if moves_on and self._latest is iteration:
            self._latest = self._next

    def _drop(self, iteration: Iteration) -> None:
        self._in_use = [other for other in self._in_use if other is not iteration]

    def __getstate__(self) -> dict[str, Any]:
        # Iterations are not sent to other processes.
        return {**self.__dict__, "_in_use": []}


def parse_state(state: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> tuple[int, int]:
    """Epoch and batch of a saved state; ResumeError if it has another fingerprint."""
    try:
        epoch, batch, saved = int(state["epoch"]), int(state["batch"]), state["loader"]
    except (KeyError, TypeError, ValueError) as error:
        raise ResumeError(f"this is not the state of a loader: {error!r}") from error
    theirs = dict(saved) if isinstance(saved, Mapping) else {}
    if theirs != fingerprint:
        other = [name for name in fingerprint if theirs.get(name) != fingerprint[name]]
        raise ResumeError(
            "the state belongs to another loader: "
            + ", ".join(f"{n} was {theirs.get(n)!r} and is {fingerprint[n]!r}" for n in other)
        )
    if epoch < 0 or batch < 0:
        raise ResumeError(f"there is no batch {batch} of epoch {epoch}")
    return epoch, batch
