"""Small files of the documented format's feature index directories, safely read.

``var_features/`` and ``obs_features/`` hold, beside the tables, ``cumulative_sum_index.npy``
(int64: -1, then the row at which each block ends), ``labels.json`` or ``labels.npy`` (where each
block came from) and ``version.npy``. Old ``labels.npy`` are pickles, which `_label_pickles` reads.
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
from storage_backends.directory.checksums import Recorder
from storage_backends.errors import ArchiveFormatError, one_line
from storage_backends.memmap import label_pickles

BOUNDARIES = "cumulative_sum_index.npy"
LABELS_JSON = "labels.json"
LABELS_NPY = "labels.npy"
VERSION = "version.npy"

#: The header of an array of one dimension, as NumPy writes it. Nothing else is evaluated, as NumPy
#: would: others nest expressions in it, or name types of objects.
_HEADER = re.compile(
    rb"\{'descr': '([<>|=]?[a-zA-Z]\d{0,9})', 'fortran_order': (?:False|True), "
    rb"'shape': \((\d{1,19}),\), ?\} *\n"
)
_NPY_MAGIC = b"\x93NUMPY"


def write(
    recorder: Recorder, directory: str, stops: list[int], labels: list[str | None], version: str
) -> tuple[str, ...]:
    """Write the small files of an index whose blocks end at rows `stops`; their names."""
    files = {
        BOUNDARIES: _as_npy(np.array([-1, *stops], dtype="<i8")),
        LABELS_JSON: json.dumps(labels).encode(),
        # Unicode, not objects: older readers of this file then need no pickle.
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


def files(root: str, index: str) -> tuple[str, ...]:
    """Files of an index, as the header lists them; `index` is its directory."""
    found = os.listdir(os.path.join(root, index))
    small = [name for name in (BOUNDARIES, LABELS_JSON, LABELS_NPY, VERSION) if name in found]
    tables = sorted(name for name in found if name.endswith(".parquet"))
    return tuple(f"{index}/{name}" for name in (*small, *tables))


def read_stops(root: str, index: str) -> list[int]:
    """The row at which each block of an index ends, checked to rise; `index` is its directory."""
    key = f"{index}/{BOUNDARIES}"
    return parse_stops(archive_files.read_file(root, key), os.path.join(root, key))


def parse_stops(data: bytes, where: str) -> list[int]:
    """As :func:`read_stops`, of the file's content; ArchiveFormatError opens with `where`."""
    values = _parse_npy(data, where)
    whole = values.dtype.kind in "iu"
    rises = whole and bool(np.all(values[1:] >= values[:-1]))
    if not rises or len(values) == 0 or values[0] not in (-1, 0):
        found = f"{values!s:.80}" if whole else f"{values.dtype} values"
        raise ArchiveFormatError(f"{where}: expected -1 and rising row numbers, found {found}")
    return [int(v) for v in values[1:]]


def read_labels(root: str, index: str, n_blocks: int) -> list[str | None]:
    """Where each block came from; None where the archive does not say it legibly."""
    for name, parse in ((LABELS_JSON, parse_labels_json), (LABELS_NPY, parse_labels_npy)):
        if os.path.lexists(os.path.join(root, index, name)):
            found = parse(archive_files.read_file(root, f"{index}/{name}"))
            if not isinstance(found, list) or len(found) != n_blocks:
                break
            return [str(label) if label else None for label in found]
    return [None] * n_blocks


def parse_labels_json(data: bytes) -> Any:
    """What ``labels.json`` holds; None where it is not legible."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def parse_labels_npy(data: bytes) -> list[Any] | None:
    """Elements of ``labels.npy``, pickled or not; None where they are no strings and paths."""
    try:
        dtype, _, payload = _split_npy(data, LABELS_NPY)
        if dtype == np.dtype(object):
            return label_pickles.read(payload)
        values = _parse_npy(data, LABELS_NPY) if dtype.kind == "U" else None
        return None if values is None or not _is_text(values) else list(values.tolist())
    except ArchiveFormatError:
        return None


def _is_text(values: NDArray[Any]) -> bool:
    """Whether strings of NumPy are of characters that there are, and that can be encoded."""
    codes = values.view(values.dtype.byteorder.replace("|", "=") + "u4")
    return bool(np.all((codes < 0xD800) | ((codes > 0xDFFF) & (codes <= 0x10FFFF))))


def _split_npy(data: bytes, where: str) -> tuple[np.dtype[Any], int, bytes]:
    """Type, length and payload of an npy file of one dimension."""
    # Source: NumPy's format specification; versions 2 and 3 have a longer count.
    short = data[6:7] == b"\x01"
    start = 10 if short else 12
    stop = start + int.from_bytes(data[8:start], "little")
    header = _HEADER.fullmatch(data[start:stop])
    if not data.startswith(_NPY_MAGIC) or stop > len(data) or header is None:
        raise ArchiveFormatError(f"{where}: not an npy file of one dimension")
    try:
        dtype = np.dtype(header[1].decode())
    except (TypeError, ValueError) as error:
        raise ArchiveFormatError(f"{where}: not an npy file ({one_line(error)})") from error
    return dtype, int(header[2]), data[stop:]


def _parse_npy(data: bytes, where: str) -> NDArray[Any]:
    dtype, length, payload = _split_npy(data, where)
    if dtype.hasobject or dtype.itemsize == 0 or length * dtype.itemsize != len(payload):
        raise ArchiveFormatError(
            f"{where}: its header says {length} of {dtype}, but {len(payload)} bytes follow"
        )
    return np.frombuffer(payload, dtype)
