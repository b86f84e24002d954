"""What attention would copy, and the copy score, against plain loops in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from planted import GRID, INSIDE, planted_trace

from i2am.analyzer import copy_score, judge, make_overview, open_trace, repaint
from i2am.analyzer.trace.reader import Trace
from i2am.schema.errors import InvalidInput
from traces import Synthetic, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

LATENT, KEYS = (8, 6), (3, 5)


@pytest.fixture(scope="module", params=["probabilities", "factors"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Synthetic, Trace]:
    layers = [reference_layer("a", LATENT, reference=KEYS), reference_layer("b", (4, 3), heads=3, reference=KEYS)]
    found = synthetic_trace(tmp_path_factory.mktemp("copy") / "run.zarr", layers=layers, steps=2, encoding=request.param)
    return found, open_trace(found.path)


def cells(picture: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    down, across = (n // m for n, m in zip(picture.shape, grid, strict=False))
    found = np.empty((*grid, picture.shape[-1]))
    for y, x in np.ndindex(grid):
        found[y, x] = picture[y * down : (y + 1) * down, x * across : (x + 1) * across].reshape(-1, picture.shape[-1]).mean(0) / 255
    return found


def rows_of(found: Synthetic, layer: int, head: int, at: tuple[int, int]) -> np.ndarray:
    """Where the latent patch looked, CLS aside, summed over steps."""
    grid = found.trace.layers[layer].grid
    y, x = (i * m // n for i, n, m in zip(at, LATENT, grid, strict=True))
    return found.probabilities[layer][0, 0, :, head, y, x, 1:].sum(0)


def test_patches_get_the_mean_colour_of_where_they_looked(made: tuple[Synthetic, Trace]) -> None:
    found, trace = made
    keys = cells(found.images["reference"], KEYS).reshape(-1, 3)
    each, mean = repaint(trace, keep=("layer", "head")), repaint(trace)
    assert each.dims == ("layer", "head", "y", "x", "colour") and hasattr(each.data, "dask")
    for at in ((0, 0), (3, 4), (7, 5)):
        rows = {(layer, head): rows_of(found, layer, head, at) for layer, heads in ((0, 2), (1, 3)) for head in range(heads)}
        for (layer, head), row in rows.items():
            np.testing.assert_allclose(each.values[(layer, head, *at)], row @ keys / row.sum(), rtol=1e-3)
        row = np.mean(list(rows.values()), 0)
        np.testing.assert_allclose(mean.values[at], row @ keys / row.sum(), rtol=1e-3)
    assert np.isnan(each.values[0, 2]).all()


@pytest.mark.parametrize("control", [None, "turned"])
def test_the_score_is_the_correlation_with_the_picture(made: tuple[Synthetic, Trace], control: str | None) -> None:
    found, trace = made
    inside = cells(found.images["mask"], LATENT)[..., 0] > 0.5
    painted = cells(found.images["generated_0"], LATENT)[inside]
    copied = repaint(trace, keep="head").values[:, inside]
    scores = copy_score(trace, keep="head", control=control)
    assert scores.dims == ("head",) and 0 < inside.sum() < inside.size
    for head, mine in enumerate(copied):
        mine = mine[::-1] if control else mine
        centred = [(each - each.mean(0)).ravel() for each in (mine, painted)]
        assert float(scores[head]) == pytest.approx(np.corrcoef(*centred)[0, 1], abs=1e-9)
    names = "copy_control" if control else "copy_score"
    assert float(judge(trace, [names])[names]) == pytest.approx(float(copy_score(trace, control=control)))


def test_heads_that_point_repaint_the_picture_and_turned_they_do_not(tmp_path: Path) -> None:
    trace = open_trace(planted_trace(tmp_path / "run.zarr"))  # generated and reference are one picture, each patch looks at its own place
    assert float(copy_score(trace)) > 0.95
    assert abs(float(copy_score(trace, control="turned"))) < 0.5 > abs(float(copy_score(trace, control="shuffled")))
    inside = np.zeros(GRID, bool)
    inside[INSIDE] = True
    np.testing.assert_allclose(repaint(trace).values[inside], cells(trace.image("reference"), GRID)[inside], atol=0.05)


def test_on_the_latent_grid_it_is_the_score_of_the_page(made: tuple[Synthetic, Trace]) -> None:
    _, trace = made
    overview = make_overview(trace)
    column = overview.reader().read("views/000/scores")[:, overview.facts["scores"].index("copy")]
    np.testing.assert_allclose(copy_score(trace, keep=("layer", "head")).values[0, :2], column[:2], atol=1e-5)
    assert float(copy_score(trace)) == pytest.approx(column[-1], abs=1e-5)


def test_a_reference_of_one_colour_has_no_score(tmp_path: Path) -> None:
    layer = reference_layer("a", LATENT, reference=(1, 1))
    assert np.isnan(float(copy_score(open_trace(synthetic_trace(tmp_path / "run.zarr", layers=[layer]).path))))


def test_bad_input(made: tuple[Synthetic, Trace], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no control 'turnd'; did you mean turned\?"):
        copy_score(made[1], control="turnd")  # type: ignore[arg-type]
    cut = open_trace(synthetic_trace(tmp_path / "cut.zarr", status="interrupted").path, partial=True)
    with pytest.raises(InvalidInput, match="holds no picture of sample 0"):
        copy_score(cut)
    with pytest.raises(InvalidInput, match="holds no picture of the reference"):
        repaint(cut)
