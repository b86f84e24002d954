"""Flow, copies and their metrics of weighted attention, against definitions in float64: a knock-out really drops the key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from i2am.analyzer import copy_score, flow, judge, open_trace, repaint
from i2am.analyzer.trace.reader import Trace
from i2am.schema.errors import UnknownSelection
from traces import Synthetic, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

LATENT, KEYS = (8, 6), (3, 5)
LAYER = reference_layer("a", LATENT, heads=1, reference=KEYS, specials=0, values="full", value_dim=5, output_dim=6)


@pytest.fixture(scope="module", params=["probabilities", "factors"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Synthetic, Trace]:
    found = synthetic_trace(tmp_path_factory.mktemp("points") / "run.zarr", layers=[LAYER], steps=1, encoding=request.param)
    return found, open_trace(found.path)


def dropped(share: np.ndarray, given: np.ndarray) -> np.ndarray:
    """How far the output moves without each token."""
    moved = []
    for token in range(len(share)):
        less = np.where(np.arange(len(share)) == token, 0, share)
        moved.append(np.linalg.norm((share - less / less.sum()) @ given))
    return np.array(moved)


def given_along(share: np.ndarray, given: np.ndarray) -> np.ndarray:
    """What each token adds to the length of the output, where that is more than nothing."""
    whole = share @ given
    return np.maximum(share * (given @ whole), 0) / np.linalg.norm(whole)


WEIGHTS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "norm": lambda share, given: share * np.linalg.norm(given, axis=-1),
    "knock-out": dropped,
    "contribution": given_along,
}


@pytest.mark.parametrize("weight", WEIGHTS)
def test_places_and_colours_are_means_by_the_weight(made: tuple[Synthetic, Trace], weight: str) -> None:
    found, trace = made
    value, output = found.value[0], found.output[0]
    assert value is not None and output is not None
    given = value[0, 0, 0, 0].astype(float) @ output[0].astype(float)
    places = np.array([((y + 0.5) / KEYS[0], (x + 0.5) / KEYS[1]) for y, x in np.ndindex(KEYS)])
    colours = found.images["reference"].reshape(3, 10, 5, 10, 3).mean((1, 3)).reshape(-1, 3) / 255
    points, copies = flow(trace, weight=weight), repaint(trace, weight=weight)  # type: ignore[arg-type]
    assert points["flow"].attrs["weight"] == copies.attrs["weight"] == weight
    for at in ((0, 0), (3, 4), (7, 5)):
        share = found.probabilities[0][(0, 0, 0, 0, *at)]
        row = WEIGHTS[weight](share / share.sum(), given)
        mean = row @ places / row.sum()
        np.testing.assert_allclose(points["flow"].values[at], mean, rtol=5e-3)
        np.testing.assert_allclose(points["spread"].values[at], np.sqrt(row @ (places - mean) ** 2 / row.sum()), rtol=5e-3)
        np.testing.assert_allclose(copies.values[at], row @ colours / row.sum(), rtol=5e-3)


def test_metrics_take_the_weight(made: tuple[Synthetic, Trace]) -> None:
    _, trace = made
    for control, name in ((None, "copy_score"), ("turned", "copy_control")):
        score = float(copy_score(trace, control=control, weight="knock-out"))  # type: ignore[arg-type]
        assert float(judge(trace, [name], weight="knock-out")[name]) == pytest.approx(score)
        assert score != pytest.approx(float(judge(trace, [name])[name]), abs=1e-6)


def test_a_trace_without_values_says_how_to_have_them(tmp_path: Path) -> None:
    plain = open_trace(synthetic_trace(tmp_path / "run.zarr", layers=[reference_layer("a", LATENT)]).path)
    for ask in (flow, repaint, copy_score):
        with pytest.raises(UnknownSelection, match="values='full'"):
            ask(plain, weight="knock-out")
