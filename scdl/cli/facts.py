"""Output of `scdl info` for archives and collections."""

from __future__ import annotations

from scdl.archive.elements import dense_vectors, elements_of, graph_keys
from scdl.archive.fields import Field
from scdl.archive.schema import DATA, INDEX, MATRIX, field_element
from scdl.collection.collection import SingleCellCollection
from scdl.collection.paths import has_manifest, is_collection
from scdl.dataset.dataset import SingleCellDataset
from storage_backends import registry
from storage_backends.base import ArrayStore

#: Maximum number of archives to list.
_MAX_LISTED = 50

#: Pairs of a label and its value, one per line of the output.
Facts = list[tuple[str, str]]


def facts(path: str) -> Facts:
    """Facts about an archive or a collection; raises the errors of :func:`scdl.open`."""
    return _collection_facts(path) if is_collection(path) else _archive_facts(path)


def _collection_facts(path: str) -> Facts:
    collection = SingleCellCollection(path)
    backends: set[str] = set()
    nbytes, members = 0, []
    # The collection keeps only a few members open at a time.
    for name, member in zip(
        collection.member_names, collection.fname_to_mmap.values(), strict=True
    ):
        backends.add(registry.detect(member.data_path).name)
        nbytes += member.store.nbytes
        genes = " + ".join(f"{n:,}" for n in member.n_vars)
        members.append((name, f"{member.n_obs:,} cells x {genes} genes"))
    n_vars, obs = collection.n_vars, collection.obs_features()
    blocks = f", in {len(n_vars):,} feature blocks" if len(n_vars) > 1 else ""
    stored = collection.number_nonzero_values()
    facts = [
        ("path", path),
        ("collection of", f"{len(members):,} archives ({', '.join(sorted(backends))})"),
        ("manifest", "yes" if has_manifest(path) else "none; save_manifest() writes one"),
        ("cells", f"{collection.n_obs:,}"),
        ("genes", " to ".join(f"{n:,}" for n in sorted({min(n_vars), max(n_vars)})) + blocks),
        ("stored values", f"{stored:,} ({1 - collection.sparsity():.2%} of all)"),
        ("dtypes", f"data {collection.data_dtype}, indices {collection.index_dtype}"),
        ("on disk", f"{nbytes:,} bytes"),
        ("obs", ", ".join(obs.columns.names) if obs else "none"),
        *(("graphs", key) for key in collection.neighbor_keys),
        *(("field", name) for name in collection.fields),
    ]
    facts += members[:_MAX_LISTED]
    if len(members) > _MAX_LISTED:
        facts.append(("", f"and {len(members) - _MAX_LISTED:,} more archives"))
    return facts


def _archive_facts(path: str) -> Facts:
    dataset = SingleCellDataset(path)
    store, sizes = dataset.store, dataset.store.stored_bytes
    total, nnz = store.nbytes, store.spec(DATA).length
    facts = [
        ("path", path),
        ("backend", registry.detect(path).name),
        ("cells", f"{dataset.n_obs:,}"),
        ("genes", " + ".join(f"{n:,}" for n in dataset.n_vars)),
        ("stored values", f"{nnz:,} ({1 - dataset.sparsity():.2%} of all)"),
        ("dtypes", ", ".join(f"{name} {store.spec(name).dtype}" for name in MATRIX)),
        ("on disk", f"{total:,} bytes" + (f", {total / nnz:.2f} per stored value" if nnz else "")),
        ("matrix", _matrix_size(store)),
        ("source matrix", ", ".join(dict.fromkeys(dataset.info.matrices)) or "not recorded"),
        ("source files", ", ".join(b.label for b in dataset.info.blocks if b.label) or "unknown"),
    ]
    if store.requires:
        facts.append(("other programs", f"need {', '.join(store.requires)} installed to read it"))
    for name in store.tables:
        columns = [column for column in store.table_schema(name).names if column != INDEX]
        names = "names" if INDEX in store.table_schema(name).names else "no names"
        listed = ", ".join([names, *columns])
        facts.append((f"table {name}", f"{listed} ({sizes[name]:,} bytes)"))
    facts += [("graphs", key) for key in graph_keys(store)]
    facts += [("obsm", key) for key in dense_vectors(store)]
    facts += [("field", _field(name, dataset._field(name))) for name in dataset.fields]
    listed_names = {*(f"obsp/{key}" for key in graph_keys(store))}
    listed_names |= {f"obsm/{key}" for key in dense_vectors(store)}
    listed_names |= set(map(field_element, dataset.fields))
    facts += [("element", name) for name in elements_of(store) if name not in listed_names]
    for name, spec in store.arrays.items():
        how = store.describe(name)
        share = f", {sizes[name] / spec.nbytes:.1%} of memmap" if how and spec.nbytes else ""
        facts.append((f"array {name}", f"{sizes[name]:,} bytes{share}{': ' if how else ''}{how}"))
    return facts


def _field(name: str, field: Field) -> str:
    return f"{name} ({field.n_values:,} stored values, {field.dtype})"


def _matrix_size(store: ArrayStore) -> str:
    stored = sum(store.stored_bytes[part] for part in MATRIX)
    raw = sum(store.spec(part).nbytes for part in MATRIX)
    nnz = store.spec(DATA).length
    bits = f"{8 * stored / nnz:.2f} bits per stored value, " if nnz else ""
    return f"{stored:,} bytes, {bits}{stored / raw:.1%} of a memmap archive's {raw:,}"
