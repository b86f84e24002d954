"""Values and output projections: what a token gives through a head is what the module's own projection makes of it, and no bit changes."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory import MemoryWriter, memory
from pipelines_adapters import ADAPTED
from pipelines_transformers import SHARED
from pipelines_video import VIDEO
from spied import Spy
from torch import Tensor, nn
from torch.nn import functional

from i2am.recorder import record
from i2am.recorder.capture.modules import attention_modules, denoisers
from i2am.schema.errors import InvalidInput, UnsupportedModel
from pipelines import Built, ip_adapter, paint_by_example, sdxl, text_to_image

__all__ = ["memory"]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

PATH = Path("nowhere.zarr")


def scaled_adapter() -> Built:
    """An IP-Adapter whose scale is not 1."""
    pipeline, call = ip_adapter("full")
    pipeline.set_ip_adapter_scale(0.6)
    return pipeline, call


MADE = {
    "text": text_to_image,
    "adapter": scaled_adapter,
    "sdxl": sdxl,
    "paint-by-example": paint_by_example,
    "scale-by-layer": ADAPTED["scale-by-layer"],
    "added-keys": SHARED["kandinsky"],
    "flux": SHARED["flux"],
    "kontext": SHARED["kontext"],
    "klein": SHARED["klein"],
    "sd3": SHARED["sd3"],
    "sd3-adapter": SHARED["sd3-ip"],
    "qwen": SHARED["qwen-edit"],
    "wan": SHARED["wan-image"],
    "video": VIDEO["svd"],
}
TEXT_FIRST = ("flux", "kontext", "klein", "qwen")
"""Whose joint attention lays text before the image, so that what goes out to the image is the last of it."""


class Watch(Spy):
    """An independent look: every call's q, k, v, mask and scale, and what the module's output projection was given and gave."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline, alone=True)
        self.out: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for path in attention_modules(pipeline, alone=True):
            self.handles.append(way_out(pipeline, path).register_forward_hook(self._keeping(path)))

    def _keeping(self, path: str) -> Any:
        return lambda module, args, output: self.out[path].append((args[0].detach().clone(), output.detach().clone()))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention and self.path is not None:
            given = {**dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)), **(kwargs or {})}
            numbers = {name: given[name].detach().double() for name in ("query", "key", "value")}
            scale = given.get("scale") or numbers["query"].shape[-1] ** -0.5
            self.calls[self.path][-1].append({**numbers, "mask": given.get("attn_mask"), "scale": scale})
        return func(*args, **(kwargs or {}))


def way_out(pipeline: Any, path: str) -> nn.Linear:
    """The output projection by its name: the module's own, or that of the block around it."""
    root, _, inner = path.partition(".")
    denoiser = denoisers(pipeline)[root]
    module: Any = denoiser.get_submodule(inner)
    found = getattr(module, "to_out", None)
    if found is None:
        return denoiser.get_submodule(inner.rpartition(".")[0]).proj_out
    return found if isinstance(found, nn.Linear) else found[0]


def probabilities(call: dict[str, Any]) -> Tensor:
    scores = call["query"] @ call["key"].transpose(2, 3) * call["scale"]
    if call["mask"] is not None:
        hidden = ~call["mask"] if call["mask"].dtype == torch.bool else call["mask"] <= -9e3
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(-1)


def watched(name: str, memory: type[MemoryWriter], **options: Any) -> tuple[Any, MemoryWriter, Watch]:
    """A recording that an independent look was taken at, whose picture is the one without it."""
    pipeline, call = MADE[name]()
    plain = first_of(pipeline(**call()))
    with Watch(pipeline) as watch:
        seen = first_of(record(pipeline, PATH, encoding="factors", progress=False, **options, **call()))
    for handle in watch.handles:
        handle.remove()
    assert np.array_equal(plain, seen)
    return pipeline, memory.last, watch


def recorded(name: str, memory: type[MemoryWriter], **options: Any) -> MemoryWriter:
    pipeline, call = MADE[name]()
    record(pipeline, PATH, encoding="factors", progress=False, **options, **call())
    return memory.last


def first_of(output: Any) -> np.ndarray:
    return np.asarray(next(iter(output.values())))


def located(made: MemoryWriter, watch: Watch, index: int) -> tuple[int, dict[str, Any], int, slice]:
    """Run, call, row and queries that a layer's first call was, by its q and v; in a video, whose rows are frames, the first of them."""
    layer, blocks = made.trace.layers[index], made.blocks[index, 0, "cond", 0]
    query = torch.from_numpy(blocks["query"][:, 0] if layer.frames else blocks["query"])
    wanted, value = query.reshape(layer.heads, -1, layer.head_dim).double(), torch.from_numpy(blocks["value"]).double()
    count = wanted.shape[1]
    for run, calls in enumerate(watch.calls[layer.path]):
        for call in calls:
            for row, seen in enumerate(call["query"]):
                for start in range(seen.shape[1] - count + 1):
                    if torch.equal(seen[:, start : start + count], wanted) and holds(values_of(call, row), value):
                        return run, call, row, slice(start, start + count)
    raise AssertionError(layer.name)


