"""The command `view`: the page of a run or two, or the gallery of many, in the browser or as HTML files."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ....schema.errors import CorruptTrace
from ....schema.messages import parse_bytes, size_text
from ...output.files import check_output, endings
from ..options import branch_option, example, json_option, output_option, overwrite_option, traces_argument
from ..text import answer, say, write_skipped

if TYPE_CHECKING:
    from ...view.server import Find, Server


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown: its facts, lines to print, and what a server answers, or None where files were written."""

    facts: dict[str, Any]
    text: str
    note: str
    find: Find | None = None


@click.command(
    "view",
    short_help="Look at a run in the browser, at two, or at a folder of them; or write that as HTML.",
    epilog=example(
        "i2am view run.zarr                        in the browser, until Ctrl-C",
        "i2am view run.zarr -o run.html            one file to send, which needs nothing else",
        "i2am view before.zarr after.zarr          two runs side by side",
        "i2am view traces/                         a gallery: a card a run",
        "i2am view traces/ -o gallery.html         its pictures and scores in one file",
        "i2am view traces/ -o gallery              a folder: the gallery, and the page of each run",
        "i2am view run.zarr --port 8000 --no-browser",
    ),
)
@traces_argument
@output_option(f"Write {endings('page')} in place of serving; for a gallery also a folder, with the page of each run.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, metavar="N", help="Port of this machine.  [default: a free one]")
@click.option("--no-browser", is_flag=True, help="Print the address and open nothing.")
@click.option("--budget", default="8MB", show_default=True, metavar="SIZE", help="Bytes that the overview of a run takes at most.")
@click.option("--time-groups", type=click.IntRange(min=1), metavar="N", help="Split the steps into N groups, the noisiest first.")
@click.option("--group", metavar="NAME", help="Token group.  [default: all]")
@click.option("--sample", type=int, metavar="N", help="Generated image, from 0.  [default: all]")
@branch_option
@overwrite_option
@json_option
def view_command(
    traces: tuple[Path, ...], partial: bool, out: Path | None, port: int, no_browser: bool, overwrite: bool, as_json: bool, **options: Any
) -> int:
    """Look at runs: point at a patch to see where it looked, at the reference to see who looked at it.

    One TRACE, or two side by side, are shown by their overview, which is made in one scan and kept in the cache; answers for what the
    pointer rests on are exact. A folder, a pattern, or three traces and more are a gallery. The server is of this machine alone and
    ends with Ctrl-C. With -o nothing is served: a file holds all it shows and asks for nothing.
    """
    from ...store.discovery import is_dataset

    parse_bytes("budget", options["budget"])
    folder = out is not None and (out.is_dir() or not out.suffix)
    if out is not None and not folder:
        check_output(out, "page", overwrite=overwrite)
    many = len(traces) > 2 or any(is_dataset([one]) for one in traces)
    if folder and not many:
        raise click.UsageError(f"the page of a run is one file; end {out} in .html")
    show = show_gallery if many else show_runs
    with ExitStack() as stack:
        server = None
        if out is None:
            from ...view.server import Server

            server = stack.enter_context(Server(port))  # a port that is taken is said before the scan
        found = show(traces, out, partial=partial, overwrite=overwrite, **options)
        if server is not None and found.find is not None:
            return serve(server, found.find, found, no_browser=no_browser, as_json=as_json)
    answer(found.facts, found.text, found.note, as_json=as_json)
    return CorruptTrace.exit_code if found.facts.get("skipped") else 0


def show_runs(traces: tuple[Path, ...], out: Path | None, *, partial: bool, overwrite: bool, **options: Any) -> Shown:
    """The page of one run, or of two side by side."""
    from ...output.files import Output, save
    from ...progress import shown
    from ...trace.reader import open_trace
    from ...view.exact import NewestFirst
    from ...view.export import export_runs
    from ...view.routes import run_routes
    from ...view.runs import Run, differing

    opened = [open_trace(trace, partial=partial) for trace in traces]
    with shown("overview"):
        runs = [Run.of(trace, **options) for trace in opened]
    rows = [run.to_json() for run in runs]
    dropped = [f"left out of {row['path']} to stay within {options['budget']}: {what}" for row in rows for what in row["dropped"]]
    differ = differing(*runs) if len(runs) > 1 else None
    note = "\n".join(dict.fromkeys(filter(None, [*(note for row in rows for note in row["notes"]), differ])))
    facts: dict[str, Any] = {"runs": rows, "out": None if out is None else str(out), "note": note or None}
    if out is None:
        return Shown(facts, "\n".join(dropped), note, run_routes(runs.__getitem__, len(runs), NewestFirst()))
    page = export_runs(runs)
    save(Output(page=page), out, overwrite=overwrite)
    return Shown({**facts, "bytes": len(page)}, "\n".join([f"{out}: {size_text(len(page))}", *dropped]), note)


def show_gallery(traces: tuple[Path, ...], out: Path | None, *, partial: bool, overwrite: bool, **options: Any) -> Shown:
    """The gallery of many runs, written as a file, or as a folder with the page of each."""
    from ...datasets.dataset import skipped_facts
    from ...output.files import Output, save
    from ...store.discovery import find_traces
    from ...trace.reader import open_trace
    from ...view.exact import NewestFirst
    from ...view.export import export_gallery, write_gallery
    from ...view.gallery import make_gallery
    from ...view.routes import gallery_routes
    from ...view.runs import Run

    members = find_traces(traces)
    selected = {name: options[name] for name in ("group", "sample", "branch") if options[name] is not None}
    gallery = make_gallery(members, title_of(traces), partial=partial, **selected)
    rows = [{"trace": card.row.id, "path": card.member.place, **card.row.values} for card in gallery.cards if not card.row.error]
    skipped = [skipped_facts(card.member, card.row) for card in gallery.cards if card.row.error]
    note = "\n".join(write_skipped(skipped, len(members)))

    def make(index: int) -> Run:
        return Run.of(open_trace(members[index].path, partial=partial), **options)

    facts: dict[str, Any] = {"runs": rows, "skipped": skipped, "out": None if out is None else str(out)}
    if out is None:
        return Shown(facts, f"{len(rows)} runs", note, gallery_routes(gallery, make, NewestFirst()))
    if out.suffix and not out.is_dir():
        save(Output(page=export_gallery(gallery)), out, overwrite=overwrite)
        files = [out]
    else:
        files = write_gallery(gallery, out, make, overwrite=overwrite)
    size = size_text(sum(path.stat().st_size for path in files))
    what = "in one file" if len(files) == 1 else f"in {len(files)} files"
    return Shown({**facts, "files": [str(path) for path in files]}, f"{files[0]}: {len(rows)} runs, {size} {what}", note)


def title_of(traces: tuple[Path, ...]) -> str:
    """What a gallery is called: the last name of what was typed, and how many more there are."""
    from ...storage.location import describe_location

    names = [describe_location(one).rstrip("/").rpartition("/")[2] for one in traces]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def serve(server: Server, find: Find, found: Shown, *, no_browser: bool, as_json: bool) -> int:
    """Print the address, open the browser, and answer until Ctrl-C."""
    from ...view.server import open_browser

    text = "\n".join(filter(None, [found.text, f"{server.url} (Ctrl-C ends it)"]))
    answer({**found.facts, "url": server.url}, text, found.note, as_json=as_json)
    if not no_browser and not open_browser(server.url):
        say("note: no browser was found here; open the address above in one of this machine", err=True)
    server.run(find)
    return 0
