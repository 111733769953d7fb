"""Batches that a GPU decodes: its kernels in the simulator of numba, and the CPU without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from places import ROOT, SUPPORT

torch = pytest.importorskip("torch")

import scdl
from scdl.errors import LoaderError
from scdl.training.device import DeviceLoader

#: Rows that share frames, one with every gene, and empty ones.
LENGTHS, N_VARS = [0, 5, 33, 50, 1, 0, 20], 50
SPECIAL = np.array([np.nan, -0.0, np.inf, 1e-45, -3.5, 2**24 + 2], "f8")
#: Modules that only those who decode on a GPU import.
KERNELS = "compute.device", "frame_cuda", "device_rows"
#: Profile, dtype, and what is special, of each archive.
ARCHIVES = [
    "packed u1",
    "packed u2",
    "packed f4",
    "packed f8 special",
    "packed i4 negative",
    "packed-fast u4",
    "packed-fast u2 cut",
    "packed-fast f4 special",
]


def cells(dtype: str, special: str, rng: np.random.Generator) -> anndata.AnnData:
    lengths, n_vars = (LENGTHS, N_VARS) if special != "cut" else ([400] * 45, 400)
    indptr = np.append(0, np.cumsum(lengths))
    indices = np.concatenate([np.sort(rng.permutation(n_vars)[:k]) for k in lengths])
    most = {"u1": 255, "u2": 40_000}.get(dtype, 100_000)
    data: Any = np.minimum(rng.negative_binomial(1, 0.01, len(indices)) ** 2 + 1, most)
    if special == "negative":
        data = data * rng.choice([-1, 1], len(data))
    elif special == "special":
        # Stored as they are; few distinct ones, as a table.
        is_few = dtype == "f4" or rng.random(len(data)) < 0.2
        data = np.where(is_few, rng.choice(SPECIAL, len(data)), rng.random(len(data)))
    elif dtype[0] == "f":
        data = np.log1p(data % 7 + 1)
    X = scipy.sparse.csr_matrix((data.astype(dtype), indices, indptr), (len(lengths), n_vars))
    obs = pd.DataFrame({"n": lengths}, [f"c{i}" for i in range(len(lengths))])
    return anndata.AnnData(X, obs, obsm={"v": np.eye(len(lengths), 2, dtype="f4")})


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory, rng = tmp_path_factory.mktemp("device"), np.random.default_rng(3)
    for name in ARCHIVES:
        profile, dtype, *special = name.split()
        made = cells(dtype, *(special or [""]), rng)
        scdl.convert(made, directory / f"{name}.zarr", compression=profile, obsm=["v"])
    damaged = directory / "damaged.zarr"
    scdl.convert(cells("u2", "", rng), damaged, compression="packed")
    chunks = damaged / "X" / "data" / "c" / "0"
    content = bytearray(chunks.read_bytes())
    content[20] ^= 1
    chunks.write_bytes(content)
    return directory


@pytest.fixture(scope="module")
def decoded(archives: Path) -> dict[str, int]:
    """What the simulator has decoded, by the names of the cases."""
    path = os.pathsep.join([str(ROOT), str(SUPPORT)])
    done = subprocess.run(
        [sys.executable, SUPPORT / "device_child.py", archives],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", ARCHIVES)
def test_batches_are_those_of_the_cpu(name: str, decoded: dict[str, int]) -> None:
    found = {case: n for case, n in decoded.items() if case.startswith(f"{name}: ")}
    assert len(found) == 2
    assert set(found.values()) == {1 if name.endswith("cut") else 2}


def test_kernels_decode_frames_and_sort_rows(decoded: dict[str, int]) -> None:
    frames = {case: n for case, n in decoded.items() if case.startswith("frames of ")}
    assert len(frames) == 7
    assert min(frames.values()) > 20
    assert len([case for case in decoded if case.startswith("row ")]) == 3
    assert decoded["all threads"] == 1


def test_the_cpu_reads_what_kernels_do_not_cover(decoded: dict[str, int]) -> None:
    cpu = {case: n for case, n in decoded.items() if case.startswith("CPU: ")}
    assert len(cpu) == 5
    assert set(cpu.values()) == {0}
    assert decoded["damaged"] == 0


def test_without_a_gpu(archives: Path) -> None:
    data = scdl.open(archives / "packed u2.zarr")
    before = set(sys.modules)
    options: dict[str, Any] = {"order": "random", "seed": 3, "layout": "dense", "obs": ["n"]}
    loader = DeviceLoader(data, 3, device="cpu", **options)
    for one, other in zip(loader, scdl.SingleCellLoader(data, 3, **options), strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.obs["n"], other.obs["n"])
    assert loader.n_decoded == 0
    assert not {name for name in set(sys.modules) - before if name.endswith(KERNELS)}
    assert loader.state_dict()
    with pytest.raises(LoaderError, match="workers must be 0"):
        DeviceLoader(data, 3, workers=1)
