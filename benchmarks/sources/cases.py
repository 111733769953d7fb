"""The cases: each format beside its own reader, memory at more cells, and appending."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.bench import Bench
from benchmarks.common.child import Child, ChildRun
from benchmarks.common.measure import Spread, take_turns
from benchmarks.common.page_cache import bring_in
from benchmarks.common.report import Outcome, at_least, at_most, figure
from benchmarks.generate.formats import FORMATS, gene_file, write_as

#: Least ratio to the other reader, and most megabytes, by format.
_BOUNDS = {"tenx_h5": (3.0, 300.0), "tenx_mtx": (3.0, None), "parquet": (0.5, 500.0)}
_READERS = {
    "tenx_h5": ("convert_with_scanpy", "scanpy.read_10x_h5 and a conversion of its AnnData"),
    "tenx_mtx": ("read_with_scanpy", "scanpy.read_10x_mtx alone"),
    "parquet": ("read_with_pyarrow", "ParquetFile.iter_batches alone"),
}
_IN_MEMORY, _APPEND, _FLAT = 1.2, 1.2, 1.25


@dataclass(kw_only=True)
class SourcesBench(Bench):
    """The process that converts.

    Attributes
    ----------
    child
        The process; its first conversions do not count.
    """

    child: Child

    def source(self, name: str, *, times: int = 1) -> Path:
        """The data as another format, written once."""
        h5ad = self.workspace.h5ad(times=times)
        path = h5ad.with_name(f"{h5ad.stem}{FORMATS[name][1]}").absolute()
        if not path.exists():
            write_as(name, h5ad, path)
        return path

    @property
    def target(self) -> Path:
        """Path of the archives that are written."""
        return (self.workspace.directory / "measured.scdl").absolute()

    def run(self, do: str, source: Path, **options: Any) -> ChildRun:
        """Measure one command of the process, with its source in the page cache."""
        for path in source.rglob("*") if source.is_dir() else [source]:
            if path.is_file():
                bring_in(path)
        os.sync()
        try:
            return self.child.watched(do, source=source.absolute(), target=self.target, **options)
        finally:
            shutil.rmtree(self.target, ignore_errors=True)

    def turns(self, measures: Mapping[str, Callable[[], ChildRun]]) -> dict[str, list[ChildRun]]:
        """Run measures in turn, after one turn that does not count."""
        take_turns(measures, 1)
        return take_turns(measures, self.repeats)


def _seconds(runs: list[ChildRun]) -> Spread:
    return Spread.of([run.report["seconds"] for run in runs])


def _options(bench: SourcesBench, name: str, source: Path) -> dict[str, Any]:
    """Options of the conversion of a format."""
    if name != "parquet":
        return {}
    genes = gene_file(source, bench.workspace.spec.genes)
    return {"gene_ids": "genes", "gene_values": "expressions", "vocabulary": genes}


def formats(bench: SourcesBench) -> list[Outcome]:
    """Each format, beside another reader if it has one."""
    return [outcome for name in FORMATS for outcome in _format(bench, name)]


def _format(bench: SourcesBench, name: str) -> list[Outcome]:
    source = bench.source(name)
    measures = {"ours": partial(bench.run, "convert", source, **_options(bench, name, source))}
    reader, note = _READERS.get(name, (None, ""))
    if reader is not None:
        measures["theirs"] = partial(bench.run, reader, source)
    runs = bench.turns(measures)
    ours, what = _seconds(runs["ours"]), f"convert {name}"
    outcomes = [figure(what, "s", ours)]
    least, most = _BOUNDS.get(name, (0.0, None))
    if "theirs" in runs:
        theirs = _seconds(runs["theirs"])
        ratio = theirs.over(ours)
        outcomes = [Outcome(what, at_least(least, "x"), ratio, ours, theirs, "s", note)]
    peak = Spread.of_known(run.peak_megabytes for run in runs["ours"])
    if most is not None and peak is not None:
        outcomes.append(Outcome(f"{what}: memory", at_most(most, "MB"), peak, peak, None, "MB"))
    return outcomes


def in_memory(bench: SourcesBench) -> list[Outcome]:
    """An AnnData object, over its file."""
    source = bench.workspace.h5ad().absolute()
    runs = bench.turns({do: partial(bench.run, do, source) for do in ("convert", "convert_object")})
    file, ours = (_seconds(runs[do]) for do in ("convert", "convert_object"))
    note = "the other column is the conversion of the h5ad file"
    bound = at_least(_IN_MEMORY, "x")
    return [Outcome("convert AnnData in memory", bound, file.over(ours), ours, file, "s", note)]


def memory(bench: SourcesBench) -> list[Outcome]:
    """Peak memory of a fresh process with more cells, over that with few."""
    if not bench.times:
        return []
    outcomes = []
    for name in FORMATS:
        few, many = (_peak(bench, name, bench.source(name, times=n)) for n in (1, bench.times))
        if few is not None and many is not None:
            what = f"convert {name}: memory at {bench.times} times the cells"
            bound = at_most(_FLAT, "x")
            outcomes.append(Outcome(what, bound, many.over(few), many, few, "MB"))
    return outcomes


def _peak(bench: SourcesBench, name: str, source: Path) -> Spread | None:
    with Child("benchmarks.sources.child", threads=None) as child:
        fresh = replace(bench, child=child)
        run = fresh.run("convert", source, **_options(bench, name, source))
    return Spread.of_known([run.peak_megabytes])


def append(bench: SourcesBench) -> list[Outcome]:
    """Appending to a large archive, over converting what is appended."""
    if not bench.times:
        return []
    large, source = bench.workspace.h5ad(times=bench.times), bench.workspace.h5ad().absolute()
    base = (bench.workspace.directory / "large.scdl").absolute()
    bench.child.ask("convert", source=large.absolute(), target=base)
    try:
        runs = bench.turns(
            {
                "convert": partial(bench.run, "convert", source),
                "append": partial(bench.run, "append", source, base=base),
            }
        )
    finally:
        shutil.rmtree(base)
    converted, ours = _seconds(runs["convert"]), _seconds(runs["append"])
    what = f"append to {bench.times} times the cells, over a conversion"
    note = "the other column is the conversion of what is appended"
    ratio = ours.over(converted)
    return [Outcome(what, at_most(_APPEND, "x"), ratio, ours, converted, "s", note)]


CASES: dict[str, Callable[[SourcesBench], list[Outcome]]] = {
    "formats": formats,
    "in_memory": in_memory,
    "memory": memory,
    "append": append,
}
