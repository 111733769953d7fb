"""Training with PyTorch Lightning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
lightning = pytest.importorskip("lightning")

from lightning.pytorch.callbacks import ModelCheckpoint
from training import N_VARS

import scdl
from scdl.lightning import SingleCellDataModule

pytestmark = [
    # lightning's advice on workers, logging and checkpoints
    pytest.mark.filterwarnings(
        "ignore::lightning.fabric.utilities.rank_zero.LightningDeprecationWarning"
    ),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning"),
]


class Model(lightning.LightningModule):
    """A classifier of cells that records the rows it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(N_VARS, 4)
        self.seen: list[list[int]] = []
        self.losses: list[float] = []
        self.validated: list[int] = []
        self.tested: list[int] = []

    def loss(self, batch: Any) -> Any:
        return torch.nn.functional.cross_entropy(self.layer(batch.x), batch.obs["type"])

    def training_step(self, batch: Any, number: int) -> Any:
        self.seen.append(batch.rows.tolist())
        loss = self.loss(batch)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, number: int) -> None:
        self.validated += batch.rows.tolist()
        self.log("loss", self.loss(batch), batch_size=len(batch))

    def test_step(self, batch: Any, number: int) -> None:
        self.tested += batch.rows.tolist()

    def predict_step(self, batch: Any, number: int) -> list[int]:
        return list(batch.rows.tolist())

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.02)


@pytest.fixture(scope="module")
def ds(archives: dict[str, Path]) -> scdl.SingleCellDataset:
    return scdl.open(archives["memmap"])


@pytest.fixture(scope="module")
def splits(ds: Any) -> scdl.Splits:
    return scdl.split(ds, (0.6, 0.2, 0.2))


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Any]:
    def make(max_epochs: int, **options: Any) -> Any:
        return lightning.Trainer(
            max_epochs=max_epochs,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            **{"enable_checkpointing": "callbacks" in options, **options},
        )

    return make


def module(ds: Any, splits: scdl.Splits, **options: Any) -> SingleCellDataModule:
    return SingleCellDataModule(ds, splits, 64, obs=["type"], layout="dense", **options)


def epochs(ds: Any, splits: scdl.Splits, n: int) -> list[list[int]]:
    """Batches of a run over several epochs."""
    loader = scdl.SingleCellLoader(ds, 64, rows=splits["train"], drop_last=True)
    return [batch.rows.tolist() for _ in range(n) for batch in loader]


def test_fits_a_small_model(ds: Any, splits: scdl.Splits, trainer: Callable[..., Any]) -> None:
    model, data = Model(), module(ds, splits)
    fitting = trainer(6)
    fitting.fit(model, datamodule=data)
    assert model.seen == epochs(ds, splits, 6)
    n_batches = len(model.seen) // 6
    assert sum(model.losses[-n_batches:]) < 0.8 * sum(model.losses[:n_batches])
    n_validation = len(splits["validation"])
    assert model.validated[-n_validation:] == splits["validation"].tolist()
    fitting.test(model, datamodule=data, verbose=False)
    assert model.tested == splits["test"].tolist()


@pytest.mark.parametrize("steps", [4, 9, 11, 18], ids=lambda n: f"after {n} batches")
def test_resumes_from_a_checkpoint(
    ds: Any, splits: scdl.Splits, trainer: Callable[..., Any], tmp_path: Path, steps: int
) -> None:
    """Epochs have 9 batches, so two of the checkpoints are at the end of one."""
    expected = epochs(ds, splits, 3)
    assert len(expected) == 27
    saving = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=steps, save_top_k=-1)
    trainer(3, callbacks=[saving], limit_val_batches=0).fit(Model(), datamodule=module(ds, splits))
    (saved,) = (tmp_path / "saved").glob(f"*step={steps}.ckpt")
    model = Model()
    resuming = trainer(3, limit_val_batches=0)
    resuming.fit(model, datamodule=module(ds, splits), ckpt_path=saved)
    assert model.seen == expected[steps:]
    assert resuming.current_epoch == 3


def test_resumes_from_the_end_of_an_epoch(
    ds: Any, splits: scdl.Splits, trainer: Callable[..., Any], tmp_path: Path
) -> None:
    saving = ModelCheckpoint(tmp_path / "saved", save_last=True)
    trainer(2, callbacks=[saving]).fit(Model(), datamodule=module(ds, splits))
    model = Model()
    trainer(3).fit(model, datamodule=module(ds, splits), ckpt_path=tmp_path / "saved" / "last.ckpt")
    assert model.seen == epochs(ds, splits, 3)[18:]


def test_parts_may_be_missing(ds: Any, trainer: Callable[..., Any]) -> None:
    splits = scdl.Splits({"train": scdl.split(ds, (0.6, 0.4))["train"]}, ds.n_obs, {})
    model = Model()
    trainer(1).fit(model, datamodule=module(ds, splits))
    assert len(model.seen) == 9
    assert module(ds, splits).val_dataloader() == module(ds, splits).test_dataloader() == []


