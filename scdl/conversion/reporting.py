"""The report of a conversion, when its archive is complete."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from scdl.archive.schema import DATA, Info
from scdl.conversion.options import ConversionReport
from scdl.sources.base import Tally
from storage_backends.base import Backend


def report_of(
    path: str,
    stored: str,
    backend: Backend,
    info: Info,
    dtype: np.dtype[Any],
    tally: Tally,
    started: float,
    **more: Any,
) -> ConversionReport:
    """Describe an archive that was written.

    Parameters
    ----------
    path, stored
        Path as the user gave it, and without links.
    info, dtype, tally
        The cells, the dtype of the values, and their statistics.
    started
        Value of ``time.perf_counter`` at the start.
    more
        Other fields of the report, and those that differ.
    """
    with backend.store.open(stored, hold=False) as store:
        nnz, nbytes, requires = store.spec(DATA).length, store.nbytes, tuple(store.requires)
    fields: dict[str, Any] = {
        "n_obs": info.n_obs,
        "n_vars": [block.n_vars for block in info.blocks],
        "nnz": nnz,
        "matrices": list(info.matrices),
        "reordered": (),
        "differing_var": (),
        "not_carried": (),
        **more,
    }
    return ConversionReport(
        path=path,
        backend=backend.name,
        dtype=dtype.name,
        rows_sorted=tally.rows_sorted,
        duplicates_summed=tally.duplicates_summed,
        max_rounding=tally.max_rounding,
        is_counts=tally.is_counts,
        nbytes=nbytes,
        seconds=time.perf_counter() - started,
        requires=requires,
        **fields,
    )
