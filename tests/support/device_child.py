"""Run as a script, in the simulator of numba: decoding as on a GPU, for test_device.py.

Prints a JSON object: for the name of each case that was compared, how many batches the kernels
decoded, or how many frames were compared.
"""

from __future__ import annotations

import json
import sys
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import packed_reader
import torch
from numba.cuda.simulator import kernel, kernelapi
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray
from packed_chunks import KINDS, values_of

import scdl
from scdl.errors import ArchiveFormatError
from scdl.kernels import device_rows
from scdl.training.device import DeviceLoader
from storage_backends.zarr.codecs import frame_cuda
from storage_backends.zarr.codecs.frame_format import KINDS as KIND_OF
from storage_backends.zarr.codecs.frame_writing import encode

warnings.simplefilter("error")
#: Integers of 64 bits may wrap, which NumPy mentions and a GPU does not.
warnings.filterwarnings("ignore", "overflow encountered")
#: Seconds after which a thread waits in vain for the others of its block.
PATIENCE = 60


class _Shared(kernelapi.FakeCUDAShared):
    """Shared memory; that of the simulator is sometimes another one in each thread."""

    lock = threading.Lock()

    def array(self, shape: int, dtype: Any) -> Any:
        frame = sys._getframe(1)
        if not shape:
            return super().array(shape, dtype)
        with self.lock:
            new = np.full(shape, 77, dtype)
            return FakeCUDAArray(self._allocations.setdefault((frame.f_code, frame.f_lineno), new))


