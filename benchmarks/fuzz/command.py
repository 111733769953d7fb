"""Try inputs that nobody wrote on every parser of what others wrote.

Run ``make fuzz``, or ``python -m benchmarks.fuzz --help`` for the options.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.fuzz import coverage, workers
from benchmarks.fuzz.targets import TARGETS

_FOUND = Path(__file__).parent / "found"


def main(arguments: Sequence[str] | None = None) -> int:
    """Try all targets; the number of those with findings."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = list(TARGETS)
    made.add_argument("--only", nargs="+", choices=names, metavar="TARGET", help=", ".join(names))
    made.add_argument("--inputs", type=int, help="of each target; default: as many as required")
    made.add_argument("--seconds", type=float, default=float("inf"), help="of each target, at most")
    made.add_argument("--seed", type=int, default=0, help="another one makes other inputs")
    made.add_argument("--first", type=int, default=0, help="number of the first input, to go on")
    made.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    made.add_argument("--found", type=Path, default=_FOUND, help="where findings are saved")
    made.add_argument(
        "--guided", action="store_true", help="let atheris choose inputs, which must be installed"
    )
    options = made.parse_args(arguments)
    failed = 0
    for name in options.only or names:
        inputs = options.inputs or TARGETS[name].required
        if options.guided:
            failed += not coverage.run(name, inputs, options.seconds, options.found)
            continue
        run = workers.run(
            name, inputs, options.seconds, options.workers, seed=options.seed, first=options.first
        )
        print(
            f"{name}: {run.tried:,} inputs in {run.seconds:.0f} s, {run.refused:,} refused, "
            f"{run.tried - run.refused - len(run.findings):,} read, {len(run.findings)} findings",
            flush=True,
        )
        for finding in run.findings:
            path = save(finding, name, options.found)
            print(f"  {finding.what}\n    number {finding.number}, saved as {path}", flush=True)
        failed += bool(run.findings)
    return failed


def save(finding: workers.Finding, target: str, directory: Path) -> Path:
    """Write an input to a file."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{target}-{finding.number}"
    path.write_bytes(finding.data)
    return path


if __name__ == "__main__":
    sys.exit(main())
