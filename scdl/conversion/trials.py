"""How long a conversion would take, from conversions of parts of its sources that are removed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from scdl.archive.casting import Caster
from scdl.archive.tables import NoTable
from scdl.conversion.options import ConvertOptions, Settings
from scdl.conversion.reporting import ConversionReport
from scdl.conversion.writing import write_archive
from scdl.errors import ScdlError
from scdl.sources.base import Source
from scdl.sources.chosen import Chosen
from scdl.sources.chosen_tables import taken
from scdl.sources.cuts import Cut
from scdl.sources.matrices import Matrix
from scdl.sources.wrapped import Wrapped
from storage_backends.compute.warning_filters import ignore_warnings
from storage_backends.directory.scratch import scratch_beside
from storage_backends.paths import absolute

#: Stored values of a conversion that tells what one takes however few there are, of one that reads
#: a block, and of one that reads while it writes.
_FEW, _BLOCK, _BLOCKS = 1 << 13, 1 << 20, 1 << 22
#: If a block takes more seconds, it is the last conversion. A block alone may have too few cells to
#: tell how long the fitting of tables takes, which needs a certain number of them.
_SECONDS = 2.0


class _Trial(NamedTuple):
    """Stored values and seconds of a conversion."""

    n_values: int
    seconds: float


def seconds_of(
    sources: Sequence[Source],
    path: str,
    settings: Settings,
    caster: Caster,
    nnz: int,
    *,
    only_matrix: bool,
) -> float | None:
    """Seconds that the conversion of open sources would take on this machine now.

    The first cells are converted to a hidden directory beside `path`, or in the system's temporary
    directory if that is not writable, which is removed. Of a matrix that is not stored by rows,
    the first entries are converted.

    Parameters
    ----------
    path, settings
        As for the conversion.
    caster
        Caster of the conversion, whose dtype is used.
    nnz
        Number of stored values of all sources in the archive.
    only_matrix
        Whether elements that are not asked for are left out of the conversions.

    Returns
    -------
    float or None
        None if not even a part of a matrix can be read without reading all of it.
    """
    part = _part_of(sources)
    if part is None:
        return None
    options: ConvertOptions = {**settings.options}
    if only_matrix:
        options["only_matrix"] = True
    dtype = caster.dtype

    def convert(n_values: int) -> _Trial:
        taken = part(n_values / max(nnz, 1))
        own = dataclasses.replace(settings, options=options, caster=Caster(dtype, np.inf))
        name = os.path.join(scratch, os.path.basename(path))
        with ignore_warnings(""):
            report: ConversionReport = write_archive(lambda _: taken, name, own, replace=True)
        return _Trial(report.nnz, report.seconds)

    with scratch_beside(absolute(path)) as scratch:
        try:
            # The first one compiles, and does not count.
            convert(_FEW)
            few, many = convert(_FEW), convert(_BLOCK)
            if many.n_values < nnz and many.seconds < _SECONDS:
                few, many = many, convert(_BLOCKS)
        except ScdlError:
            return None
    if many.n_values >= nnz:
        return many.seconds
    added, longer = many.n_values - few.n_values, many.seconds - few.seconds
    if added <= 0 or longer <= 0:
        # A machine that does other work may take longer for fewer values.
        added, longer = max(many.n_values, 1), many.seconds
    return many.seconds + longer / added * (nnz - many.n_values)


def _part_of(sources: Sequence[Source]) -> Callable[[float], list[Source]] | None:
    """A function that gives a share of each source; None if that needs reading all of one."""
    matrices = [matrix for source in sources for matrix in (source.matrix, *source.fields.values())]
    if all(matrix.by_rows for matrix in matrices):
        return lambda share: [_first_cells(source, share) for source in sources]
    if all(source.matrix.beginning(1) for source in sources):
        return lambda share: [_FirstEntries(source, share) for source in sources]
    return None


def _first_cells(source: Source, share: float) -> Source:
    n = min(source.n_obs, max(1, round(share * source.n_obs)))
    rows = np.arange(n)
    cells = Chosen(source, Cut(rows))
    cells.labelled = None if source.labelled is None else taken(source.labelled, rows)
    return cells


class _FirstEntries(Wrapped):
    """A source with the first entries of its matrix, and nothing else of its cells."""

    def __init__(self, source: Source, share: float) -> None:
        super().__init__(source)
        matrix = source.matrix.beginning(max(1, round(share * source.matrix.size)))
        assert isinstance(matrix, Matrix)
        self.matrix, self.fields = matrix, {}
        self.obs, self.labelled = NoTable(source.n_obs), None
