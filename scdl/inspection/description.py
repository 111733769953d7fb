"""What `scdl info --json` and the commands that write an archive report, as data."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

from scdl.archive.elements import dense_vectors, elements_of, graph_keys
from scdl.archive.schema import DATA, INDEX, MATRIX
from scdl.collection.collection import SingleCellCollection
from scdl.collection.paths import has_manifest, is_collection
from scdl.dataset.dataset import SingleCellDataset
from scdl.reports import Report
from storage_backends import registry


@dataclass(frozen=True)
class Summary(Report):
    """An archive or a collection in a few words; the fields are those of a ConversionReport."""

    path: str
    backend: str
    n_obs: int
    n_vars: list[int]
    nnz: int
    dtype: str
    nbytes: int

    def __str__(self) -> str:
        genes = " + ".join(f"{n:,}" for n in self.n_vars)
        return (
            f"{self.path} ({self.backend}): {self.n_obs:,} cells x {genes} genes, "
            f"{self.nnz:,} values as {self.dtype}\n{self.nbytes / 1e6:,.1f} MB"
        )


def summary_of(path: str) -> Summary:
    """The summary of an archive or a collection."""
    described = describe(path)
    backends = described.get("backends") or [described["backend"]]
    names = ("path", "n_obs", "n_vars", "nnz", "nbytes")
    return Summary(
        backend=", ".join(backends),
        dtype=described["dtypes"][DATA],
        **{name: described[name] for name in names},
    )


def exported(path: str, dest: str) -> Summary:
    """The summary of an AnnData that was written from an archive."""
    if not os.path.isfile(dest):
        return summary_of(dest)
    return replace(summary_of(path), path=dest, backend="h5ad", nbytes=os.path.getsize(dest))


def describe(path: str) -> dict[str, Any]:
    """An archive or a collection as a JSON object; raises the errors of :func:`scdl.open`."""
    return _collection(path) if is_collection(path) else _archive(path)


def _collection(path: str) -> dict[str, Any]:
    collection = SingleCellCollection(path)
    members, backends, nbytes = [], set(), 0
    pairs = zip(collection.member_names, collection.fname_to_mmap.values(), strict=True)
    # The collection keeps only a few members open at a time.
    for name, member in pairs:
        backends.add(registry.detect(member.data_path).name)
        nbytes += member.store.nbytes
        members.append({"name": name, "n_obs": member.n_obs, "n_vars": member.n_vars})
    obs = collection.obs_features()
    return {
        "path": path,
        "kind": "collection",
        "backends": sorted(backends),
        "n_obs": collection.n_obs,
        "n_vars": collection.n_vars,
        "nnz": collection.number_nonzero_values(),
        "dtypes": {"data": str(collection.data_dtype), "indices": str(collection.index_dtype)},
        "nbytes": nbytes,
        "has_manifest": has_manifest(path),
        "obs": list(obs.columns.names) if obs else [],
        "neighbor_keys": list(collection.neighbor_keys),
        "members": members,
    }


def _archive(path: str) -> dict[str, Any]:
    dataset = SingleCellDataset(path)
    store, sizes = dataset.store, dataset.store.stored_bytes
    schemas = {name: store.table_schema(name).names for name in store.tables}
    graphs, vectors = graph_keys(store), dense_vectors(store)
    listed = {*(f"obsp/{key}" for key in graphs), *(f"obsm/{key}" for key in vectors)}
    return {
        "path": path,
        "kind": "archive",
        "backend": registry.detect(path).name,
        "n_obs": dataset.n_obs,
        "n_vars": dataset.n_vars,
        "nnz": store.spec(DATA).length,
        "dtypes": {name: str(store.spec(name).dtype) for name in MATRIX},
        "nbytes": store.nbytes,
        "matrices": list(dict.fromkeys(dataset.info.matrices)),
        "sources": [block.label for block in dataset.info.blocks if block.label],
        "requires": list(store.requires),
        "tables": {
            name: {
                "columns": [column for column in names if column != INDEX],
                "has_names": INDEX in names,
                "nbytes": sizes[name],
            }
            for name, names in schemas.items()
        },
        "neighbor_keys": list(graphs),
        "obsm": list(vectors),
        "elements": [name for name in elements_of(store) if name not in listed],
        "arrays": {
            name: {
                "dtype": str(spec.dtype),
                "length": spec.length,
                "nbytes": sizes[name],
                "storage": store.describe(name),
            }
            for name, spec in store.arrays.items()
        },
    }
