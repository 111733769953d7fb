"""Contents of batches, moving them, and random numbers independent of threads."""

from __future__ import annotations

import functools
import pickle
import re
import warnings
from collections import namedtuple
from pathlib import Path
from typing import Any, ClassVar

import anndata
import numpy as np
import pytest
import scipy.sparse
import scipy.stats
from budget import sample
from sources import Cells, random_cells, write_h5ad

torch = pytest.importorskip("torch")

from training import DENSE, N_VARS, padded

import scdl
from scdl.errors import BatchKeyError, CastError, LoaderError
from scdl.training.loader import SingleCellLoader, TrainingBatch
from scdl.training.transforms import Log1p, NormalizeTotal

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


@pytest.fixture(scope="module")
def ds(archives: dict[str, Path]) -> scdl.SingleCellDataset:
    return scdl.open(archives["memmap"])


Pair = namedtuple("Pair", "one other")


def with_everything(batch: TrainingBatch) -> TrainingBatch:
    rows = batch.rows
    return batch.with_(
        mask=rows % 2 == 0,
        target={"age": batch.obs["age"].float(), "type": batch.obs["type"]},
        pair=Pair(rows.double(), rows),
        note="seen",
    )


def first(ds: Any, **options: Any) -> TrainingBatch:
    options = {"obs": ["type", "age", "score"], "obsm": ["X_pca"], "neighbors": 1, **options}
    return next(iter(SingleCellLoader(ds, 16, transforms=[with_everything], **options)))


class TestTo:
    @pytest.mark.parametrize("layout", ["csr", "coo", "dense", "padded"])
    @pytest.mark.parametrize("how", ["position", "name", "device", "tensor"])
    def test_a_dtype_is_that_of_the_values(self, ds: Any, layout: str, how: str) -> None:
        batch = first(ds, layout=layout, **({"length": 5} if layout == "padded" else {}))
        arguments: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
            "position": ((torch.float64,), {}),
            "name": ((), {"dtype": torch.float64, "non_blocking": True}),
            "device": (("cpu", torch.float64), {"copy": True}),
            "tensor": ((torch.zeros(1, dtype=torch.float64),), {}),
        }
        args, kwargs = arguments[how]
        moved = batch.to(*args, **kwargs)
        for part in moved, moved.neighbors:
            assert part.x.dtype == part.obsm["X_pca"].dtype == torch.float64
            assert part.rows.dtype == part.obs["type"].dtype == part.obs["age"].dtype == torch.int64
            assert layout != "padded" or part.genes.dtype == part.lengths.dtype == torch.int64
        assert torch.equal(moved.rows, batch.rows)
        assert (
            torch.equal(moved.obs["score"], batch.obs["score"]) or moved.obs["score"].isnan().any()
        )
        assert moved["mask"].dtype == torch.bool
        assert moved["target"]["age"].dtype == moved["pair"].one.dtype == torch.float64
        assert moved["target"]["type"].dtype == moved["pair"].other.dtype == torch.int64
        assert isinstance(moved["pair"], Pair)
        assert moved["note"] == "seen"

    def test_integer_dtypes_apply_only_to_values(self, ds: Any) -> None:
        moved = first(ds).to(torch.int32)
        assert moved.x.dtype == torch.int32
        assert moved.obsm["X_pca"].dtype == moved["target"]["age"].dtype == torch.float32
        assert moved.rows.dtype == torch.int64

    def test_half_precision_keeps_rows_apart(self, ds: Any) -> None:
        """bfloat16 cannot represent row 1,008."""
        (batch,) = SingleCellLoader(ds, 2, rows=[1_007, 1_008], order="sequential")
        assert batch.to(torch.bfloat16).rows.tolist() == [1_007, 1_008]

    def test_another_device(self, ds: Any) -> None:
        moved = first(ds, layout="dense").to("meta")
        tensors = [moved.x, moved.rows, moved["mask"], moved["target"]["age"], moved["pair"].one,
                   moved.obs["type"], moved.neighbors.x]  # fmt: skip
        assert {tensor.device.type for tensor in tensors} == {"meta"}


