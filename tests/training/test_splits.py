"""Splits of a dataset: disjoint, reproducible, saved and validated."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from sources import names, random_cells, write_h5ad
from training import N_OBS, OBS

import scdl
from scdl.errors import FeatureNotFoundError, ScdlError, ScdlWarning, SplitError
from scdl.training import grouping, split_drawing
from scdl.training.split_drawing import Drawing
from scdl.training.vocabulary import ObsColumn


@pytest.fixture(scope="module")
def ds(archives: dict[str, Path]) -> scdl.SingleCellDataset:
    return scdl.open(archives["memmap"])


def assert_whole(splits: scdl.Splits) -> None:
    """Check that each cell is in one part, and that parts are sorted."""
    for rows in splits.values():
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(N_OBS))


SHARES = st.lists(st.integers(1, 20), min_size=1, max_size=3).map(
    lambda parts: [part / sum(parts) for part in parts]
)


class TestByCell:
    @given(shares=SHARES, seed=st.integers(0, 99))
    def test_parts_are_of_their_size(self, ds: Any, shares: list[float], seed: int) -> None:
        splits = scdl.split(ds, shares, seed=seed)
        assert_whole(splits)
        assert list(splits) == ["train", "validation", "test"][: len(shares)]
        for rows, share in zip(splits.values(), shares, strict=True):
            assert len(rows) == pytest.approx(share * N_OBS, abs=1)

    def test_names(self, ds: Any) -> None:
        splits = scdl.split(ds, {"a": 0.25, "b": 0.25, "c": 0.25, "d": 0.25})
        assert_whole(splits)
        assert [len(splits[name]) for name in "abcd"] == pytest.approx([N_OBS / 4] * 4, abs=1)

    def test_cells_are_drawn_at_random(self, ds: Any) -> None:
        test = scdl.split(ds, (0.5, 0.5))["validation"]
        counts = np.bincount(test * 10 // N_OBS, minlength=10)
        assert scipy.stats.chisquare(counts).pvalue > 1e-4

    def test_depends_only_on_the_seed(self, archives: dict[str, Path], ds: Any) -> None:
        one = scdl.split(ds, (0.8, 0.2), seed=1)
        same = scdl.split(scdl.open(archives["balanced"]), (0.8, 0.2), seed=np.int64(1))
        other = scdl.split(ds, (0.8, 0.2), seed=2)
        assert one.hash == same.hash != other.hash
        assert (one["validation"] != other["validation"]).any()


class TestByGroup:
    @pytest.mark.parametrize("by", ["donor", "line", "type", "small"])
    def test_a_group_is_in_one_part(self, ds: Any, by: str) -> None:
        splits = scdl.split(ds, {"one": 0.5, "other": 0.5}, by=by)
        assert_whole(splits)
        labels = [set(OBS[by].iloc[rows]) for rows in splits.values()]
        assert labels[0].isdisjoint(labels[1])
        assert all(labels)

    @pytest.mark.parametrize("seed", range(5))
    def test_parts_are_of_about_their_size(self, ds: Any, seed: int) -> None:
        splits = scdl.split(ds, (0.6, 0.2, 0.2), by="donor", seed=seed)
        largest = OBS["donor"].value_counts().max()
        for rows, share in zip(splits.values(), (0.6, 0.2, 0.2), strict=True):
            assert abs(len(rows) - share * N_OBS) <= largest

    def test_cells_without_a_group_are_a_group(self, tmp_path: Path) -> None:
        groups = pd.Categorical(["A", None] * 10)
        obs = pd.DataFrame({"group": groups}, index=names("cell", 20))
        write_h5ad(tmp_path / "a.h5ad", random_cells(20, 3), obs=obs)
        scdl.convert(tmp_path / "a.h5ad", tmp_path / "archive")
        splits = scdl.split(scdl.open(tmp_path / "archive"), (0.5, 0.5), by="group")
        parts = sorted(rows.tolist() for rows in splits.values())
        assert parts == [list(range(0, 20, 2)), list(range(1, 20, 2))]

    def test_without_fractions_each_value_is_a_part(self, ds: Any, tmp_path: Path) -> None:
        splits = scdl.split(ds, by="donor")
        assert_whole(splits)
        for name, rows in splits.items():
            assert set(OBS["donor"].iloc[rows].astype(str)) == {name}
        splits.save(tmp_path / "split")
        assert scdl.Splits.load(tmp_path / "split", ds).hash == splits.hash
        chosen = np.arange(0, N_OBS, 7)
        pairs = scdl.split(ds, by=["donor", "type"], rows=chosen)
        assert np.sort(np.concatenate([*pairs.values()])).tolist() == chosen.tolist()
        with pytest.raises(SplitError, match="0 values"):
            scdl.split(ds, by="donor", rows=[])

    def test_cells_without_a_value_are_in_no_part(self, tmp_path: Path) -> None:
        obs = pd.DataFrame({"group": pd.Categorical(["A", None] * 10)}, index=names("cell", 20))
        write_h5ad(tmp_path / "a.h5ad", random_cells(20, 3), obs=obs)
        scdl.convert(tmp_path / "a.h5ad", tmp_path / "archive")
        with pytest.warns(ScdlWarning, match="10 cells have no value of 'group'"):
            splits = scdl.split(scdl.open(tmp_path / "archive"), by="group")
        assert {name: rows.tolist() for name, rows in splits.items()} == {"A": [*range(0, 20, 2)]}

    def test_seeds_draw_other_groups(self, ds: Any) -> None:
        hashes = {
            scdl.split(ds, {"one": 0.5, "other": 0.5}, by="donor", seed=seed).hash
            for seed in range(9)
        }
        assert len(hashes) > 3


class TestSaved:
    def test_round_trip(self, ds: Any, tmp_path: Path) -> None:
        splits = scdl.split(ds, (0.7, 0.2, 0.1), by="donor", seed=3)
        splits.save(tmp_path / "split")
        again = scdl.Splits.load(tmp_path / "split", ds)
        assert list(again) == list(splits)
        for name, rows in splits.items():
            np.testing.assert_array_equal(again[name], rows)
            assert again[name].dtype == np.int64
        assert (again.n_obs, again.how, again.hash) == (N_OBS, splits.how, splits.hash)
        assert again.how == {
            "fractions": {"train": 0.7, "validation": 0.2, "test": 0.1}, "by": "donor", "seed": 3,
        }  # fmt: skip

    def test_replaces_an_existing_file(self, ds: Any, tmp_path: Path) -> None:
        for seed in range(2):
            scdl.split(ds, (0.5, 0.5), seed=seed).save(tmp_path / "split")
        assert scdl.Splits.load(tmp_path / "split").how["seed"] == 1
        assert os.listdir(tmp_path) == ["split"]

    def test_failed_save_leaves_no_files(self, ds: Any, tmp_path: Path) -> None:
        (tmp_path / "split").mkdir()
        with pytest.raises(OSError, match="split"):
            scdl.split(ds, (0.5, 0.5)).save(tmp_path / "split")
        assert os.listdir(tmp_path) == ["split"]

    def test_hash_distinguishes_splits(self, ds: Any) -> None:
        splits = [
            scdl.split(ds, (0.5, 0.5)),
            scdl.split(ds, (0.5, 0.5), seed=1),
            scdl.split(ds, (0.4, 0.6)),
            scdl.split(ds, {"a": 0.5, "b": 0.5}),
        ]
        assert len({s.hash for s in splits}) == len({*splits}) == len(splits)
        again = scdl.split(ds, (0.5, 0.5))
        assert splits[0].hash == again.hash
        assert splits[0] == again
        assert splits[0] != splits[1]
        assert splits[0] != dict(again)

    def test_of_another_dataset(self, ds: Any, tmp_path: Path) -> None:
        rows = {"train": np.arange(5)}
        scdl.Splits(rows, 7, {}).save(tmp_path / "split")
        with pytest.raises(SplitError, match=f"7 cells.*{N_OBS}"):
            scdl.Splits.load(tmp_path / "split", ds)
        assert scdl.Splits.load(tmp_path / "split")["train"].tolist() == [0, 1, 2, 3, 4]


class TestSeveralColumns:
    def test_a_combination_is_in_one_part(self, ds: Any) -> None:
        splits = scdl.split(ds, (0.5, 0.5), by=["donor", "line"])
        assert_whole(splits)
        pairs = [set(zip(*(OBS[c].iloc[rows] for c in ("donor", "line")), strict=True))
                 for rows in splits.values()]  # fmt: skip
        assert pairs[0].isdisjoint(pairs[1])
        donors = [{donor for donor, _ in part} for part in pairs]
        assert not donors[0].isdisjoint(donors[1])

    def test_list_of_one_column(self, ds: Any) -> None:
        one, other = (scdl.split(ds, (0.5, 0.5), by=by) for by in ("donor", ["donor"]))
        assert one.hash == other.hash


class TestStratified:
    @given(shares=SHARES, seed=st.integers(0, 99))
    def test_each_part_has_its_share_of_each_label(
        self, ds: Any, shares: list[float], seed: int
    ) -> None:
        splits = scdl.split(ds, shares, stratify=["type", "line"], seed=seed)
        assert_whole(splits)
        counts = OBS.groupby(["type", "line"], observed=True).size()
        for rows, share in zip(splits.values(), shares, strict=True):
            found = OBS.iloc[rows].groupby(["type", "line"], observed=True).size()
            assert (abs(found.reindex(counts.index, fill_value=0) - share * counts) <= 1).all()

    @given(
        sizes=st.lists(st.integers(0, 9), min_size=1, max_size=50),
        large=st.integers(0, 3),
        shares=SHARES,
        seed=st.integers(0, 99),
    )
    def test_many_small_strata_beside_large_ones(
        self, sizes: list[int], large: int, shares: list[float], seed: int
    ) -> None:
        """Those of few cells are drawn together, in blocks; each is divided by the shares."""
        n_cells = [*sizes, *[split_drawing._FEW_CELLS + 1] * large]
        strata = np.random.default_rng(seed).permutation(
            np.repeat(np.arange(len(n_cells)), n_cells)
        )
        fractions = np.array(shares) / sum(shares)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(split_drawing, "CELLS_AT_ONCE", 20)
            blocks = Drawing(fractions, strata, seed).by_cell(len(strata))
        part_of = Drawing(fractions, strata, seed).by_cell(len(strata))
        np.testing.assert_array_equal(part_of, blocks)
        found = np.zeros((len(n_cells), len(fractions)))
        np.add.at(found, (strata, part_of), 1)
        assert (abs(found - np.outer(n_cells, fractions)) <= 1).all()

    def test_cells_of_small_strata_are_drawn_at_random(self) -> None:
        """Each place in a stratum is as often in each part, and strata are independent."""
        strata = np.repeat(np.arange(10_000), 4)
        part_of = Drawing(np.array([0.5, 0.5]), strata, 0).by_cell(len(strata)).reshape(-1, 4)
        assert (part_of.sum(axis=1) == 2).all()
        assert abs(part_of.mean(axis=0) - 0.5).max() < 0.02
        _, counts = np.unique(part_of, axis=0, return_counts=True)
        assert len(counts) == 6
        assert abs(counts / len(part_of) - 1 / 6).max() < 0.02

    def test_cells_without_a_label_are_a_stratum(self, ds: Any) -> None:
        splits = scdl.split(ds, (0.5, 0.5), stratify="guide")
        assert_whole(splits)
        missing = [OBS["guide"].iloc[rows].isna().sum() for rows in splits.values()]
        assert abs(missing[0] - missing[1]) <= 2

    def test_groups_of_a_stratum(self, tmp_path: Path) -> None:
        """Donors, each healthy or ill, are assigned to parts with some of both."""
        n = 600
        donors = np.arange(n) % 20
        frame = pd.DataFrame(
            {"donor": donors, "state": np.where(donors < 12, "healthy", "ill"), "lane": donors // 2,
             "odd": np.arange(n) % 40 // 20},
            index=names("cell", n),
        )  # fmt: skip
        write_h5ad(tmp_path / "a.h5ad", random_cells(n, 3), obs=frame)
        scdl.convert(tmp_path / "a.h5ad", tmp_path / "archive")
        cells = scdl.open(tmp_path / "archive")
        for seed in range(5):
            splits = scdl.split(cells, (0.5, 0.5), by="donor", stratify="state", seed=seed)
            parts = [frame.iloc[rows].drop_duplicates("donor") for rows in splits.values()]
            for part in parts:
                assert part["state"].value_counts().to_dict() == {"healthy": 6, "ill": 4}
            assert set(parts[0]["donor"]).isdisjoint(parts[1]["donor"])
        with pytest.raises(SplitError, match="several strata"):
            scdl.split(cells, (0.5, 0.5), by="donor", stratify="odd")


class TestHeldOut:
    def test_groups_by_name(self, ds: Any) -> None:
        splits = scdl.split(ds, (0.8, 0.2), by="donor", held_out={"test": ["d3", "d7"]})
        assert list(splits) == ["train", "validation", "test"]
        assert_whole(splits)
        donors = {name: set(OBS["donor"].iloc[rows]) for name, rows in splits.items()}
        assert donors["test"] == {"d3", "d7"}
        assert donors["train"].isdisjoint(donors["validation"])
        # Only the other seven groups are drawn, each with a ninth of the cells.
        assert len(splits["train"]) == pytest.approx(0.8 * 7 / 9 * N_OBS, abs=0.1 * N_OBS)

    def test_one_group_and_combinations(self, ds: Any) -> None:
        one = scdl.split(ds, {"train": 1.0}, by="donor", held_out={"test": "d3"})
        assert set(OBS["donor"].iloc[one["test"]]) == {"d3"}
        two = scdl.split(ds, {"train": 1.0}, by=["donor", "line"], held_out={"test": ("d3", 7)})
        test = OBS.iloc[two["test"]]
        assert len(test) == ((OBS["donor"] == "d3") & (OBS["line"] == 7)).sum()
        assert set(test["donor"]) == {"d3"}
        assert set(test["line"]) == {7}

    def test_all_groups_by_name(self, ds: Any, tmp_path: Path) -> None:
        named = {"train": ["T", "B"], "test": ["NK"]}
        splits = scdl.split(ds, by="type", held_out=named)
        assert_whole(splits)
        assert set(OBS["type"].iloc[splits["test"]]) == {"NK"}
        splits.save(tmp_path / "split")
        assert scdl.Splits.load(tmp_path / "split").how["held_out"] == named

    def test_controls_are_in_every_part(self, ds: Any) -> None:
        """Controls in proportion, by cell; every other guide is in one part."""
        cells = OBS["guide"].astype(object).fillna("none")
        splits = scdl.split(
            ds, {"train": 1.0}, by="guide", held_out={"test": ["B"]}, control="control"
        )
        assert_whole(splits)
        test = cells.iloc[splits["test"]].value_counts()
        train = cells.iloc[splits["train"]].value_counts()
        assert set(test.index) == {"B", "control"}
        assert set(train.index) == {"A", "C", "none", "control"}
        shares = [part["control"] / part.drop("control").sum() for part in (test, train)]
        assert shares[0] == pytest.approx(shares[1], rel=0.05)


class TestReadOnly:
    def test_rows_are_copies(self, ds: Any) -> None:
        rows = np.arange(10)
        splits = scdl.Splits({"train": rows}, N_OBS, {})
        rows += 20
        assert splits["train"].tolist() == list(range(10))
        with pytest.raises(ValueError, match="read-only"):
            splits["train"][0] = 5


def arrays(**named: Any) -> Callable[[Path], object]:
    """Replace the arrays of a saved split."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **named)

    return write


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "directory": lambda path: (path.unlink(), path.mkdir()),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("train: 1, 2, 3"),
    "an array": lambda path: (
        np.save(f"{path}.npy", np.arange(5)),
        os.replace(f"{path}.npy", path),
    ),
    "pickled objects": arrays(part_of=np.array([None, {}]), about=np.array([{}])),
    "other arrays": arrays(some=np.arange(5)),
    "no description": arrays(part_of=np.arange(5), about=np.frombuffer(b"[", np.uint8)),
    "another description": arrays(part_of=np.arange(5), about=np.frombuffer(b"[1]", np.uint8)),
    "a zip": lambda path: zipfile.ZipFile(path, "w").close(),
}


