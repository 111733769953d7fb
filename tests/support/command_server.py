"""Runs commands of scdl in forks of a process that has imported them: one JSON request a line.

A process of its own takes a second to import what a command of milliseconds needs.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import sys

import numpy as np

from scdl import __main__ as commands
from storage_backends import registry
from storage_backends.compute import ranges
from storage_backends.errors import ScdlError

#: What the commands import when they are called.
NEEDED = (
    "anndata",
    "multiprocessing.synchronize",
    "pyarrow.pandas_compat",
    "pyarrow.parquet",
    "pyarrow.vendored.version",
    "pydantic.fields",
    "pydantic.type_adapter",
    "pydantic.types",
    "rich._emoji_codes",
    "rich.console",
    "rich.table",
    "scdl.cli.app",
    "scdl.cli.appending",
    "scdl.cli.bench",
    "scdl.cli.conversion",
    "scdl.cli.copies",
    "scdl.cli.facts",
    "scdl.cli.flattening",
    "scdl.cli.inspection",
    "scdl.cli.main",
    "scdl.cli.manifests",
    "scdl.collection.directory",
    "scdl.collection.verification",
    "scdl.conversion.convert",
    "scdl.conversion.export",
    "scdl.dataset.dataset",
    "scdl.kernels.order",
    "scdl.verification.verify",
    "storage_backends.compute.read_ahead",
    "storage_backends.memmap.gather",
    "storage_backends.memmap.store",
    "storage_backends.memmap.table_files",
    "storage_backends.memmap.tables",
    "storage_backends.memmap.writer",
    "storage_backends.memory",
    "storage_backends.zarr.store",
    "storage_backends.zarr.writer",
    "typer._adapters",
    "typer._click._textwrap",
    "typer._click.decorators",
)

#: Seconds after which a command that goes on is killed.
PATIENCE = 120


def become(request: dict[str, str | list[str]], files: tuple[str, str, str]) -> None:
    """Run a command in this process, which reads and writes these files."""
    signal.alarm(PATIENCE)
    os.chdir(request["cwd"])
    for number, path in enumerate(files):
        flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC if number else os.O_RDONLY
        os.dup2(os.open(path, flags), number)
    sys.argv = [request["name"], *request["arguments"]]
    getattr(commands, request["name"])()


def main() -> None:
    """Answer each request with the exit code of the command."""
    for module in NEEDED:
        # typer does not import pydantic in all versions.
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(module)
    # Both look through the metadata of all packages, which takes longer than most commands.
    with contextlib.suppress(ScdlError):
        registry.detect("absent")
    with contextlib.suppress(ModuleNotFoundError):
        list(importlib.import_module("pydantic.plugin._loader").get_plugins())
    # The first kernel takes numba half a second, also if it is cached.
    ranges.total_length(np.zeros(1, np.int64), np.zeros(1, np.int64), 0)
    # What is frozen stays in memory that forks share, and they do not look for garbage in it.
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        if not (pid := os.fork()):
            become(request, (os.devnull, request["stdout"], request["stderr"]))
            return
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
