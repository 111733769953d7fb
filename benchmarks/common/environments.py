"""Environments of libraries that cannot share that of scdl."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path


def peer_python(
    environment: Path, packages: Sequence[str], *, make: bool
) -> tuple[Path | None, str]:
    """Find the interpreter of a library; `make` creates its environment if it is missing.

    Parameters
    ----------
    packages
        The library, and what it needs in certain versions.

    Returns
    -------
    tuple
        The interpreter, or None and the reason.
    """
    python = environment.absolute() / "bin/python"
    installed = environment / ".installed"
    if installed.is_file() and installed.read_text().split() == list(packages):
        return python, ""
    if not make:
        return None, f"{environment.name} does not have {packages[0]}"
    base = _newer_python()
    if base is None:
        return None, "it needs Python 3.12 or newer, and there is none on this machine"
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages]
    for command in ([base, "-m", "venv", "--clear", environment], install):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode:
            why = (done.stderr.strip() or "no message").splitlines()[-1]
            return None, f"its environment cannot be made: {why}"
    installed.write_text("\n".join(packages) + "\n")
    return python, ""


def _newer_python() -> str | None:
    """Newest Python that all of them support, found as by the target test-next of the Makefile."""
    root = os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv"))
    for version in ("3.13", "3.12"):
        found = [
            shutil.which(f"python{version}"),
            *glob.glob(f"{root}/versions/{version}.*/bin/python"),
        ]
        for python in filter(None, found):
            # pyenv's shims exist for versions that are not active.
            if not subprocess.run(
                [python, "-c", "import ensurepip"], capture_output=True
            ).returncode:
                return python
    return None
