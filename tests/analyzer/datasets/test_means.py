"""The mean map of a dataset: its numbers are those of all maps at once, and a trace that does not fit costs the others nothing."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from scipy import stats

from i2am.analyzer import g2r, mean_map, open_trace, r2g, sram, token_map
from i2am.analyzer.cli.main import run
from i2am.analyzer.datasets import means
from i2am.schema.errors import CorruptTrace, InvalidInput, NotATrace, UnknownSelection
from traces import default_layers, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four sound traces; in the last one, one layer was never called."""
    folder = tmp_path_factory.mktemp("good")
    for seed in range(4):
        absent = {(step, 1) for step in range(3)} if seed == 3 else set()
        synthetic_trace(folder / f"run-{seed}.zarr", steps=3, seed=seed, absent=absent)
    return folder


@pytest.fixture
def mixed(good: Path, tmp_path: Path) -> Path:
    """The same, and traces that do not fit: another grid, another number of steps, unfinished, damaged."""
    for path in good.iterdir():
        (tmp_path / path.name).symlink_to(path, target_is_directory=True)
    synthetic_trace(tmp_path / "s-grid.zarr", steps=3, latent_grid=(16, 12))
    synthetic_trace(tmp_path / "s-steps.zarr", steps=2)
    synthetic_trace(tmp_path / "s-part.zarr", steps=2, planned=3, status="interrupted")
    broken = Path(shutil.copytree(good / "run-0.zarr", tmp_path / "s-torn.zarr"))
    file = next(broken.glob("layers/001/probability/c.*"))
    file.write_bytes(file.read_bytes()[:-9] + b"different")
    return tmp_path


