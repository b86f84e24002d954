"""Capturing changes no bit of an image, sees the model's own numbers, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from memory import MemoryWriter, memory
from torch import nn

from i2am.recorder import record, recording
from i2am.recorder.capture.modules import attention_modules, denoisers
from i2am.schema.codec import decode_probability
from i2am.schema.errors import UnsupportedModel
from pipelines import FAMILIES, SCHEDULERS, build, text_to_image

__all__ = ["memory"]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

PATH = Path("nowhere.zarr")


class Projections:
    """An independent look at what goes into attention: the outputs of every to_q, to_k and to_k_ip, run by run."""

    def __init__(self, pipeline: Any) -> None:
        self.outputs: dict[tuple[str, str], list[torch.Tensor]] = {}
        for path, module in attention_modules(pipeline).items():
            for name, child in module.named_modules():
                if name.split(".")[-1] in ("to_q", "to_k") or ".to_k_ip." in name:
                    child.register_forward_hook(self._keeper(path, name.removeprefix("processor.")))

    def _keeper(self, path: str, name: str) -> Any:
        return lambda module, args, output: self.outputs.setdefault((path, name), []).append(output.clone())

    def factors(self, layer: Any, evaluation: int, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """q and k of a layer as (head, place, channel)."""
        name = "to_k" if layer.call == 0 else f"to_k_ip.{layer.call - 1}"
        query, key = (self.outputs[layer.path, part][evaluation][row] for part in ("to_q", name))
        return split(query, layer.heads), split(key, layer.heads)


def split(projected: torch.Tensor, heads: int) -> torch.Tensor:
    flat = projected.reshape(-1, heads, projected.shape[-1] // heads)
    return flat.transpose(0, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_recording_changes_no_bit_and_stores_the_models_own_factors(family: str, memory: type[MemoryWriter]) -> None:
    pipeline, call = build(family)
    plain = torch.from_numpy(pipeline(**call()).images)
    projections = Projections(pipeline)
    guided = call()["guidance_scale"] > 1
    recorded = record(pipeline, PATH, encoding="factors", branches="both" if guided else "cond", **call()).images
    assert torch.equal(plain, torch.from_numpy(recorded))

    writer = memory.last
    trace, samples = writer.trace, len(plain)
    assert (trace.samples, trace.steps) == (samples, len(writer.commits))
    assert len(writer.blocks) == len(trace.layers) * samples * len(trace.branches) * trace.steps
    for (index, sample, branch, step), blocks in writer.blocks.items():
        layer = trace.layers[index]
        row = sample + (samples if guided and branch == "cond" else 0)
        query, key = projections.factors(layer, step, row)
        assert np.array_equal(blocks["query"], query.unflatten(1, layer.grid).numpy())
        assert np.array_equal(blocks["key"], key.numpy())


@pytest.mark.parametrize("family", ["text", "ip-two", "paint-by-example", "sdxl"])
def test_probabilities_are_the_softmax_of_the_models_factors(family: str, memory: type[MemoryWriter]) -> None:
    pipeline, call = build(family)
    plain = torch.from_numpy(pipeline(**call()).images)
    projections = Projections(pipeline)
    assert torch.equal(plain, torch.from_numpy(record(pipeline, PATH, **call()).images))
    for (index, sample, _, step), blocks in memory.last.blocks.items():
        layer = memory.last.trace.layers[index]
        query, key = projections.factors(layer, step, sample + len(plain))
        truth = torch.softmax(query.double() @ key.double().transpose(1, 2) * layer.scale, 2)
        found = decode_probability(blocks["probability"])
        np.testing.assert_allclose(found.reshape(truth.shape), truth, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(found.sum(-1), 1, atol=1e-3)
        generated = found * np.exp(blocks["query_lse"][..., None] - blocks["token_lse"][:, None, None, :])
        np.testing.assert_allclose(generated.sum((1, 2)), 1, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_stored_exactly(dtype: torch.dtype, memory: type[MemoryWriter]) -> None:
    pipeline, call = build("text")
    pipeline.unet.to(dtype)
    pipeline.vae.to(dtype)

    def arguments() -> dict[str, Any]:
        return {name: value.to(dtype) if isinstance(value, torch.Tensor) else value for name, value in call().items()}

    plain = pipeline(**arguments()).images
    projections = Projections(pipeline)
    assert np.array_equal(plain, record(pipeline, PATH, encoding="factors", **arguments()).images)
    layer = memory.last.trace.layers[0]
    assert (layer.dtype, layer.factor_dtype) == (str(dtype)[6:], "float16" if dtype == torch.float16 else "float32")
    query, _ = projections.factors(layer, 0, 1)
    assert np.array_equal(memory.last.blocks[0, 0, "cond", 0]["query"], query.unflatten(1, layer.grid).float().numpy())


def leftovers(pipeline: Any) -> int:
    modules = [module for root in denoisers(pipeline).values() for module in root.modules()]
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


class Stop(Exception):
    """Raised in the middle of a run."""


@pytest.mark.parametrize("error", [None, Stop, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["step", "attention"])
def test_nothing_stays_behind(error: type[BaseException] | None, place: str, memory: type[MemoryWriter]) -> None:
    pipeline, call = build("ip-full")
    classes = (type(pipeline), type(pipeline.scheduler))
    before = [dict(cls.__dict__) for cls in classes]
    plain = pipeline(**call()).images

    def fail(*args: Any) -> Any:
        if error is not None:
            raise error
        return args[-1]

    arguments, handle = call(), None
    if place == "step":
        arguments["callback_on_step_end"] = fail
    elif error is not None:
        attention = next(iter(attention_modules(pipeline).values()))
        handle = attention.to_out[0].register_forward_hook(lambda *args: fail())
    if error is None:
        record(pipeline, PATH, **arguments)
    else:
        with pytest.raises(error):
            record(pipeline, PATH, **arguments)
        assert memory.last.reason is not None
        assert error.__name__ in memory.last.reason
    if handle is not None:
        handle.remove()
    assert leftovers(pipeline) == 0
    assert [dict(cls.__dict__) for cls in classes] == before
    assert torch.overrides._get_current_function_mode_stack() == []
    assert np.array_equal(plain, pipeline(**call()).images)


def test_a_scheduler_that_inherits_step_gets_it_back(memory: type[MemoryWriter]) -> None:
    class Inherited(type(SCHEDULERS["ddim"]())):  # type: ignore[misc]
        pass

    pipeline, call = build("text")
    pipeline.scheduler = Inherited.from_config(pipeline.scheduler.config)
    record(pipeline, PATH, **call())
    assert "step" not in Inherited.__dict__
    assert [commit["scheduler_step"] for commit in memory.last.commits] == [0, 1, 2]


@pytest.mark.parametrize(
    ("disturb", "words"),
    [
        (lambda p: p.unet.set_attn_processor(AttnProcessor()), ("AttnProcessor multiplies", "set_attn_processor(AttnProcessor2_0())")),
        (lambda p: p.enable_attention_slicing(1), ("slice by slice", "disable_attention_slicing")),
    ],
)
def test_attention_that_is_not_seen_stops_the_recording(disturb: Any, words: tuple[str, str], memory: type[MemoryWriter]) -> None:
    pipeline, call = text_to_image()
    disturb(pipeline)
    with pytest.raises(UnsupportedModel) as caught:
        record(pipeline, PATH, **call())
    assert "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2 ran" in str(caught.value)
    assert all(word in str(caught.value) for word in words)
    assert leftovers(pipeline) == 0


def test_one_blind_module_can_be_left_out(memory: type[MemoryWriter]) -> None:
    pipeline, call = text_to_image()
    pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2.set_processor(AttnProcessor())
    with pytest.raises(UnsupportedModel, match=r"mid_block.*leave the module out through layers="):
        record(pipeline, PATH, **call())
    record(pipeline, PATH, layers="*up_blocks*", **call())
    assert {layer.path.split(".")[1] for layer in memory.last.trace.layers} == {"up_blocks"}


def test_a_hijacked_attention_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, call = text_to_image()
    original = torch.nn.functional.scaled_dot_product_attention

    def hijack(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", hijack)
    with pytest.raises(UnsupportedModel, match=r"was replaced by .*test_capture\..*hijack"):
        record(pipeline, PATH, **call())


def test_an_adapter_of_scale_zero_is_absent_not_an_error(memory: type[MemoryWriter]) -> None:
    pipeline, call = build("ip-two")
    pipeline.set_ip_adapter_scale([0.0, 0.5])
    record(pipeline, PATH, **call())
    # The second adapter keeps its number although it is the second call of its module.
    assert {layer.call for layer in memory.last.trace.layers} == {0, 2}
    assert {layer.groups[0].name for layer in memory.last.trace.layers} == {"text", "reference_1"}


def test_fused_projections_are_recorded(memory: type[MemoryWriter]) -> None:
    pipeline, call = text_to_image()
    pipeline.unet.fuse_qkv_projections()
    plain = pipeline(**call()).images
    assert np.array_equal(plain, record(pipeline, PATH, **call()).images)
    assert [layer.groups[0].role for layer in memory.last.trace.layers] == ["text"] * 4


def test_a_compiled_denoiser_is_recorded_eagerly(memory: type[MemoryWriter]) -> None:
    pipeline, call = text_to_image()
    plain = pipeline(**call()).images
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")
    assert np.array_equal(plain, record(pipeline, PATH, **call()).images)
    assert memory.last.trace.layers[0].path == "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2"


def test_other_pipelines_and_schedulers_of_the_same_class_are_left_alone(memory: type[MemoryWriter]) -> None:
    (pipeline, call), (other, other_call) = text_to_image(), text_to_image()
    plain = other(**other_call()).images
    with recording(pipeline, PATH):
        first = other(**other_call()).images
        pipeline(**call())
        second = other(**other_call()).images
    assert np.array_equal(plain, first)
    assert np.array_equal(plain, second)
    assert len(memory.last.commits) == 3


def test_only_chosen_modules_pay(memory: type[MemoryWriter]) -> None:
    pipeline, call = text_to_image()
    hooked: set[int] = set()
    arguments = call()

    def look(this: Any, index: int, time: Any, values: Any) -> Any:
        attention: list[nn.Module] = list(attention_modules(this).values())
        hooked.update(i for i, module in enumerate(attention) if module._forward_hooks)
        return values

    record(pipeline, PATH, layers=r"re:mid_block", **{**arguments, "callback_on_step_end": look})
    assert len(hooked) == 1
    assert len(memory.last.trace.layers) == 1


class Reaches:
    """Self-attention that is given more than the image's own tokens, in a place where nothing else is known to stand."""

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, **_: Any) -> Any:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        context = torch.cat([context, torch.ones_like(context[:, :3])], 1) if encoder_hidden_states is None else context
        made = (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        query, key, value = (tokens.unflatten(2, (attn.heads, -1)).transpose(1, 2) for tokens in made)
        return attn.to_out[0](torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def test_attention_that_is_left_out_is_counted(memory: type[MemoryWriter]) -> None:
    pipeline, call = build("text")
    record(pipeline, PATH, **call())
    assert memory.last.trace.provenance["notes"] == []
    images = []
    for run in (lambda pipeline, call: pipeline(**call()), lambda pipeline, call: record(pipeline, PATH, **call())):
        pipeline, call = build("text")
        pipeline.unet.set_attn_processor(Reaches())
        images.append(run(pipeline, call).images)
    assert np.array_equal(*images)
    (note,) = memory.last.trace.provenance["notes"]
    assert note.startswith("attention of 4 other modules reads more than the image itself and is left out, such as unet.down_blocks.1.")
    assert note.endswith("attn1 attends from 64 tokens to 67")
