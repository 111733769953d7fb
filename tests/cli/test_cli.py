"""The command line: what it prints, its exit codes, errors of one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from places import GOLDEN
from reading import assert_same
from sources import names, random_cells, write_h5ad

import scdl
from scdl.cli import facts

Run = Callable[..., subprocess.CompletedProcess[str]]
CELLS = random_cells(12, 8, dtype="<u2", seed=1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_h5ad(
        tmp_path / "cells.h5ad",
        CELLS,
        obs=pd.DataFrame({"type": ["B"] * 12, "age": range(12)}, index=names("cell", 12)),
        layers={"doubled": random_cells(12, 8, dtype="<u2", seed=2)},
        obsm={"X_pca": np.eye(12, 2)},
        obsp={"knn": random_cells(12, 12, seed=3)},
    )


@pytest.fixture
def scdl_command(run_command: Run) -> Run:
    return partial(run_command, "scdl")


@pytest.fixture
def documented_command(run_command: Run) -> Run:
    return partial(run_command, "convert_h5ad_to_scdl")


def failed(done: subprocess.CompletedProcess[str], *told: str, code: int = 1) -> None:
    """One line that says what is wrong, and the right exit code."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if code == 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        assert len(lines) == 1, done.stderr
        assert "error" in lines[0].lower()
    for text in told:
        assert text in done.stderr


class TestConvert:
    def test_one_file(self, source: Path, scdl_command: Run) -> None:
        done = scdl_command("convert", "cells.h5ad", "archive")
        assert done.returncode == 0, done.stderr
        for text in ("archive", "12", "8", "X", "layers/doubled", "obsm/X_pca", "obsp/knn"):
            assert text in done.stdout
        assert_same(scdl.open(source.with_name("archive")), CELLS.csr())

    def test_options(self, source: Path, scdl_command: Run) -> None:
        options = ["--matrix", "layers/doubled", "--obsm", "X_pca", "--neighbor-key", "knn"]
        done = scdl_command(
            "convert", source, "archive", *options, "--data-dtype", "uint16", "--backend", "memmap"
        )
        assert done.returncode == 0, done.stderr
        ds = scdl.open(source.with_name("archive"), neighbor_key="knn")
        assert_same(ds, random_cells(12, 8, dtype="<u2", seed=2).csr("u2"))
        assert ds.read_rows([1], obsm=["X_pca"]).obsm["X_pca"].tolist() == [[0, 1]]
        assert ds.get_neighbor_stats()["total_connections"] > 0
        assert "layers/doubled" in done.stdout

    def test_several_files(self, source: Path, scdl_command: Run) -> None:
        done = scdl_command("convert", "cells.h5ad", "cells.h5ad", "cells.h5ad", "archive")
        assert done.returncode == 0, done.stderr
        ds = scdl.open(source.with_name("archive"))
        assert ds.shape() == (36, [8])

    def test_relative_target_in_the_working_directory(
        self, source: Path, scdl_command: Run
    ) -> None:
        assert scdl_command("convert", "./cells.h5ad", "./archive/").returncode == 0
        assert_same(scdl.open(source.with_name("archive")), CELLS.csr())

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["absent.h5ad", "archive"], ["absent.h5ad"]),
            (["cells.h5ad", "cells.h5ad"], ["cells.h5ad", "exists"]),
            (["cells.h5ad", "no/such/archive"], ["no/such"]),
            (["cells.h5ad", "archive", "--backend", "nonsense"], ["nonsense", "memmap"]),
            (["cells.h5ad", "archive", "--matrix", "layers/x"], ["layers/x", "layers/doubled"]),
            (["cells.h5ad", "archive", "--obsm", "X_umap"], ["X_umap", "X_pca"]),
            (["cells.h5ad", "archive", "--data-dtype", "int7"], ["int7"]),
        ],
    )
    def test_errors(
        self, source: Path, scdl_command: Run, arguments: list[str], told: list[str]
    ) -> None:
        failed(scdl_command("convert", *arguments), *told)
        assert [path.name for path in source.parent.iterdir()] == ["cells.h5ad"]

    def test_a_target_that_exists_is_found_at_the_start(
        self, source: Path, scdl_command: Run
    ) -> None:
        source.with_name("archive").mkdir()
        source.write_text("not even HDF5")
        failed(scdl_command("convert", "cells.h5ad", "archive"), "archive", "exists")

    def test_warnings_are_lines_too(self, source: Path, scdl_command: Run) -> None:
        done = scdl_command("convert", "cells.h5ad", "archive", "--neighbor-key", "absent")
        assert "Traceback" not in done.stderr
        assert ".py:" not in done.stderr, "the place in the code says nothing to a user"
        assert "absent" in done.stderr

    @pytest.mark.parametrize("arguments", [[], ["one"], ["a", "b", "--nonsense"], ["--obsm"]])
    def test_usage(self, scdl_command: Run, arguments: list[str]) -> None:
        failed(scdl_command("convert", *arguments), code=2)

    def test_what_is_missing_is_said(self, source: Path, scdl_command: Run) -> None:
        failed(
            scdl_command("convert", "cells.h5ad"),
            *("new archive is missing", "scdl convert cells.h5ad DEST"),
            code=2,
        )
        done = scdl_command("convert", "cells.h5ad", "a.scdl", "--compression", "fast")
        failed(done, "a.scdl", "ends in .zarr")

    @pytest.mark.parametrize("target", ["a.h5ad", "a.zarr.zip", "a.txt", "a.loom"])
    def test_targets_of_other_formats(self, source: Path, scdl_command: Run, target: str) -> None:
        failed(scdl_command("convert", "cells.h5ad", target), target, "an archive is a directory")
        assert [path.name for path in source.parent.iterdir()] == ["cells.h5ad"]

    @pytest.mark.parametrize(
        ("compression", "told"), [("balanced", True), ("archive", True), ("fast", False)]
    )
    def test_what_other_programs_need(
        self, source: Path, scdl_command: Run, compression: str, told: bool
    ) -> None:
        done = scdl_command("convert", "cells.h5ad", "a.zarr", "--compression", compression)
        assert done.returncode == 0, done.stderr
        assert ("other programs need" in done.stdout) is told
        assert ("pcodec" in done.stdout) is told
        assert ("other programs" in scdl_command("info", "a.zarr").stdout) is told


