"""What all commands share: reports as JSON, quiet and verbose, names of options, exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sources import names, random_cells, write_h5ad
from typer.testing import CliRunner

import scdl
from scdl import progress
from scdl.cli.app import COMMANDS, app_for
from scdl.cli.main import main
from scdl.conversion.many.report import DirectoryReport

Run = Callable[..., subprocess.CompletedProcess[str]]
CELLS = random_cells(12, 8, dtype="<u2", seed=1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    obs = pd.DataFrame({"type": ["B", "T"] * 6, "age": range(12)}, index=names("cell", 12))
    return write_h5ad(tmp_path / "cells.h5ad", CELLS, obs=obs)


@pytest.fixture
def archive(source: Path) -> Path:
    scdl.convert(source, source.with_name("a.scdl"))
    return source.with_name("a.scdl")


@pytest.fixture
def scdl_command(run_command: Run) -> Run:
    return partial(run_command, "scdl")


def help_of(*command: str) -> str:
    return CliRunner().invoke(app_for(command), [*command, "--help"]).output


def document(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class TestJson:
    def test_convert_has_the_fields_of_the_report(self, source: Path, scdl_command: Run) -> None:
        found = document(scdl_command("convert", source, "a.scdl", "--json", "-q"))
        report = scdl.convert(source, source.with_name("b.scdl"))
        expected = json.loads(report.to_json())
        assert found.keys() == expected.keys() == {*report.__dataclass_fields__}
        own = ("path", "seconds")
        assert {**found, **dict.fromkeys(own)} == {**expected, **dict.fromkeys(own)}

    def test_directory(self, source: Path, scdl_command: Run) -> None:
        source.with_name("bad.h5ad").write_text("not HDF5")
        done = scdl_command("convert", ".", "out", "--workers", "1", "--json")
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("scdl: error: 1 of 2 files")
        found = json.loads(done.stdout)
        assert found.keys() == {*DirectoryReport.__dataclass_fields__}
        assert next(iter(found["reports"].values()))["n_obs"] == 12
        assert [Path(path).name for path in found["failed"]] == ["bad.h5ad"]

    def test_info(self, archive: Path, scdl_command: Run) -> None:
        found = document(scdl_command("info", "a.scdl", "--json"))
        data = scdl.open(archive)
        assert (found["kind"], found["backend"]) == ("archive", "memmap")
        assert (found["n_obs"], found["n_vars"], found["nnz"]) == (12, [8], CELLS.csr().nnz)
        assert found["tables"]["obs"]["columns"] == ["type", "age"]
        assert found["nbytes"] == data.store.nbytes
        assert found["arrays"]["data"]["dtype"] == str(data.data_dtype)

    def test_info_of_a_collection(self, archive: Path, scdl_command: Run) -> None:
        (archive.parent / "atlas").mkdir()
        archive.rename(archive.parent / "atlas" / "one.scdl")
        found = document(scdl_command("info", "atlas", "--json"))
        assert (found["kind"], found["backends"]) == ("collection", ["memmap"])
        assert found["members"] == [{"name": "one.scdl", "n_obs": 12, "n_vars": [8]}]

    def test_verify(self, archive: Path, scdl_command: Run) -> None:
        found = document(scdl_command("verify", "a.scdl", "--deep", "--json"))
        assert (found["verdict"], found["deep"], found["findings"]) == ("sound", True, [])
        data = archive / "data.npy"
        data.write_bytes(data.read_bytes()[:-1] + b"\xff")
        done = scdl_command("verify", "a.scdl", "--deep", "--json")
        assert done.returncode == 1
        found = json.loads(done.stdout)
        assert found["verdict"] == "damaged"
        assert found["findings"][0]["verdict"] == "damaged"

    def test_flatten_tells_what_was_written(self, archive: Path, scdl_command: Run) -> None:
        (archive.parent / "atlas").mkdir()
        archive.rename(archive.parent / "atlas" / "one.scdl")
        found = document(scdl_command("flatten", "atlas", "f.zarr", "--json"))
        assert (found["backend"], found["n_obs"], found["nnz"]) == ("zarr", 12, CELLS.csr().nnz)

    @pytest.mark.parametrize("command", ["info", "verify", "head"])
    def test_errors_are_a_sentence_still(self, source: Path, scdl_command: Run, command: str):
        done = scdl_command(command, "absent", "--json")
        assert (done.returncode, done.stdout) == (2 if command == "verify" else 1, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("scdl: error: absent")

    def test_numbers_that_json_lacks_are_null(self) -> None:
        report = DirectoryReport("x", {}, {}, {}, np.float64("nan"))
        assert json.loads(report.to_json())["seconds"] is None


#: A use of each command, in the directory `ground`.
USES = {
    "append": ["atlas/one.scdl", "cells.h5ad"],
    "bench": ["atlas/one.scdl", "--seconds", "0.01", "--order", "block"],
    "cast": ["atlas/one.scdl", "out.scdl", "--dtype", "uint16"],
    "convert": ["cells.h5ad", "out.scdl"],
    "export": ["atlas/one.scdl", "out.h5ad"],
    "flatten": ["atlas", "out.scdl"],
    "head": ["atlas/one.scdl"],
    "info": ["atlas"],
    "manifest": ["atlas"],
    "report": ["atlas", "page.html"],
    "split": ["atlas/one.scdl", "out", "--by", "type"],
    "subset": ["atlas/one.scdl", "out.scdl", "--where", "type == 'B'"],
    "verify": ["atlas", "--deep"],
}


@pytest.fixture
def ground(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[str, str]]]:
    """Runs a command in this process, in a directory of its own: what it writes to the streams."""
    logger, runs = logging.getLogger("scdl"), count()
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    # Report progress at once instead of after some seconds.
    monkeypatch.setattr(progress, "INTERVAL", 0)

    def run(*command: str) -> tuple[str, str]:
        place = archive.with_name(str(next(runs)))
        shutil.copytree(archive, place / "atlas" / "one.scdl")
        shutil.copy(archive.with_name("cells.h5ad"), place)
        monkeypatch.chdir(place)
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as error,
            pytest.raises(SystemExit) as ended,
        ):
            main(command)
        assert ended.value.code == 0, error.getvalue()
        return out.getvalue(), error.getvalue()

    before = logger.level, logger.propagate, [*logger.handlers]
    # A verbose command of another test may have run in this process.
    logger.setLevel("WARNING")
    yield run
    # Unlike an assignment, this also forgets which levels were enabled.
    logger.setLevel(before[0])
    logger.propagate, logger.handlers = before[1:]


class TestVerbosity:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_takes_the_options(self, command: str) -> None:
        told = help_of(command)
        for option in ("-q, --quiet", "-v, --verbose", "--json"):
            assert option in told

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_honours_the_options(
        self, ground: Callable[..., tuple[str, str]], command: str
    ) -> None:
        """Quiet commands say nothing but the JSON that is asked for; verbose ones log besides."""
        if command == "bench":
            pytest.importorskip("torch")
        use = [command, *USES[command]]
        out, error = ground(*use)
        assert out.strip()
        assert "scdl: info" not in error
        assert ground(*use, "--quiet") == ("", "")
        out, error = ground(*use, "--quiet", "--json")
        assert isinstance(json.loads(out), dict)
        assert error == ""
        out, error = ground(*use, "--quiet", "--verbose")
        assert out == ""
        *_, last = lines = error.splitlines()
        assert all(line.startswith("scdl: info: ") for line in lines)
        assert "it took" in last
        out, error = ground(*use, "--verbose")
        assert out.strip()
        assert "scdl: info: it took" in error

    def test_verbose_logs_steps(self, source: Path, scdl_command: Run) -> None:
        done = scdl_command("convert", "cells.h5ad", "b.scdl", "-v")
        lines = done.stderr.splitlines()
        assert any("cells.h5ad" in line and "12 cells x 8 genes" in line for line in lines)
        assert all(line.startswith("scdl: info: ") for line in lines)

    def test_verbose_shows_where_an_error_was_raised(self, source: Path, scdl_command: Run) -> None:
        done = scdl_command("info", "absent", "--verbose")
        assert done.returncode == 1
        assert done.stderr.startswith("scdl: error: absent")
        assert "Traceback" in done.stderr

    def test_the_library_only_logs(self, source: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("INFO", "scdl"):
            scdl.convert(source, source.with_name("b.scdl"))
        assert any("12 cells x 8 genes" in record.getMessage() for record in caplog.records)


class TestOverwrite:
    def test_replaces_an_archive(self, archive: Path, scdl_command: Run) -> None:
        (archive.parent / "atlas").mkdir()
        archive.rename(archive.parent / "atlas" / "one.scdl")
        for command in (
            ["convert", "cells.h5ad", "out.scdl"],
            ["flatten", "atlas", "out.scdl"],
            ["cast", "atlas/one.scdl", "out.scdl", "--dtype", "float64"],
        ):
            assert scdl_command(*command, "--overwrite").returncode == 0
        done = scdl_command(*command)
        assert done.returncode == 1
        assert "--overwrite" in done.stderr
        assert scdl.open(archive.with_name("out.scdl")).data_dtype == np.float64

    def test_the_former_name(self, archive: Path, scdl_command: Run) -> None:
        assert scdl_command("convert", "cells.h5ad", "a.scdl", "--replace").returncode == 0

    def test_only_the_documented_name_is_in_the_help(self) -> None:
        told = {name: help_of(name) for name in COMMANDS}
        writing = {name for name, text in told.items() if "--overwrite" in text}
        assert {"cast", "convert", "export", "flatten", "split", "subset"} <= writing
        assert not any("--replace" in text for text in told.values())

    def test_archives_of_a_directory(self, source: Path, scdl_command: Run) -> None:
        convert = ("convert", ".", "out", "--workers", "1")
        assert scdl_command(*convert).returncode == 0
        write_h5ad(source, random_cells(5, 8, dtype="<u2", seed=2))
        done = scdl_command(*convert, "--overwrite")
        assert done.returncode == 0, done.stderr
        assert scdl.open(source.parent / "out" / "cells.scdl").n_obs == 5
        done = scdl_command(*convert, "--overwrite", "--resume")
        assert done.returncode == 1
        assert "only one" in done.stderr

    def test_what_is_no_archive_stays(self, source: Path, scdl_command: Run) -> None:
        place = source.parent / "out" / "cells.scdl"
        place.mkdir(parents=True)
        (place / "precious.txt").write_text("mine")
        for dest in ("out", "out/cells.scdl"):
            origin = "." if dest == "out" else "cells.h5ad"
            done = scdl_command("convert", origin, dest, "--overwrite", "--workers", "1")
            assert done.returncode == 1, dest
            assert "not an archive" in done.stderr
        assert (place / "precious.txt").read_text() == "mine"


INTERRUPTED = """
import os, signal
from scdl.conversion.source_rows import SourceRows

