"""Parsing of pickled labels, arrays of strings and paths, without unpickling them.

Even an unpickler that is restricted to harmless names lets a file set attributes of the objects it
finds, and allocates as much memory as the file claims. This parser interprets the opcodes itself,
and creates only lists, tuples, strings, and records of the calls that a pickle requests.

Source: documentation of ``pickletools``; NumPy's ``numpy.lib.format`` for arrays of objects.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any

#: Names of path classes, in any module, and the separator of their parts.
_PATHS = {"PosixPath": "/", "PurePosixPath": "/", "WindowsPath": "\\", "PureWindowsPath": "\\"}
#: Maximum characters of all paths per byte of the pickle, as paths may share their parts.
_MAX_EXPANSION = 64

_MARK = object()
_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUT, _GET = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")
_IGNORED = ("PROTO", "FRAME")


@dataclass(eq=False)
class _Global:
    """A global, by the last part of its name."""

    name: str


@dataclass(eq=False)
class _Call:
    """A call that the pickle requests, and the state that it sets on the result."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


def parse_labels(pickled: bytes) -> list[str | None] | None:
    """Elements of a pickled array of strings and paths; None for any other pickle."""
    try:
        array = _Machine().run(pickled)
    # pickletools and the machine raise these errors for invalid pickles.
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    if not isinstance(array, _Call) or array.name != "_reconstruct":
        return None
    items = array.state[-1] if isinstance(array.state, tuple) and array.state else None
    if not isinstance(items, list):
        return None
    labels: list[str | None] = []
    budget = _MAX_EXPANSION * len(pickled)
    for item in items:
        if isinstance(item, _Call):
            parts, separator = item.arguments, _PATHS.get(item.name)
            if separator is None or not all(isinstance(part, str) for part in parts):
                return None
            budget -= sum(len(part) + 1 for part in parts)
            if budget < 0:
                return None
            labels.append(_join(parts, separator))
        elif isinstance(item, str | None):
            labels.append(item)
        else:
            return None
    return labels


def _join(parts: tuple[str, ...], separator: str) -> str:
    # The first part of an absolute path is its root.
    root = parts[0] if parts and parts[0].endswith(separator) else ""
    return root + separator.join(parts[1:] if root else parts)


class _Machine:
    """Interprets the opcodes of a pickle."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, pickled: bytes) -> Any:
        """Interpret a pickle and return its root object."""
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "STOP":
                return self._stack.pop()
            self._step(opcode.name, argument)
        raise ValueError("the pickle does not end with STOP")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _IGNORED:
            return
        if name in _PUT:
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in _GET:
            stack.append(self._memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _VALUES:
            stack.append(_VALUES[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            n = _TUPLES[name]
            stack[-n:] = [tuple(stack[-n:])]
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name == "LIST":
            stack.append(self._since_mark())
        elif name in ("APPEND", "APPENDS"):
            items = self._since_mark() if name == "APPENDS" else [stack.pop()]
            stack[-1].extend(items)
        else:
            self._step_object(name, argument)

    def _step_object(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name == "GLOBAL":
            stack.append(_Global(argument.rpartition(" ")[2]))
        elif name == "STACK_GLOBAL":
            stack[-2:] = [_Global(stack[-1])]
        elif name == "REDUCE":
            function, arguments = stack[-2:]
            stack[-2:] = [_Call(function.name, tuple(arguments))]
        elif name == "BUILD":
            state = stack.pop()
            stack[-1].state = state
        elif isinstance(argument, str | bytes | int):
            stack.append(argument)
        else:
            raise ValueError(f"unexpected opcode {name} in labels")

    def _since_mark(self) -> list[Any]:
        n = 1 + self._stack[::-1].index(_MARK)
        items = self._stack[len(self._stack) - n + 1 :]
        del self._stack[len(self._stack) - n :]
        return items