class TestExtra:
    def test_by_name(self, ds: Any) -> None:
        batch = first(ds)
        assert torch.equal(batch["mask"], batch.rows % 2 == 0)
        assert torch.equal(batch["rows"], batch.rows)
        with pytest.raises(BatchKeyError, match="no 'masks', only mask, target"):
            batch["masks"]
        with pytest.raises(KeyError):
            batch["masks"]
        with pytest.raises(TypeError):
            iter(batch)  # type: ignore[call-overload]

    def test_fields_are_replaced(self, ds: Any) -> None:
        batch = first(ds, layout="dense")
        masked = batch.with_(x=batch.x * 0, mask=None)
        assert not masked.x.any()
        assert batch.x.any()
        assert masked["mask"] is None
        assert masked.extra.keys() == batch.extra.keys()

    def test_is_sent_by_workers(self, ds: Any) -> None:
        for number, batch in enumerate(
            SingleCellLoader(ds, 64, order="sequential", workers=2, obs=["type", "age"],
                             transforms=[with_everything])
        ):  # fmt: skip
            assert torch.equal(batch["mask"], batch.rows % 2 == 0)
            assert batch["pair"].other.tolist() == batch.rows.tolist()
            assert batch.rows[0] == 64 * number
        assert pickle.loads(pickle.dumps(batch))["note"] == "seen"

    def test_repr(self, ds: Any) -> None:
        text = repr(first(ds, layout="csr"))
        assert text.startswith("TrainingBatch of 16 cells (x: sparse_csr float32 16 x 40; rows:")
        assert "obs: type, age, score" in text
        assert "extra: mask, target, pair, note" in text
        assert "tensor(" not in text


def noise(batch: TrainingBatch, rng: np.random.Generator) -> TrainingBatch:
    return batch.with_(noise=torch.from_numpy(rng.random(len(batch))))


def more_noise(batch: TrainingBatch, *, rng: np.random.Generator | None = None) -> TrainingBatch:
    assert rng is not None
    return batch.with_(more=rng.random())


class Module(torch.nn.Module):
    def forward(self, batch: TrainingBatch, rng: np.random.Generator) -> TrainingBatch:
        return batch.with_(module=rng.random())


def numbers(loader: Any) -> list[Any]:
    return [(batch["noise"].tolist(), batch["more"], batch["module"]) for batch in loader]


RANDOM: dict[str, Any] = {"transforms": [Log1p(), noise, more_noise, Module()], "seed": 4}


@pytest.fixture(scope="module")
def expected(ds: Any) -> list[list[Any]]:
    """Random numbers of two epochs with one thread."""
    loader = SingleCellLoader(ds, 50, threads=1, prefetch=1, **RANDOM)
    return [numbers(loader) for _ in range(2)]


