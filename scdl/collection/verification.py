"""Verification of collections: their archives, and the manifest's descriptions of them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence

from scdl.collection.manifest import read_manifest
from scdl.collection.member import Member
from scdl.collection.paths import archives_below, has_manifest, is_collection
from scdl.errors import ArchiveFormatError, ArchiveNotFoundError, ArchiveWriteError, ScdlError
from scdl.progress import progress_bar
from scdl.verification import verify as verification
from scdl.verification.verify import VerificationReport
from storage_backends import registry
from storage_backends.capabilities import Finding, Verdict
from storage_backends.paths import path_of

_log = logging.getLogger(__name__)


def verify(
    path: str | os.PathLike[str],
    *,
    deep: bool = False,
    repair: bool = False,
    add_checksums: bool = False,
    progress: bool = False,
) -> VerificationReport:
    """Verify an archive, or every archive of a collection.

    The structure is always checked, in bounded memory: missing or truncated files, offsets, ids of
    genes, graphs and tables; for a collection also whether its archives are those listed in the
    manifest. Damage does not raise errors; it is listed in the report.

    Parameters
    ----------
    path
        An archive of any backend, or a collection: a directory with a manifest, or of archives.
    deep
        Whether to compare every byte with its checksum, too. Without checksums every number is
        read instead, and the verdict is unknown.
    repair
        Whether to first repair what is unambiguous: a header that another program left stale, and
        missing consolidated metadata.
    add_checksums
        Whether to then add checksums to archives that have none and whose structure is sound.
    progress
        Whether to show a progress bar.

    Returns
    -------
    VerificationReport

    Raises
    ------
    ArchiveNotFoundError
        `path` does not exist.
    ArchiveFormatError
        `path` is neither an archive nor a collection.
    ArchiveWriteError
        A repair or checksums cannot be written.
    ArchiveLockedError, ArchiveChangedError
        Another process or thread is changing the archive to repair, or has changed it; for a
        collection this is in the report.
    OutputError
        Checksums are to be added but exist already, or the backend does not support them. In a
        collection existing checksums are kept, and other problems are in the report.

    Examples
    --------
    >>> report = scdl.verify("cells.scdl", deep=True)
    >>> report.verdict.name, report.is_sound
    ('SOUND', True)
    """
    path = path_of(path, "the path of an archive or a collection")
    how = {"deep": deep, "repair": repair, "add_checksums": add_checksums, "progress": progress}
    if not is_collection(path):
        return verification.verify_archive(path, **how)
    members, findings = _list_members(path)
    return verify_members(path, members, findings, **how)


def _list_members(path: str) -> tuple[dict[str, Member | None], list[Finding]]:
    """Archives of a collection with their descriptions, and findings about the manifest."""
    findings = []
    if has_manifest(path):
        try:
            return {record.path: record for record in read_manifest(path)}, []
        except (ArchiveFormatError, OSError) as error:
            findings.append(verification.as_finding(error))
    return dict.fromkeys(archives_below(path)), findings


def verify_members(
    path: str,
    members: Mapping[str, Member | None],
    findings: Sequence[Finding] = (),
    *,
    deep: bool,
    repair: bool = False,
    add_checksums: bool = False,
    progress: bool = False,
) -> VerificationReport:
    """Verify several archives, and compare them with their descriptions.

    Parameters
    ----------
    path
        The collection, for the report.
    members
        Description of the archive at each path, or None.
    findings
        Earlier findings to include.
    deep, repair, add_checksums, progress
        As for :func:`verify`; existing checksums are kept.
    """
    started = time.perf_counter()
    all_findings = [*findings]
    done: list[str] = []
    nbytes = 0
    bar = progress_bar(members.items(), desc="archives", unit="archive", show=progress)
    for member_path, known in bar:
        try:
            store_class = registry.detect(member_path).store
            adds = add_checksums and not store_class.examine(member_path).has_checksums
            report = verification.verify_archive(
                member_path, deep=deep, repair=repair, add_checksums=adds, progress=progress
            )
        except ArchiveNotFoundError:
            all_findings.append(Finding(f"{member_path}: this member of the collection is missing"))
        except ArchiveWriteError:
            raise
        except (ScdlError, OSError) as error:
            all_findings.append(verification.as_finding(error))
        else:
            _log.info("%s: %s", member_path, report.verdict.name.lower())
            all_findings += report.findings
            done += report.done
            nbytes += report.nbytes
            if known is not None and report.verdict is not Verdict.DAMAGED:
                all_findings += _changes(member_path, known)
    return VerificationReport(
        path,
        f"a collection of {len(members):,}",
        deep,
        verification.sorted_findings(path, all_findings),
        tuple(done),
        nbytes,
        time.perf_counter() - started,
    )


def _changes(path: str, known: Member) -> list[Finding]:
    """Findings if an archive differs from its description."""
    try:
        with registry.detect(path).store.open(path) as store:
            known.check(store, genes=True)
    except (ScdlError, OSError) as error:
        return [verification.as_finding(error)]
    return []
