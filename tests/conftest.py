"""What all tests share: hypothesis without deadlines, children that import what we import."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from budget import examples
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
