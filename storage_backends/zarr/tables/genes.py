"""The tables of genes of an archive, which are written once the order of genes is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import zarr
from numpy.typing import NDArray

from storage_backends.compute import arrow
from storage_backends.compute.caching import cached_property
from storage_backends.zarr import layout
from storage_backends.zarr.tables import writing


class GeneTables:
    """The var table of each feature block, in memory.

    Attributes
    ----------
    by_name
        Tables by their name in the storage interface.
    """

    def __init__(self) -> None:
        self.by_name: dict[str, pa.Table] = {}

    def add(self, name: str, table: pa.Table | pa.RecordBatchReader) -> int:
        """Keep the table of a block; returns its number of rows."""
        self.by_name[name] = table.read_all() if hasattr(table, "read_all") else table
        return int(self.by_name[name].num_rows)

    @cached_property
    def _shared(self) -> pa.Table:
        """The columns that all tables share; once all are added."""
        return arrow.shared_columns(self.by_name.values())

    def are_shared(self, blocks: Sequence[Mapping[str, Any]]) -> bool:
        """Whether all blocks have one list of genes, as an AnnData requires."""
        spaces = {block.get("space") for block in blocks}
        # A column of that name would collide with the group of the tables of blocks.
        return len(blocks) == 1 or (
            len(spaces) == 1
            and None not in spaces
            and layout.BLOCKS not in self._shared.schema.names
        )

    def write(
        self,
        root: zarr.Group,
        path: str,
        blocks: Sequence[Mapping[str, Any]],
        order: NDArray[np.int64] | None,
    ) -> None:
        """Write the table of a single block to `path`, or one table for each of several blocks.

        `order`: the original position of each gene, if their order was changed.
        """
        is_alone, are_shared = len(blocks) == 1, self.are_shared(blocks)
        if not is_alone and are_shared:
            writing.write(root, "var", self._shared)
        for name, table in self.by_name.items():
            at = path if is_alone else layout.block_path(name, are_shared)
            parent, _, key = at.rpartition("/")
            group = root.require_group(parent) if parent else root
            writing.write(group, key, table if order is None else table.take(order))
            if order is not None:
                write_order(root, at, order)


def write_order(root: zarr.Group, path: str, order: NDArray[np.int64]) -> None:
    """Write the original position of each gene next to the columns of a table."""
    root.create_array(
        f"{path}/{layout.ORDER}",
        data=order,
        compressors=layout.CHECKED,
        config={"write_empty_chunks": True},
    )
