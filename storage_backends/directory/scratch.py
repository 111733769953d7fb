"""Directories for trial archives, which no process leaves behind for long."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

from storage_backends.directory.locks import create_locked, unlock
from storage_backends.directory.publication import hidden_beside
from storage_backends.directory.staging import remove_leftovers


@contextlib.contextmanager
def scratch_beside(target: str) -> Iterator[str]:
    """Context manager: a hidden directory beside a target that is removed at the end.

    It is in the system's temporary directory if that of the target is missing or not writable. It
    has the name and the lock of a staging directory: if the process is killed, whoever writes the
    target next, or makes such a directory for it, removes this one.
    """
    parent, name = os.path.split(os.path.abspath(target))
    if not os.access(parent, os.W_OK):
        parent = tempfile.gettempdir()
    target = os.path.join(parent, name)
    remove_leftovers(target)
    path, descriptor = create_locked(lambda: hidden_beside(target), 0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        unlock(descriptor)
