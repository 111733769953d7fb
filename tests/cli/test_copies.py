"""`scdl head`, `cast`, `subset` and `split`, and the same in Python."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from reading import assert_same
from sources import names, random_cells, write_h5ad

import scdl
from scdl.errors import (
    ArchiveExistsError,
    CastError,
    DatasetTypeError,
    OptionError,
    SplitError,
)

Run = Callable[..., subprocess.CompletedProcess[str]]
CELLS = random_cells(40, 9, dtype="<u2", seed=5)
OBS = pd.DataFrame(
    {"type": pd.Categorical(["B", "T/NK", None, "T/NK"] * 10), "age": range(40)},
    index=names("cell", 40),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("whole")
    source = write_h5ad(place / "cells.h5ad", CELLS, obs=OBS)
    scdl.convert(source, place / "a.scdl")
    scdl.convert(source, place / "a.zarr")
    return place


@pytest.fixture(params=["a.scdl", "a.zarr"])
def archive(request: pytest.FixtureRequest, whole: Path) -> str:
    return str(whole / request.param)


@pytest.fixture
def scdl_command(run_command: Run) -> Run:
    return partial(run_command, "scdl")


def stored(archive: str | Path) -> sp.csr_matrix:
    """The cells with the dtype in which the archive has them."""
    return CELLS.csr(scdl.open(archive).data_dtype.str)


def document(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class TestHead:
    def test_cells_and_their_largest_genes(self, archive: str, scdl_command: Run) -> None:
        found = document(scdl_command("head", archive, "-n", "3", "--genes", "2", "--json"))
        assert found == scdl.open(archive).head(3, 2).to_dict()
        assert found["n_obs"] == 40
        dense = CELLS.csr().toarray()
        for row, cell in enumerate(found["cells"]):
            assert cell["name"] == f"cell{row}"
            assert cell["obs"] == {"type": ["B", "T/NK", None][row], "age": row}
            assert (cell["n_genes"], cell["total"]) == ((dense[row] > 0).sum(), dense[row].sum())
            largest = sorted(dense[row], reverse=True)[:2]
            assert [*cell["genes"].values()] == [value for value in largest if value]
            for name, value in cell["genes"].items():
                assert dense[row, int(name.removeprefix("gene"))] == value

    def test_text_is_plain_in_a_pipe(self, archive: str, scdl_command: Run) -> None:
        done = scdl_command("head", archive, "-n", "2")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip() == str(scdl.open(archive).head(2))
        assert "type B, age 0" in done.stdout
        assert "\x1b" not in done.stdout

    def test_fewer_cells_than_asked_for(self, archive: str) -> None:
        data = scdl.open(archive)
        assert len(data.head(1000).cells) == 40
        assert data.head(0).cells == ()
        with pytest.raises(OptionError, match="must not be negative"):
            data.head(-1)

    def test_cells_of_several_gene_spaces(self, tmp_path: Path) -> None:
        for i, width in enumerate((3, 5)):
            write_h5ad(tmp_path / f"{i}.h5ad", random_cells(2, width, dtype="<u2", seed=i))
        both = [tmp_path / "0.h5ad", tmp_path / "1.h5ad"]
        scdl.convert(both, tmp_path / "both.scdl")
        alone = []
        for i, path in enumerate(both):
            scdl.convert(path, tmp_path / f"{i}.scdl")
            alone += scdl.open(tmp_path / f"{i}.scdl").head().cells
        assert [one.genes for one in scdl.open(tmp_path / "both.scdl").head().cells] == [
            one.genes for one in alone
        ]

    def test_names_that_repeat_or_are_missing(self, tmp_path: Path) -> None:
        cells = random_cells(1, 3, dtype="<u2", seed=8)
        var = pd.DataFrame(index=["A", "A", "B"])
        scdl.convert(write_h5ad(tmp_path / "a.h5ad", cells, var=var), tmp_path / "a.scdl")
        (cell,) = scdl.open(tmp_path / "a.scdl").head().cells
        stored = np.flatnonzero(cells.csr().toarray()[0])
        assert {*cell.genes} == {["A (0)", "A (1)", "B"][i] for i in stored}


class TestCast:
    def test_to_a_copy(self, archive: str, tmp_path: Path, scdl_command: Run) -> None:
        dest = tmp_path / "cast"
        found = document(scdl_command("cast", archive, dest, "--dtype", "uint16", "--json"))
        assert (found["dtype"], found["n_obs"]) == ("uint16", 40)
        made = scdl.open(dest)
        assert_same(made, CELLS.csr("u2"))
        assert type(made.store) is type(scdl.open(archive).store)
        with pytest.raises(ArchiveExistsError):
            scdl.open(archive).cast_data_to_dtype("uint8", dest)
        scdl.open(archive).cast_data_to_dtype("uint32", dest, replace=True)
        assert scdl.open(dest).data_dtype == np.uint32

    def test_in_place(self, archive: str, tmp_path: Path, scdl_command: Run) -> None:
        scdl.open(archive).save(tmp_path / "own")
        done = scdl_command("cast", "own", "--in-place", "--dtype", "uint32", "-q")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert_same(scdl.open(tmp_path / "own"), CELLS.csr("u4"))

    def test_values_that_do_not_fit(self, tmp_path: Path, scdl_command: Run) -> None:
        cells = random_cells(3, 4, dtype="<f4", seed=1)
        scdl.convert(write_h5ad(tmp_path / "f.h5ad", cells), tmp_path / "f.scdl")
        done = scdl_command("cast", "f.scdl", "g.scdl", "--dtype", "uint8")
        assert done.returncode == 1
        assert "cannot hold" in done.stderr
        assert not (tmp_path / "g.scdl").exists()
        with pytest.raises(CastError):
            scdl.open(tmp_path / "f.scdl").cast_data_to_dtype("uint8")

    @pytest.mark.parametrize("arguments", [[], ["x", "--in-place"], ["--in-place", "--overwrite"]])
    def test_usage(self, archive: str, scdl_command: Run, arguments: list[str]) -> None:
        assert scdl_command("cast", archive, *arguments, "--dtype", "uint8").returncode == 2


class TestSubset:
    def test_cells_of_a_condition(self, archive: str, tmp_path: Path, scdl_command: Run) -> None:
        condition = "type == 'B' and age > 10"
        found = document(scdl_command("subset", archive, "s.scdl", "--where", condition, "--json"))
        rows = scdl.open(archive).where(condition)
        assert (found["n_obs"], found["path"]) == (len(rows), "s.scdl")
        made = scdl.open(tmp_path / "s.scdl")
        assert_same(made, stored(archive)[rows])
        assert made.obs_names.tolist() == OBS.index[rows].tolist()
        assert made.obs["age"].tolist() == rows.tolist()

    def test_genes_of_a_file(self, archive: str, tmp_path: Path, scdl_command: Run) -> None:
        (tmp_path / "genes.txt").write_text("gene7\ngene2\n")
        done = scdl_command("subset", archive, "s.scdl", "--genes", "genes.txt")
        assert done.returncode == 0, done.stderr
        assert scdl.open(tmp_path / "s.scdl").var_names.tolist() == ["gene7", "gene2"]
        expected = stored(archive)[:, [7, 2]]
        expected.sort_indices()
        assert_same(scdl.open(tmp_path / "s.scdl"), expected)

    @given(st.data())
    def test_rows(self, whole: Path, data: st.DataObject) -> None:
        mask = data.draw(st.lists(st.booleans(), min_size=40, max_size=40))
        source = data.draw(st.sampled_from(["a.scdl", "a.zarr"]))
        dest = whole / f"rows{data.draw(st.sampled_from(['.scdl', '.zarr']))}"
        chosen = np.array(mask)
        report = scdl.open(whole / source).subset(dest, rows=chosen, replace=True)
        assert report.n_obs == chosen.sum()
        assert_same(scdl.open(dest), stored(whole / source)[np.flatnonzero(chosen)])

    def test_errors(self, archive: str, tmp_path: Path, scdl_command: Run) -> None:
        for arguments, told in (
            (["--where", "typo == 1"], "typo"),
            (["--where", "age >"], "age >"),
            (["--genes", "absent.txt"], "absent.txt"),
        ):
            done = scdl_command("subset", archive, "s.scdl", *arguments)
            assert done.returncode == 1
            (line,) = done.stderr.splitlines()
            assert told in line
        assert scdl_command("subset", archive, "s.scdl").returncode == 2
        assert not (tmp_path / "s.scdl").exists()


class TestSplit:
    def test_an_archive_for_each_value(self, archive: str, tmp_path: Path, scdl_command: Run):
        done = scdl_command("split", archive, "parts", "--by", "type", "--json")
        assert done.returncode == 0, done.stderr
        assert "10 cells have no value of 'type'" in done.stderr
        found = json.loads(done.stdout)["parts"]
        assert {name: part["n_obs"] for name, part in found.items()} == {"B": 10, "T/NK": 20}
        suffix = Path(archive).suffix
        made = tmp_path / "parts"
        assert {path.name for path in made.iterdir()} == {f"B{suffix}", f"T_NK{suffix}"}
        assert {part["path"] for part in found.values()} == {
            f"parts/{p.name}" for p in made.iterdir()
        }
        rows = np.flatnonzero(OBS["type"] == "T/NK")
        assert_same(scdl.open(made / f"T_NK{suffix}"), stored(archive)[rows])
        assert scdl.open(made).n_obs == 30

    def test_fractions(self, archive: str, tmp_path: Path, scdl_command: Run) -> None:
        shares = {"train": 0.5, "test": 0.5}
        done = scdl_command(
            "split", archive, "parts", "--fractions", "train=0.5,test=0.5", "--seed", "7", "-q"
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        parts = scdl.split(scdl.open(archive), shares, seed=7)
        for name, rows in parts.items():
            made = scdl.open(tmp_path / "parts" / f"{name}{Path(archive).suffix}")
            assert made.obs["age"].tolist() == rows.tolist()

    def test_overwriting(self, archive: str, tmp_path: Path) -> None:
        data = scdl.open(archive)
        halves, thirds = (scdl.split(data, shares) for shares in ((0.5, 0.5), (0.4, 0.3, 0.3)))
        thirds.write(data, tmp_path / "parts")
        with pytest.raises(ArchiveExistsError, match="overwrite"):
            thirds.write(data, tmp_path / "parts")
        thirds.write(data, tmp_path / "parts", replace=True)
        # The test cells of the old split would be trained on.
        with pytest.raises(ArchiveExistsError, match="other archives here, such as test"):
            halves.write(data, tmp_path / "parts", replace=True)

    def test_a_failure_leaves_nothing(self, archive: str, tmp_path: Path) -> None:
        data = scdl.open(archive)
        with pytest.raises(OptionError):
            scdl.split(data, (0.5, 0.5)).write(data, tmp_path / "parts", shuffle="x")
        assert [*tmp_path.iterdir()] == []

    def test_other_data(self, archive: str, tmp_path: Path) -> None:
        parts = scdl.split(scdl.open(archive), (0.5, 0.5))
        scdl.open(archive).subset(tmp_path / "few", rows=[1, 2])
        with pytest.raises(SplitError, match="of 40 cells"):
            parts.write(scdl.open(tmp_path / "few"), tmp_path / "parts")
        (tmp_path / "atlas").mkdir()
        scdl.open(archive).save(tmp_path / "atlas" / "one")
        with pytest.raises(DatasetTypeError, match="flatten"):
            parts.write(scdl.open(tmp_path / "atlas"), tmp_path / "parts")

    @pytest.mark.parametrize("shares", ["a", "a=x", "=1", "a=0.5,a=0.5", ""])
    def test_usage(self, archive: str, scdl_command: Run, shares: str) -> None:
        done = scdl_command("split", archive, "parts", "--fractions", shares)
        assert done.returncode == 2
        assert "train=0.8,val=0.1,test=0.1" in done.stderr
        assert scdl_command("split", archive, "parts").returncode == 2
