"""The page in a notebook: the exported file in a frame, kept with the notebook and shown wherever that is."""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path
from typing import Unpack

from ...schema.messages import size_text
from ..aggregation.selection import SelectOptions
from ..output.files import Output, save
from ..store.discovery import Source, find_traces
from ..trace.reader import Trace
from .export import export_gallery, export_runs
from .gallery import make_gallery
from .runs import Run, ViewOptions


class View:
    """A page to look at: as the last value of a cell it shows itself, `save` writes it."""

    def __init__(self, page: bytes, *, height: int = 960) -> None:
        self.page, self.height = page, height

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the page as one HTML file.

        Raises   as `output.files.check_output`
        """
        save(Output(page=self.page), Path(path), overwrite=overwrite)
        return Path(path)

    def __repr__(self) -> str:
        return f"<i2am view, {size_text(len(self.page))} of HTML; save('run.html') writes it>"

    def _repr_html_(self) -> str:
        # A frame of its own origin: its scripts cannot reach the notebook, nor the notebook's the frame.
        inside = html.escape(self.page.decode(), quote=True)
        return (
            f'<iframe srcdoc="{inside}" title="i2am" width="100%" height="{self.height}" sandbox="allow-scripts allow-downloads"></iframe>'
        )


def show(trace: Trace, other: Trace | None = None, **options: Unpack[ViewOptions]) -> View:
    """The page of a run, or of two side by side: where each patch looked, which heads know, what came from the reference.

        show(open_trace("run.zarr")).save("run.html")

    `other`    a second run, beside the first
    `options`  `budget`, bytes of a run's overview such as "8MB"; `time_groups` of its steps; `group`, `sample` and `branch`, all if None

    In a notebook the value shows itself; the file that it saves works anywhere.

    Raises   InvalidInput, UnknownSelection, CorruptTrace
    """
    return View(export_runs([Run.of(one, **options) for one in (trace, other) if one is not None]))


def show_gallery(paths: Source | Iterable[Source], *, partial: bool = False, **options: Unpack[SelectOptions]) -> View:
    """The gallery of many traces, with their pictures and scores; one that cannot be read gets a card that says why.

    Raises   NotATrace where there is no trace
    """
    members = find_traces(paths)
    return View(export_gallery(make_gallery(members, f"{len(members)} runs", partial=partial, **options)))
