"""Outputs of Cell Ranger, as its documentation describes them."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import h5py
import numpy as np
import scipy.sparse as sp
from sources import random_cells

BARCODES = [f"ACGT{i:04}-1" for i in range(9)]
NAMES = ["TP53", "GENE", "GENE", "CD3", "guide 1", "é"]
IDS = [f"ENSG{i:011}" for i in range(6)]
TYPES = [*["Gene Expression"] * 3, "Antibody Capture", "CRISPR Guide Capture", "Gene Expression"]
GENOMES = [*["GRCh38"] * 2, "mm10", "", "", "mm10"]
EXPECTED = abs(random_cells(9, 6, dtype="i4").csr("i4").toarray())
EXPECTED[4] = 0


def h5_of_version_3(path: Path) -> Path:
    columns = sp.csr_matrix(EXPECTED)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(BARCODES, "S")
        for part in ("data", "indices", "indptr"):
            group[part] = getattr(columns, part)
        group["shape"] = np.array(EXPECTED.shape[::-1], "i4")
        features = group.create_group("features")
        features["_all_tag_keys"] = np.array(["genome"], "S")
        named = {"id": IDS, "name": NAMES, "feature_type": TYPES, "genome": GENOMES}
        for name, values in {**named, "pattern": [""] * 6}.items():
            features[name] = np.array([value.encode() for value in values], "S")
    return path


def h5_of_version_2(path: Path, genomes: tuple[str, ...] = ("hg19",)) -> Path:
    columns = sp.csr_matrix(EXPECTED)
    with h5py.File(path, "w") as file:
        for genome in genomes:
            group = file.create_group(genome)
            for part in ("data", "indices", "indptr"):
                group[part] = getattr(columns, part)
            group["shape"] = np.array(EXPECTED.shape[::-1], "i4")
            group["barcodes"] = np.array(BARCODES, "S")
            group["genes"] = np.array(IDS, "S")
            group["gene_names"] = np.array([name.encode() for name in NAMES], "S")
    return path


PACK = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}


def market(
    directory: Path,
    *,
    version: int = 3,
    prefix: str = "",
    packed: str = ".gz",
    text: str | None = None,
) -> Path:
    directory.mkdir(exist_ok=True)
    if text is None:
        entries = sp.coo_matrix(EXPECTED)
        lines = [
            f"{g + 1} {c + 1} {v}" for c, g, v in zip(*entries.coords, entries.data, strict=True)
        ]
        text = f"6 9 {len(lines)}\n" + "\n".join(lines) + "\n"
        text = "%%MatrixMarket matrix coordinate integer general\n%made: by hand\n" + text
    rows = zip(IDS, NAMES, TYPES, strict=True)
    tables = {
        "matrix.mtx": text,
        "barcodes.tsv": "".join(f"{name}\n" for name in BARCODES),
        "features.tsv" if version == 3 else "genes.tsv": "".join(
            "\t".join(row[:version]) + "\n" for row in rows
        ),
    }
    for name, content in tables.items():
        (directory / f"{prefix}{name}{packed}").write_bytes(PACK[packed](content.encode()))
    return directory
