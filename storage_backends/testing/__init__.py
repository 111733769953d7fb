"""Conformance tests for storage backends; subclass :class:`BackendTests`."""

__all__ = ["BackendTests", "Contents", "small_archive"]

try:
    from storage_backends.testing.archives import Contents as Contents
    from storage_backends.testing.archives import small_archive as small_archive
    from storage_backends.testing.suite import BackendTests as BackendTests
except ModuleNotFoundError as error:
    if error.name not in ("hypothesis", "pytest"):
        raise
    raise ImportError(
        "storage_backends.testing needs pytest and hypothesis: pip install pytest hypothesis"
    ) from error
