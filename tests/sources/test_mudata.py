"""MuData: files, Zarr stores and objects, of which one modality becomes what its AnnData would."""

from __future__ import annotations

import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from annotated import annotated, counts, same
from budget import examples, sample
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import writing_strings

import scdl
from scdl.errors import OptionError, PathTypeError, ScdlError, SourceError, SourceNotFoundError

mudata = pytest.importorskip("mudata")
anndata = pytest.importorskip("anndata")


@pytest.fixture(autouse=True)
def _no_pulling() -> Any:
    with mudata.set_options(pull_on_update=False):
        yield


def part(cells: range, n_vars: int, prefix: str) -> Any:
    n = len(cells)
    adata = anndata.AnnData(
        counts(n, n_vars, np.random.default_rng(n)),
        pd.DataFrame({"depth": np.arange(n)}, index=[f"cell{i}" for i in cells]),
        pd.DataFrame(index=[f"{prefix}{i}" for i in range(n_vars)]),
    )
    adata.layers["twice"] = adata.X * 2
    return adata


def multimodal(rna: Any = None) -> Any:
    """Two modalities, of which neither has all cells."""
    rna = part(range(30), 12, "gene") if rna is None else rna
    mdata = mudata.MuData({"rna": rna, "prot": part(range(3, 36), 4, "tag")})
    n = mdata.n_obs
    mdata.obs["donor"] = pd.Categorical([f"d{i % 3}" for i in range(n)])
    mdata.obs["age"] = np.arange(n) + 0.5
    mdata.obs["rna:score"] = np.arange(n)
    mdata.obs["prot:score"] = np.arange(n)
    mdata.obsm["X_joint"] = np.zeros((n, 2))
    return mdata


def write(mdata: Any, path: Path) -> Path:
    with writing_strings(), warnings.catch_warnings(action="ignore"):
        (mdata.write_zarr if path.suffix == ".zarr" else mdata.write_h5mu)(path)
    return path


def read(path: Path) -> Any:
    with warnings.catch_warnings(action="ignore"):
        return (mudata.read_zarr if path.suffix == ".zarr" else mudata.read_h5mu)(path)


def in_memory(mdata: Any, path: Path) -> Any:
    return mdata


KINDS: dict[str, Callable[[Any, Path], Any]] = {"m.h5mu": write, "m.zarr": write, "": in_memory}


