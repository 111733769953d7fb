"""Writer of the memmap format: arrays are appended to files, small files written at the commit."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from storage_backends import __version__
from storage_backends.capabilities import Sparse
from storage_backends.directory.recorder import CheckedFile
from storage_backends.directory.writer import DirectoryWriter
from storage_backends.errors import refused_write
from storage_backends.memmap import features, layout, manifest
from storage_backends.memmap.header import HeaderIndex

if TYPE_CHECKING:
    import pyarrow as pa


class MemmapWriter(DirectoryWriter):
    """Writes an archive in the documented format."""

    checksums = layout.CHECKSUMS

    def __init__(self, path: str, *, replace: bool = False) -> None:
        super().__init__(path, replace=replace)
        self._arrays: dict[str, CheckedFile] = {}
        self._files: dict[str, str] = {}
        self._side_files: dict[str, dict[str, Any]] = {}
        self._sparse: dict[str, Sparse] = {}

    def _begin(self) -> None:
        os.mkdir(os.path.join(self.directory, "scdl"))
        os.mkdir(os.path.join(self.directory, "scdl", "arrays"))

    def append(self, name: str, values: NDArray[Any]) -> None:
        directory = self.directory
        values = self._checked(name, values)
        with refused_write(self.path):
            if name not in self._arrays:
                own = layout.own_file(len(self._arrays.keys() - layout.MATRIX.keys()))
                documented = layout.MATRIX.get(name)
                path = os.path.join(directory, documented.file if documented else own)
                self._files[name] = path
                self._arrays[name] = self.recorder.create(path)
            self._arrays[name].write(values.reshape(-1).view(np.uint8).data)

    def write_table(self, name: str, table: pa.Table | pa.RecordBatchReader) -> None:
        from storage_backends.memmap import table_writer

        directory = self.directory
        self._check_table(name, table.schema)
        kind, _, block = name.partition("/")
        with refused_write(self.path), contextlib.suppress(FileExistsError):
            os.mkdir(os.path.join(directory, f"{kind}_features"))
        self.table_rows[name], self._side_files[name] = table_writer.write(
            table,
            os.path.join(directory, f"{kind}_features", f"{block or 0}.parquet"),
            names=layout.side_file(directory, name, "names"),
            categories=layout.side_file(directory, name, "categories"),
            only_names=f"{kind}_feature_id",
            create=self.recorder.create,
        )

    def write_sparse(self, name: str, sparse: Sparse) -> None:
        if not layout.keeps_sparse(name, sparse.format):
            super().write_sparse(name, sparse)
        self._sparse[name] = sparse

    def _complete(self, attrs: Mapping[str, Any]) -> None:
        directory = self.directory
        with refused_write(self.path):
            self.recorder.close()
        n_obs, nnz = self.specs["indptr"].length - 1, self.specs["data"].length
        blocks = attrs["blocks"]
        with refused_write(self.path):
            graph = self._move_documented_graph(directory)
            indexes = [self._write_index(directory, "var", blocks)]
            if "obs" in self.table_rows:
                label = blocks[0]["label"] if len(blocks) == 1 else None
                stops = [{"stop": stop, "label": label} for stop in self._obs_stops(n_obs)]
                indexes.append(self._write_index(directory, "obs", stops))
            content = {
                "format": manifest.format_of(self._side_files),
                "n_obs": n_obs,
                "nnz": nnz,
                "documented_graph": graph,
                "arrays": [
                    manifest.entry_of(name, spec)
                    for name, spec in self.specs.items()
                    if name not in layout.MATRIX
                ],
                "sparse": {name: sparse.shape[1] for name, sparse in self._sparse.items()},
                "tables": self._side_files,
                "attrs": dict(attrs),
            }
            small = {
                manifest.FILE: json.dumps(content).encode(),
                "metadata.json": json.dumps({"num_rows": n_obs}).encode(),
                "version.json": json.dumps(__version__).encode(),
                layout.HEADER: layout.header_of(self.specs, indexes).to_bytes(),
            }
            for file_name, data in small.items():
                self.recorder.write(os.path.join(directory, file_name), data)

    def _obs_stops(self, n_obs: int) -> list[int]:
        """The row at which each file of the table of cells ends."""
        return [n_obs]

    def _move_documented_graph(self, directory: str) -> str | None:
        """Move the first graph with the documented dtypes to the documented files."""
        graphs = (name for name in self._arrays if name.startswith("graphs/"))
        keys = dict.fromkeys(name.split("/", 1)[1].rpartition("/")[0] for name in graphs)
        for key in keys:
            names = {part: f"graphs/{key}/{part}" for part in layout.GRAPH}
            specs = {part: self.specs.get(name) for part, name in names.items()}
            if all(
                spec is not None and (spec.dtype, spec.item_shape) == (dtype, ())
                for spec, (_, dtype) in zip(specs.values(), layout.GRAPH.values(), strict=True)
            ):
                for part, name in names.items():
                    target = os.path.join(directory, layout.GRAPH[part][0])
                    self.recorder.rename(self._files[name], target)
                return key
        return None

    def _write_index(
        self, directory: str, kind: str, blocks: Sequence[Mapping[str, Any]]
    ) -> HeaderIndex:
        """Rename the tables of the blocks as documented, and write the small files of the index."""
        index = f"{kind}_features"
        path = os.path.join(directory, index)
        tables = [layout.dataframe(i, len(blocks)) for i in range(len(blocks))]
        for i, table in enumerate(tables):
            written = self._written_table(path, i)
            if written != (placed := os.path.join(path, table)):
                self.recorder.rename(written, placed)
        stops = [int(block["stop"]) for block in blocks]
        labels = [block.get("label") for block in blocks]
        small = features.write_index(self.recorder, path, stops, labels, __version__)
        files = tuple(f"{index}/{file}" for file in (*small, *tables))
        return HeaderIndex(index, stops[-1], files)

    def _written_table(self, path: str, block: int) -> str:
        """Path of the table of a block until the number of blocks is known."""
        return os.path.join(path, f"{block}.parquet")
