"""Effects of trials: several in one run as each by itself, curves by their orders, pixels of the right reference, videos."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pipelines_transformers as transformers
import pipelines_video as videos
import pytest
from repository import ROOT

import pipelines
from i2am.analyzer import open_effects, open_trace
from i2am.recorder import Intervention, alter_pixels, intervene, record
from i2am.recorder.intervention.effects import Replay, alter_call, measure, prepare
from i2am.recorder.intervention.orders import map_orders, random_order
from i2am.recorder.intervention.outputs import check_recorded, pictures_of
from i2am.recorder.intervention.trials import check_trials, group_image, patch_grid, read_trials, reading_layers, reference_group
from i2am.recorder.store.effects import EffectStore, read_generated, read_run
from i2am.schema.errors import CorruptTrace, InvalidInput, UnknownSelection, UnsupportedModel
from i2am.schema.experiments.effects import EffectRecord
from i2am.schema.trace import TraceRecord

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

BUILDERS: dict[str, Callable[[str], Any]] = {
    "ip-full": pipelines.build,
    **dict.fromkeys(("kontext-guided", "klein", "qwen-edit"), transformers.build),
    "wan-first": videos.build,
}


def record_of(run: TraceRecord, trials: str, **changes: Any) -> EffectRecord:
    group = reference_group(run, None)
    layers = reading_layers(run, group, ())
    names, heads = tuple(layer.name for layer in layers), tuple(layer.model_heads for layer in layers)
    fields = {"cells": (1, 2), "layer_names": names, "layer_heads": heads, **changes}
    return EffectRecord(id="one", trace=run.id, kind="drop", group=group, grid=patch_grid(run), trials=read_trials(trials), **fields)


def effects_of(path: Path, replay: Replay, what: EffectRecord, run: TraceRecord, **orders: Any) -> Any:
    store = EffectStore(path, dataclasses.replace(what, batch=replay.batch))
    with store.opened():
        measure(replay, store, orders, group_image(run, what.group))
    return open_effects(path)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pipeline, call = pipelines.build("ip-full")
    path = tmp_path_factory.mktemp("run") / "run.zarr"
    record(pipeline, path, progress=False, **call())
    return pipeline, call, read_run(path), prepare(pipeline, call(), 0, 1, 1), path


@pytest.mark.parametrize("family", BUILDERS)
def test_several_trials_in_one_run_change_what_each_changes_alone(family: str, tmp_path: Path) -> None:
    pipeline, call = BUILDERS[family](family)
    record(pipeline, tmp_path / "run.zarr", progress=False, **call())
    run = read_run(tmp_path / "run.zarr")
    what, found = record_of(run, "cells"), []
    recorded = read_generated(tmp_path / "run.zarr", run, 0)
    assert recorded is not None and recorded.ndim == 4
    for batch in (1, 3):
        replay = prepare(pipeline, call(), 0, batch, run.samples)
        check_recorded(replay.picture, recorded)
        found.append(effects_of(tmp_path / f"{batch}.zarr", replay, what, run))
    alone, together = found
    assert set(alone) == {"effect", "without"} and together.attrs["batch"] == 3
    for name in alone:
        np.testing.assert_allclose(together[name], alone[name], atol=1e-5)
    assert float(alone.without.max()) > 1e-4


def test_a_video_is_the_mean_of_its_frames(tmp_path: Path) -> None:
    pipeline, call = videos.build("wan-first")
    record(pipeline, tmp_path / "run.zarr", progress=False, **call())
    run = read_run(tmp_path / "run.zarr")
    replay = prepare(pipeline, call(), 0, 1, 1)
    found = effects_of(tmp_path / "faith.zarr", replay, record_of(run, "without"), run).without
    before, after = (pictures_of(intervene(pipeline, what, **{**call(), "output_type": "np"}))[0].astype(np.float64)
                     for what in ((), Intervention("zero", group="reference")))  # fmt: skip
    rows, columns = found.shape
    moved = np.abs(before - after).mean((0, 3)).reshape(rows, before.shape[1] // rows, columns, -1).mean((1, 3))
    np.testing.assert_allclose(found, moved, atol=1e-6)
    recorded = read_generated(tmp_path / "run.zarr", run, 0)
    np.testing.assert_array_equal(recorded, open_trace(tmp_path / "run.zarr").image("generated_0"))
    with pytest.raises(InvalidInput, match="another picture than the trace has"):
        check_recorded(replay.picture[::-1], recorded)
    file = next((tmp_path / "run.zarr/images/generated_0").glob("c.*"))
    for data in (file.read_bytes()[:-1], file.read_bytes()[:9], b"", b"\xff" * 300):
        file.write_bytes(data)
        with pytest.raises(CorruptTrace, match="copy the trace again"):
            read_generated(tmp_path / "run.zarr", run, 0)


def test_silencing_is_zero_in_each_layer_and_head(adapter: Any, tmp_path: Path) -> None:
    pipeline, call, run, replay, _ = adapter
    found = effects_of(tmp_path / "faith.zarr", replay, record_of(run, "layers,heads"), run)
    layer = found.layer.values[1]
    path = layer.partition("#")[0]

    def moved(**where: Any) -> Any:
        changed = pictures_of(intervene(pipeline, Intervention("zero", group="reference", **where), **{**call(), "output_type": "np"}))[0]
        return np.abs(changed - replay.picture).mean()

    for expected, effect in (
        (moved(), found.without),
        (moved(layers=[path]), found.layers.sel(layer=layer)),
        (moved(layers=[path], heads=1), found.heads.sel(layer=layer, head=1)),
    ):
        np.testing.assert_allclose(effect.mean(), expected, rtol=1e-4)


def test_curves_leave_out_what_their_orders_rank_first(adapter: Any, tmp_path: Path) -> None:
    pipeline, call, run, replay, _ = adapter
    mine = np.array([[0.1, np.nan], [0.3, 0.3]])
    what = record_of(run, "curves", cells=(2, 2), orders=("truth", "mine", "random"), shares=(0.02, 0.5, 0.7))
    random = random_order((2, 2))
    found = effects_of(tmp_path / "faith.zarr", replay, what, run, mine=mine, random=random)

    def change(cells: Any) -> Any:
        dropped = Intervention("drop", group="reference", cells=cells, lattice=(2, 2))
        changed = pictures_of(intervene(pipeline, dropped, **{**call(), "output_type": "np"}))[0]
        return np.abs(changed - replay.picture).mean()

    truth = found.effect.mean(("y", "x")).values
    for order, rank in (("truth", truth), ("mine", np.nan_to_num(mine, nan=-1)), ("random", random)):
        cells = [divmod(int(index), 2) for index in np.argsort(-rank.ravel(), kind="stable")]
        for share, count in ((0.02, 1), (0.5, 2), (0.7, 3)):
            one = found.sel(order=order, share=share)
            np.testing.assert_allclose(one.deletion.mean(), change(cells[:count]), rtol=1e-4)
            np.testing.assert_allclose(one.insertion.mean(), change(cells[count:]), rtol=1e-4)
    later = EffectStore(tmp_path / "faith.zarr", dataclasses.replace(what, orders=("truth", "mine", "random", "gone")))
    with later.opened(), pytest.raises(InvalidInput, match=r"leaves cells out by gone.*install"):
        measure(replay, later, {}, None)


def test_pixels_are_those_of_the_reference_within_what_its_encoder_sees(adapter: Any, tmp_path: Path) -> None:
    pipeline, call, run, replay, _ = adapter
    given, image = call(), group_image(run, "reference")
    assert image is not None
    image = dataclasses.replace(image, window=(4.0, 4.0, 28.0, 28.0))
    altered = alter_call(pipeline, given, image, [(0, 1)], (2, 2))
    reference = given["ip_adapter_image"]
    expected = alter_pixels(reference[0] if isinstance(reference, list) else reference, [(0, 1)], (2, 2), window=image.window)
    changed = altered["ip_adapter_image"]
    np.testing.assert_array_equal(np.asarray(changed[0] if isinstance(changed, list) else changed), np.asarray(expected))
    assert all(altered[name] is value for name, value in given.items() if not isinstance(value, list) and name != "ip_adapter_image")
    found = effects_of(tmp_path / "faith.zarr", replay, record_of(run, "pixels"), run)
    assert set(found) == {"pixels", "without"} and (found.pixels.mean(("y", "x")) > 0).all()
    with pytest.raises(UnsupportedModel, match=r"no argument of this call.*leave pixels out"):
        alter_call(pipeline, {"prompt": "a"}, image, [(0, 0)], (2, 2))


@pytest.mark.parametrize(("batch", "runs", "seconds"), [(1, 7, 7.0), (2, 7, 17.0), (4, 5, 11.0)])
def test_the_forecast_counts_runs_of_either_kind(batch: int, runs: int, seconds: float) -> None:
    replay = Replay(None, {}, 0, np.zeros((1, 2, 2, 3), np.float32), seconds=1.0, batch=batch, batch_seconds=3.0)
    missing = [*(("effect", (0, column)) for column in range(4)), *(("pixels", (0, column)) for column in range(2)), ("without", ())]
    assert replay.forecast(missing) == (runs, seconds)


class Alone:
    """A pipeline that paints one picture at a time."""

    def __call__(self, image: Any, generator: Any = None) -> None: ...


def test_what_cannot_be_batched_is_refused_by_name(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, call, *_ = adapter
    with pytest.raises(UnsupportedModel, match=r"Alone takes no num_images_per_prompt or num_videos_per_prompt.*batch"):
        prepare(Alone(), {"generator": pipelines.generator()}, 0, 3, 1)
    for given, samples in (({**call(), "generator": [pipelines.generator()]}, 1), (call(), 2), ({**call(), "generator": None}, 1)):
        with pytest.raises(InvalidInput, match=r"one picture from one seed, and this run (paints 2 pictures|has no seed)"):
            prepare(pipeline, given, 0, 3, samples)
    video, arguments = videos.build("animate")  # whose argument for several videos does nothing
    with pytest.raises(InvalidInput, match=r"AnimateDiffPipeline cannot paint 3 pictures in one run; use a smaller batch"):
        prepare(video, arguments(), 0, 3, 1)
    monkeypatch.setattr(
        "i2am.recorder.intervention.effects._together", lambda pipeline, call, count: {**call, "num_images_per_prompt": count}
    )
    with pytest.raises(UnsupportedModel, match=r"other pictures when it paints 3 in one run.*batch"):
        prepare(pipeline, call(), 0, 3, 1)
    with pytest.raises(InvalidInput, match="refuses its arguments"):
        prepare(pipeline, {**call(), "height": 31}, 0, 1, 1)


def test_what_a_trace_does_not_allow_is_refused(adapter: Any) -> None:
    run = adapter[2]
    layers = reading_layers(run, "reference", ())
    assert [layer.path for layer in reading_layers(run, "reference", (layers[0].path,))] == [layers[0].path]
    with pytest.raises(UnknownSelection, match="no layer of the trace matches"):
        reading_layers(run, "reference", ("*nowhere*",))
    with pytest.raises(InvalidInput, match="finer than the 4 x 4 tokens"):
        check_trials(run, layers, "reference", (5, 1), ("cells",))
    with pytest.raises(InvalidInput, match="all of them; ask for more"):
        check_trials(run, layers, "reference", (1, 1), ("cells", "curves"))
    with pytest.raises(InvalidInput, match="does not have the picture of reference"):
        check_trials(dataclasses.replace(run, images=()), layers, "reference", (2, 2), ("pixels",))
    with pytest.raises(InvalidInput, match=r"'layer' is none of cells, .*curves; did you mean layers\?"):
        read_trials("cells,layer")
    assert read_trials("curves, heads") == ("cells", "without", "heads", "curves")


class Entry:
    """An entry point that ranks cells."""

    def __init__(self, ranked: dict[str, Any]) -> None:
        self.ranked, self.asked = ranked, dict[str, Any]()

    def load(self) -> Callable[..., dict[str, Any]]:
        return self

    def __call__(self, path: str, **asked: Any) -> dict[str, Any]:
        self.asked = {"path": path, **asked}
        return self.ranked


def test_orders_by_maps_come_from_whatever_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry({"attention": np.ones((2, 3), np.float32)})
    monkeypatch.setattr("i2am.recorder.intervention.orders.entry_points", lambda group: [entry] if group == "i2am.orders" else [])
    found = map_orders(Path("run.zarr"), "reference", (2, 3), 0, "cond")
    assert entry.asked == {"path": "run.zarr", "group": "reference", "cells": (2, 3), "sample": 0, "branch": "cond"}
    np.testing.assert_array_equal(found["attention"], np.ones((2, 3)))
    with pytest.raises(InvalidInput, match=r"order attention ranks \(2, 3\) cells, expected \(3, 3\)"):
        map_orders(Path("run.zarr"), "reference", (3, 3), 0, "cond")
    gone = EntryPoint("cells", "i2am.nowhere:rank", "i2am.orders")
    monkeypatch.setattr("i2am.recorder.intervention.orders.entry_points", lambda group: [gone])
    assert map_orders(Path("run.zarr"), "reference", (2, 3), 0, "cond") == {}


def test_the_analyzer_ranks_cells_by_its_maps(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]["i2am.orders"]
    entries = [EntryPoint(name, value, "i2am.orders") for name, value in named.items()]
    monkeypatch.setattr("i2am.recorder.intervention.orders.entry_points", lambda group: entries)
    found = map_orders(adapter[4], "reference", (2, 2), 0, "cond")
    assert "attention" in found and all(np.isfinite(values).all() and len(np.unique(values)) == 4 for values in found.values())
