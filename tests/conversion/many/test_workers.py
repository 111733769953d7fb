"""Workers: what they return, and what is left when one of them, or all, are ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from budget import sample
from sources import random_cells, write_h5ad
from tasks import Counting, Dying, DyingOnce, Endless, Failing

import scdl
from scdl.conversion.many.dask import connect
from scdl.conversion.many.worker_process import Outcome
from scdl.conversion.many.workers import InProcess, ProcessWorkers, ThreadWorkers, Workers
from scdl.errors import ClusterError, MissingPackageError, WorkerDiedError
from storage_backends.compute import threads, warning_filters


@pytest.fixture(params=[ProcessWorkers, ThreadWorkers])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    with request.param(2) as workers:
        yield workers


def results(workers: Workers, *tasks: Any) -> list[Outcome]:
    """Start tasks, and wait until all of them have ended."""
    outcomes: dict[Any, Outcome] = {}
    for task in tasks:
        workers.start(task)
    until(lambda: outcomes.update(workers.completed(0.1)) or outcomes.keys() >= {*tasks})
    return [outcomes[task] for task in tasks]


def result(workers: Workers, task: Any) -> Outcome:
    return results(workers, task)[0]


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)


def test_processes_that_begin_before_there_are_tasks() -> None:
    with ProcessWorkers(2) as workers:
        workers.begin()
        children = {child.pid for child in multiprocessing.active_children()}
        assert len(children) == 2
        assert {outcome.value[2] for outcome in results(workers, Counting(1), Counting(2))} <= (
            children
        )
    assert multiprocessing.active_children() == []


def test_processes_that_are_stopped_before_they_have_begun(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with ProcessWorkers(2) as workers:
        workers.begin()
    assert multiprocessing.active_children() == []
    assert capfd.readouterr().err == ""


def test_a_process_that_dies_while_it_waits() -> None:
    """No task fails, neither the next one nor those that come after it."""
    with ProcessWorkers(2) as workers:
        assert result(workers, Counting(1)).value[0] == 1
        child, *_ = multiprocessing.active_children()
        child.kill()
        until(lambda: not multiprocessing.active_children())
        time.sleep(0.2)
        for _ in range(2):
            outcomes = results(workers, Counting(1), Counting(2))
            assert [outcome.value[0] for outcome in outcomes] == [1, 2]


def test_threads_are_quiet_at_the_same_time(recwarn: pytest.WarningsRecorder) -> None:
    """One that is done does not take the filters of the others away, nor leaves its own behind."""
    before = list(warnings.filters)
    first, second = (
        warning_filters.ignore_warnings("what the first"),
        warning_filters.ignore_warnings("what the second"),
    )
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    warnings.warn("what the second says", stacklevel=1)
    with pytest.warns(UserWarning, match="somebody else"):
        warnings.warn("somebody else", stacklevel=1)
    second.__exit__(None, None, None)
    assert len(recwarn) == 0
    assert warnings.filters == before


@pytest.mark.filterwarnings("error")
def test_threads_are_quiet_all_the_time() -> None:
    """No filter is away between two lines while another thread adds the same one."""

    def warns(*_: Any) -> Any:
        warnings.warn("of no matter", stacklevel=1)
        return warns

    traced = sys.gettrace()
    with warning_filters.ignore_warnings("of no matter"):
        sys.settrace(warns)
        try:
            with warning_filters.ignore_warnings("of no matter"):
                pass
        finally:
            sys.settrace(traced)


def test_results_and_errors(workers: Workers) -> None:
    number, n_threads, pid = result(workers, Counting(3)).value
    assert number == 3
    if pid != os.getpid():
        assert n_threads == max(1, threads.n_threads() // 2)
    error = result(workers, Failing(ValueError("so be it"))).error
    assert isinstance(error, ValueError)
    assert str(error) == "so be it"
    assert result(workers, Counting(4)).value[0] == 4


def test_a_task_in_this_process() -> None:
    with InProcess() as workers:
        assert result(workers, Counting(3)).value[2] == os.getpid()
        assert isinstance(result(workers, Failing(ValueError())).error, ValueError)


def test_what_runs_is_stopped(workers: Workers, tmp_path: Path) -> None:
    """In threads, tasks may tidy up."""
    for i in range(2):
        assert not workers.is_full
        workers.start(Endless(str(tmp_path / str(i))))
    assert workers.is_full
    until(lambda: len(list(tmp_path.iterdir())) == 2)
    until(lambda: [share for _, share in workers.progress()] == [0.25, 0.25])
    assert workers.completed(0) == []
    workers.stop()
    assert multiprocessing.active_children() == []
    if isinstance(workers, ThreadWorkers):
        assert list(tmp_path.iterdir()) == []
    workers.stop()


def test_processes_end_with_their_parent(tmp_path: Path, child_environment: dict[str, str]) -> None:
    script = f"""
import os, time
from tasks import Endless
from scdl.conversion.many.workers import ProcessWorkers
workers = ProcessWorkers(1)
workers.start(Endless({str(tmp_path / "begun")!r}))
while not os.path.exists({str(tmp_path / "begun")!r}):
    time.sleep(0.01)
os._exit(0)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", script], env=child_environment, start_new_session=True
    )
    assert child.wait(60) == 0
    until(lambda: is_over(child.pid))


