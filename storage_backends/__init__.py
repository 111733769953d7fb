"""Storage backends: named arrays, tables and attributes behind one small interface.

``base.py`` defines the interface, ``registry.py`` finds backends by name or by path, and
``testing`` is the conformance suite that every backend passes.
"""

__version__ = "0.2.0"