class TestDamaged:
    @pytest.fixture
    def path(self, ds: Any, tmp_path: Path) -> Path:
        scdl.split(ds, (0.5, 0.5)).save(tmp_path / "split")
        return tmp_path / "split"

    @pytest.mark.parametrize("how", DAMAGE)
    def test_invalid_files(self, path: Path, how: str) -> None:
        DAMAGE[how](path)
        with pytest.raises(SplitError, match="split"):
            scdl.Splits.load(path)

    def test_any_byte(self, path: Path) -> None:
        """Changing any byte raises an error or has no effect."""
        whole, expected = path.read_bytes(), scdl.Splits.load(path).hash
        rng = np.random.default_rng(0)
        n_errors = 0
        for position in rng.integers(0, len(whole), 400).tolist():
            damaged = bytearray(whole)
            damaged[position] ^= int(rng.integers(1, 256))
            path.write_bytes(damaged)
            try:
                assert scdl.Splits.load(path).hash == expected
            except SplitError:
                n_errors += 1
        assert n_errors > 100

    def test_any_length(self, path: Path) -> None:
        whole = path.read_bytes()
        for length in range(0, len(whole), 7):
            path.write_bytes(whole[:length])
            with pytest.raises(SplitError):
                scdl.Splits.load(path)

    def test_cells_moved_to_another_part(self, path: Path) -> None:
        with np.load(path) as stored:
            part_of, about = stored["part_of"].copy(), stored["about"]
        part_of[5] = 1 - part_of[5]
        with path.open("wb") as file:
            np.savez(file, part_of=part_of, about=about)
        with pytest.raises(SplitError, match="changed"):
            scdl.Splits.load(path)

    def test_of_a_later_format(self, path: Path) -> None:
        with np.load(path) as stored:
            part_of, about = stored["part_of"], json.loads(stored["about"].tobytes())
        about["format"] = "scdl split 2"
        with path.open("wb") as file:
            np.savez(file, part_of=part_of, about=np.frombuffer(json.dumps(about).encode(), "u1"))
        with pytest.raises(SplitError, match="'scdl split 2', this release reads 'scdl split 1'"):
            scdl.Splits.load(path)


