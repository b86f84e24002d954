"""Probes written down: the table [probes] of a spec, or the same table in a TOML file of its own. Reading it needs no torch.

    [probes]
    concepts = ["a mouse, the animal", "a computer mouse"]
    scene = "a mouse beside a keyboard"
    words = { lines = "words.txt" }
    fabric = { images = ["fabric.png", "silk.png"] }

`lines` is a file of texts, one on each line, such as `i2am concepts --words` prints. Paths are relative to the file that names them.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, Final

from ...schema.errors import InvalidInput
from ..plan.probes import read_probes
from .toml_file import read_toml

FORM: Final = 'name = "one text", name = ["a text", "another"], name = { lines = "words.txt" } or name = { images = ["a.png"] }'


def read_probe_file(path: str | PathLike[str]) -> dict[str, Any]:
    """The probes of a TOML file, as `record` takes them.

    Raises   InvalidInput
    """
    path = Path(path)
    document = read_toml(path, "probes", "a TOML file with a table [probes]")
    others = [key for key in document if key != "probes"]
    if others or not isinstance(document.get("probes"), dict):
        wrong = f"has {others[0]!r} beside its" if others else "has no"
        raise InvalidInput(f"{path.name} {wrong} table [probes]; expected that table alone, of {FORM}")
    return probe_table(path, document["probes"])


def probe_table(path: Path, table: Any) -> dict[str, Any]:
    """The probes of a table that stands in the file at `path`.

    Raises   InvalidInput
    """
    if not isinstance(table, dict):
        raise InvalidInput(f"{path.name}: probes should be a table, [probes], but is {table!r}")
    probes = {name: _value(path, name, value) for name, value in table.items()}
    read_probes(probes)
    return probes


def _value(path: Path, name: str, value: Any) -> Any:
    match value:
        case str() | list() if all(isinstance(item, str) for item in value):
            return value
        case {"images": str() | list() as given, **others} if not others:
            return [_file(path, name, item) for item in ([given] if isinstance(given, str) else given)]
        case {"lines": str() as given, **others} if not others:
            return _lines(_file(path, name, given))
    raise InvalidInput(f"[probes] of {path.name}: {name} is {value!r}; expected {FORM}")


def _file(path: Path, name: str, given: Any) -> Path:
    if not isinstance(given, str):
        raise InvalidInput(f"[probes] of {path.name}: {name} names the file {given!r}; expected a path in quotes")
    found = path.parent / Path(given).expanduser()
    if not found.is_file():
        raise InvalidInput(f"[probes] of {path.name}: {name} = {given!r} is no file (looked at {found}); paths are relative to {path.name}")
    return found


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read as lines of text: {error}") from error
