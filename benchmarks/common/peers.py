"""The two libraries that are compared, behind one interface.

Each is imported on use, so that measurements of one never load the other.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

BATCH_SIZE = 1_024


class Scdl:
    """This project.

    Attributes
    ----------
    name
        Short name, for the command line and file names.
    module
        The module that a user imports.
    distribution
        Name of the package to install.
    """

    name = "scdl"
    module = "scdl"
    distribution = "scdl-store"

    @property
    def title(self) -> str:
        """Name and version, for the report."""
        try:
            return f"{self.distribution} {metadata.version(self.distribution)}"
        except metadata.PackageNotFoundError:
            return f"{self.distribution} (not installed)"

    def prepare(self) -> None:
        """Import all that `convert` needs."""
        import scdl

        _ = scdl.convert  # resolved on first use

    def convert(self, source: Path, target: Path) -> None:
        """Write an archive of the raw counts of an h5ad file."""
        import scdl

        scdl.convert(source, target, backend="memmap", progress=False)

    def open(self, path: Path) -> Any:
        """Open an archive."""
        import scdl

        return scdl.open(path)

    def batches(self, dataset: Any, seed: int) -> Iterator[int]:
        """Read all cells once, in random order, in batches of `BATCH_SIZE`; yield their sizes."""
        order = np.random.default_rng(seed).permutation(len(dataset))
        for start in range(0, len(order), BATCH_SIZE):
            batch = dataset.read_rows(order[start : start + BATCH_SIZE])
            yield len(batch.indptr) - 1


class BionemoScdl(Scdl):
    """The reference package, by its documented interface."""

    name = "bionemo"
    module = "bionemo.scdl.io.single_cell_memmap_dataset"
    distribution = "bionemo-scdl"

    def prepare(self) -> None:
        importlib.import_module(self.module)

    def convert(self, source: Path, target: Path) -> None:
        self._dataset_class()(str(target), str(source))

    def open(self, path: Path) -> Any:
        return self._dataset_class()(str(path))

    def batches(self, dataset: Any, seed: int) -> Iterator[int]:
        import torch
        from bionemo.scdl.util.torch_dataloader_utils import collate_sparse_matrix_batch

        loader = torch.utils.data.DataLoader(
            dataset,
            batch_size=BATCH_SIZE,
            shuffle=True,
            collate_fn=collate_sparse_matrix_batch,
            generator=torch.Generator().manual_seed(seed),
        )
        for batch in loader:
            yield batch.shape[0]

    def _dataset_class(self) -> Any:
        return importlib.import_module(self.module).SingleCellMemMapDataset


OURS, THEIRS = Scdl(), BionemoScdl()
PEERS: dict[str, Scdl] = {peer.name: peer for peer in (OURS, THEIRS)}