BAD: dict[str, tuple[Any, dict[str, Any], type[ScdlError], str]] = {
    "too little": ((0.5, 0.4), {}, SplitError, "sum to 1"),
    "too much": ((0.5, 0.6), {}, SplitError, "sum to 1"),
    "negative": ((1.5, -0.5), {}, SplitError, "positive"),
    "zero": ((1.0, 0.0), {}, SplitError, "positive"),
    "NaN": ((np.nan, 1.0), {}, SplitError, "positive"),
    "none": ((), {}, SplitError, "positive"),
    "no names": ((0.25,) * 4, {}, SplitError, "names"),
    "without cells": ((0.9999, 0.0001), {}, SplitError, "validation.*too few"),
    "too few groups": ((0.4, 0.3, 0.3), {"by": "line"}, SplitError, "test.*line"),
    "no sequence": (0.8, {}, SplitError, "one share per part"),
    "unknown group": (
        (0.5, 0.5),
        {"by": "donor", "held_out": {"test": ["d77"]}},
        SplitError,
        "d77.*d0",
    ),
    "group of two parts": (
        {"train": 1.0},
        {"by": "donor", "held_out": {"a": ["d1"], "b": ["d1"]}},
        SplitError,
        "twice",
    ),
    "part of both": (
        (0.5, 0.5),
        {"by": "donor", "held_out": {"train": ["d1"]}},
        SplitError,
        "not in both",
    ),
    "held out of no groups": (
        (0.5, 0.5),
        {"held_out": {"test": ["d1"]}},
        SplitError,
        "require by=",
    ),
    "controls of no groups": ((0.5, 0.5), {"control": "A"}, SplitError, "require by="),
    "cells of no part": ((), {"by": "donor", "held_out": {"a": ["d1"]}}, SplitError, "in no part"),
    "unknown control": ((0.5, 0.5), {"by": "guide", "control": "x"}, SplitError, "control.*x"),
    "controls alone": (
        (0.5, 0.5),
        {"by": "type", "control": "T", "held_out": {"test": "B"}},
        SplitError,
        "only controls",
    ),
    "controls held out": (
        {"train": 1.0},
        {"by": "guide", "control": "A", "held_out": {"test": "A"}},
        SplitError,
        "control",
    ),
    "by nothing": ((0.5, 0.5), {"by": []}, SplitError, "at least one column"),
    "stratified by no column": ((0.5, 0.5), {"stratify": "x"}, FeatureNotFoundError, "x"),
    "by no column": ((0.5, 0.5), {"by": "x"}, FeatureNotFoundError, "x"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(ds: Any, case: str) -> None:
    fractions, options, kind, told = BAD[case]
    with pytest.raises(kind, match=told) as caught:
        scdl.split(ds, fractions, **options)
    assert isinstance(caught.value, ScdlError)
    assert "\n" not in str(caught.value)


def test_of_some_cells(ds: scdl.SingleCellDataset) -> None:
    chosen = np.arange(1, N_OBS, 3)
    for rows in (chosen, chosen[::-1], np.isin(np.arange(N_OBS), chosen)):
        splits = scdl.split(ds, (0.5, 0.5), rows=rows, seed=3)
        parts = list(splits.values())
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), chosen)
        assert splits.hash == scdl.split(ds, (0.5, 0.5), rows=chosen, seed=3).hash
    by_donor = scdl.split(ds, (0.5, 0.5), by="donor", rows=chosen)
    donors = [set(OBS["donor"].iloc[rows]) for rows in by_donor.values()]
    assert not donors[0] & donors[1]
    assert by_donor.how["rows"] != scdl.split(ds, (0.5, 0.5), rows=chosen[1:]).how["rows"]
    with pytest.raises(scdl.errors.RowIndexError):
        scdl.split(ds, (0.5, 0.5), rows=[N_OBS])