def oracle(maps: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Mean and Student's interval, two passes over all maps."""
    values = np.stack(maps).astype(np.float64)
    mean = values.mean(0)
    half = stats.t.ppf(0.975, len(values) - 1) * np.sqrt(((values - mean) ** 2).sum(0) / (len(values) - 1) / len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


@pytest.mark.parametrize(
    ("ask", "options"),
    [
        (r2g, {}),
        (g2r, {"query_mask": "mask"}),
        (partial(sram, at=(2, 3)), {"steps": [0, 2]}),
        (r2g, {"keep": ("time", "head"), "time_groups": 2, "recipe": "i2am-official"}),
        (partial(token_map, group="reference", tokens=[1, 2]), {"layers": [0, 2]}),
    ],
)
def test_it_is_the_mean_of_the_maps_with_students_interval(good: Path, ask: Any, options: dict[str, Any]) -> None:
    found = mean_map(good, ask, **options)
    maps = [ask(open_trace(path), **options).compute() for path in sorted(good.iterdir())]
    assert found["mean"].dims == maps[0].dims
    for name, values in oracle([map.values for map in maps]).items():
        np.testing.assert_allclose(found[name].values, values, rtol=1e-9, atol=1e-12)
    assert found.attrs["traces"] == 4 and (found["count"] == 4).all() and json.loads(found.attrs["skipped"]) == []
    assert (found["low"] <= found["mean"]).all() and (found["mean"] <= found["high"]).all()


def test_cells_that_a_trace_does_not_have_are_means_of_the_others(good: Path) -> None:
    found = mean_map(good, r2g, keep="layer")
    assert found["count"].values[:, 0, 0].tolist() == [4, 3, 4]
    maps = [r2g(open_trace(path), keep="layer").compute().values for path in sorted(good.iterdir())]
    for name, values in oracle([map[1] for map in maps[:3]]).items():
        np.testing.assert_allclose(found[name].values[1], values, rtol=1e-9, atol=1e-12)


def test_it_says_what_all_maps_say(good: Path) -> None:
    found = mean_map(good)
    maps = [r2g(open_trace(path)) for path in good.iterdir()]
    assert found["mean"].attrs["direction"] == "r2g" and found["mean"].attrs["image"] == "generated_0"
    assert "trace" not in found["mean"].attrs and "calls" not in found["mean"].attrs
    assert found["mean"].attrs["column_mass_lost"] == max(map.attrs["column_mass_lost"] for map in maps)
    assert set(found.coords) == {"y", "x"} and set(mean_map([good / "run-0.zarr", good / "run-1.zarr"]).coords) == {"y", "x", "pairs"}
    assert found.attrs["interval"] == "Student's t" and found.attrs["level"] == 0.95


def test_what_does_not_fit_is_skipped_in_words(good: Path, mixed: Path) -> None:
    found = mean_map(mixed)
    for name in ("mean", "low", "high"):
        np.testing.assert_array_equal(found[name], mean_map(good)[name])
    skipped = {row["trace"]: row for row in json.loads(found.attrs["skipped"])}
    assert set(skipped) == {"s-grid", "s-steps", "s-part", "s-torn"} and found.attrs["traces"] == 4
    assert "its map is y 16, x 12, that of run-0 y 8, x 6; the recipe's fields target" in skipped["s-grid"]["message"]
    assert "its number of steps is 2, that of run-0 3" in skipped["s-steps"]["message"]
    assert skipped["s-part"]["type"] == "IncompleteTrace" and skipped["s-torn"]["type"] == "CorruptTrace"


def test_sums_over_equal_steps_fit_and_means_over_any(mixed: Path) -> None:
    two = [mixed / "run-0.zarr", mixed / "s-steps.zarr"]
    assert mean_map(two, steps=slice(0, 2)).attrs["traces"] == 2
    assert mean_map(two, recipe="i2am-official").attrs["traces"] == 1
    part = mean_map([*two[1:], mixed / "s-part.zarr"], partial=True)
    assert part.attrs["traces"] == 2


def test_layers_by_position_mean_the_same_everywhere(good: Path, tmp_path: Path) -> None:
    other = tuple(reference_layer(f"other.{layer.path}", layer.grid, heads=layer.heads) for layer in default_layers())
    path = synthetic_trace(tmp_path / "other.zarr", steps=3, layers=other).path
    for options in ({"layers": [0, 2]}, {"heads": [0]}, {"keep": "layer"}):
        (row,) = json.loads(mean_map([good / "run-0.zarr", path], **options).attrs["skipped"])
        assert "are not those of run-0" in row["message"]
    assert mean_map([good / "run-0.zarr", path], layers="*up_blocks*").attrs["traces"] == 2


def test_one_trace_has_a_mean_and_no_interval(good: Path) -> None:
    found = mean_map(good / "run-1.zarr")
    np.testing.assert_allclose(found["mean"], r2g(open_trace(good / "run-1.zarr")).values)
    assert np.isnan(found["low"]).all() and np.isnan(found["high"]).all()


def test_traces_are_held_one_at_a_time(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[Any]] = []

    def opening(*given: Any, **options: Any) -> Any:
        gc.collect()
        assert sum(ref() is not None for ref in held) <= 1
        held.append(weakref.ref(trace := open_trace(*given, **options)))
        return trace

    monkeypatch.setattr(means, "open_trace", opening)
    mean_map(good, keep="layer")
    assert len(held) == 4


def test_where_no_trace_answers_the_first_error_is_raised(good: Path, mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(NotATrace):
        mean_map(tmp_path / "none")
    with pytest.raises(InvalidInput, match="there is no recipe 'none'"):
        mean_map(good, recipe="none")
    with pytest.raises(UnknownSelection, match="no selected layer has the token group 'text'"):
        mean_map(good, group="text")
    with pytest.raises(CorruptTrace):
        mean_map(mixed / "s-torn.zarr")


def test_the_command_draws_a_strip_or_saves_the_numbers(mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, numbers = tmp_path / "mean.png", tmp_path / "mean.nc"
    assert run(["map", str(mixed), "--mean", "--r2g", "-o", str(picture)]) == 4
    shown = capsys.readouterr()
    assert f"{picture}: r2g" in shown.out and "mean of 4 traces, 95% interval +- " in shown.out
    assert "4 of 8 traces were skipped" in shown.err and "skipped s-grid: " in shown.err
    with Image.open(picture) as sheet:
        assert sheet.width > 3 * 250
        assert json.loads(sheet.text["i2am-map"])["traces"] == 4
    runs = [str(path) for path in sorted(mixed.glob("run-*"))]
    assert run(["map", *runs, "--mean", "--at", "2,3", "-o", str(numbers), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["traces"] == 4 and facts["direction"] == "sram" and facts["skipped"] == [] and facts["half_width"] > 0
    with xr.open_dataset(numbers) as saved:
        found = mean_map(runs, partial(sram, at=(2, 3)))
        for name in ("mean", "low", "high", "count"):
            np.testing.assert_array_equal(saved[name], found[name])
    assert run(["map", runs[0], "--mean", "--g2r", "--keep", "time", "-o", str(tmp_path / "one.png")]) == 0
    shown = capsys.readouterr()
    assert "; of 1 trace" in shown.out and "one trace says nothing about how much traces differ" in shown.err


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ([], "a map is of one trace; --mean makes the mean map of several"),
        (["--mean", "-o", "mean.npy"], "end it in .png, .nc or .zarr"),
        (["--mean", "--text", "a"], "--text says which text a --word is of"),
        (["--mean", "--style", "none"], "no style is called 'none'"),
        (["--mean", "--keep", "rows"], "cannot keep 'rows'"),
    ],
)
def test_bad_input_is_one_line(
    good: Path, more: list[str], reason: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["map", str(good), "--r2g", *more]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
