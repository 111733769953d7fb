"""The built-in backends conform, and the registry finds them and those of third parties."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from budget import whole_only

from storage_backends import registry
from storage_backends.base import ArrayStore, Backend
from storage_backends.errors import (
    ArchiveFormatError,
    ArchiveNotFoundError,
    BackendNotFoundError,
    ScdlError,
)
from storage_backends.testing import BackendTests, small_archive


class TestMemmap(BackendTests):
    backend = registry.backend("memmap")

    @whole_only
    def test_spawned_process(self, store: ArrayStore) -> None:
        super().test_spawned_process(store)


class TestZarr(BackendTests):
    backend = registry.backend("zarr")

    def make_path(self, tmp_path: Path) -> str:
        return str(tmp_path / "archive.zarr")


class TestMemory(BackendTests):
    backend = registry.backend("memory")
    local = False
    cross_process = False

    def make_path(self, tmp_path: Path) -> str:
        return f"ram:{tmp_path}"


THIRD_PARTY = """
from storage_backends.base import ArrayStore, Backend
from storage_backends.memory import MemoryStore, MemoryWriter

class OtherStore(MemoryStore):
    pass

def is_there(path):
    return path.startswith("ram:other/")

BACKEND = Backend("other", OtherStore, MemoryWriter, elsewhere=is_there)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Install a package with an entry point, for one test."""
    monkeypatch.syspath_prepend(tmp_path / "site")

    def install(name: str, module: str, source: str) -> None:
        info = tmp_path / "site" / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        entry = f"[scdl.storage_backends]\n{name} = {module}:BACKEND\n"
        (info / "entry_points.txt").write_text(entry)
        (tmp_path / "site" / f"{module}.py").write_text(source)

    return install


def write_archive(backend: Backend, path: str) -> None:
    contents = small_archive()
    with backend.writer.open(path) as writer:
        contents.write(writer)
        writer.commit(contents.attrs)


def test_names_are_those_of_the_backends() -> None:
    names = registry.names()
    assert {"memory", "memmap"} <= set(names)
    assert len(names) == len(set(names))
    assert [registry.backend(name).name for name in names] == names


def test_unknown_backend_error_names_the_known() -> None:
    with pytest.raises(BackendNotFoundError, match="zar") as caught:
        registry.backend("zar")
    assert all(name in str(caught.value) for name in registry.names())


@pytest.mark.parametrize("name", ["memory", "memmap"])
def test_detects_its_archives(tmp_path: Path, name: str) -> None:
    path = f"ram:{tmp_path}" if name == "memory" else str(tmp_path / "archive")
    write_archive(registry.backend(name), path)
    assert registry.detect(path) is registry.backend(name)


@pytest.mark.parametrize("path", ["{}/nothing", "ram:nothing"])
def test_nothing_to_detect(tmp_path: Path, path: str) -> None:
    path = path.format(tmp_path)
    with pytest.raises(ArchiveNotFoundError, match=re.escape(path)) as caught:
        registry.detect(path)
    assert "scdl.convert" in str(caught.value)


def test_detects_no_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "data.h5ad").write_bytes(b"\x89HDF\r\n\x1a\n")
    for path in map(str, tmp_path.iterdir()):
        with pytest.raises(ArchiveFormatError, match=re.escape(path)) as caught:
            registry.detect(path)
        assert all(name in str(caught.value) for name in registry.names())


def test_third_party_backend(install: Callable[[str, str, str], None]) -> None:
    with pytest.raises(BackendNotFoundError):
        registry.backend("other")
    install("other", "scdl_other_backend", THIRD_PARTY)
    assert registry.names()[-1] == "other"
    backend = registry.backend("other")
    assert isinstance(backend, Backend)
    assert backend.store.__name__ == "OtherStore"
    with pytest.raises(BackendNotFoundError, match="other"):
        registry.backend("nothing")


def test_third_party_archive_is_detected(
    install: Callable[[str, str, str], None], tmp_path: Path
) -> None:
    source = THIRD_PARTY.replace('path.startswith("ram:other/")', 'path.endswith(".mine")')
    install("mine", "scdl_mine_backend", source)
    (tmp_path / "archive.mine").write_text("")
    assert registry.detect(str(tmp_path / "archive.mine")) is registry.backend("mine")
    with pytest.raises(ArchiveNotFoundError):
        registry.detect(str(tmp_path / "archive.other"))


def test_a_third_party_may_not_take_a_built_in_name(
    install: Callable[[str, str, str], None],
) -> None:
    install("memmap", "scdl_false_memmap", THIRD_PARTY)
    assert registry.backend("memmap").store.__module__ == "storage_backends.memmap.store"
    assert registry.names().count("memmap") == 1


def test_broken_third_party(install: Callable[[str, str, str], None], tmp_path: Path) -> None:
    install("broken", "scdl_broken_backend", "import a_module_that_is_not_there")
    write_archive(registry.backend("memmap"), str(tmp_path / "archive"))
    assert registry.detect(str(tmp_path / "archive")).name == "memmap"
    with pytest.raises(ArchiveNotFoundError):
        registry.detect(str(tmp_path / "nothing"))
    with pytest.raises(ScdlError, match="broken"):
        registry.backend("broken")
