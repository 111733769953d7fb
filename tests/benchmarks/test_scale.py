"""The benchmark of thousands of members and of storage runs; nothing here is timed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, Self

import pytest
from budget import whole_only

pytest.importorskip("torch")

from benchmarks.common import control_group
from benchmarks.common.child import Child, ChildRun
from benchmarks.common.report import Outcome
from benchmarks.common.workspace import Workspace
from benchmarks.generate.real_cells import synthetic_cells
from benchmarks.generate.spec import DataSpec
from benchmarks.scale import cases, child, command, disk, remote

VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="as Linux does it")


class Here:
    """Runs the commands of a child in this process, as new ones import torch for seconds."""

    pid = 0

    def __init__(self, module: str) -> None:
        self._module = import_module(module)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        command = getattr(self._module, do, dict)  # dict answers "ready", as `serve` does.
        answer: dict[str, Any] = command(**json.loads(json.dumps(arguments, default=str)))
        return json.loads(json.dumps(answer))

    def watched(self, do: str, **arguments: Any) -> ChildRun:
        return ChildRun(self.ask(do, **arguments), 1_000_000, 2_000_000)


def here_or_beside(module: str) -> Any:
    """Servers have a process of their own."""
    return Child(module) if module.endswith("server") else Here(module)


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Measure in this process; collects the processes whose memory was limited."""
    pids: list[int] = []

    @contextmanager
    def recorded(limit: int) -> Iterator[Any]:
        yield pids.append

    monkeypatch.setattr(disk, "memory_limit", recorded)
    # Files of tests may be in memory, where all stay.
    monkeypatch.setattr(disk.page_cache, "drop", lambda path: 0.0)
    for module in (cases, command, disk, remote):
        monkeypatch.setattr(module, "Child", here_or_beside)
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
    yield pids
    child._batches.cache_clear()


def quick(tmp_path: Path, *options: str) -> dict[str, Outcome]:
    directories = [f"--{name}={tmp_path / name}" for name in ("data", "results", "environment")]
    report = command.main(["--quick", *directories, *options])
    return {outcome.what: outcome for outcome in report.outcomes}


def test_all_cases_run_on_toy_data(
    tmp_path: Path, joined: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = quick(tmp_path)
    compared = {
        "5 memmap members over 2, block order",
        "7 memmap members over 2, random order",
        "5 Zarr members over 2, block order",
        "shuffled flatten of 2 memmap members over plain",
        "remote Zarr over local, block order",
        "second epoch with cache_dir over local Zarr",
    }
    single = {"manifest of 7 members: opened with it", "3,000 cells: split by donor: time"}
    if sys.platform == "linux":
        compared |= {
            *(f"from disk, read-ahead of 128 kB: {order} over sequential order"
              for order in ("block", "random")),
            *(f"{kind} from disk, read-ahead of 128 kB: with 2 GB of memory over all"
              for kind in ("memmap", "Zarr")),
        }  # fmt: skip
        assert joined == [Here.pid] * 2
    if find_spec("moto"):
        compared.add("Zarr in S3 over local, block order")
        single.add("Zarr in S3: opening")
    assert compared | single <= outcomes.keys()
    assert all(outcomes[what].ours and outcomes[what].theirs for what in compared)
    assert {path.suffix for path in (tmp_path / "results").iterdir()} == {".md", ".json"}
    assert "annbatch is left out: environment does not have" in capsys.readouterr().out


@linux_only
def test_without_a_control_group_memory_is_measured_all_the_same(
    tmp_path: Path,
    joined: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(limit: int) -> NoReturn:
        raise PermissionError("not allowed")

    monkeypatch.setattr(disk, "memory_limit", refuse)
    outcomes = quick(tmp_path, "--only", "memory")
    assert not joined
    assert not any(" over all" in what for what in outcomes)
    kinds = {what.rpartition(": ")[2] for what in outcomes}
    assert kinds == {"anonymous memory", "private dirty memory at the end"}
    assert "no control group can be made: not allowed" in capsys.readouterr().out


@linux_only
def test_archives_from_disk_have_as_many_cells_as_are_asked_for(
    tmp_path: Path, joined: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    spec = DataSpec(cells=30, genes=300, nnz_per_cell=30)
    bench = cases.ScaleBench(
        workspace=Workspace(tmp_path, spec, synthetic_cells), child=Here(cases.CHILD)
    )
    bench.disk_cells = 95
    assert disk._members(bench) == 3
    bench.disk_cells = 10**12
    assert disk._members(bench) is None
    assert "--disk-cells makes them smaller" in capsys.readouterr().out


@linux_only
def test_a_control_group_limits_a_process_and_is_removed() -> None:
    limit = 64 << 20
    with contextlib.ExitStack() as stack:
        try:
            join = stack.enter_context(control_group.memory_limit(limit))
        except OSError as error:
            pytest.skip(f"no control group can be made here: {error}")
        parent, file = control_group._own_group()
        (group,) = parent.glob(f"limit-{os.getpid()}")
        assert int((group / file).read_text()) == limit
        with subprocess.Popen([sys.executable], stdin=subprocess.PIPE) as process:
            join(process.pid)
            assert (group / "cgroup.procs").read_text().split() == [str(process.pid)]
    assert not group.exists()


@whole_only
@linux_only
def test_processes_are_measured_in_a_control_group(tmp_path: Path) -> None:
    try:
        with control_group.memory_limit(1 << 30):
            pass
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    outcomes = quick(tmp_path, "--only", "memory")
    assert any(" over all" in what for what in outcomes)
    peaks = [outcomes[what].measured for what in outcomes if what.endswith("anonymous memory")]
    assert peaks
    assert all(0 < peak.median < 1_000 for peak in peaks)
