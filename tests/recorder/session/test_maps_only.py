"""A recording of maps alone: the picture is the same bit for bit, and its maps are those of the recorded attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pipelines_transformers
import pipelines_video
import pytest
from diffusers import StableDiffusionInpaintPipeline

from i2am.analyzer import Trace, g2r, get_recipe, open_trace, r2g, token_map
from i2am.analyzer.inspection.verify import verify
from i2am.recorder import record
from i2am.recorder.plan.options import Options
from i2am.schema.errors import InvalidInput
from pipelines import Built, build, load_adapters, picture, square_mask, stable_diffusion, text_arguments

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

CLOSE = 1e-6
"""Of the greatest number of a map."""
LINEAR = get_recipe("i2am-official", clamp=False, reference_layers="", skip="")


def masked_adapter() -> Built:
    """Text, and a reference of 17 tokens; a mask of the image being made."""
    pipeline = stable_diffusion(StableDiffusionInpaintPipeline, channels=9, encoder=True)
    load_adapters(pipeline, "full")
    images = {"image": picture(1), "mask_image": square_mask(), "ip_adapter_image": picture(10, 48, 32), "height": 32, "width": 32}
    return pipeline, lambda: {**text_arguments(), **images, "output_type": "np"}


FAMILIES: dict[str, Callable[[], Built]] = {
    "paint-by-example": lambda: build("paint-by-example"),
    "masked adapter": masked_adapter,
    "ip-plus": lambda: build("ip-plus"),
    "kontext": lambda: pipelines_transformers.build("kontext"),
    "video": lambda: pipelines_video.build("wan-first"),
}


def recorded(family: str, folder: Path, **options: Any) -> tuple[Trace, Any]:
    """The trace of a run that is the same each time, and what it made."""
    pipeline, call = FAMILIES[family]()
    path = folder / f"{options.get('keep', 'attention')}-{options.get('encoding')}.zarr"
    output = record(pipeline, path, progress=False, values="none", **options, **call())
    return open_trace(path), output[0]


def close(found: Any, expected: Any, rtol: float = CLOSE) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * float(np.nanmax(expected)))


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_are_those_of_the_recorded_attention(family: str, tmp_path: Path) -> None:
    full, made = recorded(family, tmp_path, encoding="factors")
    maps, again = recorded(family, tmp_path, keep="maps", token_maps=3)
    assert np.array_equal(np.asarray(made), np.asarray(again))
    assert maps.record.version == 2
    assert {layer.encoding for layer in maps.layers if not layer.is_resampler} == {"sums"}
    group = next(g.name for layer in full.layers for g in layer.groups if g.role == "reference" and not layer.is_resampler)
    masks = [None, *(image.name for image in maps.images if image.role == "mask")]
    plain, each = get_recipe("i2am"), ("time", "layer", "head")
    for row, keep in ((plain, ()), (plain, each), (LINEAR, ()), (get_recipe("i2am", r2g="keys", g2r="generated"), each)):
        ask = {"keep": keep, "recipe": row, "group": group}
        close(r2g(maps, **ask), r2g(full, **ask))
        for mask in masks:
            close(g2r(maps, query_mask=mask, **ask), g2r(full, query_mask=mask, **ask))
    if any(g.name == "text" for layer in full.layers for g in layer.groups):
        for softmax in ("keys", "generated"):
            ask = {"group": "text", "recipe": get_recipe("daam", r2g=softmax, factors=(), skip=""), "keep": ("layer", "head", "token")}
            close(token_map(maps, [0, 2], **ask), token_map(full, [0, 2], **ask), 2**-11)  # P of such tokens is float16
    assert verify(maps.path).ok


def test_maps_of_a_trace_of_probabilities_differ_by_what_float16_rounds(tmp_path: Path) -> None:
    full, _ = recorded("masked adapter", tmp_path, encoding="probabilities")
    maps, _ = recorded("masked adapter", tmp_path, keep="maps")
    for ask in (r2g, g2r):
        close(ask(maps), ask(full), 2**-11)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"keep": "map"}, r"keep='map'; use attention or maps"),
        ({"keep": "maps", "token_maps": -1}, "token_maps=-1 is no number of tokens"),
        ({"keep": "maps", "encoding": "factors"}, r"encoding='factors' says how attention is kept, and with keep='maps' none is"),
        ({"keep": "maps", "keep_bits": 6}, "keep_bits=6 says how"),
        ({"keep": "maps", "values": "full"}, "values='full' says how"),
        ({"keep": "maps", "probes": {"a": "dog"}}, "probes=.* says how"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        Options(**options)


def test_an_encoding_that_was_left_to_the_recorder_contradicts_nothing(tmp_path: Path) -> None:
    maps, _ = recorded("masked adapter", tmp_path, keep="maps", encoding="auto")
    assert {layer.encoding for layer in maps.layers} == {"sums"}
