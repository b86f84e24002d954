"""Pages as HTML files that need nothing else: of a run, of two, and of a gallery, in one file or in a folder with its runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from ..output.files import Output, check_output, save
from .document import carried, joined_document, json_text
from .gallery import Gallery
from .routes import OVERVIEWS
from .runs import Run

INDEX: Final = "index.html"


def export_runs(runs: Sequence[Run]) -> bytes:
    """The page of a run, or of two side by side, with its overviews inside; the same bytes every time."""
    return joined_document("index", {name: carried(run.overview.files) for name, run in zip(OVERVIEWS, runs, strict=False)})


def export_gallery(gallery: Gallery, hrefs: dict[int, str] | None = None) -> bytes:
    """The gallery as one file: pictures and scores, and links where `hrefs` says so."""
    return joined_document("gallery", {"gallery": json_text(gallery.to_json(hrefs or {}))})


def write_gallery(gallery: Gallery, folder: Path, make: Callable[[int], Run], *, overwrite: bool = False) -> list[Path]:
    """Write the gallery as `index.html` into a folder, and beside it the page of each run that it links to; `make` opens one.

    Raises   as `output.files.check_output`
    """
    folder.mkdir(exist_ok=True)
    names = {index: file_name(index, card.member.name) for index, card in enumerate(gallery.cards) if not card.row.error}
    for name in (*names.values(), INDEX):
        check_output(folder / name, "page", overwrite=overwrite)
    for index, name in names.items():
        save(Output(page=export_runs([make(index)])), folder / name, overwrite=overwrite)
    save(Output(page=export_gallery(gallery, names)), folder / INDEX, overwrite=overwrite)
    return [folder / name for name in (INDEX, *names.values())]


def file_name(index: int, name: str) -> str:
    """What the page of a run is called in a gallery's folder: its number, and what of its name every disk and address takes."""
    return f"{index:04d}-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)[:80]}.html"
