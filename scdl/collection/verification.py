"""Whether a collection is sound: every archive of it, and what its manifest says of them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from scdl.collection.manifest import Member, read_manifest
from scdl.collection.paths import archives_below, has_manifest, is_collection
from scdl.errors import ArchiveFormatError, ArchiveNotFoundError, ArchiveWriteError, ScdlError
from scdl.verification import verify as verification
from scdl.verification.verify import VerificationReport
from storage_backends import registry
from storage_backends.capabilities import Finding, Verdict
from storage_backends.paths import path_of


def verify(
    path: str | os.PathLike[str],
    *,
    deep: bool = False,
    repair: bool = False,
    add_checksums: bool = False,
    progress: bool = False,
) -> VerificationReport:
    """Find out whether an archive is sound, or every archive of a collection.

    The structure is checked in any case, in bounded memory: files that are lost or cut, offsets,
    ids of genes, graphs, tables; and of a collection whether its archives are those that its
    manifest lists. Nothing of what is wrong raises; it is in the report.

    Parameters
    ----------
    path
        An archive of any backend, or a collection: a directory with a manifest, or of archives.
    deep
        Whether to compare every byte with its checksum, too. Where there are no checksums, every
        number is read instead, and the verdict is that one cannot tell.
    repair
        Whether to mend before what can be mended without guessing: a header that another program
        left stale, consolidated metadata that is missing.
    add_checksums
        Whether to give checksums, after that, to archives that have none and whose structure is
        sound.
    progress
        Whether to show a progress bar.

    Returns
    -------
    VerificationReport

    Raises
    ------
    ArchiveNotFoundError
        Nothing is at `path`.
    ArchiveFormatError
        What is at `path` is no archive at all, and no collection.
    ArchiveWriteError
        A repair, or checksums, cannot be written.
    ArchiveLockedError, ArchiveChangedError
        Another process or thread changes the archive that is to be mended, or did meanwhile; of a
        collection that is in the report.
    OutputError
        Checksums are asked for where there are some, or the backend keeps none; of a collection,
        archives that have some keep them, and the rest is in the report.
    """
    path = path_of(path, "the path of an archive or a collection")
    how = {"deep": deep, "repair": repair, "add_checksums": add_checksums, "progress": progress}
    if not is_collection(path):
        return verification.verify_archive(path, **how)
    members, findings = _members(path)
    return verify_members(path, members, findings, **how)


def _members(path: str) -> tuple[dict[str, Member | None], list[Finding]]:
    """Archives of a collection with what is known of them, and what is wrong with its manifest."""
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
    """One report of several archives, each of which is what was known of it.

    Parameters
    ----------
    path
        What they are together.
    members
        Of each path what is known of the archive there; None: nothing.
    findings
        What was found before.
    deep, repair, add_checksums, progress
        As for :func:`verify`; archives that have checksums keep them.
    """
    started = time.perf_counter()
    found = [*findings]
    done: list[str] = []
    nbytes = 0
    for place, known in tqdm(members.items(), "archives", unit="archive", disable=not progress):
        try:
            adds = add_checksums and not registry.detect(place).store.examine(place).has_checksums
            report = verification.verify_archive(
                place, deep=deep, repair=repair, add_checksums=adds, progress=progress
            )
        except ArchiveNotFoundError:
            found.append(Finding(f"{place}: this member of the collection is missing"))
        except ArchiveWriteError:
            raise
        except (ScdlError, OSError) as error:
            found.append(verification.as_finding(error))
        else:
            found += report.findings
            done += report.done
            nbytes += report.nbytes
            if known is not None and report.verdict is not Verdict.DAMAGED:
                found += _changes(place, known)
    return VerificationReport(
        path,
        f"a collection of {len(members):,}",
        deep,
        verification.sorted_findings(path, found),
        tuple(done),
        nbytes,
        time.perf_counter() - started,
    )


def _changes(path: str, known: Member) -> list[Finding]:
    """What says that an archive is not the one that is known."""
    try:
        with registry.detect(path).store.open(path) as store:
            known.check(store, genes=True)
    except (ScdlError, OSError) as error:
        return [verification.as_finding(error)]
    return []
