"""Tests that every storage backend passes: subclass :class:`BackendTests`."""

from storage_backends.testing.archives import Contents as Contents
from storage_backends.testing.archives import small_archive as small_archive
from storage_backends.testing.suite import BackendTests as BackendTests
