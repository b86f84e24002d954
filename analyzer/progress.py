"""One progress bar on stderr while a scan runs, and only on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dask.callbacks import Callback
from tqdm import tqdm


def hidden() -> bool | None:
    """What tqdm takes for `disable`: None lets it look for a terminal, which takes a stream that is not closed."""
    return None if sys.stderr is not None else True


@contextmanager
def shown(what: str) -> Iterator[None]:
    """Count the tasks of whatever dask computes in this block."""
    with tqdm(desc=what, unit="task", leave=False, disable=hidden()) as bar:

        def begin(graph: Any, state: Mapping[str, Any]) -> None:
            bar.reset(total=len(state["ready"]) + len(state["waiting"]))

        def count(*_: Any) -> None:
            bar.update()

        with Callback(start_state=begin, posttask=count):  # type: ignore[no-untyped-call]
            yield
