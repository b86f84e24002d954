"""`seal` makes of what an unfinished recording committed a complete trace, and touches no committed file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from i2am.analyzer import open_trace
from i2am.analyzer.cli.group import i2am
from i2am.analyzer.cli.main import run
from i2am.analyzer.inspection.verify import verify
from i2am.recorder.store.lock import TraceLock
from i2am.recorder.store.recovery import seal
from i2am.schema.errors import AlreadyExists, CorruptTrace, InvalidInput, NotATrace
from i2am.schema.text import Text
from traces import Synthetic, default_layers, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

LAYERS = (*default_layers()[:1], reference_layer("unet.b.attn2", (4, 3), encoding="factors"))


@pytest.fixture(params=["recording", "interrupted"])
def cut(request: pytest.FixtureRequest, tmp_path: Path) -> Synthetic:
    made = synthetic_trace(
        tmp_path / "t.zarr", layers=LAYERS, encoding=None, steps=3, planned=7, status=request.param, absent={(1, 0)},
        texts=[Text("text", "a", ("a",), ())],
    )  # fmt: skip
    made.writer._trace_lock.release()
    return made


def litter(path: Path) -> list[str]:
    """What a kill leaves: temporary names, blocks of a step that was not committed, half a line."""
    left = ["layers/000/probability/c.0.0.3.0.0.0.0.partial", "layers/000/query_lse/c.0.0.3.0.0.0", "layers/007/zarr.json"]
    for name in left:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"half")
    with (path / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"crc32":"0')
    return left


def test_a_sealed_trace_is_complete_and_holds_the_committed_steps(cut: Synthetic) -> None:
    before = open_trace(cut.path, partial=True)
    values = [before.probabilities(i).values for i in range(2)]
    left = litter(cut.path)
    report = verify(cut.path, partial=True)
    assert report.ok, report.findings
    assert set(report.leftovers) == set(left) - {"layers/007/zarr.json"}
    done = seal(cut.path)
    assert (done.trace.steps, done.planned, set(done.removed), done.damaged) == (3, 7, set(left), "")
    report = verify(cut.path)
    assert report.ok, report.findings
    after = open_trace(cut.path)
    assert after.complete
    assert after.record.provenance["sealed"]["planned_steps"] == 7
    for i in range(2):
        np.testing.assert_array_equal(after.probabilities(i).values, values[i])
    with pytest.raises(InvalidInput, match="complete already"):
        seal(cut.path)


def test_committed_files_are_not_touched(cut: Synthetic) -> None:
    committed = [name for entry in cut.writer._committed for name in entry.files]
    before = {name: ((cut.path / name).stat().st_ino, (cut.path / name).stat().st_mtime_ns) for name in committed}
    seal(cut.path)
    assert before == {name: ((cut.path / name).stat().st_ino, (cut.path / name).stat().st_mtime_ns) for name in committed}


def test_damage_is_left_out_on_request_alone(cut: Synthetic) -> None:
    broken = next(cut.path.glob("layers/001/query/c.0.0.2.*"))
    broken.write_bytes(b"x" * broken.stat().st_size)
    with pytest.raises(CorruptTrace, match=r"a file of step 2 .* keep the 2 steps before it with drop_damaged=True"):
        seal(cut.path)
    done = seal(cut.path, drop_damaged=True)
    assert (done.trace.steps, done.damaged) == (2, broken.relative_to(cut.path).as_posix())
    assert verify(cut.path).ok


def test_what_cannot_be_sealed(cut: Synthetic, tmp_path: Path) -> None:
    with pytest.raises(NotATrace):
        seal(tmp_path / "nowhere")
    lock = TraceLock(cut.path)
    with pytest.raises(AlreadyExists, match="is being recorded"):
        seal(cut.path)
    lock.release()
    (cut.path / "notes.txt").write_text("mine")
    with pytest.raises(CorruptTrace, match=r"notes\.txt .* is no file of a trace; move it elsewhere"):
        seal(cut.path)
    (cut.path / "notes.txt").unlink()
    empty = tmp_path / "empty.zarr"
    shutil.copytree(cut.path, empty)
    (empty / "journal.jsonl").unlink()
    with pytest.raises(InvalidInput, match=r"no step of .* is whole"):
        seal(empty)
    root = json.loads((cut.path / "zarr.json").read_text())
    root["attributes"]["i2am"]["layers"][0]["scale"] = 2.5
    (cut.path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(CorruptTrace, match="does not match its own checksum"):
        seal(cut.path)
    with pytest.raises(CorruptTrace, match="does not match its own checksum"):
        open_trace(cut.path, partial=True)


def test_the_command_seals_and_says_what_it_did(cut: Synthetic) -> None:
    litter(cut.path)
    asked = CliRunner().invoke(i2am, ["verify", str(cut.path), "--partial"])
    assert asked.exit_code == 0, asked.output
    done = CliRunner().invoke(i2am, ["seal", str(cut.path)])
    assert done.output == f"{cut.path} is complete now: 3 of 7 planned steps; 3 leftovers removed\n"
    again = run(["seal", str(cut.path), "--json"])
    assert again == 2
    assert CliRunner().invoke(i2am, ["verify", str(cut.path)]).exit_code == 0
