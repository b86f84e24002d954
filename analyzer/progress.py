"""One progress bar on stderr while a scan runs, and only on a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm.dask import TqdmCallback


def hidden() -> bool | None:
    """What tqdm takes for `disable`: None lets it look for a terminal, which takes a stream that is not closed."""
    return None if sys.stderr is not None else True


def shown(what: str) -> TqdmCallback:
    """Count the tasks of whatever dask computes in this block."""
    from tqdm import tqdm
    from tqdm.dask import TqdmCallback  # brings dask, which `verify` does without

    return TqdmCallback(tqdm_class=tqdm, desc=what, unit="task", leave=False, disable=hidden())
