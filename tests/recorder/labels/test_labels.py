"""Which step, branch, sample and token group a call belongs to, and what a selection selects."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionPAGPipeline
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.image_processor import IPAdapterMaskProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import MemoryWriter, memory

from i2am.recorder import record
from i2am.recorder.capture.call import Call
from i2am.recorder.labels.layers import Layers
from i2am.recorder.labels.passes import evaluations_left, noise_level
from i2am.recorder.labels.rows import Row, Rows, number
from i2am.recorder.labels.tokens import Context, Scene, token_groups
from i2am.recorder.plan.budget import choose_encoding
from i2am.recorder.plan.options import Options, select_branches, select_layers, select_steps
from i2am.schema.errors import InvalidInput, UnknownSelection, UnsupportedModel
from pipelines import build, generator, ip_adapter, paint_by_example, picture, square_mask, stable_diffusion, text_arguments, text_to_image

__all__ = ["memory"]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

PATH = Path("nowhere.zarr")
FULL = "IPAdapterFullImageProjection"
REFERENCES = ("reference_0", "reference_1")
GUIDED = ("uncond", "cond")


@pytest.mark.parametrize("family", ["text", "text-pndm", "text-heun", "text-euler", "img2img"])
def test_steps_are_the_evaluations_in_execution_order(family: str, memory: type[MemoryWriter]) -> None:
    pipeline, call = build(family)
    times: list[float] = []
    sigmas: list[float] = []

    def note(module: Any, args: Any) -> None:
        times.append(float(args[1]))
        index = getattr(pipeline.scheduler, "step_index", None)
        sigmas.append(math.nan if index is None else float(pipeline.scheduler.sigmas[index]))

    pipeline.unet.register_forward_pre_hook(note)
    record(pipeline, PATH, **call())
    commits = memory.last.commits
    assert [commit["timestep"] for commit in commits] == times
    np.testing.assert_equal([commit["sigma"] for commit in commits], sigmas)
    assert [commit["evaluation"] for commit in commits] == [commit["scheduler_step"] for commit in commits] == list(range(len(times)))
    assert memory.last.trace.steps == len(times)


def test_chosen_steps_keep_their_ordinals(memory: type[MemoryWriter]) -> None:
    pipeline, call = build("text-heun")
    record(pipeline, PATH, steps="::2", **call())
    assert [commit["evaluation"] for commit in memory.last.commits] == [0, 2, 4]
    assert {step for *_, step in memory.last.blocks} == {0, 1, 2}


def test_guidance_that_ends_early_leaves_cond_rows_cond(memory: type[MemoryWriter]) -> None:
    pipeline, call = text_to_image(num_inference_steps=4)
    whole = [{**call(), "callback_on_step_end": SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)} for _ in range(2)]
    for arguments in whole:
        arguments["callback_on_step_end_tensor_inputs"] = ["prompt_embeds"]
    plain = pipeline(**whole[0]).images
    keys: list[torch.Tensor] = []
    attention = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    attention.to_k.register_forward_hook(lambda module, args, output: keys.append(output[-1].clone()))
    recorded = record(pipeline, PATH, layers="*mid_block*", encoding="factors", branches="both", **whole[1]).images
    assert np.array_equal(plain, recorded)
    branches = [[branch for _, _, branch, step in memory.last.blocks if step == at] for at in range(4)]
    assert branches == [["uncond", "cond"]] * 2 + [["cond"]] * 2
    for step in range(4):
        key = memory.last.blocks[0, 0, "cond", step]["key"]
        assert np.array_equal(key, keys[step].unflatten(-1, (2, -1)).transpose(0, 1).numpy())


@settings(deadline=None)
@given(st.integers(1, 4), st.permutations([0, 1]), st.booleans())
def test_rows_are_known_again_by_what_conditions_them(samples: int, turn: list[int], copy: bool) -> None:
    conditioning = torch.randn(2, 3, 2, generator=generator(samples)).repeat_interleave(samples, 0)
    rows = Rows()
    expected = [Row(i + samples * part, branch, i) for part, branch in enumerate(GUIDED) for i in range(samples)]
    assert list(rows.label([conditioning], 2 * samples, GUIDED)) == expected
    again = conditioning.clone() if copy else conditioning
    assert list(rows.label([again], 2 * samples, GUIDED)) == expected
    halves = list(conditioning.chunk(2))
    turned = torch.cat([halves[part] for part in turn])
    names = [GUIDED[part] for part in turn for _ in range(samples)]
    assert rows.label([turned], 2 * samples, GUIDED) == number(names)
    assert {row.branch for row in rows.label([halves[0]], samples, ("cond",))} == {"uncond"}


def test_rows_that_cannot_be_told_apart_go_by_their_place() -> None:
    rows, same = Rows(), torch.zeros(2, 3)
    assert [row.branch for row in rows.label([same], 2, GUIDED)] == ["uncond", "cond"]
    assert [row.branch for row in rows.label([same[:1]], 1, ("cond",))] == ["cond"]
    assert [row.branch for row in Rows().label([], 2, GUIDED)] == ["uncond", "cond"]


def test_conditioning_changed_in_place_is_noticed() -> None:
    rows, conditioning = Rows(), torch.arange(4.0).view(2, 2)
    assert [row.branch for row in rows.label([conditioning], 2, GUIDED)] == ["uncond", "cond"]
    conditioning.copy_(conditioning.flip(0))
    assert [row.branch for row in rows.label([conditioning], 2, GUIDED)] == ["cond", "uncond"]


def test_a_batch_that_does_not_split_is_an_error() -> None:
    with pytest.raises(UnsupportedModel, match=r"given 3 rows, expected a multiple of 2 \(uncond, cond\)"):
        Rows().label([], 3, GUIDED)


def test_two_passes_between_two_steps_are_an_error(memory: type[MemoryWriter]) -> None:
    pipeline, call = text_to_image(num_images_per_prompt=2)
    scale, context = pipeline.scheduler.scale_model_input, call()["prompt_embeds"].repeat(4, 1, 1)

    def look_first(sample: torch.Tensor, time: Any) -> torch.Tensor:
        pipeline.unet(sample, time, context)
        return scale(sample, time)

    pipeline.scheduler.scale_model_input = look_first
    with pytest.raises(UnsupportedModel, match="ran its denoiser twice between two steps"):
        record(pipeline, PATH, **call())
    assert memory.last.commits == []


def test_more_rows_than_images_is_an_error(memory: type[MemoryWriter]) -> None:
    pipeline, call = text_to_image()
    forward = pipeline.unet.forward

    def double(sample: Any, time: Any, encoder_hidden_states: Any = None, **rest: Any) -> Any:
        return forward(sample, time, encoder_hidden_states=encoder_hidden_states, **rest)

    def widen(module: Any, args: Any, kwargs: Any) -> Any:
        return (args[0].repeat(2, 1, 1, 1), args[1]), {**kwargs, "encoder_hidden_states": kwargs["encoder_hidden_states"].repeat(2, 1, 1)}

    pipeline.unet.register_forward_pre_hook(widen, with_kwargs=True, prepend=True)
    pipeline.unet.register_forward_hook(lambda module, args, output: (output[0][:2],))
    with pytest.raises(UnsupportedModel, match="given 4 rows, expected 2 for 1 images"):
        record(pipeline, PATH, **call())
    assert memory.last.commits == []


@pytest.mark.parametrize(("cls", "channels", "extra"), [(StableDiffusionPAGPipeline, 4, {"pag_scale": 3.0})])
def test_perturbed_rows_are_neither_branch(cls: Any, channels: int, extra: dict[str, Any], memory: type[MemoryWriter]) -> None:
    pipeline = stable_diffusion(cls, channels=channels)
    arguments = {**text_arguments(), "height": 32, "width": 32, **extra}
    plain = pipeline(**arguments, generator=generator()).images
    assert np.array_equal(plain, record(pipeline, PATH, branches="both", **arguments, generator=generator()).images)
    assert {branch for _, _, branch, _ in memory.last.blocks} == {"cond", "uncond"}
    assert memory.last.trace.samples == 1


def test_instructions_are_the_first_of_three_rows(memory: type[MemoryWriter]) -> None:
    pipeline = stable_diffusion(StableDiffusionInstructPix2PixPipeline, channels=8)
    arguments = {**text_arguments(), "image": picture(1)}
    with pytest.raises(UnsupportedModel, match=r"concatenated to the latent.s channels.*keys='text'"):
        record(pipeline, PATH, **arguments, generator=generator())
    keys: list[torch.Tensor] = []
    attention = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    attention.to_k.register_forward_hook(lambda module, args, output: keys.append(output.clone()))
    record(pipeline, PATH, keys="text", layers="*mid*", branches="both", encoding="factors", **arguments, generator=generator())
    for branch, row in (("cond", 0), ("uncond", 2)):
        assert np.array_equal(memory.last.blocks[0, 0, branch, 0]["key"], keys[0][row].unflatten(-1, (2, -1)).transpose(0, 1).numpy())


def call_of(projection: str, tokens: int, repeat: int = 0, grid: tuple[int, int] | None = (2, 3), **changes: Any) -> Call:
    tensors = {"query": torch.empty(2, 4, 6, 8, device="meta"), "key": torch.empty(2, 4, tokens, 8, device="meta"), **changes}
    made = {"query": tensors["query"], "key": tensors["key"], "mask": tensors.get("mask")}
    return Call(path="unet.a.attn2", projection=projection, repeat=repeat, scale=0.5, grid=grid, **made)


def shown(groups: Any) -> list[tuple[Any, ...]]:
    return [(g.name, g.start, g.stop, g.specials, g.grid, g.image) for g in groups]


@pytest.mark.parametrize(
    ("projection", "tokens", "context", "images", "repeat", "expected"),
    [
        ("to_v", 77, ("text", (4, 4), (), ()), (), None, [("text", 0, 77, 0, None, None)]),
        ("to_v", 17, ("reference", (4, 4), ("reference",), ()), (), None, [("reference", 0, 17, 1, (4, 4), "reference")]),
        ("to_v", 16, ("reference", (4, 4), (), ()), (), None, [("reference", 0, 16, 0, (4, 4), None)]),
        ("to_v", 12, ("reference", (3, 4), (), ()), (), None, [("reference", 0, 12, 0, (3, 4), None)]),
        ("to_v", 1, ("reference", (4, 4), ("reference",), ()), (), None, [("reference", 0, 1, 0, None, "reference")]),
        ("to_v", 17, ("reference", None, (), ()), (), None, [("reference", 0, 17, 0, None, None)]),
        # Sixteen tokens of a resampler are not the sixteen patches.
        ("to_v_ip.0", 16, ("text", (4, 4), (), ("IPAdapterPlusImageProjection",)), (1,), None, [("reference", 0, 16, 0, None, None)]),
        ("to_v_ip.0", 17, ("text", (4, 4), (), (FULL,)), (1,), None, [("reference", 0, 17, 1, (4, 4), None)]),
        ("to_v_ip.1", 4, ("text", (4, 4), REFERENCES, ("A", "B")), (1, 1), None, [("reference_1", 0, 4, 0, None, "reference_1")]),
        (
            "to_v_ip.0",
            34,
            ("text", (4, 4), (), (FULL, "B")),
            (2, 1),
            None,
            [("reference_0", 0, 17, 1, (4, 4), None), ("reference_1", 17, 34, 1, (4, 4), None)],
        ),
        ("to_v_ip.0", 17, ("text", (4, 4), (), (FULL, "B")), (2, 1), 1, [("reference_1", 0, 17, 1, (4, 4), None)]),
        ("to_v_ip.1", 4, ("text", (4, 4), (), ("A", "B")), (2, 1), 0, [("reference_2", 0, 4, 0, None, None)]),
    ],
)
def test_token_groups(projection: str, tokens: int, context: Any, images: Any, repeat: int | None, expected: Any) -> None:
    call = call_of(projection, tokens, repeat or 0)
    assert shown(token_groups(call, Context(*context), Scene(images, repeat is not None))) == expected


def test_keys_beside_unknown_projections_are_an_error() -> None:
    with pytest.raises(UnsupportedModel, match="keys made by to_w are not known"):
        token_groups(call_of("to_w", 4), Context("text", None, (), ()))


def test_a_layer_is_described_from_shapes_alone() -> None:
    groups = token_groups(call_of("to_v", 17), Context("reference", (4, 4), (), ()))
    layers = Layers(Options(encoding="auto"))
    layer = layers.describe(call_of("to_v", 17), 0, groups)
    assert (layer.heads, layer.head_dim, layer.scale, layer.grid, layer.tokens, layer.encoding) == (4, 8, 0.5, (2, 3), 17, "factors")
    with pytest.raises(UnsupportedModel, match="attends from 6 positions, which no enclosing module lays out"):
        layers.describe(call_of("to_v", 17, grid=None), 0, groups)
    with pytest.raises(UnsupportedModel, match="4 query heads on 3 key heads"):
        layers.describe(call_of("to_v", 17, key=torch.empty(2, 3, 17, 8)), 0, groups)


def test_auto_takes_whatever_is_smaller() -> None:
    assert choose_encoding("auto", 7, 8, masked=False) == "probabilities"
    assert choose_encoding("auto", 8, 8, masked=False) == "factors"
    assert choose_encoding("factors", 8, 8, masked=True) == "probabilities"


def test_each_masked_reference_is_a_call_of_its_own(memory: type[MemoryWriter]) -> None:
    pipeline, call = ip_adapter("full", "plain", ip_adapter_image=[[picture(1), picture(2)], picture(3)])
    masks = IPAdapterMaskProcessor().preprocess([square_mask(32, 24)] * 3, height=32, width=24)
    masks = [masks[:2].reshape(1, 2, 32, 24), masks[2:].reshape(1, 1, 32, 24)]
    arguments = {"cross_attention_kwargs": {"ip_adapter_masks": masks}}
    plain = pipeline(**call(), **arguments).images
    assert np.array_equal(plain, record(pipeline, PATH, layers="*mid*", **call(), **arguments).images)
    layers = memory.last.trace.layers
    assert [(layer.call, layer.tokens, layer.groups[0].image) for layer in layers] == [
        (0, 7, None),
        (1, 17, "reference_0"),
        (2, 17, "reference_1"),
        (3, 4, "reference_2"),
    ]
    record(pipeline, PATH, layers="*mid*", **call())
    assert [(layer.call, layer.tokens, [g.image for g in layer.groups]) for layer in memory.last.trace.layers][1:] == [
        (1, 34, ["reference_0", "reference_1"]),
        (2, 4, ["reference_2"]),
    ]


@pytest.mark.parametrize(
    ("keys", "roles"), [("all", {"text", "reference", "self"}), ("text", {"text"}), ("reference", {"reference"}), ("self", {"self"})]
)
def test_keys_choose_call_sites(keys: str, roles: set[str], memory: type[MemoryWriter]) -> None:
    pipeline, call = ip_adapter("full")
    record(pipeline, PATH, keys=keys, **call())
    assert {layer.groups[0].role for layer in memory.last.trace.layers} == roles


def test_keys_that_never_appear_are_an_error() -> None:
    pipeline, call = text_to_image()
    with pytest.raises(UnsupportedModel, match=r"keys='reference' recorded nothing.*has text keys only; load an IP-Adapter"):
        record(pipeline, PATH, keys="reference", **call())
    pipeline, call = paint_by_example()
    with pytest.raises(UnsupportedModel, match=r"keys='text' recorded nothing.*has reference keys only; use keys='all'"):
        record(pipeline, PATH, keys="text", **call())


def test_sigma_and_length_of_schedules() -> None:
    times, sigmas = torch.tensor([9.0, 5.0, 5.0, 1.0]), torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0])
    scheduler = SimpleNamespace(timesteps=times, sigmas=sigmas, step_index=None)
    assert noise_level(scheduler, 5.0) == 3.0
    scheduler.step_index = 2
    assert noise_level(scheduler, 5.0) == 2.0
    assert math.isnan(noise_level(SimpleNamespace(timesteps=[1]), 1.0))
    assert evaluations_left(scheduler, 5.0) == 3
    scheduler.begin_index = 2
    assert evaluations_left(scheduler, 5.0) == 2


PATHS = ["unet.down.0.attn2", "unet.mid.attn2", "unet.up.1.attn2"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, PATHS),
        ("*down*", PATHS[:1]),
        (r"re:(mid|up)\.", PATHS[1:]),
        (["unet.up.1.attn2", "unet.down*"], [PATHS[0], PATHS[2]]),
    ],
)
def test_layers_are_chosen_by_glob_expression_and_name(layers: Any, expected: list[str]) -> None:
    assert select_layers(layers, PATHS) == expected


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 20), st.integers(0, 80))
def test_steps_are_chosen_as_python_slices_do(evaluations: int, stride: int, start: int, stop: int) -> None:
    wanted = list(range(evaluations))[start:stop:stride]
    texts = (f"{start}:{stop}:{stride}", f" {start} : {stop} : {stride} ")
    for text in texts:
        if wanted:
            assert select_steps(text, evaluations) == wanted
        else:
            with pytest.raises(InvalidInput, match=f"this run has (0 to {evaluations - 1}|only 0)"):
                select_steps(text, evaluations)
    assert select_steps(f"::{stride}", evaluations) == list(range(0, evaluations, stride))
    assert select_steps(None, evaluations) == list(range(evaluations))
    assert select_steps([evaluations - 1, 0], evaluations) == sorted({0, evaluations - 1})


@pytest.mark.parametrize(
    ("choose", "error", "words"),
    [
        (lambda: select_layers("*nope*", PATHS), UnknownSelection, "no layer of this pipeline matches.*it has unet.down.0.attn2"),
        (lambda: select_layers([], PATHS), InvalidInput, "the layer selection is empty; this pipeline has unet"),
        (lambda: select_layers("1", PATHS), InvalidInput, "layers='1' is a position, and only a trace's layers have positions"),
        (lambda: select_layers([1], PATHS), InvalidInput, "layers=1 is a position"),
        (lambda: select_layers("re:(", PATHS), InvalidInput, "not a regular expression"),
        (lambda: select_layers("*x", [f"m{i}" for i in range(20)]), UnknownSelection, "m11 and 8 more"),
        (lambda: select_steps([7], 5), UnknownSelection, "this run has no step 7; it has 0 to 4"),
        (lambda: Options(steps="0:3:0"), InvalidInput, "steps='0:3:0' is no choice of steps"),
        (lambda: Options(steps="sometimes"), InvalidInput, "is no choice of steps; write 5, or 0,3,7"),
        (lambda: select_steps("-1", 1000, planned=False), InvalidInput, "counts from the end of a run .* say it with evaluations="),
        (lambda: Options(steps=5.5), InvalidInput, "5.5 is not a step"),  # type: ignore[arg-type]
        (lambda: select_branches("left"), InvalidInput, "use cond, uncond or both"),
        (lambda: Options(keys="own"), InvalidInput, "use auto, all, reference, text or self"),
        (lambda: Options(encoding="png"), InvalidInput, "use probabilities, factors or auto"),
        (lambda: Options(codec="gzip"), InvalidInput, "codecs are lz4, zstd"),
        (lambda: Options(level=11), InvalidInput, "levels are 0 to 9"),
        (lambda: Options(queue_mb=0), InvalidInput, "above 0"),
        (lambda: Options(facts={"x": math.nan}), InvalidInput, "facts cannot be kept as JSON"),
    ],
)
def test_what_cannot_be_meant_is_an_error_that_says_what_can(choose: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        choose()


def test_a_branch_that_the_run_has_not_is_an_error() -> None:
    pipeline, call = text_to_image(guidance_scale=1.0)
    with pytest.raises(InvalidInput, match=r"branches='uncond' selects nothing: this run is not guided and has cond only"):
        record(pipeline, PATH, branches="uncond", **call())
