"""Descriptions of the members of a collection, and the manifest that stores them."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from scdl.archive.elements import graph_keys
from scdl.archive.gene_names import space_key, table_hash
from scdl.archive.schema import DATA, INDICES, OBS, Block, Info, var_table
from scdl.collection.paths import KEPT_PREFIX, MANIFEST
from scdl.errors import ArchiveFormatError, CollectionError
from storage_backends.base import DTYPES, ArrayStore
from storage_backends.capabilities import TableStore
from storage_backends.compute.caching import LRUCache
from storage_backends.directory import locks, publication
from storage_backends.errors import refused_write
from storage_backends.paths import is_url as is_url
from storage_backends.registry import is_archive as is_archive

_FORMAT = 1
_DTYPE_NAMES = frozenset(dtype.name for dtype in DTYPES)
#: Maximum of all counts, so that sums of cells fit into an int64.
_MAX_COUNT = 1 << 62

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
        )

    def with_genes(
        self, store: TableStore, may_read: Callable[[], bool] = lambda: True
    ) -> Self:
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
            tuple(map(_count, entry["n_vars"])),
            tuple(map(_count, entry["stops"])),
            tuple(label and str(label) for label in entry["labels"]),
            tuple(map(str, entry["genes"])),
            _count(entry["values"]),
            (_dtype(entry["dtypes"][0]), _dtype(entry["dtypes"][1])),
            bool(entry["is_sorted"]),
            _count(entry["values_per_chunk"]),
            bool(entry["has_obs"]),
            tuple(map(str, entry["graphs"])),
            None if entry.get("content") is None else str(entry["content"]),
            tuple(map(str, entry.get("spaces", ()))),
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


def _count(n: Any) -> int:
    """A count in a manifest; ValueError if it is invalid."""
    if type(n) is not int or not 0 <= n <= _MAX_COUNT:
        raise ValueError(f"bad count {n!r:.100}")
    return n


def _dtype(name: Any) -> str:
    """Name of a dtype; ValueError if it is invalid."""
    if name not in _DTYPE_NAMES:
        raise ValueError(f"bad dtype {name!r:.100}")
    return str(name)


def _genes(
    store: TableStore, block: int, may_read: Callable[[], bool]
) -> tuple[str, str] | None:
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


def read_manifest(directory: str) -> list[Member]:
    """Read the members listed in the manifest of a directory.

    Raises
    ------
    ArchiveFormatError
        The manifest is invalid, or of a newer version.
    """
    file = os.path.join(directory, MANIFEST)
    with open(file, "rb") as stream:
        return parse_manifest(stream.read(), directory)


def parse_manifest(data: bytes, directory: str) -> list[Member]:
    """Parse the content of the file of :func:`read_manifest`."""
    file = os.path.join(directory, MANIFEST)
    try:
        manifest = json.loads(data)
        version = _count(manifest["format"])
        if version > _FORMAT:
            raise ArchiveFormatError(
                f"{file}: its format is {version}, this release reads up to {_FORMAT}; "
                "upgrade scdl-store"
            )
        directory = os.path.realpath(directory)
        members = [Member.from_json(entry, directory) for entry in manifest["members"]]
        if sum(member.n_obs for member in members) > _MAX_COUNT:
            raise ValueError("too many cells")
        return members
    except ArchiveFormatError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise ArchiveFormatError(
            f"{file}: this is not a valid manifest ({error!r:.300}); open a list of the paths of "
            "the archives, and write it again with save_manifest"
        ) from error


def manifest_identity(directory: str) -> tuple[int, int] | None:
    """Identifies the manifest of a directory until it is replaced; None if there is none."""
    try:
        status = os.stat(os.path.join(directory, MANIFEST))
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


@contextmanager
def locked(directory: str) -> Iterator[None]:
    """Context manager that locks a directory to change its manifest.

    Raises
    ------
    ArchiveLockedError
        Another process or thread holds the lock.
    """
    with locks.write_locked(directory):
        # With the lock held, unfinished manifests are leftovers of killed processes.
        for pattern in (f".{MANIFEST}.*", f".{KEPT_PREFIX}*"):
            for leftover in glob.glob(os.path.join(glob.escape(directory), pattern)):
                publication.remove(leftover)
        publication.finish_removals(directory)
        yield


def write_manifest(directory: str, members: Iterable[Member]) -> None:
    """Write the manifest of a directory; replaces an existing one atomically."""
    file = os.path.join(directory, MANIFEST)
    # One line a member; json has no faster way to write lines.
    lines = (json.dumps(member.to_json(directory)) for member in members)
    text = f'{{"format": {_FORMAT}, "members": [\n' + ",\n".join(lines) + "\n]}"
    with (
        refused_write(file),
        publication.new_file(file) as part,
        open(part, "w", encoding="utf-8") as stream,
    ):
        stream.write(text + "\n")
