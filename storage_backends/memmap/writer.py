"""Writing the memmap format: arrays are appended to files, small files follow at the commit."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from storage_backends import __version__
from storage_backends.base import ArraySpec
from storage_backends.checks import little_endian
from storage_backends.directory.checksums import CheckedFile
from storage_backends.directory.writer import DirectoryWriter, check_complete
from storage_backends.errors import OutputError, refused_write
from storage_backends.memmap import features, layout
from storage_backends.memmap.header import Header, HeaderArray, HeaderIndex

if TYPE_CHECKING:
    import pyarrow as pa


class MemmapWriter(DirectoryWriter):
    """Writes an archive in the documented format."""

    checksums = layout.CHECKSUMS

    def __init__(self, path: str, *, replace: bool = False) -> None:
        super().__init__(path, replace=replace)
        self._arrays: dict[str, _ArrayFile] = {}
        self._side_files: dict[str, dict[str, Any]] = {}
        self._tables: dict[str, int] = {}

    def _begin(self) -> None:
        os.mkdir(os.path.join(self.directory, "scdl"))
        os.mkdir(os.path.join(self.directory, "scdl", "arrays"))

    def append(self, name: str, values: NDArray[Any]) -> None:
        directory = self.directory
        values = little_endian(f"{self.path}: {name}", values)
        with refused_write(self.path):
            if name not in self._arrays:
                path = os.path.join(directory, self._file_of(name))
                self._arrays[name] = _ArrayFile(path, self.recorder.create(path), values)
            self._arrays[name].append(f"{self.path}: {name}", values)

    def _file_of(self, name: str) -> str:
        if name in layout.MATRIX:
            return layout.MATRIX[name].file
        own = sum(other not in layout.MATRIX for other in self._arrays)
        return layout.own_file(own)

    def write_table(self, name: str, table: pa.Table | pa.RecordBatchReader) -> None:
        from storage_backends.memmap import table_writer

        directory = self.directory
        kind, _, block = name.partition("/")
        if (kind, block.isdecimal()) not in (("obs", False), ("var", True)) or name in self._tables:
            raise OutputError(
                f"{self.path}: cannot write a table {name!r}: the names are obs, var/0, "
                "var/1 and so on, each written once"
            )
        with refused_write(self.path), contextlib.suppress(FileExistsError):
            os.mkdir(os.path.join(directory, f"{kind}_features"))
        written = table_writer.write(
            table,
            os.path.join(directory, f"{kind}_features", f"{block or 0}.parquet"),
            names=layout.beside(directory, name, "names"),
            categories=layout.beside(directory, name, "categories"),
            only_names=f"{kind}_feature_id",
            create=self.recorder.create,
        )
        self._tables[name] = written.num_rows
        self._side_files[name] = {
            "names": written.names,
            "categories": written.categories,
            "only_names": f"{kind}_feature_id" if written.only_names else None,
            "index_name": written.index_name,
            "nullable": written.nullable,
        }

    def _complete(self, attrs: Mapping[str, Any]) -> None:
        directory = self.directory
        for file in self._arrays.values():
            file.close()
        specs = {name: file.spec for name, file in self._arrays.items()}
        last = self._arrays["indptr"].last if "indptr" in self._arrays else None
        n_obs, nnz = check_complete(self.path, specs, last, self._tables, attrs)
        blocks = attrs["blocks"]
        with refused_write(self.path):
            graph = self._place_documented_graph(directory)
            indexes = [self._write_index(directory, "var", blocks)]
            if "obs" in self._tables:
                label = blocks[0]["label"] if len(blocks) == 1 else None
                whole = [{"stop": n_obs, "label": label}]
                indexes.append(self._write_index(directory, "obs", whole))
            manifest = {
                "format": layout.MANIFEST_FORMAT,
                "n_obs": n_obs,
                "nnz": nnz,
                "documented_graph": graph,
                "arrays": [
                    layout.entry(name, file.spec)
                    for name, file in self._arrays.items()
                    if name not in layout.MATRIX
                ],
                "tables": self._side_files,
                "attrs": dict(attrs),
            }
            small = {
                layout.MANIFEST: json.dumps(manifest).encode(),
                "metadata.json": json.dumps({"num_rows": n_obs}).encode(),
                "version.json": json.dumps(__version__).encode(),
                layout.HEADER: self._header(indexes).to_bytes(),
            }
            for file_name, content in small.items():
                self.recorder.write(os.path.join(directory, file_name), content)

    def _place_documented_graph(self, directory: str) -> str | None:
        """Move the first graph whose types are the documented ones to the documented files."""
        keys = dict.fromkeys(n.split("/", 1)[1].rpartition("/")[0] for n in self._graph_arrays)
        for key in keys:
            parts = {part: self._arrays.get(f"graphs/{key}/{part}") for part in layout.GRAPH}
            if all(
                file is not None and (file.spec.dtype, file.spec.item_shape) == (dtype, ())
                for file, (_, dtype) in zip(parts.values(), layout.GRAPH.values(), strict=True)
            ):
                for part, file in parts.items():
                    assert file is not None
                    place = os.path.join(directory, layout.GRAPH[part][0])
                    self.recorder.rename(file.path, place)
                return key
        return None

    @property
    def _graph_arrays(self) -> list[str]:
        return [name for name in self._arrays if name.startswith("graphs/")]

    def _write_index(
        self, directory: str, kind: str, blocks: Sequence[Mapping[str, Any]]
    ) -> HeaderIndex:
        """Name the blocks' tables as documented, and write the small files beside them."""
        index = f"{kind}_features"
        path = os.path.join(directory, index)
        tables = [layout.dataframe(i, len(blocks)) for i in range(len(blocks))]
        for i, table in enumerate(tables):
            written = os.path.join(path, f"{i}.parquet")
            self.recorder.rename(written, os.path.join(path, table))
        stops = [int(block["stop"]) for block in blocks]
        labels = [block.get("label") for block in blocks]
        small = features.write(self.recorder, path, stops, labels, __version__)
        files = tuple(f"{index}/{file}" for file in (*small, *tables))
        return HeaderIndex(index, stops[-1], files)

    def _header(self, indexes: Sequence[HeaderIndex]) -> Header:
        arrays = [
            HeaderArray(documented.header_name, file.spec.length, file.spec.dtype)
            for name, documented in layout.MATRIX.items()
            for file in [self._arrays[name]]
        ]
        return Header(tuple(arrays), tuple(indexes))

    def _close(self) -> None:
        for file in self._arrays.values():
            file.close()


class _ArrayFile:
    """A file of raw numbers that grows."""

    def __init__(self, path: str, file: CheckedFile, first: NDArray[Any]) -> None:
        self.path = path
        self._file = file
        self.last: int | None = None
        self._dtype = first.dtype
        self._item_shape = first.shape[1:]
        self._length = 0

    @property
    def spec(self) -> ArraySpec:
        return ArraySpec(self._dtype, self._length, self._item_shape)

    def append(self, where: str, values: NDArray[Any]) -> None:
        if (values.dtype, values.shape[1:]) != (self._dtype, self._item_shape):
            raise OutputError(
                f"{where} has items {self._dtype} {self._item_shape}, "
                f"not {values.dtype} {values.shape[1:]}"
            )
        if values.size == 0:
            self._length += len(values)
            return
        self._file.write(values.reshape(-1).view(np.uint8).data)
        self._length += len(values)
        if values.ndim == 1 and values.dtype.kind == "u":
            self.last = int(values[-1])

    def close(self) -> None:
        self._file.close()
