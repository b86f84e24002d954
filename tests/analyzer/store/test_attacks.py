"""What a stranger's trace may do: be answered rightly, or be refused in words, soon, within little memory."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attacks
import numpy as np
import pytest

from i2am.analyzer import open_trace
from i2am.analyzer.inspection.verify import verify
from i2am.analyzer.store.discovery import find_traces
from i2am.schema.errors import CorruptTrace, NotATrace, TraceError
from i2am.schema.journal import Step, encode_line
from traces import Synthetic, default_layers, reference_layer, synthetic_trace

pytestmark = [pytest.mark.analyzer, pytest.mark.skipif(os.name == "nt", reason="pipes and links of POSIX")]

CASES = int(os.environ.get("I2AM_CASES", "120"))
LAYERS = (*default_layers()[:2], reference_layer("unet.b.attn2", (8, 6), encoding="factors"))
SECONDS = 5.0


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Synthetic]:
    folder = tmp_path_factory.mktemp("recordings")
    both = ("cond", "uncond")
    made = [synthetic_trace(folder / f"{i}.zarr", layers=LAYERS, encoding=None, steps=3, seed=i, branches=both) for i in range(2)]
    return [*made, synthetic_trace(folder / "cut.zarr", layers=LAYERS, encoding=None, steps=2, planned=4, seed=3, status="interrupted")]


@pytest.fixture
def own(recordings: list[Synthetic], tmp_path: Path) -> Path:
    return Path(shutil.copytree(recordings[0].path, tmp_path / "own.zarr"))


def test_a_file_of_another_place_is_never_read_as_data(recordings: list[Synthetic], tmp_path: Path) -> None:
    tally = attacks.swaps([made.path for made in recordings[:2]], tmp_path / "x.zarr", 11, CASES)
    assert set(tally.results) <= {"right", "refused in words"}, tally.wrong
    assert tally.results["refused in words"] > CASES // 2


@pytest.mark.parametrize("which", [0, 2], ids=["complete", "unfinished"])
def test_a_changed_document_is_refused_in_words(recordings: list[Synthetic], tmp_path: Path, which: int) -> None:
    tally = attacks.documents(recordings[which].path, tmp_path / "x.zarr", 12 + which, CASES)
    assert set(tally.results) <= {"right", "refused in words"}, tally.wrong


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def sparse(path: Path, size: int = 2**34) -> None:
    path.unlink()
    with path.open("wb") as file:
        file.truncate(size)


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


FILES: list[tuple[str, Callable[[Path], None]]] = [
    (name, do)
    for do in (pipe, sparse, link)
    for name in ("zarr.json", "manifest.json", "layers/000/zarr.json", "step/timestep/c.0", "present/c.0.0", "journal.jsonl",
                 "layers/001/query_lse/c.0.0.1.0.0.0", "images/generated_0/c.0.0.0")
]  # fmt: skip


@pytest.mark.parametrize(("name", "do"), FILES, ids=[f"{do.__name__} {name}" for name, do in FILES])
def test_what_is_no_plain_file_of_the_right_size_is_refused_at_once(own: Path, name: str, do: Callable[[Path], None]) -> None:
    do(own / name)
    quickly(own)
    if name == "zarr.json" and do is pipe:
        assert len(find_traces(own.parent)) == 1


def record_with(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda record: record.update(changes)


def layer_with(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda record: record["layers"][0].update(changes)


def many(name: str, count: int) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        first = record[name][0]
        record[name] = [{**first, "path": f"layer.{i}"} for i in range(count)]

    return change


def groups(count: int) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        group = record["layers"][0]["groups"][0]
        named = [{**group, "name": f"g{i}", "start": i, "stop": i + 1, "grid": None, "specials": 0} for i in range(count)]
        record["layers"][0].update(groups=named, tokens=count)

    return change


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


RECORDS = {
    "heads": layer_with(call_heads=300_000_000),
    "latent grid": record_with(latent_grid=[40000, 20000]),
    "negative grid": record_with(latent_grid=[-1, 6]),
    "half grid": layer_with(grid=[2.5, 2.5]),
    "prime grid": layer_with(grid=[1048573, 64]),
    "frames": layer_with(frames=2.5),
    "steps": record_with(steps=3_999_999),
    "no steps, many layers": lambda record: (record.update(steps=0), many("layers", 20_000)(record)),
    "many layers": many("layers", 20_000),
    "token groups": groups(100_000),
    "window": record_with(images=[{"name": "x", "role": "input", "height": 9, "width": 9, "channels": 3, "window": [0, 0, 1e5, 1e5]}]),
    "deep": record_with(inputs=nested(900)),
    "deeper than Python": record_with(inputs={}),
    "version true": record_with(version=True),
    "version 1.0": record_with(version=1.0),
    "scale": layer_with(scale=10**400),
    "model": record_with(model=[]),
    "control characters": layer_with(path="\x1b[2J\u202e"),
}


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("which", [0, 2], ids=["complete", "unfinished"])
def test_a_record_that_would_exhaust_the_machine(recordings: list[Synthetic], tmp_path: Path, name: str, which: int) -> None:
    own = Path(shutil.copytree(recordings[which].path, tmp_path / "own.zarr"))
    document = json.loads((own / "zarr.json").read_text())
    RECORDS[name](document["attributes"]["i2am"])
    document["attributes"].pop("i2am_sha256", None)
    text = json.dumps(document)
    if name == "deeper than Python":
        text = text.replace('"inputs": {}', '"inputs": ' + '{"a":' * 100_000 + "1" + "}" * 100_000)
    (own / "zarr.json").write_text(text)
    quickly(own)


LARGE = {
    "open lists": "[" * 2**24,
    "long": '{"version": 2, "trace": "x", "files": {}}' + " " * 2**27,
    "many lists": '{"a": [' + "[]," * 2**22 + "[]]}",
    "nothing": "",
}


@pytest.mark.parametrize("what", LARGE)
@pytest.mark.parametrize("name", ["manifest.json", "zarr.json", "layers/000/zarr.json"])
def test_a_document_larger_than_any_of_ours(own: Path, name: str, what: str) -> None:
    (own / name).write_text(LARGE[what])
    quickly(own)


def test_a_journal_that_names_what_is_not_there(recordings: list[Synthetic], tmp_path: Path) -> None:
    own = Path(shutil.copytree(recordings[2].path, tmp_path / "own.zarr"))
    step = Step(0, 0, 1.0, None, 0, (0,), {}, {})
    for change in ({"present": (9,)}, {"present": (-1,)}, {"key_step": {"2": ((5,), (5,))}}, {"lost": {"7": 1.0}}, {"key_step": {"x": ()}}):
        (own / "journal.jsonl").write_text(encode_line(dataclasses.replace(step, **change)))
        quickly(own)


def quickly(path: Path) -> None:
    """Opening and verifying end in words, within 5 s and far from 1 GB, and nothing in the message moves a terminal."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = []
    for partial in (False, True):
        try:
            open_trace(path, partial=partial)
        except TraceError as error:
            said.append(str(error))
        try:
            said += [f"{finding.where}{finding.problem}" for finding in verify(path, partial=partial).findings]
        except TraceError as error:
            said.append(str(error))
    assert all(text.isprintable() and len(text) < 2000 for text in said)
    assert time.process_time() - start < 4 * SECONDS, "two openings and two checks"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10**6, "kB"


