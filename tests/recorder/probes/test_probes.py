"""Probes: the keys that a model's own layers make of texts and pictures it was not given, and nothing else changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import PIL.Image
import pipelines_adapters
import pipelines_transformers
import pytest
import torch
import xarray as xr
from memory import MemoryWriter, memory
from pipelines_text import FAMILIES, LENGTH, clip_encoder, clip_tokenizer, prompted, prompted_xl

import pipelines
from i2am.analyzer import open_trace, word_map
from i2am.recorder import record, recording
from i2am.recorder.demo.pipeline import load_shipped
from i2am.recorder.plan.options import read_probes
from i2am.schema.errors import InvalidInput, UnsupportedModel

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
__all__ = ["memory"]

PROMPT = "a red zebra, a cat"


def run(built: pipelines.Built, probes: Any, **options: Any) -> tuple[Any, MemoryWriter]:
    pipeline, call = built
    output = record(pipeline, Path("nowhere.zarr"), probes=probes, progress=False, **{"encoding": "factors", **options}, **call())
    return output.images, MemoryWriter.last


def key_of(made: MemoryWriter, layer: int, branch: str = "cond", step: int = 0) -> np.ndarray:
    return made.blocks[layer, 0, branch, step]["key"]


def probe_of(made: MemoryWriter, layer: int, name: str) -> np.ndarray:
    (group,) = [group for group in made.trace.layers[layer].probes if group.name == name]
    return made.probe_keys[layer][:, group.start : group.stop]


def with_lora(built: pipelines.Built) -> pipelines.Built:
    from peft import LoraConfig

    pipeline, call = built
    torch.manual_seed(3)
    targets = ["to_q", "to_k", "to_v"]
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    return pipeline, lambda: {**call(), "cross_attention_kwargs": {"scale": 0.5}}


def with_norm() -> pipelines.Built:
    """A U-Net whose cross-attention normalizes its context."""
    pipeline, call = prompted(PROMPT)
    torch.manual_seed(0)
    pipeline.register_modules(unet=pipelines.unet(cross_attention_norm="layer_norm"))
    return pipeline, call


def in_dtype(dtype: torch.dtype) -> pipelines.Built:
    pipeline, call = prompted(PROMPT)
    return pipeline.to(dtype), call


TEXTS: dict[str, Callable[[], pipelines.Built]] = {
    "sd": lambda: prompted(PROMPT),
    "sdxl": lambda: prompted_xl(PROMPT),
    "bfloat16": lambda: in_dtype(torch.bfloat16),
    "lora": lambda: with_lora(prompted(PROMPT)),
    "norm": with_norm,
    "unguided": lambda: prompted(PROMPT, guidance_scale=1.0),
    "adapters": lambda: prompted(PROMPT, kinds=("full", "plain")),
    "several images": lambda: prompted(PROMPT, num_images_per_prompt=2),
}
PICTURES: dict[str, Callable[[], pipelines.Built]] = {
    "ip-full": lambda: pipelines.build("ip-full"),
    "ip-plus": lambda: pipelines.build("ip-plus"),
    "ip-plain": lambda: pipelines.build("ip-plain"),
    "flux-ip": lambda: pipelines_transformers.build("flux-ip"),
    "paint-by-example": lambda: pipelines.build("paint-by-example"),
    "image-variation": lambda: pipelines.build("image-variation"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_probe_that_is_the_prompt_has_its_keys(memory: type[MemoryWriter], name: str) -> None:
    pipeline, call = TEXTS[name]()
    plain = pipeline(**call()).images
    state = torch.get_rng_state()
    images, made = run((pipeline, call), {"prompt": PROMPT, "words": ["mouse", PROMPT, "zebra"]})
    np.testing.assert_array_equal(images, plain)
    assert torch.equal(torch.get_rng_state(), state)
    whole, alone = [text for text in made.trace.texts if text.group == "prompt"], [t for t in made.trace.texts if t.group == "words"]
    assert [text.text for text in whole] == [PROMPT]
    assert [(text.text, len(text.tokens)) for text in alone] == [("mouse", 3), (PROMPT, 9), ("zebra", 4)]
    assert [text.start for text in alone] == [0, 3, 12]
    found = 0
    for index, layer in enumerate(made.trace.layers):
        if layer.groups[0].role == "text":
            np.testing.assert_array_equal(probe_of(made, index, "prompt"), key_of(made, index))
            np.testing.assert_array_equal(probe_of(made, index, "words")[:, 3:12], key_of(made, index)[:, :9])
            assert not np.array_equal(probe_of(made, index, "words")[:, 12:15], key_of(made, index)[:, :3])
            found += 1
    assert found >= 4


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_is_the_reference_has_its_keys(memory: type[MemoryWriter], name: str) -> None:
    pipeline, call = PICTURES[name]()
    plain = pipeline(**call()).images
    reference = next(call()[key] for key in ("example_image", "ip_adapter_image", "image") if key in call())
    images, made = run((pipeline, call), {"same": reference, "others": [pipelines.picture(50), pipelines.picture(51, 48, 32)]})
    np.testing.assert_array_equal(images, plain)
    found = 0
    for index, layer in enumerate(made.trace.layers):
        if layer.groups[0].role == "reference" and not layer.queries:
            np.testing.assert_array_equal(probe_of(made, index, "same"), key_of(made, index))
            assert not np.array_equal(probe_of(made, index, "others_0"), key_of(made, index))
            assert [(group.grid, group.specials) for group in layer.probes] == 3 * [(layer.groups[0].grid, layer.groups[0].specials)]
            found += 1
    assert found >= (1 if name == "flux-ip" else 4)
    assert {"probe_same", "probe_others_0", "probe_others_1"} <= {image.name for image in made.trace.images}


@pytest.mark.parametrize("family", ["several-images", "several-images-masked"])
def test_each_of_several_references_can_be_probed(memory: type[MemoryWriter], family: str) -> None:
    _, made = run(pipelines_adapters.build(family), {"pic": [pipelines.picture(seed) for seed in (1, 2, 3)]})
    for index, layer in enumerate(made.trace.layers):
        for group in layer.groups if layer.groups[0].role == "reference" else ():
            own = key_of(made, index)[:, group.start : group.stop]
            np.testing.assert_allclose(probe_of(made, index, f"pic_{group.name[-1]}"), own, rtol=1e-5, atol=1e-6)


def test_the_demo_model_takes_garments_as_probes(memory: type[MemoryWriter]) -> None:
    pipeline = load_shipped()
    images = {name: pipelines.picture(seed, 32, 32) for seed, name in enumerate(("image", "example_image"))}
    call = {**images, "mask_image": pipelines.square_mask(), "num_inference_steps": 2, "output_type": "np"}
    plain = pipeline(**call, generator=pipelines.generator()).images
    built = pipeline, lambda: {**call, "generator": pipelines.generator()}
    painted, made = run(built, {"garment": images["example_image"], "other": pipelines.picture(9)})
    np.testing.assert_array_equal(painted, plain)
    for index in range(len(made.trace.layers)):
        np.testing.assert_array_equal(probe_of(made, index, "garment"), key_of(made, index))


def test_a_probe_that_is_the_prompt_has_its_maps(tmp_path: Path) -> None:
    pipeline, call = prompted(PROMPT)
    record(pipeline, tmp_path / "t.zarr", encoding="factors", probes={"prompt": PROMPT}, progress=False, **call())
    trace = open_trace(tmp_path / "t.zarr")
    for word in ("zebra", "a", "cat"):
        xr.testing.assert_allclose(
            word_map(trace, word, probe="prompt", recipe="daam").drop_attrs(), word_map(trace, word).drop_attrs(), rtol=1e-5
        )


def offload_models(pipeline: Any) -> None:
    pipeline.enable_model_cpu_offload(device="cpu")


def offload_layers(pipeline: Any) -> None:
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            accelerate.cpu_offload(part, torch.device("cpu"))


def offload_groups(pipeline: Any) -> None:
    pipeline.unet.enable_group_offload(onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type="leaf_level")


def train(pipeline: Any) -> None:
    pipeline.unet.train()


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_an_attribution_prompt_is_asked_as_ovam_asks_it_without_padding(name: str, tmp_path: Path) -> None:
    """One text keeps its padding, a list does not; OVAM encodes without."""
    pipeline, call = TEXTS[name]()
    scene = "a mouse, a red dog"
    record(pipeline, tmp_path / "run.zarr", probes={"scene": scene, "list": [scene]}, encoding="factors", progress=False, **call())
    trace = open_trace(tmp_path / "run.zarr")
    for word in ("mouse", "red dog"):
        found, alone = (word_map(trace, word, probe=probe) for probe in ("scene", "list"))
        xr.testing.assert_allclose(found.drop_attrs(), alone.drop_attrs(), rtol=1e-6)
        assert abs(word_map(trace, word, probe="scene", among="probe") / found - 1).max() > 0.01


@pytest.mark.parametrize("change", [offload_models, offload_layers, offload_groups, train])
def test_probes_go_where_the_weights_are(memory: type[MemoryWriter], change: Callable[[Any], None]) -> None:
    pipeline, call = prompted("a red dog", kinds=("full",))
    change(pipeline)
    plain = pipeline(**call()).images
    images, made = run((pipeline, call), {"prompt": "a red dog", "picture": call()["ip_adapter_image"]})
    np.testing.assert_array_equal(images, plain)
    for index in range(len(made.trace.layers)):
        np.testing.assert_array_equal(made.probe_keys[index], key_of(made, index))


def test_only_the_conditioned_rows_count_where_some_are_perturbed(memory: type[MemoryWriter]) -> None:
    pipeline, given = pipelines_adapters.build("perturbed")
    pipeline.register_modules(text_encoder=clip_encoder(), tokenizer=clip_tokenizer())
    embeds = {"prompt_embeds": None, "negative_prompt_embeds": None, "prompt": "a red dog"}
    _, made = run((pipeline, lambda: {**given(), **embeds}), {"prompt": "a red dog"})
    assert len([text for text in made.trace.texts if text.group == "text"]) == 1
    for index in [i for i, layer in enumerate(made.trace.layers) if layer.probes]:
        np.testing.assert_array_equal(made.probe_keys[index], key_of(made, index))


def test_fused_projections_are_refused(memory: type[MemoryWriter]) -> None:
    pipeline, call = prompted("a dog")
    pipeline.fuse_qkv_projections(vae=False)
    with pytest.raises(UnsupportedModel, match="attn2 makes no keys of probes: its key projection is fused"):
        run((pipeline, call), {"a": "dog"})


def test_only_chosen_heads_have_probe_keys(memory: type[MemoryWriter]) -> None:
    _, made = run(prompted(PROMPT), {"prompt": PROMPT}, heads=[1])
    for index in range(len(made.trace.layers)):
        assert made.probe_keys[index].shape[0] == 1
        np.testing.assert_array_equal(made.probe_keys[index], key_of(made, index))


def test_paths_are_pictures_too(memory: type[MemoryWriter], tmp_path: Path) -> None:
    pipeline, call = pipelines.build("ip-full")
    call()["ip_adapter_image"].save(tmp_path / "cat.png")
    _, made = run((pipeline, call), {"cat": tmp_path / "cat.png"})
    index = next(i for i, layer in enumerate(made.trace.layers) if layer.groups[0].role == "reference")
    np.testing.assert_array_equal(probe_of(made, index, "cat"), key_of(made, index))
    assert made.trace.provenance["options"]["probes"] == {"cat": [str(tmp_path / "cat.png")]}
    with pytest.raises(InvalidInput, match=r"the probe image .*none\.png cannot be read"):
        run((pipeline, call), {"cat": tmp_path / "none.png"})


def test_a_pipeline_is_left_as_it_was(memory: type[MemoryWriter]) -> None:
    pipeline, call = prompted(PROMPT, kinds=("full",))
    methods = {name: vars(type(pipeline)).get(name) for name in ("encode_prompt", "prepare_ip_adapter_image_embeds", "__call__")}
    run((pipeline, call), {"a": "a dog", "b": pipelines.picture(3)})
    assert {name: vars(type(pipeline)).get(name) for name in methods} == methods
    assert not pipeline.unet.encoder_hid_proj._forward_hooks
    assert pipeline.text_encoder.training is False


# -- what cannot be ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("probes", "words"), [
    (["a dog"], "takes a dict, name -> texts or images"),
    ({"a b": ["x"]}, "probe name 'a b' is not made of letters"),
    ({"text": ["x"]}, "a probe cannot be called 'text'"),
    ({"reference_0": "x"}, "a probe cannot be called 'reference_0'"),
    ({"a": []}, "probe 'a' is empty"),
    ({"a": None}, "probe 'a' is empty"),
    ({"a": ["x", PIL.Image.new("RGB", (8, 8))]}, "probe 'a' has texts among images; make it two"),
    ({"a": ["x", "y", "x"]}, "probe 'a' has the text 'x' twice"),
    ({"a": [3]}, "probe 'a' holds 3; it takes texts or images"),
    ({"a": [PIL.Image.new("RGB", (8, 8))] * 2, "a_1": "x"}, "two probes come to the name 'a_1'"),
])  # fmt: skip
def test_probes_that_are_none(probes: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        read_probes(probes)


@pytest.mark.parametrize("encoding", ["probabilities", "auto"])
def test_probes_need_queries(encoding: str, tmp_path: Path) -> None:
    with (
        pytest.raises(InvalidInput, match=rf"encoding='{encoding}' does not keep in every layer; record with encoding='factors'"),
        recording(prompted()[0], tmp_path / "t.zarr", encoding=encoding, probes={"a": "dog"}),
    ):
        pass


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_keys_of_a_changing_sequence_are_refused_by_name(memory: type[MemoryWriter], family: str) -> None:
    with pytest.raises(
        UnsupportedModel, match=r"transformer.*attn makes no keys of probes: its keys are made in each step from a sequence"
    ):
        run(FAMILIES[family]("a dog"), {"a": ["dog"]}, keys="text")


def test_keys_with_positions_are_refused_by_name(memory: type[MemoryWriter]) -> None:
    pipeline, call = prompted("a dog")
    attention = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2

    class Turned(type(attention.processor)):  # type: ignore[misc]
        def __call__(self, attn: Any, *args: Any, **kwargs: Any) -> Any:
            attend = torch.nn.functional.scaled_dot_product_attention

            def turned(query: Any, key: Any, value: Any, **more: Any) -> Any:
                return attend(query, key.flip(-1), value, **more)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch.nn.functional, "scaled_dot_product_attention", turned)
                return super().__call__(attn, *args, **kwargs)

    attention.set_processor(Turned())
    with pytest.raises(
        UnsupportedModel, match=r"unet\.mid_block.*attn2 makes no keys of probes: its keys are more than its key projection"
    ):
        run((pipeline, call), {"a": ["dog"]})


@pytest.mark.parametrize(("built", "probes", "options", "words"), [
    (lambda: pipelines.build("paint-by-example"), {"a": ["dog"]}, {}, "has no way of its own to encode prompts, so the probe 'a' has no"),
    (lambda: prompted("a dog"), {"a": [pipelines.picture(1)]}, {}, "has no way of its own to encode reference images"),
    (lambda: prompted("a dog", kinds=("full",)), {"a": ["dog"]}, {"keys": "reference"}, "no recorded layer attends to text, so"),
    (lambda: pipelines.build("text"), {"a": ["dog"]}, {}, r"cannot encode the probe 'a': .+"),
    (lambda: prompted("a dog", kinds=("full",)), {"a": object()}, {}, "probe 'a' holds a object; it takes texts or images"),
    (lambda: pipelines_transformers.build("sd3-ip"), {"a": [pipelines.picture(1)]}, {}, "has no way of its own to encode reference"),
    (lambda: pipelines_adapters.build("faceid"), {"a": [pipelines.picture(1)]}, {}, "cannot encode the probe 'a'"),
    (lambda: pipelines_transformers.build("qwen-edit"), {"a": ["dog"]}, {}, "cannot encode the probe 'a'"),
])  # fmt: skip
def test_probes_that_a_pipeline_cannot_make(
    memory: type[MemoryWriter], built: Callable[[], pipelines.Built], probes: Any, options: Any, words: str
) -> None:
    with pytest.raises((UnsupportedModel, InvalidInput), match=words):
        run(built(), probes, **options)


def test_embeddings_that_are_changed_on_the_way_are_refused(memory: type[MemoryWriter]) -> None:
    pipeline, call = prompted("a dog")
    pipeline.unet.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "encoder_hidden_states": 2 * kwargs["encoder_hidden_states"]}), with_kwargs=True
    )
    with pytest.raises(UnsupportedModel, match="the denoiser is not given what the pipeline's encoder makes"):
        run((pipeline, call), {"a": "dog"})


def test_texts_longer_than_the_prompt_may_be_are_cut_as_it_is(memory: type[MemoryWriter]) -> None:
    _, made = run(
        prompted("a dog"), {"long": "a red dog and a cat in the hat and a zebra", "list": ["a red dog and a cat in the hat and a zebra"]}
    )
    assert [group.tokens for group in made.trace.layers[0].probes] == [LENGTH, LENGTH]
