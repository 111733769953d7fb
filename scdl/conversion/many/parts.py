"""Tasks of a conversion: writing a part of the matrix, or writing the whole archive.

A part contains rows of one matrix in their final form: decoded, sorted and cast. The task that
joins the parts reads everything else (tables, graphs, dense vectors, other elements) from the
sources. The result is the same as that of a conversion in one task.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
import pyarrow as pa

from scdl.archive.casting import DATA_DTYPES, Caster
from scdl.archive.csr import SparseRows
from scdl.archive.tables import NoTable
from scdl.conversion.opening import open_sources
from scdl.conversion.options import ConvertOptions, Meter, Settings
from scdl.conversion.reporting import ConversionReport
from scdl.conversion.writing import write_archive
from scdl.sources import formats
from scdl.sources.archive import StoredRows
from scdl.sources.base import Source, Tally
from scdl.sources.cuts import Cut
from scdl.sources.formats import open_source
from scdl.sources.matrices import Bounds, Matrix
from storage_backends import registry

#: Estimated share of the work that joining the parts takes, for the progress bar.
JOINING = 0.2


@dataclass(frozen=True, eq=False)
class Part:
    """A task that converts a range of rows of a source to a temporary archive.

    Parameters
    ----------
    source, matrix
        Path of the file and name of the matrix.
    cut
        The chosen cells and genes.
    rows
        Half-open range of chosen rows.
    path
        Path of the part.
    caster
        Casts values to the stored dtype.
    options
        Options of the format of the source, ``block_values`` and ``block_rows``, if given.
    nbytes
        Share of the file size, for progress.
    """

    source: str
    matrix: str
    cut: Cut
    rows: tuple[int, int]
    path: str
    caster: Caster
    options: ConvertOptions
    nbytes: float

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    def run(self, meter: Meter) -> Tally:
        """Write the part; replace one that was left by a worker that died."""

        def open_rows(stack: ExitStack) -> list[Source]:
            (source,) = open_source(self.source, self.matrix, stack, self.options)
            source.matrix = self.cut.matrix(source.matrix)
            return [_Rows(source, self.rows)]

        options, backend = self.options, None
        if self.caster.dtype.name not in DATA_DTYPES:
            # The default backend does not store signed integers.
            options, backend = {**options, "compression": "fast", "only_matrix": True}, "zarr"
        # Copied because a caster records statistics, and parts in threads share this one.
        settings = Settings(backend, None, options, copy(self.caster))
        report = write_archive(open_rows, self.path, settings, meter, replace=True)
        return Tally(
            report.rows_sorted, report.duplicates_summed, report.max_rounding, report.is_counts
        )


@dataclass(frozen=True, eq=False)
class Whole:
    """A task that writes an archive from its sources or from their converted parts.

    Parameters
    ----------
    sources
        Paths of the files.
    labels
        Origin of each file, as stored in the archive.
    path
        Path of the archive.
    settings
        Settings of the conversion.
    nbytes
        Share of the total file size, for progress.
    parts
        For each source, the paths of its parts in order and the tally of their values. Empty if the
        sources are not divided.
    """

    sources: tuple[str, ...]
    labels: tuple[str, ...]
    path: str
    settings: Settings
    nbytes: float
    parts: tuple[tuple[tuple[str, ...], Tally], ...] = ()

    def run(self, meter: Meter) -> ConversionReport:
        """Write the archive; replace one that was left by a worker that died."""
        return write_archive(self._open, self.path, self.settings, meter, replace=True)

    def _open(self, stack: ExitStack) -> list[Source]:
        opened = open_sources(self.sources, self.settings, self.path, stack)
        for source, label in zip(opened, self.labels, strict=True):
            source.label = label
        if self.parts:
            for source, (paths, tally) in zip(opened, self.parts, strict=True):
                source.matrix = _Joined(source.matrix, paths, stack)
                source.tally = tally
        return opened


def parts_of(
    source: Source, file: str, path: str, most_bytes: float, caster: Caster, settings: Settings
) -> list[Part]:
    """Divide a source into parts of about `most_bytes` each, if rows can be read separately.

    Parameters
    ----------
    source, file
        A source, and the path of its file.
    path
        Common prefix of the paths of the parts.
    most_bytes
        Bytes of the file per part.
    caster
        Casts values to the stored dtype.
    settings
        Settings of the conversion.
    """
    size = size_of(file)
    n = max(1, min(math.ceil(size / max(most_bytes, 1)), source.n_obs))
    if source.n_obs and source.matrix.part(0, source.n_obs - 1) is None:
        # Rows can only be read by sorting the whole matrix, which every part would repeat.
        n = 1
    edges = np.linspace(0, source.n_obs, n + 1).astype(np.int64).tolist()
    names = {*formats.options(), "block_values", "block_rows"}
    given = {name: value for name, value in settings.options.items() if name in names}
    options = cast(ConvertOptions, given)
    return [
        Part(
            file,
            source.matrix_name,
            source.cut,
            rows,
            f"{path}-{i}",
            caster,
            options,
            (1 - JOINING) * size / n,
        )
        for i, rows in enumerate(pairwise(edges))
    ]


def size_of(path: str) -> int:
    """Bytes of a file, or of all files in a directory; 0 if there is none."""
    if not os.path.isdir(path):
        return os.path.getsize(path) if os.path.exists(path) else 0
    files = (os.path.join(at, name) for at, _, names in os.walk(path) for name in names)
    return sum(os.path.getsize(file) for file in files if os.path.exists(file))


class _Rows(Source):
    """A range of rows of a source; only its matrix."""

    def __init__(self, source: Source, rows: tuple[int, int]) -> None:
        matrix = source.matrix.part(*rows)
        assert matrix is not None, "parts_of divides no other matrices"
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
    """The rows of a matrix, read from its parts in order."""

    def __init__(self, whole: Matrix, paths: Sequence[str], stack: ExitStack) -> None:
        # Keep the dtype of the source, from which the stored dtype is derived.
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
