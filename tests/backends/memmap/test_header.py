"""Violations of every rule for the header and the files of the documented format."""

from __future__ import annotations

import io
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from headers import Text, header_bytes, header_of
from places import GOLDEN
from reading import assert_same
from sources import names, random_cells, write_h5ad

import scdl

CELLS = random_cells(9, 6, density=0.6, seed=2)
NNZ = CELLS.csr().nnz


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("header")
    obs = pd.DataFrame({"age": np.arange(9)}, index=names("cell", 9))
    scdl.convert(write_h5ad(place / "a.h5ad", CELLS, obs=obs), place / "archive")
    return place / "archive"


@pytest.fixture
def archive(seed: Path, tmp_path: Path) -> Path:
    """A copy of an archive to damage."""
    shutil.copytree(seed, tmp_path / "archive")
    return tmp_path / "archive"


@pytest.fixture
def fields(archive: Path) -> dict[str, Any]:
    return header_of(archive / "header.sch")


def refused(archive: Path, match: str | None = None) -> None:
    with pytest.raises(scdl.errors.ArchiveFormatError, match=match) as caught:
        scdl.open(archive)
    message = str(caught.value)
    assert str(archive) in message
    assert "\n" not in message
    assert isinstance(caught.value, ValueError)


class TestWritten:
    def test_header_is_as_documented(self, archive: Path, fields: dict[str, Any]) -> None:
        assert fields["version"] == (0, 1, 0)
        assert (fields["endianness"], fields["backend"]) == (1, 1)
        assert fields["arrays"] == [
            ("DATA", NNZ, 6, None),
            ("ROWPTR", 10, 1, None),
            ("COLPTR", NNZ, 1, None),
        ]
        assert [(name, length, dtype) for name, length, dtype, _ in fields["indexes"]] == [
            ("var_features", 9, 8),
            ("obs_features", 9, 8),
        ]
        for _, _, _, files in fields["indexes"]:
            for file in files:
                assert (archive / file).is_file()

    def test_what_this_test_writes_is_valid(self, archive: Path, fields: dict[str, Any]) -> None:
        written = header_bytes(**fields)
        assert written == (archive / "header.sch").read_bytes()
        fields["arrays"] = [(*array[:3], [array[1]]) for array in fields["arrays"]]
        (archive / "header.sch").write_bytes(header_bytes(**fields))
        assert_same(scdl.open(archive), CELLS.csr())

    def test_files_of_a_feature_index(self, archive: Path) -> None:
        for table in ("var_features", "obs_features"):
            place = archive / table
            assert [path.name for path in place.rglob("*.parquet")] == ["dataframe_0.parquet"]
            assert np.load(place / "cumulative_sum_index.npy").tolist() == [-1, 9]
            assert np.load(place / "cumulative_sum_index.npy").dtype == np.int64
            assert np.load(place / "labels.npy").shape == (1,)  # no pickle
            assert np.load(place / "version.npy").dtype.kind == "U"
            assert (place / "labels.json").is_file()


