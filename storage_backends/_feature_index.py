"""Small files of the documented format's feature index directories, safely read.

``var_features/`` and ``obs_features/`` hold, beside the tables, ``cumulative_sum_index.npy``
(int64: -1, then the row at which each block ends), ``labels.json`` or ``labels.npy`` (where each
block came from) and ``version.npy``. Old ``labels.npy`` are pickles; they are read by an unpickler
that can make nothing but lists, strings and paths.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from storage_backends._checksums import Recorder
from storage_backends.errors import ArchiveFormatError

BOUNDARIES = "cumulative_sum_index.npy"
LABELS_JSON = "labels.json"
LABELS_NPY = "labels.npy"
VERSION = "version.npy"

#: What a pickle can fail with when nothing in it can be called.
_UNPICKLING_FAILS = (
    pickle.UnpicklingError,
    ArchiveFormatError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    OverflowError,
    struct.error,
)


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


def read_stops(directory: str) -> list[int]:
    """The row at which each block ends, checked to rise."""
    path = os.path.join(directory, BOUNDARIES)
    values = _read_npy(path)
    rises = values.ndim == 1 and values.dtype.kind in "iu" and bool(np.all(np.diff(values) >= 0))
    if not rises or len(values) == 0 or values[0] not in (-1, 0):
        raise ArchiveFormatError(
            f"{path}: expected -1 and rising row numbers, found {values!s:.80}"
        )
    return [int(v) for v in values[1:]]


def read_labels(directory: str, n_blocks: int) -> list[str | None]:
    """Where each block came from; None where the archive does not say it legibly."""
    unknown: list[str | None] = [None] * n_blocks
    found: Any = None
    path = os.path.join(directory, LABELS_JSON)
    if os.path.exists(path):
        try:
            with open(path, "rb") as file:
                found = json.loads(file.read())
        except (ValueError, RecursionError):
            return unknown
    elif os.path.exists(os.path.join(directory, LABELS_NPY)):
        found = _read_labels_npy(os.path.join(directory, LABELS_NPY))
    if not isinstance(found, list) or len(found) != n_blocks:
        return unknown
    return [str(label) if label else None for label in found]


def _open_npy(path: str) -> tuple[tuple[int, ...], np.dtype[Any], bytes]:
    """Shape, dtype and payload of an npy file; the payload is never unpickled here."""
    try:
        with open(path, "rb") as file:
            buffer = io.BytesIO(file.read())
        version = np.lib.format.read_magic(buffer)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
        header = header or np.lib.format.read_array_header_2_0
        shape, _, dtype = header(buffer)
    except FileNotFoundError:
        raise ArchiveFormatError(f"{path}: the file is missing") from None
    except (ValueError, SyntaxError, RecursionError, EOFError) as error:
        raise ArchiveFormatError(f"{path}: not an npy file ({error})") from error
    return shape, dtype, buffer.read()


def _read_npy(path: str) -> NDArray[Any]:
    shape, dtype, payload = _open_npy(path)
    n = 1
    for extent in shape:
        n *= int(extent)
    if dtype.hasobject or n < 0 or n * dtype.itemsize != len(payload):
        raise ArchiveFormatError(
            f"{path}: its header says {shape} of {dtype}, but {len(payload)} bytes follow"
        )
    return np.frombuffer(payload, dtype).reshape(shape)


def _read_labels_npy(path: str) -> list[Any] | None:
    try:
        _, dtype, payload = _open_npy(path)
        if not dtype.hasobject:
            return list(_read_npy(path).tolist()) if dtype.kind == "U" else None
        array = _LabelUnpickler(io.BytesIO(payload)).load()
        return array.items if isinstance(array, _PickledArray) else None
    except _UNPICKLING_FAILS:
        return None


class _PickledArray:
    """Stands for a pickled object array; keeps the list of its elements."""

    items: list[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        items = state[-1]
        plain = isinstance(items, list) and all(
            item is None or isinstance(item, str | PurePosixPath | PureWindowsPath)
            for item in items
        )
        self.items = items if plain else None


class _PickledDtype:
    """Stands for a pickled dtype."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _reconstruct(*_: Any) -> _PickledArray:
    return _PickledArray()


class _LabelUnpickler(pickle.Unpickler):
    """Knows an array of strings and paths, and refuses to look anything else up."""

    _KNOWN: ClassVar[dict[str, Any]] = {
        "_reconstruct": _reconstruct,
        "ndarray": _PickledArray,
        "dtype": _PickledDtype,
        "PosixPath": PurePosixPath,
        "PurePosixPath": PurePosixPath,
        "WindowsPath": PureWindowsPath,
        "PureWindowsPath": PureWindowsPath,
    }
    _MODULES = ("numpy", "pathlib")

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] in self._MODULES and name in self._KNOWN:
            return self._KNOWN[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in labels")
