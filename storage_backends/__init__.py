"""Storage backends: named arrays, tables and attributes behind one small interface.

``base.py`` is the contract, ``registry.py`` finds backends by name or by what stands at a path,
and ``testing.py`` is the conformance suite that every backend passes.
"""

__version__ = "0.1.0"
