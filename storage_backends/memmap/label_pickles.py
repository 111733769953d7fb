"""Labels that the reference pickled: an array of strings and paths, read without unpickling.

Even an unpickler that looks up harmless names only lets a file set attributes of what it finds,
and allocates what the file claims. So the opcodes are gone through here, and make nothing but
lists, tuples, strings and records of what would have been called.

Source: documentation of ``pickletools``; NumPy's ``numpy.lib.format`` for arrays of objects.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any

#: Classes of paths by name, wherever a release of Python keeps them, and what joins their parts.
_PATHS = {
    "PosixPath": "/",
    "PurePosixPath": "/",
    "WindowsPath": "\\",
    "PureWindowsPath": "\\",
}
#: Characters of all paths for each byte of the pickle: parts may be shared, as directories are.
_SHARED = 64

_MARK = object()
_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUT, _GET = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")
_PASSED_OVER = ("PROTO", "FRAME")


@dataclass(eq=False)
class _Name:
    """A global, of which the last part is known."""

    name: str


@dataclass(eq=False)
class _Call:
    """What was to be called, with what; and the state that was given to the result."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


def read(pickled: bytes) -> list[str | None] | None:
    """Elements of a pickled array of strings and paths; None for anything else."""
    try:
        array = _Machine().run(pickled)
    # What pickletools says of bytes that are no pickle, and stacks of those that make no sense.
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    if not isinstance(array, _Call) or array.name != "_reconstruct":
        return None
    items = array.state[-1] if isinstance(array.state, tuple) and array.state else None
    if not isinstance(items, list):
        return None
    labels: list[str | None] = []
    left = _SHARED * len(pickled)
    for item in items:
        if isinstance(item, _Call):
            parts, joint = item.arguments, _PATHS.get(item.name)
            if joint is None or not all(isinstance(part, str) for part in parts):
                return None
            left -= sum(len(part) + 1 for part in parts)
            if left < 0:
                return None
            labels.append(_joined(parts, joint))
        elif isinstance(item, str | None):
            labels.append(item)
        else:
            return None
    return labels


def _joined(parts: tuple[str, ...], joint: str) -> str:
    # The first part of an absolute path is its root.
    head = parts[0] if parts and parts[0].endswith(joint) else ""
    return head + joint.join(parts[1:] if head else parts)


class _Machine:
    """Goes through the opcodes of a pickle."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, pickled: bytes) -> Any:
        """What the pickle is of."""
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "STOP":
                return self._stack.pop()
            self._step(opcode.name, argument)
        raise ValueError("a pickle without an end")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _PASSED_OVER:
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
            self._look_up_or_push(name, argument)

    def _look_up_or_push(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name == "GLOBAL":
            stack.append(_Name(argument.rpartition(" ")[2]))
        elif name == "STACK_GLOBAL":
            stack[-2:] = [_Name(stack[-1])]
        elif name == "REDUCE":
            called, arguments = stack[-2:]
            stack[-2:] = [_Call(called.name, tuple(arguments))]
        elif name == "BUILD":
            state = stack.pop()
            stack[-1].state = state
        elif isinstance(argument, str | bytes | int):
            stack.append(argument)
        else:
            raise ValueError(f"{name} has no place in labels")

    def _since_mark(self) -> list[Any]:
        n = 1 + self._stack[::-1].index(_MARK)
        items = self._stack[len(self._stack) - n + 1 :]
        del self._stack[len(self._stack) - n :]
        return items
