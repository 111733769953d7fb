"""Errors and warnings of scdl, including those of the storage layer.

Every error derives from :class:`ScdlError` and from the builtin exception that it refines.
"""

from storage_backends.errors import ArchiveChangedError as ArchiveChangedError
from storage_backends.errors import ArchiveClosedError as ArchiveClosedError
from storage_backends.errors import ArchiveExistsError as ArchiveExistsError
from storage_backends.errors import ArchiveFormatError as ArchiveFormatError
from storage_backends.errors import ArchiveLinkError as ArchiveLinkError
from storage_backends.errors import ArchiveLockedError as ArchiveLockedError
from storage_backends.errors import ArchiveNotFoundError as ArchiveNotFoundError
from storage_backends.errors import ArchivePlaceError as ArchivePlaceError
from storage_backends.errors import ArchiveWriteError as ArchiveWriteError
from storage_backends.errors import ArrayNotFoundError as ArrayNotFoundError
from storage_backends.errors import BackendNotFoundError as BackendNotFoundError
from storage_backends.errors import BackendOptionError as BackendOptionError
from storage_backends.errors import MissingCodecError as MissingCodecError
from storage_backends.errors import NewerFormatError as NewerFormatError
from storage_backends.errors import OutputError as OutputError
from storage_backends.errors import PathError as PathError
from storage_backends.errors import PathTypeError as PathTypeError
from storage_backends.errors import RangeError as RangeError
from storage_backends.errors import RemoteError as RemoteError
from storage_backends.errors import ScdlError as ScdlError
from storage_backends.errors import ScdlWarning as ScdlWarning


class SourceError(ScdlError, ValueError):
    """A file to convert is not a valid AnnData file, or lacks a requested element."""


class MissingFilterError(SourceError, ImportError):
    """A file to convert is compressed with an HDF5 filter that is not installed."""


class SourceNotFoundError(ScdlError, FileNotFoundError):
    """A file to convert does not exist."""


class CastError(ScdlError, ValueError):
    """A dtype cannot represent a value, which is too large, negative, fractional or NaN."""


class OptionError(ScdlError, ValueError):
    """An option has an invalid value."""


class UnknownOptionError(ScdlError, TypeError):
    """An option does not exist."""


class RowIndexError(ScdlError, IndexError):
    """A cell or gene index lies outside the dataset, or a mask has the wrong length."""


class FeatureNotFoundError(ScdlError, ValueError):
    """A column does not exist in obs or var."""


class CellNotFoundError(ScdlError, ValueError):
    """Cells of a list do not exist."""


class CellListNotFoundError(ScdlError, FileNotFoundError):
    """A file with a list of cells does not exist."""


class FilterError(ScdlError, ValueError):
    """A filter of cells is not valid, or does not fit the columns that it names."""


class NeighborError(ScdlError, ValueError):
    """A neighbour graph was requested but does not exist or is invalid."""


class OrderError(ScdlError, ValueError):
    """An order of cells cannot be created from the given weights, groups or cells."""


class ColumnTypeError(ScdlError, TypeError):
    """A column of obs has a type that cannot be converted to a tensor."""


class DatasetTypeError(ScdlError, TypeError):
    """An argument is not a dataset or a collection but, for example, a path."""


class LoaderError(ScdlError, ValueError):
    """The options of a loader are invalid, or contradict each other or the data."""


class BatchKeyError(ScdlError, KeyError):
    """A batch has no field or value of that name."""

    def __str__(self) -> str:
        # KeyError would show the message in quotes.
        return str(self.args[0])


class ResumeError(ScdlError, ValueError):
    """A saved state belongs to another loader: other data, batches or order."""


class SplitError(ScdlError, ValueError):
    """A split cannot be created or read, or belongs to another dataset."""


class CollectionError(ScdlError, ValueError):
    """Archives cannot form a collection, or an archive differs from its manifest entry."""


class GeneError(ScdlError, ValueError):
    """Genes cannot be mapped to one gene space as requested."""


class GeneListNotFoundError(ScdlError, FileNotFoundError):
    """A file with a list of genes does not exist."""


class ConversionFailedError(ScdlError, RuntimeError):
    """Some files could not be converted; ``report`` lists successes, failures and their causes."""

    report: object = None


class WorkerDiedError(ScdlError, RuntimeError):
    """A worker process ended unexpectedly: it was killed, or ran out of memory."""


class ClusterError(ScdlError, ConnectionError):
    """A cluster does not respond, or does not share the file system."""


class MissingPackageError(ScdlError, ImportError):
    """A required optional package is not installed."""
