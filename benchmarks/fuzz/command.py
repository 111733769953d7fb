"""The command: ``python -m benchmarks fuzz``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.options import subject_parser
from benchmarks.fuzz import coverage, workers
from benchmarks.fuzz.targets import TARGETS

_FOUND = Path(__file__).parent / "found"


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the targets; return the number of those with findings."""
    made = subject_parser(__package__)
    names = list(TARGETS)
    made.add_argument("--only", nargs="+", choices=names, metavar="TARGET", help=", ".join(names))
    made.add_argument("--inputs", type=int, help="of each target; default: the required number")
    made.add_argument("--seconds", type=float, default=float("inf"), help="of each target, at most")
    made.add_argument("--seed", type=int, default=0, help="another seed gives other inputs")
    made.add_argument(
        "--first", type=int, default=0, help="number of the first input, to continue a run"
    )
    made.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    made.add_argument("--found", type=Path, default=_FOUND, help="where findings are saved")
    made.add_argument(
        "--guided", action="store_true", help="let atheris choose inputs by coverage, if installed"
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
