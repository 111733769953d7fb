"""A writer that is killed, interrupted or fails leaves the old or the new archive."""

from __future__ import annotations

import collections
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from budget import WHOLE, sample, whole_only
from reading import assert_counts
from sources import Encoding, names, random_cells, write_h5ad

import scdl
from benchmarks.torture.lives import cramped_lives, crew_lives, lives, refusal_to_mount

CELLS = random_cells(1_000, 300, density=0.2, seed=1)

pytestmark = pytest.mark.skipif(
    not os.path.isdir("/proc/self/fd"), reason="the harness forks, and asks /proc for paths"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("crash")
    obs = pd.DataFrame({"type": pd.Categorical(["B", "T"] * 500)}, index=names("cell", 1_000))
    encoding = Encoding(storage={"compression": "gzip", "chunk": 5_000})
    source = write_h5ad(place / "cells.h5ad", CELLS, encoding, obs=obs)
    scdl.convert(source, place / "pristine")
    return place


HARMS = ["SIGKILL", "SIGINT", "ENOSPC", "EIO+"]
#: Operations on memmap archives, and at how many points each is harmed. Operations of one item
#: share a process, which takes seconds to begin.
OPERATIONS = (
    [
        (["convert", "cast", "add"], 2),
        (["repair", "flatten and remove", "directory"], 1),
        (["append"], 3),
    ]
    if WHOLE
    else [(["convert", "repair", "append"], 1)]
)


@pytest.mark.parametrize(
    ("kind", "operations", "points"),
    [
        *(("memmap", *some) for some in OPERATIONS),
        ("zarr", sample(["concat", "flatten", "shuffle"], 1), 1),
    ],
)
def test_the_old_or_the_new(kind: str, operations: list[str], points: int) -> None:
    """A sample of the runs of ``make torture``."""
    lived = lives(kind, HARMS, points, operations)
    assert [life for life in lived if life["wrong"]] == []
    struck = collections.Counter(life["harm"] for life in lived if "at" in life)
    assert struck.keys() == {"SIGKILL", "SIGINT", "ENOSPC", "EIO"}
    assert struck["SIGKILL"] >= points * len(operations)


@whole_only
def test_one_of_several_processes_is_killed() -> None:
    """A worker or the main process; for Dask see ``test_lives_are_counted``."""
    lived = crew_lives("memmap", 1, ["processes"], ["parts"])
    assert [life for life in lived if life["wrong"]] == []
    worker, parent = lived
    # The tasks of a killed worker are run again.
    assert "at" in worker
    assert "error" not in worker
    assert worker["state"].keys() == {"archive"}
    assert parent["ended"] == -signal.SIGKILL


@pytest.mark.parametrize(
    ("kind", "operations"),
    [("memmap", sample(["convert", "concat"], 1)), ("zarr", sample(["add", "save"], 1))],
)
def test_a_full_file_system(kind: str, operations: list[str]) -> None:
    if (why := refusal_to_mount()) is not None:
        pytest.skip(f"cannot mount a file system here: {why}")
    lived = cramped_lives(kind, 2 if WHOLE else 1, operations)
    assert [life for life in lived if life["wrong"]] == []
    assert {life["operation"] for life in lived if "at" in life} == {*operations}


@whole_only
def test_a_careless_writer_is_found() -> None:
    """A writer that writes directly to the target, and does not clean up."""
    lived = lives("memmap", ["SIGKILL", "EIO", "EIO+"], 3, ["careless"])
    found = {complaint for life in lived for complaint in life["wrong"]}
    for expected in ("neither the old nor the new", "not one of scdl's", "something was changed"):
        assert any(expected in complaint for complaint in found), found


def test_interrupted_command_is_brief(
    files: Path, tmp_path: Path, child_environment: dict[str, str]
) -> None:
    cells = random_cells(20_000, 300, density=0.2)
    source = write_h5ad(tmp_path / "a.h5ad", cells, Encoding(storage={"chunk": 1_000}))
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-m", "scdl", "convert", source, tmp_path / "out" / "archive"]
    child = subprocess.Popen(
        [str(part) for part in command], env=child_environment, stderr=subprocess.PIPE, text=True
    )
    while not list((tmp_path / "out").glob(".*/data.npy")) and child.poll() is None:
        time.sleep(0.001)
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=60)
    assert child.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in told
    assert list((tmp_path / "out").iterdir()) == []


def test_an_exception_in_the_middle(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error while writing leaves nothing behind, and a retry works."""
    from storage_backends import registry

    writer = registry.backend("memmap").writer
    append, calls = writer.append, []

    def failing(self: Any, *arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 7:
            raise RuntimeError("in the middle")
        append(self, *arguments)

    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(writer, "append", failing)
        with pytest.raises(RuntimeError, match="in the middle"):
            scdl.convert(files / "cells.h5ad", tmp_path / "out" / "archive", block_values=10_000)
    assert list((tmp_path / "out").iterdir()) == []
    scdl.convert(files / "cells.h5ad", tmp_path / "out" / "archive", block_values=10_000)
    assert_counts(scdl.open(tmp_path / "out" / "archive"), CELLS.csr())


def test_two_writers_of_one_target(files: Path, tmp_path: Path) -> None:
    """The second to finish gets an error, and they do not interfere with each other."""

    def attempt(_: int) -> str:
        try:
            scdl.convert(files / "cells.h5ad", tmp_path / "archive", block_values=20_000)
        except scdl.errors.ArchiveExistsError:
            return "refused"
        return "written"

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(attempt, range(4))) == ["refused"] * 3 + ["written"]
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]
    ds = scdl.open(tmp_path / "archive")
    assert_counts(ds, CELLS.csr())
    assert (ds.read_rows(slice(None)).to_dense() == CELLS.csr().toarray()).all()


def test_readers_during_a_replacement(files: Path, tmp_path: Path) -> None:
    """A reader always sees the old or the new archive."""
    shutil.copytree(files / "pristine", tmp_path / "archive")
    seen: list[str] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            ds = scdl.open(tmp_path / "archive")
            assert len(ds.get_row(-1)[0][0]) > 0
            seen.append(ds.dtypes["data.npy"])

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        ds = scdl.open(tmp_path / "archive")
        for dtype in ("float64", "float32") * 5:
            ds.cast_data_to_dtype(dtype)
        stop.set()
        reader.result(timeout=60)
    assert set(seen) == {"float32", "float64"}
