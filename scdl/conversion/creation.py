"""Archives that are written batch by batch, without a file to convert."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, DTypeLike, NDArray
from tqdm import tqdm

from scdl.archive.casting import Caster
from scdl.archive.gene_names import order_onto
from scdl.archive.schema import INDEX, OBS, Info, names_of, obsm_array, smallest_unsigned
from scdl.conversion.options import TARGET
from scdl.conversion.reporting import ConversionReport, report_of
from scdl.conversion.source_rows import CleanRows, MatrixWriter
from scdl.conversion.staged_tables import StagedTables
from scdl.conversion.tables import United
from scdl.conversion.var_tables import write_var
from scdl.conversion.writing import check_storage
from scdl.errors import ArchiveClosedError, SourceError
from scdl.sources.base import Source, Tally
from scdl.sources.batches import batch_of, is_batch, table_in_memory
from scdl.sources.matrices import Bounds, pieces, scratch_file
from storage_backends import registry
from storage_backends.base import ArrayWriter, Backend
from storage_backends.paths import Path, path_of

if TYPE_CHECKING:
    import pandas as pd

#: Columns of a table.
Columns: TypeAlias = "pd.DataFrame | Mapping[str, ArrayLike] | pa.Table"

_ADVICE = "select and reorder them first, for example adata[:, names]"


def create(
    path: Path,
    *,
    var: Columns | Sequence[str],
    obsm: str | Sequence[str] = (),
    matrix: str = "X",
    data_dtype: DTypeLike = np.float32,
    data_dtype_tolerance: float = 1e-8,
    backend: str | None = None,
    replace: bool = False,
    **options: Any,
) -> NewArchive:
    """Create an archive from cells in memory, batch by batch.

    Use the result in a ``with`` statement. The archive appears at its end, if there was no error;
    otherwise nothing is left behind. Memory use does not depend on the number of batches.

    Parameters
    ----------
    path
        Path of the archive; nothing may exist there.
    var
        The genes: a data frame, dict or Arrow table with one row per gene, or their names.
    obsm
        Keys of dense vectors, which every batch then has.
    matrix
        Matrix of AnnData objects: ``X``, ``raw/X`` or ``layers/<key>``.
    data_dtype, data_dtype_tolerance
        Dtype of the stored values, and its largest rounding error without a warning, as for
        :func:`scdl.convert`.
    backend, replace
        As for :func:`scdl.convert`.
    **options
        Options of the backend, such as ``compression``.

    Returns
    -------
    NewArchive
        Its method ``append`` takes the cells; after the end, ``report`` describes the archive.

    Raises
    ------
    SourceError
        `var` is not a table or a list of names.
    CastError
        There is no such dtype of values.
    ArchiveExistsError, ArchivePlaceError, ArchiveWriteError
        As for :func:`scdl.convert`.

    Examples
    --------
    >>> with scdl.create("new.scdl", var=["CD3E", "MS4A1"]) as archive:
    ...     archive.append(np.array([[3, 0], [0, 1]]), obs={"type": ["T", "B"]})
    >>> archive.report.n_obs
    2
    >>> scdl.open("new.scdl").obs["type"].to_list()
    ['T', 'B']
    """
    path = path_of(path, TARGET)
    backend_ = registry.for_target(path, backend)
    check_storage(backend_.name, options, create)
    genes, keys = _var_table(var), names_of(obsm, "obsm")
    caster = Caster(data_dtype, data_dtype_tolerance)
    writer = registry.create(path, backend_, replace=replace, **options)
    return NewArchive(path, backend_, writer, genes, caster, keys, matrix)


class NewArchive:
    """An archive that is being written; made by :func:`scdl.create`.

    Attributes
    ----------
    report
        Description of the archive once it is complete; None before.
    """

    report: ConversionReport | None = None

    def __init__(
        self,
        path: str,
        backend: Backend,
        writer: ArrayWriter,
        var: pa.Table,
        caster: Caster,
        obsm: Sequence[str],
        matrix: str,
    ) -> None:
        self._path, self._backend, self._writer, self._var = path, backend, writer, var
        self._caster, self._obsm, self._matrix = caster, obsm, matrix
        self._started, self._n_batches, self._is_open = time.perf_counter(), 0, True
        self._unread: dict[str, None] = {}
        self._vectors: dict[str, NDArray[Any]] = {}
        self._bounds = Bounds(target=writer.path)
        self._stack = ExitStack()
        self._stack.enter_context(writer)
        self._clean = CleanRows(smallest_unsigned(var.num_rows - 1), caster, Tally())
        matrix_writer = MatrixWriter(writer, self._clean.dtypes, self._bounds)
        self._rows = self._stack.enter_context(matrix_writer)
        self._obs = StagedTables(self._stack.enter_context(scratch_file(self._bounds)))

    def append(
        self, X: Any, obs: Columns | None = None, obsm: Mapping[str, ArrayLike] | None = None
    ) -> None:
        """Append cells.

        Parameters
        ----------
        X
            Cells x genes: a matrix of SciPy, NumPy or torch, sparse or dense; an AnnData, whose
            genes are matched by name; an Arrow table or batch with the list columns ``indices`` and
            ``data``, whose other columns are obs unless it is given; or an iterator of these.
            Genes may be in any order in a row; repeated entries are summed.
        obs
            Columns of the cells; batches may have different columns, and rows without a value get
            nulls. The index of a data frame is the names of the cells, unless it only numbers them.
        obsm
            Dense vectors of the cells, one array of numbers per key given to :func:`scdl.create`.

        Raises
        ------
        SourceError
            The batch does not fit: number of genes, lengths, keys, or kinds of objects.
        GeneError
            The genes of an AnnData are not those of the archive.
        CastError
            The dtype of the archive cannot represent a value.
        ArchiveClosedError
            The archive is complete, or an earlier batch failed.
        """
        if not self._is_open:
            raise ArchiveClosedError(
                f"{self._path}: nothing can be appended: the archive is complete, or an earlier "
                "batch failed and it was discarded"
            )
        try:
            for source in self._sources(X, obs, obsm):
                self._write(source)
        except BaseException:
            # A part of the batch may have been written.
            self._discard()
            raise

    def _sources(self, given: Any, obs: Any, obsm: Any) -> Iterator[Source]:
        if isinstance(given, Iterator) and not is_batch(given):
            if obs is not None or obsm is not None:
                raise SourceError(
                    f"{self._path}: obs= and obsm= belong to one batch, but an iterator of "
                    "batches was given; append them one by one"
                )
            for batch in given:
                yield from self._sources(batch, None, None)
            return
        where = f"{self._path}: batch {self._n_batches}"
        self._n_batches += 1
        yield batch_of(where, given, self._var, obs, obsm, self._matrix)

    def _write(self, source: Source) -> None:
        order = order_onto(source.var(), self._var, source.path, _ADVICE)
        self._unread |= dict.fromkeys(source.not_carried({*map(obsm_array, self._obsm)}))
        for key in self._obsm:
            self._write_vectors(source, key)
        for rows in self._clean.of(source.matrix, order, self._bounds, tqdm(disable=True)):
            self._rows.write(rows)
        self._obs.add(source.obs)

    def _write_vectors(self, source: Source, key: str) -> None:
        reader = source.vectors(key)
        dtype = np.dtype(np.uint8) if reader.dtype.kind == "b" else reader.dtype.newbyteorder("=")
        like = self._vectors.setdefault(key, np.empty((0, *reader.item_shape), dtype))
        if (like.dtype, like.shape[1:]) != (dtype, tuple(reader.item_shape)):
            raise SourceError(
                f"{source.path}: obsm/{key} is {dtype} {tuple(reader.item_shape)}, but "
                f"{like.dtype} {like.shape[1:]} in the first batch"
            )
        for piece in pieces(reader, self._bounds.values):
            self._writer.append(obsm_array(key), piece.astype(dtype, copy=False))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        if kind is not None:
            self._discard()
            return
        if not self._is_open:
            raise ArchiveClosedError(
                f"{self._path}: the archive was not written, since a batch failed before"
            )
        try:
            info = self._commit()
        finally:
            self._discard()
        self.report = report_of(
            self._path,
            self._writer.path,
            self._backend,
            info,
            self._caster.dtype,
            self._clean.tally,
            self._started,
            not_carried=tuple(self._unread),
            changed_columns=self._changed,
        )

    def _commit(self) -> Info:
        n_obs = sum(piece.num_rows for piece in self._obs.pieces)
        blocks, _ = write_var(self._writer, [(self._var, n_obs, None)])
        self._changed: tuple[str, ...] = ()
        # A table without columns cannot have rows.
        if any(piece.schema.names for piece in self._obs.pieces):
            united = United(self._obs.pieces)
            self._changed = united.warn(self._writer.path)
            self._writer.write_table(OBS, united.reader())
        self._rows.finish()
        info = Info(blocks, is_sorted=True, matrices=(self._matrix,), element="X")
        self._caster.warn(self._writer.path)
        self._writer.commit(info.to_attrs())
        return info

    def _discard(self) -> None:
        """Remove what was written, unless it is published."""
        self._is_open = False
        self._stack.close()


def _var_table(var: Any) -> pa.Table:
    if isinstance(var, Sequence | np.ndarray) and not isinstance(var, str):
        var = {INDEX: pa.array([str(name) for name in var], pa.large_string())}
    table = table_in_memory("var", var)
    if table is None or not table.schema.names:
        raise SourceError("var: expected the genes of the archive, as a table or a list of names")
    return table
