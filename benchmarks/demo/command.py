"""The command: ``python -m benchmarks demo [H5AD] [--dest ARCHIVE]``.

Without a file it converts the 700 blood cells that the package scanpy ships.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from torch.utils.data import DataLoader

import scdl
from benchmarks.common.options import subject_parser

SECONDS = 2.0
"""Least time of training."""


def packaged_h5ad() -> Path:
    """Find the cells inside the installed scanpy, without importing it."""
    try:
        found = [file for file in files("scanpy") or () if file.name == "10x_pbmc68k_reduced.h5ad"]
    except PackageNotFoundError:
        found = []
    if not found:
        sys.exit("No h5ad file was given, and scanpy==1.11.5, which ships one, is not installed.")
    return Path(str(found[0].locate()))


def train(archive: Path) -> None:
    """Read shuffled minibatches as a training loop does, and print the rate."""
    dataset = scdl.open(archive)
    loader = DataLoader(
        dataset, batch_size=64, shuffle=True, collate_fn=scdl.collate_sparse_matrix_batch
    )
    epochs = cells = 0
    start = time.perf_counter()
    while (seconds := time.perf_counter() - start) < SECONDS:
        for batch in loader:
            cells += batch.shape[0]
        epochs += 1
    print(
        f"Trained from shuffled minibatches of 64, as {batch.layout} of shape "
        f"{tuple(batch.shape)}: {cells:,} cells in {epochs} epochs and {seconds:.1f} s, "
        f"{cells / seconds:,.0f} cells/s"
    )


def demo(h5ad: Path, archive: Path) -> None:
    """Convert, show what is stored, train."""
    print(f"Converting {h5ad}")
    print(scdl.convert(h5ad, archive, progress=True))
    print(f"\n$ scdl info {archive}", flush=True)
    subprocess.run([Path(sys.executable).with_name("scdl"), "info", archive], check=True)
    print()
    train(archive)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo."""
    parser = subject_parser(__package__)
    parser.add_argument("h5ad", nargs="?", type=Path, help="default: the cells of scanpy")
    parser.add_argument("--dest", type=Path, help="keep the archive here")
    options = parser.parse_args(arguments)
    h5ad = options.h5ad or packaged_h5ad()
    with tempfile.TemporaryDirectory(prefix="scdl-demo-") as scratch:
        demo(h5ad, options.dest or Path(scratch, h5ad.stem))
    return 0
