"""Runs commands of scdl in forks of a process that has imported them: one JSON request a line.

A process of its own takes a second to import what a command of milliseconds needs.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys

from scdl import __main__ as commands

#: What the commands import when they are called.
NEEDED = (
    "anndata",
    "scdl.cli.main",
    "scdl.conversion.convert",
    "scdl.conversion.export",
    "scdl.conversion.many.directory",
    "scdl.verification.verify",
    "storage_backends.memmap.store",
    "storage_backends.zarr.store",
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
        importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        if not (pid := os.fork()):
            become(request, (os.devnull, request["stdout"], request["stderr"]))
            return
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
