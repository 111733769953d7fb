"""Base class and fixtures of the conformance tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from storage_backends.base import ArrayStore, ArrayWriter, Backend
from storage_backends.testing.archives import DTYPES, Contents, large_archive, small_archive

#: Names of arrays of every integer dtype, with scalar and vector items.
INTEGERS = [f"obsm/{dtype}{shape}" for dtype in DTYPES for shape in ("", "x3") if "int" in dtype]


# Several subclasses run the same method, which a health check of hypothesis reports.
PROPERTY = settings(deadline=None, suppress_health_check=[HealthCheck.differing_executors])


class BackendHarness:
    """A backend under test, and the paths of its archives."""

    #: The backend under test.
    backend: Backend
    #: Whether archives are files or directories of the local file system.
    local: bool = True
    #: Whether another process can open an archive by its path.
    cross_process: bool = True

    def make_path(self, tmp_path: Path) -> str:
        """Path for the archive of a test; `tmp_path` is different for every test."""
        return str(tmp_path / "archive")

    def standing(self, path: str) -> list[str]:
        """All paths in the directory of `path` that exist, including unfinished archives."""
        if self.local:
            return sorted(map(str, Path(path).parent.iterdir()))
        return [path] if self.backend.detect(path) else []

    # -- helpers and fixtures --------------------------------------------------------------

    def create(self, path: str, *, replace: bool = False) -> ArrayWriter:
        return self.backend.writer.open(path, replace=replace)

    def open(self, path: str) -> ArrayStore:
        return self.backend.store.open(path)

    @contextlib.contextmanager
    def writing(
        self, path: str, contents: Contents, *, pieces: int = 1, replace: bool = False
    ) -> Iterator[ArrayWriter]:
        """Write `contents`, run the body of the ``with`` statement, and commit."""
        with self.create(path, replace=replace) as writer:
            contents.write(writer, pieces)
            yield writer
            writer.commit(contents.attrs)

    def write(self, path: str, contents: Contents, *, replace: bool = False) -> ArrayStore:
        with self.writing(path, contents, replace=replace):
            pass
        return self.open(path)

    @pytest.fixture
    def path(self, tmp_path: Path) -> str:
        return self.make_path(tmp_path)

    @pytest.fixture
    def local_path(self, path: str) -> str:
        if not self.local:
            pytest.skip("archives are not local files")
        return path

    @pytest.fixture(scope="class")
    @classmethod
    def large_path(cls, tmp_path_factory: pytest.TempPathFactory) -> str:
        tests = cls()
        path = tests.make_path(tmp_path_factory.mktemp("large"))
        with tests.writing(path, large_archive(), pieces=3):
            pass
        return path

    @pytest.fixture(scope="class")
    @classmethod
    def two_paths(
        cls, large_path: str, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[str, str]:
        """Archives of different sizes with arrays of the same types."""
        tests, cells = cls(), large_archive()
        dtypes = [cells.arrays[name].dtype.name for name in ("data", "indices", "indptr")]
        path = tests.make_path(tmp_path_factory.mktemp("small"))
        with tests.writing(path, small_archive(dtypes=(dtypes[0], dtypes[1], dtypes[2]))):
            pass
        return large_path, path

    @pytest.fixture
    def store(self, large_path: str) -> Iterator[ArrayStore]:
        with self.open(large_path) as store:
            yield store
