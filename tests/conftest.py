"""What all tests share: hypothesis without deadlines, children that import what we import."""

from __future__ import annotations

import atexit
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from budget import NEXT, WHOLE, cover, examples
from places import SUPPORT

import scdl

# Before anything imports it.
pytest.register_assert_rewrite("storage_backends.testing")
hypothesis.settings.register_profile(
    "scdl",
    deadline=None,
    max_examples=examples(60),
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("scdl")


def remove(directory: str, owner: int) -> None:
    """Remove a directory where this is the process that made it, and not a fork."""
    if os.getpid() == owner:
        shutil.rmtree(directory, ignore_errors=True)


#: File system in memory, and what must be free there to use it. The tests make and remove hundreds
#: of thousands of small files, which takes a disk as long as the tests themselves.
MEMORY, ENOUGH = "/dev/shm", 2 << 30
if (
    "TMPDIR" not in os.environ
    and os.access(MEMORY, os.W_OK)
    and shutil.disk_usage(MEMORY).free >= ENOUGH
):
    # Children have it from the environment.
    os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="scdl-tests-", dir=MEMORY)
    atexit.register(remove, tempfile.tempdir, os.getpid())

# Children would compile again what they import of ours, which takes each half a second.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


#: What measures the coverage, if anything does.
TRACER = sys.gettrace()


def pytest_runtest_setup() -> None:
    """Go on measuring: Python drops a tracer in which a test for deep recursion ends."""
    if TRACER is not None and sys.gettrace() is None:
        sys.settrace(TRACER)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """Look for no garbage while modules are imported, and later not in what they hold.

    It would take almost half of the time of the collection.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out combinations of parameters in which nothing is new, but of tests marked `crossed`.

    With the newest dependencies, take one case of each test: mostly that of Zarr, which uses most.
    """
    groups: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if hasattr(item, "callspec") and (
            NEXT or not (WHOLE or item.get_closest_marker("crossed"))
        ):
            groups[item.nodeid.partition("[")[0]].append(item)
    left_out: set[pytest.Item] = set()
    for group in groups.values():
        left_out.update(group)
        chosen = group[-1:] if NEXT else [group[i] for i in cover([*map(rows_of, group)])]
        left_out.difference_update(chosen)
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def rows_of(item: pytest.Item) -> set[tuple[object, ...]]:
    """Rows of the lists that the parameters of a test are from, one of each decorator or fixture.

    Values need not have a hash; those of one row are the same objects each time.
    """
    values = dict(item.callspec.params)
    rows: set[tuple[object, ...]] = set()
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0] if mark.args else mark.kwargs["argnames"]
        if isinstance(names, str):
            names = [name.strip() for name in names.split(",") if name.strip()]
        rows.add((*names, *(id(values.pop(name, None)) for name in names)))
    return rows | {(name, id(value)) for name, value in values.items()}


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Let tests interrupt themselves and their children, also where the suite ignores SIGINT.

    A shell has what it starts in the background ignore it, and children inherit that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def child_environment() -> dict[str, str]:
    """Environment of a child process that imports the scdl under test and our own modules."""
    paths = [str(Path(scdl.__file__).parents[1]), str(SUPPORT)]
    inherited = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths + ([inherited] if inherited else []))}


@pytest.fixture
def run_python(
    child_environment: dict[str, str], tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python in a child, in the temporary directory of the test."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env=child_environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture(scope="session")
def command_server(child_environment: dict[str, str]) -> Iterator[subprocess.Popen[str] | None]:
    """Process that commands are forked from; none where each has a process of its own."""
    if WHOLE or not hasattr(os, "fork"):
        yield None
        return
    with subprocess.Popen(
        [sys.executable, str(SUPPORT / "command_server.py")],
        env=child_environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        yield server
        # Not the end of its input: processes that were forked meanwhile have this end of it, too.
        server.kill()


@pytest.fixture
def run_command(
    command_server: subprocess.Popen[str] | None,
    run_python: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``scdl`` or ``convert_h5ad_to_scdl`` in the temporary directory of the test."""

    def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        if command_server is None:
            return run_python("-c", f"from scdl.__main__ import {name}; {name}()", *arguments)
        with tempfile.TemporaryDirectory() as place:
            files = {stream: os.path.join(place, stream) for stream in ("stdout", "stderr")}
            request = {"name": name, "arguments": [*map(str, arguments)], "cwd": str(tmp_path)}
            command_server.stdin.write(json.dumps(request | files) + "\n")
            command_server.stdin.flush()
            code = int(command_server.stdout.readline())
            said = {stream: Path(path).read_text() for stream, path in files.items()}
        return subprocess.CompletedProcess([name, *arguments], code, **said)

    return run


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The cells of training.py, in archives of all kinds."""
    from training import write_archives

    return write_archives(tmp_path_factory.mktemp("training"))


@pytest.fixture
def mount(tmp_path: Path) -> Callable[..., Path]:
    """Mount a small file system in memory; skips where that is not permitted."""
    mounted: list[Path] = []

    def mount(name: str, options: str) -> Path:
        target = tmp_path / name
        target.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(target)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"cannot mount a file system here: {error}")
        mounted.append(target)
        return target

    yield mount
    for target in mounted:
        subprocess.run(["umount", "-l", str(target)], check=True)
