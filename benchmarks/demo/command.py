"""Convert real cells to an archive and train from it: ``make demo [H5AD=file] [DEST=archive]``.

Without a file it takes the 700 blood cells that are packaged with scanpy.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from torch.utils.data import DataLoader

import scdl

SECONDS = 2.0
"""Epochs are begun until so much time is over."""


def packaged_h5ad() -> Path:
    """Find the cells inside the installed scanpy, without importing it."""
    try:
        found = [file for file in files("scanpy") or () if file.name == "10x_pbmc68k_reduced.h5ad"]
    except PackageNotFoundError:
        found = []
    if not found:
        sys.exit("No h5ad given, and scanpy==1.11.5, which packages one, is not installed.")
    return Path(str(found[0].locate()))


def train(archive: Path) -> None:
    """Go through shuffled minibatches the way a training loop does, and tell how fast."""
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


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("h5ad", nargs="?", type=Path, help="default: packaged with scanpy")
    parser.add_argument("--dest", type=Path, help="keep the archive here")
    arguments = parser.parse_args()
    # torch says so of every sparse CSR tensor, once.
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
    h5ad = arguments.h5ad or packaged_h5ad()
    with tempfile.TemporaryDirectory(prefix="scdl-demo-") as scratch:
        demo(h5ad, arguments.dest or Path(scratch, h5ad.stem))


if __name__ == "__main__":
    main()
