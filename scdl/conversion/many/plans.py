"""What the conversion of many files would do."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

from scdl.conversion.many.report import DirectoryReport
from scdl.conversion.opening import open_sources
from scdl.conversion.options import Settings
from scdl.conversion.planning import plan
from scdl.errors import ScdlError

#: Stored values in the sample of a file.
_SAMPLE_VALUES = 1 << 17


def plan_files(targets: Mapping[str, str], dest: str, settings: Settings) -> DirectoryReport:
    """The report that is expected, with ``dry_run``; nothing is written.

    Parameters
    ----------
    targets
        The path of the archive of each file.
    dest, settings
        As for :func:`scdl.conversion.many.directory.convert_files`.
    """
    started = time.perf_counter()
    reports, failed = {}, {}
    for path, target in targets.items():
        opening = partial(open_sources, [path], settings, target)
        try:
            reports[path] = plan(opening, target, settings, n_values=_SAMPLE_VALUES)
        except (ScdlError, OSError) as error:
            failed[path] = " ".join(str(error).split())
    seconds = time.perf_counter() - started
    return DirectoryReport(dest, {}, reports, failed, seconds, dry_run=True)
