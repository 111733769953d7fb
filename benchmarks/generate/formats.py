"""Write the counts of a generated h5ad file in other formats, by blocks of rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import scipy.sparse as sp
from anndata.io import read_elem
from isal import igzip
from tqdm import tqdm

BLOCK_ROWS = 1_024
_CHUNK = 1 << 14
#: Cells of each fragment of a TileDB array. Readers open all fragments.
_SOMA_ROWS = 1 << 13


class Cells(NamedTuple):
    """The counts of an open h5ad file, with its tables."""

    matrix: h5py.Group
    obs: pd.DataFrame
    var: pd.DataFrame

    @classmethod
    def of(cls, file: h5py.File) -> Cells:
        """The raw matrix of a file, or X."""
        matrix, var = ("raw/X", "raw/var") if "raw" in file else ("X", "var")
        return cls(file[matrix], read_elem(file["obs"]), read_elem(file[var]))

    def blocks(self, n_rows: int = BLOCK_ROWS) -> Iterator[tuple[slice, sp.csr_matrix]]:
        """Consecutive rows as a matrix of int32."""
        offsets = self.matrix["indptr"][:]
        for start in tqdm(range(0, len(self.obs), n_rows), disable=None, unit="block"):
            rows = slice(start, min(start + n_rows, len(self.obs)))
            first, last = offsets[rows.start], offsets[rows.stop]
            values = self.matrix["data"][first:last].astype(np.int32)
            indices, indptr = self.matrix["indices"][first:last], offsets[start : rows.stop + 1]
            shape = (rows.stop - start, len(self.var))
            yield rows, sp.csr_matrix((values, indices, indptr - first), shape=shape)


def tenx_h5(cells: Cells, out: Path) -> None:
    """An HDF5 file as Cell Ranger writes it since version 3."""
    n, nnz = len(cells.obs), len(cells.matrix["data"])
    with h5py.File(out, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(cells.obs.index, "S")
        group["shape"] = np.array([len(cells.var), n], "i4")
        features = group.create_group("features")
        features["_all_tag_keys"] = np.array([b"genome"])
        ids = np.array(cells.var.index, "S")
        kind, genome = np.full(len(ids), b"Gene Expression"), np.full(len(ids), b"GRCh38")
        names = np.array(cells.var["feature_name"], "S")
        columns = {"id": ids, "name": names, "feature_type": kind, "genome": genome}
        for name, values in columns.items():
            features[name] = values
        options = {"chunks": (_CHUNK,), "maxshape": (None,), "compression": "gzip"}
        group.create_dataset("data", (nnz,), "i4", **options)
        group.create_dataset("indices", (nnz,), "i8", **options)
        group.create_dataset("indptr", data=cells.matrix["indptr"][:], **options)
        at = 0
        for _, block in cells.blocks():
            group["data"][at : at + block.nnz] = block.data
            group["indices"][at : at + block.nnz] = block.indices
            at += block.nnz


def tenx_mtx(cells: Cells, out: Path) -> None:
    """A directory of Cell Ranger with compressed text."""
    out.mkdir()
    with igzip.open(out / "barcodes.tsv.gz", "wt") as file:
        file.writelines(f"{name}\n" for name in cells.obs.index)
    with igzip.open(out / "features.tsv.gz", "wt") as file:
        pairs = zip(cells.var.index, cells.var["feature_name"], strict=True)
        file.writelines(f"{gene}\t{name}\tGene Expression\n" for gene, name in pairs)
    options = pyarrow.csv.WriteOptions(include_header=False, delimiter=" ")
    with igzip.open(out / "matrix.mtx.gz", "wb") as file:
        shape = f"{len(cells.var)} {len(cells.obs)} {len(cells.matrix['data'])}"
        file.write(f"%%MatrixMarket matrix coordinate integer general\n%\n{shape}\n".encode())
        for rows, block in cells.blocks():
            row = np.repeat(np.arange(rows.start, rows.stop), np.diff(block.indptr))
            table = pa.table({"gene": block.indices + 1, "cell": row + 1, "n": block.data})
            sink = pa.BufferOutputStream()
            pyarrow.csv.write_csv(table, sink, options)
            file.write(sink.getvalue())


def parquet(cells: Cells, out: Path) -> None:
    """A row for each cell, with lists of genes and of counts."""
    writer = None
    for rows, block in cells.blocks():
        offsets = pa.array(block.indptr, pa.int32())
        lists = {
            "genes": pa.ListArray.from_arrays(offsets, pa.array(block.indices, pa.int64())),
            "expressions": pa.ListArray.from_arrays(offsets, pa.array(block.data, pa.float32())),
        }
        obs = pa.Table.from_pandas(cells.obs.iloc[rows], preserve_index=False)
        table = pa.table({**lists, "barcode": pa.array(cells.obs.index[rows])})
        for name in obs.column_names:
            table = table.append_column(name, obs[name])
        writer = writer or pq.ParquetWriter(out, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()
    gene_file(out, len(cells.var)).write_text("".join(f"{name}\n" for name in cells.var.index))


def gene_file(out: Path, n_genes: int) -> Path:
    """The file beside a parquet file with the names of its genes."""
    return out.with_name(f"genes-{n_genes}.txt")


def h5mu(cells: Cells, out: Path) -> None:
    """A MuData file of one modality, ``rna``."""
    with h5py.File(out, "w") as file:
        rna = file.create_group("mod/rna")
        source = cells.matrix.file
        for name in source:
            source.copy(source[name], rna, name)
        rna.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        file["mod"].attrs["mod-order"] = ["rna"]
        for name in ("obs", "var"):
            source.copy(source[name], file, name)
        file.attrs.update({"encoding-type": "MuData", "encoding-version": "0.1.0", "axis": 0})


def loom(cells: Cells, out: Path) -> None:
    """A dense matrix of genes by cells; its size is that of the dense matrix before gzip."""
    n_genes, n_cells = len(cells.var), len(cells.obs)
    with h5py.File(out, "w") as file:
        file.attrs["LOOM_SPEC_VERSION"] = "3.0.0"
        chunks = min(64, n_genes), min(64, n_cells)
        options = {"chunks": chunks, "compression": "gzip", "compression_opts": 2}
        matrix = file.create_dataset("matrix", (n_genes, n_cells), "i4", **options)
        for name in ("layers", "row_graphs", "col_graphs", "attrs"):
            file.create_group(name)
        file["attrs/LOOM_SPEC_VERSION"] = "3.0.0"
        file["row_attrs/Gene"] = np.array(cells.var.index, "S")
        file["col_attrs/CellID"] = np.array(cells.obs.index, "S")
        file["col_attrs/cell_type"] = np.array(cells.obs["cell_type"], "S")
        for rows, block in cells.blocks():
            matrix[:, rows] = block.toarray().T


def soma(cells: Cells, out: Path) -> None:
    """An experiment of TileDB-SOMA as the CELLxGENE Census: counts are the layer ``raw`` of RNA."""
    import tiledbsoma

    tables = {"obs": _soma_table("obs_id", cells.obs), "var": _soma_table("var_id", cells.var)}
    with tiledbsoma.Experiment.create(str(out)) as experiment:
        rna = experiment.add_new_collection("ms").add_new_collection("RNA", tiledbsoma.Measurement)
        for name, parent in (("obs", experiment), ("var", rna)):
            table = tables[name]
            domain = [(0, len(table) - 1)]
            parent.add_new_dataframe(name, schema=table.schema, domain=domain)
        shape = len(cells.obs), len(cells.var)
        layers = rna.add_new_collection("X")
        layers.add_new_sparse_ndarray("raw", type=pa.float32(), shape=shape)
    # Opened again: categories are lost that are written at the time of the creation.
    for name, place in (("obs", "obs"), ("var", "ms/RNA/var")):
        with tiledbsoma.open(f"{out}/{place}", "w") as to:
            to.write(tables[name])
    with tiledbsoma.open(f"{out}/ms/RNA/X/raw", "w") as matrix:
        for rows, block in cells.blocks(_SOMA_ROWS):
            cell = np.repeat(np.arange(rows.start, rows.stop), np.diff(block.indptr))
            gene, count = block.indices.astype(np.int64), block.data.astype(np.float32)
            matrix.write(pa.table({"soma_dim_0": cell, "soma_dim_1": gene, "soma_data": count}))


def _soma_table(index: str, frame: pd.DataFrame) -> pa.Table:
    """A table of cells or genes, with a column of their names."""
    table = pa.Table.from_pandas(frame.rename_axis(index).reset_index(), preserve_index=False)
    return table.append_column("soma_joinid", pa.array(np.arange(len(frame))))


#: Writers of formats by name, with the suffix of their files.
FORMATS: dict[str, tuple[Callable[[Cells, Path], None], str]] = {
    "tenx_h5": (tenx_h5, ".h5"),
    "tenx_mtx": (tenx_mtx, "-mtx"),
    "parquet": (parquet, ".parquet"),
    "h5mu": (h5mu, ".h5mu"),
    "loom": (loom, ".loom"),
    "soma": (soma, ".soma"),
}


def write_as(name: str, source: Path, out: Path) -> None:
    """Write an h5ad file as another format; it appears when it is complete.

    Parameters
    ----------
    name
        One of :data:`FORMATS`.
    source
        The file, with CSR counts in ``raw/X`` or ``X``.
    out
        The file or directory to write; what was there is removed.
    """
    unfinished = out.with_name(f"unfinished-{out.name}")
    for path in (unfinished, out):
        remove(path)
    with h5py.File(source) as file:
        arguments: Any = Cells.of(file), unfinished
        FORMATS[name][0](*arguments)
    unfinished.rename(out)


def remove(path: Path) -> None:
    """Remove a file or a directory, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
