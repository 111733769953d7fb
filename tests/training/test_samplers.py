"""Orders of cells: pure functions of (n, seed, epoch), and their randomness."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from scdl.errors import OrderError, ScdlError
from scdl.kernels import hashing
from scdl.training import grouped_orders
from scdl.training import orders as order_kinds

SIZES = st.one_of(st.integers(0, 130), st.sampled_from([1_000, 4_096, 4_097]))
BLOCKS = st.builds(order_kinds.Block, st.integers(1, 300), st.integers(9, 5_000))
PERMUTATIONS = st.one_of(st.just(order_kinds.Sequential()), st.just(order_kinds.Random()), BLOCKS)

#: Group codes of 100 cells, with a control group and missing groups, and codes to match.
GROUPS = np.tile([0, 1, 2, 2, 3, 3, 3, 3, 0, -1], 10)
MATCH = np.arange(100) % 4 // 2


def orders(n: int) -> dict[str, order_kinds.Order]:
    """One order of each kind, for `n` cells."""
    return {
        "sequential": order_kinds.Sequential(),
        "random": order_kinds.Random(),
        "block": order_kinds.Block(3, 50),
        "weighted": order_kinds.Weighted(np.arange(n) + 1.0),
        "balanced": grouped_orders.Balanced(np.arange(n) % 3),
        "grouped": grouped_orders.Grouped(np.arange(n) % 3, 4),
        "matched": grouped_orders.Grouped(np.arange(n) % 3, 4, control=0, match=np.arange(n) % 2),
    }


def p_value(counts: np.ndarray, expected: np.ndarray | None = None) -> float:
    """P-value of a chi-square test of counts; tests fail below 1e-4."""
    return float(scipy.stats.chisquare(counts, expected).pvalue)


class TestEveryOrder:
    @pytest.mark.parametrize("name", orders(20))
    def test_depends_on_nothing_else(self, name: str) -> None:
        one, same = (orders(200)[name].positions(200, 5, 6)[0:200] for _ in range(2))
        np.testing.assert_array_equal(one, same)

    @pytest.mark.parametrize("name", [name for name in orders(20) if name != "sequential"])
    @pytest.mark.parametrize("other", [(5, 7), (6, 6), (-5, 6), (2**63, 6)], ids=str)
    def test_seed_and_epoch_change_it(self, name: str, other: tuple[int, int]) -> None:
        order = orders(200)[name]
        one, changed = order.positions(200, 5, 6)[0:200], order.positions(200, *other)[0:200]
        assert (one == changed).mean() < 0.3

    def test_seeds_may_be_numbers_of_numpy(self) -> None:
        order = order_kinds.Random()
        kinds = np.int64(5), np.uint8(6)
        np.testing.assert_array_equal(
            order.positions(90, *kinds)[0:90], order.positions(90, 5, 6)[0:90]
        )

    @pytest.mark.parametrize("name", orders(20))
    @given(data=st.data())
    def test_slices_are_of_the_whole(self, name: str, data: st.DataObject) -> None:
        n = data.draw(st.sampled_from([20, 333, 4_200]))
        positions = orders(n)[name].positions(n, 1, 2)
        whole = np.asarray(positions[0 : len(positions)])
        edge = st.integers(0, len(positions) + 3)
        start, stop = data.draw(edge), data.draw(edge)
        part = positions[start:stop]
        np.testing.assert_array_equal(part, whole[start:stop])
        assert part.dtype == np.int64

    @pytest.mark.parametrize("name", orders(20))
    def test_positions_are_cells(self, name: str) -> None:
        positions = orders(100)[name].positions(100, 3, 4)
        whole = positions[0 : len(positions)]
        assert 0 <= whole.min() <= whole.max() < 100

    @given(order=PERMUTATIONS, n=SIZES, seed=st.integers(), epoch=st.integers(0, 2**40))
    def test_is_a_permutation(
        self, order: order_kinds.Order, n: int, seed: int, epoch: int
    ) -> None:
        positions = order.positions(n, seed, epoch)
        assert len(positions) == n
        np.testing.assert_array_equal(np.sort(positions[0:n]), np.arange(n))


class TestRandom:
    @pytest.mark.parametrize("n", [2, 3, 4, 5])
    def test_every_permutation_is_equally_likely(self, n: int) -> None:
        order = order_kinds.Random()
        found = [order.positions(n, 0, epoch)[0:n] for epoch in range(15 * math.factorial(n))]
        _, counts = np.unique(found, axis=0, return_counts=True)
        assert len(counts) == math.factorial(n)
        assert p_value(counts) > 1e-4

    @pytest.mark.parametrize("n", [101, 1_000, 30_000])
    def test_cells_are_uniformly_distributed(self, n: int) -> None:
        """Positions over many epochs of cells at the beginning, in the middle and at the end."""
        at = np.array([0, n // 2, n - 1])
        drawn = [
            order_kinds.Random().positions(n, 1, epoch)[a : a + 1]
            for epoch in range(600)
            for a in at
        ]
        found = np.reshape(drawn, (600, 3)) * 20 // n
        for cells in found.T:
            assert p_value(np.bincount(cells, minlength=20)) > 1e-4

    def test_cells_that_follow_each_other_are_unrelated(self) -> None:
        n = 100_003
        found = order_kinds.Random().positions(n, 2, 0)[0:n]
        for apart in (1, 2, 316, 317):
            steps = (found[apart:] - found[:-apart]) % n
            assert p_value(np.bincount(steps * 50 // n, minlength=50)) > 1e-4

    def test_epochs_are_unrelated(self) -> None:
        n = 100_003
        one, other = (order_kinds.Random().positions(n, 2, epoch)[0:n] for epoch in (0, 1))
        assert (one == other).sum() < 10
        assert p_value(np.bincount((one - other) % n * 50 // n, minlength=50)) > 1e-4

    def test_needs_no_memory_for_many_cells(self) -> None:
        n = 10**10
        found = order_kinds.Random().positions(n, 0, 0)[n - 1_000 : n]
        assert len(np.unique(found)) == 1_000
        assert 0 <= found.min() <= found.max() < n


class TestBlock:
    @given(
        n=st.integers(1, 2_000), block=st.integers(1, 60), buffer=st.integers(5, 900),
        seed=st.integers(0, 99),
    )  # fmt: skip
    def test_a_buffer_holds_few_runs(self, n: int, block: int, buffer: int, seed: int) -> None:
        """Cells come in whole blocks, except for two that a buffer cuts and the short one."""
        found = order_kinds.Block(block, buffer).positions(n, seed, 0)[0:n]
        for start in range(0, n, buffer):
            cells = np.sort(found[start : start + buffer])
            # The sequence of cells is cyclic.
            n_runs = int((np.diff(cells, append=cells[0] + n) != 1).sum())
            assert n_runs <= len(cells) // block + 3

    @given(
        n=st.integers(1, 1_000), block=st.integers(1, 60), piece=st.integers(1, 40),
        window=st.integers(1, 200), n_windows=st.integers(1, 9), seed=st.integers(0, 99),
    )  # fmt: skip
    def test_two_steps(
        self, n: int, block: int, piece: int, window: int, n_windows: int, seed: int
    ) -> None:
        """A buffer has the same cells as in one step, and a window few pieces of them."""
        buffer = window * n_windows
        stepwise = order_kinds.Block(block, buffer, piece, window).positions(n, seed, 0)
        at_once = order_kinds.Block(block, buffer).positions(n, seed, 0)
        found = stepwise[0:n]
        assert sorted(found) == list(range(n))
        for start in range(0, n, buffer):
            assert set(found[start : start + buffer]) == set(at_once[start : start + buffer])
        for start in range(0, n, window):
            cells = np.sort(found[start : start + window])
            n_runs = int((np.diff(cells, append=cells[0] + n) != 1).sum())
            # Edges of windows, buffers and blocks cut pieces; the short block and the end of the
            # cyclic sequence add runs.
            n_pieces, n_blocks = len(cells) // piece + 3, min(piece, len(cells)) // block + 2
            assert n_runs <= n_pieces * n_blocks + 3
        middle = slice(n // 3, n // 2)
        np.testing.assert_array_equal(stepwise[middle], found[middle])

    @pytest.mark.parametrize("steps", [(None, 10), (5, None), (5, 7), (5, 0), (0, 10)], ids=str)
    def test_steps_that_do_not_fit(self, steps: tuple[Any, Any]) -> None:
        with pytest.raises(OrderError, match=r"windows?\b"):
            order_kinds.Block(5, 20, *steps)

    def test_blocks_begin_at_different_cells_in_every_epoch(self) -> None:
        begins = set()
        for epoch in range(20):
            cells = np.sort(order_kinds.Block(10, 10).positions(1_000, 0, epoch)[0:10])
            begins.add(int(cells[0]) % 10)
        assert len(begins) > 5

    def test_position_of_the_short_block_is_random(self) -> None:
        """With buffers of one cell the blocks are visible; the one of 5 cells moves."""
        where = set()
        for epoch in range(15):
            found = order_kinds.Block(10, 1).positions(105, 0, epoch)[0:105]
            ends = np.flatnonzero((found[1:] - found[:-1]) % 105 != 1) + 1
            odd = np.flatnonzero(ends % 10)
            where.add(int(ends[odd[0]]) if len(odd) else 105)
        assert len(where) > 5

    def test_cells_of_a_buffer_are_shuffled(self) -> None:
        found = order_kinds.Block(10, 500).positions(1_000, 0, 0)[0:500]
        steps = np.diff(found)
        assert (steps == 1).mean() < 0.05
        assert (steps > 0).mean() == pytest.approx(0.5, abs=0.08)

    def test_positions_of_blocks_are_random(self) -> None:
        firsts = [order_kinds.Block(5, 5).positions(100, 1, epoch)[0:1] for epoch in range(1_000)]
        assert p_value(np.bincount(np.ravel(firsts) // 5, minlength=20)) > 1e-4

    def test_batches_are_nearly_as_mixed_as_random_ones(self) -> None:
        """For half a million cells sorted by label, with the largest default blocks."""
        n, size = 500_000, 64
        shares = np.random.default_rng(0).dirichlet(np.ones(20))
        labels = np.searchsorted(np.cumsum(shares)[:-1], np.arange(n) / n)
        entropies = []
        defaults = order_kinds.Block(64, 64 * 512), order_kinds.Block(72, 46_080, 23, 9_216)
        for order in (*defaults, order_kinds.Random()):
            found = labels[order.positions(n, 0, 0)[0 : 3_000 * size]].reshape(-1, size)
            counts = np.stack([np.bincount(batch, minlength=20) for batch in found])
            entropies.append(scipy.stats.entropy(counts, axis=1).mean())
        assert min(entropies[:-1]) >= 0.98 * entropies[-1]

    @pytest.mark.parametrize(("block", "buffer"), [(0, 5), (5, 0), (-1, 5)])
    def test_without_cells(self, block: int, buffer: int) -> None:
        with pytest.raises(OrderError, match=str(min(block, buffer))):
            order_kinds.Block(block, buffer)


class TestWeighted:
    def test_cells_are_drawn_in_proportion(self) -> None:
        weights = np.array([0.0, 1.0, 2.0, 0.0, 5.0, 0.5, 0.0])
        found = order_kinds.Weighted(weights, 50_000).positions(7, 0, 0)[0:50_000]
        counts = np.bincount(found, minlength=7)
        assert not counts[weights == 0].any()
        some = weights > 0
        assert p_value(counts[some], weights[some] / weights.sum() * 50_000) > 1e-4

    def test_an_epoch_has_as_many_draws_as_cells(self) -> None:
        assert len(order_kinds.Weighted(np.ones(7)).positions(7, 0, 0)) == 7
        assert len(order_kinds.Weighted(np.ones(7), 20).positions(7, 0, 0)) == 20

    @given(st.lists(st.sampled_from([0.0, 1e-300, 1e-9, 1.0, 3, 1e9, 1e300]), min_size=1))
    def test_cells_without_weight_are_never_drawn(self, weights: list[float]) -> None:
        if not any(weights):
            return
        found = order_kinds.Weighted(np.array(weights), 300).positions(len(weights), 0, 0)[0:300]
        assert all(weights[cell] > 0 for cell in found)

    @pytest.mark.parametrize(
        ("weights", "told"),
        [
            ([1, -1, 2], "-1"),
            ([1, np.nan], "nan"),
            ([1, np.inf], "inf"),
            ([0, 0], "zero"),
            ([], "zero"),
            ([[1, 2]], "2 dimensions"),
        ],
        ids=str,
    )
    def test_bad_weights(self, weights: Any, told: str) -> None:
        with pytest.raises(OrderError, match=told):
            order_kinds.Weighted(np.array(weights))

    @pytest.mark.parametrize(
        "order", [order_kinds.Weighted(np.ones(7)), grouped_orders.Balanced(np.zeros(7, int))]
    )
    def test_for_another_number_of_cells(self, order: order_kinds.Order) -> None:
        with pytest.raises(OrderError, match="7 weights for 8 cells"):
            order.positions(8, 0, 0)


class TestBalanced:
    def test_labels_are_equally_likely(self) -> None:
        codes = np.repeat([0, 2, 3, -1], [1_000, 10, 90, 50])
        found = grouped_orders.Balanced(codes, 30_000).positions(len(codes), 0, 0)[0:30_000]
        counts = np.bincount(codes[found] + 1, minlength=5)
        assert counts[[0, 2]].tolist() == [0, 0], "no label, and a label that no cell has"
        assert p_value(counts[[1, 3, 4]]) > 1e-4

    def test_cells_of_a_label_are_equally_likely(self) -> None:
        codes = np.repeat([0, 1], [20, 5])
        found = grouped_orders.Balanced(codes, 30_000).positions(25, 0, 0)[0:30_000]
        assert p_value(np.bincount(found[codes[found] == 0], minlength=20)) > 1e-4

    @pytest.mark.parametrize("codes", [[-1, -1], []], ids=str)
    def test_without_labels(self, codes: list[int]) -> None:
        with pytest.raises(OrderError):
            grouped_orders.Balanced(np.array(codes, int))


def batches(order: order_kinds.Order, size: int, epoch: int = 0) -> np.ndarray:
    """All batches of an epoch, one per row."""
    positions = order.positions(100, 0, epoch)
    return np.asarray(positions[0 : len(positions)]).reshape(-1, size)


class TestGrouped:
    def test_a_batch_is_of_one_group(self) -> None:
        for batch in GROUPS[batches(grouped_orders.Grouped(GROUPS, 4), 4)]:
            assert len(set(batch)) == 1

    def test_groups_come_in_proportion_to_their_cells(self) -> None:
        found = GROUPS[batches(grouped_orders.Grouped(GROUPS, 4), 4)[:, 0]]
        assert np.bincount(found).tolist() == [20 // 4, 10 // 4, 20 // 4, 40 // 4]

    def test_each_cell_at_most_once(self) -> None:
        found = batches(grouped_orders.Grouped(GROUPS, 3), 3)
        assert len(np.unique(found)) == found.size

    def test_groups_are_shuffled(self) -> None:
        found = GROUPS[batches(grouped_orders.Grouped(GROUPS, 2), 2)[:, 0]]
        assert (np.diff(found) != 0).sum() > 10

    def test_which_cells_are_left_out_changes(self) -> None:
        order = grouped_orders.Grouped(GROUPS, 4)
        left = [set(np.flatnonzero(GROUPS == 1)) - set(batches(order, 4, e).ravel().tolist())
                for e in range(10)]  # fmt: skip
        assert all(len(cells) == 2 for cells in left)
        assert len(set.union(*left)) > 4

    def test_second_half_is_matched_controls(self) -> None:
        order = grouped_orders.Grouped(GROUPS, 8, control=0, match=MATCH)
        for batch in batches(order, 8):
            treated, controls = batch[:4], batch[4:]
            assert len(set(GROUPS[treated])) == 1
            assert GROUPS[treated[0]] > 0
            assert not GROUPS[controls].any()
            np.testing.assert_array_equal(MATCH[treated], MATCH[controls])

    def test_without_match_all_controls_are_used(self) -> None:
        order = grouped_orders.Grouped(GROUPS, 2, control=0)
        drawn = np.concatenate([batches(order, 2, epoch)[:, 1] for epoch in range(200)])
        controls = np.flatnonzero(GROUPS == 0)
        assert set(drawn) == set(controls)
        assert p_value(np.bincount(np.searchsorted(controls, drawn))) > 1e-4

    def test_missing_match_codes_match_each_other(self) -> None:
        match = np.where(np.arange(100) % 20 < 10, -1, 0)
        order = grouped_orders.Grouped(GROUPS, 4, control=0, match=match)
        for batch in batches(order, 4):
            np.testing.assert_array_equal(match[batch[:2]], match[batch[2:]])

    @pytest.mark.parametrize(
        ("make", "told"),
        [
            (lambda: grouped_orders.Grouped(GROUPS, 41), "41 cells"),
            (lambda: grouped_orders.Grouped(np.full(9, -1), 1), "1 cells"),
            (lambda: grouped_orders.Grouped(GROUPS[:0], 1), "1 cells"),
            (lambda: grouped_orders.Grouped(GROUPS, 7, control=0), "7"),
            (lambda: grouped_orders.Grouped(GROUPS, 4, control=9), "control"),
            (lambda: grouped_orders.Grouped(GROUPS, 4, control=0, match=np.arange(100)), "control"),
            (lambda: grouped_orders.Grouped(GROUPS, 4).positions(99, 0, 0), "99"),
        ],
    )
    def test_bad_groups(self, make: Callable[[], object], told: str) -> None:
        with pytest.raises(OrderError, match=told):
            make()


class TestDraws:
    def test_depend_only_on_position(self) -> None:
        whole = hashing.draws(np.arange(50), 3, 1, 2)
        some = np.array([7, 7, 3, 49])
        np.testing.assert_array_equal(hashing.draws(some, 3, 1, 2), whole[some])

    def test_are_uniform(self) -> None:
        found = hashing.draws(np.arange(10_000), 5, 1, 2)
        assert found.shape == (10_000, 5)
        assert 0 <= found.min() <= found.max() < 1
        for column in (*found.T, found.ravel()):
            assert p_value(np.bincount((column * 40).astype(int), minlength=40)) > 1e-4

    def test_change_with_seed_and_epoch(self) -> None:
        draws = [hashing.draws(np.arange(20), 1, *key) for key in [(1, 2), (2, 1), (1, 3)]]
        for one, other in pairwise(draws):
            assert not (one == other).any()


def test_errors_are_those_of_scdl() -> None:
    assert issubclass(OrderError, ScdlError)
    assert issubclass(OrderError, ValueError)


class TestRemainders:
    @given(
        codes=st.lists(st.integers(-1, 5), min_size=1, max_size=60),
        size=st.integers(1, 9),
        epoch=st.integers(0, 9),
        controls=st.booleans(),
    )
    def test_every_cell_of_a_group_is_used(
        self, codes: list[int], size: int, epoch: int, controls: bool
    ) -> None:
        labels = np.array(codes)
        treated = np.flatnonzero((labels >= 0) & ~(controls & (labels == 0)))
        if not len(treated) or (controls and not (labels == 0).any()):
            return
        copies = 1 + controls
        for remainder in ("smaller", "fill"):
            order = grouped_orders.Grouped(
                labels, size * copies, control=0 if controls else None, remainder=remainder
            )
            positions = order.positions(len(labels), 3, epoch)
            whole = positions[0 : len(positions)]
            given = []
            for start, stop in pairwise(positions.starts):
                batch = whole[start:stop]
                assert stop - start == size * copies or remainder == "smaller"
                np.testing.assert_array_equal(batch, positions[start:stop])
                assert len(set(labels[batch[: len(batch) // copies]])) == 1
                given += batch[: len(batch) // copies].tolist()
                assert not labels[batch[len(batch) // copies :]].any()
            assert set(given) == set(treated.tolist())
            assert remainder == "fill" or len(given) == len(treated)

    def test_unused_groups_are_named(self) -> None:
        codes, names = np.repeat(range(9), [1] * 7 + [5, 5]), list("abcdefghi")
        with pytest.raises(OrderError, match=r"'a', 'b', 'c', 'd', 'e' and 2 more.*4.*remainder"):
            grouped_orders.Grouped(codes, 4, names=names)
        order = grouped_orders.Grouped(codes, 4, remainder="drop")
        assert len(order.positions(17, 0, 0)) == 8


class TestWeightsOfAnySize:
    @given(
        weights=st.lists(st.integers(0, 9), min_size=1, max_size=30),
        exponent=st.sampled_from([-1_060, -500, 0, 500, 1_020]),
    )
    def test_scale_changes_nothing(self, weights: list[int], exponent: int) -> None:
        if not any(weights):
            return
        scaled = np.ldexp(np.array(weights, float), exponent)
        n = len(weights)
        found = [order_kinds.Weighted(w).positions(n, 0, 0)[0:n] for w in (weights, scaled)]
        np.testing.assert_array_equal(*found)

    @pytest.mark.parametrize(
        "order",
        [
            lambda codes: grouped_orders.Balanced(codes),
            lambda codes: grouped_orders.Grouped(codes, 2),
            lambda codes: grouped_orders.Grouped(np.arange(4) % 2, 2, control=0, match=codes),
        ],
    )
    @pytest.mark.parametrize("codes", [np.array([0.0, 1, 0, 1]), np.array(list("abab")), [[0, 1]]])
    def test_codes_are_integers(self, order: Callable[[Any], object], codes: Any) -> None:
        with pytest.raises(OrderError, match="integer"):
            order(codes)


@pytest.mark.parametrize("name", orders(20))
def test_fingerprints_distinguish_orders(name: str) -> None:
    one, same, other = (orders(n)[name].fingerprint() for n in (200, 200, 201))
    assert one == same
    if name not in ("sequential", "random", "block"):
        assert one != other
    everyone = [order.fingerprint() for order in orders(200).values()]
    assert len(set(everyone)) == len(everyone)
