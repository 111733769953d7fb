"""Training in several processes: workers, ranks and killed runs."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from budget import WHOLE, sample, whole_only
from places import SUPPORT

torch = pytest.importorskip("torch")

from training import DENSE, GRAPH, N_OBS, N_VARS

import scdl
from scdl.training.loader import SingleCellLoader

pytestmark = [
    # Newer Python versions warn of forks in a process with threads, such as those of torch.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    # torch, on machines without a GPU
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),
    # torch, on machines with few cores
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

CHILD = str(SUPPORT / "loader_children.py")
#: Generous timeout in seconds, for busy machines.
PATIENCE = 400


@pytest.fixture(scope="module")
def ds(archives: dict[str, Path]) -> scdl.SingleCellDataset:
    return scdl.open(archives["memmap"])


@pytest.fixture(scope="module")
def epochs(ds: Any) -> list[list[list[int]]]:
    """Rows of the batches of three epochs, in one process."""
    loader = SingleCellLoader(ds, 64)
    return [rows_of(loader) for _ in range(3)]


def rows_of(batches: Any) -> list[list[int]]:
    return [batch.rows.tolist() for batch in batches]


def drop_in(ds: Any, **options: Any) -> Any:
    options = {"collate_fn": scdl.collate_sparse_matrix_batch, **options}
    return torch.utils.data.DataLoader(ds, batch_size=64, **options)


def over(loader: SingleCellLoader, num_workers: int = 0, **options: Any) -> Any:
    return torch.utils.data.DataLoader(
        loader.dataset(), batch_size=None, num_workers=num_workers, **options
    )


class TestDropIn:
    """``DataLoader(data, collate_fn=…)`` as documented."""

    @pytest.mark.parametrize("start", sample(["fork", "forkserver"], 1), indirect=True)
    def test_start_methods_of_workers(self, ds: Any, start: str) -> None:
        """Fork and forkserver; spawn is tested in test_loading.py."""
        loader = drop_in(
            ds,
            num_workers=2,
            multiprocessing_context=start,
            persistent_workers=True,
            pin_memory=True,
        )
        for _ in range(2):
            batches = list(loader)
            assert all(batch.layout == torch.sparse_csr for batch in batches)
            found = torch.cat([batch.to_dense() for batch in batches]).numpy()
            np.testing.assert_array_equal(found, DENSE)

    def test_shuffled(self, ds: Any) -> None:
        generator = torch.Generator().manual_seed(3)
        batches = list(drop_in(ds, shuffle=True, generator=generator))
        cells = torch.cat([batch.to_dense() for batch in batches]).numpy()
        assert not np.array_equal(cells, DENSE)
        assert sorted(map(tuple, cells)) == sorted(map(tuple, DENSE))

    @pytest.mark.parametrize("kind", ["fast", "balanced"])
    def test_compressed_archives(self, archives: dict[str, Path], kind: str) -> None:
        loader = drop_in(scdl.open(archives[kind]), num_workers=2, multiprocessing_context="fork")
        np.testing.assert_array_equal(torch.cat([b.to_dense() for b in loader]), DENSE)

    def test_rows_of_a_batch(self, ds: Any) -> None:
        """Rows requested together are the same as rows requested one by one."""
        for rows in ([5, -1, 5], np.array([3, 900]), torch.tensor([7]), []):
            cells = ds.__getitems__(rows)
            assert len(cells) == len(rows)
            for cell, row in zip(cells, rows, strict=True):
                assert torch.equal(cell, ds[int(row)])
        with pytest.raises(scdl.errors.RowIndexError, match=str(N_OBS)):
            ds.__getitems__([0, N_OBS])

    def test_parts_of_a_dataset(self, ds: Any) -> None:
        rows = [5, 900, 3, 5]
        (batch,) = drop_in(torch.utils.data.Subset(ds, rows))
        np.testing.assert_array_equal(batch.to_dense(), DENSE[rows])
        batches = list(drop_in(torch.utils.data.ConcatDataset([ds, ds])))
        found = torch.cat([batch.to_dense() for batch in batches])
        np.testing.assert_array_equal(found, np.concatenate([DENSE, DENSE]))

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_neighbors(self, ds: Any, num_workers: int) -> None:
        graph = GRAPH.csr().toarray() != 0
        loader = drop_in(
            ds.neighbor_pairs(),
            num_workers=num_workers,
            multiprocessing_context="fork" if num_workers else None,
            collate_fn=scdl.collate_neighbor_sparse_matrix_batch,
        )
        cells = []
        for batch in loader:
            now, following = batch["current_cell_indices"], batch["next_cell_indices"]
            assert batch["batch_size"] == len(now) == len(following)
            np.testing.assert_array_equal(batch["current_cells"].to_dense(), DENSE[now])
            np.testing.assert_array_equal(batch["next_cells"].to_dense(), DENSE[following])
            for cell, neighbor in zip(now, following, strict=True):
                assert graph[cell, neighbor] if graph[cell].any() else cell == neighbor
            cells += now
        assert cells == list(range(N_OBS))


NONE: list[Any] = []

#: Custom collate functions, which get the cells of a batch as a list of tensors.
COLLATE: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "positions": lambda cells: [cells[i] for i in range(len(cells))],
    "from the end": lambda cells: [cells[-i] for i in range(1, len(cells) + 1)][::-1],
    "reversed": lambda cells: list(reversed(cells))[::-1],
    "slices": lambda cells: cells[:5] + cells[5:],
    "copy": lambda cells: cells.copy(),
    "unpacked": lambda cells: [*cells],
    "added": lambda cells: cells + NONE,
    "added in front": lambda cells: NONE + cells,
    "extended": lambda cells: (kept := [], kept.extend(cells))[0],
    "deque": lambda cells: list(deque(cells)),
    "popped": lambda cells: [cells.pop(0) for _ in range(len(cells))],
    "appended": lambda cells: (cells.append(cells[0]), cells)[1][:-1],
    "replaced": lambda cells: (cells.__setitem__(0, cells[0].clone()), cells)[1],
    "turned over": lambda cells: (cells.reverse(), cells)[1][::-1],
    "pickled": lambda cells: pickle.loads(pickle.dumps(cells)),
}


class TestCustomCollateFunctions:
    @pytest.mark.parametrize("how", COLLATE)
    def test_cells_are_a_list_of_tensors(self, ds: Any, how: str) -> None:
        for start, cells in enumerate(drop_in(ds, collate_fn=COLLATE[how])):
            for i, cell in enumerate(cells, 64 * start):
                assert torch.equal(cell, ds[i])
            assert len(cells) == min(64, N_OBS - 64 * start)

    def test_sorted_in_place(self, ds: Any) -> None:
        """Sorting the list in place, as for packing sequences, changes the order of the batch."""

        def collate(cells: list[Any]) -> Any:
            assert isinstance(cells, list)
            cells.sort(key=lambda cell: cell.shape[1], reverse=True)
            return [cell.shape[1] for cell in cells], scdl.collate_sparse_matrix_batch(cells)

        stored = (DENSE != 0).sum(axis=1)
        for start, (lengths, batch) in enumerate(drop_in(ds, collate_fn=collate)):
            of_batch = stored[64 * start : 64 * (start + 1)]
            expected = np.argsort(-of_batch, kind="stable")
            assert lengths == of_batch[expected].tolist()
            np.testing.assert_array_equal(batch.to_dense(), DENSE[64 * start + expected])

    def test_changed_in_place(self, ds: Any) -> None:
        def collate(cells: list[Any]) -> Any:
            for cell in cells:
                cell[0] *= 2
            return scdl.collate_sparse_matrix_batch(cells)

        found = torch.cat([batch.to_dense() for batch in drop_in(ds, collate_fn=collate)])
        np.testing.assert_array_equal(found, 2 * DENSE)

    def test_pairs_sorted_in_place(self, ds: Any) -> None:
        def collate(pairs: list[Any]) -> Any:
            pairs.sort(key=lambda pair: -pair["current_cell_index"])
            return scdl.collate_neighbor_sparse_matrix_batch(pairs)

        batch = next(iter(drop_in(ds.neighbor_pairs(), collate_fn=collate)))
        assert batch["current_cell_indices"] == list(range(64))[::-1]
        np.testing.assert_array_equal(batch["current_cells"].to_dense(), DENSE[:64][::-1])

    def test_functions_of_torch(self, ds: Any) -> None:
        def collate(cells: list[Any]) -> Any:
            joined = torch.cat(cells, dim=1)
            sequences = [cell.T for cell in cells]
            return joined, torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)

        for start, (joined, padded) in enumerate(drop_in(ds, collate_fn=collate)):
            cells = [ds[i] for i in range(64 * start, min(64 * (start + 1), N_OBS))]
            assert torch.equal(joined, torch.cat(cells, dim=1))
            assert padded.shape == (len(cells), max(cell.shape[1] for cell in cells), 2)
            for cell, row in zip(cells, padded, strict=True):
                assert torch.equal(row[: cell.shape[1]], cell.T)
                assert not row[cell.shape[1] :].any()

    def test_of_pairs(self, ds: Any) -> None:
        graph = GRAPH.csr().toarray() != 0
        for pairs in drop_in(ds.neighbor_pairs(), collate_fn=list):
            for pair in pairs:
                now, following = pair["current_cell_index"], pair["next_cell_index"]
                assert graph[now, following] or now == following
                for index, (values, columns) in (
                    (now, pair["current_cell"]), (following, pair["next_cell"]),
                ):  # fmt: skip
                    np.testing.assert_array_equal(values, DENSE[index][columns])
                    assert len(values) == (DENSE[index] != 0).sum()

    def test_cells_of_a_subclass(self, archives: dict[str, Path]) -> None:
        class Dense(scdl.SingleCellDataset):
            def __getitem__(self, index: Any) -> Any:
                return self.get_row_padded(index)[0]

        loader = torch.utils.data.DataLoader(Dense(archives["memmap"]), batch_size=64)
        found = torch.cat(list(loader)).numpy()
        np.testing.assert_array_equal(found, DENSE)


# On Linux before Python 3.14, the other tests fork.
@pytest.fixture(params=sample(["spawn", "forkserver", "fork"], 1))
def start(request: pytest.FixtureRequest) -> str:
    if request.param == "forkserver":
        # Modules that every worker would import.
        multiprocessing.set_forkserver_preload(["scdl.training.loader"])
    return str(request.param)


class TestWorkers:
    def test_all_start_methods(self, ds: Any, epochs: list[Any], start: str) -> None:
        """Workers yield the batches of a single process in every epoch, also after `set_epoch`."""
        loader = over(
            SingleCellLoader(ds, 64, obs=["type"], neighbors=1),
            2 if WHOLE else 1,
            multiprocessing_context=start,
            persistent_workers=True,
            pin_memory=True,
        )
        assert len(loader) == len(epochs[0])
        batches = list(loader)
        assert rows_of(batches) == epochs[0]
        for batch in batches:
            np.testing.assert_array_equal(batch.x.to_dense(), DENSE[batch.rows])
            assert len(batch.neighbors) == len(batch.obs["type"]) == len(batch)
        assert rows_of(loader) == epochs[1]
        loader.dataset.set_epoch(2)
        assert rows_of(loader) == epochs[2]
        loader.dataset.set_epoch(0)
        assert rows_of(loader) == epochs[0]

    @pytest.mark.parametrize("num_workers", [0, 1, 4])
    def test_any_number(self, ds: Any, epochs: list[Any], num_workers: int) -> None:
        loader = over(SingleCellLoader(ds, 64), num_workers)
        for epoch in 1, 0:
            loader.dataset.set_epoch(epoch)
            assert rows_of(loader) == epochs[epoch]

    def test_in_one_process_each_iteration_is_the_next_epoch(
        self, ds: Any, epochs: list[Any]
    ) -> None:
        loader = over(SingleCellLoader(ds, 64))
        assert [rows_of(loader) for _ in range(3)] == epochs

    def test_of_the_loader_itself(self, ds: Any, epochs: list[Any]) -> None:
        loader = SingleCellLoader(ds, 64, workers=2)
        assert [rows_of(loader) for _ in range(2)] == epochs[:2]
        assert loader.stats().cells == N_OBS

    def test_on_compressed_archives(self, archives: dict[str, Path]) -> None:
        ds = scdl.open(archives["balanced"])
        options = {"block": 20, "buffer": 300, "layout": "dense"}
        one = list(SingleCellLoader(ds, 64, **options))
        two = list(SingleCellLoader(ds, 64, workers=2, **options))
        assert rows_of(one) == rows_of(two)
        for batch in two:
            np.testing.assert_array_equal(batch.x, DENSE[batch.rows])

    def test_of_a_rank(self, ds: Any) -> None:
        for rank in range(2):
            one, two = (
                SingleCellLoader(ds, 64, rank=rank, world_size=2, workers=n) for n in (0, 2)
            )
            assert rows_of(one) == rows_of(two)

    def test_errors_come_from_workers(self, ds: Any) -> None:
        def divides(batch: Any) -> Any:
            raise ZeroDivisionError("in a worker")

        with pytest.raises(ZeroDivisionError, match=r"(?s)divides.*in a worker") as caught:
            list(SingleCellLoader(ds, workers=2, transforms=[divides]))
        # Frames reference the iterator; torch ends its workers when it is collected.
        traceback.clear_frames(caught.tb)

    def test_leaving_early_ends_them(self, ds: Any) -> None:
        before = children()
        for _ in SingleCellLoader(ds, 64, workers=2):
            assert children() > before
            break
        deadline = time.monotonic() + PATIENCE
        while children() > before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert children() == before

    @pytest.mark.parametrize("order", ["block", "random", "grouped"])
    def test_a_worker_gets_paths_and_no_data(self, ds: Any, order: str) -> None:
        options = {"by": "type"} if order == "grouped" else {}
        loader = SingleCellLoader(
            ds, 64, order=order, obs=["type", "donor"], obsm=["X_pca"], neighbors=2, **options
        )
        next(iter(loader))
        for part in ds, loader, loader.dataset():
            assert len(pickle.dumps(part)) < 10_000
        assert rows_of(pickle.loads(pickle.dumps(loader)))


def children() -> set[int]:
    """Child processes that were not waited for."""
    psutil = pytest.importorskip("psutil")
    return {child.pid for child in psutil.Process().children()}


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
class TestStatefulDataLoader:
    @pytest.mark.parametrize(("num_workers", "taken"), [(0, 5), (2, 5), (2, 6)])
    def test_resumes(self, ds: Any, epochs: list[Any], num_workers: int, taken: int) -> None:
        stateful = pytest.importorskip("torchdata.stateful_dataloader")

        def make() -> Any:
            return stateful.StatefulDataLoader(
                SingleCellLoader(ds, 64).dataset(), batch_size=None, num_workers=num_workers
            )

        loader = make()
        loader.dataset.set_epoch(1)
        batches = iter(loader)
        given = [next(batches).rows.tolist() for _ in range(taken)]
        assert given == epochs[1][:taken]
        state = loader.state_dict()
        resumed = make()
        resumed.load_state_dict(pickle.loads(pickle.dumps(state)))
        assert rows_of(resumed) == epochs[1][taken:]

    def test_resumes_after_an_epoch(self, ds: Any, epochs: list[Any]) -> None:
        stateful = pytest.importorskip("torchdata.stateful_dataloader")

        def make() -> Any:
            return stateful.StatefulDataLoader(SingleCellLoader(ds, 64).dataset(), batch_size=None)

        loader = make()
        assert rows_of(loader) == epochs[0]
        resumed = make()
        resumed.load_state_dict(loader.state_dict())
        assert rows_of(resumed) == epochs[1]
        assert rows_of(resumed) == epochs[2]

    def test_refuses_the_state_of_another_loader(self, ds: Any) -> None:
        stateful = pytest.importorskip("torchdata.stateful_dataloader")
        loader = stateful.StatefulDataLoader(SingleCellLoader(ds, 64).dataset(), batch_size=None)
        next(iter(loader))
        other = SingleCellLoader(ds, 64, seed=1).dataset()
        resumed = stateful.StatefulDataLoader(other, batch_size=None)
        resumed.load_state_dict(loader.state_dict())
        with pytest.raises(scdl.errors.ResumeError, match="seed"):
            next(iter(resumed))


@pytest.fixture
def start_child(
    child_environment: dict[str, str], tmp_path: Path
) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a Python child process in the test's temporary directory, which gets its output."""
    started = []
    with (tmp_path / "output").open("wb") as output:

        def start(*arguments: object) -> subprocess.Popen[bytes]:
            child = subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                cwd=tmp_path,
                env=child_environment | {"OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            started.append(child)
            return child

        yield start
    for child in started:
        # Kill children that a test abandoned; for ended ones this does nothing.
        child.kill()
        child.wait()


def lines(path: Path) -> list[list[int]]:
    return [list(map(int, line.split())) for line in path.read_text().splitlines()]


@whole_only
@pytest.mark.parametrize("n_ranks", [2, 4])
def test_ranks_of_torchrun(
    archives: dict[str, Path],
    tmp_path: Path,
    start_child: Callable[..., subprocess.Popen[bytes]],
    n_ranks: int,
) -> None:
    """Each cell comes once over all ranks, which have equally many batches."""
    child = start_child(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_ranks),
        CHILD, "rank", archives["memmap"],
    )  # fmt: skip
    assert child.wait(PATIENCE) == 0, (tmp_path / "output").read_text()
    for name in ("shared", "dropped"):
        ranks = [lines(tmp_path / f"{name}-{rank}") for rank in range(n_ranks)]
        assert len({len(batches) for batches in ranks}) == 1
        given = [row for batches in ranks for batch in batches for row in batch]
        assert len(given) == len(set(given))
        n_whole = N_OBS // (64 * n_ranks)
        assert len(given) == (N_OBS if name == "shared" else 64 * n_ranks * n_whole)


