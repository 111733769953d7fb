"""Errors of chunks, raised from the results of kernels."""

from __future__ import annotations

from storage_backends.errors import (
    COPY_AGAIN,
    ArchiveFormatError,
    NewerFormatError,
    newer_format,
)
from storage_backends.zarr.codecs import blosc as native


class DamagedChunkError(ArchiveFormatError):
    """A chunk cannot be decoded.

    Parameters
    ----------
    position
        Position of the chunk among those to be decoded.
    problem
        Description of the damage.
    """

    def __init__(self, position: int, problem: str) -> None:
        super().__init__(problem)
        self.position = position

    def at(self, where: str) -> ArchiveFormatError:
        """The error with the place of the chunk."""
        return ArchiveFormatError(f"{where} is damaged: {self}; {COPY_AGAIN}")


class NewerChunkError(DamagedChunkError, NewerFormatError):
    """A later version of a codec wrote a chunk than the `most` that this release reads."""

    def __init__(self, position: int, codec: str, version: int, most: int) -> None:
        super().__init__(position, str(newer_format(codec, version, most)))
        self._found = codec, version, most

    def at(self, where: str) -> ArchiveFormatError:
        codec, *versions = self._found
        return newer_format(f"{where} in {codec}", *versions)


def check(found: int, codec: str, version: int) -> None:
    """Raise the error of a chunk that a kernel found, unless all are sound.

    Parameters
    ----------
    found
        SOUND, or the position of a chunk, to which UNFIT, or a version times LATER, may be added.
    codec, version
        Name of the codec, and its version that is read here.
    """
    if found >= native.LATER:
        raise NewerChunkError(found % native.UNFIT, codec, found // native.LATER, version)
    if found != native.SOUND:
        problem = native.problem_at(found)
        assert problem is not None
        raise DamagedChunkError(*problem)