def complete() -> Any:
    """An AnnData with everything in it; text is in categories, as mudata writes it."""
    adata = annotated()
    adata.strings_to_categoricals()
    return adata


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The report of an AnnData that was converted alone."""
    return scdl.convert(complete(), tmp_path_factory.mktemp("alone") / "a.zarr")


@pytest.mark.parametrize("kind", sample([*KINDS], 2))
def test_a_modality_is_kept_whole(tmp_path: Path, kind: str, alone: Any) -> None:
    source = KINDS[kind](multimodal(complete()), tmp_path / kind)
    report = scdl.convert(source, tmp_path / "a.zarr", modality="rna")
    assert (report.n_obs, report.n_vars, report.nnz) == (alone.n_obs, alone.n_vars, alone.nnz)
    lost = {"mod/prot", "MuData/obsm/X_joint"}
    assert set(report.not_carried) - set(alone.not_carried) == lost
    back, expected = (scdl.open(path).to_anndata() for path in (report.path, alone.path))
    assert list(back.obs.columns) == [*expected.obs.columns, "donor", "age", "score"]
    back.obs = back.obs[expected.obs.columns]
    same(back, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["csr", "csc", "dense", "raw"])
def test_matrices(tmp_path: Path, kind: str, layout: str) -> None:
    rna = part(range(30), 12, "gene")
    expected = rna.X.toarray()
    if layout == "raw":
        rna.raw = rna.copy()
        rna = rna[:, :5].copy()
    makers = {"csc": sp.csc_matrix, "dense": lambda x: x.toarray()}
    rna.X = makers.get(layout, sp.csr_matrix)(rna.X)
    source = KINDS[kind](multimodal(rna), tmp_path / kind)
    report = scdl.convert(source, tmp_path / "a", modality="rna", block_values=50)
    assert report.matrices == ["raw/X" if layout == "raw" else "X"]
    ds = scdl.open(tmp_path / "a")
    np.testing.assert_array_equal(ds.read_rows(slice(None)).to_dense(), expected)
    assert list(ds.var_names) == [f"gene{i}" for i in range(12)]
    assert list(ds.obs_names) == list(rna.obs_names)


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_those_that_mudata_pushes(tmp_path: Path, kind: str) -> None:
    mdata = multimodal()
    source = KINDS[kind](mdata, tmp_path / kind)
    scdl.convert(source, tmp_path / "a", modality="prot")
    mdata = read(source) if kind else mdata.copy()
    mdata.push_obs()
    expected = mdata["prot"].obs
    obs = scdl.open(tmp_path / "a").obs
    pd.testing.assert_frame_equal(obs[expected.columns], expected, check_dtype=False)
    assert set(obs) == {"depth", "donor", "age", "score"}


@pytest.mark.parametrize("kind", KINDS)
def test_columns_that_were_pulled(tmp_path: Path, kind: str) -> None:
    """Releases of mudata before 0.4 copy the columns of each modality by default."""
    mdata = multimodal()
    mdata.obs["depth"] = -1
    mdata.pull_obs()
    with mudata.set_options(pull_on_update=True):
        source = KINDS[kind](mdata, tmp_path / kind)
    report = scdl.convert(source, tmp_path / "a", modality="prot")
    obs = scdl.open(tmp_path / "a").obs
    assert set(obs) == {"depth", "donor", "age", "score"}
    # That of the modality itself.
    assert obs["depth"].tolist() == list(range(33))
    assert "MuData/obs/depth" in report.not_carried


@given(st.data())
@settings(max_examples=examples(15))
def test_cells_in_any_order(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    place = tmp_path_factory.mktemp("order")
    names = [f"cell{i}" for i in range(9)]
    drawn = {
        name: data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
        for name in ("one", "two")
    }
    parts = {
        name: anndata.AnnData(
            np.ones((len(rows), 2), np.float32),
            pd.DataFrame(index=rows),
            pd.DataFrame(index=[f"{name}0", f"{name}1"]),
        )
        for name, rows in drawn.items()
    }
    mdata = mudata.MuData(parts)
    mdata.obs["name"] = list(mdata.obs_names)
    write(mdata, place / "m.h5mu")
    for name, rows in drawn.items():
        scdl.convert(place / "m.h5mu", place / name, modality=name)
        obs = scdl.open(place / name).obs
        assert list(obs.index) == list(obs["name"]) == rows
    view = mdata[
        data.draw(st.lists(st.sampled_from(list(mdata.obs_names)), min_size=1, unique=True))
    ]
    scdl.convert(view, place / "view", modality="one")
    obs = scdl.open(place / "view").obs
    assert list(obs.index) == list(obs["name"]) == list(view["one"].obs_names)


@pytest.mark.parametrize("kind", KINDS)
def test_choosing(tmp_path: Path, kind: str) -> None:
    source = KINDS[kind](multimodal(), tmp_path / kind)
    assert scdl.modalities(source) == ["rna", "prot"]
    with pytest.raises(SourceError, match=r"choose one with modality=: rna, prot"):
        scdl.convert(source, tmp_path / "a")
    with pytest.raises(OptionError, match=r"no modality 'atac'; the MuData has: rna, prot"):
        scdl.convert(source, tmp_path / "a", modality="atac")
    report = scdl.convert(source, tmp_path / "b", modality="prot", matrix="layers/twice")
    assert report.matrices == ["layers/twice"]
    with pytest.raises(SourceError, match=r"there is no matrix layers/none"):
        scdl.convert(source, tmp_path / "a", modality="prot", matrix="layers/none")
    assert not (tmp_path / "a").exists()
    only = KINDS[kind](
        mudata.MuData({"prot": part(range(33), 4, "tag")}), tmp_path / f"only-{kind}"
    )
    assert scdl.convert(only, tmp_path / "c").n_obs == 33


def test_several_at_once(tmp_path: Path, run_command: Callable[..., Any]) -> None:
    (tmp_path / "in").mkdir()
    for i in range(2):
        write(multimodal(), tmp_path / "in" / f"{i}.h5mu")
    report = scdl.convert_directory(tmp_path / "in", tmp_path / "out", workers=1, modality="prot")
    assert [Path(path).name for path in report.archives.values()] == ["0.scdl", "1.scdl"]
    both = {"a": tmp_path / "in" / "0.h5mu", "b": tmp_path / "in" / "1.h5mu"}
    options: dict[str, Any] = {"modality": "prot", "label": "from"}
    scdl.convert(both, tmp_path / "one", **options)
    scdl.convert_in_parts(both, tmp_path / "parts", workers=2, use_processes=False, **options)
    one, parts = (scdl.open(tmp_path / name) for name in ("one", "parts"))
    pd.testing.assert_frame_equal(one.obs, parts.obs)
    assert (one.read_rows(slice(None)).to_dense() == parts.read_rows(slice(None)).to_dense()).all()
    source, target = tmp_path / "in" / "0.h5mu", tmp_path / "command"
    done = run_command("scdl", "convert", str(source), str(target), "--modality", "rna")
    assert done.returncode == 0, done.stderr
    assert scdl.open(target).n_obs == 30
    done = run_command("scdl", "convert", str(source), str(target) + "2")
    assert done.returncode == 1
    assert "rna, prot" in done.stderr


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def without_modalities(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["mod"]


def without_cells(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["mod/rna/obs"]


def with_an_array(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["mod/rna"]
        file["mod/rna"] = np.arange(3)


def with_other_positions(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["obsmap/rna"][0] = 2


def with_fewer_positions(path: Path) -> None:
    with h5py.File(path, "a") as file:
        places = file["obsmap/rna"][:-1]
        del file["obsmap/rna"]
        file["obsmap/rna"] = places


def with_another_shape(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["mod/rna/X"].attrs["shape"] = [29, 12]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut, "truncated"),
        (lambda path: path.write_text("text"), "not an HDF5 file"),
        (lambda path: path.write_text(""), "an empty file"),
        (without_modalities, "not a MuData file: expected the group mod, found obs"),
        (without_cells, r"m\.h5mu/mod/rna: not an AnnData file: expected obs and var, found X"),
        (with_an_array, "mod/rna: expected an AnnData, found an array"),
        (with_other_positions, r"obsmap/rna: its positions do not name each of the 30 cells"),
        (with_fewer_positions, r"obsmap/rna: expected an integer for each of 36 cells"),
        (with_another_shape, r"mod/rna: X has shape \(29, 12\), expected \(30, 12\)"),
    ],
)
def test_what_is_wrong(tmp_path: Path, harm: Callable[[Path], object], message: str) -> None:
    source = write(multimodal(), tmp_path / "m.h5mu")
    harm(source)
    with pytest.raises(SourceError, match=message) as caught:
        scdl.convert(source, tmp_path / "a", modality="rna")
    assert str(source) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [source]
    # A directory reports it, and does not leave it out.
    with pytest.raises(scdl.errors.ConversionFailedError, match="m"):
        scdl.convert_directory(tmp_path, tmp_path / "out", workers=1, modality="rna")


def test_what_is_left_out_is_told_of_joined_sources(tmp_path: Path) -> None:
    """Whatever else is chosen: genes, or a table of cells."""
    cells = pd.DataFrame({"sex": ["f"]}, index=["cell3"])
    options: dict[str, Any] = {"modality": "prot", "obs": cells, "genes": ["tag1"]}
    report = scdl.convert(multimodal(), tmp_path / "a", **options)
    assert {"mod/rna", "MuData/obsm/X_joint"} <= set(report.not_carried)


def test_damaged_stores(tmp_path: Path) -> None:
    source = write(multimodal(), tmp_path / "m.zarr")
    root = zarr.open_group(source)
    del root["mod/rna/X"]
    with pytest.raises(ScdlError, match=r"m\.zarr/mod/rna: there is no element 'X'"):
        scdl.convert(source, tmp_path / "a", modality="rna")
    metadata = next(path for path in (source / "obs").iterdir() if path.is_file())
    metadata.write_text("{")
    with pytest.raises(SourceError, match=r"m\.zarr: zarr cannot read it"):
        scdl.convert(source, tmp_path / "a", modality="prot")
    assert list(tmp_path.iterdir()) == [source]


def test_what_is_no_mudata(tmp_path: Path) -> None:
    part(range(3), 2, "gene").write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(OptionError, match="modality is for MuData in memory, MuData, but"):
        scdl.convert(tmp_path / "a.h5ad", tmp_path / "a", modality="rna")
    with pytest.raises(SourceError, match="not a MuData file"):
        scdl.modalities(tmp_path / "a.h5ad")
    with pytest.raises(SourceNotFoundError):
        scdl.modalities(tmp_path / "none.h5mu")
    with pytest.raises(PathTypeError, match="modality=NAME"):
        scdl.open(multimodal())


def test_memory_does_not_grow_with_cells(tmp_path: Path) -> None:
    peaks = []
    for n in (2_000, 20_000):
        rna = anndata.AnnData(sp.csr_matrix(np.ones((n, 30), np.float32)))
        rna.obs_names = [str(i) for i in range(n)]
        mdata = mudata.MuData({"rna": rna})
        mdata.obs["number"] = np.arange(n)
        source = write(mdata, tmp_path / f"{n}.h5mu")
        scdl.convert(source, tmp_path / f"warm-{n}")
        tracemalloc.start()
        scdl.convert(source, tmp_path / f"{n}", block_values=1 << 13)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Positions of cells take some bytes for each.
    assert peaks[1] < peaks[0] + 18_000 * 100


def test_without_positions_of_cells(tmp_path: Path) -> None:
    """The columns of all cells are left out, and the report says so."""
    source = write(multimodal(), tmp_path / "m.h5mu")
    with h5py.File(source, "a") as file:
        del file["obsmap"]
    report = scdl.convert(source, tmp_path / "a", modality="prot")
    assert {"MuData/obs/donor", "MuData/obs/age"} <= set(report.not_carried)
    assert list(scdl.open(tmp_path / "a").obs) == ["depth"]
