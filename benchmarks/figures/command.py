"""The command: ``python -m benchmarks figures``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.options import subject_parser
from benchmarks.figures.reports import ReportError, Summary, summarise

#: Where the documentation has the figures, and the summaries that they are drawn from.
DIRECTORY = Path(__file__).parents[2] / "docs" / "figures"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw all figures."""
    parser = subject_parser(__package__)
    add = parser.add_argument
    add("reports", nargs="*", type=Path, help="reports (JSON) that replace the summaries kept")
    add("--out", type=Path, default=DIRECTORY, help="directory of summaries and figures")
    options = parser.parse_args(arguments)
    try:
        written = draw(options.reports, options.out)
    except ReportError as error:
        parser.error(str(error))
    for path in written:
        print(f"wrote {path}")
    return 0


def draw(reports: Sequence[Path], directory: Path) -> list[Path]:
    """Summarise the reports, and draw the figures from all summaries in a directory.

    Returns
    -------
    list
        The files that were written.
    """
    # Everything else of the benchmarks works without matplotlib.
    from benchmarks.figures.figures import FIGURES, SUBJECTS

    given = summarise(reports)
    kept = {path.stem: Summary.load(path) for path in directory.glob("*.json")}
    summaries = kept | given
    if missing := [subject for subject in SUBJECTS if subject not in summaries]:
        raise ReportError(f"there is no report of {', '.join(missing)}: give one, or more")
    charts = {name: figure(summaries) for name, figure in FIGURES.items()}
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for subject, summary in given.items():
        written.append(directory / f"{subject}.json")
        summary.save(written[-1])
    for name, chart in charts.items():
        written.append(directory / f"{name}.svg")
        chart.save(written[-1])
    return written
