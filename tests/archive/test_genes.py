"""One gene space for cells of different genes."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from budget import examples, sample
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged import Ragged, write_members
from sources import Cells, random_cells, write_h5ad

import scdl
from scdl.archive import csr
from scdl.errors import (
    CastError,
    FeatureNotFoundError,
    GeneError,
    GeneListNotFoundError,
    OutputError,
)


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Ragged:
    return write_members(tmp_path_factory.mktemp("genes") / "members")


@pytest.fixture(scope="module", params=["collection", "memmap", "archive"])
def cells(request: pytest.FixtureRequest, ragged: Ragged, tmp_path_factory: Any) -> Any:
    """A collection, and archives of several feature blocks, with the same cells."""
    found = scdl.SingleCellCollection(ragged.paths)
    if request.param == "collection":
        return found
    place = tmp_path_factory.mktemp("flat")
    path = place / ("flat" if request.param == "memmap" else "flat.zarr")
    found.flatten(path, **({} if path.suffix == "" else {"compression": "archive"}))
    return scdl.open(path)


def all_genes(ragged: Ragged) -> list[str]:
    return list(dict.fromkeys(gene for part in ragged.parts for gene in part.var_names))


class TestReading:
    @settings(max_examples=examples(15))
    @given(data=st.data())
    def test_any_list(self, cells: Any, ragged: Ragged, data: st.DataObject) -> None:
        known = [*all_genes(ragged)[:25], "nowhere", "neither"]
        genes = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=20, unique=True))
        if not set(genes) - {"nowhere", "neither"}:
            genes.append(known[0])
        rows = data.draw(st.lists(st.integers(0, len(cells) - 1), max_size=40))
        ordered = data.draw(st.booleans())
        view = cells.select_genes(genes, missing="zero")
        assert view.shape() == (len(cells), [len(genes)])
        batch = view.read_rows(rows, ordered=ordered)
        assert batch.n_vars == len(genes)
        np.testing.assert_array_equal(batch.to_dense(), ragged.dense(rows, genes))
        for i in range(len(rows) if ordered else 0):
            assert (np.diff(batch[i : i + 1].indices.astype(int)) > 0).all()

    def test_union(self, cells: Any, ragged: Ragged) -> None:
        view = cells.select_genes("union", missing="zero")
        assert view.gene_names.tolist() == all_genes(ragged)
        rows = [*range(len(cells))]
        expected = ragged.dense(rows, all_genes(ragged))
        np.testing.assert_array_equal(view.read_rows(rows).to_dense(), expected)
        assert view.number_nonzero_values() == np.count_nonzero(expected)
        assert view.data_dtype == np.float64

    def test_intersection(self, cells: Any, ragged: Ragged) -> None:
        view = cells.select_genes("intersection")
        shared = [g for g in all_genes(ragged) if all(g in p.var_names for p in ragged.parts)]
        assert view.gene_names.tolist() == shared == ["g4", "g9"]
        rows = [*range(len(cells))]
        np.testing.assert_array_equal(view.read_rows(rows).to_dense(), ragged.dense(rows, shared))

    def test_a_file(self, cells: Any, ragged: Ragged, tmp_path: Path) -> None:
        (tmp_path / "genes.txt").write_text("g9\n\n  g4 \r\n")
        view = cells.select_genes(tmp_path / "genes.txt")
        assert view.gene_names.tolist() == ["g9", "g4"]
        np.testing.assert_array_equal(
            view.read_rows([3, 70]).to_dense(), ragged.dense([3, 70], ["g9", "g4"])
        )
        assert cells.select_genes(str(tmp_path / "genes.txt")).n_vars == [2]

    def test_another_column(self, cells: Any, ragged: Ragged) -> None:
        view = cells.select_genes(["S9", "S4"], gene_column="symbol")
        np.testing.assert_array_equal(
            view.read_rows([3, 70]).to_dense(), ragged.dense([3, 70], ["g9", "g4"])
        )
        with pytest.raises(FeatureNotFoundError, match="nonsense"):
            cells.select_genes("union", gene_column="nonsense")

    def test_read_rows_takes_genes(self, cells: Any, ragged: Ragged) -> None:
        batch = cells.read_rows([70, 3], genes=["g9", "g4"], obs=["type"], obsm=["X_pca"])
        np.testing.assert_array_equal(batch.to_dense(), ragged.dense([70, 3], ["g9", "g4"]))
        assert len(batch.obs["type"]) == len(batch.obsm["X_pca"]) == 2

    def test_one_cell(self, cells: Any, ragged: Ragged) -> None:
        genes = ["g15", "g4", "g0"]
        view = cells.select_genes(genes, missing="zero")
        for row in range(0, len(cells), 11):
            expected = ragged.dense([row], genes)[0]
            (values, columns), (names,) = view.get_row(row, return_features=True)
            assert names.tolist() == genes
            assert values.tolist() == expected[expected != 0].tolist()
            assert columns.tolist() == np.flatnonzero(expected).tolist()
            assert view.get_row_padded(row)[0].tolist() == expected.tolist()
            assert view.get_row_column(row, 1) == expected[1]
        assert view.get_neighbor_stats() == cells.get_neighbor_stats()
        assert view.obs_features() is cells.obs_features()

    def test_wider_ids(self, cells: Any) -> None:
        view = cells.select_genes(["g9"])
        assert view.read_rows([0]).indices.dtype == np.uint8
        assert view.read_rows([0], index_dtype="i4").indices.dtype == np.int32
        with pytest.raises(OutputError, match="int8"):
            cells.select_genes("union", missing="zero").read_rows([0], index_dtype="i1")

    def test_pickles_read_the_same(self, cells: Any, ragged: Ragged) -> None:
        view = pickle.loads(pickle.dumps(cells.select_genes(["g9", "g4"])))
        np.testing.assert_array_equal(
            view.read_rows([3, 70]).to_dense(), ragged.dense([3, 70], ["g9", "g4"])
        )


class TestPolicies:
    def test_missing_genes_are_an_error_unless_told(self, cells: Any) -> None:
        with pytest.raises(GeneError, match=r"lacks 1 of 2 genes, such as 'g0'.*missing='zero'"):
            cells.select_genes(["g4", "g0"])
        with pytest.raises(GeneError, match="missing must be"):
            cells.select_genes(["g4"], missing="whatever")

    def test_mask(self, cells: Any, ragged: Ragged) -> None:
        genes = ["g15", "g4", "g0"]
        view = cells.select_genes(genes, missing="mask")
        rows = [100, 0, 45, 70, 30]
        batch = view.read_rows(rows)
        expected = [[gene in ragged.cell(row).index for gene in genes] for row in rows]
        assert batch.present[batch.spaces].tolist() == expected
        assert batch[1:3].present[batch[1:3].spaces].tolist() == expected[1:3]
        assert view.present[view.spaces(rows)].tolist() == expected
        assert cells.select_genes(genes, missing="zero").read_rows(rows).present is None

    def test_coverage(self, cells: Any, ragged: Ragged) -> None:
        genes = ["g15", "g4", "g0", "nowhere"]
        found = cells.select_genes(genes, missing="zero").coverage()
        expected = [sum(gene in part.var_names for gene in genes) for part in ragged.parts]
        assert found["present"].tolist() == expected
        assert found["missing"].tolist() == [4 - n for n in expected]
        assert found["n_obs"].tolist() == [part.n_obs for part in ragged.parts]
        assert found["n_vars"].tolist() == [part.n_vars for part in ragged.parts]
        assert [Path(name).stem for name in found.index] == [path.name for path in ragged.paths]

    def test_a_member_without_cells(self, tmp_path: Path) -> None:
        """It has genes of its own, not those of its neighbours."""
        for name, n_obs, n_vars in ("a", 3, 4), ("b", 0, 6), ("c", 3, 5), ("d", 0, 2):
            write_h5ad(tmp_path / "x.h5ad", random_cells(n_obs, n_vars))
            scdl.convert(tmp_path / "x.h5ad", tmp_path / name)
        made = scdl.SingleCellCollection([tmp_path / name for name in "abcd"])
        found = made.select_genes("union", missing="zero").coverage()
        assert found["n_obs"].tolist() == [3, 0, 3, 0]
        assert found["n_vars"].tolist() == found["present"].tolist() == [4, 6, 5, 2]

    def test_var(self, cells: Any) -> None:
        view = cells.select_genes(["g4", "g0"], missing="zero")
        assert view.var.index.tolist() == view.var_names.tolist() == ["g4", "g0"]

    @pytest.mark.parametrize(
        ("genes", "message"),
        [
            ([], "empty"),
            (["g1", "g1"], "'g1' more than once"),
            ([True, False], "found a mask"),
            (np.ones(4, bool), "found a mask"),
            (["a", "b"], "none of the requested genes.* is in .*gene_column"),
        ],
    )
    def test_lists_that_cannot_be(self, cells: Any, genes: Any, message: str) -> None:
        with pytest.raises(GeneError, match=message):
            cells.select_genes(genes, missing="zero")

    def test_files_that_cannot_be(self, cells: Any, tmp_path: Path) -> None:
        for path in (tmp_path / "none.txt", tmp_path, "unoin"):
            with pytest.raises(GeneListNotFoundError, match="gene id per line"):
                cells.select_genes(path)
        (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(GeneError, match="UTF-8 text file"):
            cells.select_genes(tmp_path / "binary")

    def test_nothing_in_common(self, ragged: Ragged, tmp_path: Path) -> None:
        source = write_h5ad(tmp_path / "a.h5ad", random_cells(3, 4))
        scdl.convert(source, tmp_path / "other", data_dtype="float32")
        made = scdl.SingleCellCollection([ragged.paths[0], tmp_path / "other"])
        with pytest.raises(GeneError, match=r"intersection .* is empty"):
            made.select_genes("intersection")


class TestDuplicates:
    @pytest.fixture(params=["memmap", "archive"])
    def twice(self, request: pytest.FixtureRequest, tmp_path: Path) -> Any:
        """Genes a, b, a, c, without an id, c: the third and the last repeat."""
        var = pd.DataFrame(
            {"id": pd.Categorical(["a", "b", "a", "c", None, "c"])},
            index=[f"g{i}" for i in range(6)],
        )
        cells = random_cells(30, 6, density=0.7, dtype="<u2", seed=1)
        source = write_h5ad(tmp_path / "a.h5ad", cells, var=var)
        zarr = {"backend": "zarr", "compression": "archive"} if request.param == "archive" else {}
        scdl.convert(source, tmp_path / "a", data_dtype="uint16", **zarr)
        return scdl.open(tmp_path / "a"), cells.csr().toarray()

    def test_an_error_unless_told(self, twice: Any) -> None:
        with pytest.raises(GeneError, match="'a' is the id of several genes, as are 1 others"):
            twice[0].select_genes("union", gene_column="id")
        with pytest.raises(GeneError, match="duplicates must be"):
            twice[0].select_genes("union", gene_column="id", duplicates="last")
        assert twice[0].select_genes(["b"], gene_column="id").n_vars == [1]

    @pytest.mark.parametrize("ordered", [True, False])
    def test_policies(self, twice: Any, ordered: bool) -> None:
        ds, dense = twice
        expected = {
            "sum": np.stack([dense[:, 0] + dense[:, 2], dense[:, 1], dense[:, 3] + dense[:, 5]], 1),
            "first": dense[:, [0, 1, 3]],
        }
        for policy, values in expected.items():
            view = ds.select_genes("union", gene_column="id", duplicates=policy)
            assert view.gene_names.tolist() == ["a", "b", "c"]
            batch = view.read_rows(slice(None), ordered=ordered)
            np.testing.assert_array_equal(batch.to_dense(), values)
            # Sums of two uint16 need more.
            assert batch.data.dtype == (np.uint32 if policy == "sum" else np.uint16)
            assert view.data_dtype == batch.data.dtype
            assert view.number_nonzero_values() == np.count_nonzero(values)
            for i in range(30 if ordered else 0):
                assert (np.diff(batch[i : i + 1].indices.astype(int)) > 0).all()


class TestLoader:
    @pytest.mark.parametrize("layout", ["csr", "coo", "dense", "padded"])
    def test_layouts(self, cells: Any, ragged: Ragged, layout: str) -> None:
        torch = pytest.importorskip("torch")
        genes = ["g15", "g4", "g0", "g9"]
        loader = scdl.SingleCellLoader(
            cells, 16, genes=genes, missing="mask", layout=layout, neighbors=1, obs=["type"],
            length=4 if layout == "padded" else None,
        )  # fmt: skip
        seen = 0
        for batch in loader:
            for part in (batch, batch.neighbors):
                rows = part.rows.tolist()
                found = part.x.to_dense()
                if layout == "padded":
                    wide = torch.zeros(len(part), 5, dtype=part.x.dtype)
                    found = wide.scatter_(1, part.genes, part.x)[:, :4]
                np.testing.assert_array_equal(found.numpy(), ragged.dense(rows, genes))
                mask = [[gene in ragged.cell(row).index for gene in genes] for row in rows]
                assert part.present[part.spaces].tolist() == mask
            seen += len(batch)
        assert seen == len(cells)

    def test_tokenizers_get_the_vocabulary(self, cells: Any, ragged: Ragged) -> None:
        pytest.importorskip("torch")
        genes = ["g9", "g4"]

        def tokenizer(batch: scdl.CellBatch, names: np.ndarray) -> list[list[str]]:
            return [names[batch[i : i + 1].indices].tolist() for i in range(len(batch))]

        with pytest.raises(GeneError, match="genes='union'"):
            scdl.SingleCellLoader(cells, 16, tokenizer=tokenizer)
        for batch in scdl.SingleCellLoader(cells, 16, tokenizer=tokenizer, genes=genes):
            expected = ragged.dense(batch.rows.tolist(), genes)
            assert batch.tokens == [[genes[j] for j in np.flatnonzero(cell)] for cell in expected]

    def test_collate(self, cells: Any, ragged: Ragged) -> None:
        torch = pytest.importorskip("torch")
        view = cells.select_genes(["g4", "g15"], missing="zero")
        loader = torch.utils.data.DataLoader(
            view, batch_size=20, collate_fn=scdl.collate_sparse_matrix_batch
        )
        found = np.concatenate([batch.to_dense().numpy() for batch in loader])
        rows = range(len(cells))
        np.testing.assert_array_equal(found, ragged.dense(rows, ["g4", "g15"]))
        pairs = torch.utils.data.DataLoader(
            view.neighbor_pairs(), 20, collate_fn=scdl.collate_neighbor_sparse_matrix_batch
        )
        assert next(iter(pairs))["next_cells"].shape == (20, 2)

    def test_a_state_of_other_genes_is_refused(self, cells: Any) -> None:
        pytest.importorskip("torch")
        one, other = (scdl.SingleCellLoader(cells, 16, genes=[g]) for g in ("g4", "g9"))
        one.load_state_dict(one.state_dict())
        with pytest.raises(scdl.errors.ResumeError, match="data"):
            other.load_state_dict(one.state_dict())
        # Counting the values would read all cells.
        assert one.cells.identity[:2] == cells.identity[:2]


@pytest.mark.parametrize("layout", sample(["dense", "csr", "coo"], 1))
def test_repeated_genes_of_float16_are_summed(tmp_path: Path, layout: str) -> None:
    pytest.importorskip("torch")
    var = pd.DataFrame({"id": ["a", "a", "b", "c"]}, index=list("wxyz"))
    source = write_h5ad(tmp_path / "a.h5ad", random_cells(5, 4, density=0.9), var=var)
    found = []
    for dtype in ("float16", "float32"):
        scdl.convert(source, tmp_path / dtype, data_dtype=dtype)
        loader = scdl.SingleCellLoader(
            scdl.open(tmp_path / dtype), 5, order="sequential", layout=layout, genes="union",
            gene_column="id", duplicates="sum",
        )  # fmt: skip
        (batch,) = loader
        found.append(batch.x.to_dense().numpy() if layout != "dense" else batch.x.numpy())
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("name", ["a", "a.zarr"])
@pytest.mark.parametrize("layout", sample(["csr", "coo", "dense", "padded"], 2))
@pytest.mark.parametrize("stored", ["uint8", "float16"])
def test_sums_of_repeated_genes_that_the_stored_type_does_not_hold(
    tmp_path: Path, layout: str, stored: str, name: str
) -> None:
    """Values are added in the type that is given to the user, and checked there."""
    torch = pytest.importorskip("torch")
    var = pd.DataFrame({"id": ["a", "a"]}, index=list("xy"))
    pair = {"uint8": [200, 210], "float16": [60000, 60000]}[stored]
    cells = Cells(np.zeros(2, int), np.arange(2), np.array(pair, "f4"), (1, 2))
    source = write_h5ad(tmp_path / "a.h5ad", cells, var=var)
    scdl.convert(source, tmp_path / name, data_dtype=stored)
    ds = scdl.open(tmp_path / name)
    options: dict[str, Any] = {"gene_column": "id", "duplicates": "sum"}
    view = ds.select_genes("union", **options)
    assert view.read_rows([0]).data.tolist() == view.read_rows([0]).to_dense()[0].tolist()
    assert view.read_rows([0], ordered=False).to_dense().tolist() == [[sum(pair)]]
    with pytest.raises(CastError, match=f"{stored} cannot hold the value {sum(pair)}"):
        view.read_rows([0], sum_dtype=stored)
    if layout == "padded":
        options["length"] = 1
    dtypes = [None, torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int16]
    for dtype in sample(dtypes):
        make = partial(scdl.SingleCellLoader, ds, 1, genes="union", layout=layout, dtype=dtype)
        loader = make(**options)
        if dtype == torch.int16 and stored == "float16":
            with pytest.raises(CastError, match="cannot hold the value"):
                next(iter(loader))
            continue
        expected = torch.tensor([[sum(pair)]], dtype=dtype or torch.float64)
        found = next(iter(loader)).x.to_dense()
        assert found.to(torch.float64).tolist() == expected.to(torch.float64).tolist()


@pytest.mark.parametrize(("values", "told"), [([-100, -100], "-200"), ([100, 28], "128")])
def test_sums_of_integers_with_a_sign(values: list[int], told: str) -> None:
    data, indices = np.array(values, np.int8), np.zeros(2, np.uint8)
    rows = csr.SparseRows(data, indices, np.array([0, 2]))
    with pytest.raises(CastError, match=f"int8 cannot hold the value {told}"):
        csr.clean(rows, 1, "here")
    assert csr.clean(rows._replace(data=data // 2), 1, "here").data.tolist() == [int(told) // 2]
