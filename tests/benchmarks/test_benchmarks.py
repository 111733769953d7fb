"""The benchmarks run on toy data, and their data has the promised properties; nothing is timed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest
from budget import whole_only
from places import ROOT

import scdl
from benchmarks import __main__ as entry
from benchmarks.collections import command as collections
from benchmarks.common import measure
from benchmarks.common.child import Child, ChildFailedError
from benchmarks.common.libraries import FRAMES
from benchmarks.common.measure import Spread
from benchmarks.common.report import Outcome, Report, at_least, at_most
from benchmarks.generate import files as generator
from benchmarks.generate import real_cells
from benchmarks.generate.command import main as generate
from benchmarks.generate.formats import FORMATS, gene_file, write_as
from benchmarks.generate.spec import DataSpec
from benchmarks.zarr import command as zarr
from benchmarks.zarr.cases import PROFILES

SPEC = DataSpec(cells=300, genes=400, nnz_per_cell=60, neighbors=3, cell_types=8, donors=5)
TEMPLATES = real_cells.synthetic_cells(n_cells=40, n_genes=600)


def read(path: Path, **changes: object) -> anndata.AnnData:
    generator.generate(path, dataclasses.replace(SPEC, **changes), TEMPLATES)
    return anndata.read_h5ad(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> anndata.AnnData:
    return read(tmp_path_factory.mktemp("data") / "cells.h5ad")


class TestGenerate:
    def test_has_the_asked_shape(self, data: anndata.AnnData) -> None:
        assert data.shape == (300, 400)
        assert data.raw.X.shape == (300, 400)
        assert data.raw.X.nnz == pytest.approx(300 * 60, rel=0.1)
        assert len(data.obs["cell_type"].cat.categories) == 8
        assert len(data.obs["donor_id"].cat.categories) == 5
        assert data.obs_names.is_unique
        assert data.var_names.is_unique
        assert data.var_names.str.fullmatch(r"ENSG\d{11}").all()

    def test_raw_holds_counts_and_x_their_logarithm(self, data: anndata.AnnData) -> None:
        counts = data.raw.X
        assert (counts.data == np.round(counts.data)).all()
        assert counts.data.min() == 1
        expected = np.log1p(counts.toarray() * (1e4 / counts.sum(axis=1).A))
        np.testing.assert_allclose(data.X.toarray(), expected, rtol=1e-5)

    def test_obs_describes_the_counts(self, data: anndata.AnnData) -> None:
        counts = data.raw.X
        np.testing.assert_array_equal(data.obs["n_genes"], np.diff(counts.indptr))
        np.testing.assert_array_equal(data.obs["n_counts"], counts.sum(axis=1).A1)
        assert data.obs["n_genes"].min() > 0

    def test_most_counts_are_small_and_some_are_large(self, data: anndata.AnnData) -> None:
        counts = data.raw.X.data
        assert np.mean(counts <= 3) > 0.6
        assert counts.max() > 10 * counts.mean()

    def test_neighbors_are_of_the_same_type(self, data: anndata.AnnData) -> None:
        graph = data.obsp["next_cell_ids"]
        types = data.obs["cell_type"].to_numpy()
        numbers = np.diff(graph.indptr)
        assert (np.repeat(types, numbers) == types[graph.indices]).all()
        assert numbers.max() == 3
        assert numbers.min() > 0

    def test_equal_seeds_give_equal_cells(self, data: anndata.AnnData, tmp_path: Path) -> None:
        again = read(tmp_path / "again.h5ad")
        other = read(tmp_path / "other.h5ad", seed=1)
        assert (again.X != data.X).nnz == 0
        assert again.obs.equals(data.obs)
        assert again.var.equals(data.var)
        assert (other.X != data.X).nnz > 0

    def test_many_blocks_give_cells_like_those_of_one(
        self, data: anndata.AnnData, tmp_path: Path
    ) -> None:
        blocks = read(tmp_path / "blocks.h5ad", block_rows=37)
        assert blocks.obs["cell_type"].equals(data.obs["cell_type"])
        assert blocks.raw.X.has_canonical_format
        assert blocks.raw.X.nnz == pytest.approx(data.raw.X.nnz, rel=0.05)
        frequencies = [np.diff(cells.raw.X.tocsc().indptr) / 300 for cells in (blocks, data)]
        assert np.corrcoef(*frequencies)[0, 1] > 0.98

    @pytest.mark.skipif(
        metadata.version("anndata") >= "0.13", reason="files of anndata 0.12 are what is generated"
    )
    def test_is_encoded_as_anndata_encodes(self, data: anndata.AnnData, tmp_path: Path) -> None:
        ours, theirs = tmp_path / "ours.h5ad", tmp_path / "theirs.h5ad"
        read(ours, compression="gzip-4")
        data.write_h5ad(theirs, compression="gzip", compression_opts=4)
        with h5py.File(ours) as generated, h5py.File(theirs) as written:
            assert _layout(generated) == _layout(written)
            assert generated["raw/X/indptr"].dtype == np.int64
            # Chunks follow the number of values, which is not known when they are chosen.
            chunks = [file["raw/X/data"].chunks[0] for file in (generated, written)]
            assert chunks[0] == pytest.approx(chunks[1], rel=0.1)

    def test_without_raw_x_holds_counts(self, data: anndata.AnnData, tmp_path: Path) -> None:
        counts = read(tmp_path / "counts.h5ad", raw=False)
        assert counts.raw is None
        assert (counts.X != data.raw.X).nnz == 0

    def test_more_genes_than_the_templates_are_seen_rarely(self, tmp_path: Path) -> None:
        wide = read(tmp_path / "wide.h5ad", genes=900, cells=2_000)
        invented = wide.var["feature_name"].str.startswith("AC").to_numpy()
        cells = np.diff(wide.raw.X.tocsc().indptr)
        assert invented.sum() == 300
        assert 0 < cells[invented].mean() < 0.1 * cells[~invented].mean()

    def test_refuses_what_templates_cannot_give(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="399 stored values per cell"):
            read(tmp_path / "dense.h5ad", nnz_per_cell=399)
        with pytest.raises(ValueError, match="expected none, lzf, gzip"):
            read(tmp_path / "packed.h5ad", compression="zip")
        assert not list(tmp_path.iterdir())

    def test_command_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "cells.h5ad"
        shape = ["--cells", "50", "--genes", "300", "--nnz-per-cell", "30"]
        generate([*shape, "--source", "synthetic", "--x-only", "--out", str(path)])
        assert anndata.read_h5ad(path).shape == (50, 300)
        assert "50 cells x 300 genes" in capsys.readouterr().out


class TestTemplates:
    def test_missing_celltypist_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def not_found(name: str) -> metadata.Distribution:
            raise metadata.PackageNotFoundError(name)

        monkeypatch.setattr(real_cells.metadata, "distribution", not_found)
        with pytest.raises(FileNotFoundError, match="pip install --no-deps celltypist"):
            real_cells.celltypist_cells()

    def test_celltypist_cells_are_counts(self) -> None:
        try:
            templates = real_cells.celltypist_cells()
        except real_cells.TemplatesNotFoundError as error:
            pytest.skip(str(error))
        assert templates.counts.shape == (559, 32_786)
        assert len(set(templates.gene_names)) == 32_786
        assert (templates.counts.data == np.round(templates.counts.data)).all()

    def test_a_table_of_counts_is_read(self, tmp_path: Path) -> None:
        table = tmp_path / "counts.csv"
        table.write_text(",A,B,C\ncell_1,0,2,0\ncell_2,1,0,3\n")
        templates = real_cells._read_csv(table)
        assert templates.gene_names == ["A", "B", "C"]
        np.testing.assert_array_equal(templates.counts.toarray(), [[0, 2, 0], [1, 0, 3]])


class TestMeasure:
    def test_measures_take_turns(self) -> None:
        calls: list[str] = []
        results = measure.take_turns(
            {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3
        )
        assert calls == ["a", "b"] * 3
        assert {name: len(samples) for name, samples in results.items()} == {"a": 3, "b": 3}

    def test_ratios_are_taken_within_a_turn(self) -> None:
        ratio = Spread.of([2, 8, 9]).over(Spread.of([1, 2, 3]))
        assert (ratio.low, ratio.median, ratio.high) == (2, 3, 4)

    def test_no_samples_are_no_spread(self) -> None:
        with pytest.raises(ValueError, match="at least one sample"):
            Spread.of([])

    def test_a_rate_counts_whole_calls(self) -> None:
        assert measure.rate(lambda: 5, 0.0) > 0

    @pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
    def test_a_child_is_watched(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        module = tmp_path / "hungry.py"
        module.write_text(
            "import time\n"
            "from benchmarks.common.child import serve\n"
            "def grow(n):\n"
            "    print('noise'); block = b'x' * n; time.sleep(0.1)\n"
            "    return {'seconds': 1.5}\n"
            "serve(grow)\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with Child("hungry") as child:
            run = child.watched("grow", n=50_000_000)
        assert run.report == {"seconds": 1.5}
        assert run.peak_megabytes == pytest.approx(50, abs=5)

    def test_a_failed_child_is_an_error(self) -> None:
        child = Child("benchmarks.does_not_exist")
        with pytest.raises(ChildFailedError, match="No module named"), child:
            child.ask("anything")


class TestReport:
    OUTCOMES = (
        Outcome(
            "fast",
            at_least(3, "x"),
            Spread.of([4, 5, 3.5]),
            Spread.of([1.0]),
            Spread.of([4.0]),
            "s",
        ),
        Outcome("small", at_most(10, "kB"), Spread.of([12.345]), note="a remark"),
    )

    def test_bounds_are_judged_by_the_median(self) -> None:
        assert [outcome.passed for outcome in self.OUTCOMES] == [True, False]

    def test_is_written_as_markdown_and_json(self, tmp_path: Path) -> None:
        report = Report(self.OUTCOMES, "some cells", "the other", "as follows")
        markdown, record = report.write(tmp_path / "new", "report")
        lines = markdown.read_text().splitlines()
        assert "| fast | ≥ 3 x | 4 x (3.50 to 5) | 1 s | 4 s | pass |" in lines
        assert "| small | ≤ 10 kB | 12.3 kB | - | - | MISS |" in lines
        assert "- small: a remark." in lines
        written = json.loads(record.read_text())
        assert written["outcomes"][0]["measured"] == {"median": 4.0, "samples": [4.0, 5.0, 3.5]}
        assert int(written["machine"]["cores"]) >= 1


@whole_only
def test_all_cases_run_on_toy_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("bionemo.scdl")
    from benchmarks.readers import command as readers

    directories = ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")]
    report = readers.main(["--quick", *directories])
    assert len(report.outcomes) == 12
    assert {path.suffix for path in (tmp_path / "results").iterdir()} == {".md", ".json"}
    assert "read_rows" in capsys.readouterr().out


@whole_only
def test_all_cases_of_zarr_run_on_toy_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directories = ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")]
    report = zarr.main(["--quick", *directories, "--environment", str(tmp_path / "absent")])
    assert report is not None
    measured = {outcome.what for outcome in report.outcomes}
    for profile in PROFILES:
        assert {f"{what}, {profile}" for what in ("bits per value", "CSR epoch")} <= measured
    assert {"random cells, memmap", "convert to balanced: speed"} <= measured
    for what in ("1,024 random cells at once", "1,024 random cells at once, genes="):
        assert {f"{what}, {profile} over memmap" for profile in FRAMES} <= measured
    assert {path.suffix for path in (tmp_path / "results").iterdir()} == {".md", ".json"}
    printed = capsys.readouterr().out
    assert "annbatch is left out: absent does not have annbatch" in printed
    assert "cellstream is left out: .venv-cellstream does not have cellstream" in printed


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@whole_only
def test_all_cases_of_collections_run_on_toy_data(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    directories = ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")]
    report = collections.main(["--quick", *directories])
    assert len(report.outcomes) >= 5
    assert {"flatten 20 members to memmap: memory"} <= {outcome.what for outcome in report.outcomes}
    assert {path.suffix for path in (tmp_path / "results").iterdir()} == {".md", ".json"}


@whole_only
def test_all_cases_of_many_files_run_on_toy_data(tmp_path: Path) -> None:
    pytest.importorskip("bionemo.scdl")
    from benchmarks.many_files import command as many_files

    directories = ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")]
    report = many_files.main(["--quick", *directories])
    measured = [outcome.what for outcome in report.outcomes]
    drawn = [f"sample_neighbors, {how}" for how in ("random", "first", "weighted")]
    assert measured[:6] == [*drawn, *(f"{what}, over 20 members" for what in drawn)]
    # No figures of files where a process cannot be kept to some cores.
    assert len(measured) in (6, 8)
    assert {path.suffix for path in (tmp_path / "results").iterdir()} == {".md", ".json"}


@whole_only
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_all_cases_of_sources_run_on_toy_data(tmp_path: Path) -> None:
    pytest.importorskip("tiledbsoma")
    from benchmarks.sources import command as sources

    directories = ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")]
    report = sources.main(["--quick", *directories])
    measured = {outcome.what for outcome in report.outcomes}
    assert {f"convert {name}" for name in FORMATS} <= measured
    assert {
        "convert AnnData in memory",
        "append to 2 times the cells, over a conversion",
    } < measured


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_the_generator_writes_each_format(tmp_path: Path, name: str) -> None:
    if name == "soma":
        pytest.importorskip("tiledbsoma")
    spec = DataSpec(cells=70, genes=50, nnz_per_cell=9)
    generator.generate(tmp_path / "a.h5ad", spec, TEMPLATES)
    out = tmp_path / f"a{FORMATS[name][1]}"
    write_as(name, tmp_path / "a.h5ad", out)
    options: dict[str, Any] = {}
    if name == "parquet":
        options = {
            "gene_ids": "genes",
            "gene_values": "expressions",
            "vocabulary": gene_file(out, 50),
        }
    scdl.convert(tmp_path / "a.h5ad", tmp_path / "one")
    scdl.convert(out, tmp_path / "other", **options)
    one, other = (scdl.open(tmp_path / n).read_rows(slice(None)) for n in ("one", "other"))
    np.testing.assert_array_equal(one.to_dense(), other.to_dense())


class TestCommand:
    def test_lists_the_subjects(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert entry.main([]) == 0
        listed = capsys.readouterr().out
        folders = {path.parent.name for path in ROOT.glob("benchmarks/*/command.py")}
        assert folders == set(entry.SUBJECTS)
        assert all(f"\n  {name} " in listed for name in folders)

    def test_lists_without_importing_what_subjects_need(self) -> None:
        code = "import sys; sys.argv[1:] = ['--help']; from benchmarks.__main__ import main\n"
        code += "try: main()\nfinally: print({'numpy', 'scdl', 'torch'} & set(sys.modules))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        )
        assert "set()" in done.stdout

    def test_passes_options_on(self, tmp_path: Path) -> None:
        path = tmp_path / "cells.h5ad"
        shape = ["--cells", "9", "--genes", "300", "--nnz-per-cell", "30", "--source", "synthetic"]
        assert entry.main(["generate", *shape, "--out", str(path)]) == 0
        assert anndata.read_h5ad(path).shape == (9, 300)

    def test_failures_are_the_exit_status(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("benchmarks.compositions.command.main", lambda options: len(options))
        assert entry.main(["compositions", "--cases", "2"]) == 2
        assert entry.main(["compositions", *["x"] * 256]) == 100


def _layout(file: h5py.File) -> dict[str, object]:
    """Every element with its encoding and storage; not the width of ``indptr``."""
    layout: dict[str, object] = {}

    def visit(name: str, element: h5py.Group | h5py.Dataset) -> None:
        stored = None
        if isinstance(element, h5py.Dataset):
            stored = (element.shape, element.maxshape, element.compression, element.chunks is None)
            if not name.endswith("indptr"):
                stored += (element.dtype,)
        attributes = {key: np.asarray(value).tolist() for key, value in element.attrs.items()}
        layout[name] = (attributes, stored)

    file.visititems(visit)
    return layout
