"""On trained attention, recorded from the model that comes with i2am, every row equals its method too."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from methods import GENERATED, Calls, daam, g2r_by_head, g2r_by_query, g2r_i2am, hook_imacs, prompt_to_prompt, stored_calls
from repository import ROOT

from i2am.analyzer import Trace, g2r, get_recipe, judge, open_trace, r2g, token_map
from i2am.recorder.demo.cli import record_demo
from i2am.schema.errors import InvalidInput

LATENT = (16, 16)
HEADS = {"unet.up_blocks.0.attentions.1.transformer_blocks.0.attn2": [0, 3], "unet.down_blocks.1*": 2}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, list[Calls]]:
    path: Path = tmp_path_factory.mktemp("demo") / "demo.zarr"
    record_demo(path, 0, steps=2)
    trace = open_trace(path)
    return trace, stored_calls(path, trace.layers)


def close(found: object, truth: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(found), truth, rtol=1e-5, atol=1e-5 * np.abs(truth).max())


@pytest.mark.parametrize("name", [name for name in GENERATED if name != "prompt-to-prompt"])
def test_a_row_equals_its_method_on_the_generated_image(demo: tuple[Trace, list[Calls]], name: str) -> None:
    trace, calls = demo
    close(r2g(trace, recipe=name), GENERATED[name](calls, lambda c: c.tokens("reference"), LATENT))
    close(token_map(trace, [0, 77], group="reference", recipe=name), GENERATED[name](calls, lambda c: [0, 77], LATENT))


def test_layers_of_one_resolution_are_taken_as_they_are(demo: tuple[Trace, list[Calls]]) -> None:
    trace, calls = demo
    with pytest.raises(InvalidInput, match=r"leaves out every layer of the trace: it skips .*, and takes those 4 times coarser"):
        r2g(trace, recipe="prompt-to-prompt")
    found = r2g(trace, recipe=get_recipe("prompt-to-prompt", factors=(2,)))
    close(found, prompt_to_prompt(calls, lambda c: c.tokens("reference"), (32, 32)))


def test_selected_heads_equal_daam_over_these_pairs(demo: tuple[Trace, list[Calls]]) -> None:
    trace, calls = demo
    pairs = {trace.layers[4].name: [0, 3], trace.layers[1].name: [2]}
    found = token_map(trace, [5], group="reference", recipe="hrv-selective", heads=HEADS)
    close(found, daam(calls, lambda c: [5], LATENT, pairs, all_layers=True))


def test_rows_equal_their_methods_on_the_reference(demo: tuple[Trace, list[Calls]]) -> None:
    trace, calls = demo
    every, mask = np.ones(LATENT), trace.masks()["mask"] / 255
    close(g2r(trace), g2r_i2am(calls, every))
    close(g2r(trace, recipe="i2am-official"), g2r_by_query(calls, every, (16, 16)))
    close(g2r(trace, recipe="i2am-custom"), g2r_by_query(calls, mask, (16, 16)))
    close(g2r(trace, recipe="i2am-custom", keep="head"), g2r_by_head(calls, mask, (16, 16)))


@pytest.mark.parametrize("name", ["i2am-official", "i2am-official-pbe", "i2am-custom"])
def test_imacs_is_the_released_hook_s_and_what_the_study_lists(demo: tuple[Trace, list[Calls]], name: str) -> None:
    trace, calls = demo
    map = GENERATED[name](calls, lambda c: c.tokens("reference"), LATENT)
    found = float(judge(trace, ["imacs_g"], recipe=name)["imacs_g"])
    assert found == pytest.approx(hook_imacs(map, trace.image("mask")[..., 0] >= 128, turned="official" in name), abs=1e-4)
    row = re.search(rf"^\| {name} \| generated \|.*$", (ROOT / "docs" / "truth.md").read_text(), re.M)
    assert row is not None
    assert found == pytest.approx(float(row[0].split("|")[7].split()[0]), abs=0.15)  # a mean over other pairs
