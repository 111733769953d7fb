"""Small files of the feature index directories of the documented format.

In addition to tables, ``var_features/`` and ``obs_features/`` contain ``cumulative_sum_index.npy``
(int64: -1, then the row at which each block ends), ``labels.json`` or ``labels.npy`` (the origin of
each block) and ``version.npy``. Old ``labels.npy`` are pickles, which `label_pickles` parses.
"""

from __future__ import annotations

import io
import json
import os
import re
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from storage_backends.directory import files as archive_files
from storage_backends.directory.recorder import Recorder
from storage_backends.errors import ArchiveFormatError, one_line
from storage_backends.memmap import label_pickles

BOUNDARIES = "cumulative_sum_index.npy"
LABELS_JSON = "labels.json"
LABELS_NPY = "labels.npy"
VERSION = "version.npy"

#: The npy header of a one-dimensional array. Unlike NumPy, which evaluates headers as Python
#: expressions, no other header is accepted: hostile ones nest expressions or name object types.
_HEADER = re.compile(
    rb"\{'descr': '([<>|=]?[a-zA-Z]\d{0,9})', 'fortran_order': (?:False|True), "
    rb"'shape': \((\d{1,19}),\), ?\} *\n"
)
_NPY_MAGIC = b"\x93NUMPY"


def write_index(
    recorder: Recorder, directory: str, stops: list[int], labels: list[str | None], version: str
) -> tuple[str, ...]:
    """Write the small files of an index whose blocks end at rows `stops`; returns their names."""
    files = {
        BOUNDARIES: _as_npy(np.array([-1, *stops], dtype="<i8")),
        LABELS_JSON: json.dumps(labels).encode(),
        # Fixed-width strings instead of objects, so that older readers need no pickle.
        LABELS_NPY: _as_npy(np.array([label or "" for label in labels], "U")),
        VERSION: _as_npy(version),
    }
    for name, data in files.items():
        recorder.write(os.path.join(directory, name), data)
    return tuple(files)


def _as_npy(array: ArrayLike) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(array))
    return buffer.getvalue()


def index_files(root: str, index: str) -> tuple[str, ...]:
    """Files of an index in the order of the header; `index` is its directory."""
    names = os.listdir(os.path.join(root, index))
    small = [name for name in (BOUNDARIES, LABELS_JSON, LABELS_NPY, VERSION) if name in names]
    tables = sorted(name for name in names if name.endswith(".parquet"))
    return tuple(f"{index}/{name}" for name in (*small, *tables))


def parse_stops(data: bytes, where: str) -> list[int]:
    """The row at which each block of an index ends; an ArchiveFormatError begins with `where`."""
    values = _parse_npy(data, where)
    are_integers = values.dtype.kind in "iu"
    is_sorted = are_integers and bool(np.all(values[1:] >= values[:-1]))
    if not is_sorted or len(values) == 0 or values[0] not in (-1, 0):
        found = f"{values!s:.80}" if are_integers else f"{values.dtype} values"
        raise ArchiveFormatError(f"{where}: expected -1 and ascending row numbers, found {found}")
    stops: list[int] = values[1:].tolist()
    return stops


def read_labels(root: str, index: str, n_blocks: int) -> list[str | None]:
    """The label (origin) of each block; None if it is missing or unreadable."""
    for name, parse in ((LABELS_JSON, parse_labels_json), (LABELS_NPY, parse_labels_npy)):
        if os.path.lexists(os.path.join(root, index, name)):
            labels = parse(archive_files.read_file(root, f"{index}/{name}"))
            if not isinstance(labels, list) or len(labels) != n_blocks:
                break
            return [str(label) if label else None for label in labels]
    return [None] * n_blocks


def parse_labels_json(data: bytes) -> Any:
    """Parse ``labels.json``; None if it is invalid."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def parse_labels_npy(data: bytes) -> list[Any] | None:
    """Parse ``labels.npy``, pickled or not; None if it does not hold strings and paths."""
    try:
        dtype, _, payload = _split_npy(data, LABELS_NPY)
        if dtype == np.dtype(object):
            return label_pickles.parse_labels(payload)
        values = _parse_npy(data, LABELS_NPY) if dtype.kind == "U" else None
        return None if values is None or not _is_text(values) else list(values.tolist())
    except ArchiveFormatError:
        return None


def _is_text(values: NDArray[Any]) -> bool:
    """Whether NumPy strings consist of valid Unicode characters."""
    codes = values.view(values.dtype.byteorder.replace("|", "=") + "u4")
    return bool(np.all((codes < 0xD800) | ((codes > 0xDFFF) & (codes <= 0x10FFFF))))


def _split_npy(data: bytes, where: str) -> tuple[np.dtype[Any], int, bytes]:
    """Dtype, length and payload of a one-dimensional npy file."""
    # Source: NumPy's format specification; versions 2 and 3 have a longer header length.
    is_version_1 = data[6:7] == b"\x01"
    start = 10 if is_version_1 else 12
    stop = start + int.from_bytes(data[8:start], "little")
    header = _HEADER.fullmatch(data[start:stop])
    if not data.startswith(_NPY_MAGIC) or stop > len(data) or header is None:
        raise ArchiveFormatError(f"{where}: not a one-dimensional npy file")
    try:
        dtype = np.dtype(header[1].decode())
    except (TypeError, ValueError) as error:
        raise ArchiveFormatError(f"{where}: not an npy file ({one_line(error)})") from error
    return dtype, int(header[2]), data[stop:]


def _parse_npy(data: bytes, where: str) -> NDArray[Any]:
    dtype, length, payload = _split_npy(data, where)
    if dtype.hasobject or dtype.itemsize == 0 or length * dtype.itemsize != len(payload):
        raise ArchiveFormatError(
            f"{where}: expected {length} items of {dtype}, found {len(payload)} bytes"
        )
    return np.frombuffer(payload, dtype)
