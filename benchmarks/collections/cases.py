"""The cases: an epoch of a collection, one of selected genes, and flattening."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.common.bench import Bench
from benchmarks.common.child import Child, ChildRun
from benchmarks.common.measure import Spread, epoch_rate, spreads, take_turns
from benchmarks.common.report import Figure, Outcome, at_least, at_most, figure

MEMBERS = 20
#: Share of all genes that every other member has.
KEPT = 0.87
_RATE = "k cells/s"
CHILD = "benchmarks.collections.child"


@dataclass(kw_only=True)
class CollectionBench(Bench):
    """A process that reads, and the genes that it selects.

    Attributes
    ----------
    child
        The process.
    genes
        Genes of the vocabulary.
    """

    child: Child
    genes: int = 20_000

    def place(self) -> Path:
        """Directory of the members, which are written if they are missing."""
        source = self.workspace.h5ad().absolute()
        place = source.parent / "collections" / f"{source.stem}-{MEMBERS}"
        if not (place / "flat").exists():
            shutil.rmtree(place, ignore_errors=True)
            self.child.ask("split", source=source, directory=place, members=MEMBERS, kept=KEPT)
        return place

    def rates(self, requests: dict[str, dict[str, Any]]) -> dict[str, Spread]:
        """Thousands of cells a second of each request."""
        measures = {name: partial(self._rate, request) for name, request in requests.items()}
        return spreads(measures, self.repeats)

    def _rate(self, request: dict[str, Any]) -> float:
        return epoch_rate(partial(self.child.ask, "epoch", **request), self.seconds)


def block_shuffled(bench: CollectionBench) -> list[Outcome]:
    place = bench.place()
    one, many = (bench.child.ask("sums", path=place / name) for name in ("flat", "same"))
    if one != many:
        raise RuntimeError(f"a collection and its flattened archive differ: {one}, {many}")
    paths = {"flat": {"path": place / "flat"}, "collection": {"path": place / "same"}}
    rates = bench.rates(paths)
    what = f"epoch of {MEMBERS} members over the same cells in one archive"
    ours = rates["collection"]
    ratio = ours.over(rates["flat"])
    note = f"the single archive gives {rates['flat'].median:.0f} {_RATE}; CSR, order='block'"
    return [Outcome(what, at_least(0.9, "x"), ratio, ours, None, _RATE, note)]


def genes(bench: CollectionBench) -> list[Outcome]:
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
    note = "genes are listed in the order of the archives, as 'union' and 'intersection' list them"
    outcomes = [Outcome(title, bound, in_order.over(rates["without"]), in_order, None, _RATE, note)]
    note = "genes are listed in random order, so that CSR batches have to sort each cell"
    for name, base in (("shuffled", "without"), ("dense shuffled", "dense without")):
        ratio, ours = rates[name].over(rates[base]), rates[name]
        what = f"the same, {name}"
        outcomes.append(Figure(what, at_least(0, "x"), ratio, ours, None, _RATE, note))
    return outcomes


def flatten(bench: CollectionBench) -> list[Outcome]:
    place = bench.place()
    measures: dict[str, Callable[[], ChildRun]] = {"ours": partial(_our_flatten, place)}
    theirs = find_spec("bionemo") is not None
    with Child(CHILD) as child:
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
        outcomes.append(figure(f"{what}: time", "s", seconds["ours"]))
    # Over the import: the run before has already taken the memory that this one uses.
    if ours := Spread.of_known(run.peak_over(run.report["imported"]) for run in runs["ours"]):
        outcomes.append(Outcome(f"{what}: memory", at_most(300, "MB"), ours, ours, None, "MB"))
    return outcomes


def _our_flatten(place: Path) -> ChildRun:
    """One flattening in a fresh process, after another one that imports and compiles everything.

    That one also allocates the pages of the page cache that written files take, as the other
    library does when it writes its members: the system takes unused pages back within seconds.
    """
    target = place / "measured"
    shutil.rmtree(target, ignore_errors=True)
    with Child(CHILD) as child:
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


CASES: dict[str, Callable[[CollectionBench], list[Outcome]]] = {
    "block": block_shuffled,
    "genes": genes,
    "flatten": flatten,
}
