"""Where rows end in an array that is being written."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage_backends.zarr.codecs.chain import ends_within


class RowEnds:
    """Ends of the rows of an array, of which earlier ones are dropped once they are used.

    Attributes
    ----------
    known
        Item up to which all ends are known.
    """

    def __init__(self) -> None:
        self._ends: deque[NDArray[np.int64]] = deque([np.zeros(1, np.int64)])
        self.known = 0

    def extend(self, ends: NDArray[Any]) -> None:
        """Add ends of further rows, in ascending order."""
        if len(ends):
            self._ends.append(ends.astype(np.int64))
            self.known = int(ends[-1])

    def within(self, start: int, stop: int) -> NDArray[np.int64] | None:
        """The ends in ``(start, stop)``, and one on each side of them, from `start` on.

        Later calls ask for later items. None if the ends are not all known.
        """
        if stop > self.known:
            return None
        while len(self._ends) > 1 and self._ends[1][0] <= start:
            self._ends.popleft()
        found = []
        for ends in self._ends:
            found.append(ends_within(ends, start, stop))
            if ends[-1] >= stop:
                break
        return np.concatenate(found)