AT_HOME = """
import os
os.environ["HOME"] = os.path.abspath("home")
from scdl.cli.main import main

for command in (
    "convert ~/cells.h5ad ~/a.scdl",
    "convert ~/cells.h5ad ~/a.zarr",
    "info ~/a.scdl",
    "verify ~/a.zarr",
    "export ~/a.zarr ~/back.h5ad",
    "export ~/a.scdl ~/back.zarr",
    "convert ~ ~/many --workers 1",
    "flatten ~/many ~/flat.scdl",
):
    try:
        main(command.split())
    except SystemExit as ended:
        assert not ended.code, command
"""


class TestHome:
    def test_every_command(self, source: Path, run_python: Run) -> None:
        home = source.parent / "home"
        home.mkdir()
        source.rename(home / "cells.h5ad")
        done = run_python("-c", AT_HOME)
        assert done.returncode == 0, done.stderr
        assert {path.name for path in source.parent.iterdir()} == {"home"}
        made = {"a.scdl", "a.zarr", "back.h5ad", "back.zarr", "many", "flat.scdl", "cells.h5ad"}
        assert {path.name for path in home.iterdir()} == made


class TestOtherPaths:
    @pytest.mark.parametrize("command", ["info", "verify", "flatten", "export"])
    @pytest.mark.parametrize(
        "name", ["cells.h5ad", "x.loom", "x.csv", "absent", "nowhere", "s3:/a"]
    )
    def test_one_line(self, source: Path, scdl_command: Run, command: str, name: str) -> None:
        source.with_name("x.loom").write_text("something")
        source.with_name("x.csv").write_text("a,b")
        source.with_name("nowhere").symlink_to("gone")
        target = {"flatten": ["out"], "export": ["out.h5ad"]}.get(command, [])
        done = scdl_command(command, name, *target)
        assert done.returncode == (2 if command == "verify" else 1), done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"scdl: error: {name}")
        assert not source.with_name("out").exists()


