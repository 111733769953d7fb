"""The figures of the documentation are drawn from reports."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from budget import whole_only

from benchmarks.common.measure import Spread
from benchmarks.common.report import Outcome, Report, figure
from benchmarks.figures.command import DIRECTORY, draw, main
from benchmarks.figures.reports import Measured, ReportError, Summary, summarise
from benchmarks.loaders.order import BLOCKS, BUFFERS
from benchmarks.loaders.report import Grid, LoaderReport
from benchmarks.zarr.cases import PROFILES

pytest.importorskip("matplotlib")

from benchmarks.figures import drawing, figures


def some(median: float) -> Spread:
    return Spread.of([median, 0.9 * median, 1.2 * median])


def loaders() -> LoaderReport:
    buffers = [f"{buffer:,}" for buffer in BUFFERS]
    rows = {str(block): [some(1 - block / 1e4) for _ in buffers] for block in BLOCKS}
    names = ("memmap", "fast", "balanced", "annbatch", "bionemo-scdl (random)", "scDataset")
    rates = {name: [some(9 - place), None, some(700 - place)] for place, name in enumerate(names)}
    random = {"memmap": [some(5.0)] * 3, "AnnLoader": [some(1.0), some(2.0), some(3.0)]}
    columns = ["8", "64, 2 workers", "1,024"]
    grids = [
        Grid("csr batches in block order", "k cells/s", "batch", columns, rates),
        Grid("csr batches in random order", "k cells/s", "batch", columns, random),
        Grid("label entropy over that of random order", "x", "block", buffers, rows),
        Grid("rate of block order", "k cells/s", "block", buffers, rows),
        Grid(
            "peak memory of an epoch over that after import",
            "MB",
            "loader",
            ["batches of 64"],
            {"memmap": [some(21.0)], "bionemo-scdl": [some(50.0)], "annbatch": [None]},
        ),
    ]
    what = "label entropy of block order over that of random order"
    return LoaderReport([figure(what, "bits", some(4.2), some(4.3))], "toy", "x", "how", (), grids)


def zarr() -> Report:
    found: list[Outcome] = [
        figure(f"{what}{name}", unit, some(9.5 + place), some(20.5))
        for what, unit in (
            ("bits per value, ", "bits"),
            ("CSR epoch, ", "k cells/s"),
            ("random cells, ", "k cells/s"),
        )
        for place, name in enumerate((*PROFILES, "memmap"))
    ]
    found.append(figure("bits per value, h5ad gzip-4", "bits", some(19.0)))
    found.append(figure("CSR epoch, packed over memmap", "x", some(0.5)))
    found.append(figure("convert to balanced: memory", "MB", some(69.0), some(610.0)))
    return Report(found, "toy", "annbatch", "how")


def readers() -> Report:
    found = [figure("convert: memory", "MB", some(51.0), some(916.0))]
    return Report(found, "toy", "bionemo-scdl", "how")


MAKERS: dict[str, Callable[[], Report]] = {"loaders": loaders, "zarr": zarr, "readers": readers}


@pytest.fixture
def reports(tmp_path: Path) -> list[Path]:
    directory = tmp_path / "results"
    for subject, made in MAKERS.items():
        made().write(directory, f"{subject}-20260102-030405")
    return sorted(directory.glob("*.json"))


def texts(path: Path) -> list[str]:
    """What an SVG says."""
    found = ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
    return sorted("".join(element.itertext()).strip() for element in found)


class TestFigures:
    def test_all_are_drawn_and_say_where_they_were_measured(
        self, reports: list[Path], tmp_path: Path
    ) -> None:
        drawn = [path for path in draw(reports, tmp_path / "out") if path.suffix == ".svg"]
        assert {path.stem for path in drawn} == set(figures.FIGURES)
        for path in drawn:
            said = " ".join(texts(path))
            assert "cores of" in said
            assert "toy; 2026-01-02" in said
            assert "Medians of 3 or more" in said

    def test_show_the_figures_of_the_reports(self, reports: list[Path], tmp_path: Path) -> None:
        draw(reports, tmp_path)
        assert {"scdl, memmap", "AnnLoader, random order", "BioNeMo-SCDL, random order"} <= set(
            texts(tmp_path / "throughput.svg")
        )
        assert {"700", "3"} <= set(texts(tmp_path / "throughput.svg"))
        assert {"h5ad, gzip-4", "19", "20.5"} <= set(texts(tmp_path / "disk.svg"))
        assert {"50", "916", "610"} <= set(texts(tmp_path / "memory.svg"))
        assert {str(block) for block in BLOCKS} <= set(texts(tmp_path / "randomness.svg"))

    def test_are_the_same_bytes_again_from_the_summaries(
        self, reports: list[Path], tmp_path: Path
    ) -> None:
        first = {path.name: path.read_bytes() for path in draw(reports, tmp_path)}
        again = draw([], tmp_path)
        assert {path.name for path in again} == {f"{name}.svg" for name in figures.FIGURES}
        assert all(path.read_bytes() == first[path.name] for path in again)

    def test_a_later_report_replaces_what_it_measured(
        self, reports: list[Path], tmp_path: Path
    ) -> None:
        later = reports[0].with_name("readers-20260103-030405.json")
        found = [figure("convert: memory", "MB", some(40.0), some(800.0))]
        Report(found, "toy", "bionemo-scdl", "how").write(later.parent, later.stem)
        summary = summarise([later, *reports])["readers"]
        assert summary.ours["convert: memory"] == Measured(40.0, 36.0, 48.0)
        assert summary.days == ["2026-01-02", "2026-01-03"]

    def test_of_several_machines_is_an_error(self, reports: list[Path]) -> None:
        record = json.loads(reports[0].read_text())
        record["machine"]["cores"] = "96"
        other = reports[0].with_name(reports[0].name.replace("20260102", "20260103"))
        other.write_text(json.dumps(record))
        with pytest.raises(ReportError, match="differ in machine"):
            summarise([reports[0], other])

    @pytest.mark.parametrize("subject", MAKERS)
    def test_a_missing_report_is_named(
        self, subject: str, reports: list[Path], tmp_path: Path
    ) -> None:
        with pytest.raises(ReportError, match=f"no report of {subject}"):
            draw([path for path in reports if subject not in path.name], tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("name", ["throughput", "batches", "disk", "memory", "randomness"])
    def test_a_case_that_was_not_run_is_named(self, name: str, reports: list[Path]) -> None:
        empty = {
            subject: dataclasses.replace(summary, ours={}, theirs={}, grids={})
            for subject, summary in summarise(reports).items()
        }
        with pytest.raises(ReportError, match="no report"):
            figures.FIGURES[name](empty)

    def test_other_files_are_no_reports(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = tmp_path / "loaders-20260102-030405.json"
        other.write_text('{"outcomes": [{"what": "x"}]}')
        with pytest.raises(SystemExit):
            main([str(other), "--out", str(tmp_path)])
        assert f"{other} is no report of a benchmark" in capsys.readouterr().err

    def test_summaries_keep_every_figure(self, reports: list[Path], tmp_path: Path) -> None:
        for subject, summary in summarise(reports).items():
            summary.save(tmp_path / f"{subject}.json")
            assert Summary.load(tmp_path / f"{subject}.json") == summary


class TestColors:
    @pytest.mark.parametrize("color", [drawing.OURS, drawing.THEIRS, drawing.INK, *drawing.COLORS])
    def test_are_seen_on_light_and_on_dark_pages(self, color: str) -> None:
        def luminance(text: str) -> float:
            parts = [int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
            return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

        for page in ("#ffffff", "#0d1117"):
            light, dark = sorted((luminance(page), luminance(color)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 3


def test_the_documentation_shows_the_figures_of_its_summaries(tmp_path: Path) -> None:
    kept = sorted(DIRECTORY.glob("*.svg"))
    assert {path.stem for path in kept} == set(figures.FIGURES)
    for summary in DIRECTORY.glob("*.json"):
        shutil.copy(summary, tmp_path)
    draw([], tmp_path)
    # Versions of matplotlib may place them otherwise.
    for path in kept:
        assert texts(path) == texts(tmp_path / path.name)


@whole_only
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_all_are_drawn_from_reports_of_toy_data(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("bionemo.scdl")
    from benchmarks.__main__ import main as run

    common = ["--quick", "--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")]
    absent = ["--environment", str(tmp_path / "absent")]
    run(["readers", "--only", "convert", *common])
    run(["zarr", "--only", "bits", "epoch", "random", "convert", *common, *absent])
    cases = ["matrix", "order", "randomness", "memory"]
    run(["loaders", "--only", *cases, *common, *absent])
    drawn = draw(list((tmp_path / "results").glob("*.json")), tmp_path / "out")
    assert {path.stem for path in drawn} == {*figures.FIGURES, "loaders", "readers", "zarr"}