@given(
    codes=st.lists(st.integers(-1, 4), max_size=40).map(lambda found: np.array(found, np.int8)),
    without=st.none() | st.integers(0, 5),
)
def test_cells_by_code(codes: np.ndarray, without: int | None) -> None:
    known = (codes >= 0) & (codes != (-1 if without is None else without))
    at = np.flatnonzero(known)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "CELLS_AT_ONCE", 7)
        cells, counts = grouping.cells_by_code(codes, without)
    assert cells.tolist() == at[np.argsort(codes[at], kind="stable")].tolist()
    assert counts.tolist() == (np.bincount(codes[at]).tolist() if len(at) else [])


@given(st.lists(st.tuples(*[st.integers(-1, 2)] * 3), min_size=1, max_size=30))
def test_combinations_of_columns(rows: list[tuple[int, int, int]]) -> None:
    columns = [
        ObsColumn(np.array(codes, np.int8), tuple(f"{name}{code}" for code in range(3)))
        for name, codes in zip("abc", zip(*rows, strict=True), strict=True)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "CELLS_AT_ONCE", 4)
        patch.setattr(grouping, "label_codes", lambda _, name: columns["abc".index(name)])
        groups = grouping.group_cells(object(), ["a", "b", "c"])  # type: ignore[arg-type]
    expected = [
        None if min(row) < 0 else tuple(f"{n}{c}" for n, c in zip("abc", row, strict=True))
        for row in rows
    ]
    assert [None if c < 0 else groups.names[c] for c in groups.values] == expected
    assert list(groups.names or ()) == sorted({label for label in expected if label is not None})
