"""No number hangs on whether xarray keeps attributes when it reduces: versions and options differ in that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

from i2am import analyzer as i2am
from i2am.analyzer import Trace, g2r, imacs, looks, open_trace, r2g
from i2am.analyzer.maps.heatmap import published
from i2am.schema.errors import InvalidInput
from traces import reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

ASKED: dict[str, Callable[[Trace], Any]] = {
    "imacs of R2G": lambda t: imacs(r2g(t, keep="layer"), t.image("mask")),
    "imacs of G2R": lambda t: imacs(g2r(t, keep="layer"), t.image("reference_mask")),
    "iou": lambda t: i2am.iou(g2r(t), t.image("reference_mask"), 0.4),
    "miou": lambda t: i2am.miou(g2r(t), t.image("reference_mask")),
    "box_iou": lambda t: i2am.box_iou(g2r(t), t.image("reference_mask")),
    "variation": lambda t: i2am.attention_variation(looks(t)),
    "entropy": lambda t: i2am.entropy(g2r(t, keep="layer")),
    "published": lambda t: published(t, g2r(t, recipe="i2am-official").compute()),
    "published R2G": lambda t: published(t, r2g(t, recipe="i2am-official").compute()),
    "placed": lambda t: i2am.place(g2r(t), (30, 50)),
    "judged": lambda t: {name: float(score) for name, score in i2am.judge(t, list(i2am.available(t))).items()},
    "diagnosed": lambda t: [row["value"] for row in i2am.diagnose(t)["signatures"]],
    "differed": lambda t: i2am.differ(t, t).facts,
    "compared": lambda t: i2am.compare(t, ["i2am", "i2am-official"], direction="g2r")["map"],
}


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    layers = [reference_layer("a", (8, 6)), reference_layer("b", (4, 3))]
    return open_trace(synthetic_trace(tmp_path_factory.mktemp("kept") / "run.zarr", layers=layers, steps=3).path)


@pytest.mark.parametrize("what", ASKED)
def test_no_answer_of_ours_hangs_on_attributes(trace: Trace, what: str) -> None:
    answers = []
    for kept in (True, False):
        with xr.set_options(keep_attrs=kept):
            answers.append(ASKED[what](trace))
    if not isinstance(answers[0], xr.DataArray):
        assert repr(answers[0]) == repr(answers[1])
        return
    np.testing.assert_array_equal(answers[0], answers[1])
    assert repr(answers[0].attrs) == repr(answers[1].attrs)


def test_a_map_that_lost_its_attributes_is_refused_not_scored_wrongly(trace: Trace) -> None:
    mask = trace.image("reference_mask")
    with xr.set_options(keep_attrs=True):
        right = imacs(g2r(trace, keep="layer").mean("layer"), mask)
        np.testing.assert_allclose(right, imacs(g2r(trace), mask), atol=1e-6)
    with xr.set_options(keep_attrs=False):
        bare = g2r(trace, keep="layer").mean("layer")
    for ask in (imacs, i2am.iou, i2am.box_iou):
        with pytest.raises(InvalidInput, match=r"lost its attributes.*keep_attrs=True"):
            ask(bare, mask)
