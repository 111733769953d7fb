"""Messages on the standard error: the logger ``scdl``, whose records are lines."""

from __future__ import annotations

import sys
import time
import warnings
from contextlib import suppress
from typing import Any

import typer

from scdl.errors import ScdlWarning

#: Name of the command that runs, with which each line begins.
_command = "scdl"
#: When it began, if it is verbose.
_started: float | None = None


def begin(command: str) -> None:
    """Begin a command: its errors, warnings and log go to the standard error."""
    global _command, _started
    _command, _started = command, None
    warnings.showwarning = _show_warning


def tell(level: str, message: str) -> None:
    """Write a message as one line; `level` is ``error``, ``warning`` or ``info``."""
    getattr(_logger(), level)("%s", " ".join(message.split()))


def be_verbose(value: bool) -> None:
    """Show what is logged with the levels ``INFO`` and ``DEBUG``, too."""
    global _started
    if value:
        _started = time.monotonic()
        _logger().setLevel("DEBUG")


def end() -> None:
    """End a command: a verbose one says what it took."""
    if _started is not None:
        took = f"it took {time.monotonic() - _started:.1f} s"
        # Windows has no such module.
        with suppress(ImportError):
            import resource

            # In kB; macOS counts bytes.
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            megabytes = peak / (1e6 if sys.platform == "darwin" else 1e3)
            took += f", and at most {megabytes:,.0f} MB of memory"
        tell("info", took)


def tell_where() -> None:
    """Log the traceback of the error that is handled, which only a verbose command shows."""
    _logger().debug("the error was raised here:", exc_info=True)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    kind = "" if issubclass(category, ScdlWarning) else f"{category.__name__}: "
    tell("warning", f"{kind}{message}")


def _logger() -> Any:
    """The logger of the package, which writes to the standard error.

    It is set up when it is needed: to import logging takes a while, and most commands say nothing.
    """
    import logging

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = f"{_command}: {record.levelname.lower()}: {self.format(record)}"
            typer.echo(line, err=True)

    logger = logging.getLogger("scdl")
    if not logger.handlers:
        logger.setLevel("WARNING")
        logger.propagate = False
        logger.addHandler(Lines())
    return logger
