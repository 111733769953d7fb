"""destroy_on_copy: either all of the sources is in the result, or nothing was touched."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from annotated import names_of_layers
from budget import examples
from hypothesis import given, settings
from hypothesis import strategies as st

import scdl
from scdl.errors import (
    ArchiveChangedError,
    ArchiveExistsError,
    ArchiveLockedError,
    ArchivePlaceError,
    CollectionError,
    ScdlError,
    ScdlWarning,
)
from storage_backends.directory import locks

N, GENES = 4, 3
#: Names that parts of sparse matrices have too.
KEYS = ["data", "indices", "indptr", "q"]
FORMS: dict[str, Any] = {"dense": np.asarray, "csr": sp.csr_matrix, "csc": sp.csc_matrix}
WIDTHS = {"layers": GENES, "obsp": N, "obsm": 2, "varm": 2, "varp": GENES}


def annotated(
    seed: int = 0,
    elements: tuple[tuple[str, str, str, str], ...] = (),
    *,
    uns: bool = False,
    n: int = N,
) -> anndata.AnnData:
    """Cells with columns that hold nothing in places; elements: (mapping, key, form, dtype)."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {"age": [0.5, np.nan, 1.5, 2.5], "type": pd.Categorical(["B", None, "T", "B"])},
        index=[f"c{seed}-{i}" for i in range(N)],
    )
    var = pd.DataFrame(
        {"length": [1.0, np.nan, 3.0], "kind": pd.Categorical(["x", "y", None])},
        index=["g0", "g1", "g2"],
    )
    made = anndata.AnnData(rng.integers(0, 9, (N, GENES)).astype("f4"), obs, var)
    for mapping, key, form, dtype in elements:
        n_rows = GENES if mapping in ("varm", "varp") else N
        values = rng.normal(1, 1, (n_rows, WIDTHS[mapping])).astype(dtype)
        getattr(made, mapping)[key] = FORMS[form](values)
    if uns:
        made.uns["about"] = {"seed": seed}
    return made[:n].copy()


def write(place: Path, name: str, adata: anndata.AnnData, **options: Any) -> Path:
    adata.write_h5ad(place / f"{name}.h5ad")
    path = place / name
    graphs = [key for key, value in adata.obsp.items() if sp.issparse(value)]
    if options.get("only_matrix") or not str(path).endswith(".zarr"):
        options["neighbor_key"] = graphs or None
        dense = [key for key, value in adata.obsm.items() if isinstance(value, np.ndarray)]
        options["obsm"] = dense or None
        options["layers"] = names_of_layers(adata)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScdlWarning)
        scdl.convert(place / f"{name}.h5ad", path, **{k: v for k, v in options.items() if v})
    return path


def bytes_of(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def plain(value: Any) -> Any:
    return value.toarray() if sp.issparse(value) else np.asarray(value)


def assert_contains(made: anndata.AnnData, source: anndata.AnnData) -> None:
    """Everything of the source, as numbers and frames."""
    np.testing.assert_array_equal(plain(made.X), plain(source.X))
    assert made.obs_names.tolist() == source.obs_names.tolist()
    for ours, theirs in ((source.obs, made.obs), (source.var, made.var)):
        for name in ours:
            pd.testing.assert_series_equal(
                ours[name].astype(object), theirs[name].astype(object), check_index=False
            )
    for mapping in WIDTHS:
        for key, value in getattr(source, mapping).items():
            np.testing.assert_array_equal(plain(getattr(made, mapping)[key]), plain(value))
    assert source.uns.keys() <= made.uns.keys()


element = st.tuples(
    st.sampled_from([*WIDTHS]),
    st.sampled_from(KEYS),
    st.sampled_from([*FORMS]),
    st.sampled_from(["f4", "f8"]),
)
source = st.tuples(
    st.lists(element, max_size=3, unique_by=lambda e: e[:2]).map(tuple),
    st.booleans(),
    st.sampled_from(["", ".zarr"]),
    st.booleans(),
    st.sampled_from([0, N, N, N]),
)


@settings(max_examples=examples(30))
@given(
    sources=st.lists(source, min_size=1, max_size=3),
    how=st.sampled_from(["flatten", "concat", "in place"]),
    suffix=st.sampled_from(["", ".zarr"]),
    alike=st.booleans(),
)
def test_all_or_nothing(sources: Any, how: str, suffix: str, alike: bool) -> None:
    if alike:
        # Few archives that are drawn on their own have the same elements.
        sources = [(sources[0][0], *rest[1:]) for rest in sources]
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        paths = [
            write(
                place, f"m{i}{end}", annotated(i, elements, uns=uns, n=n),
                data_dtype="float32", only_matrix=only and end == ".zarr",
            )
            for i, (elements, uns, end, only, n) in enumerate(sources)
        ]  # fmt: skip
        there = [scdl.open(path).to_anndata() for path in paths]
        before = {path: bytes_of(path) for path in paths}
        target = paths[0] if how == "in place" else place / f"made{suffix}"
        going = paths if how == "flatten" else paths[1:]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ScdlWarning)
                if how == "flatten":
                    scdl.SingleCellCollection(paths).flatten(target, destroy_on_copy=True)
                else:
                    first, *others = map(scdl.open, paths)
                    output = None if how == "in place" else target
                    first.concat(others, output_path=output, destroy_on_copy=True)
        except ScdlError:
            assert {path: bytes_of(path) for path in paths} == before
            assert how == "in place" or not target.exists()
            return
        assert not any(path.exists() for path in going)
        made, start = scdl.open(target), 0
        for path, adata in zip(paths, there, strict=True):
            if path in going:
                part = np.arange(start, start + adata.n_obs)
                if len(part):
                    assert_contains(made.to_anndata(part), adata)
            start += adata.n_obs
        assert made.n_obs == start