def test_workers_and_other_orders(
    ds: Any, splits: scdl.Splits, trainer: Callable[..., Any]
) -> None:
    model = Model()
    data = module(ds, splits, order="balanced", by="type", seed=5, workers=2)
    trainer(1).fit(model, datamodule=data)
    loader = scdl.SingleCellLoader(
        ds, 64, order="balanced", by="type", rows=splits["train"], seed=5, drop_last=True
    )
    assert model.seen == [batch.rows.tolist() for batch in loader]


def test_refuses_the_checkpoint_of_another_run(
    ds: Any, splits: scdl.Splits, trainer: Callable[..., Any], tmp_path: Path
) -> None:
    saving = ModelCheckpoint(tmp_path / "saved", save_last=True)
    trainer(1, callbacks=[saving]).fit(Model(), datamodule=module(ds, splits))
    other = module(ds, splits, seed=1)
    with pytest.raises(scdl.errors.ResumeError, match="seed"):
        trainer(2).fit(Model(), datamodule=other, ckpt_path=tmp_path / "saved" / "last.ckpt")


class TestParts:
    @pytest.mark.parametrize("train", ["train", "training"])
    @pytest.mark.parametrize("validation", ["validation", "val", "valid"])
    def test_usual_names(self, ds: Any, splits: scdl.Splits, train: str, validation: str) -> None:
        parts = {train: splits["train"], validation: splits["validation"], "test": splits["test"]}
        data = module(ds, scdl.Splits(parts, ds.n_obs, {}))
        rows = [row for batch in data.val_dataloader() for row in batch.rows.tolist()]
        assert rows == splits["validation"].tolist()
        assert len(data.train_dataloader()) == 9

    @pytest.mark.parametrize(
        ("names", "told"),
        [
            (["train", "holdout"], "holdout.*validation"),
            (["Train"], "Train.*train"),
            (["train", "val", "valid"], "two parts for 'validation'"),
        ],
        ids=str,
    )
    def test_other_names(self, ds: Any, names: list[str], told: str) -> None:
        parts = {name: [i, i + 1] for i, name in enumerate(names)}
        with pytest.raises(scdl.errors.SplitError, match=told):
            SingleCellDataModule(ds, parts)

    def test_nothing_to_train_on(self, ds: Any) -> None:
        data = module(ds, scdl.Splits({"test": [1, 2]}, ds.n_obs, {}))
        with pytest.raises(scdl.errors.SplitError, match=r"no part 'train'.*test"):
            data.train_dataloader()

    def test_of_another_dataset(self, ds: Any) -> None:
        with pytest.raises(scdl.errors.SplitError, match=r"7 cells.*1009"):
            module(ds, scdl.Splits({"train": [1, 2]}, 7, {}))

    @pytest.mark.parametrize("option", [{"colour": 1}, {"threads": 0}, {"missing": "zero"}])
    def test_options_are_checked_at_once(self, ds: Any, splits: Any, option: Any) -> None:
        with pytest.raises(scdl.errors.LoaderError, match=next(iter(option))):
            SingleCellDataModule(ds, splits, **option)

    def test_invalid_dataset(self, splits: Any) -> None:
        with pytest.raises(scdl.errors.DatasetTypeError, match=r"scdl\.open"):
            SingleCellDataModule("archive", splits)

    def test_rows_are_copies(self, ds: Any) -> None:
        rows = list(range(64)), list(range(64, 70))
        parts = {"train": torch.tensor(rows[0]).numpy(), "val": torch.tensor(rows[1]).numpy()}
        data = module(ds, parts, order="sequential")
        parts["train"] += 500
        assert next(iter(data.train_dataloader())).rows.tolist() == rows[0]


def test_predicts(ds: Any, splits: scdl.Splits, trainer: Callable[..., Any]) -> None:
    """The part `predict`, or all cells in stored order."""
    for parts, expected in (
        (splits, list(range(ds.n_obs))),
        (scdl.Splits({"predict": splits["test"]}, ds.n_obs, {}), splits["test"].tolist()),
    ):
        model = Model()
        data = module(ds, parts)
        found = trainer(1).predict(model, datamodule=data)
        assert [row for batch in found for row in batch] == expected
        assert data.stats()["predict"].cells == len(expected)


def test_repr(ds: Any, splits: scdl.Splits, trainer: Callable[..., Any]) -> None:
    data = module(ds, splits, order="balanced", by="type")
    assert str(data) == repr(data)
    assert str(data).splitlines()[1:] == [
        "  train: 605 cells, order balanced", "  validation: 202 cells", "  test: 202 cells",
    ]  # fmt: skip
    assert data.stats() == {}
    trainer(1).fit(Model(), datamodule=data)
    assert data.stats()["train"].batches == 9
    assert data.stats()["validation"].cells == 202
