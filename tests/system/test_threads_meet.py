"""Interleavings of threads that use the same archive or collection."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from budget import sample, whole_only
from interleaving import between, some_lines
from sources import names, random_cells, write_h5ad

import scdl
from scdl.errors import ArchiveExistsError, ScdlError
from scdl.kernels import memory as recycled
from storage_backends.compute import threads
from storage_backends.compute.caching import LRUCache
from storage_backends.directory import staging as _staging

pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
BACKENDS = ["memmap", "zarr"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Archives of both backends, with ``few`` genes, and ``many`` that need wider column ids."""
    place = tmp_path_factory.mktemp("meet")
    for name, n_vars, word in (("few", 40, "old"), ("many", 400, "new")):
        cells = random_cells(200, n_vars, seed=n_vars)
        obs = pd.DataFrame(
            {"who": [word] * 200, "kind": pd.Categorical([word] * 200)}, index=names(word, 200)
        )
        write_h5ad(place / f"{name}.h5ad", cells, obs=obs)
        for backend in BACKENDS:
            scdl.convert(place / f"{name}.h5ad", place / f"{name}.{backend}", backend=backend)
    return place


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def told(call: Callable[[], Any]) -> Any:
    """Result of a call, or its typed error."""
    try:
        return call()
    except ScdlError as error:
        return type(error)


def contents(batch: scdl.CellBatch) -> tuple[Any, ...]:
    return batch.data.tolist(), batch.indices.tolist(), batch.indptr.tolist(), batch.n_vars


# -- archives that are closed or changed -------------------------------------------------------


READS: dict[str, Callable[[Any], Any]] = {
    "read_rows": lambda ds: contents(ds.read_rows([3, 150])),
    "row": lambda ds: [part.tolist() for part in ds.get_row(7)[0]],
    "obs": lambda ds: ds.store.read_table("obs").to_pylist(),
    "var": lambda ds: [list(map(str, column)) for column in ds.var_features().lookup(0)[0]],
}


@pytest.mark.parametrize("how", READS)
def test_an_archive_that_is_closed_while_it_is_read(written: Path, backend: str, how: str) -> None:
    """The read succeeds, or an error says that the archive is closed."""
    path, read = written / f"few.{backend}", READS[how]
    first = scdl.open(path)
    expected = repr(read(scdl.open(path)))
    for line in some_lines(lambda: read(first), 60):
        ds = scdl.open(path)
        got = told(lambda ds=ds, line=line: between(line, lambda: read(ds), ds.close))
        assert repr(got) == expected or issubclass(got, ScdlError)


def test_a_table_that_is_read_while_the_archive_is_replaced(
    written: Path, tmp_path: Path, backend: str
) -> None:
    """The result is the old table or an error, and never a mixture."""
    source = written / f"few.{backend}"
    expected = scdl.open(source).store.read_table("obs").to_pylist()

    def fresh() -> Any:
        shutil.rmtree(tmp_path / "archive", ignore_errors=True)
        return scdl.open(shutil.copytree(source, tmp_path / "archive"))

    first = fresh().store
    for line in some_lines(lambda: first.read_table("obs"), 40):
        ds = fresh()
        store = ds.store

        def replace(ds: Any = ds) -> None:
            ds.load_h5ad(written / "many.h5ad")

        got = told(
            lambda line=line, store=store, replace=replace: between(
                line, lambda: store.read_table("obs").to_pylist(), replace
            )
        )
        assert got == expected or issubclass(got, ScdlError)


@pytest.mark.parametrize("how", ["read_rows", "row", "var"])
def test_a_dataset_that_is_read_while_its_values_are_cast(
    written: Path, tmp_path: Path, backend: str, how: str
) -> None:
    ds = scdl.open(shutil.copytree(written / f"few.{backend}", tmp_path / "archive"))
    expected = repr(READS[how](ds))
    seen: list[Any] = []
    dtypes = ["float32", "float64"]

    def cast() -> None:
        ds.cast_data_to_dtype(dtypes[len(seen) % 2])

    within = ("/scdl/dataset/dataset.py", "/scdl/dataset/opened.py")
    for line in some_lines(cast, 20, within):
        between(line, cast, lambda: seen.append(told(lambda: repr(READS[how](ds)))), within)
        assert seen[-1] == expected or issubclass(seen[-1], ScdlError)
    assert expected in seen


# -- collections -------------------------------------------------------------------------------


