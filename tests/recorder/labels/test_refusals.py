"""What cannot be recorded says so before anything is sampled: where the reference went, or which module hides, and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from memory import MemoryWriter, memory
from pipelines_proofs import hidream
from pipelines_transformers import flux_fill, flux_text, kandinsky, kontext
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from i2am.recorder import record, recording
from i2am.recorder.labels.refusals import hidden_attention, refuse_pipeline
from i2am.schema.errors import InvalidInput, UnsupportedModel
from pipelines import build, generator, picture, stable_diffusion, text_arguments

__all__ = ["memory"]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")

PATH = Path("nowhere.zarr")


def pipeline_named(name: str) -> Any:
    """A pipeline that is only a name, around a denoiser without attention."""

    def init(self: Any, unet: Any = None, text_encoder: Any = None) -> None:
        self.unet = nn.Linear(1, 1)

    return type(name, (), {"__init__": init, "__call__": lambda self, prompt=None: None})()


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("StableUnCLIPImg2ImgPipeline", "added to the time embedding as a class label"),
        ("StableDiffusionXLInstructPix2PixPipeline", "concatenated to the latent's channels"),
        ("MarigoldDepthPipeline", "concatenated to the latent's channels"),
        ("FluxFillPipeline", "concatenated to the latent's channels"),
        ("FluxControlPipeline", "concatenated to the latent's channels"),
    ],
)
def test_a_reference_that_meets_no_attention_is_refused(name: str, where: str) -> None:
    pipeline = pipeline_named(name)
    for keys in ("auto", "all", "reference"):
        with pytest.raises(UnsupportedModel, match=f"{name} has no reference in its attention: the image (is )?{where}.*keys='text'"):
            refuse_pipeline(pipeline, keys)
    refuse_pipeline(pipeline, "text")


@pytest.mark.parametrize(
    "name", ["StableDiffusionInpaintPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionControlNetPipeline"]
)
def test_an_input_that_is_no_reference_is_refused_where_one_is_asked_for(name: str) -> None:
    with pytest.raises(UnsupportedModel, match="no reference in its attention"):
        refuse_pipeline(pipeline_named(name), "reference")
    refuse_pipeline(pipeline_named(name), "auto")


def test_text_of_pipelines_without_a_reference_is_recorded(memory: type[MemoryWriter]) -> None:
    for pipeline, call in (flux_fill(), build("inpaint")):
        record(pipeline, PATH, keys="text", **call())
        assert {group.role for layer in memory.last.trace.layers for group in layer.groups} == {"text"}
    pipeline = stable_diffusion(StableDiffusionInstructPix2PixPipeline, channels=8)
    record(pipeline, PATH, keys="text", **text_arguments(), image=picture(1), generator=generator())
    assert memory.last.trace.layers


def test_those_with_a_reference_are_let_through() -> None:
    for pipeline, _ in (kontext(), kandinsky(), build("paint-by-example"), build("ip-full")):
        for keys in ("auto", "reference", "all"):
            refuse_pipeline(pipeline, keys)


def test_a_softmax_of_its_own_is_named() -> None:
    pipeline = pipeline_named("SomeVideoPipeline")
    pipeline.unet = nn.ModuleDict({"faces": type("PerceiverCrossAttention", (nn.Module,), {})()})
    with pytest.raises(UnsupportedModel, match=r"unet\.faces \(PerceiverCrossAttention\) reads the reference with a softmax of its own"):
        refuse_pipeline(pipeline, "auto")


@pytest.mark.parametrize(
    ("name", "attributes", "words"),
    [
        ("XFormersAttnProcessor", {}, "xformers' own kernel; call pipeline.disable_xformers_memory_efficient_attention"),
        ("SlicedAttnProcessor", {}, "slice by slice.*disable_attention_slicing"),
        ("FluxAttnProcessor", {"_attention_backend": "sage"}, "backend is 'sage'; call pipeline.unet.set_attention_backend"),
        ("FluxAttnProcessor", {"_attention_backend": "flash"}, "backend is 'flash'"),
        ("FluxAttnProcessor", {"_parallel_config": object()}, "split over several devices.*one device"),
        ("MyProcessor", {}, "MyProcessor multiplies matrices itself; give it back the processor that it was loaded with"),
        ("AttnAddedKVProcessor", {}, r"set_attn_processor\(AttnAddedKVProcessor2_0\(\)\)"),
        ("IPAdapterAttnProcessor", {"to_v_ip": None}, r"pipeline\.unload_ip_adapter\(\) and load it again"),
    ],
)
def test_hidden_attention_names_module_cause_and_way_out(name: str, attributes: dict[str, Any], words: str) -> None:
    module = nn.Module()
    module.processor = type(name, (), attributes)()
    with pytest.raises(UnsupportedModel, match=rf"unet\.mid\.attn2 ran.*{words}.*leave the module out through layers="):
        raise hidden_attention("unet.mid.attn2", module)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_backend_chosen_for_all_is_named() -> None:
    from diffusers.models.attention_dispatch import attention_backend

    pipeline, call = kontext()
    with attention_backend("flex"), pytest.raises(UnsupportedModel, match="backend is 'flex'"):
        record(pipeline, PATH, **call())


@pytest.mark.parametrize(
    ("hide", "words"),
    [
        (lambda pipeline: pipeline.enable_attention_slicing(1), r"slice by slice.*disable_attention_slicing\(\)"),
        (
            lambda pipeline: pipeline.unet.set_attn_processor(AttnProcessor()),
            r"AttnProcessor multiplies matrices itself; call .*AttnProcessor2_0",
        ),
    ],
)
def test_a_pipeline_that_hides_its_attention_stops_at_the_first_module(hide: Any, words: str, memory: type[MemoryWriter]) -> None:
    pipeline, call = build("text")
    hide(pipeline)
    with pytest.raises(UnsupportedModel, match=rf"unet\.down_blocks\.1\..*attn2 ran, but made no scaled_dot.*{words}.*layers="):
        record(pipeline, PATH, **call())


class OneByOne:
    """Attends from each head by itself."""

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, attention_mask: Any = None) -> Any:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        made = [project(tokens) for project, tokens in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))]
        query, key, value = (tokens.unflatten(2, (attn.heads, -1)).transpose(1, 2) for tokens in made)
        each = [scaled_dot_product_attention(*(part[:, h : h + 1] for part in (query, key, value))) for h in range(attn.heads)]
        return attn.to_out[0](torch.cat(each, 1).transpose(1, 2).flatten(2))


def test_heads_that_attend_by_themselves_are_no_layers(memory: type[MemoryWriter]) -> None:
    pipeline, call = build("text")
    pipeline.unet.set_attn_processor(OneByOne())
    with pytest.raises(UnsupportedModel, match=r"from each head by itself.*layers="):
        record(pipeline, PATH, **call())


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
def test_a_way_out_that_is_taken_leads_out(memory: type[MemoryWriter]) -> None:
    class ByHand:
        def __call__(self, attn: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
            attn.to_q(hidden_states), attn.to_v(hidden_states)
            return (hidden_states, args[0]) if args else hidden_states

    pipeline, call = flux_text()
    pipeline.transformer.set_attn_processor(ByHand())
    with pytest.raises(UnsupportedModel, match=r"call (pipeline\.transformer\.set_attn_processor\(FluxAttnProcessor\(\)\)),"):
        record(pipeline, PATH, **call())
    pipeline.transformer.set_attn_processor(FluxAttnProcessor())
    record(pipeline, PATH, **call())
    assert len(memory.last.trace.layers) == 2


def test_a_denoiser_whose_arguments_are_not_known_is_refused(memory: type[MemoryWriter]) -> None:
    pipeline, call = hidream()
    with pytest.raises(UnsupportedModel, match=r"double_stream_blocks\.0\.block\.attn1.*come from none of its projections"):
        record(pipeline, PATH, **call())
    hook = pipeline.transformer.register_forward_pre_hook
    hook(lambda _, args, kwargs: (args, {**kwargs, "timesteps": None}), with_kwargs=True, prepend=True)
    with pytest.raises(UnsupportedModel, match=r"given no timestep that could be told.*encoder_hidden_states_t5.*denoisers="):
        record(pipeline, PATH, **call())
    hook(lambda _, args, kwargs: (args, {"tokens": kwargs.pop("hidden_states")}), with_kwargs=True, prepend=True)
    with pytest.raises(UnsupportedModel, match=r"given no latent that could be told from its arguments \(tokens"):
        record(pipeline, PATH, **call())


def test_an_argument_under_the_name_of_an_option(memory: type[MemoryWriter]) -> None:
    class Odd(StableDiffusionPipeline):
        def __call__(self, steps: int, keys: str = "b", **arguments: Any) -> Any:
            return super().__call__(num_inference_steps=steps, **arguments)

    pipeline, call = stable_diffusion(Odd), text_arguments()
    call.pop("num_inference_steps")
    for options in ({"steps": "0"}, {}):
        with pytest.raises(InvalidInput, match=r"Odd takes an argument steps, and record\(\) has an option of that name.*with recording\("):
            record(pipeline, PATH, **options, **call)
    with recording(pipeline, PATH, steps="0"):
        pipeline(steps=3, **call)
    assert len(memory.last.commits) == 1
