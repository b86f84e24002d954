"""Rows that are kept as they are finished: what counts for the next run, what does not, and shares of a job array."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from i2am.analyzer.cli.main import run
from i2am.analyzer.datasets import rows
from i2am.analyzer.datasets.row_files import share_of
from i2am.analyzer.storage.storage import Storage
from i2am.analyzer.store.discovery import Member
from traces import synthetic_trace

pytestmark = pytest.mark.analyzer

KEPT = Path("table.csv.rows.jsonl")
ASK = ("evaluate", "traces", "--jobs", "1", "-o", "table.csv")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six sound traces of different numbers."""
    folder = tmp_path_factory.mktemp("made")
    for seed in range(6):
        synthetic_trace(folder / f"pair-{seed}.zarr", steps=2, seed=seed)
    return folder


@pytest.fixture(autouse=True)
def opened(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """A copy of the traces in this folder; how often each was opened."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, "traces")
    count: Counter[str] = Counter()
    opening = rows.open_trace

    def counted(storage: Storage, partial: bool) -> object:
        count[Path(storage.place).stem] += 1
        return opening(storage, partial=partial)

    monkeypatch.setattr(rows, "open_trace", counted)
    return count


def spoil(name: str) -> bytes:
    """Change a file of a trace so that it is skipped; what was in it."""
    file = next(Path("traces", name).glob("layers/000/probability/c.*"))
    data = file.read_bytes()
    file.write_bytes(data[:-9] + bytes(9))
    return data


def mend(name: str, data: bytes) -> None:
    next(Path("traces", name).glob("layers/000/probability/c.*")).write_bytes(data)


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int, *arguments: str) -> None:
    """A run that is interrupted after so many rows."""
    evaluate, done = rows.evaluate_trace, []

    def limited(*given: object) -> object:
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(given)
        return evaluate(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("i2am.analyzer.datasets.dataset.evaluate_trace", limited)
        assert run([*ASK, *arguments]) == 130


def test_finished_rows_are_not_asked_again_and_the_table_is_the_same(opened: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(list(ASK)) == 0
    whole = Path("table.csv").read_bytes()
    assert not KEPT.exists(), "nothing is left beside a table that is whole"
    Path("table.csv").unlink()
    interrupted(monkeypatch, 4)
    opened.clear()
    assert run([*ASK, "--resume"]) == 0
    assert sorted(opened) == ["pair-4", "pair-5"]
    assert Path("table.csv").read_bytes() == whole
    assert sorted(os.listdir()) == ["table.csv", "traces"]


def test_a_line_that_was_torn_is_a_row_that_was_not_written(opened: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(monkeypatch, 4)
    kept = KEPT.read_bytes()
    for length, missing in ((len(kept) - 9, 3), (len(kept) - 1, 2), (10, 6), (0, 6)):
        KEPT.write_bytes(kept[:length])
        opened.clear()
        assert run([*ASK, "--resume"]) == 0
        assert len(opened) == missing
        assert Path("table.csv").read_text().count("\n") == 7
    KEPT.write_bytes(kept[: len(kept) - 9])
    interrupted(monkeypatch, 1, "--resume")
    opened.clear()
    assert run([*ASK, "--resume"]) == 0
    assert len(opened) == 2, "what came after the torn line counts"


def test_skipped_traces_are_asked_again_and_only_they(opened: Counter[str], capsys: pytest.CaptureFixture[str]) -> None:
    data = spoil("pair-2.zarr")
    assert run(list(ASK)) == 4
    assert KEPT.exists() and Path("table.csv").read_text().count("\n") == 6
    mend("pair-2.zarr", data)
    opened.clear()
    assert run([*ASK, "--resume"]) == 0
    assert sorted(opened) == ["pair-2"]
    assert Path("table.csv").read_text().count("\n") == 7
    assert not KEPT.exists()


def test_a_trace_that_was_recorded_anew_is_asked_anew(opened: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(monkeypatch, 6 - 1)
    shutil.rmtree("traces/pair-1.zarr")
    synthetic_trace(Path("traces/pair-1.zarr"), steps=2, seed=77)
    opened.clear()
    assert run([*ASK, "--resume"]) == 0
    assert sorted(opened) == ["pair-1", "pair-5"]


def test_rows_of_traces_that_are_gone_stay(
    opened: Counter[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(list(ASK)) == 0
    whole = sorted(Path("table.csv").read_text().splitlines())
    interrupted(monkeypatch, 3, "--overwrite")
    shutil.rmtree("traces/pair-0.zarr")
    shutil.move("traces/pair-1.zarr", "elsewhere.zarr")
    assert run([*ASK, "--resume"]) == 0
    assert sorted(Path("table.csv").read_text().splitlines()) == whole


def test_rows_that_are_there_are_neither_lost_nor_mixed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        before = KEPT.read_bytes()
        capsys.readouterr()
        assert run([*ASK, *arguments]) == 2
        assert KEPT.read_bytes() == before
        (line,) = capsys.readouterr().err.splitlines()
        return line

    interrupted(monkeypatch, 4)
    assert "has rows of a run that did not end" in refused()
    assert "rows of another question (layers: nothing then, ('*mid*',) now)" in refused("--resume", "--layers", "*mid*")
    assert "(metric: ('imacs_g', 'imacs_r') then, ('iou_g',) now)" in refused("--resume", "--metric", "iou_g")
    with monkeypatch.context() as patch:
        patch.setattr("i2am.analyzer.datasets.row_files.version", lambda name: "9.9")
        assert "(release: " in refused("--resume")
    KEPT.write_text('{"mine": 1}\n')
    assert "holds no rows that this release wrote" in refused("--resume")
    assert run([*ASK, "--overwrite"]) == 0
    assert not KEPT.exists()


def test_a_changed_mask_file_is_another_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    picture = Image.new("L", (48, 64))
    picture.paste(255, (0, 0, 20, 64))
    picture.save("mask.png")
    interrupted(monkeypatch, 4, "--mask", "mask.png")
    picture.paste(255, (0, 0, 30, 64))
    picture.save("mask.png")
    assert run([*ASK, "--mask", "mask.png", "--resume"]) == 2
    assert "rows of another question (mask: " in capsys.readouterr().err


def test_positions_are_held_against_traces_of_earlier_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    interrupted(monkeypatch, 4, "--steps", "0")
    synthetic_trace(Path("traces/zebra.zarr"), steps=3, seed=9)
    assert run([*ASK, "--steps", "0", "--resume", "--json"]) == 4
    (row,) = json.loads(capsys.readouterr().out)["skipped"]
    assert row["trace"] == "zebra" and "it has 3 steps, pair-0 has 2" in row["message"]


def test_shares_together_are_the_whole(opened: Counter[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(list(ASK)) == 0
    whole = Path("table.csv").read_bytes()
    Path("table.csv").unlink()
    for index in (3, 1, 2):
        opened.clear()
        capsys.readouterr()
        assert run([*ASK, "--rows", f"{index}/4", "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)["traces"]) == len(opened)
    assert sorted(path.name for path in Path().glob("table*")) == [f"table.csv.rows-{i}-of-4.jsonl" for i in (1, 2, 3)]
    opened.clear()
    assert run([*ASK, "--resume"]) == 0, "what no share has done is done now"
    assert sorted(opened) == ["pair-3"]
    assert Path("table.csv").read_bytes() == whole
    assert sorted(os.listdir()) == ["table.csv", "traces"]


def test_a_share_goes_on_and_begins_anew_by_itself(opened: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(monkeypatch, 1, "--rows", "1/2")
    assert run([*ASK, "--rows", "2/2"]) == 0
    assert run([*ASK, "--rows", "1/2"]) == 2
    opened.clear()
    assert run([*ASK, "--rows", "1/2", "--resume"]) == 0
    assert sorted(opened) == ["pair-2", "pair-4"]
    opened.clear()
    assert run([*ASK, "--rows", "1/2", "--overwrite"]) == 0
    assert sorted(opened) == ["pair-0", "pair-2", "pair-4"]
    opened.clear()
    assert run([*ASK, "--resume"]) == 0
    assert not opened


def test_shares_stay_what_they_are_where_traces_are_removed_meanwhile(opened: Counter[str]) -> None:
    assert run([*ASK, "--rows", "1/2", "--after", "rm -r {path}"]) == 0
    opened.clear()
    assert run([*ASK, "--rows", "2/2"]) == 0
    assert sorted(opened) == ["pair-1", "pair-3", "pair-5"]


def test_more_shares_than_traces_are_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*ASK, "--rows", "9/10"]) == 0
    assert "0 traces" in capsys.readouterr().out
    members = [Member(str(i), Path(str(i))) for i in range(5)]
    assert [len(share_of(members, (i, 7))) for i in range(1, 8)] == [1] * 5 + [0] * 2


@pytest.mark.parametrize("text", ["0/4", "5/4", "3", "a/b", "/", "-1/4", "1/0", "1/4/2"])
def test_a_share_that_is_none_is_one_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*ASK, "--rows", text]) == 2
    assert "write I/N with I from 1 to N" in capsys.readouterr().err


def test_resuming_needs_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "traces", "--resume"]) == 2
    assert "say which with -o FILE" in capsys.readouterr().err


def test_a_trace_that_cannot_be_read_any_more_is_not_gone(opened: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(monkeypatch, 4)
    for name in os.listdir("traces/pair-0.zarr"):
        path = Path("traces/pair-0.zarr", name)
        path.unlink() if path.is_file() else shutil.rmtree(path)
    assert run([*ASK, "--resume"]) == 4
    assert "pair-0" not in Path("table.csv").read_text()
