"""``scdl bench``: what it measures, prints and refuses, and that it changes nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from sources import names, random_cells, write_h5ad

pytest.importorskip("torch")

from range_server import serving
from training import N_OBS

import scdl
from scdl.cli.main import main
from scdl.training import machine
from scdl.training.bounds import Kind
from storage_backends.zarr.chunks import reading as chunk_reading

Bench = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Bench:
    """Run the command in this process: exit code, and what was written to stdout and stderr."""
    # The command replaces it.
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(machine, "_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["bench", "--seconds", "0.02", *map(str, arguments)])
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def as_json(done: tuple[int, str, str]) -> dict[str, Any]:
    assert done[0] == 0, done[2]
    found = json.loads(done[1])
    for one in found["measurements"]:
        check(one)
    return found


def check(one: dict[str, Any]) -> None:
    """What is true of every measurement."""
    assert 0 < one["first_batch"] <= one["seconds"]
    assert one["seconds"] >= 0.02
    assert one["cells_per_second"] == one["cells"] / one["seconds"]
    assert 0 < one["wait_share"] <= 1
    assert one["cpu_seconds"] > 0
    # Decoded chunks of a small archive stay in memory.
    assert one["asked_bytes"] is None or one["asked_bytes"] > 0
    assert one["needed_bytes"] > 0
    assert one["bound"] in get_args(Kind)
    assert f"Order {one['order']}, layout {one['layout']}: " in one["sentence"]


def state(place: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything below a directory."""
    found = {str(path): path.stat() for path in [place, *place.rglob("*")]}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


@pytest.mark.parametrize("kind", ["memmap", "balanced"])
def test_archives(archives: dict[str, Path], kind: str, bench: Bench) -> None:
    before = state(archives[kind])
    found = as_json(bench(archives[kind], "--obs", "type", "--json"))
    assert state(archives[kind]) == before
    assert found["path"] == str(archives[kind])
    assert found["machine"]["copy_rate"] > 1e6
    assert found["machine"]["latency"] is None
    measured = {one["order"]: one for one in found["measurements"]}
    assert list(measured) == ["block", "random", "sequential"]
    for one in measured.values():
        assert (one["layout"], one["requests"]) == ("csr", 0)
    # The cells are sorted by type.
    assert measured["random"]["entropy_share"] == 1
    assert measured["block"]["entropy_share"] > 0.9
    assert measured["sequential"]["entropy_share"] < 0.3
    if kind == "memmap":
        stored = scdl.open(archives[kind]).bytes_per_cell
        assert measured["random"]["asked_bytes"] == pytest.approx(stored, rel=0.2)
        assert measured["random"]["asked_bytes"] == pytest.approx(
            measured["random"]["needed_bytes"], rel=0.1
        )


def test_all_layouts(archives: dict[str, Path], bench: Bench) -> None:
    found = as_json(bench(archives["memmap"], "--order", "random", "--all", "--json"))
    assert [one["layout"] for one in found["measurements"]] == ["csr", "dense", "padded"]
    chosen = ["--order", "block", "--layout", "dense", "--layout", "csr", "--json"]
    found = as_json(bench(archives["memmap"], *chosen))
    assert [one["layout"] for one in found["measurements"]] == ["dense", "csr"]


def test_tables_for_people(archives: dict[str, Path], bench: Bench) -> None:
    code, told, errors = bench(archives["memmap"], "--order", "block", "--obs", "type")
    assert (code, errors) == (0, "")
    header, row, *_ = told.splitlines()
    for title in ("cells/s", "first batch", "waiting", "needed", "asked", "read", "entropy"):
        assert title in header
    assert row.split()[:2] == ["block", "csr"]
    assert "This machine has" in told
    assert told.count(" would help.") == 1
    assert "entropy" not in bench(archives["memmap"], "--order", "block")[1]


def test_a_collection_of_different_genes(tmp_path: Path, bench: Bench) -> None:
    (tmp_path / "all").mkdir()
    for i, n_genes in enumerate([8, 11]):
        source = write_h5ad(tmp_path / f"{i}.h5ad", random_cells(90, n_genes, seed=i))
        backend = ("memmap", "zarr")[i]
        scdl.convert(source, tmp_path / "all" / f"{i}.scdl", backend=backend)
    before = state(tmp_path / "all")
    found = as_json(bench(tmp_path / "all", "--json", "--order", "block", "--all"))
    assert state(tmp_path / "all") == before
    assert all(one["cells"] >= 180 for one in found["measurements"])


