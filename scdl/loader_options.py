"""Options and figures of a loader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from numpy.typing import NDArray

from scdl.errors import LoaderError
from scdl.genes import Duplicates, Genes, Missing
from scdl.training_batch import Layout, Tokenizer


class LoaderOptions(TypedDict, total=False):
    """What of the cells a loader gives, and how; every key may be left out."""

    layout: Layout
    dtype: torch.dtype | str | None
    length: int | None
    by_value: bool
    obs: Sequence[str]
    obsm: Sequence[str]
    matrix: str | None
    genes: Genes | None
    gene_column: str | None
    missing: Missing
    duplicates: Duplicates
    neighbors: int
    transforms: Sequence[Any]
    tokenizer: Tokenizer | None
    block: int | None
    buffer: int | None
    memory_mb: float
    weights: NDArray[Any] | None
    by: str | None
    control: Any
    match: str | None
    prefetch: int
    threads: int
    workers: int
    rank: int | None
    world_size: int | None


DEFAULTS: LoaderOptions = {
    "layout": "csr",
    "dtype": torch.float32,
    "length": None,
    "by_value": False,
    "obs": (),
    "obsm": (),
    "matrix": None,
    "genes": None,
    "gene_column": None,
    "missing": "error",
    "duplicates": "error",
    "neighbors": 0,
    "transforms": (),
    "tokenizer": None,
    "block": None,
    "buffer": None,
    "memory_mb": 256.0,
    "weights": None,
    "by": None,
    "control": None,
    "match": None,
    "prefetch": 4,
    "threads": 2,
    "workers": 0,
    "rank": None,
    "world_size": None,
}


@dataclass(frozen=True)
class LoaderStats:
    """What a loader gave in its last epoch, finished or not.

    Parameters
    ----------
    cells, batches
        Given so far.
    nbytes
        Bytes of the stored values and column ids of these cells.
    seconds
        Since the epoch began.
    waited
        Seconds of these in which the consumer waited for a batch.
    """

    cells: int = 0
    batches: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    @property
    def cells_per_second(self) -> float:
        """Cells a second."""
        return self.cells / self.seconds if self.seconds else 0.0

    @property
    def wait_share(self) -> float:
        """Share of the time in which the consumer waited."""
        return self.waited / self.seconds if self.seconds else 0.0


def place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and number of ranks: as given, or those of the process group."""
    if (rank is None) != (world_size is None):
        raise LoaderError("rank and world_size are given together, or neither")
    if rank is None or world_size is None:
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1
    if not 0 <= rank < world_size:
        raise LoaderError(f"rank must be in [0, {world_size}), not {rank}")
    return rank, world_size


def torch_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype of torch, also by name."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise LoaderError(f"dtype must be one of torch, such as 'float32', not {dtype!r}")
    return found
