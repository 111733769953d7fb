"""Training loaders behind one interface, each used as its documentation recommends.

They are imported on use, so that measurements of one never load the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any, ClassVar


class DataLoader:
    """``torch.utils.data.DataLoader`` over a dataset of scdl, cell by cell.

    Attributes
    ----------
    modules
        Modules that its user imports.
    """

    modules: ClassVar[tuple[str, ...]] = ("torch", "scdl")

    def loader(
        self, path: str, batch: int, order: str, layout: Any, workers: int, **options: Any
    ) -> Iterable[Any]:
        """Batches of an epoch, each time it is iterated; workers stay from epoch to epoch."""
        dataset, collate = self._dataset(path)
        shuffle = order == "random"
        return _data_loader(dataset, workers, batch_size=batch, shuffle=shuffle, collate_fn=collate)

    def cells(self, batch: Any, layout: str) -> int:
        """Convert a batch to the input of a model, and return the number of its cells."""
        return len(batch.to_dense() if layout == "dense" else batch)

    def _dataset(self, path: str) -> tuple[Any, Any]:
        import scdl

        return scdl.open(path), scdl.collate_sparse_matrix_batch


class Bionemo(DataLoader):
    """The documented way to batch of the reference package."""

    modules: ClassVar[tuple[str, ...]] = (
        "torch",
        "bionemo.scdl.io.single_cell_memmap_dataset",
        "bionemo.scdl.util.torch_dataloader_utils",
    )

    def _dataset(self, path: str) -> tuple[Any, Any]:
        reading, collating = map(import_module, self.modules[1:])
        return reading.SingleCellMemMapDataset(path), collating.collate_sparse_matrix_batch


class SingleCellLoader(DataLoader):
    """scdl's own loader."""

    # `scdl` imports the last two when its loader is first used.
    modules: ClassVar[tuple[str, ...]] = (
        "torch",
        "scdl",
        "scdl.training.loader",
        "scdl.dataset.dataset",
    )

    def loader(
        self,
        path: str,
        batch: int,
        order: str,
        layout: Any,
        workers: int,
        normalize: bool = False,
        **options: Any,
    ) -> Iterable[Any]:
        import scdl

        cells = scdl.open(path)
        if normalize:
            options["transforms"] = [scdl.NormalizeTotal(), scdl.Log1p()]
        batch = min(batch, len(cells))  # Toy data may be less.
        loader = scdl.SingleCellLoader(cells, batch, order=order, layout=layout, **options)
        # The option `workers` would start processes for each epoch, and epochs are short here.
        return _data_loader(loader.dataset(), workers, batch_size=None) if workers else loader

    def cells(self, batch: Any, layout: str) -> int:
        assert batch.x.is_sparse_csr == (layout == "csr")
        return len(batch)


class ScDataset(DataLoader):
    """scDataset over a backed AnnCollection.

    Rows are fetched sparse and batches made dense, which is faster, and takes less memory, than
    its ``adata_to_mindex``, which makes all that is fetched dense.
    """

    modules: ClassVar[tuple[str, ...]] = ("torch", "anndata.experimental", "scdataset")

    BLOCK = 64
    #: Its `suggest_parameters` goes up to a factor of 256, as far as memory allows.
    FETCHED_BATCHES, FETCHED_CELLS, FETCHED_BY_WORKERS = 256, 16_384, 4_096

    def loader(
        self, path: str, batch: int, order: str, layout: str, workers: int, **options: Any
    ) -> Iterable[Any]:
        scdataset = import_module("scdataset")
        cells = self.FETCHED_BY_WORKERS if workers else self.FETCHED_CELLS
        fetch_factor = max(1, min(self.FETCHED_BATCHES, cells // batch))
        block = 1 if order == "random" else self.BLOCK
        dataset = scdataset.scDataset(
            _anncollection(path),
            scdataset.Streaming()
            if order == "sequential"
            else scdataset.BlockShuffling(block_size=block),
            batch_size=batch,
            fetch_factor=fetch_factor,
            fetch_callback=_sparse_cells,
            batch_transform=_dense_tensor if layout == "dense" else None,
        )
        prefetch = {"prefetch_factor": fetch_factor + 1} if workers else {}
        return _data_loader(dataset, workers, batch_size=None, **prefetch)

    def cells(self, batch: Any, layout: str) -> int:
        return int(batch.shape[0])


class AnnLoader(DataLoader):
    """anndata's own loader over a backed file; its converter, for dense tensors, is slower."""

    modules: ClassVar[tuple[str, ...]] = ("torch", "anndata.experimental")

    def loader(
        self, path: str, batch: int, order: str, layout: str, workers: int, **options: Any
    ) -> Iterable[Any]:
        from anndata.experimental import AnnLoader

        shuffle = order == "random"
        loader: Iterable[Any] = AnnLoader(
            _anncollection(path), batch_size=batch, shuffle=shuffle, use_default_converter=False
        )
        return loader

    def cells(self, batch: Any, layout: str) -> int:
        return len(_dense_tensor(batch.X)) if layout == "dense" else int(batch.X.shape[0])


READERS: dict[str, DataLoader] = {
    "DataLoader": DataLoader(),
    "SingleCellLoader": SingleCellLoader(),
    "bionemo-scdl": Bionemo(),
    "scDataset": ScDataset(),
    "AnnLoader": AnnLoader(),
}


def _data_loader(dataset: Any, workers: int, **options: Any) -> Iterable[Any]:
    import torch

    return torch.utils.data.DataLoader(
        dataset, num_workers=workers, persistent_workers=workers > 0, **options
    )


def _anncollection(path: str) -> Any:
    import anndata
    from anndata.experimental import AnnCollection

    return AnnCollection([anndata.read_h5ad(path, backed="r")])


def _sparse_cells(collection: Any, rows: Any) -> Any:
    return collection[rows].X


def _dense_tensor(matrix: Any) -> Any:
    import torch

    return torch.from_numpy(matrix.toarray())
