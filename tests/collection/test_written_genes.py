"""One gene space, written by flatten and convert and assembled, as anndata has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from budget import examples
from hypothesis import given, settings
from hypothesis import strategies as st

import scdl
from scdl.errors import CastError, CollectionError, GeneError, OptionError, ScdlWarning

NAMES = [f"g{i}" for i in range(6)]


def adata(genes: list[str], seed: int, n: int = 4) -> anndata.AnnData:
    rng = np.random.default_rng(seed)
    made = anndata.AnnData(
        sp.csr_matrix(rng.integers(0, 3, (n, len(genes))).astype("f4")),
        pd.DataFrame(
            {"type": pd.Categorical(["B", "T", "B", "T"][:n])},
            index=[f"c{seed}-{i}" for i in range(n)],
        ),
        pd.DataFrame({"ensembl": [f"E{name}" for name in genes]}, index=genes),
    )
    made.obsm["X_pca"] = rng.normal(size=(n, 2)).astype("f4")
    return made


def write(place: Path, lists: list[list[str]]) -> tuple[list[anndata.AnnData], list[Path]]:
    made, files = [], []
    for i, genes in enumerate(lists):
        made.append(adata(genes, i))
        files.append(place / f"{i}.h5ad")
        made[i].write_h5ad(files[i])
    return made, files


def collection(place: Path, files: list[Path], suffix: str = "") -> scdl.SingleCellCollection:
    paths = []
    for i, file in enumerate(files):
        paths.append(place / f"m{i}{suffix}")
        options: Any = {"only_matrix": True} if suffix else {}
        scdl.convert(file, paths[i], obsm=["X_pca"], data_dtype="float32", **options)
    return scdl.SingleCellCollection(paths)


def expected(made: list[anndata.AnnData], genes: str | list[str]) -> pd.DataFrame:
    """By anndata, in the order that was asked for."""
    if isinstance(genes, list):
        found = anndata.concat(made, join="outer", fill_value=0)
        names = genes
    else:
        found = anndata.concat(made, join="outer" if genes == "union" else "inner", fill_value=0)
        names = list(dict.fromkeys(name for one in made for name in one.var_names))
        names = [name for name in names if name in found.var_names]
    return found.to_df().reindex(columns=names, fill_value=0).astype("f4")


def assert_is(archive: Path, frame: pd.DataFrame) -> None:
    made = scdl.open(archive)
    assert scdl.verify(archive).is_sound
    assert len(made.n_vars) == 1
    found = made.to_anndata()
    pd.testing.assert_frame_equal(found.to_df(), frame, check_names=False, check_dtype=False)
    assert found.obs["type"].tolist() == ["B", "T", "B", "T"] * (len(frame) // 4)


lists = st.lists(
    st.lists(st.sampled_from(NAMES), min_size=1, unique=True), min_size=1, max_size=3
)  # fmt: skip


@settings(max_examples=examples(20))
@given(
    lists=lists, genes=st.sampled_from(["union", "intersection"]) | st.permutations(NAMES[:3]),
    suffix=st.sampled_from(["", ".zarr"]),
)  # fmt: skip
def test_as_anndata_concatenates(
    tmp_path_factory: pytest.TempPathFactory, lists: Any, genes: Any, suffix: str
) -> None:
    place = tmp_path_factory.mktemp("genes")
    made, files = write(place, lists)
    frame = expected(made, genes)
    among = {name for one in made for name in one.var_names}
    joined = collection(place, files, suffix)
    if not among.intersection(frame.columns):
        with pytest.raises(GeneError):
            scdl.convert(files, place / f"made{suffix}", genes=genes, missing="zero")
        return
    scdl.convert(files, place / f"made{suffix}", genes=genes, missing="zero")
    assert_is(place / f"made{suffix}", frame)
    joined.flatten(place / f"flat{suffix}", genes=genes, missing="zero")
    assert_is(place / f"flat{suffix}", frame)
    view = joined.select_genes(genes, missing="zero")
    for cells in (view, view.select_genes(list(frame.columns))):
        found = cells.to_anndata()
        pd.testing.assert_frame_equal(found.to_df(), frame, check_names=False)
        assert cells.obs["type"].tolist() == found.obs["type"].tolist()


class TestTwo:
    """Two files with some genes in common."""

    @pytest.fixture
    def files(self, tmp_path: Path) -> list[Path]:
        return write(tmp_path, [["g0", "g1", "g2"], ["g2", "g3"]])[1]

    def test_in_parts(self, files: list[Path], tmp_path: Path) -> None:
        how: Any = {"genes": "union", "missing": "zero", "label": "sample", "keys": ["a", "b"]}
        scdl.convert(files, tmp_path / "made", **how)
        with pytest.raises(TypeError):
            scdl.convert_in_parts(files, tmp_path / "parts", workers=1, **how)

    def test_what_is_left_out_is_told(self, files: list[Path], tmp_path: Path) -> None:
        report = scdl.convert(files, tmp_path / "made", genes="intersection")
        assert {"var/ensembl", "obsm/X_pca"} <= set(report.not_carried)
        assert report.n_vars == [1]

    def test_one_source_is_not_kept_whole(self, files: list[Path], tmp_path: Path) -> None:
        scdl.convert(files[0], tmp_path / "made.zarr", genes=["g2", "g0"])
        found = scdl.open(tmp_path / "made.zarr").to_anndata()
        assert found.var_names.tolist() == ["g2", "g0"]
        source = anndata.read_h5ad(files[0])[:, ["g2", "g0"]]
        np.testing.assert_array_equal(found.X.toarray(), source.X.toarray())

    def test_a_column_of_ids_and_a_file(self, files: list[Path], tmp_path: Path) -> None:
        (tmp_path / "genes.txt").write_text("Eg2\nEg3\n")
        how: Any = {"genes": tmp_path / "genes.txt", "gene_column": "ensembl", "missing": "zero"}
        scdl.convert(files, tmp_path / "made", **how)
        collection(tmp_path, files).flatten(tmp_path / "flat", **how)
        for name in ("made", "flat"):
            assert scdl.open(tmp_path / name).var_names.tolist() == ["Eg2", "Eg3"]

    def test_duplicates(self, tmp_path: Path) -> None:
        one = adata(["g0", "g1", "g2"], 0)
        one.var["ensembl"] = ["E", "E", "F"]
        one.X = sp.csr_matrix(np.full((4, 3), 200, "f4"))
        one.write_h5ad(tmp_path / "a.h5ad")
        for policy, value in (("sum", 400), ("first", 200)):
            path = tmp_path / policy
            how: Any = {"genes": ["E"], "gene_column": "ensembl", "duplicates": policy}
            scdl.convert(tmp_path / "a.h5ad", path, data_dtype="uint16", **how)
            assert scdl.open(path).data.tolist() == [value] * 4
        how = {"genes": ["E"], "gene_column": "ensembl"}
        with pytest.raises(GeneError, match="id of several genes"):
            scdl.convert(tmp_path / "a.h5ad", tmp_path / "bad", **how)
        with pytest.raises(CastError, match="uint8 cannot hold"):
            scdl.convert(
                tmp_path / "a.h5ad", tmp_path / "bad", data_dtype="uint8", duplicates="sum", **how
            )
        scdl.convert(tmp_path / "a.h5ad", tmp_path / "small", data_dtype="uint8")
        with pytest.raises(CastError):
            scdl.SingleCellCollection([tmp_path / "small"]).flatten(
                tmp_path / "bad", duplicates="sum", **how
            )
        assert not (tmp_path / "bad").exists()

    @pytest.mark.parametrize(
        ("options", "error", "told"),
        [
            ({"missing": "zero"}, OptionError, "missing='zero'.*pass genes="),
            ({"gene_column": "ensembl"}, OptionError, "gene_column=.*pass genes="),
            ({"genes": "union", "missing": "mask"}, OptionError, "missing='zero' or 'error'"),
            ({"genes": "union"}, GeneError, "lacks"),
            ({"genes": ["g0", "g0"]}, GeneError, "more than once"),
            ({"genes": "union", "gene_column": "x"}, (GeneError, ValueError), "column 'x'"),
        ],
    )
    def test_errors(
        self, files: list[Path], tmp_path: Path, options: Any, error: Any, told: str
    ) -> None:
        joined = collection(tmp_path, files)
        with pytest.raises(error, match=told):
            scdl.convert(files, tmp_path / "made", **options)
        with pytest.raises(error, match=told):
            joined.flatten(tmp_path / "made", **options)
        assert not (tmp_path / "made").exists()

    def test_nothing_is_removed(self, files: list[Path], tmp_path: Path) -> None:
        joined = collection(tmp_path, files)
        with pytest.raises(CollectionError, match=r"genes= leaves out.*destroy_on_copy"):
            joined.flatten(tmp_path / "flat", genes="intersection", destroy_on_copy=True)
        assert not (tmp_path / "flat").exists()
        joined.check()

    def test_assembled(self, files: list[Path], tmp_path: Path) -> None:
        joined = collection(tmp_path, files)
        with pytest.raises(GeneError, match="genes="):
            joined.to_anndata()
        made = joined.to_anndata(np.array([6, 4]))
        source = anndata.read_h5ad(files[1])[[2, 0]]
        np.testing.assert_array_equal(made.X.toarray(), source.X.toarray())
        np.testing.assert_array_equal(made.obsm["X_pca"], source.obsm["X_pca"])
        assert made.var_names.tolist() == ["g2", "g3"]
        assert made.var["ensembl"].tolist() == ["Eg2", "Eg3"]
        assert made.obs_names.tolist() == ["c1-2", "c1-0"]
        view = joined.select_genes("intersection")
        assert view.to_anndata([]).shape == (0, 1)
        assert view.obs_names.tolist() == joined.obs_names.tolist()

    def test_same_genes(self, tmp_path: Path) -> None:
        made, files = write(tmp_path, [["g0", "g1"], ["g0", "g1"]])
        joined = collection(tmp_path, files)
        pd.testing.assert_frame_equal(
            joined.to_anndata().to_df(), anndata.concat(made).to_df(), check_names=False
        )

    def test_graphs_are_told(self, tmp_path: Path) -> None:
        one = adata(["g0"], 0)
        one.obsp["knn"] = sp.csr_matrix(np.eye(4, dtype="f4"))
        one.write_h5ad(tmp_path / "a.h5ad")
        scdl.convert(tmp_path / "a.h5ad", tmp_path / "a", neighbor_key="knn")
        joined = scdl.SingleCellCollection([tmp_path / "a"])
        with pytest.warns(ScdlWarning, match="graphs are left out: knn"):
            joined.to_anndata()

    def test_command(self, files: list[Path], tmp_path: Path, run_command: Any) -> None:
        joined = collection(tmp_path, files)
        (tmp_path / "all").mkdir()
        joined.save_manifest(tmp_path / "all")
        command = ("scdl", "flatten", "all", "flat", "--genes", "union")
        done = run_command(*command)
        assert done.returncode == 1
        assert "lacks" in done.stderr
        done = run_command(*command, "--missing", "zero")
        assert (done.returncode, done.stderr) == (0, "")
        assert scdl.open(tmp_path / "flat").n_vars == [4]
