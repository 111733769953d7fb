"""Archives as work for several processes: whole, or in parts of rows that are joined.

A part holds rows of one matrix as they will be stored: decoded, sorted and cast. The task that
joins the parts reads everything else (tables, graphs, vectors, whatever an AnnData has besides)
from the sources, as a conversion in one go does, so that the result is the same.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from scdl.archive.casting import DATA_DTYPES, Caster
from scdl.archive.csr import SparseRows
from scdl.archive.tables import NoTable
from scdl.conversion.convert import open_sources, write_archive
from scdl.conversion.options import ConversionReport, ConvertOptions, Meter, Settings
from scdl.sources.archive import StoredRows
from scdl.sources.base import Source, Tally
from scdl.sources.h5ad import H5adFile
from scdl.sources.matrices import Bounds, Matrix
from storage_backends import registry

#: Share of the work on an archive that joining its parts is, for the bar.
JOINING = 0.2


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of a source, to be converted to an archive of their own.

    Parameters
    ----------
    source, matrix
        The file, and the matrix that is taken of it.
    rows
        Half-open range.
    path
        Where the part goes.
    caster
        Makes values of the stored type.
    options
        How much is handled at once.
    nbytes
        Bytes of the file that it stands for.
    """

    source: str
    matrix: str
    rows: tuple[int, int]
    path: str
    caster: Caster
    options: ConvertOptions
    nbytes: float

    def run(self, meter: Meter) -> Tally:
        """Write the part; what was written before is replaced."""

        def open_rows(stack: ExitStack) -> list[Source]:
            return [_Rows(stack.enter_context(H5adFile(self.source, self.matrix)), self.rows)]

        options, backend = self.options, None
        if self.caster.dtype.name not in DATA_DTYPES:
            # The default backend has no place for signed integers.
            options, backend = {**options, "compression": "fast", "only_matrix": True}, "zarr"
        # A caster remembers how far it rounded; in threads, parts share this one.
        settings = Settings(backend, None, options, copy(self.caster))
        report = write_archive(open_rows, self.path, settings, meter, replace=True)
        return Tally(
            report.rows_sorted, report.duplicates_summed, report.max_rounding, report.is_counts
        )


@dataclass(frozen=True)
class Whole:
    """An archive, to be written of its sources, or of the parts that were made of them.

    Parameters
    ----------
    sources
        The files.
    labels
        What the archive remembers of each as its origin.
    path
        Where the archive goes.
    settings
        Of the conversion.
    nbytes
        Bytes of the files that it stands for.
    parts
        Of each source its parts in order, and what was done to their values; empty: none.
    """

    sources: tuple[str, ...]
    labels: tuple[str, ...]
    path: str
    settings: Settings
    nbytes: float
    parts: tuple[tuple[tuple[str, ...], Tally], ...] = ()

    def run(self, meter: Meter) -> ConversionReport:
        """Write the archive; what was written before is replaced."""
        return write_archive(self._open, self.path, self.settings, meter, replace=True)

    def _open(self, stack: ExitStack) -> list[Source]:
        opened = open_sources(self.sources, self.settings, stack)
        for source, label in zip(opened, self.labels, strict=True):
            source.label = label
        if self.parts:
            for source, (paths, tally) in zip(opened, self.parts, strict=True):
                source.matrix = _Joined(source.matrix, paths, stack)
                source.tally = tally
        return opened


def parts_of(
    source: Source, path: str, most_bytes: float, caster: Caster, settings: Settings
) -> list[Part]:
    """A source in parts of at most about so many bytes, where rows can be read on their own.

    Parameters
    ----------
    source
        An h5ad file.
    path
        Where the parts go: what their names begin with.
    most_bytes
        Bytes of the file from which on it is worth more than one part.
    caster
        Makes values of the type in which they will be stored.
    settings
        Of the conversion.
    """
    size = os.path.getsize(source.path)
    n = max(1, min(math.ceil(size / max(most_bytes, 1)), source.n_obs))
    if source.n_obs and source.matrix.part(0, source.n_obs - 1) is None:
        # Each part of a matrix that is sorted as a whole would sort all of it.
        n = 1
    edges = np.linspace(0, source.n_obs, n + 1).astype(np.int64).tolist()
    bounds: ConvertOptions = {}
    if "block_values" in settings.options:
        bounds["block_values"] = settings.options["block_values"]
    if "block_rows" in settings.options:
        bounds["block_rows"] = settings.options["block_rows"]
    return [
        Part(
            source.path,
            source.matrix_name,
            rows,
            f"{path}-{i}",
            caster,
            bounds,
            (1 - JOINING) * size / n,
        )
        for i, rows in enumerate(pairwise(edges))
    ]


class _Rows(Source):
    """Rows of the matrix of a source, and nothing else of it."""

    def __init__(self, source: Source, rows: tuple[int, int]) -> None:
        matrix = source.matrix.part(*rows)
        assert matrix is not None, "only what can be read in parts is divided"
        self._source = source
        self.path, self.label = source.path, source.label
        self.matrix_name, self.element = source.matrix_name, source.element
        self.matrix = matrix
        self.obs = NoTable(rows[1] - rows[0])

    @property
    def n_vars(self) -> int:
        return self._source.n_vars

    def var(self) -> pa.Table:
        return self._source.var()


class _Joined(Matrix):
    """The rows of a matrix as parts hold them, of the type that its values have in the end."""

    def __init__(self, whole: Matrix, paths: Sequence[str], stack: ExitStack) -> None:
        # The type that the source has decides on the one that is stored.
        self.where, self.shape, self.dtype = whole.where, whole.shape, whole.dtype
        stores = [stack.enter_context(registry.open_archive(p)) for p in paths]
        n_obs = [store.spec("indptr").length - 1 for store in stores]
        self._parts = [
            StoredRows(store, "", (0, n), whole.shape[1])
            for store, n in zip(stores, n_obs, strict=True)
        ]
        self.size = sum(part.size for part in self._parts)

    def blocks(self, bounds: Bounds) -> Iterator[SparseRows]:
        for part in self._parts:
            yield from part.blocks(bounds)
