"""A recording written down as a TOML file: pipeline, adapters, scheduler, call, images, options. Reading it needs no torch.

    seed = 0
    [pipeline]            class, from_pretrained, device, without = ["safety_checker"]
    [pipeline.arguments]  torch_dtype, variant, revision, local_files_only, and use_safetensors = false for pickled weights
    [[adapters]]          from_pretrained, subfolder, weight_name, image_encoder_folder, scale
    [scheduler]           class
    [scheduler.config]    what to change in its config
    [call]                arguments of the pipeline's call
    [images]              argument = path, or list of paths; reference_mask, reference_image = path
    [record]              layers, steps, heads, branches, encoding, keys, self_grid, values, keep_bits, keep, token_maps, max_bytes, codec,
                          level, queue_mb
    [probes]              texts and pictures that the run is not given, by name:
                          scene = "a text", concepts = ["a text", "another"], words = { lines = "a.txt" }, cloth = { images = ["a.png"] }
    [dry_run]             tokens, for a pipeline whose number of reference tokens is not known

Paths are relative to the spec's own folder. The table [probes] may also be a TOML file of its own; `lines` names a file of texts, one
on each line, such as `i2am concepts --words` prints.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Final, TypeAlias

from ...schema.errors import InvalidInput
from ...schema.messages import for_reader, guess
from ..plan.options import Options, read_probes

Images: TypeAlias = Path | list["Images"]

FORM: Final = 'name = "one text", name = ["a text", "another"], name = { lines = "words.txt" } or name = { images = ["a.png"] }'
OPTIONS: Final = (
    "layers", "steps", "heads", "branches", "encoding", "keys", "self_grid", "values", "concepts", "keep_bits", "keep", "token_maps",
    "max_bytes", "codec", "level", "queue_mb", "truth",
)  # fmt: skip
TABLES: Final[dict[str, Collection[str] | None]] = {
    # Keys of each table; None takes any key, to be checked against what it is passed to.
    "": ("seed", "pipeline", "adapters", "scheduler", "call", "images", "record", "probes", "dry_run"),
    "pipeline": ("class", "from_pretrained", "device", "without", "arguments"),
    "pipeline.arguments": ("torch_dtype", "variant", "revision", "local_files_only", "use_safetensors"),
    "adapters": ("from_pretrained", "subfolder", "weight_name", "image_encoder_folder", "scale"),
    "scheduler": ("class", "config"),
    "scheduler.config": None,
    "call": None,
    "images": None,
    "record": OPTIONS,
    "dry_run": ("tokens",),
}


@dataclass(frozen=True, slots=True)
class Adapter:
    """One IP-Adapter."""

    source: str
    """Folder or hub id."""
    weight_name: str
    subfolder: str = ""
    image_encoder_folder: str | None = "image_encoder"
    scale: Any = 1.0
    """A number, or diffusers' table of scales by block."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One recording, checked as far as it can be without loading the model."""

    path: Path
    pipeline: str
    """Class in diffusers, or `module:Class`."""
    source: str
    """Folder or hub id."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of from_pretrained."""
    device: str | None = None
    """None takes a GPU if there is one."""
    without: tuple[str, ...] = ()
    """Components that are not loaded."""
    adapters: tuple[Adapter, ...] = ()
    scheduler: str | None = None
    """Class in diffusers; None leaves the pipeline's own."""
    scheduler_config: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Images] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    """Of `record`, probes among them."""
    seed: int | list[int] | None = None
    tokens: int | None = None
    """Reference tokens to reckon with in a dry run."""

    @property
    def unpickles(self) -> bool:
        """Whether it asks for weights that are pickled, which safetensors are not."""
        return self.arguments.get("use_safetensors") is False

    @property
    def named_files(self) -> list[Path]:
        """Its pictures, however they are nested in lists, and its truth."""
        return _flat([*self.images.values(), *([self.options["truth"]] if "truth" in self.options else [])])

    @property
    def encoding(self) -> str:
        """How attention is kept; `maps` where none is."""
        return "maps" if self.options.get("keep") == "maps" else str(self.options.get("encoding", "probabilities"))


def _flat(images: Images) -> list[Path]:
    return [images] if isinstance(images, Path) else [file for image in images for file in _flat(image)]


def read_spec(path: str | PathLike[str]) -> Spec:
    """Read and check a spec; paths in it are relative to its own folder.

    Raises   InvalidInput naming the key, its table and the nearest key there is
    """
    path = Path(path)
    document = read_toml(path, "spec", "the path of a TOML file")
    check_keys(path.name, "", document, TABLES[""] or ())
    pipeline, scheduler, record = (_table(path, document, name) for name in ("pipeline", "scheduler", "record"))
    if "truth" in record:
        place = f"[record] of {path.name}: truth"
        record["truth"] = find_file(path, place, _text(path, "record", record, "truth"), "the spec")
    with for_reader("toml"):
        Options(**record)
    return Spec(
        path=path,
        pipeline=_text(path, "pipeline", pipeline, "class"),
        source=resolve(path, _text(path, "pipeline", pipeline, "from_pretrained")),
        arguments=_table(path, pipeline, "arguments", "pipeline.arguments"),
        device=_text(path, "pipeline", pipeline, "device") if "device" in pipeline else None,
        without=_without(path, pipeline.get("without", [])),
        adapters=_adapters(path, document.get("adapters", [])),
        scheduler=_text(path, "scheduler", scheduler, "class") if scheduler.get("class") or "scheduler" in document else None,
        scheduler_config=_table(path, scheduler, "config", "scheduler.config"),
        call=_table(path, document, "call"),
        images={name: _images(path, name, value) for name, value in _table(path, document, "images").items()},
        options={**record, "probes": _probe_table(path, document["probes"])} if "probes" in document else record,
        seed=_seed(path, document.get("seed")),
        tokens=_tokens(path, _table(path, document, "dry_run").get("tokens")),
    )


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
    return _probe_table(path, document["probes"])


