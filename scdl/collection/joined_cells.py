"""Reading the cells of many archives as one dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scdl.archive.announcing import will_need
from scdl.archive.elements import dense_vectors
from scdl.archive.features import ObsFeatures, VarFeatures
from scdl.archive.fields import Field, check_field, shared_names
from scdl.archive.gene_names import number_keys
from scdl.archive.graph import NeighborGraph, key_of
from scdl.archive.requests import Request
from scdl.archive.schema import NEIGHBOR_KEY, Block, Info, obsm_array
from scdl.collection.graph import MemberGraph
from scdl.collection.member_obs import obs_table
from scdl.collection.member_property import member_property
from scdl.collection.member_tables import MemberTables
from scdl.collection.members import Members
from scdl.dataset.cells import Origin, Storage
from scdl.dataset.opened import OBS_INDEX_NAMES, VAR_INDEX_NAMES
from scdl.dataset.reader import CellReader
from scdl.errors import CollectionError, NeighborError
from storage_backends import __version__

if TYPE_CHECKING:
    import pyarrow as pa

_NO_CELLS = Info((Block(0, 0),), is_sorted=True)


class JoinedCells(CellReader):
    """The concatenated cells of members, without copying them.

    A subclass sets :attr:`_members`, which may change while cells are being read, and
    :attr:`_neighbors`, the options about neighbours.
    """

    _members: Members
    _neighbors: dict[str, Any]

    # -- contents --------------------------------------------------------------------------

    @member_property
    def _blocks(self) -> list[tuple[int, int, Block]]:
        """For each feature block the first member with it, its index there, and the block."""
        members = self._members
        found: list[tuple[int, int, Block]] = []
        for number, record in enumerate(members.records):
            start = int(members.starts[number])
            for i, block in enumerate(record.blocks):
                stop = start + block.stop
                if found and found[-1][2].n_vars == block.n_vars:
                    first, its, same = found[-1]
                    if members.genes(first)[its] == members.genes(number)[i]:
                        found[-1] = first, its, replace(same, stop=stop)
                        continue
                found.append((number, i, replace(block, stop=stop)))
        return found

    @member_property
    def info(self) -> Info:
        """Feature blocks of all members; adjacent blocks of the same genes are merged."""
        if not self._blocks:
            return _NO_CELLS
        blocks = tuple(block for _, _, block in self._blocks)
        return Info(blocks, is_sorted=all(r.is_sorted for r in self._members.records))

    def origins(self) -> list[Origin]:
        """The members, or the feature blocks of those that have several.

        Examples
        --------
        >>> [(origin.name, origin.n_obs) for origin in atlas.origins()]
        [('cells.scdl', 6), ('more.scdl', 6)]
        """
        out = []
        blocks, at = self._blocks, -1
        for number, record in enumerate(self._members.records):
            start = 0
            for i, block in enumerate(record.blocks):
                # Blocks cannot be found by rows, as a block may have none.
                at += at + 1 < len(blocks) and blocks[at + 1][:2] == (number, i)
                name = self._members.names[number]
                whole = len(record.blocks) == 1
                origin = name if whole else f"{name}, {block.label or f'block {i}'}"
                out.append(Origin(origin, at, block.stop - start))
                start = block.stop
        return out

    @member_property
    def gene_spaces(self) -> NDArray[np.int64]:
        """Gene space of each feature block, numbered from 0."""
        blocks = self._blocks
        if len(blocks) < 2:
            return np.zeros(len(blocks), np.int64)
        return number_keys(self._members.spaces(number)[i] for number, i, _ in blocks)

    def _block_keys(self) -> list[str]:
        return [self._members.genes(number)[i] for number, i, _ in self._blocks]

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return int(self._members.starts[-1])

    @property
    def max_n_vars(self) -> int:
        """Largest number of genes of a feature block."""
        return self._members.max_n_vars

    def number_nonzero_values(self) -> int:
        """Number of stored values.

        Examples
        --------
        >>> atlas.number_nonzero_values()
        22
        """
        return sum(record.values for record in self._members.records)

    @property
    def data_dtype(self) -> np.dtype[Any]:
        """Common dtype of the values of all members."""
        return self._members.data_dtype

    @property
    def index_dtype(self) -> np.dtype[Any]:
        """Common dtype of the column ids of all members."""
        return self._members.index_dtype

    @property
    def bytes_per_cell(self) -> float:
        """Average bytes in memory of the stored values and column ids of a cell."""
        value_bytes = self.data_dtype.itemsize + self.index_dtype.itemsize
        return self.number_nonzero_values() * value_bytes / max(self.n_obs, 1)

    @property
    def storage(self) -> Storage:
        """How the cells of the first member are stored, with the largest chunks of all members."""
        records = self._members.records
        if not records:
            return Storage(0.0, 0.0, 0)
        per_chunk = max(r.values_per_chunk * r.n_obs / max(r.values, 1) for r in records)
        return self._members[0].storage._replace(cells_per_chunk=per_chunk)

    def version(self) -> str:
        """Version of this package.

        Examples
        --------
        >>> atlas.version() == scdl.__version__
        True
        """
        return __version__

    # -- reading ---------------------------------------------------------------------------

    def _request(self, at: NDArray[np.int64], field: str = "") -> Request:
        return self._members.request(at, field)

    @member_property
    def fields(self) -> list[str]:
        """Names of the fields that all members with cells have."""
        members = self._members
        return shared_names([members.fields(number) for number in members.with_cells])

    def _field(self, name: str) -> Field:
        check_field(repr(self), name, self.fields)
        return self._members.field(name)

    def _vectors(self, key: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        members = self._members
        parts = [
            (members[number]._vectors(key, local), places, number)
            for number, local, places in members.split(rows)
        ]
        if not parts:
            return members[0]._vectors(key, rows)
        shapes = {vectors.shape[1:]: number for vectors, _, number in parts}
        if len(shapes) > 1:
            listed = ", ".join(
                f"{members.names[number]} has {list(shape)}" for shape, number in shapes.items()
            )
            raise CollectionError(
                f"obsm/{key} has different widths in the members: {listed}; read each member alone"
            )
        dtype = np.result_type(*(vectors.dtype for vectors, _, _ in parts))
        out = np.empty((len(rows), *next(iter(shapes))), dtype)
        for vectors, places, _ in parts:
            out[places] = vectors
        return out

    def _vector_keys(self) -> list[str]:
        found: list[dict[str, Any]] = []
        for record, store in zip(self._members.records, self._members.stores(), strict=True):
            if record.n_obs:
                names = dense_vectors(store)
                found.append({key: store.spec(obsm_array(key)).item_shape for key in names})
        first = found[0] if found else {}
        return [key for key, shape in first.items() if all(o.get(key) == shape for o in found)]

    def will_need(self, rows: NDArray[np.int64], fields: Sequence[str] = ()) -> Any:
        """Announce cells that will be read soon, so that the storage can prefetch them.

        Examples
        --------
        >>> announced = atlas.will_need(np.array([3, 9]))  # keep it until the cells were read
        >>> _ = atlas.read_rows([3, 9])
        """
        return [will_need(self._request(rows, name)) for name in ("", *fields) if len(rows)]

    # -- tables ----------------------------------------------------------------------------

    @member_property
    def _tables(self) -> MemberTables:
        places = [(number, i) for number, i, _ in self._blocks]
        return MemberTables(repr(self), self._members, places)

    @member_property
    def _var(self) -> VarFeatures:
        return VarFeatures(self._tables, self.info, VAR_INDEX_NAMES)

    @member_property
    def _obs(self) -> ObsFeatures | None:
        has_obs = any(record.has_obs for record in self._members.records)
        if not has_obs and self._members.origins is None:
            return None
        tables = self._tables
        return ObsFeatures(tables, self.info, OBS_INDEX_NAMES, tables.encoded)

    def _obs_batches(
        self, chosen: Callable[[Sequence[str]], list[str]]
    ) -> Iterator[tuple[int, pa.Table]]:
        members = self._members
        for number, start in enumerate(members.starts[:-1].tolist()):
            yield start, obs_table(members, number, chosen)

    # -- neighbours ------------------------------------------------------------------------

    @member_property
    def neighbor_keys(self) -> list[str]:
        """Keys of the graphs of all members; empty if `load_neighbors` is False."""
        if self._neighbors["load_neighbors"] is False:
            return []
        return list(dict.fromkeys(key for r in self._members.records for key in r.graphs))

    @member_property
    def graph(self) -> NeighborGraph | None:
        """The joint graph of the members; None if no member has the requested one.

        None also if no key was requested and the members' only graphs have different keys.
        """
        requested = self._neighbors["neighbor_key"]
        if not self.neighbor_keys:
            return None
        keys = [key_of(record.graphs, requested) for record in self._members.records]
        # In archives of the documented format the default key may stand for any graph.
        found = {key for key in keys if key is not None}
        named = found - {NEIGHBOR_KEY} or found
        if len(named) == 1:
            return self._joined_graph(named.pop(), keys)
        if not named and self._neighbors["load_neighbors"]:
            raise NeighborError(
                f"{self!r}: there is no neighbour graph {requested!r}; the members have: "
                f"{', '.join(self.neighbor_keys)}"
            )
        return None

    @member_property
    def _graphs(self) -> dict[str, NeighborGraph]:
        return {}

    def _graph_of(self, key: str) -> NeighborGraph | None:
        graphs = self._graphs
        if key not in graphs:
            if key not in self.neighbor_keys:
                return None
            keys = [key if key in record.graphs else None for record in self._members.records]
            graphs[key] = self._joined_graph(key, keys)
        return graphs[key]

    def _joined_graph(self, key: str, keys: Sequence[str | None]) -> NeighborGraph:
        return MemberGraph(
            self._members,
            key,
            keys,
            self._neighbors["neighbor_sampling_strategy"],
            fallback_to_identity=self._neighbors["fallback_to_identity"],
        )