@pytest.mark.parametrize(("workers", "later"), sample([(2, 0), (0, 2)], 1))
def test_killed_run_is_resumed_with_other_workers(
    ds: Any,
    archives: dict[str, Path],
    tmp_path: Path,
    start_child: Callable[..., subprocess.Popen[bytes]],
    workers: int,
    later: int,
) -> None:
    whole = SingleCellLoader(ds, 50)
    expected, following = rows_of(whole), rows_of(whole)
    child = start_child(CHILD, "killed", archives["memmap"], workers, 7)
    assert child.wait(PATIENCE) == -signal.SIGKILL, (tmp_path / "output").read_text()
    given = lines(tmp_path / "given")
    assert given == expected[:7]
    loader = SingleCellLoader(ds, 50, workers=later)
    loader.load_state_dict(json.loads((tmp_path / "state").read_text()))
    assert rows_of(loader) == expected[7:]
    assert rows_of(loader) == following


def test_interrupted_run_ends_its_threads(
    archives: dict[str, Path], tmp_path: Path, start_child: Callable[..., subprocess.Popen[bytes]]
) -> None:
    child = start_child(CHILD, "interrupted", archives["memmap"])
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        assert child.poll() is None, (tmp_path / "output").read_text()
        time.sleep(0.05)
    while child.poll() is None and time.monotonic() < deadline:
        # Python ignores a KeyboardInterrupt within a callback of a weakref.
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(20)
    assert child.poll() == 0, (tmp_path / "output").read_text()
    assert json.loads((tmp_path / "threads").read_text()) == ["MainThread"]


def test_widths_are_those_of_the_dataset(ds: Any) -> None:
    """Also if no cell of a batch has the last gene."""
    rows = np.flatnonzero(DENSE[:, -1] == 0)[:3].tolist()
    (batch,) = drop_in(torch.utils.data.Subset(ds, rows))
    assert batch.shape == (3, N_VARS)


def test_a_process_that_ends_in_an_epoch_says_nothing(archives: dict[str, Path]) -> None:
    """No errors at exit, and no notice of torch that CSR tensors are in beta."""
    code = f"""if True:
        import warnings, scdl
        warnings.simplefilter("error")
        batches = iter(scdl.SingleCellLoader(scdl.open({str(archives["memmap"])!r}), 2))
        next(batches).x.to_dense()
        warnings.kept = batches  # until all of Python ends
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
