"""The command: ``python -m benchmarks scale``."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.child import Child
from benchmarks.common.options import parse
from benchmarks.common.report import IN_TURN, Report
from benchmarks.scale import storage
from benchmarks.scale.cases import CASES as MEMBERS
from benchmarks.scale.cases import CHILD, ScaleBench

CASES = {**MEMBERS, **storage.CASES}

_METHOD = IN_TURN + (
    "Members are one archive many times, by hard links: each has its own directory entries, "
    "mappings and metadata, and shares the pages of the others, so that the page cache is warm. "
    "Memory is the peak of resident anonymous memory over that after import."
)


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run the cases, print the report and write it."""
    options = parse(arguments, __package__, CASES)
    sizes = {"few": 2, "many": 5, "most": 7, "cells": 400, "rows": 3_000, "is_toy": True}
    sizes = sizes if options.quick else {}
    with Child(CHILD) as child:
        bench = ScaleBench.of(options, child=child, **sizes)
        return bench.report(options, CASES, None, _METHOD)
