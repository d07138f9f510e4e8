"""How a command ends: its exit code, and one line on stderr that says why.

    0 done · 1 failed · 2 wrong usage · 3 not found · 4 unavailable (no quorum, timeout, no server)
    130 interrupted (Ctrl-C) · 141 the reader of our output is gone (`| head`); the numbers that shells give

With --json the line is an object: `error` is the class, `message` the text; of a QuorumFailed `outcome`, `acks`,
`needed` and `missing` as well. Output goes to stdout, so that a script can read it without finding errors in it.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Final

import click
import msgspec

from crdt_spine.cli.output import LEVEL, printable, representable
from crdt_spine.errors import (
    ConnectionFailed,
    InvalidInput,
    LockTimeout,
    NotFound,
    QuorumFailed,
    SpineError,
    StaleToken,
)

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
UNAVAILABLE: Final = 4
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141


class PipeClosed(Exception):
    """Whoever read our output has closed it: there is nobody left to tell anything."""


def exit_code(error: Exception) -> int:
    """The exit code that says this error."""
    match error:
        case InvalidInput() | click.UsageError():
            return USAGE
        case NotFound():
            return NOT_FOUND
        case ConnectionFailed() | QuorumFailed() | StaleToken() | LockTimeout():
            return UNAVAILABLE
        case _:
            return FAILED


def is_unavailable(error: Exception) -> bool:
    """Would the next operation fail for the same reason?"""
    return exit_code(error) == UNAVAILABLE


def error_line(error: Exception, *, as_json: bool, **more: Any) -> str:
    """The error as one line; `more` (a line's number, a file) goes into the object, and in front of the text."""
    message = _message(error)
    if as_json:
        document: dict[str, Any] = {"error": _class(error), "message": representable(message), **more}
        document |= vars(error).get(LEVEL, {})
        if isinstance(error, QuorumFailed):
            document |= {
                "outcome": error.outcome, "acks": error.acks, "needed": error.needed, "missing": error.missing
            }  # fmt: skip
        return msgspec.json.encode(document).decode()
    place = "".join(f"{name} {value}: " for name, value in more.items())
    # A field's name in an imported file, say, may have what a terminal would obey.
    return f"{click.style('error:', fg='red', bold=True)} {place}{printable(message)}"


def report(error: Exception, *, as_json: bool, **more: Any) -> int:
    """Say the error on stderr; its exit code."""
    click.echo(error_line(error, as_json=as_json, **more), err=True)
    return exit_code(error)


def wants_json(arguments: list[str]) -> bool:
    """Is --json among them? Also asked where they can't be understood otherwise."""
    return "--json" in (arguments[: arguments.index("--")] if "--" in arguments else arguments)


def discard_output() -> None:
    """Let the interpreter's last flush go nowhere, instead of into a closed pipe and a traceback."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _message(error: Exception) -> str:
    if isinstance(error, click.ClickException):
        message = error.format_message()
        context = getattr(error, "ctx", None)
        return f"{message.rstrip('.')} (see {context.command_path} --help)" if context is not None else message
    if isinstance(error, OSError) and not isinstance(error, SpineError):
        reason = error.strerror or str(error)
        return reason if error.filename is None else f"{os.fsdecode(error.filename)}: {reason}"
    return str(error)


def _class(error: Exception) -> str:
    return "UsageError" if isinstance(error, click.UsageError) else type(error).__name__
