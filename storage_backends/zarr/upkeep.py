"""Verification and repair of Zarr stores: checksums and consolidated metadata."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import zarr

from storage_backends.capabilities import Examination, Finding, Verdict
from storage_backends.directory import files as archive_files
from storage_backends.directory import integrity
from storage_backends.directory.integrity import OpenChecked
from storage_backends.directory.staging import remove_leftovers
from storage_backends.errors import BackendOptionError
from storage_backends.zarr import BACKEND, detection, layout, zipped
from storage_backends.zarr.claims import ContainedStore
from storage_backends.zarr.local_stores import CapturingStore
from storage_backends.zarr.opening import unreadable

_ROOT = "zarr.json"
#: Files of a store of format 2: the marker of its root, and its consolidated metadata.
_ROOT_V2, _CONSOLIDATED_V2 = ".zgroup", ".zmetadata"
_KEY = "consolidated_metadata"
#: Names of the files that zarr reads.
_READ = re.compile(r"zarr\.json|\.z(array|group|attrs|metadata)|c|[0-9]+(\.[0-9]+)*")


def examine(path: str, open_: OpenChecked) -> Examination:
    """Compare the files with their checksums, and look for consolidated metadata."""
    if detection.is_url(path):
        message = f"{path}: checksums of remote archives are not read; copy it to a local path"
        return Examination([Finding(message, Verdict.UNKNOWN)])
    if os.path.isfile(path):
        return zipped.examine(path)
    root = os.path.realpath(path)
    found = integrity.examine_files(root, detection.CHECKSUMS, _reads, _by_need, open_)
    lacking = _lacks_consolidated(root)
    if lacking is None:
        return found
    message = (
        f"{root}: the metadata is not consolidated, so that opening reads many small files; "
        "`scdl verify --repair` consolidates it"
    )
    return replace(found, findings=[*found.findings, Finding(message, lacking, mendable=True)])


def _reads(key: str) -> bool:
    """Whether zarr reads a file with this key: metadata, or a chunk."""
    return _READ.fullmatch(key.rpartition("/")[2]) is not None


def _by_need(key: str) -> tuple[bool, int, str]:
    """Sort key of files: shards by number; values last, as no other check reads them."""
    return "/data/c/" in key, len(key), key


def _lacks_consolidated(root: str) -> Verdict | None:
    """Verdict on missing consolidated metadata; None if it exists or cannot be determined."""
    if not os.path.exists(os.path.join(root, _ROOT)):
        there = os.path.exists(os.path.join(root, _CONSOLIDATED_V2))
        return None if there or not os.path.exists(os.path.join(root, _ROOT_V2)) else Verdict.SOUND
    metadata = _metadata(root)
    if not isinstance(metadata, dict) or metadata.get(_KEY) is not None:
        return None
    attributes = metadata.get("attributes")
    is_scdl = isinstance(attributes, dict) and layout.ATTRIBUTE in attributes
    return Verdict.DAMAGED if is_scdl else Verdict.SOUND


def _metadata(root: str) -> Any:
    try:
        return json.loads(archive_files.read_file(root, _ROOT))
    except (OSError, ValueError, RecursionError):
        # Opening the store reports the error.
        return None


def check_changeable(path: str) -> None:
    """Raise BackendOptionError for a remote store, or one in a zip file."""
    if detection.is_url(path):
        raise BackendOptionError(f"{path}: a remote archive cannot be changed; copy it here first")
    if os.path.isfile(path):
        raise BackendOptionError(f"{path}: a zip file cannot be changed; unpack it first")


def repair(path: str) -> Sequence[str]:
    """Consolidate metadata that is not consolidated; returns a description of each change."""
    check_changeable(path)
    root = os.path.realpath(path)
    remove_leftovers(root)
    before = archive_files.identity_of(root, BACKEND.markers)
    if _lacks_consolidated(root) is None:
        return ()
    files = _consolidated(root)
    for key, data in files.items():
        if integrity.matches_checksums(root, detection.CHECKSUMS, key, data) is False:
            # The metadata differs from what was written by more than the consolidation.
            return ()
    integrity.replace_files(
        root,
        detection.CHECKSUMS,
        files,
        lambda: archive_files.identity_of(root, BACKEND.markers) == before,
    )
    return (f"{root}: the metadata was consolidated in {', '.join(files)}",)


def _consolidated(root: str) -> dict[str, bytes]:
    """New content of the files that consolidating the metadata changes."""
    capturing = CapturingStore(ContainedStore(root))
    with unreadable(root), layout.ignore_zarr_warnings():
        zarr.consolidate_metadata(capturing)
    return capturing.files