class TestRandomTransforms:
    @pytest.mark.parametrize(
        "options",
        [{"threads": 4, "prefetch": 13}, {"workers": 2}, {"layout": "dense"}],
        ids=str,
    )
    def test_are_those_of_one_thread(self, ds: Any, expected: Any, options: Any) -> None:
        assert numbers(SingleCellLoader(ds, 50, **RANDOM, **options)) == expected[0]

    def test_resume(self, ds: Any, expected: Any) -> None:
        loader = SingleCellLoader(ds, 50, **RANDOM)
        batches = iter(loader)
        for _ in range(3):
            next(batches)
        resumed = SingleCellLoader(ds, 50, **RANDOM)
        resumed.load_state_dict(loader.state_dict())
        assert numbers(resumed) == expected[0][3:]
        assert numbers(resumed) == expected[1]

    def test_differ_between_batches_epochs_seeds_and_ranks(self, ds: Any, expected: Any) -> None:
        other_seed = SingleCellLoader(ds, 50, **{**RANDOM, "seed": 5})
        ranks = [SingleCellLoader(ds, 50, rank=r, world_size=2, **RANDOM) for r in (0, 1)]
        found = [*expected[0], *expected[1], *numbers(other_seed), *numbers(ranks[1])]
        assert len({more for _, more, _ in found}) == len(found)
        assert not {more for _, more, _ in found} & {module for _, _, module in found}

    def test_functions_without_rng(self, ds: Any) -> None:
        def plain(batch: TrainingBatch, **options: Any) -> TrainingBatch:
            assert not options
            return batch

        bound = functools.partial(noise, rng=np.random.default_rng(0))
        loader = SingleCellLoader(ds, 50, transforms=[plain, bound], order="sequential", threads=1)
        batch = next(iter(loader))
        assert batch["noise"].tolist() == np.random.default_rng(0).random(50).tolist()

    def test_tokenizers(self, ds: Any) -> None:
        def tokenize(cells: Any, genes: Any, rng: np.random.Generator) -> float:
            return rng.random()

        one, other = (
            [b.tokens for b in SingleCellLoader(ds, 50, tokenizer=tokenize, threads=threads)]
            for threads in (1, 4)
        )
        assert one == other
        assert len(set(one)) == len(one)

    def test_that_return_nothing(self, ds: Any) -> None:
        loader = SingleCellLoader(ds, 50, transforms=lambda batch: None)
        with pytest.raises(LoaderError, match="returned None"):
            next(iter(loader))


class TestPaddedAtRandom:
    OPTIONS: ClassVar[dict[str, Any]] = {
        "layout": "padded",
        "length": 6,
        "choose": "random",
        "seed": 3,
    }

    def of(self, loader: Any) -> list[Any]:
        return [
            (b.rows.tolist(), b.genes.tolist(), b.x.tolist(), b.lengths.tolist()) for b in loader
        ]

    def test_are_values_of_the_cell(self, archives: dict[str, Path]) -> None:
        for kind in ("memmap", "balanced"):
            for batch in SingleCellLoader(scdl.open(archives[kind]), 50, **self.OPTIONS):
                stored = (DENSE[batch.rows] != 0).sum(axis=1)
                np.testing.assert_array_equal(batch.lengths, np.minimum(stored, 6))
                for row, genes, values, n in zip(
                    batch.rows, batch.genes, batch.x, batch.lengths, strict=True
                ):
                    assert (np.diff(genes[:n]) > 0).all()
                    np.testing.assert_array_equal(values[:n], DENSE[row, genes[:n]])
                    assert (genes[n:] == N_VARS).all()
                    assert not values[n:].any()

    @pytest.mark.parametrize("options", [{"threads": 5}, {"workers": 2}, {"prefetch": 17}], ids=str)
    def test_do_not_depend_on_threads_and_workers(self, ds: Any, options: Any) -> None:
        one = SingleCellLoader(ds, 50, threads=1, **self.OPTIONS)
        assert self.of(one) == self.of(SingleCellLoader(ds, 50, **self.OPTIONS, **options))

    def test_resume_and_change_from_epoch_to_epoch(self, ds: Any) -> None:
        loader = SingleCellLoader(ds, 50, order="sequential", **self.OPTIONS)
        epochs = [self.of(loader) for _ in range(2)]
        assert epochs[0] != epochs[1]
        assert [batch[0] for batch in epochs[0]] == [batch[0] for batch in epochs[1]]
        batches = iter(SingleCellLoader(ds, 50, order="sequential", **self.OPTIONS))
        loader.set_epoch(0)
        batches = iter(loader)
        next(batches)
        resumed = SingleCellLoader(ds, 50, order="sequential", **self.OPTIONS)
        resumed.load_state_dict(loader.state_dict())
        assert self.of(resumed) == epochs[0][1:]

    def test_genes_are_equally_likely(self, ds: Any) -> None:
        cell = int((DENSE != 0).sum(axis=1).argmax())
        loader = SingleCellLoader(ds, 500, rows=[cell] * 5_000, **self.OPTIONS)
        counts = sum(np.bincount(batch.genes.ravel(), minlength=N_VARS + 1) for batch in loader)
        assert set(np.flatnonzero(counts)) == set(np.flatnonzero(DENSE[cell]))
        assert scipy.stats.chisquare(counts[counts > 0]).pvalue > 1e-4

    @pytest.mark.parametrize("choose", ["first", "largest", None])
    def test_other_choices(self, ds: Any, choose: str | None) -> None:
        options = {"layout": "padded", "length": 6, "order": "sequential", "choose": choose}
        for batch in SingleCellLoader(ds, 64, **options):
            values, genes = padded(DENSE[batch.rows], 6, choose == "largest")
            np.testing.assert_array_equal(batch.x, values)
            np.testing.assert_array_equal(batch.genes, genes)