class TestRules:
    """Each rule of the format, violated on its own."""

    def spoil(self, archive: Path, fields: dict[str, Any], **changes: Any) -> None:
        (archive / "header.sch").write_bytes(header_bytes(**(fields | changes)))

    @pytest.mark.parametrize("magic", [b"LDCS", b"scdl", b"\0\0\0\0"])
    def test_magic(self, archive: Path, fields: dict[str, Any], magic: bytes) -> None:
        self.spoil(archive, fields, magic=magic)
        refused(archive)

    @pytest.mark.parametrize("endianness", [0, 2, 255])
    def test_endianness(self, archive: Path, fields: dict[str, Any], endianness: int) -> None:
        self.spoil(archive, fields, endianness=endianness)
        refused(archive, "endian")

    @pytest.mark.parametrize("backend", [0, 2, 2**32 - 1])
    def test_backend(self, archive: Path, fields: dict[str, Any], backend: int) -> None:
        self.spoil(archive, fields, backend=backend)
        refused(archive, "backend")

    @pytest.mark.parametrize("code", [0, 8, 9, 10, 2**32 - 1])
    @pytest.mark.parametrize("which", [0, 1, 2])
    def test_dtype_of_an_array(
        self, archive: Path, fields: dict[str, Any], which: int, code: int
    ) -> None:
        name, length, _, shape = fields["arrays"][which]
        fields["arrays"][which] = (name, length, code, shape)
        self.spoil(archive, fields)
        refused(archive)

    @pytest.mark.parametrize(("which", "code"), [(1, 6), (1, 5), (2, 6), (2, 7)])
    def test_ids_and_offsets_are_integers(
        self, archive: Path, fields: dict[str, Any], which: int, code: int
    ) -> None:
        name, length, _, shape = fields["arrays"][which]
        fields["arrays"][which] = (name, length, code, shape)
        self.spoil(archive, fields)
        refused(archive)

    @pytest.mark.parametrize("which", [0, 1, 2])
    def test_missing_array(self, archive: Path, fields: dict[str, Any], which: int) -> None:
        del fields["arrays"][which]
        self.spoil(archive, fields)
        refused(archive)

    @pytest.mark.parametrize("which", [0, 1, 2])
    def test_array_named_twice(self, archive: Path, fields: dict[str, Any], which: int) -> None:
        fields["arrays"].append(fields["arrays"][which])
        self.spoil(archive, fields)
        refused(archive)

    def test_index_named_twice(self, archive: Path, fields: dict[str, Any]) -> None:
        fields["indexes"].append(fields["indexes"][0])
        self.spoil(archive, fields)
        refused(archive)

    @pytest.mark.parametrize(
        "name", [b"", b"\xff\xfe", (0, b"DATA"), (2**32 - 1, b"DATA"), (5, b"DATA")]
    )
    def test_name_of_an_array(self, archive: Path, fields: dict[str, Any], name: Text) -> None:
        fields["arrays"][0] = (name, *fields["arrays"][0][1:])
        self.spoil(archive, fields)
        refused(archive)

    @pytest.mark.parametrize("name", [b"", b"\xff\xfe", (0, b"var_features"), (2**31, b"var")])
    def test_name_of_an_index(self, archive: Path, fields: dict[str, Any], name: Text) -> None:
        fields["indexes"][0] = (name, *fields["indexes"][0][1:])
        self.spoil(archive, fields)
        refused(archive)

    @pytest.mark.parametrize("file", [b"", b"\xc3\x28", (2**32 - 1, b"x")])
    def test_file_of_an_index(self, archive: Path, fields: dict[str, Any], file: Text) -> None:
        fields["indexes"][0][3][0] = file
        self.spoil(archive, fields)
        refused(archive)

    @pytest.mark.parametrize("n_arrays", [0, 2, 4, 2**32 - 1])
    def test_count_of_arrays(self, archive: Path, fields: dict[str, Any], n_arrays: int) -> None:
        self.spoil(archive, fields, n_arrays=n_arrays)
        refused(archive)

    @pytest.mark.parametrize("n_indexes", [0, 1, 3, 2**32 - 1])
    def test_count_of_indexes(self, archive: Path, fields: dict[str, Any], n_indexes: int) -> None:
        self.spoil(archive, fields, n_indexes=n_indexes)
        refused(archive)

    def test_bytes_behind_the_end(self, archive: Path) -> None:
        with (archive / "header.sch").open("ab") as file:
            file.write(b"\0")
        refused(archive)

    def test_cut_anywhere(self, archive: Path) -> None:
        whole = (archive / "header.sch").read_bytes()
        for length in range(len(whole)):
            (archive / "header.sch").write_bytes(whole[:length])
            refused(archive)

    def test_any_flipped_byte_opens_right_or_not_at_all(self, archive: Path) -> None:
        """Flips in version numbers and file names may not change the rows."""
        whole = (archive / "header.sch").read_bytes()
        for position in range(len(whole)):
            spoilt = bytearray(whole)
            spoilt[position] ^= 0x41
            (archive / "header.sch").write_bytes(spoilt)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", scdl.errors.ScdlWarning)
                try:
                    ds = scdl.open(archive)
                except scdl.errors.ArchiveFormatError:
                    continue
            assert_same(ds, CELLS.csr())


