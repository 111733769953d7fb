"""Tables of generated cells and genes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.generate.real_cells import TemplateCells
from benchmarks.generate.sampler import CellSampler
from benchmarks.generate.spec import DataSpec


def make_obs(spec: DataSpec, rng: np.random.Generator) -> pd.DataFrame:
    """Describe cells: donors are runs of consecutive cells with their own proportions of types."""
    edges = np.sort(rng.integers(0, spec.cells + 1, spec.donors - 1))
    donors = np.searchsorted(edges, np.arange(spec.cells), side="right")
    common = rng.dirichlet(np.full(spec.cell_types, 1.0))
    mixes = np.cumsum(rng.dirichlet(20.0 * common + 0.02, spec.donors), axis=1)
    mixes[:, -1] = 1.0
    types = np.empty(spec.cells, np.int64)
    for donor in range(spec.donors):
        cells = np.flatnonzero(donors == donor)
        types[cells] = np.searchsorted(mixes[donor], rng.random(len(cells)))
    return pd.DataFrame(
        {
            "cell_type": _categorical(types, "cell type", spec.cell_types),
            "donor_id": _categorical(donors, "donor", spec.donors),
            "age": rng.integers(20, 81, spec.donors)[donors],
            "doublet_score": rng.beta(1.5, 12.0, spec.cells).astype(np.float32),
        },
        index=_barcodes(spec.cells),
    )


def make_var(
    sampler: CellSampler, templates: TemplateCells, rng: np.random.Generator
) -> pd.DataFrame:
    """Name genes after the templates; other genes get names like those of clones."""
    names = np.array([f"AC{number:06d}.1" for number in range(sampler.n_genes)], dtype=object)
    names[sampler.gene_positions] = np.array(templates.gene_names, object)[sampler.template_genes]
    ids = np.sort(rng.choice(300_000, sampler.n_genes, replace=False))
    feature_ids = [f"ENSG{number:011d}" for number in ids]
    return pd.DataFrame(
        {
            "feature_id": feature_ids,
            "feature_name": names,
            "feature_length": rng.lognormal(7.0, 1.0, sampler.n_genes).astype(np.int64) + 50,
        },
        index=pd.Index(feature_ids, dtype=object),
    )


def _barcodes(n_cells: int) -> pd.Index[str]:
    """Distinct 16-letter barcodes: the cell's number, scrambled by an odd factor, in base 4."""
    scrambled = (np.arange(n_cells, dtype=np.uint64) * np.uint64(2_654_435_761)) % np.uint64(2**32)
    digits = (scrambled[:, None] >> np.arange(0, 32, 2, dtype=np.uint64)) & np.uint64(3)
    letters = np.frombuffer(b"ACGT", np.uint8)[digits.astype(np.intp)]
    names: list[str] = letters.view("S16").ravel().astype(str).tolist()
    return pd.Index(names, dtype=object)


def _categorical(codes: npt.NDArray[np.int64], name: str, n_categories: int) -> pd.Categorical[str]:
    categories: pd.Index[str] = pd.Index([f"{name} {number:02d}" for number in range(n_categories)])
    return pd.Categorical.from_codes(codes, categories)
