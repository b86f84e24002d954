"""Interventions over whole runs: nothing changes without them, they add up, they are checked, and they leave no hook behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pipelines_sequences as sequences
import pipelines_transformers as transformers
import pipelines_video as videos
import pytest
import torch
from outside_models import UNET, paint_by_example, sample, super_resolution

import pipelines
from i2am.analyzer import open_trace
from i2am.recorder import Intervention, alter_pixels, check_determinism, intervene, intervening, record, recording
from i2am.schema.errors import InvalidInput, UnknownSelection, UnsupportedModel

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

BUILDERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("ip-two", "ip-plus", "sdxl", "paint-by-example", "text-pndm"), pipelines.build),
    **dict.fromkeys(("kontext-guided", "klein-kv", "sd3-ip", "qwen-edit", "kandinsky", "flux-ip", "wan-two"), transformers.build),
    **dict.fromkeys(("svd", "wan-first-last"), videos.build),
    "reference-only": sequences.build,
}
DROP = Intervention("drop", group="reference", cells=((0, 0), (3, 1)))
DROP_HALF = Intervention("drop", group="reference", cells=[(0, 0), (0, 1)], lattice=(2, 2))


def painted(output: Any) -> np.ndarray[Any, Any]:
    return np.asarray(output.images if hasattr(output, "images") else output.frames)


@pytest.fixture(scope="module")
def adapter() -> Any:
    return pipelines.build("ip-full")


def run(adapter: Any, *interventions: Intervention) -> np.ndarray[Any, Any]:
    pipeline, call = adapter
    return painted(intervene(pipeline, interventions, **call()))


@pytest.mark.parametrize("family", BUILDERS)
def test_without_interventions_no_bit_changes(family: str) -> None:
    pipeline, call = BUILDERS[family](family)
    assert np.array_equal(painted(check_determinism(pipeline, **call())), painted(pipeline(**call())))


@pytest.mark.parametrize("family", ["kontext-guided", "qwen-edit", "klein-kv", "kandinsky", "wan-first-last", "flux-ip"])
def test_the_reference_can_be_left_out_of_every_family(family: str) -> None:
    pipeline, call = BUILDERS[family](family)
    group = {"klein-kv": "reference_0", "wan-first-last": "reference_1"}.get(family, "reference")
    changed = painted(intervene(pipeline, Intervention("zero", group=group), **call()))
    assert np.isfinite(changed).all() and not np.array_equal(changed, painted(pipeline(**call())))


def test_steps_and_branches_add_up(adapter: Any) -> None:
    def drop(**where: Any) -> Intervention:
        return Intervention("drop", group="reference", tokens=[0, 4], **where)

    assert np.array_equal(run(adapter, drop()), run(adapter, drop(steps=0), drop(steps="1:")))
    both = run(adapter, drop(branches="both"))
    assert np.array_equal(both, run(adapter, drop(branches="cond"), drop(branches="uncond")))
    assert not np.array_equal(both, run(adapter, drop()))


def test_an_intervention_at_a_later_step_leaves_the_earlier_ones(adapter: Any) -> None:
    pipeline, call = adapter
    latents: list[list[torch.Tensor]] = [[], []]

    def keep(into: list[torch.Tensor]) -> Callable[..., dict[str, Any]]:
        return lambda pipeline, step, time, given: into.append(given["latents"].clone()) or {}

    pipeline(**call(), callback_on_step_end=keep(latents[0]))
    intervene(pipeline, Intervention("off", steps=-1), **call(), callback_on_step_end=keep(latents[1]))
    assert [torch.equal(one, other) for one, other in zip(*latents, strict=True)] == [True, True, False]


def test_what_stands_for_the_same_gives_the_same(adapter: Any) -> None:
    off = run(adapter, Intervention("off", group="reference"))
    assert np.array_equal(
        off, run(adapter, Intervention("off", group="reference", heads=[0]), Intervention("off", group="reference", heads=1))
    )
    np.testing.assert_allclose(off, run(adapter, Intervention("zero", group="reference")), atol=1e-6)
    layers = ["*down_blocks*", "*mid_block*", "*up_blocks*"]
    assert np.array_equal(off, run(adapter, *(Intervention("off", group="reference", layers=one) for one in layers)))
    cells = run(adapter, Intervention("zero", group="reference", cells=[(0, 1)], lattice=(2, 2)))
    assert np.array_equal(cells, run(adapter, Intervention("zero", group="reference", tokens=[3, 4, 7, 8])))


def test_silencing_an_adapter_is_a_scale_of_zero(adapter: Any) -> None:
    """Known from diffusers itself: in both branches, what its calls give is multiplied by 0."""
    pipeline, call = adapter
    off = run(adapter, Intervention("off", group="reference", branches="both"))
    pipeline.set_ip_adapter_scale(0.0)
    try:
        silent = painted(pipeline(**call()))
    finally:
        pipeline.set_ip_adapter_scale(1.0)
    np.testing.assert_allclose(off, silent, atol=1e-6)


def test_runs_start_from_the_same_noise_though_they_share_a_generator(adapter: Any) -> None:
    pipeline, call = adapter
    given = call()
    first, second = (painted(intervene(pipeline, DROP, **given)) for _ in range(2))
    assert np.array_equal(first, second)


def test_a_pipeline_that_is_not_deterministic_is_told(adapter: Any) -> None:
    pipeline, call = adapter
    with pytest.raises(UnsupportedModel, match=r"two different outputs.*pass generator="):
        check_determinism(pipeline, **{**call(), "generator": None})

    def disturb(*args: Any) -> dict[str, Any]:
        return {"latents": args[3]["latents"] + torch.rand(())}

    with pytest.raises(UnsupportedModel, match=r"two different outputs.*draws numbers of its own"):
        check_determinism(pipeline, **call(), callback_on_step_end=disturb)


def hooks(pipeline: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipeline.unet.modules())


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"group": "shirt"}, UnknownSelection, r"token group 'shirt'; there are reference, text.*group=.*layers="),
        ({"group": "reference", "heads": 7}, UnknownSelection, r"has no head 7; it has 0 to 1"),
        ({"group": "reference", "steps": [0, 9]}, UnknownSelection, "no step 9; it has 0 to 2"),
        ({"group": "reference", "tokens": 17}, UnknownSelection, "reference of unet.*attn2#1 has no token 17; it has 0 to 16"),
        ({"group": "reference", "cells": [(4, 0)]}, UnknownSelection, r"no cell \(4, 0\).*rows 0 to 3 and columns 0 to 3"),
        ({"group": "reference", "cells": [(0, 0)], "lattice": (8, 8)}, InvalidInput, "finer than the 4 x 4 tokens"),
        ({"group": "reference", "layers": "*nowhere*"}, UnknownSelection, "no layer of this pipeline matches '.nowhere.'; it has unet"),
        ({"group": "reference", "layers": 3}, InvalidInput, "is a position, and only a trace's layers have positions"),
        ({"group": "text", "cells": [(0, 0)]}, InvalidInput, r"tokens of text of .* have no places.*tokens="),
        ({"group": "text"}, InvalidInput, "no key left to attend to.*use zero"),
    ],
    ids=str,
)
def test_what_does_not_exist_is_refused_and_no_hook_stays(adapter: Any, wrong: Any, error: type[Exception], said: str) -> None:
    pipeline, call = adapter
    before, method = hooks(pipeline), vars(type(pipeline))["__call__"]
    with pytest.raises(error, match=said):
        intervene(pipeline, Intervention("drop", **wrong), **call())
    assert hooks(pipeline) == before and vars(type(pipeline))["__call__"] is method
    assert np.array_equal(run(adapter), painted(pipeline(**call())))


@pytest.mark.parametrize(
    ("kind", "wrong", "said"),
    [
        ("mute", {}, "kind 'mute'; use drop, zero or off"),
        ("drop", {}, "needs the token group"),
        ("off", {"tokens": 3}, "for whole heads"),
        ("drop", {"group": "text", "tokens": 1, "cells": [(0, 0)]}, "both choose keys"),
        ("drop", {"group": "text", "lattice": (8, 8)}, "say which"),
        ("drop", {"group": "text", "cells": [3]}, "pairs"),
        ("drop", {"group": "text", "cells": [(0, -1)]}, "count from 0"),
        ("drop", {"group": "text", "cells": [(0, 0)], "lattice": (0, 4)}, "count from 1"),
        ("drop", {"group": "text", "cells": [(0, 0.5)]}, "expected a whole number"),
        ("off", {"branches": "left"}, "use cond, uncond or both"),
        ("off", {"steps": "never"}, "no choice of steps"),
        ("off", {"heads": True}, "not a head"),
    ],
    ids=str,
)
def test_an_intervention_that_says_nothing_clear_is_refused_before_any_run(kind: Any, wrong: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        Intervention(kind, **wrong)


def test_what_is_not_there_in_a_run_is_noticed() -> None:
    pipeline, call = pipelines.build("ip-unguided")
    with pytest.raises(InvalidInput, match="not guided and has cond only"):
        intervene(pipeline, Intervention("off", branches="uncond"), **call())
    for wrong in ({"stepps": 3}, {"groups": ["text"]}):
        with pytest.raises(InvalidInput, match=r"intervening|denoisers="):
            intervening(pipeline, DROP, **wrong)
    with pytest.raises(InvalidInput, match=r"'drop' is no intervention; write Intervention\("):
        intervening(pipeline, ["drop"])  # type: ignore[list-item]
    with pytest.raises(UnsupportedModel, match="no unet or transformer"):
        intervene(torch.nn.Linear(1, 1), DROP)
    with pytest.raises(InvalidInput, match=r"a diffusers pipeline shows its steps itself"), intervening(pipeline, DROP) as running:
        running.step(3)


def test_an_error_of_the_pipeline_leaves_no_hook(adapter: Any) -> None:
    pipeline, call = adapter
    before = hooks(pipeline)
    with pytest.raises(KeyboardInterrupt), intervening(pipeline, DROP):
        pipeline(**call(), callback_on_step_end=lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert hooks(pipeline) == before
    assert np.array_equal(run(adapter), painted(pipeline(**call())))


def test_a_recording_of_a_changed_run_keeps_the_same_values_and_lets_it_change(adapter: Any, tmp_path: Path) -> None:
    pipeline, call = adapter
    record(pipeline, tmp_path / "plain.zarr", values="full", progress=False, **call())
    zero = Intervention("zero", group="reference", tokens=[0, 4])
    with recording(pipeline, tmp_path / "changed.zarr", values="full", progress=False):
        changed = run(adapter, zero)
    assert np.array_equal(changed, run(adapter, zero))
    plain, made = (open_trace(tmp_path / f"{name}.zarr") for name in ("plain", "changed"))
    for layer in plain.layers:
        assert np.array_equal(plain.output_projection(layer.name), made.output_projection(layer.name))
        assert np.array_equal(plain.values(layer.name).isel(step=0), made.values(layer.name).isel(step=0))


def test_an_intervention_around_a_recording_says_which_order_works(adapter: Any, tmp_path: Path) -> None:
    pipeline, call = adapter
    zero = Intervention("zero", group="reference")
    before = hooks(pipeline)
    with (
        pytest.raises(InvalidInput, match=r"recorded or changed already.*open a recording outside.*in one call"),
        intervening(pipeline, zero),
    ):
        record(pipeline, tmp_path / "changed.zarr", progress=False, **call())
    with pytest.raises(InvalidInput, match="make several interventions in one call"), intervening(pipeline, zero):
        intervene(pipeline, zero, **call())
    assert hooks(pipeline) == before and np.array_equal(run(adapter), painted(pipeline(**call())))


def test_an_intervention_on_one_sample_leaves_the_others(adapter: Any) -> None:
    pipeline, call = adapter
    given = {**call(), "num_images_per_prompt": 2, "generator": [pipelines.generator(0), pipelines.generator(0)]}
    plain, changed = (painted(intervene(pipeline, what, **given)) for what in ((), Intervention("zero", group="reference", samples=1)))
    assert np.array_equal(plain[0], changed[0]) and not np.array_equal(plain[1], changed[1])
    np.testing.assert_allclose(changed[1], run(adapter, Intervention("zero", group="reference"))[0], atol=1e-5)
    with pytest.raises(UnknownSelection, match="this run has no sample 2; it has 0 to 1"):
        intervene(pipeline, Intervention("zero", group="reference", samples=2), **given)


def test_a_resampler_cannot_be_changed_and_what_reads_its_tokens_can() -> None:
    pipeline, call = pipelines.build("ip-plus")
    with pytest.raises(UnsupportedModel, match=r"image_projection_layers.*read at its projections.*layers="):
        intervene(pipeline, Intervention("drop", group="reference", tokens=0), **call())
    changed = painted(intervene(pipeline, Intervention("drop", group="reference", tokens=0, layers="*attn2"), **call()))
    assert not np.array_equal(changed, painted(pipeline(**call())))


def test_a_declared_model_is_changed_where_its_attention_is_seen() -> None:
    model, cond, uncond = super_resolution()
    said: dict[str, Any] = {"denoisers": UNET, "order": ("uncond", "cond"), "evaluations": 3}
    said["groups"] = {"*.attentions*attn2": ["text"], "*image_attentions*attn2": [{"name": "reference", "grid": (5, 3)}]}
    plain = sample(model, cond, uncond)
    with intervening(model, (), **said):
        assert torch.equal(sample(model, cond, uncond), plain)
    found = []
    for what in (DROP_HALF, Intervention("zero", group="reference"), Intervention("off", group="reference")):
        with intervening(model, what, **said):
            found.append(sample(model, cond, uncond))
    assert not torch.equal(found[0], plain)
    torch.testing.assert_close(found[1], found[2])
    assert torch.equal(sample(model, cond, uncond), plain)


def test_a_module_that_multiplies_itself_is_refused_by_name() -> None:
    model, cond, uncond = paint_by_example()
    said: dict[str, Any] = {"denoisers": UNET, "order": ("uncond", "cond"), "groups": ["reference"]}
    with (
        pytest.raises(UnsupportedModel, match=r"input_blocks.*attn2 is read at its projections.*choose other modules through layers="),
        intervening(model, Intervention("zero", group="reference"), **said),
    ):
        sample(model, cond, uncond)
    with (
        pytest.raises(UnknownSelection, match="has no step 50; it has 0 to 2"),
        intervening(model, Intervention("off", steps=50), **said),
    ):
        sample(model, cond, uncond)


@pytest.mark.parametrize("how", ["invert", "blank"])
def test_cells_of_a_picture_are_altered_and_nothing_else(how: str) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (10, 8, 3), dtype=np.uint8)
    inside = np.zeros((10, 8), dtype=bool)
    inside[5:, :4] = True
    truth = np.where(inside[..., None], 255 - pixels if how == "invert" else 127, pixels)
    cells = [(1, 0)]
    assert np.array_equal(alter_pixels(pixels, cells, (2, 2), how), truth)
    image = alter_pixels(PIL.Image.fromarray(pixels), cells, (2, 2), how)
    assert isinstance(image, PIL.Image.Image) and np.array_equal(np.asarray(image), truth)
    assert np.asarray(alter_pixels(PIL.Image.fromarray(pixels[..., 0]), cells, (2, 2), how)).shape == (10, 8)
    for low in (0.0, -1.0):
        numbers = torch.from_numpy(pixels / 255).float().permute(2, 0, 1)[None] * (1 - low) + low
        expected = torch.where(torch.from_numpy(inside), 1 + low - numbers if how == "invert" else (1 + low) / 2, numbers)
        assert torch.equal(alter_pixels(numbers, cells, (2, 2), how), expected)
        array = alter_pixels(numbers[0].permute(1, 2, 0).numpy(), cells, (2, 2), how)
        np.testing.assert_allclose(array, expected[0].permute(1, 2, 0), atol=1e-7)
    window = alter_pixels(pixels, [(0, 0)], (1, 1), how, window=(5, 0, 10, 4))
    assert np.array_equal(window, truth)


def test_pictures_that_cannot_be_altered_are_refused() -> None:
    picture = pipelines.picture(1)
    with pytest.raises(UnknownSelection, match=r"the picture has no cell \(2, 0\)"):
        alter_pixels(picture, [(2, 0)], (2, 2))
    with pytest.raises(InvalidInput, match="use invert or blank"):
        alter_pixels(picture, [(0, 0)], (2, 2), "burn")
    with pytest.raises(InvalidInput, match="a str is no picture"):
        alter_pixels("shirt.png", [(0, 0)], (2, 2))
    with pytest.raises(InvalidInput, match="height and a width"):
        alter_pixels(picture, [(0, 0)], (2, 2), window=(4, 4, 4, 9))