class TestFiles:
    @pytest.mark.parametrize("name", ["data.npy", "col_ptr.npy", "row_ptr.npy"])
    def test_missing_array(self, archive: Path, name: str) -> None:
        (archive / name).unlink()
        refused(archive, name)

    @pytest.mark.parametrize("name", ["data.npy", "col_ptr.npy", "row_ptr.npy"])
    @pytest.mark.parametrize("change", [-4, -1, 1, 4])
    def test_array_of_wrong_length(self, archive: Path, name: str, change: int) -> None:
        content = (archive / name).read_bytes()
        (archive / name).write_bytes((content + b"\0\0\0\0")[: len(content) + change])
        refused(archive)

    @pytest.mark.parametrize("name", ["data.npy", "col_ptr.npy", "row_ptr.npy"])
    def test_empty_array(self, archive: Path, name: str) -> None:
        (archive / name).write_bytes(b"")
        refused(archive)

    @pytest.mark.parametrize("name", ["data.npy", "var_features"])
    def test_directory_for_a_file_and_a_file_for_a_directory(
        self, archive: Path, name: str
    ) -> None:
        path = archive / name
        if path.is_dir():
            shutil.rmtree(path)
            path.write_text("text")
        else:
            path.unlink()
            path.mkdir()
        refused(archive)

    def test_last_offset_beyond_the_values(self, archive: Path) -> None:
        offsets = bytearray((archive / "row_ptr.npy").read_bytes())
        offsets[-1] += 1
        (archive / "row_ptr.npy").write_bytes(offsets)
        refused(archive)

    def test_offsets_that_fall_are_found_when_read(self, archive: Path) -> None:
        offsets = bytearray((archive / "row_ptr.npy").read_bytes())
        offsets[3] = 255
        (archive / "row_ptr.npy").write_bytes(offsets)
        ds = scdl.open(archive)
        for read in (ds.get_row, ds.__getitem__, lambda i: ds.read_rows([i])):
            for row in (2, 3):
                with pytest.raises((scdl.errors.ArchiveFormatError, scdl.errors.RangeError)):
                    read(row)
        np.testing.assert_array_equal(ds.get_row_padded(0)[0], CELLS.csr().toarray()[0])

    def test_column_ids_beyond_the_genes_are_found_when_they_matter(self, archive: Path) -> None:
        ids = bytearray((archive / "col_ptr.npy").read_bytes())
        ids[-1] = 200
        (archive / "col_ptr.npy").write_bytes(ids)
        ds = scdl.open(archive)
        with pytest.raises(scdl.errors.ArchiveFormatError):
            ds.get_row_padded(-1)
        with pytest.raises(scdl.errors.ArchiveFormatError):
            ds.read_rows([-1]).to_dense()


def copy_golden(name: str, target: Path) -> Path:
    """An archive of the reference, with only the documented files."""
    source = GOLDEN / name
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for path in [target, *target.rglob("*")]:
        path.chmod(0o755)
    return target


