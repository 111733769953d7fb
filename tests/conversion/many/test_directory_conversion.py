"""Many files: the same archives as one after the other, whoever does the work, whatever fails."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tenx
from budget import sample
from hypothesis import given
from hypothesis import strategies as st
from sources import Cells, Encoding, names, random_cells, write_h5ad

import scdl
from scdl.conversion.many.directory import archive_names
from scdl.conversion.many.parts import Whole
from scdl.errors import (
    ArchiveExistsError,
    BackendOptionError,
    ConversionFailedError,
    OptionError,
    ScdlWarning,
    SourceError,
    SourceNotFoundError,
)

Run = Callable[..., subprocess.CompletedProcess[str]]
GZIP = {"compression": "gzip", "chunk": 100}


def table(n: int, seed: int) -> pd.DataFrame:
    types = pd.Categorical(np.random.default_rng(seed).choice(["B", "NK", "T"], n))
    return pd.DataFrame({"type": types, "age": np.arange(n)}, index=names(f"cell{seed}-", n))


def write_file(path: Path, n: int, seed: int, **encoding: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_h5ad(
        path,
        random_cells(n, 40, seed=seed, is_sorted=False, repeated=True),
        Encoding(**encoding),
        obs=table(n, seed),
        obsm={"X_pca": np.random.default_rng(seed).normal(size=(n, 3))},
        obsp={"knn": random_cells(n, n, density=0.02, seed=seed)},
        obsp_encoding=Encoding(),
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matrices in all forms, in directories, with one stem twice."""
    place = tmp_path_factory.mktemp("many")
    write_file(place / "in" / "large.h5ad", 1_500, 1, storage=GZIP)
    write_file(place / "in" / "dense.h5ad", 200, 2, layout="dense")
    write_file(place / "in" / "sub" / "large.h5ad", 150, 3)
    write_file(place / "in" / "sub" / "csc.h5ad", 120, 4, layout="csc")
    (place / "in" / "notes.txt").write_text("no h5ad")
    return place


EXPECTED = {"large": "large", "dense": "dense", "sub/large": "sub_large", "sub/csc": "sub_csc"}


def content(archive: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(archive)): path.read_bytes()
        for path in sorted(archive.rglob("*"))
        if path.is_file()
    }


def assert_same(
    archive: str | Path, source: Path, place: Path, **options: Any
) -> scdl.ConversionReport:
    """Byte by byte what one conversion makes of the file, whose report is returned."""
    expected = place / "expected" / Path(archive).name
    expected.parent.mkdir(exist_ok=True)
    shutil.rmtree(expected, ignore_errors=True)
    report = scdl.convert(source, expected, **options)
    ours, theirs = content(Path(archive)), content(expected)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name] == theirs[name], name
    return report


def everything(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("split_bytes", "how", "options"),
    sample(
        [
            (30_000, {"workers": 1}, {"neighbor_key": "knn", "obsm": ["X_pca"]}),
            (None, {"workers": 2}, {"neighbor_key": "knn", "obsm": ["X_pca"]}),
            (
                30_000,
                {"workers": 2},
                {"neighbor_key": "knn", "obsm": ["X_pca"], "block_values": 999},
            ),
            (30_000, {"workers": 3, "use_processes": False}, {"backend": "zarr"}),
        ],
        2,
    ),
    ids=sample(["divided, this process", "whole", "divided", "divided, zarr, threads"], 2),
)
def test_same_as_one_by_one(
    files: Path, tmp_path: Path, split_bytes: int, how: Any, options: Any
) -> None:
    before = everything(files / "in")
    report = scdl.convert_directory(
        files / "in", tmp_path / "out", split_bytes=split_bytes, **how, **options
    )
    assert everything(files / "in") == before
    suffix = ".zarr" if options.get("backend") else ".scdl"
    expected = {
        str(files / "in" / f"{source}.h5ad"): str(tmp_path / "out" / f"{name}{suffix}")
        for source, name in EXPECTED.items()
    }
    assert report.archives == expected
    assert not report.failed
    assert {str(path) for path in (tmp_path / "out").iterdir()} == set(expected.values())
    for source, archive in expected.items():
        told = report.reports[source]
        alone = assert_same(archive, Path(source), tmp_path, **options)
        assert replace(told, seconds=0) == replace(alone, path=archive, seconds=0)
        assert told.duplicates_summed > 0 or "dense" in source


