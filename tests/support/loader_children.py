"""Run as a script: training in processes of its own, for test_loader_processes.py.

What is given is written to files in the current directory: one line a batch, the rows of its cells.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

import scdl


def write(file: Any, rows: torch.Tensor) -> None:
    print(*rows.tolist(), file=file, flush=True)


def one_rank(archive: str) -> None:
    """An epoch on one of several ranks, in step with the others as in training."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    for name, options in {"shared": {}, "dropped": {"drop_last": True}}.items():
        loader = scdl.SingleCellLoader(scdl.open(archive), 64, **options)
        with Path(f"{name}-{rank}").open("w") as file:
            for batch in loader:
                # Hangs, and ends in an error, where a rank has a batch more than another one.
                torch.distributed.all_reduce(torch.ones(1))
                write(file, batch.rows)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def killed(archive: str, workers: str, after: str) -> None:
    """Begin an epoch, and be killed after some batches, each of which was saved."""
    loader = scdl.SingleCellLoader(scdl.open(archive), 50, workers=int(workers))
    with Path("given").open("w") as file:
        for number, batch in enumerate(loader, 1):
            write(file, batch.rows)
            Path("state.new").write_text(json.dumps(loader.state_dict()))
            os.replace("state.new", "state")
            if number == int(after):
                os.kill(os.getpid(), signal.SIGKILL)


def interrupted(archive: str) -> None:
    """Train for ever; being interrupted, tell which threads are left."""
    loader = scdl.SingleCellLoader(scdl.open(archive), 8, threads=3)
    try:
        while True:
            for _ in loader:
                Path("begun").touch()
    except (KeyboardInterrupt, RuntimeError) as error:
        # CPython may turn an interrupt within `Condition.wait` into this RuntimeError.
        if isinstance(error, RuntimeError) and "un-acquired lock" not in str(error):
            raise
        # One that was just being started is not waited for, and ends by itself.
        deadline = time.monotonic() + 60
        while threading.active_count() > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        names = [thread.name for thread in threading.enumerate()]
        Path("threads").write_text(json.dumps(names))


if __name__ == "__main__":
    {"rank": one_rank, "killed": killed, "interrupted": interrupted}[sys.argv[1]](*sys.argv[2:])
