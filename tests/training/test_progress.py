"""States taken at any batch, with any number of workers, resume with the remaining batches."""

from __future__ import annotations

import json
import pickle
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from budget import examples, sample
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

import scdl
from scdl.training.loader import SingleCellLoader

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]

#: Batches of an epoch: the last one is incomplete, and no number of workers divides them.
N_BATCHES = 7
ROWS = np.arange(7 * N_BATCHES - 3)


@pytest.fixture(scope="module")
def ds(archives: dict[str, Path]) -> scdl.SingleCellDataset:
    return scdl.open(archives["memmap"])


def make(ds: Any, **options: Any) -> SingleCellLoader:
    return SingleCellLoader(ds, 7, rows=ROWS, seed=5, threads=1, **options)


def rows_of(batches: Any) -> list[list[int]]:
    return [batch.rows.tolist() for batch in batches]


@pytest.fixture(scope="module")
def epochs(ds: Any) -> list[list[list[int]]]:
    loader = make(ds)
    found = [rows_of(loader) for _ in range(6)]
    assert {len(epoch) for epoch in found} == {N_BATCHES}
    return found


def as_saved(state: Any) -> Any:
    return pickle.loads(pickle.dumps(state))


class TestStatefulDataLoader:
    """``StatefulDataLoader(loader.dataset())``, whose workers each have a state."""

    def over(self, ds: Any, **options: Any) -> Any:
        stateful = pytest.importorskip("torchdata.stateful_dataloader")
        return stateful.StatefulDataLoader(make(ds).dataset(), batch_size=None, **options)

    @pytest.mark.parametrize("snapshots", [1, 3, 50])
    @pytest.mark.parametrize("workers", [0, 1, 2, 3])
    def test_resumes_with_the_remaining_batches(
        self, ds: Any, epochs: Any, workers: int, snapshots: int
    ) -> None:
        options = {"num_workers": workers, "snapshot_every_n_steps": snapshots}
        saved = {}
        loader = self.over(ds, **options)
        loader.dataset.set_epoch(2)
        batches = iter(loader)
        for taken in range(N_BATCHES + 1):
            saved[taken] = as_saved(loader.state_dict())
            found = rows_of(islice(batches, 1))
            assert found == epochs[2][taken : taken + 1]
        for taken in sample(saved, 4):
            resumed = self.over(ds, **options)
            resumed.load_state_dict(saved[taken])
            assert rows_of(resumed) == epochs[2][taken:]
            if taken % 3 == 0:
                assert rows_of(resumed) == epochs[3]

    @pytest.mark.parametrize("taken", sample([0, 1, 2, 6, 7]))
    def test_with_persistent_workers(self, ds: Any, epochs: Any, taken: int) -> None:
        options = {"num_workers": 2, "persistent_workers": True}
        loader = self.over(ds, **options)
        for epoch in range(2):
            batches = iter(loader)
            found = rows_of(islice(batches, N_BATCHES if epoch == 0 else taken))
            assert found == epochs[epoch][: len(found)]
            assert epoch or next(batches, None) is None
        resumed = self.over(ds, **options)
        resumed.load_state_dict(as_saved(loader.state_dict()))
        assert rows_of(resumed) == epochs[1][taken:]
        assert rows_of(resumed) == epochs[2]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_epoch_set_after_a_state_was_loaded(self, ds: Any, epochs: Any, workers: int) -> None:
        """Loops that set the epoch before each iteration still get the remaining batches."""
        loader = self.over(ds, num_workers=workers)
        loader.dataset.set_epoch(1)
        batches = iter(loader)
        rows_of(islice(batches, 3))
        resumed = self.over(ds, num_workers=workers)
        resumed.load_state_dict(as_saved(loader.state_dict()))
        for epoch, expected in (1, epochs[1][3:]), (2, epochs[2]):
            resumed.dataset.set_epoch(epoch)
            assert rows_of(resumed) == expected


class TestDataset:
    def test_state_before_iterating(self, ds: Any, epochs: Any) -> None:
        dataset = make(ds).dataset()
        assert dataset.state_dict()["epoch"] == 0
        dataset.set_epoch(3)
        state = dataset.state_dict()
        assert (state["epoch"], state["batch"]) == (3, 0)
        resumed = make(ds).dataset()
        resumed.load_state_dict(state)
        assert rows_of(resumed) == epochs[3]
        assert rows_of(resumed) == epochs[4]

    def test_state_of_an_epoch_that_was_begun(self, ds: Any) -> None:
        dataset = make(ds).dataset()
        dataset.set_epoch(2)
        iter(dataset)
        assert dataset.state_dict()["epoch"] == 2

    def test_of_a_loader_in_the_middle(self, ds: Any, epochs: Any) -> None:
        loader = make(ds)
        rows_of(islice(loader, 3))
        assert rows_of(loader.dataset()) == epochs[0][3:]


class TestSeveralIterations:
    def test_abandoned_iteration(self, ds: Any, epochs: Any) -> None:
        """It counts as an epoch, and does not change the progress of another iteration."""
        loader = make(ds)
        for number, batch in enumerate(loader):
            assert batch.rows.tolist() == epochs[0][number]
            looked = next(iter(loader))
            assert looked.rows.tolist() == epochs[number + 1][0]
            state = loader.state_dict()
            assert (state["epoch"], state["batch"]) == (0, number + 1)
            if number == 4:
                break
        resumed = make(ds)
        resumed.load_state_dict(state)
        assert rows_of(resumed) == epochs[0][5:]

    def test_side_by_side(self, ds: Any, epochs: Any) -> None:
        loader = make(ds)
        both = zip(loader, loader, strict=True)
        assert [(a.rows.tolist(), b.rows.tolist()) for a, b in both] == [
            *zip(epochs[0], epochs[1], strict=True)
        ]
        assert rows_of(loader) == epochs[2]

    def test_one_that_is_kept_and_not_used(self, ds: Any, epochs: Any) -> None:
        loader = make(ds)
        kept = iter(loader)
        next(kept)
        assert rows_of(loader) == epochs[1]
        assert loader.state_dict()["epoch"] == loader.epoch == 2
        assert rows_of(kept) == epochs[0][1:]

    @settings(max_examples=examples(60), deadline=None)
    @given(steps=st.lists(st.integers(0, 3), max_size=30))
    def test_state_is_of_the_iteration_that_yielded_last(
        self, ds: Any, epochs: Any, steps: list[int]
    ) -> None:
        loader = make(ds)
        iterators: dict[int, Any] = {}
        begun: dict[int, int] = {}
        given: dict[int, int] = {}
        for who in steps:
            if given.get(who) == N_BATCHES or (len(begun) == 4 and who not in begun):
                continue
            begun.setdefault(who, len(begun))
            iterator = iterators.setdefault(who, iter(loader))
            at = given[who] = given.get(who, 0) + 1
            assert next(iterator).rows.tolist() == epochs[begun[who]][at - 1]
            state = json.loads(json.dumps(loader.state_dict()))
            assert (state["epoch"], state["batch"]) == (begun[who], at)
            resumed = make(ds)
            resumed.load_state_dict(state)
            expected = epochs[begun[who]][at:] or epochs[begun[who] + 1]
            assert next(iter(resumed)).rows.tolist() == expected[0]
