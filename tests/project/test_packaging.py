"""The wheel as users install it: without torch, typed, with working commands."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
from budget import WHOLE, whole_only
from places import ROOT

pytest.importorskip("build", reason="wheels are built and tested in the environment of make test")


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command outside the source tree, and return what it prints."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build an sdist from the tree, and the wheel from that sdist."""
    dist = tmp_path_factory.mktemp("dist")
    isolation = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    run(sys.executable, "-m", "build", *isolation, "--outdir", dist, ROOT, cwd=dist)
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def commands(wheel, tmp_path_factory):
    """Directory of the commands of a fresh environment where the wheel is installed.

    What it needs is installed too, or found where the tests have it.
    """
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment)
    commands = environment / "bin"
    pip = [sys.executable, "-m", "pip", "--python", commands / "python", "install", "-qq"]
    if WHOLE:
        run(*pip, "--no-compile", "--constraint", ROOT / "constraints.txt", wheel, cwd=environment)
    else:
        run(*pip, "--no-compile", "--no-deps", wheel, cwd=environment)
        (site,) = environment.glob("lib/python*/site-packages")
        (site / "needed.pth").write_text(sysconfig.get_path("purelib"))
    return commands


def test_wheel_holds_two_typed_packages_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"scdl/py.typed", "storage_backends/py.typed"} <= names
    tops = {name.split("/")[0] for name in names}
    metadata = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    assert tops == {"scdl", "storage_backends", metadata}


@whole_only
def test_imports_without_torch(commands, tmp_path):
    code = "import importlib.util, scdl, storage_backends; print(importlib.util.find_spec('torch'))"
    assert run(commands / "python", "-c", code, cwd=tmp_path) == "None\n"


def test_command_line_has_help(commands, tmp_path):
    assert "convert" in run(commands / "scdl", "--help", cwd=tmp_path)
    assert "--save-path" in run(commands / "convert_h5ad_to_scdl", "--help", cwd=tmp_path)


def test_the_command_of_two_packages_is_ours(commands, tmp_path):
    """bionemo-scdl installs one of the same name, which takes its place; here it is alone."""
    script = (commands / "convert_h5ad_to_scdl").read_text()
    assert "from scdl.__main__ import convert_h5ad_to_scdl" in script
    anndata = pytest.importorskip("anndata")
    (tmp_path / "hdf5s").mkdir()
    for i in range(2):
        x = np.array([[0, i + 1.0, 0]], dtype=np.float32)
        anndata.AnnData(x).write_h5ad(tmp_path / f"hdf5s/{i}.h5ad")
    run(
        commands / "convert_h5ad_to_scdl", "--data-path", "hdf5s", "--save-path", "out",
        "--use-X-not-raw", cwd=tmp_path,
    )  # fmt: skip
    code = "import scdl; print([scdl.open('out').get_row(i)[0][0].tolist() for i in (0, 1)])"
    assert run(commands / "python", "-c", code, cwd=tmp_path) == "[[1.0], [2.0]]\n"


def test_converts_and_reads_back(commands, tmp_path):
    anndata = pytest.importorskip("anndata")
    x = np.array([[0, 1.5, 0, 2], [3, 0, 0, 0]], dtype=np.float32)
    anndata.AnnData(x).write_h5ad(tmp_path / "cells.h5ad")
    run(commands / "scdl", "convert", "cells.h5ad", "archive", cwd=tmp_path)
    code = (
        "import scdl; (values, columns), _ = scdl.open('archive').get_row(0);"
        "print(values.tolist(), columns.tolist())"
    )
    assert run(commands / "python", "-c", code, cwd=tmp_path) == "[1.5, 2.0] [1, 3]\n"
