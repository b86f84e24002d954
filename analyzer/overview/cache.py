"""Overviews that were made before, in the user's cache folder."""

from __future__ import annotations

import dataclasses
import json
import os
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np

from ...schema.errors import TraceError
from ...schema.messages import plain
from ..methods.recipes import Recipe, get_recipe
from ..storage.cache import VARIABLE, DiskCache, require_folder
from ..trace.reader import Trace
from .group import VERSION, Overview
from .overview import make_overview, manifest_sum
from .plan import BUDGET, TIMES

MOST_BYTES: Final = 2**30
"""What the folder holds at most; what was used least recently goes first."""


def load_overview(
    trace: Trace,
    *,
    budget: int | str = BUDGET,
    time_groups: int = TIMES,
    recipe: str | Recipe = "i2am",
    group: str | None = None,
    sample: int | None = None,
    branch: str | None = None,
) -> Overview:
    """The overview that `make_overview` makes with these arguments, from the cache if it was made before.

    That of an unfinished recording is not kept. The folder is that of the environment variable I2AM_CACHE, where `none` keeps nothing.

    Raises   as `make_overview`; InvalidInput for a cache that is a file
    """
    given = (budget, time_groups, get_recipe(recipe).label, group, sample, branch)
    manifest, folder = manifest_sum(trace), require_folder(os.environ.get(VARIABLE, ""))
    kept = None if folder is None or manifest is None else DiskCache(overviews_folder(folder), MOST_BYTES)
    key = json.dumps(["overview", VERSION, version("i2am"), trace.id, manifest, *given])
    if kept is not None and (found := _read(kept, key, trace, manifest)) is not None:
        return found
    made = make_overview(trace, budget=budget, time_groups=time_groups, recipe=recipe, group=group, sample=sample, branch=branch)
    if kept is None:
        return made
    kept.put(key, np.frombuffer(made.pack(), np.uint8))
    if kept.get(key) is not None:
        return made
    where = plain(str(kept.folder))
    return dataclasses.replace(
        made, note=f"the overview could not be kept in {where}, so it will be made again; {VARIABLE} names another folder"
    )


def overviews_folder(folder: Path) -> Path:
    """Where overviews lie, beside the bytes that were read at addresses."""
    return folder.with_name(f"overviews-{VERSION}")


def _read(kept: DiskCache, key: str, trace: Trace, manifest: str | None) -> Overview | None:
    """What is kept under a key, if it is an overview of this trace that can be read."""
    data = kept.get(key)
    if data is not None:
        with suppress(TraceError):
            found = Overview.unpack(data.tobytes())
            about = found.facts.get("trace", {})
            if (about.get("id"), about.get("manifest")) == (trace.id, manifest):
                return found
    return None
