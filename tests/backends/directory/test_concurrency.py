"""Readers keep the archive that they opened; concurrent writers exclude each other."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from budget import WHOLE, sample

pytest.importorskip("anndata")

from reading import everything

import scdl
from benchmarks.torture.archives import KINDS, write_archive, write_source
from scdl.errors import ArchiveChangedError, ArchiveLockedError
from storage_backends.directory.locks import unlock, writer_lock

pytestmark = pytest.mark.filterwarnings(
    "ignore:Numcodecs codecs are not in the Zarr", "ignore:zarr v3 autosharding:UserWarning"
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("concurrency")
    source = write_source(place / "cells.h5ad", 300, 60)
    return {kind: write_archive(source, place / kind, kind) for kind in KINDS}


@pytest.fixture(params=["memmap", "zarr, archive"])
def archive(written: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return shutil.copytree(written[request.param], tmp_path / "archive")


OPERATIONS: dict[str, Callable[[Path], object]] = {
    "cast": lambda path: scdl.open(path).cast_data_to_dtype("float64"),
    "concat": lambda path: scdl.open(path).concat(scdl.open(path)),
    "checksums": lambda path: (
        [(path / n).unlink(missing_ok=True) for n in ("scdl/checksums.bin", "scdl.checksums")],
        scdl.verify(path, add_checksums=True),
    ),
    "removal": lambda path: scdl.open(path).store.remove(),
}


class TestReaders:
    @pytest.mark.filterwarnings("ignore:.* is left out")
    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_what_was_opened_is_read_whole_afterwards(self, archive: Path, operation: str) -> None:
        expected = everything(scdl.open(archive))
        older, also = scdl.open(archive), scdl.open(archive)
        also.read_rows([0])
        OPERATIONS[operation](archive)
        assert everything(older) == expected
        assert everything(also) == expected

    def test_without_a_file_descriptor_for_each_file(self, archive: Path) -> None:
        if not os.path.isdir("/proc/self/fd"):
            pytest.skip("there is no /proc")
        scdl.open(archive).close()
        before = len(os.listdir("/proc/self/fd"))
        held = [scdl.open(archive) for _ in range(5)]
        assert (len(os.listdir("/proc/self/fd")) - before) / len(held) <= 10

    @pytest.mark.parametrize("archive", sample(["memmap", "zarr, archive"], 1), indirect=True)
    def test_readers_in_threads_and_processes_during_changes(
        self, archive: Path, child_environment: dict[str, str]
    ) -> None:
        expected = everything(scdl.open(archive))
        (ready := archive.parent / "ready").mkdir()
        code = (
            "import pathlib, sys, time; import scdl; from reading import everything\n"
            "archive, ready = map(pathlib.Path, sys.argv[1:3])\n"
            "ds = scdl.open(archive); (ready / sys.argv[3]).touch()\n"
            "last = everything(ds)\n"
            "while not (ready / 'done').exists(): last = everything(ds)\n"
            "print(hash(repr(everything(ds))) == hash(repr(last)), len(ds), ds.data.dtype)\n"
        )
        environment = child_environment | {"PYTHONWARNINGS": "ignore"}
        n_processes = 2 if WHOLE else 1
        readers = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(archive), str(ready), str(i)],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            for i in range(n_processes)
        ]
        ds, done = scdl.open(archive), threading.Event()

        def read() -> int:
            rounds = 0
            while not done.is_set() or rounds == 0:
                assert everything(ds) == expected
                rounds += 1
            return rounds

        with ThreadPoolExecutor(2) as pool:
            threads = [pool.submit(read) for _ in range(2)]
            try:
                _wait_for(lambda: len(list(ready.iterdir())) == n_processes)
                changing = scdl.open(archive)
                for dtype in ("float64", "float32", "float64"):
                    changing.cast_data_to_dtype(dtype)
            finally:
                done.set()
                (ready / "done").touch()
            assert all(thread.result(60) >= 1 for thread in threads)
        told = [reader.communicate(timeout=60)[0].split() for reader in readers]
        assert told == [["True", "300", "float32"]] * n_processes


@pytest.mark.parametrize("kind", ["memmap", "zarr"])
def test_all_of_an_archive_that_was_removed_is_read(
    written: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    expected = scdl.open(written[kind]).to_anndata()
    archive = shutil.copytree(written[kind], tmp_path / kind)
    ds = scdl.open(archive)
    shutil.rmtree(archive)
    found = ds.to_anndata()
    assert (found.X != expected.X).nnz == 0
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    pd.testing.assert_frame_equal(found.var, expected.var)


def test_more_files_than_are_held(
    written: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing files that are not mapped raise an error, and never come from another archive."""
    from storage_backends.directory import mapped_file

    for kind, most in (("memmap", 0), ("zarr", 2)):
        monkeypatch.setattr(mapped_file, "_MAX_MAPPED", most)
        archive = shutil.copytree(written[kind], tmp_path / kind)
        older = scdl.open(archive)
        scdl.open(archive).cast_data_to_dtype("float64")
        with pytest.raises(ArchiveChangedError, match="was replaced since it was opened"):
            everything(older)


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


