"""How much of what could be tried without end is tried.

``make test`` takes a sample; ``make test-whole`` sets ``SCDL_TESTS=whole`` and takes all of it.
"""

import os

WHOLE = os.environ.get("SCDL_TESTS") == "whole"


def examples(whole: int) -> int:
    """Examples of hypothesis, of those that a property deserves."""
    return whole if WHOLE else max(5, whole // 3)
