"""Converting AnnData files into the members of a collection."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

from numpy.typing import DTypeLike

from scdl.archive.schema import unique_names
from scdl.collection.opened import OpenedCollection
from scdl.errors import CollectionError
from storage_backends.errors import refused_write
from storage_backends.paths import Path, paths_of

if TYPE_CHECKING:
    from scdl.conversion.options import ConvertOptions


class ConvertedCollection(OpenedCollection):
    """An open collection to whose directory files are converted.

    The parameters are those of :class:`SingleCellCollection`.
    """

    def load_h5ad(
        self,
        h5ad_path: Path,
        paginated_load_cutoff: int = 10_000,
        load_block_row_size: int = 1_000_000,
        use_X_not_raw: bool = False,
        **options: Unpack[ConvertOptions],
    ) -> None:
        """Convert an AnnData file into the directory of the collection, and append its cells.

        Parameters
        ----------
        h5ad_path
            The file; its stem is the name of the member, with a number if the name is taken.
        paginated_load_cutoff, load_block_row_size, use_X_not_raw
            As for :class:`scdl.SingleCellMemMapDataset`.
        **options
            As for :func:`scdl.convert`; the default of ``data_dtype`` is float32.

        Examples
        --------
        >>> samples = scdl.SingleCellCollection("samples")
        >>> samples.load_h5ad("cells.h5ad")
        >>> samples.load_h5ad("more.h5ad")
        >>> samples.member_names
        ['cells', 'more']
        """
        from scdl.conversion.convert import convert

        given = _convert_options(load_block_row_size, use_X_not_raw, options)
        self._make_directory()
        with self._locked(saves=True):
            ((source, target),) = self._targets([h5ad_path]).items()
            convert(source, target, neighbor_key=self._converted_key, **given)
            self._append([target], save=True)

    def load_h5ad_multi(
        self,
        directory_path: Path,
        max_workers: int = 5,
        use_processes: bool = False,
        data_dtype: DTypeLike | None = None,
        paginated_load_cutoff: int = 10_000,
        load_block_row_size: int = 1_000_000,
        use_X_not_raw: bool = False,
    ) -> None:
        """Convert all ``*.h5ad`` files in a directory tree, and append their cells.

        Parameters
        ----------
        directory_path
            Directory of the files.
        max_workers, use_processes
            Number of files to convert concurrently, in threads or in processes; see
            :func:`scdl.convert_directory`.
        data_dtype
            Dtype of the stored values; default float32.
        paginated_load_cutoff, load_block_row_size, use_X_not_raw
            As for :class:`scdl.SingleCellMemMapDataset`; :meth:`load_h5ad` takes further options.

        Raises
        ------
        SourceNotFoundError
            There is no such file.
        ConversionFailedError
            A file cannot be converted. The others are members nevertheless; see ``report``.

        Examples
        --------
        >>> samples = scdl.SingleCellCollection("of-files")
        >>> samples.load_h5ad_multi("files", max_workers=1)
        >>> len(samples)
        12
        """
        from scdl.conversion.many.directory import convert_files, source_files
        from scdl.conversion.many.report import failure
        from scdl.conversion.options import Settings
        from scdl.sources.formats import H5AD

        given: ConvertOptions = {} if data_dtype is None else {"data_dtype": data_dtype}
        options = _convert_options(load_block_row_size, use_X_not_raw, given)
        files = source_files(directory_path, [H5AD])
        self._make_directory()
        with self._locked(saves=True):
            targets = self._targets(files)
            report = convert_files(
                directory_path,
                targets,
                os.path.dirname(next(iter(targets.values()))),
                Settings(None, self._converted_key, options),
                workers=max_workers,
                use_processes=use_processes,
            )
            if report.archives:
                self._append(list(report.archives.values()), save=True)
        if report.failed:
            raise failure(report, "the others were converted and are members now")

    def _make_directory(self) -> None:
        """Create the directory of the collection, if it does not exist."""
        if self.data_path is None:
            raise CollectionError(
                "this collection was opened from a list of paths and has no directory for new "
                "archives; open it with a directory instead"
            )
        with refused_write(self.data_path):
            os.makedirs(self.data_path, exist_ok=True)

    def _targets(self, sources: Sequence[Path]) -> dict[str, str]:
        """Path of the archive of each file, in the directory of the collection."""
        assert self.data_path is not None
        paths = paths_of(sources)
        stems = [os.path.splitext(os.path.basename(path))[0] for path in paths]
        names = unique_names([*os.listdir(self.data_path), *stems])[-len(stems) :]
        targets = (os.path.join(self.data_path, name) for name in names)
        return dict(zip(paths, targets, strict=True))

    @property
    def _converted_key(self) -> str | None:
        """Key of the graph that conversions include."""
        key: str = self._neighbors["neighbor_key"]
        return key if self._neighbors["load_neighbors"] else None


def _convert_options(
    block_rows: int, use_X_not_raw: bool, options: ConvertOptions
) -> ConvertOptions:
    """Options of a conversion, including the documented ones of BioNeMo-SCDL."""
    matrix: ConvertOptions = {"matrix": "X"} if use_X_not_raw else {}
    return {"data_dtype": "float32", "block_rows": block_rows, **matrix, **options}
