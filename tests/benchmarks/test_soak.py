"""The soak test and the rows of ``make torture`` about killed writers and leaks, on toy data."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from budget import whole_only

pytest.importorskip("torch")

from benchmarks.common.workspace import Workspace
from benchmarks.soak import cases as soak
from benchmarks.soak.processes import Usage, growth
from benchmarks.torture import lives
from benchmarks.torture.setting import Setting

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="there is no /proc")


@whole_only
def test_readers_beside_a_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child_environment: dict[str, str]
) -> None:
    monkeypatch.setattr(soak, "READERS", 1)
    monkeypatch.setenv("PYTHONPATH", child_environment["PYTHONPATH"])
    outcomes = soak.soak(tmp_path, "memmap", epochs=4, times=3, cells=60)
    assert [outcome.bound.limit for outcome in outcomes] == [1, 0, 1, 0]
    assert "1 readers, 4 epochs" in outcomes[0].note
    assert outcomes[1].passed


def test_growth_is_seen() -> None:
    flat = [Usage(10, 5, 100_000_000 + 1_000 * (i % 3)) for i in range(50)]
    assert abs(growth(flat).anonymous) <= 1_000
    leaking = [Usage(10 + i, 5, 100_000_000 + 50_000 * i) for i in range(50)]
    assert growth(leaking) == Usage(34, 0, 1_700_000)
    descriptors, memory = (soak.outcomes("", [growth(leaking)])[i] for i in (1, 0))
    assert not descriptors.passed
    assert not memory.passed


def hold() -> Usage:
    """By how much three descriptors and eight megabytes are more than nothing."""
    before = Usage.now()
    descriptors = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    block = bytearray(os.urandom(8_000_000))
    after = Usage.now()
    del block
    for descriptor in descriptors:
        os.close(descriptor)
    return Usage(*(int(b - a) for a, b in zip(before, after, strict=True)))


@whole_only
def test_what_a_process_holds() -> None:
    # In this one, threads of other tests may end meanwhile.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        more = pool.submit(hold).result()
    assert more.descriptors == 3
    assert more.anonymous > 7_000_000


@whole_only
def test_lives_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(lives, "_KINDS", ("memmap",))
    monkeypatch.setattr(lives, "_OPERATIONS", ["cast"])
    monkeypatch.setattr(lives, "_CREWS", ["dask"])
    monkeypatch.setattr(lives, "_CONVERSIONS", ["directory"])
    workspace = Workspace(tmp_path, None, None)  # type: ignore[arg-type]
    setting = Setting(workspace=workspace, place=tmp_path, quick=True)
    killed, of_crew = lives.killed(setting)
    assert killed.passed
    assert killed.note == "1 of 1; cast 1"
    assert of_crew.passed
    assert of_crew.note == "2 of 2; directory, worker of dask 1, directory, parent of dask 1"
    (refused,) = lives.refused(setting)
    assert refused.passed
    assert (
        refused.note == f"{len(lives._FAULTS)} of {len(lives._FAULTS)}; cast {len(lives._FAULTS)}"
    )
    for full in lives.cramped(setting):
        assert full.passed
        assert full.note == "1 of 1; cast 1"
