"""What is known of the members of a collection without opening them, and the file that says so."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from scdl.archive.features import block_space_key
from scdl.archive.gene_space import table_hash
from scdl.archive.schema import DATA, INDICES, OBS, Block, Info, graph_keys, var_table
from scdl.collection.paths import MANIFEST
from scdl.errors import ArchiveFormatError, CollectionError
from storage_backends.base import DTYPES, ArrayStore
from storage_backends.directory import locks, publication
from storage_backends.errors import refused_write
from storage_backends.paths import is_url as is_url
from storage_backends.registry import is_archive as is_archive

_FORMAT = 1
_DTYPE_NAMES = frozenset(dtype.name for dtype in DTYPES)
#: Cells of all members together fit into an int64.
_MOST = 1 << 62


@dataclass(frozen=True)
class Member:
    """An archive of a collection.

    Parameters
    ----------
    path
        Where it is, absolute, or a URL.
    n_vars, stops, labels
        Genes of each feature block, row after its last cell, file that it came from.
    genes
        Hash of the var table of each feature block; empty until it is needed.
    values
        Stored values.
    dtypes
        Types of the values and of the column ids.
    is_sorted
        Whether the genes of each cell are stored in rising order, each once.
    values_per_chunk
        Stored values that are read as one.
    has_obs
        Whether there is a table of cells.
    graphs
        Keys of the neighbour graphs.
    content
        What archives of another content do not have; None where an archive has no checksums.
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
        """Cells."""
        return self.stops[-1]

    @property
    def blocks(self) -> list[Block]:
        """Feature blocks."""
        parts = zip(self.stops, self.n_vars, self.labels, strict=True)
        return [Block(*part) for part in parts]

    @classmethod
    def of(cls, path: str, store: ArrayStore) -> Self:
        """What an open archive is, but for its genes."""
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

    def with_genes(self, store: ArrayStore) -> Self:
        """The same with the hashes of its genes, which take longest to find out."""
        blocks = range(len(self.n_vars))
        return replace(
            self,
            genes=tuple(genes_hash(store, i) for i in blocks),
            spaces=tuple(block_space_key(store, i) for i in blocks),
        )

    def check(self, store: ArrayStore, *, genes: bool) -> None:
        """CollectionError where an open archive is not this one any more.

        Parameters
        ----------
        genes
            Whether to compare the genes, too, which takes milliseconds; where they are known.
        """
        found = Member.of(self.path, store)
        if self.content is None:
            # Checksums may be added to an archive that had none.
            found = replace(found, content=None)
        compares = genes and self.genes
        now = asdict(found.with_genes(store) if compares else replace(found, genes=self.genes))
        # It follows from the genes, and manifests of version 0.1 do not have it.
        now["spaces"] = self.spaces
        changed = [name for name, value in asdict(self).items() if now[name] != value]
        if changed:
            name = changed[0]
            raise CollectionError(
                f"{self.path}: the archive changed since it became a member of the collection: "
                f"{name} was {getattr(self, name)} and is {now[name]}; refresh() describes it anew"
            )

    @classmethod
    def from_json(cls, entry: Any, directory: str) -> Self:
        """From an entry of a manifest; ValueError, KeyError or TypeError where it is none."""
        path = entry["path"]
        if not isinstance(path, str) or "\0" in path:
            raise ValueError(f"bad path {path!r:.100}")
        os.fsencode(path)
        if is_url(path):
            raise ValueError(
                f"it names {path:.200}, and a file does not make scdl use the network: give a list "
                "of the paths and URLs instead"
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
        """As an entry of a manifest; the path is relative to it."""
        if is_url(self.path):
            raise CollectionError(
                f"{self.path}: members elsewhere have no place in a manifest, since a file does "
                "not make scdl use the network; open them by a list of paths and URLs"
            )
        relative = os.path.relpath(self.path, os.path.realpath(directory)).replace(os.sep, "/")
        # A name with a colon is not to be taken for a URL.
        return asdict(self) | {"path": f"./{relative}" if ":" in relative else relative}


def _count(n: Any) -> int:
    """A count of a manifest; ValueError where it is none."""
    if type(n) is not int or not 0 <= n <= _MOST:
        raise ValueError(f"bad count {n!r:.100}")
    return n


def _dtype(name: Any) -> str:
    """Name of a type of numbers; ValueError where it is none."""
    if name not in _DTYPE_NAMES:
        raise ValueError(f"bad dtype {name!r:.100}")
    return str(name)


def genes_hash(store: ArrayStore, block: int) -> str:
    """Hash of a var table: of its columns, their types and what is in them."""
    return table_hash(store.read_table(var_table(block)))


def read_manifest(directory: str) -> list[Member]:
    """The members that the manifest in a directory lists.

    Raises
    ------
    ArchiveFormatError
        It is no manifest, or one of a newer version.
    """
    file = os.path.join(directory, MANIFEST)
    with open(file, "rb") as stream:
        return parse_manifest(stream.read(), directory)


def parse_manifest(data: bytes, directory: str) -> list[Member]:
    """As :func:`read_manifest`, of the file's content."""
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
        if sum(member.n_obs for member in members) > _MOST:
            raise ValueError("too many cells")
        return members
    except ArchiveFormatError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise ArchiveFormatError(f"{file}: this is no manifest of scdl ({error!r:.300})") from error


def manifest_identity(directory: str) -> tuple[int, int] | None:
    """What tells the manifest of a directory from others before and after; None without one."""
    try:
        found = os.stat(os.path.join(directory, MANIFEST))
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


@contextmanager
def changing(directory: str) -> Iterator[None]:
    """Hold the lock of a directory, of which the manifest may be changed.

    Raises
    ------
    ArchiveLockedError
        Another process or thread holds it.
    """
    with locks.write_locked(directory):
        # Nobody else writes one: these are of killed ones.
        for left in glob.glob(os.path.join(glob.escape(directory), f".{MANIFEST}.*")):
            publication.remove(left)
        publication.finish_removals(directory)
        yield


def write_manifest(directory: str, members: Iterable[Member]) -> None:
    """Write the manifest of a directory, in place of the one that is there, atomically."""
    file = os.path.join(directory, MANIFEST)
    text = json.dumps(
        {"format": _FORMAT, "members": [member.to_json(directory) for member in members]}, indent=1
    )
    with (
        refused_write(file),
        publication.new_file(file) as part,
        open(part, "w", encoding="utf-8") as stream,
    ):
        stream.write(text + "\n")
