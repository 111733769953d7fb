"""The commands ``scdl``, which is also ``python -m scdl``, and ``convert_h5ad_to_scdl``.

Processes that share the work run this module too: it imports nothing before a command is called.
"""

import gc
from collections.abc import Callable


def scdl() -> None:
    """Run ``scdl``."""
    from scdl.cli.main import main

    _run(main)


def convert_h5ad_to_scdl() -> None:
    """Run ``convert_h5ad_to_scdl``."""
    from scdl.cli.main import convert_h5ad_to_scdl as main

    _run(main)


def _run(command: Callable[[], None]) -> None:
    try:
        command()
    finally:
        # The process ends: to look once more through all that it has for garbage takes a tenth of
        # the time of a small command.
        gc.freeze()


if __name__ == "__main__":
    scdl()
