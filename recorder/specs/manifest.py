"""A table of recordings: a CSV file with a line for each, over one spec. Reading it needs no torch.

    name,example_image,seed,guidance_scale
    anna,garments/001.png,7,
    bert,garments/002.png,8,2.5

`name` names the trace, `seed` is the seed, `truth` a file of known truth; every other column is an argument of the pipeline's call, or an
image. Paths are relative to the CSV file. An empty cell leaves what the spec says.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Final

from ...schema.errors import InvalidInput
from ...schema.messages import guess
from ...schema.record import NAME
from ...schema.truth.files import read_truth
from .arguments import Arguments
from .spec import Spec, find_file

OWN: Final = ("name", "seed", "truth")
"""Columns that are no arguments."""
SUFFIX: Final = ".zarr"


@dataclass(frozen=True, slots=True)
class Row:
    """One recording of a manifest."""

    name: str
    line: int
    """In the file, from 1."""
    cells: dict[str, str]
    """What is not empty, the name aside."""

    @property
    def folder(self) -> str:
        """The trace's folder under the output."""
        return self.name if self.name.endswith(SUFFIX) else self.name + SUFFIX


@dataclass(frozen=True, slots=True)
class Manifest:
    """The rows of a CSV file, each with a name of its own."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def read_manifest(path: str | PathLike[str]) -> Manifest:
    """Read a manifest and check its shape and names.

    Raises   InvalidInput naming the line
    """
    path = Path(path)
    lines = _lines(path)
    if not lines:
        raise InvalidInput(f"{path} is empty; it should be a CSV file with a column `name` and a line for each recording")
    header = [cell.strip() for cell in lines[0][1]]
    if "name" not in header:
        raise InvalidInput(f"{path.name} has no column `name`; {guess('name', header)}it has {', '.join(header)}, separated by commas")
    if (twice := next((column for column in header if header.count(column) > 1), None)) is not None:
        raise InvalidInput(f"{path.name} has the column {twice!r} twice; remove one")
    if len(lines) == 1:
        raise InvalidInput(f"{path.name} has a header and no rows, so there is nothing to record; add a line for each recording")
    rows = tuple(_row(path, header, number, cells) for number, cells in lines[1:])
    taken: dict[str, int] = {}
    for row in rows:
        first = taken.setdefault(row.folder.casefold(), row.line)  # case does not tell folders apart everywhere
        if first != row.line:
            raise InvalidInput(f"{path.name}, line {row.line}: the name {row.name!r} is taken by line {first}; give each row its own")
    return Manifest(path, tuple(header), rows)


def check_columns(manifest: Manifest, spec: Spec, arguments: Arguments, images: Collection[str]) -> None:
    """Raise InvalidInput for a column that is no argument of the pipeline, no image of the recorder's and none of our own."""
    known = {*OWN, *arguments.names, *images}
    for column in manifest.columns:
        if column not in known and not arguments.any_name:
            what = f"{manifest.path.name}: column {column!r} is no argument of {spec.pipeline}"
            raise InvalidInput(f"{what}; {guess(column, known)}columns are name, seed, truth and {', '.join(sorted(known - set(OWN)))}")


def row_spec(spec: Spec, manifest: Manifest, row: Row, arguments: Arguments) -> Spec:
    """The spec of one row: what its cells say in place of the spec's own.

    Raises   InvalidInput for an image or truth that is not there, a seed or truth that is none
    """
    call, images, seed, options = dict(spec.call), dict(spec.images), spec.seed, spec.options
    for column, text in row.cells.items():
        if column == "seed":
            if not (text.isascii() and text.isdigit()):
                raise InvalidInput(f"{manifest.path.name}, line {row.line}: seed is {text!r}; it should be a whole number from 0")
            seed = int(text)
        elif column == "truth":
            options = {
                **options,
                "truth": find_file(manifest.path, f"{manifest.path.name}, line {row.line}: {column}", text, "the manifest"),
            }
            read_truth(options["truth"])
        elif column in spec.images or (column not in spec.call and column.endswith(("image", "mask"))):
            images[column] = find_file(manifest.path, f"{manifest.path.name}, line {row.line}: {column}", text, "the manifest")
        else:
            call[column] = text if column in arguments.texts else read_value(text)
    return dataclasses.replace(spec, call=call, images=images, seed=seed, options=options)


def read_value(text: str) -> bool | int | float | str:
    """A cell as a truth value or a number if it is one, else as it stands."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """The lines that are not blank, with their numbers."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except OSError as error:
        raise InvalidInput(f"cannot read the manifest {path}: {error.strerror}; give the path of a CSV file") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is not CSV in UTF-8: {error}") from error


def _row(path: Path, header: list[str], line: int, cells: list[str]) -> Row:
    if len(cells) != len(header):
        raise InvalidInput(f"{path.name}, line {line}: {len(cells)} cells under {len(header)} columns; put text that has commas in quotes")
    named = {column: cell.strip() for column, cell in zip(header, cells, strict=True)}
    name = named.pop("name")
    if not NAME.fullmatch(name):
        allowed = "use up to 100 letters a-z, digits, _ . -, not starting with . or -"
        raise InvalidInput(f"{path.name}, line {line}: {name!r} cannot name a trace's folder; {allowed}")
    return Row(name, line, {column: cell for column, cell in named.items() if cell})
