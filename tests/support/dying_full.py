"""Run as a script, in a mount namespace of its own: writers on a file system that becomes full.

The rest of a small file system is taken away, all but some pages, from none to as many as it takes.
Told is the same as by ``dying.py``.
"""

from __future__ import annotations

import os
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path

from dying import EVERY, SURVIVED, Facts, Trial, described, grounds, live, spread, tell
from harm import Harm
from operations import OPERATIONS

_FULL = "ENOSPC"
_SIZE = "32m"


class FullTrial(Trial):
    """One operation on a file system with room for less than so many pages; 0: for all it needs."""

    @property
    def _ballast(self) -> Path:
        return self.ground.place.parent / "ballast"

    def _changes(self) -> int:
        """The pages that it takes."""
        self._anew()
        failing, doing = 0, 1
        while self._fails(doing):
            failing, doing = doing, 2 * doing
        while doing - failing > 1:
            middle = (failing + doing) // 2
            failing, doing = (middle, doing) if self._fails(middle) else (failing, middle)
        self._done()
        return failing

    def _done(self) -> None:
        self._anew()
        self._act(Harm(_FULL, 0))

    def _fails(self, pages: int) -> bool:
        self._anew()
        ended = self._act(Harm(_FULL, pages))
        if ended["ended"] != SURVIVED or ended.get("error", {}).get("errno", _FULL) != _FULL:
            raise RuntimeError(f"{self.name} fails by itself: {ended}")
        return "error" in ended

    def _act(self, harm: Harm) -> Facts:
        def act(_: Callable[..., None]) -> Facts:
            return self._tried(self.ground)

        self._fill(harm.n)
        facts = live(act)
        self._ballast.unlink()
        return facts | ({"at": f"{harm.n - 1} pages"} if "error" in facts else {})

    def _fill(self, pages: int) -> None:
        disk = os.statvfs(self.ground.place)
        with self._ballast.open("wb") as file:
            if pages:
                taken = disk.f_bavail - (pages - 1)
                os.posix_fallocate(file.fileno(), 0, taken * disk.f_bsize)


def main() -> None:
    """Try every operation on every kind of archive with too little room."""
    options = described(__doc__, EVERY).parse_args()
    (disk := options.place / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(disk)]
    subprocess.run(mount, check=True)
    for ground in grounds(disk / "place", options.place / "sources", options.kinds):
        for name in options.operations.split(","):
            trial = FullTrial(name, OPERATIONS[name], ground)
            for pages in spread(trial.changes, options.points):
                tell(trial.life(Harm(_FULL, pages)))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
