"""The errors that i2am raises on purpose, each with the exit code of the command line.

    TraceError                              1
    |-- NotATrace        FileNotFoundError  3   the path holds no trace
    |-- UnknownVersion   ValueError         3   a trace of a format this release cannot read
    |-- CorruptTrace     ValueError         4   a file is missing, changed, or not what the layout plans
    |-- IncompleteTrace  ValueError         4   the recording did not finish; `partial` opens what is there
    |-- UnknownSelection LookupError        2   a layer, step, head, patch, group, word, probe or image that the trace does not have
    |-- InvalidInput     ValueError         2   an invalid argument, mask or spec
    |-- UnsupportedModel TypeError          2   the pipeline has no attention to record, or it cannot be captured
    |-- AlreadyExists    FileExistsError    2   the output path is taken
    |-- MissingExtra     ImportError        5   a part of i2am that is not installed
    |-- NoCluster        ConnectionError    6   a dask scheduler that does not answer, or workers that cannot do the work
    |-- NoAnswer         ConnectionError    6   an address that does not answer, or with other bytes than were asked for
    `-- NoSpace          OSError            7   the disk is full, or would be, or a limit on bytes would be passed

Each message says what happened, what was expected, where, and the way out. The second base class serves callers who catch
builtin errors.
"""

from __future__ import annotations


class TraceError(Exception):
    """Base of all: catch it to catch everything that i2am raises on purpose."""

    exit_code = 1

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class NotATrace(TraceError, FileNotFoundError):
    """The path holds no trace."""

    exit_code = 3


class UnknownVersion(TraceError, ValueError):
    """The trace has a format version that this release cannot read."""

    exit_code = 3


class CorruptTrace(TraceError, ValueError):
    """A file of the trace is missing, changed, or not what the layout plans."""

    exit_code = 4


class IncompleteTrace(TraceError, ValueError):
    """The recording did not finish and the caller did not ask for a partial trace."""

    exit_code = 4


class UnknownSelection(TraceError, LookupError):
    """The trace has no such layer, step, head, patch, branch, sample, token group, word, probe or image."""

    exit_code = 2


class InvalidInput(TraceError, ValueError):
    """An argument, mask or spec is invalid."""

    exit_code = 2


class UnsupportedModel(TraceError, TypeError):
    """The pipeline has no attention to record, or its attention cannot be captured."""

    exit_code = 2


class AlreadyExists(TraceError, FileExistsError):
    """The output path is taken, and overwriting was not asked for."""

    exit_code = 2


class MissingExtra(TraceError, ImportError):
    """A part of i2am that is not installed; the message names the pip command."""

    exit_code = 5


class NoCluster(TraceError, ConnectionError):
    """No dask scheduler answers, or its workers cannot do the work."""

    exit_code = 6


class NoAnswer(TraceError, ConnectionError):
    """A server or object store does not answer, refuses, or answers with other bytes than it was asked for."""

    exit_code = 6


class NoSpace(TraceError, OSError):
    """The disk is full, and every committed step is readable; or a recording was refused because it would not fit."""

    exit_code = 7