class TestInfo:
    def test_shows_what_there_is(self, source: Path, scdl_command: Run) -> None:
        scdl.convert(source, source.with_name("archive"), obsm=["X_pca"], neighbor_key="knn")
        done = scdl_command("info", "archive")
        assert done.returncode == 0, done.stderr
        nnz = str(CELLS.csr().nnz)
        told = ["memmap", "12", "8", nnz, "float32", "uint8", "X", "type", "age", "knn", "X_pca"]
        for text in told:
            assert text in done.stdout
        assert done.stderr == ""

    def test_archives_of_the_reference(self, scdl_command: Run) -> None:
        golden = GOLDEN
        for path in golden.glob("ragged_*"):
            if path.is_dir():
                done = scdl_command("info", path)
                assert done.returncode == 0, done.stderr
                assert "memmap" in done.stdout

    def test_no_cells(self, tmp_path: Path, scdl_command: Run) -> None:
        write_h5ad(tmp_path / "a.h5ad", random_cells(0, 3))
        scdl.convert(tmp_path / "a.h5ad", tmp_path / "archive")
        done = scdl_command("info", "archive")
        assert done.returncode == 0, done.stderr

    def test_a_collection(
        self, source: Path, scdl_command: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(source.parent)
        os.mkdir("atlas")
        write_h5ad(source.with_name("other.h5ad"), random_cells(5, 6, dtype="<u2", seed=4))
        scdl.convert(source, "atlas/one", neighbor_key="knn")
        scdl.convert(source.with_name("other.h5ad"), "atlas/two.zarr", data_dtype="float32")
        nnz = scdl.open("atlas").number_nonzero_values()
        done = scdl_command("info", "atlas")
        assert (done.returncode, done.stderr) == (0, "")
        told = ["2 archives (memmap, zarr)", "17", "6 to 8, in 2 feature blocks", str(nnz), "knn"]
        for text in (*told, "type, age", "12 cells x 8 genes", "5 cells x 6 genes", "none; save"):
            assert text in done.stdout
        done = scdl_command("manifest", "atlas", "--obs", "type", "--obs", "age", "-q")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert len(list(Path("atlas").glob("collection.obs-*"))) == 2
        done = scdl_command("manifest", "atlas/one")
        assert done.returncode == 1
        assert "not a directory of archives" in done.stderr
        monkeypatch.setattr(facts, "_MAX_LISTED", 1)
        found = facts.facts("atlas")
        assert ("manifest", "yes") in found
        assert found[-2:] == [("one", "12 cells x 8 genes"), ("", "and 1 more archives")]

    def test_errors(self, source: Path, scdl_command: Run) -> None:
        failed(scdl_command("info", "absent"), "absent")
        failed(scdl_command("info", source), "cells.h5ad")
        failed(scdl_command("info"), code=2)


class TestFlatten:
    @pytest.fixture
    def atlas(self, source: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(source.parent)
        os.mkdir("atlas")
        for name in ("one", "two"):
            scdl.convert(source, f"atlas/{name}")
        return source.with_name("atlas")

    def test_makes_one_archive(self, atlas: Path, scdl_command: Run) -> None:
        arguments = ("--cell-names", "prefix", "--compression", "fast", "--destroy-on-copy")
        done = scdl_command("flatten", "atlas", "flat.zarr", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        made = scdl.open("flat.zarr")
        assert made.obs_names[[0, 12]].tolist() == ["one-cell0", "two-cell0"]
        assert made.store.options == {"compression": "fast"}
        assert not (atlas / "one").exists()

    def test_errors(self, atlas: Path, scdl_command: Run) -> None:
        failed(scdl_command("flatten", "atlas", "x", "--cell-names", "unique"), "cell0", "prefix")
        failed(scdl_command("flatten", "atlas", "x", "--cell-names", "odd"), "keep")
        failed(scdl_command("flatten", "atlas", "atlas/x"), "outside")
        failed(scdl_command("flatten", "atlas/one", "x"), "an archive")
        failed(scdl_command("flatten", "typo", "x"), "typo: this directory does not exist")
        failed(scdl_command("export", "atlas", "x.h5ad"), "scdl flatten atlas OUT")
        assert not atlas.with_name("x").exists()


class TestRoot:
    def test_version(self, run_python: Run) -> None:
        done = run_python("-m", "scdl", "--version")
        assert (done.returncode, done.stderr) == (0, "")
        assert scdl.__version__ in done.stdout

    def test_help(self, scdl_command: Run) -> None:
        for arguments in ([], ["convert"], ["info"]):
            done = scdl_command(*arguments, "--help")
            assert (done.returncode, done.stderr) == (0, "")
            assert "Usage" in done.stdout
        assert {"convert", "info"} <= set(scdl_command("--help").stdout.split())

    def test_unknown_command(self, run_python: Run) -> None:
        failed(run_python("-m", "scdl", "transmogrify"), "transmogrify", code=2)

    def test_main_is_the_command(self, source: Path, run_python: Run) -> None:
        done = run_python("-c", "from scdl.cli.main import main; main()", "info", "nowhere")
        failed(done, "nowhere")

    @pytest.mark.skipif(sys.platform == "win32", reason="no such pipes")
    def test_output_may_be_cut(
        self, source: Path, child_environment: dict[str, str], tmp_path: Path
    ) -> None:
        """As by `| head -0`: no traceback."""
        scdl.convert(source, tmp_path / "archive")
        child = subprocess.Popen(
            [sys.executable, "-m", "scdl", "info", str(tmp_path / "archive")],
            env=child_environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        child.stdout.close()
        told = child.stderr.read()
        child.stderr.close()
        child.wait(timeout=60)
        assert "Traceback" not in told


class TestDocumented:
    """``convert_h5ad_to_scdl --data-path DIR --save-path OUT``."""

    @pytest.fixture
    def files(self, tmp_path: Path) -> Path:
        """Equal genes, in directories, with one stem twice."""
        for i, place in enumerate(["in", "in/deep/er"]):
            (tmp_path / place).mkdir(parents=True)
            obs = pd.DataFrame({"file": [i] * 5}, index=names("cell", 5))
            cells = random_cells(5, 7, dtype="<u2", seed=i)
            write_h5ad(tmp_path / place / "a.h5ad", cells, obs=obs)
        (tmp_path / "in" / "note.txt").write_text("no h5ad")
        return tmp_path

    def test_directory(self, files: Path, documented_command: Run) -> None:
        done = documented_command("--data-path", "in", "--save-path", "out")
        assert done.returncode == 0, done.stderr
        ds = scdl.SingleCellMemMapDataset(files / "out")
        assert ds.shape() == (10, [7])
        for i in (0, 1):
            rows = np.flatnonzero(ds.obs["file"] == i)
            expected = random_cells(5, 7, dtype="<u2", seed=i).csr().toarray()
            np.testing.assert_array_equal(ds.read_rows(rows).to_dense(), expected)

    def test_options(self, files: Path, documented_command: Run) -> None:
        options = ["--num-workers", "2", "--use-mp", "--data-dtype", "uint16"]
        options += ["--paginated-load-cutoff", "0", "--load-block-row-size", "2", "--use-X-not-raw"]
        done = documented_command("--data-path", "in", "--save-path", "out", *options)
        assert done.returncode == 0, done.stderr
        assert scdl.open(files / "out").dtypes["data.npy"] == "uint16"

    def test_one_file(self, files: Path, documented_command: Run) -> None:
        (files / "in" / "deep" / "er" / "a.h5ad").unlink()
        assert documented_command("--data-path", "in", "--save-path", "out").returncode == 0
        cells = random_cells(5, 7, dtype="<u2", seed=0)
        assert_same(scdl.open(files / "out"), cells.csr())

    def test_target_exists(self, files: Path, documented_command: Run) -> None:
        """Found at the start, not after the work."""
        (files / "out").mkdir()
        (files / "in" / "a.h5ad").write_text("not even HDF5")
        failed(documented_command("--data-path", "in", "--save-path", "out"), "out", "exists")
        assert list((files / "out").iterdir()) == []

    def test_errors(self, files: Path, documented_command: Run) -> None:
        (files / "empty").mkdir()
        failed(documented_command("--data-path", "empty", "--save-path", "out"), "empty", "h5ad")
        failed(documented_command("--data-path", "absent", "--save-path", "out"), "absent")
        (files / "in" / "deep" / "er" / "a.h5ad").write_text("spoilt")
        done = documented_command("--data-path", "in", "--save-path", "out")
        failed(done, "er/a.h5ad")
        assert not (files / "out").exists()
        failed(documented_command("--data-path", "in"), "save-path", code=2)