def values_of(call: dict[str, Any], row: int) -> Tensor:
    """The values of one row of a call, one for each head of its queries."""
    value: Tensor = call["value"][row]
    return value.repeat_interleave(call["query"].shape[1] // value.shape[0], 0)


def holds(every: Tensor, kept: Tensor) -> bool:
    """Whether each token that was kept is one of the call's, bit for bit."""
    return all(bool((every == token[:, None]).all(2).all(0).any()) for token in kept.unbind(1))


@pytest.mark.parametrize("name", MADE)
def test_what_all_tokens_give_through_all_heads_is_what_the_module_gives(name: str, memory: type[MemoryWriter]) -> None:
    pipeline, made, watch = watched(name, memory, values="full", keys="all")
    sums: dict[tuple[str, int, int], Any] = defaultdict(float)
    about: dict[tuple[str, int, int], tuple[slice, int, int]] = {}
    for index, layer in enumerate(made.trace.layers):
        if layer.is_resampler or "temporal" in layer.path:
            continue
        run, call, row, places = located(made, watch, index)
        output, value = torch.from_numpy(made.outputs[index]).double(), values_of(call, row)
        about[layer.path, run, row] = places, call["query"].shape[2], layer.heads * layer.value_dim
        shares = probabilities(call)[row][:, places]
        sums[layer.path, run, row] += layer.gain * torch.einsum("hxt,htc,hco->xo", shares, value, output)
    for (path, run, row), given in sums.items():
        places, positions, width = about[path, run, row]
        linear, (entered, left) = way_out(pipeline, path), watch.out[path][run]
        offset = positions - left.shape[1] if name in TEXT_FIRST else 0
        taken = slice(places.start - offset, places.stop - offset)
        beside = entered[row, taken, width:].double() @ linear.weight[:, width:].double().T  # a block's MLP
        truth = left[row, taken].double() - beside - (0 if linear.bias is None else linear.bias.double())
        np.testing.assert_allclose(given, truth.detach(), rtol=1e-4, atol=1e-5 * float(truth.detach().abs().max()))
    assert len(sums) == len({layer.path for layer in made.trace.layers if not layer.is_resampler and "temporal" not in layer.path})


@pytest.mark.parametrize("name", MADE)
def test_norms_are_those_of_each_value_through_its_head(name: str, memory: type[MemoryWriter]) -> None:
    full, made = (recorded(name, memory, values=kind, steps=[0]) for kind in ("full", "norms"))
    for (index, *at), blocks in made.blocks.items():
        layer = full.trace.layers[index]
        if layer.values == "none":
            assert "value_norm" not in blocks
            continue
        value, output = (numbers.astype(np.float64) for numbers in (full.blocks[index, *at]["value"], full.outputs[index]))
        truth = np.linalg.norm(layer.gain * np.einsum("htc,hco->hto", value, output), axis=-1)
        np.testing.assert_allclose(blocks["value_norm"], truth, rtol=2e-5, atol=1e-6 * truth.max())
        assert blocks["value_norm"].shape == (layer.heads, layer.tokens)


def test_output_projections_are_the_modules_weights(memory: type[MemoryWriter]) -> None:
    pipeline, made, _ = watched("adapter", memory, values="full")
    for index, layer in enumerate(made.trace.layers):
        weight = way_out(pipeline, layer.path).weight.detach().T
        assert np.array_equal(made.outputs[index].reshape(weight.shape), weight)
        assert layer.gain == (0.6 if layer.call else 1.0)


def test_an_adapter_that_bypasses_the_projection_gives_its_values_as_they_are(memory: type[MemoryWriter]) -> None:
    pipeline, call = SHARED["flux-ip"]()
    record(pipeline, PATH, encoding="factors", values="full", **call())
    index = memory.last.layer("#1")
    layer, output = memory.last.trace.layers[index], memory.last.outputs[index]
    assert layer.gain == 0.7
    assert np.array_equal(output.reshape(-1, layer.output_dim), np.eye(layer.output_dim))


def test_only_chosen_heads_keep_values(memory: type[MemoryWriter]) -> None:
    whole, made = recorded("adapter", memory, values="full"), recorded("adapter", memory, values="full", heads=[1])
    norms = recorded("adapter", memory, values="norms", heads=[1])
    for (index, *at), blocks in made.blocks.items():
        assert np.array_equal(made.outputs[index], whole.outputs[index][[1]])
        assert np.array_equal(blocks["value"], whole.blocks[index, *at]["value"][[1]])
        truth = np.linalg.norm(made.trace.layers[index].gain * np.einsum("htc,hco->hto", blocks["value"], made.outputs[index]), axis=-1)
        np.testing.assert_allclose(norms.blocks[index, *at]["value_norm"], truth, rtol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_in_half_precision_are_exact(dtype: torch.dtype, memory: type[MemoryWriter]) -> None:
    pipeline, call = text_to_image()
    pipeline.to(dtype)
    given = {name: value.to(dtype) if isinstance(value, Tensor) else value for name, value in call().items()}
    with Watch(pipeline) as watch:
        record(pipeline, PATH, encoding="factors", values="full", progress=False, **given)
    for index, layer in enumerate(memory.last.trace.layers):
        run, seen, row, queries = located(memory.last, watch, index)  # by values that are equal bit for bit
        _, left = watch.out[layer.path][run]
        output = torch.from_numpy(memory.last.outputs[index]).double()
        made = torch.einsum("hxt,htc,hco->xo", probabilities(seen)[row][:, queries], seen["value"][row], output)
        truth = left[row].double() - way_out(pipeline, layer.path).bias.double()
        assert float((made - truth).detach().abs().max()) <= 4 * torch.finfo(dtype).eps * float(left[row].abs().max())


def test_norms_under_autocast_are_those_of_the_weights_as_they_are(memory: type[MemoryWriter]) -> None:
    pipeline, call = text_to_image()
    with torch.autocast("cpu", torch.bfloat16):
        record(pipeline, PATH, encoding="factors", values="full", progress=False, **call())
        full = memory.last
        record(pipeline, PATH, values="norms", progress=False, **call())
    for (index, *at), blocks in memory.last.blocks.items():
        truth = np.linalg.norm(np.einsum("htc,hco->hto", full.blocks[index, *at]["value"], full.outputs[index].astype(np.float64)), axis=-1)
        np.testing.assert_allclose(blocks["value_norm"], truth, rtol=2e-5)


def test_layers_whose_way_out_is_not_known_are_named_and_the_rest_is_kept(memory: type[MemoryWriter]) -> None:
    pipeline, call = text_to_image()
    first = next(iter(attention_modules(pipeline).values()))
    own = first.processor

    def gated(attention: Any, *args: Any, **kwargs: Any) -> Tensor:
        handle = attention.to_out[0].register_forward_pre_hook(lambda _, given: (given[0] * torch.sigmoid(given[0]),), prepend=True)
        try:
            return own(attention, *args, **kwargs)
        finally:
            handle.remove()

    first.processor = gated
    record(pipeline, PATH, encoding="factors", values="norms", progress=False, **call())
    kinds = [layer.values for layer in memory.last.trace.layers]
    assert kinds == ["none", *["norms"] * (len(kinds) - 1)]
    assert list(memory.last.trace.provenance["without_values"].values()) == [[memory.last.trace.layers[0].name]]


def test_an_adapted_projection_is_asked_what_it_makes(memory: type[MemoryWriter]) -> None:
    class Adapted(nn.Module):
        """As PEFT wraps a linear layer."""

        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base_layer, self.in_features, self.out_features = base, base.in_features, base.out_features
            self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

        def forward(self, given: Tensor) -> Tensor:
            return self.base_layer(given) + self.up(self.down(given))

    pipeline, call = text_to_image()
    module = next(iter(attention_modules(pipeline).values()))
    module.to_out[0] = adapted = Adapted(module.to_out[0])
    record(pipeline, PATH, encoding="factors", values="full", progress=False, **call())
    truth = adapted.base_layer.weight + adapted.up.weight @ adapted.down.weight
    found = memory.last.outputs[0].reshape(-1, adapted.out_features)
    np.testing.assert_allclose(found, truth.detach().T, rtol=1e-5, atol=1e-7)


def test_an_adapters_scale_may_change_under_norms_but_not_under_values(memory: type[MemoryWriter]) -> None:
    def louder(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipeline.set_ip_adapter_scale(0.6 * (step + 2))
        return tensors

    pipeline, call = scaled_adapter()
    record(pipeline, PATH, values="norms", progress=False, callback_on_step_end=louder, **call())
    for index, layer in enumerate(memory.last.trace.layers):
        first, second = (memory.last.blocks[index, 0, "cond", step]["value_norm"] for step in (0, 1))
        np.testing.assert_allclose(second, (2 if layer.call else 1) * first, rtol=1e-6)
    pipeline.set_ip_adapter_scale(0.6)
    with pytest.raises(UnsupportedModel, match=r"scale of the adapter .* 0\.6 .* 1\.2 .*values='norms'"):
        record(pipeline, PATH, values="full", progress=False, callback_on_step_end=louder, **call())


def test_by_default_norms_are_kept_where_they_are_cheap(memory: type[MemoryWriter]) -> None:
    pipeline, call = text_to_image()
    record(pipeline, PATH, progress=False, **call())
    assert {layer.values for layer in memory.last.trace.layers} == {"norms"}  # stored once, as its keys are
    pipeline, call = SHARED["kandinsky"]()
    record(pipeline, PATH, progress=False, **call())
    assert {layer.values for layer in memory.last.trace.layers} == {"none"}  # new in each step, over few places
    record(pipeline, PATH, progress=False, values="none", **call())
    assert "without_values" not in memory.last.trace.provenance


def test_values_are_one_of_four() -> None:
    pipeline, call = text_to_image()
    with pytest.raises(InvalidInput, match="values='all'; use auto, none, norms or full"):
        record(pipeline, PATH, values="all", **call())
