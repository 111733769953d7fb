"""``python -m scdl`` is ``scdl``."""

from scdl.cli import main

main()
