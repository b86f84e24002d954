"""`i2am faithfulness`: the recorded run repeated with each cell of its reference left out, kept cell by cell, read without torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner, Result
from repository import ROOT

from i2am.analyzer import open_effects, open_trace
from i2am.analyzer.cli.main import run as main
from i2am.recorder import Intervention, intervene
from i2am.recorder.cli.faithfulness import faithfulness_command
from i2am.recorder.cli.record import record_command
from i2am.recorder.intervention.outputs import place_effect
from i2am.recorder.specs.loading import load_pipeline, run_arguments
from i2am.recorder.specs.spec import read_spec
from i2am.schema.errors import AlreadyExists, CorruptTrace, InvalidInput, NotATrace, UnsupportedModel

STEPS = 2


def write_spec(folder: Path, name: str = "spec.toml", **changes: str) -> Path:
    text = (ROOT / "examples/demo.toml").read_text(encoding="utf-8").replace("num_inference_steps = 50", f"num_inference_steps = {STEPS}")
    for before, after in {"../recorder": str(ROOT / "recorder"), "person.png": str(ROOT / "examples/person.png"), **changes}.items():
        text = text.replace(before, after)
    for picture in ("mask.png", "garment.png", "garment_mask.png"):
        text = text.replace(f'"{picture}"', json.dumps(str(ROOT / "examples" / picture)))
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def run(*words: Any) -> Result:
    return CliRunner().invoke(faithfulness_command, [*map(str, words)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded run, and its effects on 2 x 2 cells."""
    folder = tmp_path_factory.mktemp("faith")
    assert CliRunner().invoke(record_command, [str(write_spec(folder)), "-o", str(folder / "run.zarr")]).exit_code == 0
    made = run(folder / "spec.toml", folder / "run.zarr", "-o", folder / "faith.zarr", "--cells", "2x2", "--json")
    assert made.exit_code == 0, made.output
    assert "5 trials in 5 runs" in made.stderr
    told = json.loads(made.stdout)
    assert told["cells"] == [2, 2] and told["trace"] == open_trace(folder / "run.zarr").record.id
    return folder