@pytest.mark.parametrize("how", sample([signal.SIGKILL, signal.SIGTERM], 1))
def test_one_that_dies_does_not_take_the_others_along(tmp_path: Path, how: signal.Signals) -> None:
    """Those that ran at the same time run again; the error names the file of the one to blame."""
    with ProcessWorkers(3) as workers:
        endless = Endless(str(tmp_path / "begun"))
        workers.start(endless)
        until(lambda: (tmp_path / "begun").exists())
        assert result(workers, DyingOnce(how, str(tmp_path / "died"))).value != os.getpid()
        error = result(workers, Dying(how)).error
        assert isinstance(error, WorkerDiedError)
        assert isinstance(error, RuntimeError)
        assert str(error).startswith("cells.h5ad: the worker process died")
        for number in (5, 6):
            assert result(workers, Counting(number)).value[0] == number
        until(lambda: (tmp_path / "begun").exists())
        assert [task for task, _ in workers.progress()] == [endless]


def is_over(group: int) -> bool:
    """Whether no process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


N = 3


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("slow")
    for i in range(N):
        write_h5ad(place / f"{i}.h5ad", random_cells(20_000, 30, seed=i))
    return place


class TestConversion:
    """Of files that take many seconds each, since every write is followed by a pause.

    So the second worker may begin late, and two files are being written all the same. Small writes
    without a pause would take as long, but then this process waits seconds to list the directory.
    """

    SCRIPT = """
import time
import scdl
from storage_backends.memmap.writer import MemmapWriter

append = MemmapWriter.append

def append_slowly(self, name, values):
    append(self, name, values)
    time.sleep(0.05)

MemmapWriter.append = append_slowly

if __name__ == "__main__":
    scdl.convert_directory({files!r}, "out", workers=2, block_values=2000, progress=True)
"""

    @pytest.fixture
    def begin(
        self, files: Path, tmp_path: Path, child_environment: dict[str, str]
    ) -> Iterator[Callable[[], subprocess.Popen[str]]]:
        """Start a conversion in a process, and return when two files are being written."""
        script = tmp_path / "script.py"
        script.write_text(self.SCRIPT.format(files=str(files)))
        children = []

        def begin() -> subprocess.Popen[str]:
            children.append(
                subprocess.Popen(
                    [sys.executable, str(script)],
                    cwd=tmp_path,
                    env=child_environment,
                    stderr=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                )
            )
            child = children[0]

            def writes_two() -> bool:
                assert child.poll() is None, "it ended first"
                return len(list((tmp_path / "out").glob(".scdl-drafts-*/.*/data.npy"))) == 2

            until(writes_two)
            return child

        yield begin
        for child in children:
            child.kill()
            child.communicate()

    def check(self, files: Path, out: Path) -> None:
        """Whatever stands there opens, and is complete."""
        for path in out.iterdir():
            if not path.name.startswith("."):
                assert scdl.open(path).n_obs == 20_000

    def test_interrupted(self, files: Path, tmp_path: Path, begin: Any) -> None:
        child = begin()
        group = child.pid
        # As a terminal does, to all processes.
        os.killpg(group, signal.SIGINT)
        _, told = child.communicate(timeout=60)
        assert "KeyboardInterrupt" in told.splitlines()[-1]
        # The workers say nothing; the bar and one traceback are all there is.
        assert told.count("Traceback") == 1
        until(lambda: is_over(group))
        assert [path for path in (tmp_path / "out").iterdir() if path.name[0] == "."] == []
        self.check(files, tmp_path / "out")

    def test_killed(self, files: Path, tmp_path: Path, begin: Any) -> None:
        """Its workers end too; the next run tidies up, and does what is missing."""
        child = begin()
        child.kill()
        child.communicate(timeout=60)

        until(lambda: is_over(child.pid))
        self.check(files, tmp_path / "out")
        report = scdl.convert_directory(files, tmp_path / "out", use_processes=False, resume=True)
        assert len(report.archives) == N
        names = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert names == [f"{i}.scdl" for i in range(N)]
        self.check(files, tmp_path / "out")

    @pytest.mark.parametrize("times", sample([2, 1], 1))
    def test_a_worker_is_killed(self, files: Path, tmp_path: Path, times: int) -> None:
        """Its file is converted by another one; if that is killed too, the error names it."""

        def kill() -> None:
            killed: set[int] = set()
            while len(killed) < times:
                for child in multiprocessing.active_children():
                    if child.pid not in killed and writes(child.pid):
                        os.kill(child.pid, signal.SIGKILL)
                        killed.add(child.pid)
                time.sleep(0.01)

        def writes(pid: int) -> bool:
            """Whether a process has the values of an archive open; it may be ending."""
            try:
                return any(
                    "data.npy" in os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()
                )
            except OSError:
                return False

        killer = threading.Thread(target=kill)
        killer.start()
        with ProcessWorkers(1) as one:
            report = scdl.convert_directory(
                files, tmp_path / "out", workers=one, block_values=200, skip_failed=True
            )
        killer.join()
        assert len(report.failed) == times - 1
        for failed, why in report.failed.items():
            assert why.startswith(f"{failed}: the worker process died during the conversion")
        assert len(report.archives) == N - len(report.failed)
        assert len(list((tmp_path / "out").iterdir())) == len(report.archives)
        self.check(files, tmp_path / "out")


def test_a_cluster_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingPackageError, match=r"tcp://nowhere:1: .*scdl-store\[dask\]"):
        connect("tcp://nowhere:1")
    assert issubclass(ClusterError, ConnectionError)
