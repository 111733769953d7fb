"""Errors and warnings of scdl; those of the storage layer are the same classes.

Every error derives from :class:`ScdlError` and from the builtin it refines.
"""

from storage_backends.errors import (
    ArchiveChangedError,
    ArchiveClosedError,
    ArchiveExistsError,
    ArchiveFormatError,
    ArchiveLinkError,
    ArchiveLockedError,
    ArchiveNotFoundError,
    ArchivePlaceError,
    ArchiveWriteError,
    ArrayNotFoundError,
    BackendNotFoundError,
    BackendOptionError,
    MissingCodecError,
    OutputError,
    PathError,
    PathTypeError,
    RangeError,
    RemoteError,
    ScdlError,
    ScdlWarning,
)

__all__ = [
    "ArchiveChangedError",
    "ArchiveClosedError",
    "ArchiveExistsError",
    "ArchiveFormatError",
    "ArchiveLinkError",
    "ArchiveLockedError",
    "ArchiveNotFoundError",
    "ArchivePlaceError",
    "ArchiveWriteError",
    "ArrayNotFoundError",
    "BackendNotFoundError",
    "BackendOptionError",
    "BatchKeyError",
    "CastError",
    "ClusterError",
    "CollectionError",
    "ColumnTypeError",
    "ConversionFailedError",
    "DatasetTypeError",
    "FeatureNotFoundError",
    "GeneError",
    "GeneListNotFoundError",
    "LoaderError",
    "MissingCodecError",
    "MissingFilterError",
    "MissingPackageError",
    "NeighborError",
    "OptionError",
    "OrderError",
    "OutputError",
    "PathError",
    "PathTypeError",
    "RangeError",
    "RemoteError",
    "ResumeError",
    "RowIndexError",
    "ScdlError",
    "ScdlWarning",
    "SourceError",
    "SourceNotFoundError",
    "SplitError",
    "UnknownOptionError",
    "WorkerDiedError",
]


class SourceError(ScdlError, ValueError):
    """A file to convert is no valid AnnData file, or lacks what was asked of it."""


class MissingFilterError(SourceError, ImportError):
    """A file to convert is compressed with an HDF5 filter that is not installed."""


class SourceNotFoundError(ScdlError, FileNotFoundError):
    """A file to convert does not exist."""


class CastError(ScdlError, ValueError):
    """A dtype cannot hold a value: it overflows, is negative, fractional or not a number."""


class OptionError(ScdlError, ValueError):
    """An option has a value that it cannot have."""


class UnknownOptionError(ScdlError, TypeError):
    """There is no option of that name."""


class RowIndexError(ScdlError, IndexError):
    """A cell or gene index lies outside the dataset, or a mask has the wrong length."""


class FeatureNotFoundError(ScdlError, ValueError):
    """There is no column of that name in obs or var."""


class NeighborError(ScdlError, ValueError):
    """A neighbour graph was asked for where there is none, or is not one."""


class OrderError(ScdlError, ValueError):
    """An order of cells cannot be made of what was given: weights, groups, or too few cells."""


class ColumnTypeError(ScdlError, TypeError):
    """A column of obs holds what no tensor can be made of."""


class DatasetTypeError(ScdlError, TypeError):
    """What should be a dataset or a collection is something else, such as a path."""


class LoaderError(ScdlError, ValueError):
    """A loader was asked for what contradicts itself or the data."""


class BatchKeyError(ScdlError, KeyError):
    """A batch has nothing of that name."""

    def __str__(self) -> str:
        # A KeyError shows its message in quotes.
        return str(self.args[0])


class ResumeError(ScdlError, ValueError):
    """A saved state belongs to another loader: other data, batches or order."""


class SplitError(ScdlError, ValueError):
    """A split cannot be made or read, or is of another dataset."""


class CollectionError(ScdlError, ValueError):
    """Archives make no collection, or one is not what its manifest or its copy says."""


class GeneError(ScdlError, ValueError):
    """Genes cannot be brought into one gene space as was asked."""


class GeneListNotFoundError(ScdlError, FileNotFoundError):
    """There is no file to read a list of genes from."""


class ConversionFailedError(ScdlError, RuntimeError):
    """Some of many files could not be converted; ``report`` has those that were, and why not."""

    report: object = None


class WorkerDiedError(ScdlError, RuntimeError):
    """A process ended in the middle of its work: it was killed, or memory was short."""


class ClusterError(ScdlError, ConnectionError):
    """A cluster does not answer, or does not share the file system."""


class MissingPackageError(ScdlError, ImportError):
    """An optional package that was asked for is not installed."""