def _run(block: Any, grid_point: Any, *args: Any) -> None:
    """Run a block of threads, which in the simulator polls them."""
    block.barrier = threading.Barrier(int(np.prod(block._block_dim)))
    given = partial(block._f, *args), block, grid_point
    threads = [kernel.BlockThread(*given, at, block._debug) for at in np.ndindex(*block._block_dim)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for thread in threads:
        if thread.exception:
            raise thread.exception[0].with_traceback(thread.exception[1])


kernelapi.FakeCUDAShared = _Shared
kernel.BlockManager.run = _run
kernel.BlockThread.syncthreads = lambda thread: thread._manager.barrier.wait(PATIENCE)
# The simulator looks for the names of numba in each call of a function, although none has them.
for module in (frame_cuda, device_rows):
    for name, function in list(vars(module).items()):
        if getattr(function, "_device", False):
            setattr(module, name, function.fn)

SCALED = [scdl.NormalizeTotal(10), scdl.Log1p()]
OPTIONS: dict[str, dict[str, Any]] = {
    "csr": {"layout": "csr"},
    "dense": {"layout": "dense", "dtype": torch.float64, "obs": ["n"]},
    "csr scaled": {"layout": "csr", "transforms": SCALED},
    "dense scaled": {
        "layout": "dense",
        "dtype": torch.float64,
        "transforms": [*SCALED, lambda batch: batch.with_(a=1)],
    },
}


def bits(values: torch.Tensor) -> np.ndarray:
    return values.numpy().view(f"u{values.element_size()}")


def compare(found: Any, expected: Any, *, exact: bool) -> None:
    assert found.rows.tolist() == expected.rows.tolist()
    assert {k: v.tolist() for k, v in found.obs.items()} == {
        k: v.tolist() for k, v in expected.obs.items()
    }
    assert found.extra == expected.extra
    x, y = found.x, expected.x
    assert (x.layout, x.dtype, x.shape) == (y.layout, y.dtype, y.shape)
    if x.layout == torch.sparse_csr:
        for part in ("crow_indices", "col_indices"):
            one, other = (getattr(batch, part)() for batch in (x, y))
            assert one.dtype == other.dtype
            assert one.tolist() == other.tolist()
        x, y = x.values(), y.values()
    if exact:
        assert (bits(x) == bits(y)).all()
    else:
        torch.testing.assert_close(x, y, rtol=1e-6, atol=0, equal_nan=True)


def loaders(path: Path) -> Iterator[tuple[str, int]]:
    data, kind = scdl.open(path), path.stem.split()[-1]
    names = ["csr", "dense scaled"] if path.stem.startswith("packed ") else ["csr scaled", "dense"]
    # The simulator refuses logarithms of negative numbers.
    names = ["csr", "dense"] if kind in ("special", "negative") else names
    for name in names:
        # Repeated and in any order; "cut" has a row on both sides of the end of a chunk.
        rows = [40] if kind == "cut" else [6, 0, 1, 6, 2, 3]
        options = {
            "order": "sequential",
            "rows": rows,
            "batch_size": min(3, len(rows)),
            **OPTIONS[name],
        }
        loader = DeviceLoader(data, **options)
        expected = list(scdl.SingleCellLoader(data, **options))
        found = list(loader)
        assert len(found) == len(expected) == len(loader)
        for one, other in zip(found, expected, strict=True):
            compare(one, other, exact="scaled" not in name)
        yield f"{path.stem}: {name}", loader.n_decoded


def fallbacks(path: Path, damaged: Path) -> Iterator[tuple[str, int]]:
    """What the kernels leave to the CPU."""
    data = scdl.open(path)
    genes = list(data.var_names[3:1:-1])
    for name, options in {
        "padded": {"layout": "padded", "length": 3},
        "stored dtype": {"dtype": None},
        "genes": {"genes": genes},
        "neighbours": {"obsm": "v"},
        "view": {},
    }.items():
        cells = data.select_genes(genes) if name == "view" else data
        given = {"order": "sequential", "rows": [5, 1], **options}
        loader = DeviceLoader(cells, 2, **given)
        for one, other in zip(loader, scdl.SingleCellLoader(cells, 2, **given), strict=True):
            compare(one, other, exact=True)
        yield f"CPU: {name}", loader.n_decoded
    messages = []
    for make in (DeviceLoader, scdl.SingleCellLoader):
        loader = make(scdl.open(damaged), 2, order="sequential")
        try:
            list(loader)
        except ArchiveFormatError as error:
            messages.append(str(error))
    assert len(messages) == 2, messages
    assert messages[0] == messages[1], messages
    assert "is damaged" in messages[0]
    yield "damaged", 0


def layouts() -> Iterator[tuple[str, int]]:
    """Sorting a row, or refusing it as an id repeats or is not a column."""
    send = frame_cuda.cuda.to_device
    for n, ids in enumerate(([3, 0, 2], [0, 2, 2], [0, 4, 2])):
        data, indptr = np.arange(1, 4, dtype="u2"), np.array([0, 3])
        values, columns, problem = (
            send(np.zeros(k, t)) for k, t in ((3, "f4"), (3, "i4"), (1, "i4"))
        )
        given = (send(part) for part in (data, np.array(ids, "u4"), indptr))
        device_rows.lay_out(*given, 4, values, columns, problem)
        assert problem[0] == (n > 0)
        if n == 0:
            assert (values.tolist(), columns.tolist()) == ([2.0, 3.0, 1.0], [0, 2, 3])
        yield f"row {ids}", 0


def launch(content: bytes, n: int, dtype: np.dtype) -> np.ndarray | None:
    """Decode a frame without its checksum; None if the kernel refuses it."""
    # Nothing lies behind it, so that reading there would be an error.
    table = np.array([[48, len(content), n, 0, n, 0]], np.int64)
    data = frame_cuda.cuda.to_device(np.frombuffer(table.tobytes() + content, np.uint8))
    out = frame_cuda.cuda.to_device(np.zeros(n, dtype))
    problem = frame_cuda.cuda.to_device(np.zeros(1, np.int32))
    item = dtype.itemsize, KIND_OF[dtype.kind]
    frame_cuda.decode(data, slice(0, 1), item, (0, np.empty(0, np.uint32)), out, problem)
    return None if problem[0] else out.copy_to_host()


def check_frame(n: int, content: bytes, dtype: np.dtype) -> bool:
    """Whether a frame is sound: the same for the reader that was written from its page."""
    try:
        expected = packed_reader.decode(packed_reader.seal([(n, content)]), dtype)
        reason = ""
    except ValueError as error:
        reason = str(error)
    found = launch(content, n, dtype)
    if reason == packed_reader.FILLED:
        # It does no harm.
        return True
    assert (found is None) == bool(reason), (reason, dtype, content)
    assert found is None or found.tobytes() == expected.tobytes(), (dtype, content)
    return not reason


def frames() -> Iterator[tuple[str, int]]:
    rng = np.random.default_rng(5)
    for name in ("u1", "u2", "u4", "i2", "i8", "f4", "f8"):
        dtype, counts = np.dtype(name), [0, 0]
        for kind in KINDS:
            values = values_of(kind, name, int(rng.choice([1, 31, 33, 40])), rng)
            for frame in packed_reader.frames(encode(values)):
                content = frame.content[:-4]
                assert check_frame(frame.n, content, dtype)
                for _ in range(3):
                    changed = bytearray(content)
                    changed[rng.integers(0, min(9, len(content)))] = rng.integers(0, 256)
                    cut = rng.integers(len(content) // 2, len(content) + 1)
                    whole = rng.random() < 0.7
                    sound = check_frame(frame.n, bytes(changed if whole else changed[:cut]), dtype)
                    counts[sound] += 1
        assert min(counts) > 0, counts
        yield f"frames of {name}", sum(counts)


def main(directory: str) -> None:
    threads = frame_cuda.THREADS
    frame_cuda.THREADS = device_rows.THREADS = 2
    archives, cases = Path(directory), list[tuple[str, int]]()
    for path in sorted(archives.glob("* *.zarr")):
        cases += loaders(path)
    cases += fallbacks(archives / "packed u2.zarr", archives / "damaged.zarr")
    cases += [*layouts(), *frames()]
    # As many threads as on a GPU.
    frame_cuda.THREADS = device_rows.THREADS = threads
    data = scdl.open(archives / "packed u2.zarr")
    given: dict[str, Any] = {"batch_size": 1, "rows": [3], "transforms": SCALED}
    loader = DeviceLoader(data, **given)
    (one,), (other,) = loader, scdl.SingleCellLoader(data, **given)
    compare(one, other, exact=False)
    cases.append(("all threads", loader.n_decoded))
    json.dump(dict(cases), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