HOLDER = """
import sys, time
from storage_backends.directory.locks import writer_lock
held = writer_lock(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


class TestWriters:
    @pytest.mark.filterwarnings("ignore:.* is left out")
    def test_a_second_one_is_told_at_once(
        self, archive: Path, child_environment: dict[str, str]
    ) -> None:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(archive)],
            env=child_environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        ds = scdl.open(archive)
        before = everything(ds)
        for change in (
            lambda: ds.cast_data_to_dtype("float64"),
            lambda: ds.concat(scdl.open(archive)),
            lambda: OPERATIONS["checksums"](archive),
        ):
            with pytest.raises(ArchiveLockedError) as caught:
                change()
            assert str(archive) in str(caught.value)
            assert isinstance(caught.value, BlockingIOError)
        assert everything(scdl.open(archive)) == before
        assert [path.name for path in archive.parent.iterdir()] == ["archive"]
        # A dead process does not keep the lock.
        holder.send_signal(signal.SIGKILL)
        holder.communicate(timeout=60)
        ds.cast_data_to_dtype("float64")
        assert [path.name for path in archive.parent.iterdir()] == ["archive"]

    def test_what_another_one_changed_is_not_undone(self, archive: Path) -> None:
        first, second = scdl.open(archive), scdl.open(archive)
        first.cast_data_to_dtype("float64")
        for change in (
            lambda: second.concat(scdl.open(archive)),
            lambda: second.cast_data_to_dtype("uint16"),
        ):
            with pytest.raises(ArchiveChangedError, match="open it again"):
                change()
        assert scdl.open(archive).data.dtype == np.float64
        scdl.open(archive).cast_data_to_dtype("uint16")

    @pytest.mark.filterwarnings("ignore:.* is left out")
    def test_many_at_once(self, archive: Path) -> None:
        """Each process appends some cells, or gets an error."""
        n_obs = len(scdl.open(archive))
        once = scdl.open(archive)

        def append(_: int) -> int:
            try:
                scdl.open(archive).concat(once)
            except (ArchiveLockedError, ArchiveChangedError):
                return 0
            return 1

        with ThreadPoolExecutor(4) as pool:
            done = sum(pool.map(append, range(12)))
        assert done >= 1
        assert len(scdl.open(archive)) == n_obs * (1 + done)
        assert scdl.verify(archive, deep=True).is_sound

    def test_the_lock_goes_with_the_archive_that_is_swapped_in(self, tmp_path: Path) -> None:
        (one := tmp_path / "one").mkdir()
        (two := tmp_path / "two").mkdir()
        held = writer_lock(str(one))
        one.rename(tmp_path / "aside")
        two.rename(one)
        # The new directory at the path is not locked.
        unlock(writer_lock(str(one)))
        unlock(held)


class TestCollections:
    @pytest.fixture
    def collection(self, written: dict[str, Path], tmp_path: Path) -> Path:
        scdl.SingleCellCollection([written["memmap"]]).save_manifest(tmp_path / "many")
        return tmp_path / "many"

    def test_what_another_one_added_is_not_undone(
        self, written: dict[str, Path], collection: Path
    ) -> None:
        first, second = scdl.open(collection), scdl.open(collection)
        first.add(written["zarr"])
        with pytest.raises(ArchiveChangedError, match="open it again"):
            second.add(written["zarr, archive"])
        assert len(second) == 300
        first.add(written["zarr, archive"])
        assert len(scdl.open(collection)) == 900

    def test_a_second_one_is_told_at_once(self, written: dict[str, Path], collection: Path) -> None:
        held = writer_lock(str(collection))
        opened = scdl.open(collection)
        with pytest.raises(ArchiveLockedError, match="many"):
            opened.add(written["zarr"])
        unlock(held)
        opened.add(written["zarr"])
        assert len(scdl.open(collection)) == 600
        assert [path.name for path in collection.iterdir()] == ["collection.json"]
