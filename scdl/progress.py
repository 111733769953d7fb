"""Progress of long tasks: a bar in a terminal or a notebook, and plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

#: Seconds between two lines in a log.
INTERVAL = 30.0
_LINE = "{percentage:.0f}%, {n_fmt} of {total_fmt} {unit}, {elapsed} passed, {remaining} left"


def progress_bar(
    iterable: Iterable[Any] | None = None,
    *,
    show: bool,
    unit: str,
    desc: str = "",
    **options: Any,
) -> tqdm[Any]:
    """A progress bar that suits where the standard error goes.

    In a terminal or a notebook it is redrawn. Elsewhere, as in the log of a batch job, a line is
    written every :data:`INTERVAL` seconds.

    Parameters
    ----------
    show
        Whether to show anything.
    unit
        What is counted: ``"B"``, or a noun in the singular.
    iterable, desc, **options
        As for tqdm.
    """
    if show and not (sys.stderr.isatty() or "ipykernel" in sys.modules):
        log: Any = _Log(sys.stderr)
        line = _LINE.replace("{unit}", unit if unit == "B" else f"{unit}s")
        line = f"{desc}: {line}" if desc else line
        options |= {"file": log, "bar_format": line, "mininterval": INTERVAL}
    return tqdm(iterable, desc, unit=unit, disable=not show, **options)


class _Log:
    """Receives each state of a bar, and writes some of them as lines."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._last = file, time.monotonic()

    def write(self, text: str) -> None:
        if (line := text.strip()) and time.monotonic() - self._last >= INTERVAL:
            self._file.write(f"{line}\n")
            self._last = time.monotonic()

    def flush(self) -> None:
        self._file.flush()
