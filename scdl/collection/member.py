"""Description of a member of a collection: what is known of an archive without opening it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from scdl.archive.elements import graph_keys
from scdl.archive.fields import Field, fields_of
from scdl.archive.gene_names import space_key, table_hash
from scdl.archive.schema import DATA, INDICES, OBS, Block, Info, var_table
from scdl.errors import CollectionError
from storage_backends.base import DTYPES, ArrayStore
from storage_backends.capabilities import TableStore
from storage_backends.compute.caching import LRUCache
from storage_backends.paths import is_url

_DTYPE_NAMES = frozenset(dtype.name for dtype in DTYPES)
#: Maximum of all counts, so that sums of cells fit into an int64.
MAX_COUNT = 1 << 62

#: Keys of gene spaces by the hashes of their var tables.
_spaces = LRUCache[str, str](1 << 12)
#: What :func:`_genes` returns, by the fingerprints of var tables.
_genes_of = LRUCache[str, tuple[str, str]](1 << 12)


@dataclass(frozen=True)
class Member:
    """Description of an archive in a collection.

    Parameters
    ----------
    path
        Absolute path, or URL.
    n_vars, stops, labels
        Number of genes, end row and source file of each feature block.
    genes
        Hash of the var table of each feature block; empty until it is needed.
    values
        Number of stored values.
    dtypes
        Dtypes of the values and of the column ids.
    is_sorted
        Whether the column ids of each cell are stored sorted and unique.
    values_per_chunk
        Number of stored values that are always read together.
    has_obs
        Whether there is a table of cells.
    graphs
        Keys of the neighbour graphs.
    content
        Hash of the content; None if the archive has no checksums.
    spaces
        Key of the gene space of each feature block; empty until it is needed.
    fields
        How each field is stored, by name; None if unknown, as in manifests of earlier versions.
    """

    path: str
    n_vars: tuple[int, ...]
    stops: tuple[int, ...]
    labels: tuple[str | None, ...]
    genes: tuple[str, ...]
    values: int
    dtypes: tuple[str, str]
    is_sorted: bool
    values_per_chunk: int
    has_obs: bool
    graphs: tuple[str, ...]
    content: str | None
    spaces: tuple[str, ...] = ()
    fields: Mapping[str, Field] | None = None

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.stops[-1]

    @property
    def blocks(self) -> list[Block]:
        """Feature blocks."""
        parts = zip(self.stops, self.n_vars, self.labels, strict=True)
        return [Block(*part) for part in parts]

    @classmethod
    def of(cls, path: str, store: ArrayStore) -> Self:
        """Describe an open archive, except for its genes."""
        info = Info.of(store)
        return cls(
            path,
            tuple(block.n_vars for block in info.blocks),
            tuple(block.stop for block in info.blocks),
            tuple(block.label for block in info.blocks),
            (),
            store.spec(DATA).length,
            (store.spec(DATA).dtype.name, store.spec(INDICES).dtype.name),
            info.is_sorted,
            store.chunk_length(DATA),
            OBS in store.tables,
            tuple(graph_keys(store)),
            store.fingerprint,
            fields=fields_of(store, info),
        )

    def with_genes(self, store: TableStore, may_read: Callable[[], bool] = lambda: True) -> Self:
        """Add the hashes of the genes, which take longest to compute.

        Parameters
        ----------
        may_read
            Whether a var table may be read that is not known by its fingerprint; otherwise the
            genes stay unknown.
        """
        genes, spaces = [], []
        for i in range(len(self.n_vars)):
            found = _genes(store, i, may_read)
            if found is None:
                return self
            genes.append(found[0])
            spaces.append(found[1])
        return replace(self, genes=tuple(genes), spaces=tuple(spaces))

    def check(self, store: ArrayStore, *, genes: bool) -> None:
        """Raise CollectionError if an open archive differs from this description.

        Parameters
        ----------
        genes
            Whether to compare the genes, too, if they are known. This takes milliseconds, and is
            not needed if the contents have the same hash.
        """
        current = Member.of(self.path, store)
        if self.content is None:
            # Checksums may have been added to the archive.
            current = replace(current, content=None)
        is_same = self.content is not None and self.content == current.content
        compares = genes and self.genes and not is_same
        now = current.with_genes(store) if compares else replace(current, genes=self.genes)
        # Spaces follow from the genes, and manifests of version 0.1 do not have them.
        now = replace(now, spaces=self.spaces)
        if self.fields is None:
            now = replace(now, fields=None)
        if now != self:
            name = next(name for name in _FIELDS if getattr(now, name) != getattr(self, name))
            was, found = getattr(self, name), getattr(now, name)
            raise CollectionError(
                f"{self.path}: the archive changed since it became a member of the collection: "
                f"{name} was {was} and is {found}; call refresh() to accept it"
            )

    @classmethod
    def from_json(cls, entry: Any, directory: str) -> Self:
        """Parse an entry of a manifest; ValueError, KeyError or TypeError if it is invalid."""
        path = entry["path"]
        if not isinstance(path, str) or "\0" in path:
            raise ValueError(f"bad path {path!r:.100}")
        os.fsencode(path)
        if is_url(path):
            raise ValueError(
                f"it lists {path:.200}, but manifests must not make scdl access the network; open "
                "a list of paths and URLs instead"
            )
        made = cls(
            os.path.normpath(os.path.join(directory, path)),
            tuple(map(count_in, entry["n_vars"])),
            tuple(map(count_in, entry["stops"])),
            tuple(label and str(label) for label in entry["labels"]),
            tuple(map(str, entry["genes"])),
            count_in(entry["values"]),
            (_dtype(entry["dtypes"][0]), _dtype(entry["dtypes"][1])),
            bool(entry["is_sorted"]),
            count_in(entry["values_per_chunk"]),
            bool(entry["has_obs"]),
            tuple(map(str, entry["graphs"])),
            None if entry.get("content") is None else str(entry["content"]),
            tuple(map(str, entry.get("spaces", ()))),
            _fields(entry.get("fields")),
        )
        lengths = {len(made.n_vars), len(made.stops), len(made.labels), len(made.genes)}
        if len(lengths) != 1 or not made.stops or list(made.stops) != sorted(made.stops):
            raise ValueError(f"bad blocks of {made.path!r:.200}")
        if made.spaces and len(made.spaces) != len(made.n_vars):
            raise ValueError(f"bad gene spaces of {made.path!r:.200}")
        if made.values_per_chunk == 0:
            raise ValueError(f"bad values_per_chunk of {made.path!r:.200}")
        return made

    def to_json(self, directory: str) -> dict[str, Any]:
        """Convert to an entry of a manifest, with a path relative to the manifest."""
        if is_url(self.path):
            raise CollectionError(
                f"{self.path}: a manifest cannot list remote members, as manifests must not make "
                "scdl access the network; open a list of paths and URLs instead"
            )
        relative = os.path.relpath(self.path, os.path.realpath(directory)).replace(os.sep, "/")
        # Prevent a name with a colon from being parsed as a URL.
        entry = {name: getattr(self, name) for name in _FIELDS}
        return entry | {"path": f"./{relative}" if ":" in relative else relative}


_FIELDS = tuple(field.name for field in fields(Member))


def count_in(n: Any) -> int:
    """A count in a manifest; ValueError if it is invalid."""
    if type(n) is not int or not 0 <= n <= MAX_COUNT:
        raise ValueError(f"bad count {n!r:.100}")
    return n


def _fields(entries: Any) -> dict[str, Field] | None:
    """Fields in a manifest, if it tells them; an error of :meth:`Member.from_json` if invalid."""
    if entries is None:
        return None
    return {
        str(name): Field(_dtype(dtype), _dtype(index_dtype), count_in(n_values), bool(is_sorted))
        for name, (dtype, index_dtype, n_values, is_sorted) in entries.items()
    }


def _dtype(name: Any) -> str:
    """Name of a dtype; ValueError if it is invalid."""
    if name not in _DTYPE_NAMES:
        raise ValueError(f"bad dtype {name!r:.100}")
    return str(name)


def _genes(store: TableStore, block: int, may_read: Callable[[], bool]) -> tuple[str, str] | None:
    """Hash of a var table, and key of its gene space; many members often share a table."""
    name = var_table(block)
    fingerprint = store.table_fingerprint(name)
    known = None if fingerprint is None else _genes_of.get(fingerprint)
    if known is not None or not may_read():
        return known
    table = store.read_table(name)
    genes = table_hash(table)
    space = _spaces.get(genes)
    if space is None:
        space = _spaces.setdefault(genes, space_key(table))
    if fingerprint is not None:
        _genes_of.setdefault(fingerprint, (genes, space))
    return genes, space
