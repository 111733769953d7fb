"""Which source each cell comes from; and options that there are not."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

import scdl
from scdl.errors import BackendOptionError, OptionError, ScdlError, UnknownOptionError

SIZES = [3, 0, 4]
KEYS = ["x", "y", "z"]
EXPECTED = ["x"] * 3 + ["z"] * 4
#: Of members, and of the cells of each.
NAMES = ["m0", "m1.zarr", "m2"]
VALUES = ["m0"] * 3 + ["m2"] * 4


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three of which one has no cells, and the last another column."""
    place, made = tmp_path_factory.mktemp("origins"), []
    for i, n in enumerate(SIZES):
        obs = pd.DataFrame(index=[f"c{i}-{j}" for j in range(n)])
        if i == 2:
            obs["type"] = pd.Categorical(list("BTBT"))
        var = pd.DataFrame(index=["g0", "g1"])
        made.append(place / f"s{i}.h5ad")
        anndata.AnnData(np.full((n, 2), i + 1, "f4"), obs, var).write_h5ad(made[i])
    return made


def assert_labelled(column: pd.Series, categories: list[str], values: list[str]) -> None:
    assert column.cat.categories.tolist() == categories
    assert column.tolist() == values


class TestConvert:
    @pytest.mark.parametrize("name", ["made", "made.zarr"])
    def test_as_anndata_does(self, files: list[Path], tmp_path: Path, name: str) -> None:
        adatas = [anndata.read_h5ad(file) for file in files]
        cases: list[tuple[Any, Any, Any]] = [
            (files, adatas, {"keys": KEYS}),
            (files, adatas, {}),
            (dict(zip(KEYS, files, strict=True)), dict(zip(KEYS, adatas, strict=True)), {}),
        ]
        for sources, theirs, options in cases:
            scdl.convert(sources, tmp_path / name, label="sample", replace=True, **options)
            found = scdl.open(tmp_path / name).obs
            expected = anndata.concat(theirs, label="sample", join="outer", **options).obs
            assert found.columns.tolist() == ["sample", "type"] or "type" in found
            assert_labelled(
                found["sample"],
                expected["sample"].cat.categories.tolist(),
                expected["sample"].tolist(),
            )

    def test_one_source_that_is_kept_whole(self, files: list[Path], tmp_path: Path) -> None:
        scdl.convert({"mine": files[2]}, tmp_path / "a.zarr", label="sample")
        found = scdl.open(tmp_path / "a.zarr").to_anndata().obs
        assert_labelled(found["sample"], ["mine"], ["mine"] * 4)
        assert found["type"].tolist() == list("BTBT")

    def test_in_parts(self, files: list[Path], tmp_path: Path) -> None:
        scdl.convert_in_parts(
            files, tmp_path / "a", label="sample", keys=KEYS, workers=2, use_processes=False,
            split_bytes=1,
        )  # fmt: skip
        assert_labelled(scdl.open(tmp_path / "a").obs["sample"], KEYS, EXPECTED)

    def test_an_archive_of_several_blocks(self, files: list[Path], tmp_path: Path) -> None:
        other = anndata.AnnData(np.ones((2, 1), "f4"), var=pd.DataFrame(index=["another"]))
        other.write_h5ad(tmp_path / "other.h5ad")
        scdl.convert([files[0], tmp_path / "other.h5ad"], tmp_path / "two")
        scdl.convert([tmp_path / "two", files[2]], tmp_path / "a", label="from", keys=["a", "b"])
        assert_labelled(scdl.open(tmp_path / "a").obs["from"], ["a", "b"], ["a"] * 5 + ["b"] * 4)

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"keys": KEYS}, "pass label="),
            ({"label": "a", "keys": ["x"]}, "has 1 names, expected 3"),
            ({"label": "a", "keys": ["x", "y", "x"]}, "'x' more than once"),
            ({"label": "a", "keys": "xyz"}, "a list with one name per source"),
            ({"label": "type"}, r"s2.h5ad: obs has a column 'type' already"),
        ],
    )
    def test_errors(self, files: list[Path], tmp_path: Path, options: Any, told: str) -> None:
        with pytest.raises(OptionError, match=told):
            scdl.convert(files, tmp_path / "a", **options)
        with pytest.raises(OptionError, match=told):
            scdl.convert_in_parts(files, tmp_path / "a", workers=1, **options)
        assert list(tmp_path.iterdir()) == []

    def test_errors_of_a_dict(self, files: list[Path], tmp_path: Path) -> None:
        sources = dict(zip(KEYS, files, strict=True))
        with pytest.raises(OptionError, match="pass label="):
            scdl.convert(sources, tmp_path / "a")
        with pytest.raises(OptionError, match="leave out keys="):
            scdl.convert(sources, tmp_path / "a", label="sample", keys=KEYS)

    def test_command(self, files: list[Path], tmp_path: Path, run_command: Any) -> None:
        options = ["--label", "sample", *(part for key in KEYS for part in ("--key", key))]
        command = ["scdl", "convert", *map(str, files), "out", "-q", *options]
        assert run_command(*command).returncode == 0
        assert_labelled(scdl.open(tmp_path / "out").obs["sample"], KEYS, EXPECTED)
        again = run_command(*command)
        assert again.returncode == 1
        assert "give replace=True" in again.stderr
        assert run_command(*command, "--replace").returncode == 0
        refused = run_command("scdl", "convert", str(files[0].parent), "all", *options)
        assert refused.returncode == 2


