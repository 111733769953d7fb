"""The command: ``python -m benchmarks compositions``."""

from __future__ import annotations

import time
from collections.abc import Sequence

from benchmarks.common.options import subject_parser
from benchmarks.compositions.cases import KINDS, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Try all kinds of data sets; return the number of findings."""
    parser = subject_parser(__package__)
    parser.add_argument("--cases", type=int, default=10_000, help="of each kind of data set")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other cases")
    options = parser.parse_args(arguments)
    found = 0
    for kind in KINDS:
        began, wrong = time.perf_counter(), 0
        for finding in run(options.cases, kind, options.seed):
            print(finding, flush=True)
            wrong += 1
        seconds = time.perf_counter() - began
        print(f"{kind}: {options.cases:,} cases in {seconds:.0f} s, {wrong} wrong", flush=True)
        found += wrong
    return found
