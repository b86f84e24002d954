"""Messages name options as their reader types them: `layers=` to a caller from Python, `--layers` to someone at a shell."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import click
import pytest
from repository import ROOT
from specs import PAINT_BY_EXAMPLE

from i2am.analyzer import open_trace, r2g, token_map
from i2am.analyzer.cli.group import i2am
from i2am.analyzer.cli.main import run
from i2am.analyzer.datasets import cluster
from i2am.analyzer.output.files import Output, save
from i2am.analyzer.storage import address
from i2am.recorder.cli.record import record_command
from i2am.schema import errors
from i2am.schema.errors import TraceError
from i2am.schema.messages import for_shell, option
from traces import synthetic_trace

pytestmark = [pytest.mark.analyzer, pytest.mark.torch, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

CLASSES: Final = {name: found for name, found in vars(errors).items() if isinstance(found, type) and found is not TraceError}
SPEC: Final = f'{PAINT_BY_EXAMPLE}example_image = "reference.png"\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces of every kind: sound, unfinished, of a later format, damaged."""
    root = tmp_path_factory.mktemp("doors")
    synthetic_trace(root / "good.zarr", steps=2)
    synthetic_trace(root / "part.zarr", steps=2, planned=5, status="interrupted")
    for name, changed, by in (("future", '"version": 1', '"version": 3'), ("damaged", '"samples"', '"simples"')):
        document = synthetic_trace(root / f"{name}.zarr", steps=2).path / "zarr.json"
        document.write_text(document.read_text().replace(changed, by))
    return root


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """A pipeline on disk, with a spec beside it."""
    pytest.importorskip("torch")
    from pipelines import paint_by_example, picture, square_mask

    pipeline, _ = paint_by_example()
    pipeline.save_pretrained(folder / "model")
    for name, image in (("image", picture(1)), ("reference", picture(10)), ("mask", square_mask())):
        image.save(folder / f"{name}.png")
    (folder / "spec.toml").write_text(SPEC)
    return folder


def record(root: Path, name: str = "new.zarr", **options: Any) -> None:
    """The run of the spec, from Python."""
    from i2am.recorder import record
    from pipelines import paint_by_example

    pipeline, call = paint_by_example(num_inference_steps=2)
    record(pipeline, root / name, **options, **call())


def connect(_: Path) -> None:
    """The scheduler of a cluster that is not there."""
    with cluster.connected("tcp://127.0.0.1:1"):
        pass


NOBODY: Final = "http://127.0.0.1:1/run.zarr.zip"

Door = Callable[[Path], object]
DOORS: Final[tuple[tuple[str, Door, str], ...]] = (
    ("NotATrace", lambda d: open_trace(d / "none.zarr"), "info {d}/none.zarr"),
    ("UnknownVersion", lambda d: open_trace(d / "future.zarr"), "info {d}/future.zarr"),
    ("CorruptTrace", lambda d: open_trace(d / "damaged.zarr"), "info {d}/damaged.zarr"),
    ("IncompleteTrace", lambda d: open_trace(d / "part.zarr"), "info {d}/part.zarr"),
    ("UnknownSelection", lambda d: r2g(open_trace(d / "good.zarr"), layers="7"), "map {d}/good.zarr --r2g --layers 7"),
    ("UnknownSelection", lambda d: token_map(open_trace(d / "good.zarr"), 0, probe="p"), "map {d}/good.zarr --tokens 0 --probe p"),
    ("InvalidInput", lambda d: r2g(open_trace(d / "good.zarr"), steps="every=2"), "map {d}/good.zarr --r2g --steps every=2"),
    ("InvalidInput", lambda d: r2g(open_trace(d / "good.zarr"), time_groups=2), "map {d}/good.zarr --r2g --time-groups 2"),
    ("InvalidInput", lambda d: record(d, keys="any"), "record {d}/spec.toml -o {d}/new.zarr --keys any"),
    ("InvalidInput", lambda d: record(d, heads="every=2"), "record {d}/spec.toml -o {d}/new.zarr --heads every=2"),
    ("InvalidInput", lambda d: record(d, layers="3"), "record {d}/spec.toml -o {d}/new.zarr --layers 3"),
    ("UnknownSelection", lambda d: record(d, heads=[9]), "record {d}/spec.toml -o {d}/new.zarr --heads 9"),
    ("UnsupportedModel", lambda d: record(d, keys="text"), "record {d}/spec.toml -o {d}/new.zarr --keys text"),
    ("AlreadyExists", lambda d: record(d, "good.zarr"), "record {d}/spec.toml -o {d}/good.zarr"),
    (
        "AlreadyExists",
        lambda d: save(Output({"r2g": r2g(open_trace(d / "good.zarr"))}), d / "part.zarr"),
        "map {d}/good.zarr --r2g -o {d}/part.zarr",
    ),
    ("MissingExtra", lambda d: save(Output({"r2g": r2g(open_trace(d / "good.zarr"))}), d / "m.nc"), "map {d}/good.zarr --r2g -o {d}/m.nc"),
    ("NoCluster", connect, "evaluate {d}/good.zarr --scheduler tcp://127.0.0.1:1"),
    ("NoAnswer", lambda d: open_trace(NOBODY), f"info {NOBODY}"),
    ("NoSpace", lambda d: record(d, max_bytes="1kB"), "record {d}/spec.toml -o {d}/small.zarr --max-bytes 1kB"),
)