def archive_of(place: Path, cells: Cells, **options: Any) -> scdl.SingleCellDataset:
    write_h5ad(place / "a.h5ad", cells)
    scdl.convert(place / "a.h5ad", place / "archive", **options)
    return scdl.open(place / "archive")


LARGE = 2**53


class TestNumbersAreExact:
    @pytest.mark.parametrize("dtype", sample(["int64", "uint64"], 1))
    def test_large_integers_stay_distinct(self, tmp_path: Path, dtype: str) -> None:
        """float64 cannot distinguish these integers."""
        values = np.array([[LARGE + 1, LARGE, LARGE + 3, LARGE + 2]], dtype)
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            anndata.AnnData(scipy.sparse.csr_matrix(values)).write_zarr(tmp_path / "a.zarr")
        archive = scdl.open(tmp_path / "a.zarr")
        (batch,) = SingleCellLoader(
            archive, 1, layout="padded", length=2, by_value=True, dtype=None
        )
        assert batch.x.tolist() == [[LARGE + 3, LARGE + 2]]
        assert batch.genes.tolist() == [[2, 3]]

    @pytest.mark.parametrize("layout", ["csr", "coo", "dense", "padded"])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    @pytest.mark.parametrize("value", [1e300, -1e300])
    def test_beyond_the_dtype(self, tmp_path: Path, layout: str, dtype: str, value: float) -> None:
        cells = Cells(
            np.array([0, 1, 1, 2]), np.array([0, 0, 2, 1]), np.array([1, 2, value, 3.0]), (3, 3)
        )
        archive = archive_of(tmp_path, cells, data_dtype="float64")
        length = {"length": 3} if layout == "padded" else {}
        options = {"layout": layout, "order": "sequential", **length}
        loader = SingleCellLoader(archive, 3, dtype=dtype, **options)
        with pytest.raises(
            CastError, match=re.escape(f"{dtype} cannot hold the value {value} of cell 1;")
        ):
            list(loader)
        (batch,) = SingleCellLoader(archive, 3, dtype="float64", **options)
        assert value in batch.x.to_dense().ravel().tolist()

    @pytest.mark.parametrize("layout", ["csr", "dense"])
    def test_infinity_and_nan_stay(self, tmp_path: Path, layout: str) -> None:
        cells = Cells(np.array([0, 0]), np.array([0, 1]), np.array([np.inf, np.nan]), (1, 2))
        archive = archive_of(tmp_path, cells, data_dtype="float64")
        (batch,) = SingleCellLoader(archive, 1, layout=layout)
        assert str(batch.x.to_dense().tolist()) == "[[inf, nan]]"

    def test_normalized_values_are_in_range(self, tmp_path: Path) -> None:
        cells = random_cells(5, 4, dtype="<u2", seed=1)
        cells = Cells(cells.rows, cells.columns, cells.values * 1e300, cells.shape)
        archive = archive_of(tmp_path, cells, data_dtype="float64")
        (batch,) = SingleCellLoader(archive, 5, transforms=[NormalizeTotal(1.0)])
        assert batch.x.values().max() <= 1
