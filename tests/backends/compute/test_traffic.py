"""Counters of what storages are asked for, and what they return."""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from budget import examples
from hypothesis import given
from hypothesis import strategies as st

from storage_backends.compute import traffic
from storage_backends.compute.traffic import Counts, Traffic, disk_bytes_read


def test_threads_add_up() -> None:
    counted, n_threads, n = Traffic(), 4, examples(500)

    def work() -> None:
        for i in range(n):
            counted.read(2)
            counted.ask(i)
            with counted.request(3):
                counted.receive(i)

    threads = [threading.Thread(target=work) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = counted.counts()
    total = n_threads * sum(range(n))
    assert found[:4] == (2 * n * n_threads, total, n * n_threads, total)
    assert found.busy_seconds <= found.request_seconds
    assert 3 <= counted.most_in_flight() <= 3 * n_threads


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 100)), max_size=20))
def test_bytes_in_flight_are_those_of_open_requests(steps: list[tuple[bool, int]]) -> None:
    counted, under_way = Traffic(), list[tuple[ExitStack, int]]()
    most = 0
    for begins, n_bytes in steps:
        if begins:
            stack = ExitStack()
            stack.enter_context(counted.request(n_bytes))
            under_way.append((stack, n_bytes))
            most = max(most, sum(size for _, size in under_way))
        elif under_way:
            under_way.pop(n_bytes % len(under_way))[0].close()
        assert counted.most_in_flight() == most
    counted.most_in_flight(restart=True)
    assert counted.most_in_flight() == sum(size for _, size in under_way)
    for stack, _ in under_way:
        stack.close()
    assert counted.counts().requests == sum(begins for begins, _ in steps)


def test_busy_is_the_time_with_any_request() -> None:
    counted, pause = Traffic(), 0.02
    began = time.perf_counter()
    with counted.request(), counted.request():
        time.sleep(pause)
        busy = counted.counts().busy_seconds
        assert pause <= busy <= time.perf_counter() - began
    ended = time.perf_counter()
    time.sleep(pause)
    with pytest.raises(TimeoutError), counted.request():
        raise TimeoutError
    found = counted.counts()
    assert found.requests == 3
    assert pause <= found.busy_seconds < ended - began + pause
    assert found.request_seconds >= 2 * pause


@given(st.tuples(*[st.integers(0, 1000)] * 6), st.tuples(*[st.integers(0, 1000)] * 6))
def test_since(before: tuple[int, ...], more: tuple[int, ...]) -> None:
    after = Counts(*(a + b for a, b in zip(before, more, strict=True)))
    assert after.since(Counts(*before)) == more


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_is_not_locked() -> None:
    with traffic.TRAFFIC._lock:
        child = os.fork()
        if not child:
            done = traffic.TRAFFIC._lock.acquire(timeout=1)
            os._exit(0 if done else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_bytes_from_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "io"
    file.write_text("rchar: 5\nread_bytes: 4096\nwrite_bytes: 7\n")
    monkeypatch.setattr(traffic, "_IO", str(file))
    assert disk_bytes_read() == 4096
    file.write_text("rchar: 5\n")
    assert disk_bytes_read() is None
    monkeypatch.setattr(traffic, "_IO", str(tmp_path / "absent"))
    assert disk_bytes_read() is None
