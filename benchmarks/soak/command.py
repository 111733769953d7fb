"""The command: ``python -m benchmarks soak``."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.options import subject_parser
from benchmarks.soak.cases import CELLS, EPOCHS, KINDS, TIMES, soak


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all; return the number of requirements that are not met."""
    parser = subject_parser(__package__)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--times", type=int, default=TIMES, help="abandoned loaders")
    parser.add_argument("--cells", type=int, default=CELLS)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    began, missed = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        for kind in KINDS:
            for outcome in soak(Path(place), kind, options.epochs, options.times, options.cells):
                what, required, measured, *_, verdict = outcome.cells()
                print(f"{verdict}  {what}: {measured} (required {required}) {outcome.note}")
                missed += not outcome.passed
    print(f"{time.monotonic() - began:.0f} s")
    return missed