def test_links_of_a_hubs_cache_open_and_others_do_not(own: Path, tmp_path: Path) -> None:
    import hashlib

    snapshot, blobs = tmp_path / "models--who--what/snapshots/0123abcd/run.zarr", tmp_path / "models--who--what/blobs"
    blobs.mkdir(parents=True)
    for file in [f for f in own.rglob("*") if f.is_file()]:
        data = file.read_bytes()
        digest = hashlib.sha256(data).hexdigest() if "c." in file.name else hashlib.sha1(data, usedforsecurity=False).hexdigest()
        (blobs / digest).write_bytes(data)
        place = snapshot / file.relative_to(own)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(blobs / digest, place.parent))
    for beside in ("README.md", ".gitattributes"):
        (snapshot / beside).write_text("x")
    (snapshot / ".cache").mkdir()
    np.testing.assert_array_equal(open_trace(snapshot).probabilities(0).values, open_trace(own).probabilities(0).values)
    assert verify(snapshot).ok
    stranger = snapshot / "layers/000/zarr.json"
    stranger.unlink()
    stranger.symlink_to("/etc/hostname")
    with pytest.raises(CorruptTrace, match="is a link"):
        open_trace(snapshot)


def test_documents_of_zarr_2_beside_the_traces_own(own: Path) -> None:
    (own / ".zgroup").write_text("{}")
    with pytest.raises(CorruptTrace, match="not in its manifest"):
        open_trace(own)
    (own / ".zgroup").unlink()
    (own / "zarr.json").unlink()
    (own / "zarr.json").mkdir()
    with pytest.raises((CorruptTrace, NotATrace)):
        open_trace(own)
