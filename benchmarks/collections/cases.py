"""Measure collections beside one archive, and flattening beside bionemo-scdl, in one run.

Run ``make bench-collections``, or ``python -m benchmarks.collections.cases --help`` for the options.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common.measure import ChildRun, Spread, take_turns
from benchmarks.common.options import parser
from benchmarks.common.options import workspace as workspace_of
from benchmarks.common.report import IN_TURN, Outcome, Report, at_least, at_most, run
from benchmarks.common.peers import THEIRS
from benchmarks.common.child import Child
from benchmarks.common.workspace import Workspace
from benchmarks.zarr.cases import Figure, figure

MEMBERS = 20
#: Share of all genes that every other member has.
KEPT = 0.87
GENES = 20_000
_RATE = "k cells/s"
_CHILD = "benchmarks.collections.child"

_METHOD = IN_TURN + (
    "The page cache is warm. Memory is the peak of resident anonymous memory, seen every 5 ms, "
    "over that after import."
)


@dataclass
class Bench:
    """What all cases need.

    Attributes
    ----------
    workspace
        The data.
    child
        The process that reads.
    genes
        Genes of the vocabulary.
    repeats
        Repetitions of each measurement.
    seconds
        Least duration of a measured rate.
    """

    workspace: Workspace
    child: Child
    genes: int
    repeats: int
    seconds: float

    def place(self) -> Path:
        """The members, which are made where they are missing."""
        source = self.workspace.h5ad().absolute()
        place = source.parent / "collections" / f"{source.stem}-{MEMBERS}"
        if not (place / "flat").exists():
            shutil.rmtree(place, ignore_errors=True)
            self.child.ask("split", source=source, directory=place, members=MEMBERS, kept=KEPT)
        return place

    def rates(self, requests: dict[str, dict[str, Any]]) -> dict[str, Spread]:
        """Thousands of cells a second of each: a warm-up, then the repetitions in turn."""
        measures = {name: partial(self._rate, request) for name, request in requests.items()}
        take_turns(measures, 1)
        return {name: Spread.of(got) for name, got in take_turns(measures, self.repeats).items()}

    def _rate(self, request: dict[str, Any]) -> float:
        cells, seconds = 0, 0.0
        while seconds < self.seconds:
            answer = self.child.ask("epoch", **request)
            cells, seconds = cells + answer["cells"], seconds + answer["seconds"]
        return cells / seconds / 1e3


def block_shuffled(bench: Bench) -> list[Outcome]:
    place = bench.place()
    one, many = (bench.child.ask("sums", path=place / name) for name in ("flat", "same"))
    if one != many:
        raise RuntimeError(f"a collection and what was made of it differ: {one}, {many}")
    paths = {"flat": {"path": place / "flat"}, "collection": {"path": place / "same"}}
    rates = bench.rates(paths)
    what = f"epoch of {MEMBERS} members over the same cells in one archive"
    ours = rates["collection"]
    ratio = ours.over(rates["flat"])
    note = f"the one archive gives {rates['flat'].median:.0f} {_RATE}; CSR, order='block'"
    return [Outcome(what, at_least(0.9, "x"), ratio, ours, None, _RATE, note)]


def genes(bench: Bench) -> list[Outcome]:
    path = bench.place() / "two"
    listed = {"path": path, "genes": bench.genes}
    rates = bench.rates(
        {
            "without": {"path": path},
            "in order": listed,
            "shuffled": {**listed, "ordered": False},
            "dense without": {"path": path, "layout": "dense"},
            "dense shuffled": {**listed, "ordered": False, "layout": "dense"},
        }
    )
    title = f"genes= of {bench.genes:,} over two gene spaces, over without"
    bound = at_least(0.8, "x")
    in_order = rates["in order"]
    note = "the list has genes in the order of the archives, as 'union' and 'intersection' have"
    outcomes = [Outcome(title, bound, in_order.over(rates["without"]), in_order, None, _RATE, note)]
    note = "in random order, so that the genes of each cell are sorted, but for dense batches"
    for name, base in (("shuffled", "without"), ("dense shuffled", "dense without")):
        ratio, ours = rates[name].over(rates[base]), rates[name]
        what = f"the same, {name}"
        outcomes.append(Figure(what, at_least(0, "x"), ratio, ours, None, _RATE, note))
    return outcomes


def flatten(bench: Bench) -> list[Outcome]:
    place = bench.place()
    measures: dict[str, Callable[[], ChildRun]] = {"ours": partial(_our_flatten, place)}
    theirs = find_spec("bionemo") is not None
    with Child(_CHILD) as child:
        if theirs:
            measures["theirs"] = partial(_their_flatten, child, place)
            if bench.repeats > 1:
                _their_flatten(child, place)
        runs = take_turns(measures, bench.repeats)
    seconds = {
        name: Spread.of([run.report["seconds"] for run in found]) for name, found in runs.items()
    }
    what = f"flatten {MEMBERS} members to memmap"
    note = "ours opens the members and syncs what it wrote, which bionemo-scdl does not"
    outcomes: list[Outcome] = []
    if theirs:
        ratio = seconds["theirs"].over(seconds["ours"])
        both = seconds["ours"], seconds["theirs"]
        outcomes.append(Outcome(f"{what}: speed", at_least(2, "x"), ratio, *both, "s", note))
    else:
        outcomes.append(figure(f"{what}: time", "s", seconds["ours"], None))
    # Over the import: the run before has had what this one takes.
    peaks = [run.peak_over(run.report["imported"]) for run in runs["ours"]]
    if None not in peaks:
        ours = Spread.of([peak for peak in peaks if peak is not None])
        outcomes.append(Outcome(f"{what}: memory", at_most(300, "MB"), ours, ours, None, "MB"))
    return outcomes


def _our_flatten(place: Path) -> ChildRun:
    """One flattening in a fresh process, after another one that loads and compiles all.

    That one also touches the memory that the written files take in the page cache, as the other
    library has when it made its members: pages that nothing used for seconds have to be got again.
    """
    target = place / "measured"
    shutil.rmtree(target, ignore_errors=True)
    with Child(_CHILD) as child:
        child.ask("flatten", source=place / "same", target=target)
        shutil.rmtree(target)
        run = child.watched("flatten", source=place / "same", target=target)
    shutil.rmtree(target)
    return run


def _their_flatten(child: Child, place: Path) -> ChildRun:
    target, members = place / "theirs-flat", place / "theirs"
    for path in (target, members):
        shutil.rmtree(path, ignore_errors=True)
    request = {"source": place / "same-h5ad", "members": members, "target": target}
    run = child.watched("their_flatten", **request)
    for path in (target, members):
        shutil.rmtree(path, ignore_errors=True)
    return run


CASES: dict[str, Callable[[Bench], list[Outcome]]] = {
    "block": block_shuffled,
    "genes": genes,
    "flatten": flatten,
}


def main(arguments: list[str] | None = None) -> Report:
    """Run the cases, print the report and write it."""
    described = "Measure collections beside one archive, and flattening beside bionemo-scdl."
    options = parser(described, CASES, 0, "without effect").parse_args(arguments)
    console = Console()
    workspace = workspace_of(options)
    repeats, seconds, n_genes = options.repeats, 1.0, GENES
    if options.quick:
        repeats, seconds, n_genes = 1, 0.02, 100
    with Child(_CHILD) as child:
        bench = Bench(workspace, child, n_genes, repeats, seconds)
        found = run(CASES, bench, options.only, console)
    report = Report(
        [*chain.from_iterable(found)],
        str(workspace.spec),
        THEIRS.title,
        _METHOD.format(repeats=repeats),
    )
    return report.publish(console, options.results, "bench-collections")


if __name__ == "__main__":
    main()