def check_keys(where: str, table: str, found: Collection[str], known: Collection[str]) -> None:
    """Raise InvalidInput for a key that is not known, with the nearest one that is."""
    for key in found:
        if key not in known:
            place = f"[{table}] of {where}" if table else where
            raise InvalidInput(f"{place} has an unknown key {key!r}; {guess(key, known)}known are {', '.join(sorted(known))}")


def resolve(spec: Path, source: str) -> str:
    """A folder next to the spec if there is one, else a hub id.

    Raises   InvalidInput for what can be neither
    """
    folder = spec.parent / Path(source).expanduser()
    if folder.exists():
        return str(folder)
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source:
        looked = f"{spec.name}: from_pretrained = {source!r} does not exist (looked at {folder})"
        raise InvalidInput(f"{looked}; give a folder written by save_pretrained, or a hub id")
    return source


def find_file(beside: Path, named: str, given: str, base: str) -> Path:
    """The file that another one names, by a path from that one's folder, which a message calls relative to `base`.

    Raises   InvalidInput if there is none
    """
    found = beside.parent / Path(given).expanduser()
    if not found.is_file():
        raise InvalidInput(f"{named} = {given!r} is no file (looked at {found}); paths are relative to {base}")
    return found


def read_toml(path: Path, what: str, expected: str) -> dict[str, Any]:
    """A TOML file as it stands.

    Raises   InvalidInput if it cannot be read, or is none
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"cannot read the {what} {path}: {error.strerror}; give {expected}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"{path} is not TOML: {error}") from error


def _table(path: Path, document: Mapping[str, Any], key: str, name: str | None = None) -> dict[str, Any]:
    name = name or key
    table = document.get(key, {})
    if not isinstance(table, dict):
        raise InvalidInput(f"{path.name}: {name} should be a table, [{name}], but is {table!r}")
    if (known := TABLES[name]) is not None:
        check_keys(path.name, name, table, known)
    return table


def _text(path: Path, table: str, values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not value:
        found = "is missing" if value is None else f"is {value!r}"
        raise InvalidInput(f"[{table}] of {path.name}: {key} {found}; it should be text in quotes")
    return value


def _without(path: Path, names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidInput(f"[pipeline] of {path.name}: without is {names!r}; it should be a list of names")
    return tuple(names)


def _adapters(path: Path, tables: Any) -> tuple[Adapter, ...]:
    if not isinstance(tables, list):
        raise InvalidInput(f"{path.name}: adapters should be [[adapters]], with two brackets, one for each adapter")
    return tuple(
        Adapter(
            source=resolve(path, _text(path, "adapters", table, "from_pretrained")),
            weight_name=_text(path, "adapters", table, "weight_name"),
            subfolder=table.get("subfolder", ""),
            image_encoder_folder=table.get("image_encoder_folder", "image_encoder") or None,
            scale=table.get("scale", 1.0),
        )
        for table in (_table(path, {"adapters": table}, "adapters") for table in tables)
    )


def _images(path: Path, name: str, value: Any) -> Images:
    if isinstance(value, list):
        return [_images(path, name, item) for item in value]
    if not isinstance(value, str):
        raise InvalidInput(f"[images] of {path.name}: {name} is {value!r}; it should be the path of an image, or a list of paths")
    return find_file(path, f"[images] of {path.name}: {name}", value, "the spec")


def _seed(path: Path, seed: Any) -> int | list[int] | None:
    values = seed if isinstance(seed, list) else [seed]
    if seed is not None and not all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in values):
        raise InvalidInput(f"{path.name}: seed is {seed!r}; it should be a whole number from 0, or one for each image")
    return seed  # type: ignore[no-any-return]


def _tokens(path: Path, tokens: Any) -> int | None:
    if tokens is not None and not (isinstance(tokens, int) and tokens > 0):
        raise InvalidInput(f"[dry_run] of {path.name}: tokens is {tokens!r}; it should be a number above 0")
    return tokens


def _probe_table(path: Path, table: Any) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise InvalidInput(f"{path.name}: probes should be a table, [probes], but is {table!r}")
    probes = {name: _probe(path, name, value) for name, value in table.items()}
    read_probes(probes)
    return probes


def _probe(path: Path, name: str, value: Any) -> Any:
    match value:
        case str() | list() if all(isinstance(item, str) for item in value):
            return value
        case {"images": str() | list() as given, **others} if not others:
            return [_probe_file(path, name, item) for item in ([given] if isinstance(given, str) else given)]
        case {"lines": str() as given, **others} if not others:
            return _lines(_probe_file(path, name, given))
    raise InvalidInput(f"[probes] of {path.name}: {name} is {value!r}; expected {FORM}")


def _probe_file(path: Path, name: str, given: Any) -> Path:
    if not isinstance(given, str):
        raise InvalidInput(f"[probes] of {path.name}: {name} names the file {given!r}; expected a path in quotes")
    return find_file(path, f"[probes] of {path.name}: {name}", given, path.name)


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read as lines of text: {error}") from error
