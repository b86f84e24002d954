"""Whatever stops a recording, every journalled step is whole and the trace says that it is not complete."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from repository import SUPPORT

from i2am.recorder.store import files
from i2am.recorder.store.writer import Writer
from i2am.schema.codec import decode_probability
from i2am.schema.errors import NoSpace
from i2am.schema.journal import decode_lines
from i2am.schema.trace import TraceRecord
from traces import default_layers, synthetic_trace

pytestmark = [pytest.mark.analyzer, pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")]

STEPS = 6

# A recording in a process of its own; `POINT` names what is replaced by a call that kills it the `NTH` time.
CHILD = """
import os, signal, sys
path, point, nth, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
from i2am.recorder.store import files
from traces import default_layers, synthetic_trace

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def at(owner, name, when, wanted=lambda *a: True):
    real, left = getattr(owner, name), [nth]
    def call(*args, **kwargs):
        if wanted(*args):
            left[0] -= 1
            if left[0] == 0:
                when(real, *args)
        return real(*args, **kwargs)
    setattr(owner, name, call)

def half(real, handle, data):
    os.write(handle, bytes(data)[: len(data) // 2])
    die()

def after(real, *args):
    real(*args)
    die()

ends = lambda name: lambda *args: str(args[-1]).endswith(name)
match point:
    case "mid-file": at(files, "write_all", half)
    case "before-sync": at(files, "_sync", die)
    case "before-rename": at(os, "replace", die)
    case "after-rename": at(os, "replace", after)
    case "mid-line": at(files, "write_all", half, lambda _, data: bytes(data).startswith(b'{"crc32"'))
    case "folder": at(files, "sync_folder", die)
    case "manifest": at(os, "replace", die, ends("manifest.json"))
    case "after-manifest": at(os, "replace", after, ends("manifest.json"))
    case "root": at(os, "replace", die, lambda *a: str(a[-1]) == f"{path}/zarr.json" and os.path.exists(f"{path}/manifest.json"))
print("ready", flush=True)
synthetic_trace(path, steps=6, layers=default_layers()[:2], seed=seed)
"""


def child(path: Path, point: str = "", nth: int = 1, **options: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", CHILD, str(path), point, str(nth), "5"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """What the child would have recorded, had it lived."""
    t = synthetic_trace(tmp_path_factory.mktemp("whole") / "t", steps=STEPS, layers=default_layers()[:2], seed=5)
    return t.probabilities


def check_partial(path: Path, probabilities: list[np.ndarray]) -> int:
    """Every journalled step is whole and right; the rest is visibly absent. How many steps there are."""
    record = TraceRecord.from_json(json.loads((path / "zarr.json").read_text())["attributes"]["i2am"])
    journal = path / "journal.jsonl"
    entries = decode_lines(journal.read_bytes()) if journal.exists() else []
    # A kill after the last rename but before the process has ended leaves a trace that may say that it is complete.
    assert record.status in ("recording", "interrupted") or len(entries) == STEPS
    for entry in entries:
        assert entry.present == (0, 1)
        assert len(entry.files) == 6
        for name, (size, digest, _) in entry.files.items():
            data = (path / name).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (size, digest)
    if entries:
        assert len(record.layers) == 2
        for index in range(2):
            stored = zarr.open_array(path / f"layers/00{index}/probability", mode="r")[:]
            there, expected = (array[:, :, : len(entries)] for array in (decode_probability(stored), probabilities[index]))
            np.testing.assert_allclose(there, expected, rtol=1e-3, atol=1e-12)
            assert not (stored[:, :, len(entries) :] == 0).any()
    return len(entries)


@pytest.mark.parametrize(
    ("point", "nth"),
    [
        ("mid-file", 30), ("before-sync", 15), ("before-rename", 40), ("after-rename", 47), ("folder", 3), ("folder", 12),
        ("mid-line", 1), ("mid-line", 4), ("manifest", 1), ("after-manifest", 1), ("root", 1),
    ],
)  # fmt: skip
def test_killed_at_a_point(tmp_path: Path, whole: list[np.ndarray], point: str, nth: int) -> None:
    process = child(tmp_path / "t", point, nth)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    steps = check_partial(tmp_path / "t", whole)
    assert json.loads((tmp_path / "t/zarr.json").read_text())["attributes"]["i2am"]["status"] == "recording"
    if point == "mid-line":
        assert steps == nth - 1
    if point in ("manifest", "after-manifest", "root"):
        assert steps == STEPS


def test_killed_at_random(tmp_path: Path, whole: list[np.ndarray]) -> None:
    chance, steps = random.Random(20260101), []
    for trial in range(6):
        process = child(tmp_path / str(trial))
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.uniform(0.0, 0.3))
        process.kill()
        process.communicate(timeout=60)
        root = tmp_path / str(trial) / "zarr.json"
        if root.exists() and process.returncode != 0:
            steps.append(check_partial(tmp_path / str(trial), whole))
    assert all(0 <= n <= STEPS for n in steps)


def test_interrupted_from_the_keyboard(tmp_path: Path) -> None:
    script = f"""
import time, numpy as np
from i2am.recorder.store.writer import Writer
from i2am.schema.trace import TraceRecord
from traces import reference_layer
writer = Writer({str(tmp_path / "t")!r}, TraceRecord("id", "recording", 1, ("cond",), 1000))
layer = reference_layer(grid=(1, 1), heads=1)
writer.add_layer(layer)
block = dict(probability=np.ones((1, 1, 1, 16), "f2"), query_lse=np.ones((1, 1, 1), "f4"), token_lse=np.ones((1, 16), "f4"))
try:
    for step in range(1000):
        writer.put(0, 0, "cond", step, block)
        if step == 3: print("ready", flush=True)
        time.sleep(0.02)
        writer.commit(step, evaluation=step, timestep=1.0, sigma=1.0, scheduler_step=step)
except KeyboardInterrupt:
    writer.interrupt("interrupted from the keyboard")
    raise SystemExit(130)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    record = TraceRecord.from_json(json.loads((tmp_path / "t/zarr.json").read_text())["attributes"]["i2am"])
    assert (record.status, record.reason) == ("interrupted", "interrupted from the keyboard")
    entries = decode_lines((tmp_path / "t/journal.jsonl").read_bytes())
    assert 3 <= len(entries) < 1000
    stored = list((tmp_path / "t/layers/000/probability").glob("c.*"))
    assert len(stored) == len(entries), "blocks of a step that was never committed are removed"


def full_after(monkeypatch: pytest.MonkeyPatch, budget: int, code: int = errno.ENOSPC) -> list[int]:
    """A disk that takes `budget` bytes more."""
    left, real = [budget], files.write_all

    def write_all(handle: int, data: bytes) -> None:
        if len(data) > left[0]:
            real(handle, data[: left[0]])
            left[0] = 0
            raise OSError(code, os.strerror(code))
        left[0] -= len(data)
        real(handle, data)

    monkeypatch.setattr(files, "write_all", write_all)
    return left


@pytest.mark.parametrize("budget", [500, 25_000, 30_000, 37_000, 43_000])
def test_a_full_disk(tmp_path: Path, whole: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    path, left = tmp_path / "t", full_after(monkeypatch, budget)
    writers: list[Writer] = []
    real = Writer.__init__
    monkeypatch.setattr(Writer, "__init__", lambda self, *a, **k: (writers.append(self), real(self, *a, **k))[1])
    with pytest.raises(NoSpace, match=f"no space left for .*t: . of {STEPS} steps are recorded and readable"):
        synthetic_trace(path, steps=STEPS, layers=default_layers()[:2], seed=5)
    assert not list(path.rglob("*.partial"))
    if budget == 500:  # not even the root fits
        return
    left[0] = 10**6  # room again: `interrupt` removes what was not committed
    writers[0].interrupt("the disk is full")
    assert writers[0].trace.status == "interrupted"
    assert check_partial(path, whole) == writers[0].committed


def test_a_file_size_limit_of_the_system(tmp_path: Path) -> None:
    """The journal meets a real limit of the kernel, in the middle of a line."""
    script = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
import numpy as np
from i2am.recorder.store.writer import Writer
from i2am.schema.errors import NoSpace
from i2am.schema.trace import TraceRecord
from traces import reference_layer
writer = Writer({str(tmp_path / "t")!r}, TraceRecord("id", "recording", 1, ("cond",), 100))
writer.add_layer(reference_layer(grid=(1, 1), heads=1))
block = dict(probability=np.ones((1, 1, 1, 16), "f2"), query_lse=np.ones((1, 1, 1), "f4"), token_lse=np.ones((1, 16), "f4"))
try:
    for step in range(100):
        writer.put(0, 0, "cond", step, block)
        writer.commit(step, evaluation=step, timestep=1.0, sigma=1.0, scheduler_step=step)
    writer.finish()
except NoSpace as error:
    writer.interrupt(str(error))
    print(writer.committed)
    raise SystemExit(error.exit_code)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert process.returncode == 7, process.stderr
    text = (tmp_path / "t/journal.jsonl").read_bytes()
    assert text.endswith(b"}\n"), "the torn line was taken back"
    assert len(decode_lines(text)) == int(process.stdout) > 3
    record = TraceRecord.from_json(json.loads((tmp_path / "t/zarr.json").read_text())["attributes"]["i2am"])
    assert record.status == "interrupted"


def test_other_errors_of_the_system_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_after(monkeypatch, 25_000, errno.EIO)
    with pytest.raises(OSError, match="Input/output error") as caught:
        synthetic_trace(tmp_path / "t", steps=STEPS, layers=default_layers()[:2])
    assert not isinstance(caught.value, NoSpace)


def test_finish_that_fails_can_still_be_interrupted(tmp_path: Path, whole: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """The arrays were shortened already; the partial trace has their planned length again."""
    t = synthetic_trace(tmp_path / "t", steps=3, planned=STEPS, layers=default_layers()[:2], seed=5, status="recording")
    left = full_after(monkeypatch, 9_000)
    with pytest.raises(NoSpace, match="3 of 6 steps"):
        t.writer.finish()
    left[0] = 10**6
    t.writer.interrupt("the disk is full")
    assert json.loads((tmp_path / "t/layers/000/probability/zarr.json").read_text())["shape"][2] == STEPS
    assert t.writer.trace.steps == STEPS