def test_members_that_are_added_while_cells_are_read(written: Path) -> None:
    """Column ids keep a dtype that is wide enough for all members."""
    few, many = written / "few.memmap", written / "many.zarr"
    alone = contents(scdl.open(many).read_rows([5]))
    within = (
        "/scdl/collection/collection.py",
        "/scdl/collection/discovery.py",
        "/scdl/collection/opened.py",
        "/scdl/collection/joined_cells.py",
        "/scdl/collection/members.py",
    )

    def assert_complete(cells: scdl.SingleCellCollection) -> None:
        assert contents(cells.read_rows([205])) == alone
        assert cells.info.n_obs == cells.n_obs == 400
        assert cells.index_dtype == "u2"

    def fresh() -> scdl.SingleCellCollection:
        return scdl.SingleCellCollection([few])

    first = fresh()
    for line in some_lines(lambda: first.add(many), 150, within):
        cells = fresh()
        between(
            line,
            lambda cells=cells: cells.add(many),
            lambda cells=cells: (cells.read_rows([1]), cells.info),
            within,
        )
        assert_complete(cells)
    second = fresh()
    for line in some_lines(lambda: (second.read_rows([1]), second.info), 80, within):
        cells = fresh()
        between(
            line,
            lambda cells=cells: (cells.read_rows([1]), cells.info),
            lambda cells=cells: cells.add(many),
            within,
        )
        assert_complete(cells)


def test_few_members_that_are_open_at_a_time(written: Path) -> None:
    """Each thread reads a different member, but only one may be open."""
    paths = [written / f"few.{backend}" for backend in BACKENDS]
    cells = scdl.SingleCellCollection(paths, max_open=1)
    expected = contents(cells.read_rows([3])), contents(cells.read_rows([203]))
    for line in some_lines(lambda: cells.read_rows([3]), 80):
        got: list[Any] = []
        cells.read_rows([203])
        first = between(
            line,
            lambda: contents(cells.read_rows([3])),
            lambda got=got: got.append(contents(cells.read_rows([203]))),
        )
        assert (first, *got) == expected


class _Meeting:
    """Lets another thread run when it is destroyed, as unmapping memory does."""

    def __init__(self, happens: Callable[[], object]) -> None:
        self.happens = happens

    def __del__(self) -> None:
        other = threading.Thread(target=self.happens)
        other.start()
        other.join(5)


def test_what_was_used_last_is_kept() -> None:
    recent = LRUCache[str, int](2)
    assert recent.setdefault("a", 1) == 1
    assert recent.setdefault("b", 2) == 2
    assert recent.get("a") == 1
    recent.setdefault("c", 3)
    assert [recent.get(key) for key in "abc"] == [1, None, 3]
    assert recent.setdefault("a", 9) == 1
    recent.clear()
    assert len(recent) == 0


def test_what_was_used_last_while_something_is_let_go_of() -> None:
    recent = LRUCache[int, Any](1)
    for _ in range(3):
        for key in (1, 2):
            recent.setdefault(
                key, _Meeting(lambda: (recent.setdefault(1, None), recent.setdefault(3, "x")))
            )
    recent.setdefault(4, "y")
    assert len(recent) == 1
    assert recent.get(4) == "y"


# -- threads of the library --------------------------------------------------------------------


def test_all_calls_have_ended_when_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "n_threads", lambda: 2)
    for items in ([True, False], [False, True]):
        begun, ended = threading.Event(), threading.Event()

        def call(fails: bool, begun: Any = begun, ended: Any = ended) -> None:
            if fails:
                begun.wait(60)
                raise ValueError("so be it")
            begun.set()
            time.sleep(0.2)
            ended.set()

        with pytest.raises(ValueError, match="so be it"):
            threads.for_each(call, items)
        assert ended.is_set()
    found: list[int] = []
    threads.for_each(lambda item: found.append(abs(item)), [-1, -2])
    assert sorted(found) == [1, 2]


def test_memory_is_not_waited_for() -> None:
    """The owner of the lock may be joining the thread that requests it."""
    del_later = recycled.empty(1 << 22, "u1")
    del del_later
    with recycled._lock:
        assert recycled.empty(1 << 22, "u1").nbytes == 1 << 22


@pytest.fixture(scope="module")
def repeated(written: Path) -> list[str]:
    """Archives with enough values that several threads read them."""
    paths = [str(written / f"repeated.{backend}") for backend in BACKENDS]
    for path, backend in zip(paths, BACKENDS, strict=True):
        scdl.convert([written / "few.h5ad"] * 50, path, backend=backend)
    return paths