@pytest.mark.parametrize("suffix", ["", ".zarr"])
def test_that_it_succeeds(tmp_path: Path, suffix: str) -> None:
    """With a graph, vectors and columns with nothing in places, from Zarr as from memmap."""
    elements = (
        ("obsp", "data", "csr", "f4"),
        ("obsm", "indices", "dense", "f8"),
        ("layers", "data", "csr", "i4"),
    )
    paths = [
        write(tmp_path, f"m{i}{end}", annotated(i, elements), only_matrix=end == ".zarr")
        for i, end in enumerate([".zarr", "", ".zarr"])
    ]
    target = tmp_path / f"made{suffix}"
    scdl.SingleCellCollection(paths).flatten(target, destroy_on_copy=True)
    made = scdl.open(target)
    for i in range(3):
        part = made.to_anndata(np.arange(i * N, (i + 1) * N))
        assert_contains(part, annotated(i, elements))
    assert not any(path.exists() for path in paths)


@pytest.mark.parametrize("how", ["flatten", "concat"])
@pytest.mark.parametrize("form", [*FORMS])
def test_what_is_lost_is_told(tmp_path: Path, form: str, how: str) -> None:
    """Also where its name ends as a part of a sparse matrix does."""
    named = [(mapping, key) for mapping in ("layers", "obsp", "varm") for key in KEYS]
    adata = annotated(0, tuple((mapping, key, form, "f4") for mapping, key in named))
    paths = [write(tmp_path, f"m{i}.zarr", adata) for i in range(2)]
    kept = [(mapping, "csr") for mapping in ("layers", "obsp")]
    lost = [f"{mapping}/{key}" for mapping, key in named if (mapping, form) not in kept]

    def run(**options: Any) -> None:
        target = tmp_path / "made.zarr"
        if how == "flatten":
            scdl.SingleCellCollection(paths).flatten(target, **options)
        else:
            scdl.open(paths[0]).concat(scdl.open(paths[1]), output_path=target, **options)

    with pytest.raises(CollectionError, match=r"is left out.*destroy_on_copy") as refused:
        run(destroy_on_copy=True)
    assert all(path.exists() for path in paths)
    assert not (tmp_path / "made.zarr").exists()
    with pytest.warns(ScdlWarning, match=r"cannot be copied and is left out") as given:
        run()
    for told in (str(refused.value), str(given[0].message)):
        assert [name for _, name in sorted((told.index(n), n) for n in lost)]
        for name in ("obsp/q", "layers/q"):
            assert (name in told) == (name in lost)


def test_weights_that_would_be_rounded(tmp_path: Path) -> None:
    """Archives of the documented format have float32 only."""
    elements = (("obsp", "distances", "csr", "f8"),)
    paths = [
        write(tmp_path, f"m{i}.zarr", annotated(i, elements), only_matrix=False) for i in range(2)
    ]
    collection = scdl.SingleCellCollection(paths)
    with pytest.raises(CollectionError, match=r"distances .*would be rounded to float32"):
        collection.flatten(tmp_path / "made", destroy_on_copy=True)
    collection.flatten(tmp_path / "made.zarr", destroy_on_copy=True)
    assert not any(path.exists() for path in paths)


