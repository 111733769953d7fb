"""Threads that read files."""

from __future__ import annotations

import threading
import time

import pytest

from storage_backends.compute import steps, threads


class Clocks:
    """Clocks of a machine on which each item takes a second, and some time of the processor."""

    def __init__(self, computed: float) -> None:
        self._computed, self.n_items = computed, 0

    def perf_counter(self) -> float:
        return float(self.n_items)

    def thread_time(self) -> float:
        return self.n_items * self._computed


@pytest.mark.parametrize(("computed", "waits"), [(0.9, False), (0.1, True)])
def test_files_are_read_in_threads_that_would_wait(
    monkeypatch: pytest.MonkeyPatch, computed: float, waits: bool
) -> None:
    clocks = Clocks(computed)
    monkeypatch.setattr(threads, "time", clocks)
    monkeypatch.setattr(threads, "n_threads", lambda: 3)
    done: list[tuple[int, int]] = []

    def read(item: int) -> None:
        clocks.n_items += 1
        done.append((item, threading.get_ident()))
        time.sleep(0.001)

    threads.for_each_file(read, range(600))
    assert sorted(item for item, _ in done) == [*range(600)]
    assert (len({thread for _, thread in done}) > 1) == waits
    first = [item for item, _ in done[:4]]
    assert first == [0, 1, 2, 3]


@pytest.mark.parametrize("at_once", [1, 2, 3, 16])
def test_no_more_files_are_read_together_than_allowed(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    clocks = Clocks(0.9)
    monkeypatch.setattr(threads, "time", clocks)
    together = most = 0

    def read(item: int) -> steps.Steps[None]:
        nonlocal together, most
        clocks.n_items += 1
        together += 1
        most = max(most, together)
        yield
        together -= 1

    threads.for_each_file(read, range(300), at_once)
    assert most == at_once


@pytest.mark.parametrize("computed", [0.9, 0.1])
@pytest.mark.parametrize("damaged", [1, 40])
def test_the_error_of_a_file_is_raised(
    monkeypatch: pytest.MonkeyPatch, computed: float, damaged: int
) -> None:
    clocks = Clocks(computed)
    monkeypatch.setattr(threads, "time", clocks)

    def read(item: int) -> None:
        clocks.n_items += 1
        if item == damaged:
            raise OSError(f"{item} is damaged")

    with pytest.raises(OSError, match=f"{damaged} is damaged"):
        threads.for_each_file(read, range(50))