@pytest.mark.parametrize("read", sample(["read_rows", "__getitems__"], 1))
def test_threads_read_on_after_the_end_of_the_main_thread(
    repeated: list[str], child_environment: dict[str, str], read: str
) -> None:
    if read == "__getitems__":
        pytest.importorskip("torch")
    code = (
        "import sys, threading, time, numpy as np, scdl\n"
        "sets = [scdl.open(path) for path in sys.argv[1:]]\n"
        "sets.append(scdl.SingleCellCollection(sys.argv[1:]))\n"
        "def read():\n"
        "    threading.main_thread().join()\n"
        "    time.sleep(0.5)\n"
        f"    print(*(len(ds.{read}(np.arange(10_000))) for ds in sets))\n"
        "threading.Thread(target=read).start()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *repeated],
        env=child_environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == ["10000"] * 3, done.stderr


def check_exits(pids: list[int]) -> None:
    """Wait for child processes, which exit with status 0; kill those that hang."""
    until = time.monotonic() + 60
    for pid in pids:
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            if time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        assert ended[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_while_a_thread_reads(written: Path) -> None:
    """A child process can read, wherever a thread of its parent was interrupted."""
    first = scdl.open(written / "few.zarr")
    pids: list[int] = []
    for line in some_lines(lambda: first.read_rows([3]), 12):
        ds = scdl.open(written / "few.zarr")

        def fork(ds: Any = ds) -> None:
            pid = os.fork()
            if not pid:
                os._exit(contents(ds.read_rows([3])) != contents(first.read_rows([3])))
            pids.append(pid)

        between(line, lambda ds=ds: ds.read_rows([3]), fork)
    assert len(pids) > 2
    check_exits(pids)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_while_a_thread_computes_a_property(written: Path) -> None:
    """A property of another object; Python 3.11 has one lock for all objects."""
    one, other = (scdl.SingleCellCollection([written / "few.memmap"]) for _ in range(2))
    pids: list[int] = []

    def fork() -> None:
        pid = os.fork()
        if not pid:
            os._exit(other.info.n_obs != 200 or other.obs_names[0] != "old0")
        pids.append(pid)

    for line in some_lines(lambda: (one.info, one.obs_names), 12):
        fresh = scdl.SingleCellCollection([written / "few.memmap"])
        between(line, lambda fresh=fresh: (fresh.info, fresh.obs_names), fork)
    check_exits(pids)


@whole_only
def test_a_loader_that_is_collected_by_a_thread_of_its_own(
    written: Path, tmp_path: Path, child_environment: dict[str, str]
) -> None:
    pytest.importorskip("torch")
    more = tmp_path / "more"
    scdl.convert([written / "few.h5ad"] * 8, more)
    code = (
        "import gc, itertools, sys, threading, scdl\n"
        "from scdl.training.loader import SingleCellLoader\n"
        "numbers, gone, ran = itertools.count(), threading.Event(), threading.Event()\n"
        # A task of the thread assembles eight batches.
        "def transform(batch):\n"
        "    if next(numbers) > 7 and gone.wait(60): gc.collect(); ran.set()\n"
        "    return batch\n"
        "def abandon():\n"
        "    it = iter(SingleCellLoader(scdl.open(sys.argv[1]), 64, transforms=(transform,),\n"
        "                               threads=1, layout='coo'))\n"
        "    next(it)\n"
        "    holder = [it]; holder.append(holder)\n"
        "gc.disable(); abandon(); gone.set()\n"
        "assert ran.wait(60); print('over')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(more)],
        env=child_environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("over", "")


def test_items_that_could_not_be_made_are_made_again(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from scdl.dataset.collate import RowTensors

    ds = scdl.open(written / "few.memmap")
    items = ds.__getitems__([1, 2])
    assert isinstance(items, RowTensors)
    made = RowTensors._make

    def interrupted(_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(RowTensors, "_make", interrupted)
    with pytest.raises(KeyboardInterrupt):
        items[0]
    monkeypatch.setattr(RowTensors, "_make", made)
    assert items[0].shape == ds[1].shape


def test_a_target_that_appears_while_another_begins_to_write_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is that the target exists, although it is locked for a moment."""
    target = tmp_path / "archive"

    def appears(path: str) -> None:
        os.mkdir(path)
        (target / "a").touch()
        held.append(_staging.writer_lock(path))

    held: list[int] = []
    monkeypatch.setattr(_staging, "remove_leftovers", appears)
    staging = _staging.Staging.create(str(target), replace=False)
    with pytest.raises(ArchiveExistsError):
        staging.publish()
    staging.discard()
    os.close(held[0])