@pytest.mark.parametrize("table", ["var_features", "obs_features"])
@pytest.mark.crossed
class TestFeatureIndexes:
    """Damage in our archive, and in one of the reference."""

    @pytest.fixture(params=["ours", "reference"])
    def damaged(self, request: pytest.FixtureRequest, tmp_path: Path, seed: Path) -> Path:
        if request.param == "ours":
            return shutil.copytree(seed, tmp_path / "archive")
        return copy_golden("neighbors_v013", tmp_path / "archive")

    def use(self, archive: Path) -> None:
        """Read the tables, which are loaded lazily."""
        ds = scdl.open(archive)
        ds.get_row(0, return_features=True)
        ds.read_rows([0, -1], obs=["age" if len(ds) == 9 else "cell_type"])
        ds.obs_features()[1:3]
        assert len(ds.obs) == len(ds)

    def test_whole(self, damaged: Path, table: str) -> None:
        assert (damaged / table).is_dir()
        self.use(damaged)

    @pytest.mark.parametrize("ends", [[-1], [1], [], [-3, -4], [-4, 0], [5, 4, 0]])
    def test_wrong_ends_of_blocks(self, damaged: Path, table: str, ends: list[int]) -> None:
        """`ends` are relative to the number of cells; only a single 0 would be valid."""
        path = damaged / table / "cumulative_sum_index.npy"
        n_obs = np.load(path)[-1]
        np.save(path, np.append(-1, n_obs + np.array(ends, np.int64)))
        with pytest.raises(scdl.errors.ArchiveFormatError):
            self.use(damaged)

    @pytest.mark.parametrize("file", ["dataframe_0.parquet", "cumulative_sum_index.npy"])
    @pytest.mark.parametrize("how", ["missing", "empty", "cut", "text"])
    def test_damaged_file(self, damaged: Path, table: str, file: str, how: str) -> None:
        path = damaged / table / file
        content = path.read_bytes()
        if how == "missing":
            path.unlink()
        else:
            spoilt = {"empty": b"", "cut": content[: len(content) // 2], "text": b"hello" * 50}
            path.write_bytes(spoilt[how])
        with pytest.raises(scdl.errors.ArchiveFormatError):
            self.use(damaged)


@pytest.mark.parametrize("rows", [0, 5, 19, 21])
def test_obs_of_wrong_length(tmp_path: Path, rows: int) -> None:
    archive = copy_golden("neighbors_v013", tmp_path / "archive")
    table = pa.table({"cell_type": pa.array(["x"] * rows, pa.string())})
    pq.write_table(table, archive / "obs_features" / "dataframe_0.parquet")
    with pytest.raises(scdl.errors.ArchiveFormatError):
        scdl.open(archive).read_rows([0, 19], obs=["cell_type"])


def test_genes_fewer_than_column_ids(tmp_path: Path) -> None:
    """Only the table of var states the number of genes."""
    archive = copy_golden("neighbors_v013", tmp_path / "archive")
    pq.write_table(
        pa.table({"feature_id": ["a", "b"]}), archive / "var_features" / "dataframe_0.parquet"
    )
    with pytest.raises(scdl.errors.ArchiveFormatError):
        scdl.open(archive).read_rows(slice(None)).to_dense()
    with pytest.raises(scdl.errors.ArchiveFormatError):
        scdl.open(archive).get_row_padded(1)


def hostile_labels(victim: Path) -> bytes:
    class Hostile:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return (Path.touch, (victim,))

    content = io.BytesIO()
    array = np.empty(1, dtype=object)
    array[0] = Hostile()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


class TestLabels:
    """The reference pickles labels; pickles are never loaded."""

    def write(self, archive: Path, content: bytes) -> None:
        for table in ("var_features", "obs_features"):
            (archive / table / "labels.json").unlink(missing_ok=True)
            (archive / table / "labels.npy").write_bytes(content)

    def test_a_hostile_pickle_is_not_executed(self, tmp_path: Path) -> None:
        victim = tmp_path / "victim"
        content = hostile_labels(victim)
        np.load(io.BytesIO(content), allow_pickle=True)
        assert victim.exists(), "the pickle is not hostile"
        victim.unlink()
        archive = copy_golden("ragged_v013", tmp_path / "archive")
        self.write(archive, content)
        ds = scdl.open(archive)
        assert ds.var_features().lookup(0)[0][0].tolist()[0] == "GENE0"
        assert len(ds.obs) == 12
        assert ds.obs_features()[0][0] == ["T", 0]
        pickle.loads(pickle.dumps(ds))
        assert not victim.exists()

    @pytest.mark.parametrize(
        "labels",
        [
            np.array(["h5/a.h5ad", "h5/b.h5ad"], dtype=object),
            np.array([PosixPath("h5/a.h5ad"), PosixPath("h5/b.h5ad")], dtype=object),
            np.array(["h5/a.h5ad", "h5/b.h5ad"]),
        ],
        ids=["strings", "paths", "fixed width"],
    )
    def test_harmless_labels_are_read(self, tmp_path: Path, labels: np.ndarray) -> None:
        archive = copy_golden("ragged_v013", tmp_path / "archive")
        content = io.BytesIO()
        np.save(content, labels, allow_pickle=True)
        self.write(archive, content.getvalue())
        ds = scdl.open(archive)
        found = [ds.var_features().lookup(row)[1] for row in (0, 11)]
        assert list(map(str, found)) == ["h5/a.h5ad", "h5/b.h5ad"]
