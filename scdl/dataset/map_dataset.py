"""Map-style torch datasets that do not require torch."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Generic, SupportsIndex, TypeVar

if TYPE_CHECKING:
    from torch.utils.data import ConcatDataset, Dataset

    _Base = Dataset[Any]
else:

    class _Base(Generic[TypeVar("_T")]):
        """Placeholder for :class:`torch.utils.data.Dataset`, which is generic, too."""


class MapDataset(_Base):
    """A ``torch.utils.data.Dataset`` as soon as torch is imported.

    torch takes a second to import, may not be installed, and does not support virtual subclasses:
    ``isinstance`` checks the bases of a class, then ``__class__`` of the object. Therefore the
    base of this class is replaced as soon as torch is imported.
    """

    def __add__(self, other: Any) -> ConcatDataset[Any]:
        """Concatenate two datasets, as ``torch.utils.data.Dataset`` does."""
        from torch.utils.data import ConcatDataset

        return ConcatDataset([self, other])

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """The type of this object, a torch dataset if torch is imported."""
        kind = type(self)
        if not _adopted():
            return kind
        # isinstance checked the type before reading __class__, and does not check it again.
        return type(kind.__name__, (kind,), {"__module__": kind.__module__})

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        _adopted()
        return super().__reduce_ex__(protocol)


def _adopted() -> bool:
    """Replace the base if torch was imported since the last call; returns whether it was."""
    dataset = getattr(sys.modules.get("torch.utils.data"), "Dataset", None)
    if dataset is None or MapDataset.__bases__ == (dataset,):
        return False
    MapDataset.__bases__ = (dataset,)
    return True


_adopted()
