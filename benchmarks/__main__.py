"""All benchmarks: ``python -m benchmarks SUBJECT [options]``; without a subject it lists them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

SUBJECTS = (
    *("readers", "zarr", "loaders", "collections", "scale", "many_files", "sources"),
    *("torture", "soak", "fuzz", "compositions", "roundtrip", "demo", "generate", "figures"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subject; return its exit status."""
    described = (f"  {name:14}{import_module(f'benchmarks.{name}').__doc__}" for name in SUBJECTS)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure scdl, or test it to destruction.",
        epilog="\n".join(["subjects:", *described, "", "SUBJECT --help lists its options."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("subject", nargs="?", choices=SUBJECTS, metavar="SUBJECT")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="options of the subject")
    chosen = parser.parse_args(arguments)
    if chosen.subject is None:
        parser.print_help()
        return 0
    # Measurements return a report, tests the number of failures.
    done = import_module(f"benchmarks.{chosen.subject}.command").main(chosen.options)
    return min(done, 100) if isinstance(done, int) else 0


if __name__ == "__main__":
    sys.exit(main())
