"""Conversion on a Dask cluster of separate processes, one of which is killed at work."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from budget import whole_only
from sources import random_cells, write_h5ad
from tasks import Dying

import scdl
from scdl.errors import ClusterError, ConversionFailedError, WorkerDiedError

distributed = pytest.importorskip("distributed")

N = 4


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("files")
    for i in range(N):
        write_h5ad(place / f"{i}.h5ad", random_cells(6_000, 30, seed=i))
    return place


@pytest.fixture(scope="module")
def cluster(child_environment: dict[str, str]) -> Iterator[Any]:
    paths = {"PYTHONPATH": child_environment["PYTHONPATH"]}
    inherited = os.environ.copy()
    os.environ.update(paths)
    try:
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster:
            yield cluster
    finally:
        os.environ.clear()
        os.environ.update(inherited)


@pytest.fixture(scope="module")
def client(cluster: Any) -> Iterator[Any]:
    with distributed.Client(cluster, set_as_default=False) as client:
        yield client


def content(archive: Path) -> dict[str, bytes]:
    found = (path for path in sorted(archive.rglob("*")) if path.is_file())
    return {str(path.relative_to(archive)): path.read_bytes() for path in found}


def check(files: Path, out: Path, place: Path) -> None:
    assert sorted(path.name for path in out.iterdir()) == [f"{i}.scdl" for i in range(N)]
    for i in range(N):
        expected = place / f"expected-{i}"
        scdl.convert(files / f"{i}.h5ad", expected)
        assert content(out / f"{i}.scdl") == content(expected)


def kill_a_worker(client: Any, out: Path) -> None:
    """Kill one that is writing."""
    end = time.monotonic() + 60
    while not (writing := [worker for worker, tasks in client.processing().items() if tasks]):
        assert time.monotonic() < end
    while not list(out.glob(".scdl-drafts-*/.*/data.npy")):
        assert time.monotonic() < end
    pids = client.run(os.getpid)
    os.kill(pids[writing[0]], signal.SIGKILL)


def test_a_worker_is_killed_in_mid_work(client: Any, files: Path, tmp_path: Path) -> None:
    """Another one does its work again; the archives are what they would have been."""
    killer = threading.Thread(target=kill_a_worker, args=(client, tmp_path / "out"))
    killer.start()
    size = (files / "0.h5ad").stat().st_size
    before = client.run(os.getpid)
    # Two of the files are in parts, as only they are larger.
    report = scdl.convert_directory(
        files, tmp_path / "out", workers=client, split_bytes=size // 2, block_values=200
    )
    killer.join()
    assert len(report.reports) == N
    client.wait_for_workers(2)
    assert client.run(os.getpid) != before
    check(files, tmp_path / "out", tmp_path)


def test_a_failing_file(client: Any, files: Path, tmp_path: Path) -> None:
    shutil.copytree(files, tmp_path / "in")
    (tmp_path / "in" / "bad.h5ad").write_bytes(b"no HDF5")
    with pytest.raises(ConversionFailedError, match=r"1 of 5 files.*bad.h5ad: not an HDF5 file"):
        scdl.convert_directory(tmp_path / "in", tmp_path / "out", workers=client)
    assert len(list((tmp_path / "out").iterdir())) == N


def test_one_archive_of_all(client: Any, files: Path, tmp_path: Path) -> None:
    sources = sorted(files.glob("*.h5ad"))
    scdl.convert_in_parts(sources, tmp_path / "ours", workers=client)
    scdl.convert(sources, tmp_path / "expected")
    assert content(tmp_path / "ours") == content(tmp_path / "expected")


@whole_only
def test_a_task_that_kills_every_worker(client: Any, tmp_path: Path) -> None:
    from scdl.conversion.many.dask import DaskWorkers

    with DaskWorkers(client) as workers:
        workers.start(Dying())
        ((_, outcome),) = workers.completed(60)
    assert isinstance(outcome.error, WorkerDiedError)
    assert re.match(
        "cells.h5ad: tcp.* died, like all workers that tried before", str(outcome.error)
    )
    client.wait_for_workers(2)


def test_command(
    cluster: Any,
    files: Path,
    tmp_path: Path,
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    address = cluster.scheduler_address
    done = run_python("-m", "scdl", "convert", files, "out", "--dask", address)
    assert done.returncode == 0, done.stderr
    assert "4 files converted" in done.stdout
    check(files, tmp_path / "out", tmp_path)


def test_no_scheduler() -> None:
    from scdl.conversion.many.dask import connect

    with pytest.raises(ClusterError, match="nonsense://: there is no Dask scheduler"):
        connect("nonsense://")


def test_a_closed_client(cluster: Any, files: Path, tmp_path: Path) -> None:
    client = distributed.Client(cluster, set_as_default=False)
    client.close()
    with pytest.raises(ClusterError, match="client in workers= is closed"):
        scdl.convert_directory(files, tmp_path / "out", workers=client)
    assert not (tmp_path / "out").exists()
