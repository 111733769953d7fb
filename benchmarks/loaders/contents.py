"""Epochs of archives that store single cells over those of memmap, by what batches hold."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.common.libraries import FRAMES
from benchmarks.common.measure import spreads
from benchmarks.common.report import Outcome, ratio
from benchmarks.loaders.bench import BATCH, CSR, MEMMAP, RATE, LoaderBench, Setting
from benchmarks.loaders.report import Findings


class Content(NamedTuple):
    """What batches hold, the options of the loader for that, and the required ratio."""

    what: str
    setting: Setting
    options: dict[str, Any]
    ratio: float | None = None


def _contents(bench: LoaderBench) -> list[Content]:
    genes = bench.workspace.gene_list()
    padded = {"length": 2_048, "choose": "largest"}
    return [
        Content("a list of genes", CSR, {"genes": genes}),
        Content("2,048 largest values", Setting("padded", "block", BATCH), padded, 0.9),
        Content("all genes", Setting("dense", "block", BATCH), {}, 0.9),
        Content("normalised logarithms", CSR, {"normalize": True}),
    ]


def contents(bench: LoaderBench) -> Findings:
    paths = {name: bench.archive(name) for name in (*FRAMES, MEMMAP)}
    outcomes: list[Outcome] = []
    for what, setting, options, required in _contents(bench):
        measures = {
            name: bench.rate(MEMMAP, setting, path=path, **options) for name, path in paths.items()
        }
        rates = spreads(measures, bench.repeats, warm_up=False)
        bench.child(MEMMAP).ask("close")
        outcomes += [
            ratio(
                f"{name} over memmap, {what}: {setting}",
                rates[name],
                rates[MEMMAP],
                RATE,
                required=required,
            )
            for name in FRAMES
        ]
    return Findings(outcomes)