class TestCollection:
    @pytest.fixture
    def place(self, files: list[Path], tmp_path: Path) -> Path:
        (tmp_path / "all").mkdir()
        for i, file in enumerate(files):
            name = f"m{i}{'.zarr' * (i == 1)}"
            scdl.convert(file, tmp_path / "all" / name, data_dtype="float32")
        return tmp_path

    def test_obs(self, place: Path) -> None:
        plain = scdl.open(place / "all")
        made = scdl.open(place / "all", label="sample")
        for cells in (made, pickle.loads(pickle.dumps(made)), made.select_genes("union")):
            assert_labelled(cells.obs["sample"], NAMES, VALUES)
            assert cells.read_rows([6, 0], obs=["sample"]).obs["sample"].tolist() == ["m2", "m0"]
        assert "sample" not in plain.obs
        assert made.obs["type"].tolist()[3:] == list("BTBT")

    def test_loader(self, place: Path) -> None:
        pytest.importorskip("torch")
        made = scdl.open(place / "all", label="sample")
        loader = scdl.SingleCellLoader(made, 7, order="sequential", obs=["sample"])
        (batch,) = loader
        assert [loader.vocabulary["sample"][code] for code in batch.obs["sample"]] == VALUES
        parts = scdl.split(made, [0.5, 0.5], by="sample")
        assert {len(rows) for rows in parts.values()} == {3, 4}

    def test_flatten(self, place: Path) -> None:
        made = scdl.open(place / "all", label="sample")
        made.flatten(place / "flat.zarr", destroy_on_copy=True)
        assert_labelled(scdl.open(place / "flat.zarr").obs["sample"], NAMES, VALUES)

    def test_members_that_come(self, place: Path, files: list[Path]) -> None:
        made = scdl.open(place / "all", label="type2")
        scdl.convert(files[2], place / "more")
        made.add(place / "more")
        assert_labelled(made.obs["type2"], [*NAMES, "more"], [*VALUES, *["more"] * 4])

    def test_without_obs(self, place: Path) -> None:
        from reading import rewritten

        path = rewritten(place / "all" / "m0", place / "bare", {"obs": None})
        made = scdl.SingleCellCollection([path], label="sample")
        assert made.obs["sample"].tolist() == ["bare"] * 3
        made.flatten(place / "flat")
        assert scdl.open(place / "flat").obs["sample"].tolist() == ["bare"] * 3

    def test_errors(self, place: Path) -> None:
        for make in (scdl.open, scdl.SingleCellCollection):
            with pytest.raises(OptionError, match=r"m2: obs has a column 'type' already"):
                make(place / "all", label="type")
        with pytest.raises(OptionError, match="single archive"):
            scdl.open(place / "all" / "m0", label="sample")


def test_unknown_options_are_told_with_all_there_are(files: list[Path], tmp_path: Path) -> None:
    scdl.convert(files[0], tmp_path / "a")
    scdl.convert(files[2], tmp_path / "b")
    made = scdl.SingleCellCollection([tmp_path / "a", tmp_path / "b"])
    a, b = scdl.open(tmp_path / "a"), scdl.open(tmp_path / "b")
    calls: list[tuple[Any, list[str]]] = [
        (lambda: scdl.convert(files, tmp_path / "c", colour=1), ["replace", "label", "obsm"]),
        (lambda: scdl.convert_in_parts(files, tmp_path / "c", colour=1), ["split_bytes"]),
        (
            lambda: scdl.convert_directory(files[0].parent, tmp_path / "c", colour=1),
            ["split_bytes", "resume", "backend", "neighbor_key", "matrix"],
        ),
        (lambda: scdl.SingleCellDataset(tmp_path / "a", colour=1), ["load_neighbors", "matrix"]),
        (lambda: made.flatten(tmp_path / "c.zarr", colour=1), ["genes", "compression", "replace"]),
        (lambda: a.concat(b, output_path=tmp_path / "c", colour=1), ["cell_names", "backend"]),
    ]  # fmt: skip
    for call, known in calls:
        with pytest.raises((UnknownOptionError, BackendOptionError), match="'colour'") as told:
            call()
        assert isinstance(told.value, ScdlError)
        for name in known:
            assert name in str(told.value)
    assert not list(tmp_path.glob("c*"))
