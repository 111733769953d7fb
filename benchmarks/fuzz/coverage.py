"""Inputs chosen by the code that they reach, with atheris if it is installed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.fuzz.targets import TARGETS

_CHILD = """
import sys, tempfile
from pathlib import Path
import atheris
with atheris.instrument_imports(include=["scdl", "storage_backends"]):
    from benchmarks.fuzz.targets import TARGETS
    from benchmarks.fuzz.workers import attempt
name = sys.argv.pop(1)
parse = TARGETS[name].parser(Path(tempfile.mkdtemp()))
def one(data):
    problem = attempt(parse, data)
    if problem:
        raise RuntimeError(problem)
atheris.Setup(sys.argv, one)
atheris.Fuzz()
"""


def run(target: str, inputs: int, seconds: float, found: Path) -> bool:
    """Let atheris try a target in a process of its own; whether there are no findings."""
    found.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        corpus = Path(place) / "corpus"
        corpus.mkdir()
        for i, data in enumerate(TARGETS[target].corpus(Path(place))):
            (corpus / str(i)).write_bytes(data)
        limits = [f"-runs={inputs}", "-rss_limit_mb=2048", "-timeout=20"]
        limits += [f"-max_total_time={int(seconds)}"] if seconds < float("inf") else []
        saved = f"-artifact_prefix={found / target}-"
        command = [sys.executable, "-c", _CHILD, target, *limits, saved, str(corpus)]
        return subprocess.run(command, check=False).returncode == 0
