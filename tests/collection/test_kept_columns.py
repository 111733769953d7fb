"""Columns of obs that the manifest keeps: the same values as in the members, or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

import scdl
from scdl.archive.tables import Encoded
from scdl.errors import (
    ArchiveFormatError,
    ArchiveWriteError,
    CollectionError,
    FeatureNotFoundError,
)
from storage_backends import registry

COLUMNS = ["kind", "text", "n", "flag", "maybe", "only"]


def frame(seed: int, n: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    labels = [f"k{i}" for i in range(seed, seed + 3)]
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical.from_codes(rng.integers(-1, 3, n), labels),
            "text": rng.choice(["a", "ä", f"own{seed}"], n),
            "n": rng.integers(-9, 9, n) if seed else rng.integers(0, 9, n).astype("i1"),
            "flag": rng.random(n) < 0.5,
            "maybe": pd.array(rng.choice([1, None], n), "Int64"),
        },
        index=[f"c{seed}-{i}" for i in range(n)],
    )
    return obs.assign(only=pd.Categorical(rng.choice(["x", "y"], n))) if seed == 1 else obs


def write(path: Path, seed: int, n: int, **options: Any) -> None:
    source = path.parent.with_name(f"{path.name}.h5ad")
    anndata.AnnData(sparse.eye(n, 4, format="csr", dtype="f4"), frame(seed, n)).write_h5ad(source)
    scdl.convert(source, path, data_dtype="float32", **options)


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    (tmp_path / "atlas").mkdir()
    for seed, name in enumerate(["a", "b.zarr", "c"]):
        write(tmp_path / "atlas" / name, seed, 10 + seed)
    return tmp_path / "atlas"


def values(cells: Any, name: str) -> list[Any]:
    found = cells.obs_features().columns.encoded(name)
    return (found.array() if isinstance(found, Encoded) else found).to_pylist()


def types(cells: Any, name: str) -> Any:
    found = cells.obs_features().columns.encoded(name)
    return found.type, found.labels.to_pylist() if isinstance(found, Encoded) else None


def kept(place: Path) -> list[str]:
    return sorted(path.name for path in place.glob("collection.obs-*"))


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function after which no member can be opened."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a member is opened")

    def seal() -> None:
        monkeypatch.setattr(registry, "open_archive", refuse)
        for name in registry.names():
            monkeypatch.setattr(registry.backend(name).store, "open_tables", refuse)

    return seal


def test_the_same_values_without_opening_members(atlas: Path, sealed: Callable[[], None]) -> None:
    before = scdl.open(atlas)
    expected = {name: (values(before, name), types(before, name)) for name in COLUMNS}
    table = before.read_obs(COLUMNS, index=False)
    before.save_manifest(obs=COLUMNS)
    assert len(kept(atlas)) == len(COLUMNS)
    sealed()
    after = scdl.open(atlas)
    for name, (known, type_) in expected.items():
        assert values(after, name) == known
        assert types(after, name) == type_
        assert table[name].isna().tolist() == [value is None for value in known]
    parts = scdl.split(after, (0.5, 0.5), stratify="kind", seed=1)
    assert sum(map(len, parts.values())) == len(after)


def test_columns_that_are_not_kept_are_read(atlas: Path) -> None:
    scdl.open(atlas).save_manifest(obs="kind")
    found = scdl.open(atlas)
    assert values(found, "n") == found.obs["n"].tolist()
    with pytest.raises(FeatureNotFoundError, match="nothing"):
        found.save_manifest(obs=["nothing"])
    assert len(kept(atlas)) == 1


@pytest.mark.parametrize("name", ["a", "b.zarr", "c"])
def test_never_the_labels_of_a_changed_member(atlas: Path, name: str) -> None:
    made = scdl.open(atlas)
    made.save_manifest(obs=["kind", "n"])
    opened = scdl.open(atlas)
    write(atlas / name, 7, made.fname_to_mmap[atlas / name].n_obs, replace=True)
    for cells in opened, scdl.open(atlas):
        for column in ("kind", "n"):
            with pytest.raises(CollectionError, match="the archive changed since"):
                cells.obs_features().columns.encoded(column)
    opened.refresh()
    (atlas / "collection.json").rename(atlas / "aside.json")
    expected = values(scdl.open(atlas), "kind")
    (atlas / "aside.json").rename(atlas / "collection.json")
    assert values(scdl.open(atlas), "kind") == expected
    assert len(kept(atlas)) == 2


def test_other_members_or_another_order_are_other_files(atlas: Path, tmp_path: Path) -> None:
    paths = sorted(path for path in atlas.iterdir())
    for members in (paths, paths[::-1], paths[1:]):
        expected = values(scdl.SingleCellCollection(members), "kind")
        scdl.SingleCellCollection(members).save_manifest(tmp_path / "place", obs="kind")
        assert values(scdl.open(tmp_path / "place"), "kind") == expected
        assert len(kept(tmp_path / "place")) == 1


def test_columns_stay_kept_until_they_are_left_out(atlas: Path, tmp_path: Path) -> None:
    made = scdl.open(atlas)
    made.save_manifest(obs=["kind", "only"])
    write(tmp_path / "more", 5, 6)
    again = scdl.open(atlas)
    again.add(tmp_path / "more")
    assert len(kept(atlas)) == 2
    expected = values(scdl.SingleCellCollection([r.path for r in again._members.records]), "kind")
    assert values(scdl.open(atlas), "kind") == expected
    scdl.open(atlas).save_manifest()
    assert len(kept(atlas)) == 2
    scdl.open(atlas).save_manifest(obs=())
    assert kept(atlas) == []


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(kept_atlas: Path, place: float, bit: int) -> None:
    (name,) = kept(kept_atlas)
    file = kept_atlas / name
    data = bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    whole = file.read_bytes()
    try:
        file.write_bytes(data)
        with pytest.raises(ArchiveFormatError, match=r"the kept column 'kind' is damaged"):
            values(scdl.open(kept_atlas), "kind")
    finally:
        file.write_bytes(whole)


@pytest.fixture(scope="module")
def kept_atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("flips") / "atlas"
    place.mkdir()
    write(place / "a", 0, 12)
    scdl.open(place).save_manifest(obs=["kind"])
    return place


def test_members_need_checksums(atlas: Path) -> None:
    (atlas / "a" / "scdl" / "checksums.bin").unlink()
    with pytest.raises(CollectionError, match="there are no checksums"):
        scdl.open(atlas).save_manifest(obs="kind")
    scdl.open(atlas).save_manifest()
    assert values(scdl.open(atlas), "kind")


def test_a_failed_write_leaves_what_was_there(
    atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scdl.open(atlas).save_manifest(obs="kind")
    files = kept(atlas)
    write(tmp_path / "more", 5, 6)
    opened = scdl.open(atlas)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(ArchiveWriteError, match="No space left"):
            opened.add(tmp_path / "more")
    assert kept(atlas) == files
    assert len(values(scdl.open(atlas), "kind")) == len(opened)


def test_the_label_is_no_kept_column(atlas: Path) -> None:
    scdl.open(atlas).save_manifest(obs="kind")
    found = scdl.open(atlas, label="sample")
    assert set(values(found, "sample")) == {"a", "b.zarr", "c"}
