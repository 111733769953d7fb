"""The commands ``scdl``, which is also ``python -m scdl``, and ``convert_h5ad_to_scdl``.

Processes that share the work run this module too: it imports nothing before a command is called.
"""

import gc
import sys


def scdl() -> None:
    """Run ``scdl``."""
    _run("main")


def convert_h5ad_to_scdl() -> None:
    """Run ``convert_h5ad_to_scdl``."""
    _run("convert_h5ad_to_scdl")


def _run(command: str) -> None:
    try:
        from scdl.cli import main

        getattr(main, command)()
    except KeyboardInterrupt:
        # While modules are imported; commands end with the same code.
        sys.exit(130)
    finally:
        # The process ends: to look once more through all that it has for garbage takes a tenth of
        # the time of a small command.
        gc.freeze()


if __name__ == "__main__":
    scdl()
