"""Datasets of torch that are made, opened and read without torch."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Generic, SupportsIndex, TypeVar

if TYPE_CHECKING:
    from torch.utils.data import ConcatDataset, Dataset

    _Base = Dataset[Any]
else:

    class _Base(Generic[TypeVar("_T")]):
        """Stands where :class:`torch.utils.data.Dataset` goes, which is generic too."""


class MapDataset(_Base):
    """A ``torch.utils.data.Dataset``, from when torch has been imported on.

    torch takes a second to import, is not always installed, and lets nobody register a subclass:
    ``isinstance`` looks at what a class inherits from, then at ``__class__`` of the object. So the
    base of this class is replaced as soon as somebody could ask for it.
    """

    def __add__(self, other: Any) -> ConcatDataset[Any]:
        """The cells of both, one after the other, as ``torch.utils.data`` has it."""
        from torch.utils.data import ConcatDataset

        return ConcatDataset([self, other])

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """The type of this object, which is one of torch's datasets by now if it can be."""
        kind = type(self)
        if not _adopted():
            return kind
        # isinstance compared the type before it asked, and does not look at it again.
        return type(kind.__name__, (kind,), {"__module__": kind.__module__})

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        _adopted()
        return super().__reduce_ex__(protocol)


def _adopted() -> bool:
    """Replace the base, if torch came since this was last called, and tell whether it did."""
    dataset = getattr(sys.modules.get("torch.utils.data"), "Dataset", None)
    if dataset is None or MapDataset.__bases__ == (dataset,):
        return False
    MapDataset.__bases__ = (dataset,)
    return True


_adopted()
