"""Batches whose cells are decoded on a GPU. Experimental: this module may change in any release.

The cells of a batch go to the device encoded, in one piece of page-locked memory. Kernels of
``numba.cuda`` decode, normalise and lay them out there. What these do not cover is read as by a
:class:`~scdl.training.loader.SingleCellLoader` and then moved, so batches are the same everywhere.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from scdl.dataset import tensors
from scdl.dataset.batch import CellBatch
from scdl.dataset.reader import CellReader
from scdl.errors import LoaderError
from scdl.training.assembly import Assembly
from scdl.training.batch import TrainingBatch
from scdl.training.content import BatchContent
from scdl.training.loader import SingleCellLoader
from storage_backends.compute.caching import cached_property
from storage_backends.compute.traffic import TRAFFIC
from storage_backends.compute.warning_filters import ignore_warnings
from storage_backends.encoded import EncodedRows

__all__ = ["DeviceLoader"]

#: Layouts, dtypes of values, and stored dtypes that the kernels cover.
_LAYOUTS, _DTYPES = ("csr", "dense"), (torch.float32, torch.float64)
_STORED = [np.dtype(name) for name in ["u1", "u2", "u4", "i1", "i2", "i4", "i8", "f4", "f8"]]


class DeviceLoader(SingleCellLoader):
    """Loader whose batches are decoded on a GPU; experimental.

    Its batches, on `device`, are those of a :class:`~scdl.SingleCellLoader` with the same options;
    logarithms, and sums of floats, may differ in the last bit.

    The GPU decodes local Zarr archives of the profiles ``packed`` and ``packed-fast``, in the
    layouts ``csr`` and ``dense`` with float32 or float64 values, with any `obs` and transforms;
    functions among these get the batch on the device. With `genes`, `matrix`, `fields`,
    `modalities`, `obsm`, `neighbors` or a tokenizer, for other archives, and without CUDA, the CPU
    decodes, and the batches are then moved. The CPU also reads cells that repeat a gene, and those
    that are damaged, which raises the usual errors.

    Parameters
    ----------
    dataset, batch_size, **options
        As for a :class:`~scdl.SingleCellLoader`. `workers` must be 0.
    device
        Where batches are; default: the current CUDA device, or the CPU without one.

    Raises
    ------
    LoaderError
        Options contradict each other or the data.

    Examples
    --------
    >>> from scdl.training.device import DeviceLoader
    >>> loader = DeviceLoader(data, 2, order="sequential", layout="dense", device="cpu")
    >>> next(iter(loader)).x
    tensor([[0., 2., 0., 1.],
            [3., 0., 0., 0.]])
    >>> loader.n_decoded
    0
    """

    def __init__(
        self,
        dataset: CellReader,
        batch_size: int = 64,
        *,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dataset, batch_size, **options)
        if self._options["workers"]:
            raise LoaderError(
                "a DeviceLoader decodes in this process, so that workers must be 0, not "
                f"{self._options['workers']}"
            )
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._content = _DeviceContent(**self._content.__getstate__(), device=place)

    @property
    def n_decoded(self) -> int:
        """Batches that the device has decoded, and not the CPU."""
        assert isinstance(self._content, _DeviceContent)
        return self._content.decoder.n_decoded


@dataclass(frozen=True)
class _DeviceContent(BatchContent):
    """As its base class, but covered cells are read when they are assembled, on the device."""

    device: torch.device = field(kw_only=True)

    @cached_property
    def decoder(self) -> _Decoder:
        """The decoder of this process."""
        return _Decoder(self.device)

    @cached_property
    def _is_covered(self) -> bool:
        """Whether the device can decode the batches, if the storage gives encoded rows."""
        assembly, options = self.assembly, self.options
        return (
            _has_kernels(self.device)
            and assembly.layout in _LAYOUTS
            and assembly.dtype in _DTYPES
            and assembly.tokenizer is None
            and options["genes"] is None
            and not (assembly.fields or self.modalities or options["obsm"] or options["neighbors"])
            and self.cells.data_dtype in _STORED
        )

    def read_rows(self, rows: NDArray[np.int64]) -> CellBatch:
        """Read rows; covered ones without their values, which `assemble` will read."""
        # The first row stands for all: frames of an archive are those of all its rows, or of none.
        if not self._is_covered or self.cells._encoded(rows[:1], _Memory(1, pinned=False)) is None:
            return super().read_rows(rows)
        TRAFFIC.read(len(rows))
        nothing = np.empty(0, self.cells.data_dtype), np.empty(0, np.int32)
        indptr = np.zeros(len(rows) + 1, np.int64)
        batch = CellBatch(*nothing, indptr, n_vars=self.cells.max_n_vars, rows=rows)
        return self.cells._with_spaces(batch)

    def assemble(self, cells: CellBatch, neighbors: CellBatch | None, key: int) -> Any:
        """Assemble one batch on the device."""
        # Cells that were read, and have no value, may as well be read once more.
        if self._is_covered and not len(cells.data):
            x = self.decoder(self.cells, cells, self.assembly)
            if x is not None:
                rows = cells.rows
                obs = {name: tensors.numbers(column[rows]) for name, column in self._values.items()}
                batch = TrainingBatch(x=x, rows=torch.from_numpy(rows), obs=obs)
                return self.assembly.apply(batch.to(self.device, non_blocking=True), key)
            cells = super().read_rows(cells.rows)
        batch = super().assemble(cells, neighbors, key)
        return batch.to(self.device)


class _Decoder:
    """Decodes the cells of batches on a device, one batch after the other.

    Batches would wait for each other anyway, as all are decoded on the default stream.

    Attributes
    ----------
    n_decoded
        Number of batches.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._lock = device, threading.Lock()
        self.n_decoded = 0
        #: The mapping that was used last, and its copy on the device.
        self._mapped: tuple[NDArray[np.uint32], torch.Tensor] | None = None

    def __call__(
        self, reader: CellReader, cells: CellBatch, assembly: Assembly
    ) -> torch.Tensor | None:
        """The values of cells on the device; None if the CPU must read them."""
        memory = _Memory(len(cells), pinned=self._device.type == "cuda")
        found = reader._encoded(cells.rows, memory)
        if found is None or found[1][-1] > np.iinfo(np.int32).max:
            return None
        encoded, indptr = found
        memory.offsets[:] = indptr
        with self._lock, self._active():
            values, columns = self._decoded(encoded, indptr, memory, cells.n_vars, assembly)
            if values is None:
                return None
            self.n_decoded += 1
            if columns is None:
                return tensors.as_dtype(values, assembly.dtype, cells.rows.item)
            row_of = partial(np.searchsorted, indptr[1:], side="right")
            x = tensors.as_dtype(values, assembly.dtype, lambda at: cells.rows[row_of(at)].item())
            offsets = torch.from_numpy(indptr.astype(np.int32)).to(self._device)
            return torch.sparse_csr_tensor(offsets, columns, x, cells.shape, check_invariants=False)

    def _active(self) -> ExitStack:
        """Makes the device that of torch and numba in this thread."""
        stack = ExitStack()
        if self._device.type == "cuda":
            # A batch may have fewer cells than numba thinks that a device should get blocks.
            stack.enter_context(ignore_warnings("Grid size"))
            stack.enter_context(torch.cuda.device(self._device))
            stack.enter_context(_cuda().gpus[torch.cuda.current_device()])
        return stack

    def _decoded(
        self,
        encoded: EncodedRows,
        indptr: NDArray[np.int64],
        memory: _Memory,
        n_vars: int,
        assembly: Assembly,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Values, and column ids unless they are dense; no values if there is a problem."""
        from scdl.kernels import device_rows

        if n_vars > device_rows.MOST_COLUMNS:
            return None, None
        total, dense = int(indptr[-1]), assembly.layout == "dense"
        wide = encoded.dtype == np.float64 or assembly.dtype == torch.float64
        kind = torch.float64 if wide else torch.float32
        sent = memory.used(encoded.content).to(self._device, non_blocking=True)
        offsets, content = sent[: memory.offsets.nbytes], sent[memory.offsets.nbytes :]
        data = self._array(self._empty(total * encoded.dtype.itemsize)).view(encoded.dtype)
        ids = self._array(self._empty(total * 4)).view(np.uint32)
        columns = self._empty(0 if dense else total, torch.int32)
        problem = torch.zeros(1, dtype=torch.int32, device=self._device)
        if dense:
            values = torch.zeros(len(indptr) - 1, n_vars, dtype=kind, device=self._device)
        else:
            values = self._empty(total, kind)
        encoded.decode(
            self._array(content), self._mapping(encoded.mapping), data, ids, self._array(problem)
        )
        normalization = assembly.normalization
        device_rows.lay_out(
            data,
            ids,
            self._array(offsets).view(np.int64),
            n_vars,
            self._array(values.reshape(-1)),
            self._array(columns),
            self._array(problem),
            target_sum=0.0 if normalization is None else normalization.target_sum,
            logs=assembly.logs,
            dense=dense,
        )
        # Waits for the kernels.
        return None if problem.item() else values, None if dense else columns

    def _empty(self, n: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        return torch.empty(n, dtype=dtype, device=self._device)

    def _array(self, tensor: torch.Tensor) -> Any:
        """A tensor as kernels take it, without a copy."""
        if tensor.is_cuda:
            return _cuda().as_cuda_array(tensor)
        # The simulator would copy views of the same memory to and fro.
        simulated = import_module("numba.cuda.simulator.cudadrv.devicearray")
        return simulated.FakeCUDAArray(tensor.numpy())

    def _mapping(self, mapping: NDArray[np.uint32]) -> Any:
        if self._mapped is None or self._mapped[0] is not mapping:
            self._mapped = mapping, torch.tensor(mapping.view(np.int32), device=self._device)
        return self._array(self._mapped[1]).view(np.uint32)


class _Memory:
    """Memory for the offsets of rows, int64, and then their encoded form, to be copied at once."""

    def __init__(self, n_rows: int, *, pinned: bool) -> None:
        self._n_rows, self._pinned = n_rows, pinned

    def __call__(self, n_bytes: int) -> NDArray[np.uint8]:
        first = 8 * (self._n_rows + 1)
        self._all = torch.empty(first + n_bytes, dtype=torch.uint8, pin_memory=self._pinned)
        array: NDArray[np.uint8] = self._all.numpy()
        self.offsets = array[:first].view(np.int64)
        return array[first:]

    def used(self, content: NDArray[np.uint8]) -> torch.Tensor:
        """The memory up to the end of the content."""
        return self._all[: self.offsets.nbytes + len(content)]


def _cuda() -> Any:
    """The part of numba for GPUs, which is imported only where it is used."""
    return import_module("numba.cuda")


def _has_kernels(device: torch.device) -> bool:
    """Whether kernels run on a device, or in the simulator of numba on the CPU."""
    if device.type != "cuda":
        return device.type == "cpu" and bool(getattr(numba.config, "ENABLE_CUDASIM", False))
    try:
        return bool(_cuda().is_available())
    except ImportError:
        return False
