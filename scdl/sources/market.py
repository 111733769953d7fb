"""Matrices in Matrix Market form, which may be compressed, as sources.

Source: "Text File Formats" of Matrix Market.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from isal import igzip, isal_zlib
from numpy.typing import NDArray

from scdl.archive.csr import SparseRows, spans
from scdl.errors import SourceError
from scdl.sources.damage import CUT_SHORT, readable_by
from scdl.sources.matrices import Bounds, Matrix, check_ids
from scdl.sources.transposed import ByEntry, Entries
from storage_backends.compute.threads import prefetch

#: Bytes of text to parse at once.
PIECE = 4 << 20
#: Errors of reading and decompressing; the stubs of isal have no types of errors.
_DAMAGED: Any = (OSError, EOFError, pa.ArrowException, isal_zlib.error)
readable = partial(readable_by, CUT_SHORT, errors=_DAMAGED)
#: Powers of ten that float64 represents exactly, and its largest exact integer.
_POWERS, _EXACT = 10.0 ** np.arange(23), 1 << 53


class _Header(NamedTuple):
    """What the first lines of a file say.

    Attributes
    ----------
    has_values, is_real
        Whether entries have a value, and whether these are real numbers.
    n_genes, n_cells, n_values
        Numbers of rows, columns and entries.
    """

    has_values: bool
    is_real: bool
    n_genes: int
    n_cells: int
    n_values: int


class MarketMatrix(ByEntry):
    """A matrix of genes by cells in Matrix Market form, read as cells by genes.

    Cell Ranger writes entries cell by cell; those of files with another order are sorted on disk.

    Parameters
    ----------
    where
        Path of the file, which may be compressed.
    shape
        Expected numbers of cells and of genes.
    """

    def __init__(self, where: str, shape: tuple[int, int]) -> None:
        self.where, self.shape = where, shape
        with _pieces(where) as pieces:
            self._header, pieces = _header(where, pieces)
            _, is_real, n_genes, n_cells, self.size = self._header
            if (n_cells, n_genes) != shape:
                raise SourceError(
                    f"{where}: the matrix has {n_genes} genes and {n_cells} cells, expected "
                    f"{shape[1]} and {shape[0]}, as many as the files beside it list"
                )
            self.dtype = np.dtype(np.float64 if is_real else np.int64)
            first = next((self._parsed(piece) for piece in pieces), None)
        # The first rows can be read alone, then.
        self.by_rows = first is None or bool((first.rows[1:] >= first.rows[:-1]).all())

    def blocks(self, bounds: Bounds) -> Iterator[SparseRows]:
        if not self.by_rows:
            yield from super().blocks(bounds)
            return
        empty, begin = np.empty(0, np.int64), 0
        left: list[NDArray[Any]] = [empty, empty, empty.astype(self.dtype)]
        for entries in self._entries(bounds, with_values=True):
            left = [np.concatenate(pair) for pair in zip(left, entries, strict=True)]
            rows = left[0]
            if rows[0] < begin or (rows[1:] < rows[:-1]).any():
                raise SourceError(
                    f"{self.where}: its first entries are in the order of cells, but later ones "
                    "are not; sort the lines by cell, then convert again"
                )
            # The last cell may continue.
            last = int(rows[-1])
            yield from _rows(left, begin, last, bounds)
            rest = np.searchsorted(rows, last)
            left, begin = [part[rest:] for part in left], last
        yield from _rows(left, begin, self.shape[0], bounds)

    def chosen(self, rows: NDArray[np.int64], bounds: Bounds) -> Iterator[SparseRows]:
        if self.by_rows:
            return Matrix.chosen(self, rows, bounds)
        return super().chosen(rows, bounds)

    def _entries(self, bounds: Bounds, *, with_values: bool) -> Iterator[Entries]:
        n = 0
        with _pieces(self.where) as pieces:
            _, pieces = _header(self.where, pieces)
            for entries in map(self._parsed, prefetch(pieces)):
                check_ids(self.where, entries.rows, self.shape[0], "cells")
                check_ids(self.where, entries.columns, self.shape[1], "genes")
                n += len(entries.rows)
                if len(entries.rows):
                    yield entries
        if n != self.size:
            raise SourceError(
                f"{self.where}: found {n} values, expected {self.size}; the file is cut short or "
                "damaged"
            )

    def _parsed(self, piece: bytes) -> Entries:
        """Parse complete lines."""
        from scdl.kernels import market

        text = np.frombuffer(piece, np.uint8)
        n_lines = np.count_nonzero(text == ord("\n"))
        genes, cells, mantissas, at = np.empty((4, n_lines), np.int64)
        exponents = np.empty(n_lines, np.int16)
        has_values = self._header.has_values
        n, bad = market.parse_entries(text, has_values, genes, cells, mantissas, exponents, at)
        if bad >= 0:
            line = piece[bad:].split(b"\n", 1)[0].decode(errors="replace")
            raise SourceError(
                f"{self.where}: expected a line of a gene, a cell and a value, found {line!r:.100}"
            )
        values = self._numbers(piece, mantissas[:n], exponents[:n], at)
        return Entries(cells[:n] - 1, genes[:n] - 1, values)

    def _numbers(
        self,
        piece: bytes,
        mantissas: NDArray[np.int64],
        exponents: NDArray[np.int16],
        at: NDArray[np.int64],
    ) -> NDArray[Any]:
        """The values of entries, rounded correctly; others than plain numbers by Python."""
        if self.dtype.kind == "i":
            values, slow = mantissas, exponents != 0
        else:
            size = np.abs(exponents)
            # Both operands are exact, so that the result is rounded once.
            slow = (size >= len(_POWERS)) | (np.abs(mantissas) > _EXACT)
            power, values = _POWERS[np.where(slow, 0, size)], mantissas.astype(np.float64)
            values = np.where(exponents < 0, values / power, values * power)
            # A mantissa of an integer has lost the sign of zero.
            slow |= mantissas == 0
        for i in np.flatnonzero(slow).tolist():
            word = piece[at[i] :].split(b"\n", 1)[0].decode(errors="replace").strip()
            try:
                values[i] = self.dtype.type(float(word) if self.dtype.kind == "f" else word)
            except ValueError:
                kind = "a number" if self.dtype.kind == "f" else "an integer"
                raise SourceError(f"{self.where}: expected {kind}, found {word!r:.100}") from None
        return values


def _rows(
    entries: Sequence[NDArray[Any]], begin: int, end: int, bounds: Bounds
) -> Iterator[SparseRows]:
    """Rows ``[begin, end)`` of entries that are sorted by row."""
    rows, columns, values = entries
    for start, stop in spans(end, bounds.rows, begin):
        ends = np.searchsorted(rows, np.arange(start, stop + 1))
        part = slice(ends[0], ends[-1])
        yield SparseRows(values[part], columns[part], ends - ends[0])


@contextmanager
def _pieces(path: str) -> Iterator[Iterator[bytes]]:
    """The text of a file, which may be compressed, in pieces that end with a line."""
    with readable(path), opened(path) as stream:
        yield _lines(path, stream)


def opened(path: str) -> Any:
    """A file, which may be compressed, for reading."""
    if path.endswith(".gz"):
        # Three times as fast as zlib, which Arrow uses.
        return igzip.IGzipFile(path)  # type: ignore[no-untyped-call]
    return pa.input_stream(path, compression="detect")


def _lines(path: str, stream: Any) -> Iterator[bytes]:
    whole = left = b""
    with readable(path):
        while piece := stream.read(PIECE):
            head, newline, tail = piece.rpartition(b"\n")
            if newline:
                if whole:
                    yield whole
                whole, left = left + head + newline, b""
            left += tail
    # The last line, which may lack its end, belongs to the last piece.
    if whole or left:
        yield whole + left + (b"\n" if left else b"")


def _header(path: str, pieces: Iterator[bytes]) -> tuple[_Header, Iterator[bytes]]:
    """Parse the first lines; also return the text after them."""
    text = next(pieces, b"")
    title = text.split(b"\n", 1)[0].decode(errors="replace")
    words = title.lower().split()
    if words[:3] != ["%%matrixmarket", "matrix", "coordinate"] or len(words) != 5:
        raise SourceError(
            f"{path}: expected '%%MatrixMarket matrix coordinate' in its first line, found "
            f"{title!r:.100}"
        )
    kind, symmetry = words[3:]
    if kind not in ("integer", "real", "pattern") or symmetry != "general":
        raise SourceError(
            f"{path}: expected a general matrix of integer, real or pattern values, found "
            f"{symmetry} {kind}"
        )
    while text[:1] in (b"%", b"\n"):
        _, _, text = text.partition(b"\n")
    line, _, text = text.partition(b"\n")
    try:
        n_genes, n_cells, n = map(int, line.split())
    except ValueError:
        raise SourceError(
            f"{path}: expected the numbers of genes, cells and values below the comments, found "
            f"{line.decode(errors='replace')!r:.100}"
        ) from None
    header = _Header(kind != "pattern", kind == "real", n_genes, n_cells, n)
    return header, itertools.chain([text], pieces)
