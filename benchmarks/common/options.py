"""Options that all benchmarks take."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from benchmarks.generate.real_cells import celltypist_cells, synthetic_cells
from benchmarks.generate.spec import DataSpec
from benchmarks.common.workspace import Workspace

_HERE = Path(__file__).parent
_TOY = DataSpec(cells=200, genes=500, nnz_per_cell=40)


def parser(
    description: str, cases: Iterable[str], large: int, large_help: str
) -> argparse.ArgumentParser:
    """Make a parser, to which a benchmark may add.

    Parameters
    ----------
    cases
        Names that ``--only`` takes.
    large, large_help
        Default and meaning of ``--large``.
    """
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--cells", type=int, default=DataSpec().cells, help="cells of the data")
    made.add_argument("--repeats", type=int, default=5, help="repetitions of each measurement")
    names = list(cases)
    made.add_argument("--only", nargs="+", choices=names, metavar="CASE", help=", ".join(names))
    made.add_argument("--large", type=int, default=large, metavar="N", help=large_help)
    made.add_argument("--quick", action="store_true", help="toy data: does everything run?")
    made.add_argument("--data", type=Path, default=_HERE / "data", help="directory of the data")
    made.add_argument("--results", type=Path, default=_HERE / "results", help="of the reports")
    return made


def add_environment(made: argparse.ArgumentParser) -> None:
    """Let the environment of annbatch be named."""
    made.add_argument(
        "--environment",
        type=Path,
        default=_HERE.parent / ".venv-annbatch",
        help="of annbatch; made where it is missing, but not by --quick",
    )


def workspace(options: argparse.Namespace) -> Workspace:
    """Find the data that the options ask for."""
    if options.quick:
        return Workspace(options.data, _TOY, synthetic_cells)
    return Workspace(options.data, DataSpec(cells=options.cells), celltypist_cells)
