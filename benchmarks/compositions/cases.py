"""Nested selections of genes: what scdl returns, and what anndata and pandas return."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

import scdl
from scdl.dataset.reader import CellReader
from scdl.errors import GeneError

KINDS = ("memmap", "zarr", "collection")
#: Most selections on top of each other.
DEPTH = 3
#: Compositions that are tried on one data set.
_EACH = 100


@dataclass(frozen=True)
class Cells:
    """A data set, and the AnnData objects that it was converted from."""

    kind: str
    reader: CellReader
    parts: list[ad.AnnData]


@dataclass(frozen=True)
class Expected:
    """The expected result of a selection.

    Attributes
    ----------
    frames
        Cells and genes of each part, dense.
    present
        Measured genes of each part.
    """

    frames: list[pd.DataFrame]
    present: list[set[str]]

    @property
    def dense(self) -> np.ndarray:
        return np.concatenate([frame.to_numpy() for frame in self.frames])

    @property
    def mask(self) -> np.ndarray:
        names = list(self.frames[0].columns)
        rows = [np.isin(names, list(there)) for there in self.present]
        return np.repeat(np.array(rows), [len(frame) for frame in self.frames], axis=0)


def make_cells(rng: np.random.Generator, place: Path, kind: str) -> Cells:
    """Write parts with different genes as one archive or as a collection."""
    names = [f"g{i}" for i in range(rng.integers(4, 14))]
    parts = []
    for number in range(rng.integers(1, 4)):
        genes = rng.permutation(names)[: rng.integers(2, len(names) + 1)]
        n_obs = int(rng.integers(1, 8))
        values = rng.integers(0, 3, (n_obs, len(genes))) * rng.integers(1, 200)
        var = pd.DataFrame({"symbol": [f"S{int(g[1:]) // 2}" for g in genes]}, index=genes)
        obs = pd.DataFrame(index=[f"c{number}-{i}" for i in range(n_obs)])
        parts.append(ad.AnnData(sp.csr_matrix(values.astype(np.float32)), obs, var))
    files = [place / f"{i}.h5ad" for i in range(len(parts))]
    for part, file in zip(parts, files, strict=True):
        part.write_h5ad(file)
    dtype = str(rng.choice(["uint16", "float32", "float16"]))
    if kind == "collection":
        paths = [place / f"{i}.{rng.choice(['scdl', 'zarr'])}" for i in range(len(files))]
        for file, path in zip(files, paths, strict=True):
            scdl.convert(file, path, data_dtype=dtype, only_matrix=True)
        return Cells(kind, scdl.SingleCellCollection(paths), parts)
    # A conversion brings the genes of a source into the order of the first source that has them.
    orders: dict[frozenset[str], pd.Index] = {}
    for number, part in enumerate(parts):
        order = orders.setdefault(frozenset(part.var_names), part.var_names)
        parts[number] = part[:, order].copy()
    path = place / ("all.zarr" if kind == "zarr" else "all")
    options = {"compression": str(rng.choice(["fast", "archive"]))} if kind == "zarr" else {}
    scdl.convert(files, path, data_dtype=dtype, only_matrix=True, **options)
    return Cells(kind, scdl.open(path), parts)


def select(
    before: Expected, ids: list[list[str]], genes: Any, missing: str, duplicates: str
) -> Expected | None:
    """Select genes with pandas; None where the selection is an error.

    Parameters
    ----------
    ids
        The id of each gene, for each part.
    """
    lists = [list(dict.fromkeys(part)) for part in ids]
    if isinstance(genes, str):
        every = list(dict.fromkeys(gene for part in lists for gene in part))
        shared = [gene for gene in lists[0] if all(gene in part for part in lists)]
        genes = every if genes == "union" else shared
    repeats = any(part.count(gene) > 1 for part in ids for gene in genes)
    lacks = any(gene not in part for part in lists for gene in genes)
    nothing = not any(gene in part for part in lists for gene in genes)
    refused = nothing or (lacks and missing == "error") or (repeats and duplicates == "error")
    if refused:
        return None
    frames, present = [], []
    for frame, there, part in zip(before.frames, before.present, ids, strict=True):
        named = frame.set_axis(part, axis=1)
        grouped = named.T.groupby(level=0, sort=False)
        joined = (grouped.sum() if duplicates == "sum" else grouped.first()).T
        frames.append(joined.reindex(columns=genes, fill_value=0))
        known = {new for new, old in zip(part, frame.columns, strict=True) if old in there}
        present.append(known & set(genes))
    return Expected(frames, present)


def composed(
    rng: np.random.Generator, cells: Cells
) -> tuple[list[dict[str, Any]], CellReader | None, Expected | None]:
    """Draw nested selections; return them, the view of scdl, and the expected result."""
    view: CellReader = cells.reader
    frames = [part.to_df().astype(np.float64) for part in cells.parts]
    right: Expected | None = Expected(frames, [set(part.var_names) for part in cells.parts])
    steps: list[dict[str, Any]] = []
    for depth in range(rng.integers(1, DEPTH + 1)):
        assert right is not None
        by_symbol = depth == 0 and rng.random() < 0.3
        ids = [
            list(part.var["symbol"]) if by_symbol else list(frame.columns)
            for part, frame in zip(cells.parts, right.frames, strict=True)
        ]
        step = {
            "genes": _genes(rng, sorted({gene for part in ids for gene in part})),
            "gene_column": "symbol" if by_symbol else None,
            "missing": str(rng.choice(["error", "zero", "mask"], p=[0.2, 0.5, 0.3])),
            "duplicates": str(rng.choice(["error", "sum", "first"])),
        }
        steps.append(step)
        if depth:
            # A selection is one list of genes, the same for all parts.
            ids = [list(right.frames[0].columns)] * len(ids)
        right = select(right, ids, step["genes"], step["missing"], step["duplicates"])
        try:
            view = view.select_genes(**step)
        except GeneError:
            return steps, None, right
        if right is None:
            return steps, view, None
    return steps, view, right


def _genes(rng: np.random.Generator, known: list[str]) -> Any:
    if rng.random() < 0.25:
        return str(rng.choice(["union", "intersection"]))
    chosen = list(map(str, rng.permutation(sorted({*known, "nowhere"}))))
    return chosen[: rng.integers(1, len(chosen) + 1)]


def difference(rng: np.random.Generator, view: CellReader, right: Expected) -> str:
    """Describe how reading differs from what is expected; empty where it does not."""
    dense = right.dense
    rows = rng.integers(0, len(dense), rng.integers(1, 12))
    for ordered in (True, False):
        batch = view.read_rows(rows, ordered=ordered)
        if not np.array_equal(batch.to_dense().astype(np.float64), dense[rows]):
            return f"values of rows {rows.tolist()}, ordered={ordered}"
    batch = view.read_rows(rows)
    if not np.array_equal(batch.to_scipy().toarray().astype(np.float64), dense[rows]):
        return "to_scipy"
    if batch.present is not None:
        found = batch.present[batch.spaces]
        if not np.array_equal(found, right.mask[rows]):
            return "genes that are present"
    if list(view.var_names) != list(right.frames[0].columns):
        return "names of genes"
    row = int(rows[0])
    if not np.array_equal(view.get_row_padded(row)[0].astype(np.float64), dense[row]):
        return "get_row_padded"
    return ""


def run(cases: int, kind: str, seed: int = 0) -> Iterator[str]:
    """Try compositions on data sets of a kind; yield what is wrong."""
    for number in range(0, cases, _EACH):
        rng = np.random.default_rng([seed, KINDS.index(kind), number])
        with tempfile.TemporaryDirectory() as place:
            cells = make_cells(rng, Path(place), kind)
            whole = ad.concat(cells.parts, join="outer", fill_value=0)
            for i in range(number, min(number + _EACH, cases)):
                steps, view, right = composed(rng, cells)
                where = f"{kind}, case {i} of seed {seed}: {steps}"
                if (view is None) != (right is None):
                    yield f"{where}: {'refused' if view is None else 'not refused'}"
                elif view is not None and right is not None:
                    if wrong := difference(rng, view, right):
                        yield f"{where}: {wrong}"
                    genes = right.frames[0].columns
                    if len(steps) == 1 and steps[0]["gene_column"] is None:
                        by_anndata = whole[:, [g for g in genes if g in whole.var_names]].to_df()
                        expected = by_anndata.reindex(columns=genes, fill_value=0)
                        if not np.array_equal(expected.to_numpy(), right.dense):
                            yield f"{where}: anndata.concat disagrees with the oracle"