def test_several_files_in_parts(files: Path, tmp_path: Path) -> None:
    sources = [files / "in" / f"{name}.h5ad" for name in EXPECTED]
    options: dict[str, Any] = {"data_dtype": "float16", "neighbor_key": "knn"}
    report = scdl.convert_in_parts(
        sources, tmp_path / "ours", workers=2, split_bytes=40_000, **options
    )
    expected = scdl.convert(sources, tmp_path / "expected", **options)
    assert content(tmp_path / "ours") == content(tmp_path / "expected")
    assert (report.rows_sorted, report.duplicates_summed, report.max_rounding) == (
        expected.rows_sorted,
        expected.duplicates_summed,
        expected.max_rounding,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "ours"]


def test_files_are_remembered_as_they_were_named(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(files / "in" / "sub", tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    scdl.convert("in/csc.h5ad", "alone")
    processes = {"workers": 2, "split_bytes": 20_000}
    for how in sample([{"workers": 1}, processes, {"use_processes": False}], 2):
        scdl.convert_in_parts(["in/csc.h5ad"], "parts", **how)
        scdl.convert_directory("in", "out", **how)
        assert content(Path("parts")) == content(Path("out/csc.scdl")) == content(Path("alone"))
        assert scdl.open("parts").info.blocks[0].label == "in/csc.h5ad"
        shutil.rmtree("parts")
        assert len(scdl.convert_directory("in", "out", resume=True).reports) == 0
        shutil.rmtree("out")
    made = scdl.SingleCellCollection("made")
    made.load_h5ad_multi("in")
    assert made.info.blocks[0].label == "in/csc.h5ad"


@pytest.mark.parametrize("workers", sample([2, 1], 1))
def test_rounding_is_told_once_and_of_the_archive(tmp_path: Path, workers: int) -> None:
    """What a worker warns of reaches the caller, also of parts."""
    cells = random_cells(300, 20, dtype="<f8")
    cells = Cells(cells.rows, cells.columns, cells.values / 3, cells.shape)
    for name in ("a", "b"):
        write_h5ad(tmp_path / f"{name}.h5ad", cells)
    size = (tmp_path / "a.h5ad").stat().st_size
    with pytest.warns(ScdlWarning) as given:
        scdl.convert_directory(tmp_path, tmp_path / "out", workers=workers, split_bytes=size // 2)
    told = sorted(str(one.message) for one in given)
    assert [text.partition(": ")[0] for text in told] == [
        str(tmp_path / "out" / f"{name}.scdl") for name in ("a", "b")
    ]


class TestFailing:
    @pytest.fixture
    def place(self, files: Path, tmp_path: Path) -> Path:
        """Of three files one is damaged."""
        (tmp_path / "in").mkdir()
        for name in ("dense", "sub/large"):
            shutil.copy(files / "in" / f"{name}.h5ad", tmp_path / "in")
        (tmp_path / "in" / "bad.h5ad").write_bytes(b"no HDF5")
        return tmp_path

    @pytest.fixture(params=[{"use_processes": False}, {"workers": 1}], ids=["threads", "itself"])
    def how(self, request: pytest.FixtureRequest) -> Any:
        return request.param

    def test_the_others_are_kept_and_resumed_from(self, files: Path, place: Path, how: Any) -> None:
        bad = str(place / "in" / "bad.h5ad")
        with pytest.raises(ConversionFailedError, match=r"1 of 3 files .*bad.h5ad: not an") as told:
            scdl.convert_directory(place / "in", place / "out", **how)
        assert isinstance(told.value, RuntimeError)
        assert set(told.value.report.failed) == {bad}
        assert "\n" not in str(told.value)
        made = sorted(path.name for path in (place / "out").iterdir())
        assert made == ["dense.scdl", "large.scdl"]
        before = {name: (place / "out" / name).stat().st_ino for name in made}
        shutil.copy(files / "in" / "sub" / "csc.h5ad", bad)
        report = scdl.convert_directory(place / "in", place / "out", **how, resume=True)
        assert set(report.reports) == {bad}
        assert len(report.archives) == 3
        assert "there already: 2" in str(report)
        assert before == {name: (place / "out" / name).stat().st_ino for name in made}
        assert len(list((place / "out").iterdir())) == 3

    def test_nobody_is_said_to_be_there_where_all_failed(self, place: Path, how: Any) -> None:
        with pytest.raises(ConversionFailedError, match=r"1 of 3 .*; the others were; pass resume"):
            scdl.convert_directory(place / "in", place / "out", **how)
        for name in ("dense", "large"):
            (place / "in" / f"{name}.h5ad").unlink()
        with pytest.raises(ConversionFailedError, match="1 of 1 files") as told:
            scdl.convert_directory(place / "in", place / "none", **how)
        assert "others" not in str(told.value)

    def test_skipped(self, place: Path, how: Any) -> None:
        report = scdl.convert_directory(place / "in", place / "out", **how, skip_failed=True)
        assert len(report.archives) == 2
        assert "bad.h5ad: not an HDF5 file" in str(report)

    def test_one_worker_is_this_process(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """No process is started, also where it is said that there are to be some."""

        def refused(*_: Any) -> None:
            raise AssertionError("a process was started")

        monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refused)
        report = scdl.convert_directory(
            place / "in", place / "out", workers=1, use_processes=True, skip_failed=True
        )
        assert len(report.archives) == 2

    def test_interrupted_in_this_process(
        self, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was complete stays; nothing else is left."""
        (place / "in" / "bad.h5ad").unlink()
        done, run = [], Whole.run

        def interrupted(self: Whole, meter: Any) -> Any:
            if done:
                raise KeyboardInterrupt
            done.append(self.path)
            return run(self, meter)

        monkeypatch.setattr(Whole, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            scdl.convert_directory(place / "in", place / "out", workers=1)
        assert [path.name for path in (place / "out").iterdir()] == [Path(done[0]).name]

    def test_a_part_of_a_file(self, place: Path) -> None:
        """A value that does not fit into the type, somewhere in a file that is divided."""
        (place / "in" / "bad.h5ad").unlink()
        with pytest.raises(ConversionFailedError, match=r"2 of 2 files.*uint8 cannot hold") as told:
            scdl.convert_directory(
                place / "in", place / "out", split_bytes=20_000, data_dtype="uint8", workers=2,
                use_processes=False,
            )  # fmt: skip
        assert "drafts" not in str(told.value)
        assert list((place / "out").iterdir()) == []

    def test_what_cannot_be_asked_of_a_divided_file(self, place: Path) -> None:
        """Found when the work is planned."""
        with pytest.raises(ConversionFailedError, match=r"3 of 3 files.*obsm/X_umap is missing"):
            scdl.convert_directory(
                place / "in", place / "out", obsm=["X_umap"], split_bytes=1, use_processes=False
            )
        with pytest.raises(SourceError, match="X_umap"):
            scdl.convert_in_parts([place / "in" / "dense.h5ad"], place / "archive", obsm=["X_umap"])
        assert not (place / "archive").exists()


class TestRefused:
    def test_nothing_to_convert(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "absent"):
            with pytest.raises(SourceNotFoundError, match=f"{path}: there is no"):
                scdl.convert_directory(path, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.fixture
    def place(self, files: Path, tmp_path: Path) -> Path:
        (tmp_path / "in").mkdir()
        shutil.copy(files / "in" / "dense.h5ad", tmp_path / "in")
        return tmp_path

    def test_what_stands_there(self, place: Path) -> None:
        (place / "out" / "dense.scdl").mkdir(parents=True)
        with pytest.raises(ArchiveExistsError, match=r"dense.scdl: something exists.*dense.h5ad"):
            scdl.convert_directory(place / "in", place / "out")
        with pytest.raises(ArchiveExistsError, match=r"not a readable archive, .* cannot resume"):
            scdl.convert_directory(place / "in", place / "out", resume=True)
        (place / "out" / "dense.scdl").rmdir()
        (place / "other.h5ad").symlink_to(place / "in" / "dense.h5ad")
        scdl.convert(place / "other.h5ad", place / "out" / "dense.scdl")
        with pytest.raises(ArchiveExistsError, match=r"archive of .*other.h5ad, not of"):
            scdl.convert_directory(place / "in", place / "out", resume=True)

    def test_a_file_added_later_whose_name_another_has(self, place: Path) -> None:
        for below in ("a_b", "a/b"):
            (place / "in" / below).mkdir(parents=True)
            shutil.copy(place / "in" / "dense.h5ad", place / "in" / below / "c.h5ad")
            if below == "a_b":
                scdl.convert_directory(place / "in", place / "out", use_processes=False)
        with pytest.raises(ArchiveExistsError, match=r"archive of .*a_b/c.h5ad, not of .*a/b/"):
            scdl.convert_directory(place / "in", place / "out", use_processes=False, resume=True)
        # Elsewhere they are below the same directories.
        (place / "in").rename(place / "moved")
        shutil.rmtree(place / "moved" / "a")
        scdl.convert_directory(place / "moved", place / "out", use_processes=False, resume=True)

    def test_arguments(self, place: Path) -> None:
        with pytest.raises(BackendOptionError, match="s3://bucket/out"):
            scdl.convert_directory(place / "in", "s3://bucket/out")
        for workers in (0, "x", 1.5):
            with pytest.raises(OptionError, match=f"at least 1, or a .*Client, not {workers!r}"):
                scdl.convert_directory(place / "in", place / "out", workers=workers)
        with pytest.raises(TypeError, match="colour"):
            scdl.convert_directory(place / "in", place / "out", colour="red")

    def test_what_is_not_converted_in_parts(self, place: Path) -> None:
        scdl.convert(place / "in" / "dense.h5ad", place / "archive")
        for source, error in (
            (place / "absent.h5ad", SourceNotFoundError),
            (place / "archive", SourceError),
            ("s3://bucket/a.zarr", SourceError),
        ):
            with pytest.raises(error, match=f"^{source}: "):
                scdl.convert_in_parts([source], place / "out", workers=2)
        with pytest.raises(SourceError, match="nothing to convert"):
            scdl.convert_in_parts([], place / "out", workers=2)
        with pytest.raises(ArchiveExistsError, match="archive: something exists"):
            scdl.convert_in_parts([place / "in" / "dense.h5ad"], place / "archive")
        assert sorted(path.name for path in place.iterdir()) == ["archive", "in"]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_where_nothing_can_be_written(self, place: Path) -> None:
        (place / "out").mkdir(mode=0o500)
        with pytest.raises(PermissionError):
            scdl.convert_directory(place / "in", place / "out")

    def test_a_file_in_place_of_the_directory(self, place: Path) -> None:
        (place / "out").touch()
        with pytest.raises(OSError, match="out: cannot write"):
            scdl.convert_directory(place / "in", place / "out")


@given(st.lists(st.text("ab_/-2", min_size=1, max_size=6), unique=True, max_size=8))
def test_names_are_distinct(paths: list[str]) -> None:
    files = sorted({os.path.normpath(f"/in/{path}x") + ".h5ad" for path in paths})
    found = archive_names(files, "/in")
    assert len(set(found.values())) == len(files)
    assert not any("/" in name for name in found.values())
    # A file more leaves the names of those before it alone.
    assert archive_names(files[:-1], "/in").items() <= found.items()


class TestCommand:
    @pytest.fixture
    def place(self, files: Path, tmp_path: Path) -> Path:
        shutil.copytree(files / "in" / "sub", tmp_path / "in")
        return tmp_path

    def test_directory(self, place: Path, run_python: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        options = ["--workers", "2", "--obsm", "X_pca", "--split-bytes", "20000"]
        done = run_python("-m", "scdl", "convert", "in", "out", *options)
        assert (done.returncode, done.stderr) == (0, "")
        assert "2 files converted, 270 cells" in done.stdout
        monkeypatch.chdir(place)
        assert_same(place / "out" / "csc.scdl", Path("in/csc.h5ad"), place, obsm=["X_pca"])

    def test_exit_codes(self, place: Path, run_command: Run) -> None:
        (place / "in" / "bad.h5ad").touch()
        done = run_command("scdl", "convert", "in", "out", "--workers", "1")
        assert done.returncode == 1
        assert "2 files converted" in done.stdout
        assert len(done.stderr.splitlines()) == 1
        assert "1 of 3 files could not be converted" in done.stderr
        assert "bad.h5ad" in done.stderr
        again = run_command("scdl", "convert", "in", "out", "--resume", "--skip-failed", "-q")
        assert (again.returncode, again.stdout) == (3, "")
        (place / "in" / "bad.h5ad").unlink()
        assert run_command("scdl", "convert", "in", "out", "--resume").returncode == 0

    @pytest.mark.parametrize(
        ("arguments", "code", "told"),
        [
            (["in/csc.h5ad", "out", "--resume"], 2, "only to a directory"),
            (["in", "out", "--workers", "2", "--dask", "tcp://x:1"], 2, "--dask"),
            (["in", "out", "--workers", "0"], 2, "--workers"),
            ([".git", "out"], 1, ".git: there is no *.h5ad"),
        ],
    )
    def test_errors(
        self, place: Path, run_command: Run, arguments: list[str], code: int, told: str
    ) -> None:
        (place / ".git").mkdir()
        done = run_command("scdl", "convert", *arguments)
        assert done.returncode == code
        assert told in done.stderr
        assert "Traceback" not in done.stderr
        assert not (place / "out").exists()

    def test_documented(self, place: Path, run_python: Run) -> None:
        code = "from scdl.cli.main import convert_h5ad_to_scdl; convert_h5ad_to_scdl()"
        command = ["-c", code, "--data-path", "in", "--num-workers", "2"]
        for path, option in (("threads", []), ("processes", ["--use-mp"])):
            done = run_python(*command, "--save-path", path, *option)
            assert done.returncode == 0, done.stderr
        assert content(place / "threads") == content(place / "processes")
        assert scdl.open(place / "threads").n_obs == 270


def test_a_script_without_a_guard_is_told_so(files: Path, tmp_path: Path, run_python: Run) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"import scdl\nscdl.convert_directory({str(files / 'in' / 'sub')!r}, 'out', workers=2)\n"
    )
    done = run_python(script)
    assert done.returncode == 1
    assert '`if __name__ == "__main__":`' in done.stderr


def test_nothing_is_imported_that_is_not_needed() -> None:
    code = "import sys, scdl.conversion.many.directory; print('distributed' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_files_of_several_formats(tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "deep").mkdir(parents=True)
    write_h5ad(source / "deep" / "a.h5ad", random_cells(3, 2))
    tenx.h5_of_version_3(source / "b.h5")
    tenx.market(source / "one")
    tenx.market(source / "two", prefix="GSM1_", packed="")
    tenx.market(source / "two", prefix="GSM2_", version=2)
    (source / "other.h5").write_bytes((source / "deep" / "a.h5ad").read_bytes())
    report = scdl.convert_directory(source, tmp_path / "out", workers=1)
    expected = ["b", "deep_a", "one", "two_GSM1", "two_GSM2"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{n}.scdl" for n in expected
    ]
    assert len(report.archives) == 5
    ds = scdl.open(tmp_path / "out" / "one.scdl")
    assert ds.obs_names.tolist() == tenx.BARCODES
    # All can be divided, or are converted whole.
    scdl.convert_directory(
        source, tmp_path / "parts", workers=2, use_processes=False, split_bytes=500
    )
    for name in expected:
        one, other = (scdl.open(tmp_path / at / f"{name}.scdl") for at in ("out", "parts"))
        assert one.obs_names.tolist() == other.obs_names.tolist()
        rows, others = (ds.read_rows(slice(None)).to_dense() for ds in (one, other))
        np.testing.assert_array_equal(rows, others)
    with pytest.raises(ConversionFailedError, match=r"a\.h5ad: the option genome is for 10x"):
        scdl.convert_directory(source, tmp_path / "again", workers=1, genome="mm10")
