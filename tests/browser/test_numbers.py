"""Numbers of the page are the analyzer's: looks, maps and IMACS of random selections, within the errors that docs/overview.md states."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import planted_trace

from i2am.analyzer import Trace, g2r, imacs, open_trace, r2g, sram, token_map
from i2am.analyzer.view.export import export_runs
from i2am.analyzer.view.runs import Run
from traces import reference_layer, synthetic_trace

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

ROW = 0.00392
"""Most that a value of a row is off, of the row's greatest."""
MAP = 4 / 131_070
"""Most that a map is off, of its greatest value: what its bytes are, and what bicubic resampling makes of that."""
LAYERS = (("up_blocks.0", (16, 12), (16, 20)), ("up_blocks.1", (8, 6), (16, 20)))
GOLDEN = Path(__file__).parents[1] / "data" / "golden-1.zarr"

ASK = """([selection, at]) => {
    const { lookOf, mapOf, columnOf, workOutScores, page } = window.i2am, view = page.view;
    const list = (values) => values && Array.from(values);
    const maps = Object.fromEntries(["r2g", "g2r", "g2r_masked"].map((name) => [name, list(mapOf(view, name, selection))]));
    const look = list(lookOf(view, selection, at)), column = list(columnOf(view, selection, 2).values);
    return { look, column, ...maps, scores: workOutScores(view, selection) };
}"""


@pytest.fixture(scope="module", params=["golden", "planted"])
def trace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return open_trace(GOLDEN if request.param == "golden" else planted_trace(tmp_path_factory.mktemp("planted") / "run.zarr"))


def ask(page: Any, trace: Trace, seed: int) -> tuple[dict[str, Any], tuple[int, ...], dict[str, Any], float, float]:
    """What the page says of a random selection and patch; the same as options; calls a pair; and the mean of the rows' peaks."""
    chance, view = (
        random.Random(seed),
        page.evaluate(
            "() => { const { layers, run } = i2am.page.view; return { layers: run.facts.views[0].layers, times: Array.from(run.timeOf) }; }"
        ),
    )
    time, layer = (chance.choice([None, *range(n)]) for n in (max(view["times"]) + 1, len(view["layers"])))
    head = chance.choice([None, *range(min(each["heads"] for each in view["layers"]))])
    at = tuple(chance.randrange(n) for n in trace.latent_grid)
    steps = [step for step, group in enumerate(view["times"]) if time is None or group == time]
    options = {"steps": steps, "layers": None if layer is None else [layer], "heads": None if head is None else [head]}
    calls = [
        sum(calls for group, calls in enumerate(each["calls"]) if time in (None, group))
        for index, each in enumerate(view["layers"])
        if layer in (None, index)
        for _ in range(each["heads"] if head is None else 1)
    ]
    selection = {"time": time, "layer": layer, "head": head, "frame": 0}
    if not any(calls):
        return {}, at, options, 0.0, 0.0
    peaks = sram(trace, at, keep=("time", "layer", "head"), **options).max(("ref_y", "ref_x"))
    return (
        page.evaluate(ASK, [selection, list(at)]),
        at,
        options,
        sum(calls) / np.count_nonzero(calls),
        float(peaks.sum()) / np.count_nonzero(calls),
    )


def test_twenty_random_selections_are_the_analyzers(trace: Trace, visit: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "run.html"
    file.write_bytes(export_runs([Run.of(trace)]))
    visited = visit(file)
    reference = next(image.name for image in trace.images if image.role == "reference_mask")
    for seed in range(20):
        said, at, options, calls, peaks = ask(visited.page, trace, seed)
        if not said:
            continue
        look = sram(trace, at, **options).values.ravel()
        assert np.abs(np.array(said["look"]) * calls - look).max() <= ROW * peaks + 1e-6, (seed, options)
        maps = {"r2g": r2g(trace, **options), "g2r": g2r(trace, **options), "g2r_masked": g2r(trace, query_mask="mask", **options)}
        for name, found in maps.items():
            values = found.compute().values
            np.testing.assert_allclose(said[name], values.ravel(), rtol=0, atol=MAP * values.max(), err_msg=f"{name} of {options}")
        pixel = 4 / trace.image("mask").size  # where rounding takes one over the threshold
        assert said["scores"]["imacs_g"] == pytest.approx(float(imacs(maps["r2g"], trace.image("mask"))), abs=pixel * 3)
        pixel = 4 / trace.image(reference).size
        assert said["scores"]["imacs_r"] == pytest.approx(float(imacs(maps["g2r_masked"], trace.image(reference))), abs=pixel * 3)
    assert not visited.errors


def test_who_looked_at_a_token_is_its_map(trace: Trace, visit: Callable[..., Any], tmp_path: Path) -> None:
    """Of a layer as fine as the picture's patches, where nothing is resampled."""
    file = tmp_path / "run.html"
    file.write_bytes(export_runs([Run.of(trace)]))
    page, layer = visit(file).page, next(i for i, each in enumerate(trace.layers) if each.grid == trace.latent_grid)
    specials = page.evaluate("i2am.page.view.specials")
    said = page.evaluate(ASK, [{"time": None, "layer": layer, "head": None, "frame": 0}, [0, 0]])
    found = token_map(trace, [2 + specials], group=page.evaluate("i2am.page.view.group"), layers=[layer]).compute().values / len(
        trace.present
    )
    peaks = page.evaluate(f"Array.from(i2am.page.view.layers[{layer}].rows.max)")
    np.testing.assert_allclose(said["column"], found.ravel(), rtol=0, atol=ROW * max(peaks))


def test_maps_are_whole_where_rows_are_of_fewer_keys(visit: Callable[..., Any], tmp_path: Path) -> None:
    """In a small file keys of rows are summed to cells; G2R keeps the layer's own."""
    layers = [reference_layer(f"unet.{name}.attn2", grid, reference=reference) for name, grid, reference in LAYERS]
    synthetic_trace(tmp_path / "run.zarr", layers=layers, latent_grid=(16, 12))
    trace = open_trace(tmp_path / "run.zarr")
    run = Run.of(trace, budget=150_000)
    assert tuple(run.overview.facts["views"][0]["layers"][0]["key_grid"]) != LAYERS[0][2]
    file = tmp_path / "run.html"
    file.write_bytes(export_runs([run]))
    page = visit(file).page
    for chosen in (None, 0, 1):
        found = g2r(trace, layers=None if chosen is None else [chosen]).compute().values
        ask = f"Array.from(i2am.mapOf(i2am.page.view, 'g2r', {{ time: null, layer: {json.dumps(chosen)}, head: null, frame: 0 }}))"
        np.testing.assert_allclose(page.evaluate(ask), found.ravel(), rtol=0, atol=MAP * found.max())
