import json

import numpy as np
import pyarrow as pa

from storage_backends.base import ArraySpec, Backend, Contents
from storage_backends.checks import check_ranges, check_rows
from storage_backends.directory.store import DirectoryStore
from storage_backends.directory.writer import DirectoryWriter
from storage_backends.errors import ArchiveClosedError, ArchiveFormatError, refused_write

INDEX, CHECKSUMS = "index.json", "checksums.bin"


class ArrowStore(DirectoryStore):
    markers, checksums = (INDEX,), CHECKSUMS

    @classmethod
    def _open(cls, path):
        store = cls()
        store.path = path
        try:
            with open(f"{path}/{INDEX}") as file:
                index = json.load(file)
            store._arrays = {
                name: np.fromfile(f"{path}/{file}", dtype).reshape(shape)
                for name, (file, dtype, shape) in index["arrays"].items()
            }
            store._tables = {
                name: pa.ipc.open_file(f"{path}/{file}").read_all()
                for name, file in index["tables"].items()
            }
        except (ValueError, LookupError, TypeError, OSError) as error:
            raise ArchiveFormatError(f"{path}: damaged ({error}); convert it again") from error
        specs = {n: ArraySpec(a.dtype, len(a), a.shape[1:]) for n, a in store._arrays.items()}
        schemas = {name: table.schema for name, table in store._tables.items()}
        store._contents = Contents(specs, schemas, index["attrs"])
        return store

    @property
    def contents(self):
        if self._contents is None:
            raise ArchiveClosedError(f"{self.path}: the archive was closed; open it again")
        return self._contents

    def read_ranges(self, name, starts, stops, out):
        check_ranges(f"{self.path}: {name}", self.spec(name), starts, stops, out)
        parts = [self._arrays[name][a:b] for a, b in zip(starts, stops, strict=True)]
        if parts:
            np.concatenate(parts, out=out)

    def read_table(self, name, columns=None, start=0, stop=None):
        names = self.table_schema(name).names
        table, where = self._tables[name], f"{self.path}: {name}"
        stop = check_rows(where, len(table), start, stop, names=names, columns=columns)
        return table.slice(start, stop - start).select(names if columns is None else columns)

    def close(self):
        self._contents = None


class ArrowWriter(DirectoryWriter):
    checksums = CHECKSUMS

    def __init__(self, path, *, replace=False, codec=None):
        super().__init__(path, replace=replace)
        self._options = pa.ipc.IpcWriteOptions(compression=codec)
        self._files = {}

    def append(self, name, values):
        values = self._checked(name, values)
        with refused_write(self.path):
            if name not in self._files:
                self._files[name] = self.recorder.create(f"{self.directory}/{len(self._files)}.bin")
            self._files[name].write(values.reshape(-1).view(np.uint8))

    def write_table(self, name, table):
        self._check_table(name, table.schema)
        table = table if isinstance(table, pa.Table) else table.read_all()
        table = table.unify_dictionaries().replace_schema_metadata(None)
        # One batch, also of a table without rows, whose columns may have categories.
        columns = [column.combine_chunks() for column in table.columns]
        with (
            refused_write(self.path),
            self.recorder.create(f"{self.directory}/{len(self.table_rows)}.arrow") as file,
            pa.ipc.new_file(file, table.schema, options=self._options) as target,
        ):
            target.write_batch(pa.record_batch(columns, table.schema))
        self.table_rows[name] = len(table)

    def _complete(self, attrs):
        arrays = {
            name: (f"{i}.bin", spec.dtype.str, (spec.length, *spec.item_shape))
            for i, (name, spec) in enumerate(self.specs.items())
        }
        tables = {name: f"{i}.arrow" for i, name in enumerate(self.table_rows)}
        index = {"arrays": arrays, "tables": tables, "attrs": dict(attrs)}
        with refused_write(self.path):
            self.recorder.write(f"{self.directory}/{INDEX}", json.dumps(index).encode())


BACKEND = Backend("arrow", ArrowStore, ArrowWriter, ("codec",), ".arrows", (INDEX,))
