"""The command `i2am`.

    exit code   0 ok   1 unexpected   2 usage   3 not a trace or unknown version   4 corrupt or incomplete
                5 an extra is missing   6 a cluster or an address that does not answer   7 no space   130 interrupted

A failure is one line on stderr or, with --json, one document {"error": {"type", "message", "exit_code"}} on stdout. I2AM_DEBUG=1
shows the traceback too.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from io import TextIOWrapper


def run(arguments: Sequence[str] | None = None) -> int:
    """Run `i2am` with these arguments, or the process's, and return the exit code."""
    # Threads share the work call by call; numpy's own beneath them only get in each other's way (twice the time on two cores).
    # numpy reads this once, when it is loaded, so all that needs it is loaded after.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from ...schema.messages import for_shell
    from .failures import DEBUG, report
    from .group import i2am

    given = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, TextIOWrapper):  # a terminal of another encoding shows what it lacks as escapes
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with for_shell():
            result = i2am.main(given, prog_name="i2am", standalone_mode=False)
        if sys.stdout is not None:  # it is where the shell closed it: i2am ... >&-
            sys.stdout.flush()
    except BaseException as error:
        if os.environ.get(DEBUG):
            traceback.print_exc()
        return report(error, given)
    return result if isinstance(result, int) else 0


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run())