class TestWhatStandsThere:
    """What is removed is what was copied, and nothing of what was made."""

    @pytest.fixture
    def paths(self, tmp_path: Path) -> list[Path]:
        return [write(tmp_path, f"m{i}", annotated(i)) for i in range(3)]

    def test_replaced_since_it_was_opened(self, tmp_path: Path, paths: list[Path]) -> None:
        other = scdl.open(paths[1])
        os.rename(paths[1], tmp_path / "aside")
        write(tmp_path, "m1", annotated(9))
        with pytest.raises(ArchiveChangedError, match=r"m1: .*left unchanged"):
            scdl.open(paths[0]).concat(other, destroy_on_copy=True)
        assert scdl.open(paths[0]).n_obs == N
        assert scdl.open(paths[1]).obs_names[0] == "c9-0"

    def test_changed_while_it_is_copied(
        self, tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from scdl.collection import collection

        def write_and_change(*arguments: Any, **options: Any) -> None:
            concatenate(*arguments, **options)
            scdl.open(paths[1]).cast_data_to_dtype("float64")

        concatenate = collection.concatenate
        monkeypatch.setattr(collection, "concatenate", write_and_change)
        made = scdl.SingleCellCollection(paths, max_open=1)
        with pytest.raises(ScdlError, match="m1: the archive "):
            made.flatten(tmp_path / "flat", destroy_on_copy=True)
        assert all(path.exists() for path in paths)
        assert not (tmp_path / "flat").exists()

    def test_locked_by_another(self, tmp_path: Path, paths: list[Path]) -> None:
        with locks.write_locked(str(paths[1])), pytest.raises(ArchiveLockedError, match="m1"):
            scdl.open(paths[1]).store.remove()
        assert scdl.open(paths[1]).n_obs == N

    def test_a_result_inside_what_goes(self, tmp_path: Path, paths: list[Path]) -> None:
        first, second = map(scdl.open, paths[:2])
        with pytest.raises(CollectionError, match="would be removed"):
            first.concat(second, output_path=paths[1], destroy_on_copy=True, replace=True)
        with pytest.raises(CollectionError, match="would be removed"):
            first.concat(scdl.open(paths[0]), destroy_on_copy=True)
        link = tmp_path / "link"
        link.symlink_to(paths[0])
        with pytest.raises(CollectionError, match="would be removed"):
            first.concat(scdl.open(link), destroy_on_copy=True)
        assert all(path.exists() for path in paths)

    @pytest.mark.parametrize("suffix", ["", ".zarr"])
    def test_nothing_is_written_into_an_archive(self, tmp_path: Path, suffix: str) -> None:
        path = write(tmp_path, f"a{suffix}", annotated())
        other = write(tmp_path, "other", annotated(1))
        inside, before = path / "copy", bytes_of(path)
        (tmp_path / "link").symlink_to(path)
        attempts = [
            lambda: scdl.open(path).save(inside),
            lambda: scdl.open(other).save(path / "scdl" / "copy"),
            lambda: scdl.open(other).save(tmp_path / "link" / "copy"),
            lambda: scdl.open(other).concat(scdl.open(path), output_path=inside),
            lambda: scdl.convert(tmp_path / "other.h5ad", inside),
            lambda: scdl.convert(path, inside),
            lambda: scdl.convert_in_parts([tmp_path / "other.h5ad"], inside, workers=1),
            lambda: scdl.convert_directory(tmp_path, inside, workers=1),
            lambda: scdl.SingleCellCollection([other]).flatten(inside),
        ]
        for attempt in attempts:
            with pytest.raises(ArchivePlaceError, match=r"inside the archive .*choose a path"):
                attempt()
        with pytest.raises(CollectionError, match="inside the member"):
            scdl.SingleCellCollection([path]).flatten(inside)
        assert bytes_of(path) == before

    def test_what_is_no_archive_is_not_replaced(self, tmp_path: Path, paths: list[Path]) -> None:
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "important.txt").write_text("all that I know")
        (tmp_path / "many").mkdir()
        os.rename(paths[2], tmp_path / "many" / "m2")
        for name in ("notes", "many", "m0.h5ad"):
            with pytest.raises(ArchiveExistsError, match=r"is not an archive.*remove it"):
                scdl.convert(tmp_path / "m1.h5ad", tmp_path / name, replace=True)
            with pytest.raises(ArchiveExistsError, match=r"is not an archive.*remove it"):
                scdl.open(paths[1]).save(tmp_path / name, replace=True)
        assert scdl.open(tmp_path / "many" / "m2").n_obs == N

    def test_replacing(self, tmp_path: Path, paths: list[Path]) -> None:
        first, second = map(scdl.open, paths[:2])
        attempts = [
            lambda **how: first.save(paths[2], **how),
            lambda **how: first.concat(second, output_path=paths[2], **how),
            lambda **how: scdl.SingleCellCollection(paths[:2]).flatten(paths[2], **how),
            lambda **how: scdl.convert(tmp_path / "m0.h5ad", paths[2], **how),
            lambda **how: scdl.convert_in_parts([tmp_path / "m1.h5ad"], paths[2], workers=1, **how),
        ]
        found = []
        for attempt in attempts:
            with pytest.raises(ArchiveExistsError, match="give replace=True"):
                attempt()
            attempt(replace=True)
            found.append(scdl.open(paths[2]).obs_names[-1])
        assert found == ["c0-3", "c1-3", "c1-3", "c0-3", "c1-3"]
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
        # In place, by its own name: it goes on with what it was replaced by.
        first.concat(second, output_path=paths[0], replace=True)
        assert first.n_obs == scdl.open(paths[0]).n_obs == 2 * N
        first.cast_data_to_dtype("float64")
