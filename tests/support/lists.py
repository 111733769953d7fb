"""Cells as lists of genes and of values, in Parquet and Arrow files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

GENES = ["TP53", "CD3", "é", "NA", "GENE"]
#: Ids of the genes, not in their order, and with gaps.
IDS = [7, 3, 5, 12, 4]


def write_vocabulary(path: Path) -> Path:
    """A table like that of Tahoe-100M."""
    ensembl = [f"ENSG{i:011}" for i in range(len(GENES))]
    table = pa.table({"gene_symbol": GENES, "ensembl_id": ensembl, "token_id": IDS})
    pq.write_table(table, path)
    return path


def some_cells(n: int, seed: int = 0, *, marker: bool = False) -> pa.Table:
    """Cells like those of Tahoe-100M, in which a first entry of each list may be a marker."""
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(len(IDS))[: rng.integers(0, len(IDS) + 1)] for _ in range(n)]
    genes = [[*[1] * marker, *(IDS[i] for i in row)] for row in chosen]
    values = [[*[-2] * marker, *rng.integers(1, 9, len(row)).tolist()] for row in chosen]
    return pa.table(
        {
            "genes": pa.array(genes, pa.list_(pa.int64())),
            "expressions": pa.array(values, pa.list_(pa.float32())),
            "drug": pa.array(rng.choice(["DMSO", "Bortezomib"], n).tolist(), pa.string()),
            "BARCODE_SUB_LIB_ID": pa.array([f"{seed}_{i:03}" for i in range(n)], pa.string()),
            "plate": pa.array(rng.integers(0, 9, n).tolist(), pa.int16()),
        }
    )


def dense(table: pa.Table, ids: Sequence[Any], genes: str = "genes") -> np.ndarray:
    """Cells by genes, which have these ids; values of others are left out, repeated ones added."""
    rows = np.zeros((table.num_rows, len(ids)))
    for row, cell, values in zip(
        rows, table[genes].to_pylist(), table["expressions"].to_pylist(), strict=True
    ):
        for gene, value in zip(cell or (), values or (), strict=True):
            if gene in ids:
                row[ids.index(gene)] += value
    return rows


def save_to_disk(directory: Path, *tables: pa.Table, rows: int = 3) -> Path:
    """What ``save_to_disk`` of Hugging Face's datasets writes."""
    directory.mkdir()
    names = [f"data-{i:05}-of-{len(tables):05}.arrow" for i in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with (
            pa.OSFile(str(directory / name), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as stream,
        ):
            stream.write_table(table, rows)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (directory / "state.json").write_text(json.dumps(state))
    (directory / "dataset_info.json").write_text(json.dumps({"features": {}}))
    return directory