BOTH_READERS: Final = ("recorder/session/guard.py",)
"""Modules that name the way out for both readers at once: a command in backticks, and a call."""


def commands() -> Iterator[click.Command]:
    """Every subcommand of `i2am`."""
    yield from (*i2am.commands.values(), record_command)


@cache
def flags() -> frozenset[str]:
    """Every option there is, as Python spells it."""
    options = (option for command in commands() for option in command.params if isinstance(option, click.Option))
    return frozenset(flag[2:].replace("-", "_") for option in options for flag in option.opts if flag.startswith("--"))


def for_python(text: str) -> list[str]:
    """Options in a message that are spelled as in Python; a call in code is no option."""
    return [name for name in re.findall(r"(?<![\w.-])([a-z_0-9]+)=(?!=)", text) if name in flags()]


def for_command_line(text: str) -> list[str]:
    """Options in a message that are spelled as on the command line; within backticks they are a command's."""
    found = re.findall(r"(?<![\w-])(?:--([a-z][\w-]*)|-(o)\b)", re.sub("`[^`]*`", "", text))
    return [name or short for name, short in found if short or name.replace("-", "_") in flags()]


def test_the_doors_lead_to_every_class() -> None:
    assert {name for name, *_ in DOORS} == set(CLASSES)


@pytest.mark.parametrize(("name", "door", "line"), DOORS, ids=[f"{name}-{index}" for index, (name, *_) in enumerate(DOORS)])
def test_a_message_names_options_as_its_reader_types_them(
    name: str, door: Door, line: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    if "spec.toml" in line:
        request.getfixturevalue("model")
    if name == "MissingExtra":
        monkeypatch.setattr("i2am.schema.messages.find_spec", lambda name: None)
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 1)
    monkeypatch.setattr(address, "BACKOFF_SECONDS", 0.01)
    with pytest.raises(CLASSES[name]) as caught:
        door(folder)
    assert for_command_line(str(caught.value)) == []
    capsys.readouterr()
    assert run(line.format(d=folder).split()) == CLASSES[name].exit_code
    told = "\n".join(line for line in capsys.readouterr().err.splitlines() if line.startswith("i2am: "))  # libraries print beside it
    assert told
    assert for_python(told) == []
    assert len(for_python(str(caught.value))) == len(for_command_line(told)), "both readers are told of the same options"


def test_values_are_written_as_their_reader_would() -> None:
    assert (option("keep", "time"), option("top", 3), option("layers")) == ("keep='time'", "top=3", "layers=")
    with for_shell():
        assert (option("max_bytes", "5GB"), option("layers", "*up*"), option("overwrite", True)) == (
            "--max-bytes 5GB", "--layers '*up*'", "--overwrite",
        )  # fmt: skip


def spelled(path: Path) -> Iterator[str]:
    """Strings of a module, but docstrings and what click prints, that spell an option by hand."""
    tree = ast.parse(path.read_text())
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    told |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in told or not isinstance(node, ast.JoinedStr | ast.Constant):
            continue
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)
        names = for_python(text) + ([] if "cli" in path.parts or path.stem == "cli" else for_command_line(text))
        if names and " " in text.strip() and not text.startswith("<"):
            yield f"{path.relative_to(ROOT)}:{node.lineno} {names[0]}: {text}"


def test_no_message_spells_an_option_by_hand() -> None:
    modules = sorted(path for room in ("schema", "recorder", "analyzer") for path in (ROOT / room).rglob("*.py"))
    found = [line for path in modules for line in spelled(path)]
    assert [line for line in found if not line.startswith(BOTH_READERS)] == []
