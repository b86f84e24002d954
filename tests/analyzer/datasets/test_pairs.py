"""Two folders pair by pair: numbers are those of each trace alone, and what has no partner or no answer is named."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from i2am.analyzer import differ_pairs, judge, open_trace
from i2am.analyzer.cli.main import run
from i2am.analyzer.numerics.statistics import bootstrap_mean
from i2am.schema.errors import CorruptTrace, InvalidInput, NotATrace
from traces import synthetic_trace

pytestmark = pytest.mark.analyzer

METRICS = ("imacs_g", "entropy_r")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Five pairs, of which one is broken on one side, and traces that have no partner."""
    root = tmp_path_factory.mktemp("two")
    for seed in range(5):
        synthetic_trace(root / "a" / f"run-{seed}.zarr", steps=2, seed=seed)
        synthetic_trace(root / "b" / f"run-{seed}.zarr", steps=2, seed=10 + seed)
    next((root / "b" / "run-3.zarr").glob("layers/001/probability/c.*")).write_bytes(b"torn")
    shutil.copytree(root / "a" / "run-0.zarr", root / "a" / "more.zarr")
    shutil.copytree(root / "a" / "run-0.zarr", root / "b" / "other.zarr")
    return root / "a", root / "b"


def test_differences_are_those_of_each_pair_alone(two: tuple[Path, Path]) -> None:
    found = differ_pairs(*two, metrics=METRICS, heads=[0, 1])
    names = [f"run-{i}" for i in (0, 1, 2, 4)]
    assert found["pair"].values.tolist() == names and found["metric"].values.tolist() == list(METRICS)
    alone = np.array([
        [[float(judge(open_trace(side / f"{name}.zarr"), [metric], heads=[0, 1])[metric]) for name in names] for metric in METRICS]
        for side in two
    ])  # fmt: skip
    np.testing.assert_allclose(found["first"], alone[0])
    np.testing.assert_allclose(found["second"], alone[1])
    np.testing.assert_allclose(found["difference"], alone[1] - alone[0])
    for metric, values in zip(METRICS, alone[1] - alone[0], strict=True):
        each, interval = found.sel(metric=metric), bootstrap_mean(values)
        assert (each["mean"], each["low"], each["high"]) == pytest.approx((values.mean(), interval.low, interval.high))
        assert (each["up"], each["down"], each["count"]) == ((values > 0).sum(), (values < 0).sum(), 4)
    assert json.loads(found.attrs["unpaired"]) == {"first": ["more"], "second": ["other"]}
    (skipped,) = json.loads(found.attrs["skipped"])
    assert skipped["trace"] == "run-3" and skipped["path"] == str(two[1] / "run-3.zarr") and skipped["type"] == "CorruptTrace"


def test_swapping_turns_the_sign_and_a_folder_does_not_differ_from_itself(two: tuple[Path, Path]) -> None:
    there, back = differ_pairs(*two, metrics="entropy_r"), differ_pairs(*two[::-1], metrics="entropy_r")
    np.testing.assert_array_equal(there["difference"], -back["difference"])
    assert (there["up"] == back["down"]).all() and (there["down"] == back["up"]).all()
    same = differ_pairs(two[0], two[0], metrics="entropy_r")
    assert not same["difference"].any() and [int(same[name][0]) for name in ("up", "down", "count")] == [0, 0, 6]


def test_what_cannot_be_compared(two: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no two have the same: the first are more, the second run-1, run-2$"):
        differ_pairs(two[0] / "more.zarr", [two[1] / "run-1.zarr", two[1] / "run-2.zarr"])
    with pytest.raises(CorruptTrace, match=r"of none of the 1 pairs can both be asked; the first, .*b/run-3\.zarr: "):
        differ_pairs(two[0] / "run-3.zarr", two[1] / "run-3.zarr")
    with pytest.raises(NotATrace):
        differ_pairs(two[0], tmp_path)


def test_the_command_prints_and_saves(two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, paths = tmp_path / "pairs.csv", [str(path) for path in two]
    assert run(["diff", *paths, "--metric", "imacs_g,entropy_r", "-o", str(table)]) == 4
    shown = capsys.readouterr()
    found = differ_pairs(*two, metrics=METRICS)
    head, imacs, _ = (line.split() for line in shown.out.splitlines())
    assert head[:4] == ["metric", "first", "second", "difference"] and imacs[0] == "imacs_g"
    assert imacs[3] == f"{float(found['mean'][0]):.4f}" and imacs[-4:] == [*(str(int(found[n][0])) for n in ("up", "down")), "4", "higher"]
    assert "skipped run-3: " in shown.err and "1 of 10 traces were skipped" in shown.err
    assert "only the first has more" in shown.err and "only the second has other" in shown.err
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["pair"] for row in rows] == found["pair"].values.tolist()
    np.testing.assert_array_equal([float(row["entropy_r_difference"]) for row in rows], found["difference"][1])
    assert rows[1]["path_second"] == str(two[1] / "run-1.zarr")
    assert run(["diff", *paths, "--json"]) == 4
    facts = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in facts["metrics"]] == ["imacs_g", "imacs_r"] and len(facts["pairs"]) == 4
    assert facts["unpaired"] == {"first": ["more"], "second": ["other"]} and len(facts["skipped"]) == 1
    mean = np.mean([row["imacs_g_difference"] for row in facts["pairs"]])
    assert facts["metrics"][0]["difference"] == pytest.approx(mean)
    assert facts["metrics"][0]["second"] - facts["metrics"][0]["first"] == pytest.approx(mean)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["-o", "diff.png"], "end it in .csv, .parquet or .tex"),
        (["--metric", "imacs"], "there is no metric 'imacs'; did you mean imacs_"),
        (["--recipe", "none"], "there is no recipe 'none'"),
    ],
)
def test_bad_input_is_one_line(two: tuple[Path, Path], more: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["diff", *map(str, two), *more]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
    assert run(["diff", str(two[0]), str(two[1] / "run-0.zarr")]) == 2
    assert "run-0.zarr is one trace and the other a folder" in capsys.readouterr().err
