"""What bad input gets from the command line: one line that says what, where and the way out, and the right exit code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from i2am.analyzer.cli.main import run
from traces import reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

Case = tuple[str, int, tuple[str, ...]]
"""Command line with {names} of paths, exit code, what the line must say."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces and files of every kind that the table speaks of."""
    root = tmp_path_factory.mktemp("bad")
    good = synthetic_trace(root / "good.zarr", steps=2).path
    synthetic_trace(root / "part.zarr", steps=2, planned=5, status="interrupted")
    synthetic_trace(root / "killed.zarr", steps=2, planned=5, status="recording")
    texts = [reference_layer("a", (3, 2), text=4, reference=None), reference_layer("b", (3, 2), text=4, reference=None)]
    synthetic_trace(root / "text.zarr", layers=texts, steps=1, latent_grid=(3, 2))
    (root / "empty").mkdir()
    (root / "file.txt").write_text("hello")
    (root / "plain.zarr").mkdir()
    (root / "plain.zarr" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    changed(good, root / "future.zarr", "zarr.json", lambda text: text.replace(b'"version": 1', b'"version": 3'))
    for index, name in enumerate(("probability", "query_lse", "token_lse")):
        shard = next((good / "layers" / "000" / name).glob("c.*")).relative_to(good)
        changed(good, root / f"flip{index}.zarr", str(shard), flip)
    changed(good, root / "flip3.zarr", "zarr.json", flip)
    changed(good, root / "flip4.zarr", "manifest.json", flip)
    changed(good, root / "flip5.zarr", "layers/000/probability/zarr.json", flip)
    changed(good, root / "flip6.zarr", "images/generated_0/c.0.0.0", flip)
    changed(good, root / "flip7.zarr", "step/timestep/c.0", flip)
    changed(good, root / "short.zarr", str(shard), lambda data: data[: len(data) // 2])
    changed(good, root / "gone.zarr", str(shard), None)
    changed(root / "killed.zarr", root / "journal.zarr", "journal.jsonl", flip)
    mask = np.zeros((64, 48), np.uint8)
    Image.fromarray(mask).save(root / "black.png")
    Image.fromarray(mask + 255).save(root / "white.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)).save(root / "photo.png")
    mask[:9] = 255
    Image.fromarray(mask.T.copy()).save(root / "turned.png")
    return root


def flip(data: bytes) -> bytes:
    """One bit, in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :]


def changed(source: Path, target: Path, name: str, change: Callable[[bytes], bytes] | None) -> None:
    """A copy of a trace with one file changed or removed."""
    shutil.copytree(source, target)
    file = target / name
    file.unlink() if change is None else file.write_bytes(change(file.read_bytes()))


CASES: tuple[Case, ...] = (
    ("info {d}/nothing", 3, ("there is no", "i2am record")),
    ("info {d}/file.txt", 3, ("is a file, not a trace",)),
    ("info {d}/empty", 3, ("a folder without zarr.json",)),
    ("info {d}/plain.zarr", 3, ("not a trace",)),
    ("info {d}/future.zarr", 3, ("version 3", "reads versions 1", "pip install --upgrade")),
    ("info {d}/part.zarr", 4, ("did not finish", "stopped by the test", "2 of 5", "--partial")),
    ("info {d}/killed.zarr", 4, ("did not finish", "--partial")),
    ("info {d}/part.zarr --partial", 0, ()),
    ("verify {d}/killed.zarr --partial", 0, ()),
    ("info {d}/journal.zarr --partial", 4, ("journal.jsonl",)),
    ("verify {d}/flip0.zarr", 4, ("probability", "sha256", "copy the trace again")),
    ("verify {d}/flip1.zarr", 4, ("query_lse", "sha256")),
    ("verify {d}/flip2.zarr", 4, ("token_lse", "sha256")),
    ("verify {d}/flip3.zarr", 4, ("zarr.json",)),
    ("verify {d}/flip4.zarr", 4, ()),
    ("verify {d}/flip5.zarr", 4, ("probability/zarr.json", "sha256")),
    ("verify {d}/flip6.zarr", 4, ("images/generated_0", "sha256")),
    ("verify {d}/flip7.zarr", 4, ("step/timestep", "sha256")),
    ("verify {d}/short.zarr", 4, ("bytes where",)),
    ("verify {d}/gone.zarr", 4, ("is missing",)),
    ("map {d}/flip0.zarr --r2g -o {o}.npy", 4, ("probability", "step")),
    ("map {d}/flip1.zarr --r2g -o {o}.npy", 4, ("query_lse",)),
    ("map {d}/flip2.zarr --r2g -o {o}.npy", 4, ("token_lse",)),
    ("map {d}/flip5.zarr --r2g -o {o}.npy", 4, ("probability/zarr.json",)),
    ("map {d}/flip6.zarr --r2g -o {o}.png", 4, ("generated_0",)),
    ("map {d}/gone.zarr --g2r -o {o}.npy", 4, ("is missing",)),
    ("imacs {d}/flip0.zarr", 4, ("probability",)),
    ("report {d}/flip0.zarr -o {o}.png", 4, ("probability", "i2am verify")),
    ("map {d}/good.zarr --r2g --layers nowhere -o {o}.png", 2, ("nowhere", "mid_block", "up_blocks")),
    ("map {d}/good.zarr --r2g --g2r -o {o}.png", 2, ("one of --r2g, --g2r, --at Y,X",)),
    ("map {d}/good.zarr --g2r --at 1,1 -o {o}.png", 2, ("one of --r2g, --g2r, --at Y,X",)),
    ("map {d}/good.zarr --r2g --layers= -o {o}.png", 2, ("layer selection is empty", "mid_block")),
    ("map {d}/good.zarr --r2g --layers 7 -o {o}.png", 2, ("no layer 7", "0 to 2")),
    ("map {d}/good.zarr --r2g --layers re:( -o {o}.png", 2, ("regular expression",)),
    ("map {d}/good.zarr --r2g --steps 9 -o {o}.png", 2, ("step", "9", "0 to 1")),
    ("map {d}/good.zarr --r2g --heads 8 -o {o}.png", 2, ("head", "8", "0 to 3")),
    ("map {d}/good.zarr --r2g --sample 3 -o {o}.png", 2, ("sample", "3")),
    ("map {d}/good.zarr --r2g --branch uncond -o {o}.png", 2, ("uncond", "cond")),
    ("map {d}/good.zarr --r2g --group shoes -o {o}.png", 2, ("shoes", "reference")),
    ("map {d}/good.zarr --r2g --recipe magic -o {o}.png", 2, ("magic", "i2am-v1")),
    ("map {d}/good.zarr --at 8,0 -o {o}.png", 2, ("(8, 0)", "0 to 7", "0 to 5")),
    ("map {d}/good.zarr --at -1,0 -o {o}.png", 2, ("(-1, 0)", "0 to 7")),
    ("map {d}/good.zarr --at 1 -o {o}.png", 2, ("Y,X", "map --help")),
    ("map {d}/good.zarr --r2g --g2r --at 1,1 -o {o}.png", 2, ("one of --r2g, --g2r, --at Y,X",)),
    ("map {d}/good.zarr -o {o}.png", 2, ("one of --r2g, --g2r, --at Y,X",)),
    ("map {d}/good.zarr --r2g --keep depth -o {o}.png", 2, ("depth", "time, layer, head")),
    ("map {d}/good.zarr --r2g --steps x -o {o}.png", 2, ("0:20",)),
    ("map {d}/good.zarr --r2g --steps ::0 -o {o}.png", 2, ("--steps ::0", "::5")),
    ("map {d}/good.zarr --r2g --steps 0:1:2:3 -o {o}.png", 2, ("0:1:2:3",)),
    ("map {d}/good.zarr --r2g --time-groups 2 -o {o}.png", 2, ("--time-groups splits", "add --keep time")),
    ("map {d}/good.zarr --r2g --keep time --time-groups 9 -o {o}.png", 2, ("9",)),
    ("map {d}/good.zarr --r2g --style neon -o {o}.png", 2, ("neon", "viridis")),
    ("map {d}/good.zarr --r2g -o {o}.jpg", 2, (".npy", ".png")),
    ("map {d}/good.zarr --r2g -o {o}/no/where.png", 2, ("does not exist",)),
    ("map {d}/good.zarr --r2g -o {d}/black.png", 2, ("exists already", "--overwrite")),
    ("map {d}/good.zarr --r2g -o {d}/part.zarr --overwrite", 2, ("is not overwritten",)),
    ("map {d}/good.zarr --r2g --query-mask mask -o {o}.png", 2, ("--g2r",)),
    ("map {d}/good.zarr --g2r --query-mask {d}/black.png -o {o}.png", 2, ("empty",)),
    ("map {d}/good.zarr --g2r --query-mask {d}/turned.png -o {o}.png", 2, ("48", "64")),
    ("map {d}/good.zarr --g2r --query-mask {d}/photo.png -o {o}.png", 2, ("in colour",)),
    ("map {d}/good.zarr --g2r --query-mask generated_0 -o {o}.png", 2, ("in colour",)),
    ("map {d}/text.zarr --g2r -o {o}.png", 2, ("reference", "--group, of text")),
    ("map {d}/text.zarr --g2r --group text -o {o}.png", 2, ("no rows and columns", ".npy")),
    ("imacs {d}/good.zarr --mask {d}/turned.png", 2, ("48 x 64", "64 x 48", "generated_0")),
    ("imacs {d}/good.zarr --mask {d}/black.png", 2, ("empty",)),
    ("imacs {d}/good.zarr --mask {d}/white.png", 2, ("full",)),
    ("imacs {d}/good.zarr --reference-mask {d}/white.png", 2, ("30 x 50",)),
    ("imacs {d}/good.zarr --mask {d}/photo.png", 2, ("photo.png", "in colour", "white where the mask is")),
    ("imacs {d}/good.zarr --mask {d}/none.png", 2, ("none.png", "mask, reference_mask")),
    ("imacs {d}/good.zarr --mask {d}/file.txt", 2, ("cannot be read as a picture",)),
    ("imacs {d}/good.zarr --mask generated_0", 2, ("in colour",)),
    ("imacs {d}/good.zarr --penalty -1", 2, ("penalty",)),
    ("imacs {d}/good.zarr --threshold 1.5", 2, ("threshold",)),
    ("imacs {d}/part.zarr --partial", 2, ("holds no masks", "give --mask and --reference-mask")),
    ("report {d}/good.zarr -o {o}.txt", 2, (".png",)),
    ("info", 2, ("TRACE", "--help")),
    ("nonsense", 2, ("nonsense", "--help")),
    ("info {d}/good.zarr --colour", 2, ("--colour",)),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].replace("{d}/", "").replace("{o}", "o"))
def test_bad_input_gets_one_line_and_its_exit_code(case: Case, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line, code, words = case
    given = [word.format(d=folder, o=tmp_path / "out") for word in line.split()]
    assert run(given) == code
    captured = capsys.readouterr()
    if code == 0:
        return
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1, captured.err
    assert captured.err.startswith("i2am: ")
    assert [word for word in words if word not in captured.err] == [], captured.err
    assert "unexpected" not in captured.err
    assert list(tmp_path.iterdir()) == []
    assert run([*given, "--json"]) == code
    captured = capsys.readouterr()
    doc = json.loads(captured.out)
    assert captured.err == ""
    if "findings" in doc:
        assert doc["findings"]
    else:
        assert doc["error"]["exit_code"] == code
        assert len(doc["error"]["message"].splitlines()) == 1


@pytest.mark.parametrize(("line", "code"), [("info {d}/nothing", 3), ("map {d}/flip0.zarr --r2g -o {d}/never.npy", 4)])
def test_a_process_ends_with_that_line_and_code(line: str, code: int, folder: Path) -> None:
    given = [word.format(d=folder) for word in line.split()]
    done = subprocess.run([sys.executable, "-P", "-m", "i2am.analyzer.cli", *given], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1)
