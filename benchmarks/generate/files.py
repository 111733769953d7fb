"""Generate an h5ad file of realistic counts, of any size, in little memory.

Cells are resampled from real ones (see `benchmarks.generate.sampler`) and written to HDF5 by blocks
of rows, in the encoding and with the chunks of ``anndata.AnnData.write_h5ad``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
from anndata.io import write_elem
from tqdm import tqdm

from benchmarks.generate.h5ad import CsrWriter, dataset_options, write_encoding
from benchmarks.generate.real_cells import TemplateCells
from benchmarks.generate.sampler import CellSampler
from benchmarks.generate.spec import DataSpec
from benchmarks.generate.tables import make_obs, make_var

NEIGHBOR_KEY = "next_cell_ids"


def generate(out: Path, spec: DataSpec, templates: TemplateCells, *, progress: bool = False) -> int:
    """Write an h5ad file.

    Parameters
    ----------
    out
        File to write; appears when complete, and replaces what was there.
    spec
        What to generate.
    templates
        Cells to resample.
    progress
        Show a progress bar.

    Returns
    -------
    int
        Stored values of the matrix.
    """
    compression = dataset_options(spec.compression)
    fixed_rng, obs_rng, var_rng = (_rng(spec, stream) for stream in range(3))
    obs = make_obs(spec, obs_rng)
    types = np.bincount(obs["cell_type"].cat.codes, minlength=spec.cell_types)
    sampler = CellSampler(
        templates,
        n_genes=spec.genes,
        type_shares=types / spec.cells,
        nnz_per_cell=spec.nnz_per_cell,
        rng=fixed_rng,
    )
    var = make_var(sampler, templates, var_rng)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(out.name + ".part")
    try:
        with h5py.File(unfinished, "w") as file:
            write_elem(file, "/", {})
            write_encoding(file, "anndata", "0.1.0")
            nnz = _write_matrices(file, spec, sampler, obs, progress=progress)
            if spec.neighbors:
                _write_neighbors(file.require_group("obsp"), spec, obs)
            _write_tables(file, spec, obs, var, compression)
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
    return nnz


def _write_matrices(
    file: h5py.File, spec: DataSpec, sampler: CellSampler, obs: pd.DataFrame, *, progress: bool
) -> int:
    """Draw all cells once; write counts and log-normalised values, and their sums to `obs`."""
    options: dict[str, Any] = {
        "shape": (spec.cells, spec.genes),
        "expected_nnz": int(spec.cells * spec.nnz_per_cell),
        "compression": dataset_options(spec.compression),
    }
    if spec.raw:
        raw = file.create_group("raw")
        write_encoding(raw, "raw", "0.1.0")
        writers = [CsrWriter(raw, "X", **options), CsrWriter(file, "X", **options)]
    else:
        writers = [CsrWriter(file, "X", **options)]
    types = obs["cell_type"].cat.codes.to_numpy(dtype=np.int64)
    n_counts = np.empty(spec.cells, np.float32)
    n_genes = np.empty(spec.cells, np.int32)
    for number, rows in enumerate(_blocks(spec, progress=progress)):
        counts = sampler.draw(types[rows], _rng(spec, 3, number))
        n_counts[rows] = np.asarray(counts.sum(axis=1)).ravel()
        n_genes[rows] = np.diff(counts.indptr)
        writers[0].append(counts)
        for writer in writers[1:]:
            writer.append(_log_normalised(counts, n_counts[rows]))
    for writer in writers:
        writer.close()
    obs["n_counts"], obs["n_genes"] = n_counts, n_genes
    return writers[0].nnz


def _log_normalised(counts: sp.csr_matrix, totals: npt.NDArray[np.float32]) -> sp.csr_matrix:
    scale = np.repeat(1e4 / totals, np.diff(counts.indptr))
    values = np.log1p(counts.data * scale).astype(np.float32)
    return sp.csr_matrix((values, counts.indices, counts.indptr), shape=counts.shape)


def _write_neighbors(obsp: h5py.Group, spec: DataSpec, obs: pd.DataFrame) -> None:
    """Give each cell neighbours of its own type, fewer than asked where there are too few."""
    types = obs["cell_type"].cat.codes.to_numpy(dtype=np.int64)
    by_type = np.argsort(types, kind="stable")
    sizes = np.bincount(types, minlength=spec.cell_types)
    firsts = np.cumsum(sizes) - sizes
    writer = CsrWriter(
        obsp,
        NEIGHBOR_KEY,
        shape=(spec.cells, spec.cells),
        expected_nnz=spec.cells * spec.neighbors,
        compression=dataset_options(spec.compression),
    )
    for number, rows in enumerate(_blocks(spec, progress=False)):
        rng = _rng(spec, 4, number)
        of_type = types[rows]
        # One pick in each of k equal parts of the cells of the type: repeats only if too few.
        parts = np.arange(spec.neighbors) + rng.random((len(of_type), spec.neighbors))
        ranks = (parts * (sizes[of_type] / spec.neighbors)[:, None]).astype(np.int64)
        indices = by_type[firsts[of_type][:, None] + ranks]
        cells = np.repeat(np.arange(len(of_type)), spec.neighbors)
        weights = rng.uniform(0.05, 1.0, cells.size).astype(np.float32)
        shape = (len(of_type), spec.cells)
        graph = sp.csr_matrix((weights, (cells, indices.ravel())), shape=shape)
        writer.append(graph)
    writer.close()


def _write_tables(
    file: h5py.File,
    spec: DataSpec,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    compression: dict[str, Any],
) -> None:
    write_elem(file, "obs", obs, dataset_kwargs=compression)
    write_elem(file, "var", var, dataset_kwargs=compression)
    for name in ("layers", "obsm", "varm", "varp", "uns"):
        write_elem(file, name, {})
    if "obsp" in file:
        write_encoding(file["obsp"], "dict", "0.1.0")
    else:
        write_elem(file, "obsp", {})
    if spec.raw:
        raw = file.require_group("raw")
        write_elem(raw, "var", var, dataset_kwargs=compression)
        write_elem(raw, "varm", {})


def _blocks(spec: DataSpec, *, progress: bool) -> Iterator[slice]:
    starts = range(0, spec.cells, spec.block_rows)
    for start in tqdm(starts, desc="generate", unit="block", disable=None if progress else True):
        yield slice(start, min(start + spec.block_rows, spec.cells))


def _rng(spec: DataSpec, *stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(spec.seed, spawn_key=stream))
