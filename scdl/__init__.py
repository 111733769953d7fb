"""Single-cell data on disk and in training: AnnData files to archives, archives to batches.

Everything listed in ``__all__`` is loaded when it is first used, so that ``import scdl`` is quick
and asks for torch, anndata or numba only where they do something.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from storage_backends import __version__ as __version__

if TYPE_CHECKING:
    from scdl import errors as errors
    from scdl.batch import CellBatch as CellBatch
    from scdl.bionemo import SingleCellMemMapDataset as SingleCellMemMapDataset
    from scdl.collate import (
        collate_neighbor_sparse_matrix_batch as collate_neighbor_sparse_matrix_batch,
    )
    from scdl.collate import collate_sparse_matrix_batch as collate_sparse_matrix_batch
    from scdl.collection import SingleCellCollection as SingleCellCollection
    from scdl.collection import open as open
    from scdl.conversion import ConversionReport as ConversionReport
    from scdl.conversion import convert as convert
    from scdl.dataset import SingleCellDataset as SingleCellDataset
    from scdl.directory_conversion import DirectoryReport as DirectoryReport
    from scdl.directory_conversion import convert_directory as convert_directory
    from scdl.directory_conversion import convert_in_parts as convert_in_parts
    from scdl.loader import SingleCellLoader as SingleCellLoader
    from scdl.member_verification import verify as verify
    from scdl.neighbors import NeighborSamplingStrategy as NeighborSamplingStrategy
    from scdl.splits import Splits as Splits
    from scdl.splits import split as split
    from scdl.transforms import Log1p as Log1p
    from scdl.transforms import NormalizeTotal as NormalizeTotal
    from scdl.verification import VerificationReport as VerificationReport

_HOMES = {
    "CellBatch": "scdl.batch",
    "ConversionReport": "scdl.conversion",
    "DirectoryReport": "scdl.directory_conversion",
    "Log1p": "scdl.transforms",
    "NeighborSamplingStrategy": "scdl.neighbors",
    "NormalizeTotal": "scdl.transforms",
    "SingleCellCollection": "scdl.collection",
    "SingleCellDataset": "scdl.dataset",
    "SingleCellLoader": "scdl.loader",
    "SingleCellMemMapDataset": "scdl.bionemo",
    "Splits": "scdl.splits",
    "VerificationReport": "scdl.verification",
    "collate_neighbor_sparse_matrix_batch": "scdl.collate",
    "collate_sparse_matrix_batch": "scdl.collate",
    "convert": "scdl.conversion",
    "convert_directory": "scdl.directory_conversion",
    "convert_in_parts": "scdl.directory_conversion",
    "open": "scdl.collection",
    "split": "scdl.splits",
    "verify": "scdl.member_verification",
}

__all__ = [
    *_HOMES,
    "__version__",
    "errors",
]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("scdl.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'scdl' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    # A submodule of the same name, such as scdl.convert, must not hide the function.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
