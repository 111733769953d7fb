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
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
from sources import random_cells, write_h5ad
from tasks import Counting, Deaf, Dying, Endless, Failing, Imported, Unheard

import scdl
from scdl.conversion.many.workers import Outcome, ProcessWorkers, ThreadWorkers, Workers, connect
from scdl.errors import ClusterError, MissingPackageError, WorkerDiedError
from storage_backends.compute import threads, warning_filters


@pytest.fixture(params=[ProcessWorkers, ThreadWorkers])
def crew(request: pytest.FixtureRequest) -> Iterator[Workers]:
    with request.param(2) as workers:
        yield workers


def result(workers: Workers, task: Any) -> Outcome:
    future = workers.start(task)
    wait([future], 60)
    return workers.finish(future)


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)


def test_processes_that_begin_before_there_are_tasks() -> None:
    with ProcessWorkers(2) as workers:
        workers.begin("lzma")
        assert multiprocessing.active_children()
        for module in ("lzma", "tabnanny"):
            found = [workers.start(Imported(module)) for _ in range(2)]
            wait(found, 60)
            assert [workers.finish(f).value for f in found] == [module == "lzma"] * 2
    with ProcessWorkers(2) as workers:
        workers.begin("no_such_module")
    assert multiprocessing.active_children() == []


def test_a_process_that_dies_while_it_waits() -> None:
    """Its first task has failed, and the next one gets another process."""
    with ProcessWorkers(1) as workers:
        workers.begin("lzma")
        (child,) = multiprocessing.active_children()
        child.kill()
        until(lambda: not multiprocessing.active_children())
        time.sleep(0.2)
        assert isinstance(result(workers, Counting(1)).error, WorkerDiedError)
        assert result(workers, Counting(2)).value[0] == 2


def test_workers_that_were_stopped_work_again(crew: Workers, tmp_path: Path) -> None:
    """Tasks that nobody asked for any more take no place."""
    begun = [tmp_path / "a", tmp_path / "b"]
    running = [crew.start(Endless(str(path))) for path in begun]
    assert not crew.has_room()
    until(lambda: all(path.exists() for path in begun))
    crew.stop()
    assert all(future.done() for future in running)
    crew.stop()
    assert result(crew, Counting(1)).value[0] == 1


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


def test_results_and_errors(crew: Workers) -> None:
    number, n_threads, pid = result(crew, Counting(3)).value
    assert number == 3
    if pid != os.getpid():
        assert n_threads == max(1, threads.n_threads() // 2)
    error = result(crew, Failing(ValueError("so be it"))).error
    assert isinstance(error, ValueError)
    assert str(error) == "so be it"
    assert result(crew, Counting(4)).value[0] == 4


def test_of_what_python_ignores_the_end_is_not_told(capfd: pytest.CaptureFixture[str]) -> None:
    with ProcessWorkers(1) as workers:
        assert result(workers, Unheard()).error is None
    told = capfd.readouterr().err
    assert "so be it" in told
    assert "SystemExit" not in told


def test_what_runs_is_stopped(crew: Workers, tmp_path: Path) -> None:
    """And may tidy up."""
    futures = [crew.start(Endless(str(tmp_path / str(i)))) for i in range(2)]
    assert not crew.has_room()
    until(lambda: len(list(tmp_path.iterdir())) == 2)
    until(lambda: crew.share(futures[0]) == 0.25)
    crew.stop()
    assert all(future.done() for future in futures)
    assert list(tmp_path.iterdir()) == []


def test_what_no_signal_reaches_is_stopped(tmp_path: Path) -> None:
    with ProcessWorkers(1) as crew:
        crew.start(Deaf(str(tmp_path / "begun")))
        until(lambda: list(tmp_path.iterdir()))
    assert list(tmp_path.iterdir()) == []


def test_what_no_signal_reaches_ends_with_its_parent(
    tmp_path: Path, child_environment: dict[str, str]
) -> None:
    script = f"""
import os, time
from tasks import Deaf
from scdl.conversion.many.workers import ProcessWorkers
ProcessWorkers(1).start(Deaf({str(tmp_path / "begun")!r}))
while not os.path.exists({str(tmp_path / "begun")!r}):
    time.sleep(0.01)
os._exit(0)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", script], env=child_environment, start_new_session=True
    )
    assert child.wait(60) == 0
    until(lambda: is_over(child.pid))
    assert list(tmp_path.iterdir()) == []


def test_one_that_dies_does_not_take_the_others_along(tmp_path: Path) -> None:
    with ProcessWorkers(2) as crew:
        other = crew.start(Endless(str(tmp_path / "begun")))
        for how in (signal.SIGKILL, signal.SIGTERM):
            error = result(crew, Dying(how)).error
            assert isinstance(error, WorkerDiedError)
            assert isinstance(error, RuntimeError)
        assert result(crew, Counting(5)).value[0] == 5
        until(lambda: (tmp_path / "begun").exists())
        assert not other.done()


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
    """Of files that take a while, since few values are handled at once."""

    OPTIONS = "workers=2, block_values=60, progress=True"

    @pytest.fixture
    def begin(
        self, files: Path, tmp_path: Path, child_environment: dict[str, str]
    ) -> Iterator[Callable[[], subprocess.Popen[str]]]:
        """Start a conversion in a process, and return when two files are being written."""
        script = tmp_path / "script.py"
        script.write_text(
            "import scdl\n"
            'if __name__ == "__main__":\n'
            f"    scdl.convert_directory({str(files)!r}, 'out', {self.OPTIONS})\n"
        )
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
            drafts = (tmp_path / "out").glob
            until(lambda: len(list(drafts(".scdl-drafts-*/.*/data.npy"))) == 2)
            return children[0]

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

    def test_a_worker_is_killed(self, files: Path, tmp_path: Path) -> None:
        """Its file is named; the others are converted, one of them by another process."""
        victim: list[int] = []

        def kill_one() -> None:
            until(lambda: list((tmp_path / "out").glob(".scdl-drafts-*/.*/data.npy")))
            victim.append(min(child.pid for child in multiprocessing.active_children()))
            os.kill(victim[0], signal.SIGKILL)

        killer = threading.Thread(target=kill_one)
        killer.start()
        with ProcessWorkers(1) as one:
            report = scdl.convert_directory(
                files, tmp_path / "out", workers=one, block_values=200, skip_failed=True
            )
        killer.join()
        ((failed, why),) = report.failed.items()
        assert failed in why
        assert "its process ended in the middle of the work" in why
        assert len(report.archives) == N - 1
        self.check(files, tmp_path / "out")


def test_a_cluster_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingPackageError, match=r"tcp://nowhere:1: .*scdl-store\[dask\]"):
        connect("tcp://nowhere:1")
    assert issubclass(ClusterError, ConnectionError)