def interrupt(*_):
    os.kill(os.getpid(), signal.SIGINT)

SourceRows.write_matrix = interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)
from scdl.__main__ import scdl
scdl()
"""


class TestExits:
    def test_an_interrupt_leaves_nothing_behind(self, source: Path, run_python: Run) -> None:
        done = run_python("-c", INTERRUPTED, "convert", "cells.h5ad", "a.scdl", "-q")
        assert (done.returncode, done.stdout) == (130, "")
        assert "Traceback" not in done.stderr
        assert [path.name for path in source.parent.iterdir()] == ["cells.h5ad"]

    def test_codes_are_in_the_help(self) -> None:
        told = help_of()
        codes = [line.split()[0] for line in told.partition("Exit codes:")[2].splitlines() if line]
        assert codes == ["0", "1", "2", "3", "130"]


COMPLETION = """
import sys
try:
    from scdl.__main__ import scdl
    scdl()
finally:
    heavy = {"anndata", "h5py", "numba", "numpy", "pandas", "pyarrow", "rich", "torch", "zarr"}
    sys.stderr.write(" ".join(sorted(heavy & set(sys.modules))))
"""


@pytest.mark.parametrize(("word", "found"), [("conv", "convert"), ("convert --ov", "--overwrite")])
def test_completion_is_light(child_environment: dict[str, str], word: str, found: str) -> None:
    words = f"scdl {word}"
    environment = child_environment | {
        "_SCDL_COMPLETE": "complete_bash", "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", COMPLETION], env=environment, capture_output=True, text=True
    )
    assert (done.stdout.split(), done.stderr) == ([found], "")


class TestProgress:
    def steps(self, monkeypatch: pytest.MonkeyPatch, interval: float, terminal: bool) -> str:
        stderr = io.StringIO()
        stderr.isatty = lambda: terminal
        monkeypatch.setattr("sys.stderr", stderr)
        monkeypatch.setattr(progress, "INTERVAL", interval)
        with (
            warnings.catch_warnings(),
            progress.progress_bar(total=3, unit="archive", desc="archives", show=True) as bar,
        ):
            for _ in range(3):
                bar.update(1)
                bar.refresh()
        return stderr.getvalue()

    def test_lines_in_a_log(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lines = self.steps(monkeypatch, 0, False).splitlines()
        assert "archives: 33%, 1 of 3 archives" in "\n".join(lines)
        assert all(line.startswith("archives: ") for line in lines)

    def test_what_ends_soon_says_nothing_in_a_log(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.steps(monkeypatch, 30, False) == ""

    def test_a_bar_in_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "\r" in self.steps(monkeypatch, 30, True)
