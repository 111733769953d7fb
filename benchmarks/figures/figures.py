"""The figures: what each shows, and of which reports."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping

from benchmarks.figures.drawing import Chart
from benchmarks.figures.reports import Measured, ReportError, Summary

Summaries = Mapping[str, Summary]

_NAMES = {
    "memmap": "scdl, memmap",
    "fast": "scdl, Zarr fast",
    "balanced": "scdl, Zarr balanced",
    "bionemo-scdl": "BioNeMo-SCDL",
}
_OURS = ("scdl, memmap", "scdl, Zarr fast", "scdl, Zarr balanced", "scdl")
_THEIR_ARCHIVES = ("annbatch", "h5ad, gzip-4")
_BLOCK, _RANDOM = "csr batches in block order", "csr batches in random order"


def throughput(of: Summaries) -> Chart:
    """Rates of an epoch in large batches, of all loaders."""
    block, random = (of["loaders"].grid(title) for title in (_BLOCK, _RANDOM))
    cells = {_name(row): columns.get("1,024") for row, columns in block.items()}
    cells["AnnLoader, random order"] = random["AnnLoader"].get("1,024")
    rows = dict(sorted(cells.items(), key=lambda row: -_median(row[1])))
    chart = Chart("Training epochs, thousands of cells per second", _origin(of, "loaders"), 1, 3.2)
    chart.bars(0, "sparse batches of 1,024 cells, shuffled in blocks, warm page cache", rows, _OURS)
    return chart


def batches(of: Summaries) -> Chart:
    """Rates over the size of batches, in block and in random order."""
    chart = Chart(
        "Thousands of cells per second by batch size",
        _origin(of, "loaders"),
        2,
        4.2,
        same_scale=True,
    )
    titles = {_BLOCK: "shuffled in blocks", _RANDOM: "single random cells"}
    names: dict[str, None] = {}
    tables = {}
    for title in titles:
        tables[title] = {
            _name(row).removesuffix(", random order"): {
                column: cell for column, cell in columns.items() if "workers" not in column
            }
            for row, columns in of["loaders"].grid(title).items()
            if "DataLoader" not in row
        }
        names |= dict.fromkeys(tables[title])
    for panel, (title, heading) in enumerate(titles.items()):
        rows = {name: tables[title].get(name, {}) for name in names}
        chart.lines(panel, heading, "cells of a batch", rows, scale="log")
    chart.legend(1)
    return chart


def disk(of: Summaries) -> Chart:
    """Size and speed of every profile of archives."""
    zarr = of["zarr"]
    rows = _archives(zarr, "bits per value, ")
    order = sorted(rows, key=lambda name: _median(rows[name]))
    chart = Chart("Disk space and speed of archives", _origin(of, "zarr"), 3, 3.8)
    ours = [name for name in rows if name not in _THEIR_ARCHIVES]
    chart.bars(0, "bits per stored value", {name: rows[name] for name in order}, ours)
    for panel, (title, key) in enumerate(
        {"blocks, k cells/s": "CSR epoch, ", "random cells, k cells/s": "random cells, "}.items(), 1
    ):
        rates = _archives(zarr, key)
        chart.bars(panel, title, {name: rates.get(name) for name in order}, ours, names=False)
    return chart


def memory(of: Summaries) -> Chart:
    """Peak memory of training and of conversions."""
    grid = of["loaders"].grid("peak memory of an epoch over that after import")
    epochs = {_name(row): cell for row, columns in grid.items() for cell in columns.values()}
    conversions: dict[str, Measured | None] = {}
    for subject, what, names in (
        ("readers", "convert: memory", ("scdl, memmap", "BioNeMo-SCDL")),
        ("zarr", "convert to balanced: memory", ("scdl, Zarr balanced", "annbatch")),
    ):
        found = of[subject]
        if what not in found.ours:
            raise ReportError(f"no report of {subject} has {what!r}")
        conversions |= {names[0]: found.ours[what], names[1]: found.theirs.get(what)}
    chart = Chart("Peak memory, MB", _origin(of, "loaders", "readers", "zarr"), 2, 2.8)
    chart.bars(0, "training, batches of 64 cells", epochs, _OURS)
    chart.bars(1, "conversion of an h5ad file", conversions, _OURS)
    return chart


def randomness(of: Summaries) -> Chart:
    """Label entropy and rate of block order over the sizes of buffers and blocks."""
    loaders = of["loaders"]
    chart = Chart("Randomness and speed of block order", _origin(of, "loaders"), 2, 3.9)
    for panel, (heading, title) in enumerate(
        {
            "label entropy over that of random order": "label entropy over that of random order",
            "thousands of cells per second": "rate of block order",
        }.items()
    ):
        rows = loaders.grid(title)
        chart.lines(panel, heading, "cells of the buffer", rows)
    what = "label entropy of block order over that of random order"
    if what not in loaders.ours:
        raise ReportError(f"no report of loaders has {what!r}")
    chart.mark(0, loaders.ours[what].median / loaders.theirs[what].median, "default settings")
    chart.legend(1, "cells of a block")
    return chart


FIGURES: dict[str, Callable[[Summaries], Chart]] = {
    figure.__name__: figure for figure in (throughput, batches, disk, memory, randomness)
}
#: Subjects whose reports the figures need.
SUBJECTS = ("loaders", "zarr", "readers")


def _name(row: str) -> str:
    name = row.removesuffix(" (random)")
    return _NAMES.get(name, name) + (", random order" if name != row else "")


def _archives(zarr: Summary, prefix: str) -> dict[str, Measured]:
    """Figures whose name begins so, by archive, with that of annbatch."""
    found = {
        what.removeprefix(prefix): measured
        for what, measured in zarr.ours.items()
        if what.startswith(prefix) and " over " not in what
    }
    if "memmap" not in found:
        raise ReportError(f"no report of zarr has {prefix + 'memmap'!r}")
    if f"{prefix}memmap" in zarr.theirs:
        found["annbatch"] = zarr.theirs[f"{prefix}memmap"]
    packed = found.pop("h5ad gzip-4", None)
    return found if packed is None else found | {"h5ad, gzip-4": packed}


def _median(measured: Measured | None) -> float:
    return measured.median if measured else 0.0


def _origin(of: Summaries, *subjects: str) -> str:
    """Where and when it was measured, in lines of a figure's width."""
    lines = dict.fromkeys(_described(of[subject]) for subject in subjects)
    return "\n".join(textwrap.fill(line, 125) for line in lines)


def _described(summary: Summary) -> str:
    machine = summary.machine
    days = " and ".join(dict.fromkeys((summary.days[0], summary.days[-1])))
    return (
        f"{machine['cores']} cores of {machine['processor']}, {machine['memory']} of memory, "
        f"Python {machine['python']}; {summary.data}; {days}. "
        f"Medians of {summary.repeats} or more; lines are the smallest and the largest."
    )
