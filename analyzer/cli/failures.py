"""What a failing command prints, one line or one JSON document, and the exit code it ends with."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Final, TextIO

import click

from ...schema.errors import MissingExtra, TraceError
from ...schema.messages import missing_extra
from .text import document, say

DEBUG: Final = "I2AM_DEBUG"


class NobodyReads(Exception):
    """Whoever read our output has had enough."""


def report(error: BaseException, given: Sequence[str]) -> int:
    """Print one line, or one JSON document, about a failure and return its exit code."""
    if isinstance(error, (NobodyReads, BrokenPipeError)):
        _silence(sys.stdout)
        return 0
    if isinstance(error, SystemExit) and not error.code:  # a shell that asked for completions
        return 0
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        _say(error.format_message(), err=False)
        return 0
    kind, message, code = describe(error, given)
    line = " ".join(message.split())
    if "--json" in given:
        _say(document({"error": {"type": kind, "message": line, "exit_code": code}}), err=False)
    else:
        _say(f"i2am: {line}", err=True)
    return code


def _say(text: str, *, err: bool) -> None:
    """Print, if anybody reads: who does not must not change the exit code."""
    try:
        say(text, err=err)
    except OSError:
        _silence(sys.stderr if err else sys.stdout)


def _silence(stream: TextIO | None) -> None:
    """Send what is left to nowhere: the interpreter must not complain when it flushes at exit."""
    if stream is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def describe(error: BaseException, given: Sequence[str]) -> tuple[str, str, int]:
    """(type, message, exit code) of a failure, with what was noted on the way, such as how far a recording came."""
    kind, message, code = _describe(error, given)
    notes = [note for each in (error, error.__cause__) for note in getattr(each, "__notes__", ())]
    return kind, "; ".join([message, *dict.fromkeys(notes)]), code


def _describe(error: BaseException, given: Sequence[str]) -> tuple[str, str, int]:
    kind = type(error).__name__
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return "Interrupted", "interrupted", 130
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "i2am"
        return "UsageError", f"{error.format_message()} (`{path} --help` shows what it takes)", 2
    if isinstance(error, click.ClickException):
        return kind, error.format_message(), 2
    if isinstance(error, TraceError):
        return kind, str(error), error.exit_code
    if isinstance(error, SystemExit):
        return kind, f"ended with exit code {error.code}", error.code if isinstance(error.code, int) else 1
    if isinstance(error, ImportError) and (extra := missing(error, f"`i2am {given[0] if given else ''}`")):
        return "MissingExtra", str(extra), extra.exit_code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "NoSpace", f"no space left on the disk ({error.filename or 'output'}); free some, or write elsewhere with -o", 7
    if isinstance(error, OSError) and error.strerror:
        return kind, f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror), 1
    hint = f"set {DEBUG}=1 to see the traceback, and please report it"
    return kind, f"unexpected {kind}: {error}; {hint}", 1


def missing(error: ImportError, who: str) -> MissingExtra | None:
    """The error that names the pip command, if what could not be imported belongs to an extra."""
    return missing_extra((error.name or "").split(".")[0], who)
