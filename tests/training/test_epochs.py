"""Division of an epoch among ranks and workers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from budget import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from scdl.errors import OrderError
from scdl.training.epochs import BatchShare, CellShare, Epoch
from scdl.training.orders import Random


@st.composite
def shares(draw: st.DrawFn) -> list[CellShare]:
    """The shares of all ranks."""
    length, batch_size = draw(st.integers(0, 300)), draw(st.integers(1, 4) | st.integers(1, 40))
    world_size, drop_last = draw(st.integers(1, 9)), draw(st.booleans())
    return [CellShare(length, batch_size, r, world_size, drop_last) for r in range(world_size)]


def positions_of(share: CellShare) -> list[int]:
    return [p for batch in range(len(share)) for p in range(*share.bounds(batch))]


@given(shares())
def test_ranks_have_the_same_number_of_batches(ranks: list[CellShare]) -> None:
    assert len({len(share) for share in ranks}) == 1


@given(shares())
def test_no_batch_is_empty_or_too_large(ranks: list[CellShare]) -> None:
    for share in ranks:
        sizes = [np.subtract(*share.bounds(batch)[::-1]) for batch in range(len(share))]
        assert all(size == share.batch_size for size in sizes[:-1])
        assert all(1 <= size <= share.batch_size for size in sizes[-1:])


@given(shares())
def test_drop_last_keeps_whole_batches(ranks: list[CellShare]) -> None:
    one = ranks[0]
    n_whole, left = divmod(one.length, one.batch_size * len(ranks))
    assert len(one) == n_whole + (left > 0 and not one.drop_last)


@settings(max_examples=examples(200))
@given(shares())
def test_each_position_once_over_all_ranks(ranks: list[CellShare]) -> None:
    """Repeated only if fewer remain than there are ranks, and dropped only with `drop_last`."""
    length, world_size = ranks[0].length, len(ranks)
    left = length % (ranks[0].batch_size * world_size)
    given = np.bincount([p for s in ranks for p in positions_of(s)], minlength=length)
    assert len(given) == length
    assert (given[: length - left] == 1).all()
    last = given[length - left :]
    if ranks[0].drop_last:
        assert not last.any()
    elif left >= world_size:
        assert (last == 1).all()
    else:
        assert (last >= 1).all()
        assert last.sum() == (world_size if left else 0)


@given(shares())
def test_whole_batches_of_a_rank_follow_each_other(ranks: list[CellShare]) -> None:
    for share in ranks:
        whole = [share.bounds(b) for b in range(share.length // (share.batch_size * len(ranks)))]
        assert [stop for _, stop in whole[:-1]] == [start for start, _ in whole[1:]]


@given(shares())
def test_remaining_cells_are_shared_evenly(ranks: list[CellShare]) -> None:
    last = [np.subtract(*share.bounds(len(share) - 1)[::-1]) for share in ranks if len(share)]
    assert not last or max(last) - min(last) <= 1


@st.composite
def epochs(draw: st.DrawFn) -> tuple[list[Epoch], int, int]:
    """The epoch in each worker, the number of cells per window, and of batches per read."""
    share = draw(st.sampled_from(draw(shares())))
    first = draw(st.integers(0, len(share)))
    n_workers = draw(st.integers(1, 5))
    order = Random().positions(share.length, 1, 2)
    workers = [Epoch(order, share, first, w, n_workers) for w in range(n_workers)]
    return workers, draw(st.integers(1, 200)), draw(st.integers(1, 9))


@given(epochs())
def test_windows_cover_all_batches_in_order(drawn: tuple[list[Epoch], int, int]) -> None:
    (epoch, *_), cells, _ = drawn
    windows = list(epoch.windows(cells))
    batches = list(itertools.chain.from_iterable(windows))
    assert batches == list(range(epoch.first, len(epoch.share)))
    for window in windows:
        starts, stops = zip(*map(epoch.share.bounds, window), strict=True)
        assert starts[1:] == stops[:-1]
        assert starts[-1] - starts[0] < cells


@given(epochs())
def test_workers_give_batches_in_turn(drawn: tuple[list[Epoch], int, int]) -> None:
    workers, cells, at_once = drawn
    for number, worker in enumerate(workers):
        share = worker.share
        given = [
            batch.tolist()
            for window in worker.windows(cells)
            for plan in worker.read_plans(window, at_once, share.length)
            for batch in np.split(plan.positions, np.cumsum(plan.sizes)[:-1])
        ]
        mine = range(worker.first + number, len(share), len(workers))
        assert given == [list(range(*share.bounds(batch))) for batch in mine]


@given(epochs())
def test_read_plans_hold_the_cells_of_their_positions(drawn: tuple[list[Epoch], int, int]) -> None:
    workers, cells, at_once = drawn
    length = workers[0].share.length
    order = workers[0].positions[0:length]
    for worker in workers:
        for window in worker.windows(cells):
            for plan in worker.read_plans(window, at_once, length):
                np.testing.assert_array_equal(plan.cells, order[plan.positions])
                assert 1 <= len(plan.sizes) <= at_once
                assert sum(plan.sizes) == len(plan.positions)


@pytest.mark.parametrize("wrong", [-1, 10, 2**40])
def test_invalid_position(wrong: int) -> None:
    order = np.array([0, 1, wrong, 3])
    epoch = Epoch(order, CellShare(4, 2, 0, 1, False), 0)
    with pytest.raises(OrderError, match=str(wrong)):
        list(epoch.read_plans(range(2), 1, 10))


@st.composite
def batch_shares(draw: st.DrawFn) -> list[BatchShare]:
    sizes = draw(st.lists(st.integers(1, 9), max_size=30))
    world_size, drop_last = draw(st.integers(1, 9)), draw(st.booleans())
    starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    return [BatchShare(starts, rank, world_size, drop_last) for rank in range(world_size)]


@given(batch_shares())
def test_batches_defined_by_an_order(ranks: list[BatchShare]) -> None:
    """Each batch once over all ranks, except remaining batches fewer than the ranks."""
    whole = list(itertools.pairwise(ranks[0].starts.tolist()))
    assert len({len(share) for share in ranks}) == 1
    given = [share.bounds(batch) for share in ranks for batch in range(len(share))]
    n_each, left = divmod(len(whole), len(ranks))
    if ranks[0].drop_last:
        assert given == whole[: n_each * len(ranks)]
    else:
        assert set(given) == set(whole)
        assert len(given) == len(ranks) * (n_each + (left > 0))
