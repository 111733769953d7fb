"""The commands ``scdl``, which is also ``python -m scdl``, and ``convert_h5ad_to_scdl``.

Processes that share the work run this module too: it imports nothing before a command is called.
"""


def scdl() -> None:
    """Run ``scdl``."""
    from scdl.cli import main

    main()


def convert_h5ad_to_scdl() -> None:
    """Run ``convert_h5ad_to_scdl``."""
    from scdl.cli import convert_h5ad_to_scdl as main

    main()


if __name__ == "__main__":
    scdl()