def test_a_tiny_archive(tmp_path: Path, bench: Bench) -> None:
    cells = random_cells(3, 5, seed=1)
    obs = pd.DataFrame({"one": ["B"] * 3}, index=names("cell", 3))
    scdl.convert(write_h5ad(tmp_path / "a.h5ad", cells, obs=obs), tmp_path / "a.scdl")
    found = as_json(bench(tmp_path / "a.scdl", "--json", "--obs", "one"))
    for one in found["measurements"]:
        assert one["cells"] > 3, "several epochs"
        assert one["entropy_share"] is None, "there is one label"


def test_cells_without_values(tmp_path: Path, bench: Bench) -> None:
    cells = random_cells(70, 5, density=0.0)
    scdl.convert(write_h5ad(tmp_path / "a.h5ad", cells), tmp_path / "a.scdl")
    code, told, errors = bench(tmp_path / "a.scdl", "--json", "--order", "block")
    assert code == 0, errors
    assert json.loads(told)["measurements"][0]["cells"] >= 70


def test_a_web_server(
    archives: dict[str, Path], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore")
    # As in an archive of many chunks, which does not stay in memory decoded.
    monkeypatch.setattr(chunk_reading, "_FEW_CHUNKS", 0)
    with serving(archives["balanced"].parent) as server:
        server.latency = 0.08
        url = f"{server.url}/balanced"
        found = as_json(bench(url, "--order", "block", "--json"))
        (one,) = found["measurements"]
        assert found["machine"]["plain_rate"] is None
        assert found["machine"]["latency"] >= server.latency
        assert one["requests"] > 0
        assert one["request_seconds"] >= one["requests"] * server.latency
        assert one["read_bytes"] > 0
        assert one["bound"] == "latency", one["sentence"]
        code, told, _ = bench(url, "--order", "block")
        assert code == 0
        assert "for a small request" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["absent"], ["absent"]),
        (["a.scdl", "--order", "nonsense"], ["nonsense", "sequential"]),
        (["a.scdl", "--layout", "nonsense"], ["nonsense", "padded"]),
        (["a.scdl", "--order", "balanced"], ["by="]),
        (["a.scdl", "--obs", "nonsense"], ["nonsense", "type"]),
        (["a.scdl", "--batch-size", "100000"], ["100000", str(N_OBS)]),
        (["a.scdl", "--memory-mb", "0"], ["memory_mb"]),
    ],
)
def test_errors_are_one_line(
    archives: dict[str, Path], tmp_path: Path, bench: Bench, arguments: list[str], told: list[str]
) -> None:
    shutil.copytree(archives["memmap"], tmp_path / "a.scdl")
    code, out, errors = bench(*arguments)
    assert (code, out) == (1, "")
    assert errors.startswith("scdl: error: ")
    assert errors.count("\n") == 1
    for text in told:
        assert text in errors


@pytest.mark.parametrize(
    "arguments", [[], ["a", "--all", "--layout", "csr"], ["a", "--seconds", "0"]]
)
def test_wrong_usage(bench: Bench, arguments: list[str]) -> None:
    assert bench(*arguments)[0] == 2


def test_without_torch(
    archives: dict[str, Path], run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    code = "import sys; sys.modules['torch'] = None; from scdl.__main__ import scdl; scdl()"
    done = run_python("-c", code, "bench", archives["memmap"])
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "pip install" in done.stderr


def test_plain_reading(tmp_path: Path) -> None:
    assert machine.plain_rate(str(tmp_path)) is None
    np.zeros(1 << 20, np.float64).tofile(tmp_path / "large")
    before = state(tmp_path)
    for path in (tmp_path, tmp_path / "large"):
        rate = machine.plain_rate(str(path))
        # Not every file system can be read past the page cache.
        assert rate is None or rate > 0
    assert state(tmp_path) == before


def test_memory_of_a_measurement() -> None:
    if machine.anonymous_bytes() is None:
        pytest.skip("this system does not tell")
    with machine.MemoryWatch() as watch:
        held = np.ones(1 << 23)
        machine.time.sleep(3 * machine._PAUSE)
        del held
    assert watch.more == pytest.approx(8 << 23, rel=0.5)
