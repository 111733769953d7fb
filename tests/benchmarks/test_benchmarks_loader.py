"""The benchmark of loaders runs, and its figures are what it says; nothing here is timed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from budget import whole_only

from benchmarks.common import hardware, page_cache
from benchmarks.common.measure import Spread
from benchmarks.common.report import Outcome, at_least
from benchmarks.loaders import bench, rates, readers
from benchmarks.loaders.child import _mean_entropy
from benchmarks.loaders.command import main
from benchmarks.loaders.report import Grid, LoaderReport

ROWS = {"one": [Spread.of([1.0, 2.0, 3.0]), None], "two": [Spread.of([1_500.0])] * 2}
GRIDS = (
    Grid("rates", "k cells/s", "batch", ["8", "64"], ROWS),
    Grid("space", "MB", "archive", ["all"], ROWS),
    Grid("entropy", "x", "block \\ buffer", ["1", "2"], ROWS),
)


class TestHardware:
    def test_rates_are_positive(self, tmp_path: Path) -> None:
        (tmp_path / "some").write_bytes(bytes(10_000))
        assert hardware.copy_rate(1 << 24, 0.0) > 0
        assert hardware.disk_seconds(tmp_path) > 0

    @pytest.mark.skipif(sys.platform != "linux", reason="the page cache is dropped as Linux does")
    def test_what_was_brought_in_can_be_dropped(self, tmp_path: Path) -> None:
        (tmp_path / "some").write_bytes(bytes(10_000))
        page_cache.bring_in(tmp_path)
        assert 0 <= page_cache.drop(tmp_path) <= 1


class TestEntropy:
    def test_batches_of_one_label_have_none(self) -> None:
        assert _mean_entropy(np.repeat([0, 1, 2], 4), 4) == 0

    def test_is_in_bits_and_a_mean_over_whole_batches(self) -> None:
        labels = np.array([0, 1, 2, 3, 0, 1, 0, 1, 5])
        assert _mean_entropy(labels, 4) == pytest.approx((2 + 1) / 2)


class TestReaders:
    def test_what_is_required_is_in_the_matrix(self) -> None:
        for row in rates.REQUIRED:
            assert row.setting in rates.SETTINGS
            assert {row.ours, row.theirs} <= bench.READERS.keys()

    def test_every_loader_can_be_asked(self) -> None:
        assert {reader.via for reader in bench.READERS.values()} == {
            *readers.READERS,
            bench.ANNBATCH,
        }

    def test_cells_one_by_one_stand_in_for_blocks(self) -> None:
        assert bench.READERS[bench.BIONEMO].order("block") == "random"
        assert bench.READERS["memmap"].order("block") == "block"


class TestReport:
    REPORT = LoaderReport(
        [Outcome("a < b", at_least(1, "x"), Spread.of([2.0]))], "cells", "other", "how", grids=GRIDS
    )

    def test_is_written_in_all_forms(self, tmp_path: Path) -> None:
        markdown, record = self.REPORT.write(tmp_path, "report")
        assert "| one | 2 (1 to 3) | - |" in markdown.read_text()
        samples = json.loads(record.read_text())["grids"][0]["rows"]["one"][0]["samples"]
        assert samples == [1.0, 2.0, 3.0]


@whole_only
def test_all_cases_run_on_toy_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("bionemo.scdl")
    # Files of tests may be in memory, where all stay.
    monkeypatch.setattr(page_cache, "drop", lambda path: 0.0)
    directories = ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")]
    report = main(["--quick", *directories, "--environment", str(tmp_path / "absent")])
    measured = {outcome.what.partition(":")[0] for outcome in report.outcomes}
    assert {"memmap over bionemo-scdl", "first batch after opening"} <= measured
    assert "memmap, 400 cells over 200" in measured
    for what in ("from disk, memmap over the disk", "from disk, packed over memmap"):
        assert (what in measured) == (sys.platform == "linux")
    assert "packed over memmap, a list of genes" in measured
    titles = {grid.title: grid for grid in report.grids}
    assert {"csr batches in block order", "space on disk", "rate of block order"} <= titles.keys()
    assert "bionemo-scdl (random)" in titles["dense batches in block order"].rows
    suffixes = {path.suffix for path in (tmp_path / "results").iterdir()}
    assert suffixes == {".md", ".json"}
    assert "annbatch is left out: absent does not have annbatch" in capsys.readouterr().out
