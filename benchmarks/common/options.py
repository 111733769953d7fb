"""Command lines of the subjects."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.common.workspace import Workspace
from benchmarks.generate.real_cells import celltypist_cells, synthetic_cells
from benchmarks.generate.spec import DataSpec

_HERE = Path(__file__).parents[1]
_TOY = DataSpec(cells=200, genes=500, nnz_per_cell=40)


def subject_parser(package: str) -> argparse.ArgumentParser:
    """Return a parser that describes a subject by the docstring of its package."""
    return argparse.ArgumentParser(
        prog=f"python -m {package.replace('.', ' ')}", description=import_module(package).__doc__
    )


def parse(
    arguments: Sequence[str] | None,
    package: str,
    cases: Iterable[str],
    *,
    large: int | None = None,
    seconds: float = 1.0,
    annbatch: bool = False,
    tunable: bool = False,
    disk: bool = False,
) -> argparse.Namespace:
    """Parse the options of a subject that measures cases on generated data.

    Parameters
    ----------
    package
        The package of the subject.
    cases
        Names that ``--only`` takes.
    large
        Default of ``--large``; None: the subject has no large data.
    seconds
        Least duration of a measured rate.
    annbatch, tunable
        Whether the subject compares with annbatch, and can try settings of it.
    disk
        Whether the subject reads archives from disk whose size can be chosen.

    Returns
    -------
    argparse.Namespace
        With `subject`, `workspace` and `seconds` besides the options; ``--quick`` changes the
        last two, `repeats` and `large`.
    """
    parser, names = subject_parser(package), list(cases)
    add = parser.add_argument
    add("--cells", type=int, default=DataSpec().cells, help="cells of the data")
    add("--repeats", type=int, default=5, help="repetitions of each measurement")
    add("--only", nargs="+", choices=names, metavar="CASE", help=", ".join(names))
    parser.set_defaults(large=0)
    if large is not None:
        add(
            "--large",
            type=int,
            default=large,
            metavar="N",
            help="also measure N x the cells, unless 0",
        )
    add("--quick", action="store_true", help="toy data: does everything run?")
    add("--data", type=Path, default=_HERE / "data", help="directory of the data")
    add("--results", type=Path, default=_HERE / "results", help="directory of the reports")
    if annbatch:
        add(
            "--environment",
            type=Path,
            default=_HERE.parent / ".venv-annbatch",
            help="environment of annbatch, beside those of other libraries; created if missing, "
            "but not with --quick",
        )
    if disk:
        add(
            "--disk-cells",
            type=int,
            metavar="N",
            help="cells of archives that are read from disk; default: larger than memory",
        )
    if tunable:
        add("--tune", action="store_true", help="only try settings of annbatch")
    options = parser.parse_args(arguments)
    options.seconds, options.subject = seconds, package.rpartition(".")[2]
    if options.quick:
        options.repeats, options.large, options.seconds = 1, 2, 0.02
    spec = _TOY if options.quick else DataSpec(cells=options.cells)
    templates = synthetic_cells if options.quick else celltypist_cells
    options.workspace = Workspace(options.data, spec, templates)
    return options