def test_an_effect_is_how_far_the_picture_moves_in_each_patch(folder: Path) -> None:
    spec = read_spec(folder / "spec.toml")
    pipeline, (call, _) = load_pipeline(spec), run_arguments(spec)
    before, after = (
        intervene(pipeline, what, **call, output_type="np").images[0].astype(np.float64)
        for what in ((), Intervention("drop", group="reference", cells=[(1, 0)], lattice=(2, 2)))
    )
    effects = open_effects(folder / "faith.zarr", open_trace(folder / "run.zarr")).effect
    assert effects.dims == ("cell_y", "cell_x", "y", "x") and effects.notnull().all()
    rows, columns = effects.shape[2:]
    moved = np.abs(before - after).mean(2).reshape(rows, before.shape[0] // rows, columns, -1).mean((1, 3))
    np.testing.assert_allclose(effects[1, 0], moved, atol=1e-6)
    assert float(effects[1, 0].max()) > 0 and not np.array_equal(effects[0, 0], effects[1, 1])
    told = open_effects(folder / "faith.zarr").attrs
    assert told["kind"] == "drop" and told["group"] == "reference"


def test_plain_zarr_reads_the_same(folder: Path) -> None:
    plain = xr.open_zarr(folder / "faith.zarr", consolidated=False)["effect"]
    np.testing.assert_array_equal(plain, open_effects(folder / "faith.zarr").effect)


def test_finished_cells_are_kept_and_the_rest_is_added(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faith = tmp_path / "faith.zarr"
    shutil.copytree(folder / "faith.zarr", faith)
    whole = open_effects(faith)
    (faith / "effect/c.1.0.0.0").unlink()
    kept = (faith / "effect/c.0.1.0.0").stat().st_mtime_ns
    assert np.isnan(open_effects(faith).effect[1, 0]).all() and open_effects(faith).effect[0].notnull().all()
    again = run(folder / "spec.toml", folder / "run.zarr", "-o", faith, "--cells", "2x2")
    assert again.exit_code == 0 and "1 trials in 1 runs" in again.stderr
    xr.testing.assert_identical(open_effects(faith), whole)
    assert (faith / "effect/c.0.1.0.0").stat().st_mtime_ns == kept
    monkeypatch.setattr("i2am.recorder.specs.loading.load_pipeline", None)  # nothing is left to do, so no model is loaded
    assert run(folder / "spec.toml", folder / "run.zarr", "-o", faith, "--cells", "2x2").exit_code == 0


def test_an_interrupted_experiment_keeps_what_it_has(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []

    def stop(pipeline: Any, what: Intervention, **call: Any) -> Any:
        tried.append(what.cells)
        if len(tried) == 3:
            raise KeyboardInterrupt
        return intervene(pipeline, what, **call)

    monkeypatch.setattr("i2am.recorder.intervention.effects.intervene", stop)
    words = (folder / "spec.toml", folder / "run.zarr", "-o", tmp_path / "faith.zarr", "--cells", "2x2")
    stopped = run(*words)
    assert stopped.exit_code != 0 and "all but 3 of 5 trials; the same command goes on" in stopped.stderr
    assert open_effects(tmp_path / "faith.zarr").effect.notnull().all(("y", "x")).values.tolist() == [[True, True], [False, False]]
    monkeypatch.undo()
    assert run(*words).exit_code == 0
    xr.testing.assert_equal(open_effects(tmp_path / "faith.zarr"), open_effects(folder / "faith.zarr"))
    assert run(*words, "--overwrite").exit_code == 0
    assert open_effects(tmp_path / "faith.zarr").attrs["id"] != open_effects(folder / "faith.zarr").attrs["id"]


class Entry:
    """An entry point that ranks cells by their number."""

    def load(self) -> Any:
        return lambda path, **asked: {"attention": np.arange(4).reshape(asked["cells"])}


def test_all_trials_are_made_several_in_one_run_and_added_to_those_that_are_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faith = tmp_path / "faith.zarr"
    shutil.copytree(folder / "faith.zarr", faith)
    words = (folder / "spec.toml", folder / "run.zarr", "-o", faith, "--cells", "2x2", "--batch", "8")
    monkeypatch.setattr("i2am.recorder.intervention.orders.entry_points", lambda group: [])
    plain = run(*words, "--trials", "curves")
    assert plain.exit_code == 0 and "28 trials in 4 runs" in plain.stderr and "no maps that rank them are installed" in plain.stderr
    monkeypatch.setattr("i2am.recorder.intervention.orders.entry_points", lambda group: [Entry()])
    made = run(*words, "--trials", "pixels,layers,curves", "--json")
    assert made.exit_code == 0 and "25 trials in 7 runs" in made.stderr
    told = json.loads(made.stdout)
    assert told["trials"] == ["cells", "pixels", "without", "layers", "curves"] and told["orders"] == ["truth", "random", "attention"]
    found = open_effects(faith, open_trace(folder / "run.zarr"))
    assert all(values.notnull().all() for values in found.values()) and found.attrs["batch"] == 8
    xr.testing.assert_equal(found.effect, open_effects(folder / "faith.zarr").effect)
    np.testing.assert_allclose(found.deletion.sel(order="attention", share=0.02), found.effect[1, 1], atol=1e-5)
    assert run(*words).exit_code == 0 and open_effects(faith).identical(found)  # cells are whole, and the record keeps what it has


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--trials", "cell"), "--trials cell: 'cell' is none of cells, pixels"),
        (("--branches", "left"), "'--branches': 'left' is not one of"),
    ],
    ids=str,
)
def test_an_unknown_name_is_one_line_before_anything_is_made(
    folder: Path, tmp_path: Path, more: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (folder / "spec.toml", folder / "run.zarr", "-o", tmp_path / "faith.zarr", *more)
    assert main(["faithfulness", *map(str, words)]) == 2
    found = capsys.readouterr().err.strip()
    assert said in found and "\n" not in found and not (tmp_path / "faith.zarr").exists()


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        (["--cells", "2x3"], AlreadyExists, "effects of another experiment or run"),
        (["--cells", "2x2", "--kind", "zero"], AlreadyExists, "--overwrite|overwrite=True"),
        (["--cells", "wide"], InvalidInput, "write 8x8"),
        (["--cells", "40x2"], InvalidInput, "--cells 40x2 is finer than the|cells=.40x2. is finer than the"),
        (["--cells", "2x2", "--group", "shirt"], InvalidInput, "the trace has reference; choose"),
        (["--cells", "2x2", "--sample", "1"], InvalidInput, "has samples 0 to 0"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_before_a_model_is_loaded(
    folder: Path, more: list[str], error: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("i2am.recorder.specs.loading.load_pipeline", None)
    found = run(folder / "spec.toml", folder / "run.zarr", "-o", folder / "faith.zarr", *more)
    assert isinstance(found.exception, error)
    with pytest.raises(error, match=said):
        raise found.exception


def test_a_run_that_is_not_the_traces_or_too_long_or_random_is_refused(folder: Path, tmp_path: Path) -> None:
    other = write_spec(tmp_path, **{"seed = 0": "seed = 1"})
    random = write_spec(tmp_path, "random.toml", **{"seed = 0\n": "\n"})
    for spec, more, error, said in (
        (other, [], InvalidInput, "another picture than the trace has"),
        (random, [], UnsupportedModel, "two different outputs"),
        (folder / "spec.toml", ["--budget", "0"], InvalidInput, "5 trials in .* more than .*budget.*cells"),
        (folder / "spec.toml", ["--cells", "99x99"], InvalidInput, "finer than the 16 x 16 tokens"),
    ):
        found = run(spec, folder / "run.zarr", "-o", tmp_path / "faith.zarr", "--cells", "2x2", *more)
        with pytest.raises(error, match=said):
            raise found.exception  # type: ignore[misc]
        assert not list(tmp_path.glob("faith.zarr/effect/c.*"))
        assert not (tmp_path / "faith.zarr").exists() or "99x99" in more
    assert isinstance(run(folder / "spec.toml", tmp_path, "-o", tmp_path / "faith.zarr").exception, NotATrace)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    found = run(folder / "spec.toml", folder / "run.zarr", "-o", tmp_path / "mine", "--overwrite")
    assert isinstance(found.exception, AlreadyExists) and (tmp_path / "mine/notes.txt").exists()


def test_damaged_and_foreign_effects_are_refused(folder: Path, tmp_path: Path) -> None:
    faith = tmp_path / "faith.zarr"
    shutil.copytree(folder / "faith.zarr", faith)
    cell = faith / "effect/c.0.0.0.0"
    data = bytearray(cell.read_bytes())
    data[0] ^= 1
    for changed in (bytes(data), bytes(data[:-1]), b"", bytes(2**20)):
        cell.write_bytes(changed)
        with pytest.raises(CorruptTrace, match=r"effect/c\.0\.0\.0\.0"):
            open_effects(faith)
    cell.unlink()
    (faith / "effect/zarr.json").write_text((faith / "effect/zarr.json").read_text().replace("float32", "float64"))
    with pytest.raises(CorruptTrace, match="not what its record plans"):
        open_effects(faith)
    with pytest.raises(NotATrace, match="holds no effects"):
        open_effects(folder / "run.zarr")
    with pytest.raises(NotATrace, match="there is no"):
        open_effects(tmp_path / "nowhere.zarr")
    document = json.loads((folder / "faith.zarr/zarr.json").read_text())
    for field, value in (("trace", "another"), ("cells", [0, 2]), ("kind", "burn"), ("version", 2)):
        changed_record = {**document["attributes"]["i2am_effects"], field: value}
        (faith / "zarr.json").write_text(json.dumps({**document, "attributes": {"i2am_effects": changed_record}}))
        with pytest.raises((InvalidInput, CorruptTrace)):
            open_effects(faith, open_trace(folder / "run.zarr"))


def test_patches_that_do_not_divide_the_picture_are_means_of_what_they_touch() -> None:
    before, after = np.zeros((1, 5, 4, 3), np.float32), np.zeros((1, 5, 4, 3), np.float32)
    after[0, 4, 3] = 1
    found = place_effect(before, after, (2, 2))
    assert found.shape == (2, 2) and found[1, 1] == pytest.approx(1 / 6) and not found[0].any()


def test_what_describes_an_array_is_written_anew_where_it_was_lost(folder: Path, tmp_path: Path) -> None:
    faith = tmp_path / "faith.zarr"
    shutil.copytree(folder / "faith.zarr", faith)
    (faith / "effect/zarr.json").unlink()
    assert run(folder / "spec.toml", folder / "run.zarr", "-o", faith, "--cells", "2x2").exit_code == 0
    xr.testing.assert_identical(open_effects(faith), open_effects(folder / "faith.zarr"))


def test_another_seed_is_refused_though_its_picture_is_near(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("i2am.recorder.intervention.outputs.NEAR", 255.0)
    other = write_spec(tmp_path, **{"seed = 0": "seed = 1"})
    words = (other, folder / "run.zarr", "-o", tmp_path / "faith.zarr", "--cells", "2x2")
    assert main(["faithfulness", *map(str, words)]) == 2
    assert "whose run had seed=0, not 1" in capsys.readouterr().err
    words = (folder / "spec.toml", folder / "run.zarr", "-o", tmp_path / "faith.zarr", "--group", "shirt")
    assert main(["faithfulness", *map(str, words)]) == 2
    assert "--group shirt: cells need" in capsys.readouterr().err
