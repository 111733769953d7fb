"""Arrays whose memory is used again: never while something looks at it."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from scdl.kernels import memory as recycled

HAS_TORCH = importlib.util.find_spec("torch") is not None
LARGE = 3 << 20


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def zeros() -> np.ndarray:
    array = recycled.empty(LARGE, "u1")
    array.fill(0)
    return array


@pytest.mark.parametrize("dtype", ["u1", "i4", "f2", "f8"])
@pytest.mark.parametrize("shape", [0, 5, LARGE, (0, 7), (300, 700), (3, 0)], ids=str)
def test_shape_and_dtype(dtype: str, shape: Any) -> None:
    array = recycled.empty(shape, dtype)
    assert array.shape == np.empty(shape).shape
    assert array.dtype == dtype
    assert array.flags.c_contiguous
    assert array.flags.writeable


def test_memory_comes_back_and_is_given_again() -> None:
    array = recycled.empty(LARGE, "u1")
    where = address(array)
    del array
    again = recycled.empty(LARGE // 8 - 5, "f8")
    assert address(again) == where


def test_small_arrays_take_no_large_memory() -> None:
    array = recycled.empty(50 * LARGE, "u1")
    where = address(array)
    del array
    small = recycled.empty(LARGE, "u1")
    assert not where <= address(small) < where + 50 * LARGE


LOOKS: dict[str, Callable[[np.ndarray], Any]] = {
    "slice": lambda array: array[5:6],
    "reshaped": lambda array: array.reshape(2, -1)[1],
    "view": lambda array: array.view("i2"),
    "memoryview": lambda array: memoryview(array)[9:10],
    "asarray": lambda array: np.asarray(array.T),
}


@pytest.mark.parametrize("look", LOOKS)
def test_memory_stays_with_what_looks_at_it(look: str) -> None:
    array = zeros()
    looking = LOOKS[look](array)
    del array
    for _ in range(3):
        recycled.empty(LARGE, "u1").fill(255)
    assert not np.asarray(looking).any()


@pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
def test_memory_stays_with_a_tensor() -> None:
    import torch

    array = zeros()
    where, tensor = address(array), torch.from_numpy(array)[7:].view(torch.int8)
    del array
    other = recycled.empty(LARGE, "u1")
    other.fill(255)
    assert not tensor.any()
    del other, tensor
    given = [recycled.empty(LARGE, "u1") for _ in range(3)]
    assert where in map(address, given)


def test_threads_never_share_memory() -> None:
    def work(number: int) -> int:
        rng = np.random.default_rng(number)
        held: list[tuple[np.ndarray, int]] = []
        wrong = 0
        for step in range(300):
            array = recycled.empty(int(rng.integers(1 << 17, 1 << 19)), "u1")
            mark = (number * 31 + step) % 256
            array.fill(mark)
            held.append((array, mark))
            if len(held) > 4:
                old, expected = held.pop(int(rng.integers(0, 4)))
                wrong += int((old != expected).any())
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 0


def test_idle_memory_is_bounded() -> None:
    many = [recycled.empty(64 << 20, "u1") for _ in range(12)]
    del many
    _kept = recycled.empty(1 << 20, "u1")
    assert sum(memory.nbytes for memory in recycled._idle) <= 512 << 20
    recycled._idle.clear()


def test_the_end_of_the_process_is_quiet() -> None:
    """Arrays of a module outlive the names of this one."""
    script = "import sys; from scdl.kernels import memory; sys.kept = [memory.empty(1 << 20, 'u1')]"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert ended.stderr == b""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_fork_while_another_thread_asks_for_memory() -> None:
    """A child inherits the lock, and not the thread that would release it."""
    with recycled._lock:
        child = os.fork()
        if not child:
            recycled.empty(LARGE, "u1").fill(1)
            os._exit(0)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child waits for a lock that nobody holds")
    assert os.waitstatus_to_exitcode(status) == 0
