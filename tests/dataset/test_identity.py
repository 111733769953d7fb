"""Archives that are open are changed by what they are, not by what their path leads to."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sources import Cells, names, random_cells, write_h5ad

import scdl
from scdl.errors import ArchiveChangedError, ArchiveNotFoundError

N, GENES = 5, 4
SUFFIXES = ["", ".zarr"]


def write(place: Path, name: str, value: int) -> Path:
    """An archive in which all values are the same."""
    place.mkdir(exist_ok=True)
    cells = random_cells(N, GENES, seed=value, dtype="<f4")
    cells = Cells(cells.rows, cells.columns, np.full_like(cells.values, value), cells.shape)
    var = pd.DataFrame(index=names("g", GENES))
    source = write_h5ad(place / f"{value}.h5ad", cells, var=var)
    scdl.convert(source, place / name)
    return place / name


def value_of(path: Path) -> set[int]:
    return set(scdl.open(path).read_rows(slice(None)).data.tolist())


def cast(cells: Any, others: Path) -> None:
    cells.cast_data_to_dtype("uint8")


def concat(cells: Any, others: Path) -> None:
    cells.concat(scdl.open(others / "third"))


def load_h5ad(cells: Any, others: Path) -> None:
    cells.load_h5ad(others / "3.h5ad")


CHANGES: dict[str, Callable[[Any, Path], None]] = {
    "cast": cast,
    "concat": concat,
    "load_h5ad": load_h5ad,
}


@pytest.fixture(params=SUFFIXES)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: Any) -> Path:
    """Two archives of one name, in two directories, of which the first is the working one."""
    for i in (1, 2):
        write(tmp_path / f"d{i}", f"a{request.param}", i)
    write(tmp_path / "others", "third", 3)
    monkeypatch.chdir(tmp_path / "d1")
    return tmp_path


@pytest.fixture
def name(request: pytest.FixtureRequest, place: Path) -> str:
    return next(path.name for path in (place / "d1").iterdir() if path.name.startswith("a"))


def is_changed(cells: Any, how: str) -> bool:
    if how == "cast":
        return bool(cells.data_dtype == np.uint8)
    return len(cells) == 2 * N if how == "concat" else value_of(cells.data_path) == {3}


@pytest.mark.parametrize("how", [*CHANGES])
def test_the_working_directory_changes(
    place: Path, name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = scdl.open(name)
    assert Path(cells.data_path) == place / "d1" / name
    monkeypatch.chdir(place / "d2")
    CHANGES[how](cells, place / "others")
    assert value_of(place / "d2" / name) == {2}
    assert scdl.open(place / "d2" / name).data_dtype == np.float32
    assert is_changed(cells, how)
    assert is_changed(scdl.open(place / "d1" / name), how)
    # And again, now that it was opened anew.
    cells.cast_data_to_dtype("float64")
    assert scdl.open(place / "d1" / name).data_dtype == np.float64
    assert scdl.open(place / "d2" / name).data_dtype == np.float32


def test_all_else_goes_on(place: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = scdl.open(name)
    monkeypatch.chdir(place / "others")
    assert pickle.loads(pickle.dumps(cells)).n_obs == N
    assert cells.verify(deep=True).is_sound
    cells.save("copy")
    assert value_of(place / "others" / "copy") == {1}
    cells.load("third")
    monkeypatch.chdir(place)
    cells.cast_data_to_dtype("uint8")
    assert scdl.open(place / "others" / "third").data_dtype == np.uint8


def test_a_collection(place: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(place / "d1", "b", 4)
    for cells in (scdl.open("."), scdl.SingleCellCollection([name, "b"])):
        monkeypatch.chdir(place / "d2")
        assert set(cells.read_rows(slice(None)).data.tolist()) == {1, 4}
        assert len(pickle.loads(pickle.dumps(cells))) == 2 * N
        cells.check()
        assert cells.verify().is_sound
        monkeypatch.chdir(place / "d1")
    whole = scdl.open(".")
    monkeypatch.chdir(place / "d2")
    whole.load_h5ad(place / "others" / "3.h5ad")
    whole.save_manifest()
    assert sorted(path.name for path in (place / "d2").iterdir()) == ["2.h5ad", name]
    assert len(scdl.open(place / "d1")) == 3 * N


def test_names_with_colons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are no URLs where a file is there."""
    write(tmp_path / "d", "s:1", 1)
    monkeypatch.chdir(tmp_path / "d")
    cells, joined = scdl.open("s:1"), scdl.SingleCellCollection(["s:1"])
    joined.save_manifest(tmp_path / "d")
    monkeypatch.chdir(tmp_path)
    cells.cast_data_to_dtype("float64")
    assert joined.n_obs == len(scdl.open(tmp_path / "d")) == N


@pytest.mark.parametrize("how", [*CHANGES])
def test_a_link_leads_elsewhere(place: Path, name: str, how: str) -> None:
    link = place / "link"
    link.symlink_to(place / "d1" / name)
    cells = scdl.open(link)
    link.unlink()
    link.symlink_to(place / "d2" / name)
    CHANGES[how](cells, place / "others")
    assert value_of(place / "d2" / name) == {2}
    assert scdl.open(place / "d2" / name).data_dtype == np.float32
    found = scdl.open(place / "d1" / name)
    assert found.shape() == cells.shape()
    assert found.data_dtype == cells.data_dtype
    assert is_changed(found, how)


@pytest.mark.parametrize("how", [*CHANGES])
@pytest.mark.parametrize("what", ["replaced", "moved"])
def test_another_stands_there(place: Path, name: str, how: str, what: str) -> None:
    path = place / "d1" / name
    cells = scdl.open(path)
    os.rename(path, place / "aside")
    if what == "replaced":
        shutil.copytree(place / "d2" / name, path)
    with pytest.raises(ArchiveChangedError, match="moved or replaced since it was opened"):
        CHANGES[how](cells, place / "others")
    assert value_of(place / "aside") == {1}
    assert set(cells.read_rows(slice(None)).data.tolist()) == {1}
    if what == "replaced":
        assert value_of(path) == {2}
    else:
        assert not path.exists()
    # What is held can still be copied.
    cells.save(place / "saved")
    assert value_of(place / "saved") == {1}
    assert not list(place.rglob(".*"))


def test_loading_what_is_not_there_changes_nothing(place: Path, name: str) -> None:
    cells = scdl.open(name)
    with pytest.raises(ArchiveNotFoundError):
        cells.load("nothing")
    cells.cast_data_to_dtype("uint8")
    assert scdl.open(place / "d1" / name).data_dtype == np.uint8


def test_a_replaced_archive_is_not_sent(place: Path, name: str) -> None:
    cells = scdl.open(name)
    view = cells.select_genes("union")
    scdl.convert(place / "others" / "3.h5ad", name, replace=True)
    assert set(cells.read_rows(slice(None)).data.tolist()) == {1}
    for old in (cells, view):
        with pytest.raises(ArchiveChangedError, match="open it again"):
            pickle.dumps(old)
    assert set(pickle.loads(pickle.dumps(scdl.open(name))).read_rows([0]).data.tolist()) <= {3}
