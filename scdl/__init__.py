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
    from scdl.archive.neighbor_choice import NeighborSamplingStrategy as NeighborSamplingStrategy
    from scdl.collection.collection import SingleCellCollection as SingleCellCollection
    from scdl.collection.directory import convert_directory as convert_directory
    from scdl.collection.verification import verify as verify
    from scdl.conversion.convert import convert as convert
    from scdl.conversion.creation import create as create
    from scdl.conversion.many.in_parts import convert_in_parts as convert_in_parts
    from scdl.conversion.many.report import DirectoryReport as DirectoryReport
    from scdl.conversion.reporting import ConversionReport as ConversionReport
    from scdl.dataset.batch import CellBatch as CellBatch
    from scdl.dataset.bionemo import SingleCellMemMapDataset as SingleCellMemMapDataset
    from scdl.dataset.collate import (
        collate_neighbor_sparse_matrix_batch as collate_neighbor_sparse_matrix_batch,
    )
    from scdl.dataset.collate import collate_sparse_matrix_batch as collate_sparse_matrix_batch
    from scdl.dataset.dataset import SingleCellDataset as SingleCellDataset
    from scdl.inspection.survey import DataReport as DataReport
    from scdl.inspection.survey import report as report
    from scdl.opening import open as open
    from scdl.sources.mudata import modalities as modalities
    from scdl.training.loader import SingleCellLoader as SingleCellLoader
    from scdl.training.splits import Splits as Splits
    from scdl.training.splitting import split as split
    from scdl.training.transforms import Log1p as Log1p
    from scdl.training.transforms import NormalizeTotal as NormalizeTotal
    from scdl.verification.verify import VerificationReport as VerificationReport

_HOMES = {
    "CellBatch": "scdl.dataset.batch",
    "ConversionReport": "scdl.conversion.reporting",
    "DataReport": "scdl.inspection.survey",
    "DirectoryReport": "scdl.conversion.many.report",
    "Log1p": "scdl.training.transforms",
    "NeighborSamplingStrategy": "scdl.archive.graph",
    "NormalizeTotal": "scdl.training.transforms",
    "SingleCellCollection": "scdl.collection.collection",
    "SingleCellDataset": "scdl.dataset.dataset",
    "SingleCellLoader": "scdl.training.loader",
    "SingleCellMemMapDataset": "scdl.dataset.bionemo",
    "Splits": "scdl.training.splits",
    "VerificationReport": "scdl.verification.verify",
    "collate_neighbor_sparse_matrix_batch": "scdl.dataset.collate",
    "collate_sparse_matrix_batch": "scdl.dataset.collate",
    "convert": "scdl.conversion.convert",
    "convert_directory": "scdl.collection.directory",
    "convert_in_parts": "scdl.conversion.many.in_parts",
    "modalities": "scdl.sources.mudata",
    "create": "scdl.conversion.creation",
    "open": "scdl.opening",
    "report": "scdl.inspection.survey",
    "split": "scdl.training.splitting",
    "verify": "scdl.collection.verification",
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
