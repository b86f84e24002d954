"""`i2am status`: which recordings of a manifest are complete, partial, missing or broken."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from ...schema.errors import CorruptTrace, InvalidInput
from ...schema.messages import SHOWN, plain
from ..specs.manifest import SUFFIX, read_manifest
from ..store.condition import STATES, find_condition


@click.command("status", short_help="Which recordings of a manifest are complete, partial, missing or broken.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--manifest", required=True, type=click.Path(path_type=Path), help="The CSV file that `i2am record` was given.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, with every row.")
def status_command(folder: Path, manifest: Path, as_json: bool) -> None:
    """Say which recordings of a manifest are complete, partial, missing or broken; needs no torch.

    FOLDER is where `i2am record SPEC --manifest CSV -o FOLDER` put them. A complete trace has all files of its own manifest, each of its
    size; what is in them is for `i2am verify`. The exit code is 0 if every row is complete, else 4.

    \b
    Examples:
      i2am status traces --manifest pairs/pairs.csv
      i2am status traces --manifest pairs/pairs.csv --json | jq -r '.rows[] | select(.state != "complete") | .name'
    """
    if not folder.is_dir():
        raise InvalidInput(f"there is no folder {folder}; give the one that the recordings were written to")
    rows: list[dict[str, Any]] = []
    asked = read_manifest(manifest).rows
    for row in tqdm(asked, desc="status", unit="trace", leave=False, disable=None if sys.stderr else True):
        path = folder / row.folder
        rows.append({"name": row.name, "path": str(path), **dataclasses.asdict(find_condition(path))})
    named = {row.folder for row in asked}
    others = sorted(path.name for path in folder.iterdir() if path.name.endswith(SUFFIX) and path.name not in named)
    counts = {state: Counter(row["state"] for row in rows)[state] for state in STATES}
    facts = {"folder": str(folder), "manifest": str(manifest), "counts": counts, "rows": rows, "others": others}
    click.echo(json.dumps(facts) if as_json else render(facts))
    if counts["complete"] < len(rows):
        click.get_current_context().exit(CorruptTrace.exit_code)


def render(facts: dict[str, Any]) -> str:
    """The counts, then the first rows that are not complete."""
    lines = [f"{facts['folder']}: {', '.join(f'{count} {state}' for state, count in facts['counts'].items())}"]
    left = [row for row in facts["rows"] if row["state"] != "complete"]
    lines += [plain(f"  {row['name']}: {row['state']}{': ' if row['why'] else ''}{row['why']}") for row in left[:SHOWN]]
    if len(left) > SHOWN:
        lines.append(f"  and {len(left) - SHOWN} more (--json lists all)")
    if facts["others"]:
        lines.append(f"{len(facts['others'])} other traces lie there, which the manifest does not name")
    return "\n".join(lines)
