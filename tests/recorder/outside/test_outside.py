"""Models outside diffusers: the same picture, full coverage, the model's own numbers, right labels, and maps that equal an oracle's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory import MemoryWriter, memory
from outside_models import (
    HEADS,
    IMAGE_TOKENS,
    LATENT,
    PATH,
    REFERENCE,
    TEXT,
    UNET,
    Diffusion,
    cat_vton,
    garment_network,
    paint_by_example,
    sample,
    stable_viton,
    super_resolution,
)
from outside_viton import HiddenPatchAttention, viton_v1
from torch import Tensor, nn

from i2am.analyzer import g2r, open_trace, r2g, sram
from i2am.analyzer.numerics.resize import resize
from i2am.recorder import recording
from i2am.schema.codec import decode_probability
from i2am.schema.trace import TokenGroup

__all__ = ["memory"]

STEPS = 3
TIMES = [999.0, 666.0, 333.0]
SMALL = (LATENT[0] // 2, LATENT[1] // 2)
GRIDS = {"input_blocks.0": LATENT, "input_blocks.1": SMALL, "middle_block": SMALL, "output_blocks.0": SMALL, "output_blocks.1": LATENT}
AT = (5, 4)
Indices = Callable[[tuple[int, int]], list[int]]


def everything(count: int) -> Indices:
    return lambda grid: list(range(count))


def places(grid: tuple[int, int]) -> list[int]:
    return list(range(grid[0] * grid[1]))


def beyond(grid: tuple[int, int]) -> list[int]:
    """As many again, behind the places."""
    return [place + grid[0] * grid[1] for place in places(grid)]


def left(grid: tuple[int, int]) -> list[int]:
    return [row * 2 * grid[1] + column for row in range(grid[0]) for column in range(grid[1])]


def right(grid: tuple[int, int]) -> list[int]:
    return [row * 2 * grid[1] + column + grid[1] for row in range(grid[0]) for column in range(grid[1])]


@dataclass(frozen=True)
class Attention:
    """What one kind of layer should become: told by hand, apart from the recorder's own reasoning."""

    role: str
    keys: Indices
    """Which of the model's keys are kept."""
    queries: Indices = places
    grid: Callable[[tuple[int, int]], tuple[int, int] | None] = lambda grid: grid
    """Of the keys, by the layer's own."""
    shared: bool = False
    """Whether the model's softmax runs over more keys."""
    projection: str = "to_k"
    specials: int = 0


TEXT_KEYS = Attention("text", everything(TEXT), grid=lambda grid: None)
GARMENT = Attention("reference", beyond, shared=True)
PATCHES = {"*attention_2": {"name": "reference", "specials": 1, "grid": REFERENCE}}
PATCH = Attention("reference", everything(1 + REFERENCE[0] * REFERENCE[1]), grid=lambda grid: REFERENCE, specials=1)


@dataclass(frozen=True)
class Case:
    build: Callable[..., Any]
    groups: Any
    layers: dict[str, Attention]
    """By the end of the layer's name."""
    order: tuple[str, ...] = ("uncond", "cond")
    sequential: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    prefix: str = "transformer_blocks.0."


CASES = {
    "paint-by-example": Case(paint_by_example, "reference", {"attn2": Attention("reference", everything(1), grid=lambda grid: None)}),
    "dci-vton": Case(
        lambda **o: paint_by_example(extra=4, **o),
        {"*attn2": [{"name": "reference", "count": 1}]},
        {"attn2": Attention("reference", everything(1), grid=lambda grid: None)},
    ),
    "stable-viton": Case(
        stable_viton,
        {"*warp_flow_blks*": [{"name": "reference", "rows": 1}], "*attn2": [{"name": "cls", "role": "reference", "count": 1}]},
        {"warp": Attention("reference", places), "attn2": Attention("reference", everything(1), grid=lambda grid: None)},
        order=("cond", "uncond"),
        sequential=True,
    ),
    "stable-viton-batched": Case(
        stable_viton,
        {"*warp_flow_blks*": {"name": "reference", "rows": 1}, "*": {"name": "cls", "role": "reference"}},
        {"warp": Attention("reference", places), "attn2": Attention("reference", everything(1), grid=lambda grid: None)},
        order=("cond", "uncond"),
    ),
    "idm-vton": Case(
        lambda **o: garment_network(adapter=True, chunked=False, **o),
        {
            "*attn1": ["self", {"name": "reference", "rows": 1}],
            "*attn2": ["text"],
            "*attn2#1": [{"name": "tokens", "role": "reference", "count": IMAGE_TOKENS}],
        },
        {
            "attn1": GARMENT,
            "attn2": TEXT_KEYS,
            "attn2#1": Attention("reference", everything(IMAGE_TOKENS), grid=lambda grid: None, projection="to_k_ip"),
        },
    ),
    "ootdiffusion": Case(
        lambda **o: garment_network(adapter=False, chunked=True, **o),
        {"*attn1": [{"name": "self"}, {"name": "reference", "rows": 1}], "*attn2": ["text"]},
        {"attn1": GARMENT, "attn2": TEXT_KEYS},
        order=("cond", "uncond"),
    ),
    "cat-vton": Case(
        cat_vton, [{"name": "self", "rows": 0.5}, {"name": "reference", "rows": 0.5}], {"attn1": GARMENT}, order=("uncond", "cond")
    ),
    "cat-vton-beside": Case(
        lambda **o: cat_vton(axis=3, **o),
        [{"name": "self", "columns": 0.5}, {"name": "reference", "columns": 0.5}],
        {"attn1": Attention("reference", right, left, shared=True)},
    ),
    "super-resolution": Case(
        super_resolution,
        {"*image_attentions*": [{"name": "reference", "grid": REFERENCE}], "*": ["text"]},
        {
            "attn2": TEXT_KEYS,
            "image": Attention("reference", everything(REFERENCE[0] * REFERENCE[1]), grid=lambda grid: REFERENCE),
        },
    ),
    "viton-v1": Case(viton_v1, PATCHES, {"attention_2": PATCH}, order=("cond", "uncond")),
    "viton-v1-hidden": Case(
        lambda **o: viton_v1(attention=HiddenPatchAttention, **o), PATCHES, {"attention_2": PATCH}, order=("cond", "uncond")
    ),
}


class Witness:
    """An independent look at every projection under the U-Net, pass by pass."""

    def __init__(self, model: Diffusion) -> None:
        self.outputs: dict[tuple[str, str], list[Tensor]] = {}
        for path, module in model.model["diffusion_model"].named_modules():
            parent, _, name = path.rpartition(".")
            name = {"q_proj": "to_q", "k_proj": "to_k"}.get(name, name)
            if name in ("to_q", "to_k", "to_k_ip"):
                module.register_forward_hook(self._keeper(parent, name))

    def _keeper(self, path: str, name: str) -> Any:
        return lambda module, args, output: self.outputs.setdefault((path, name), []).append(output.clone())

    def factors(self, path: str, projection: str, one: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        """(head, x, channel) and (head, token, channel) of one row of one pass."""
        found = (self.outputs[path, name][one][row] for name in ("to_q", projection))
        query, key = (tensor.reshape(len(tensor), HEADS, -1).transpose(0, 1).numpy() for tensor in found)
        return query, key


def record_case(case: Case, path: Path, samples: int = 1, **options: Any) -> tuple[Diffusion, Witness]:
    """Run a case twice, recorded the second time; its picture is the same."""
    model, cond, uncond = case.build(samples=samples)
    run: dict[str, Any] = {"order": case.order, "sequential": case.sequential, "samples": samples, "steps": STEPS}
    plain = sample(model, cond, uncond, **run)
    witness = Witness(model)
    for module in model.modules():
        getattr(module, "attention", []).clear()
    said = {"groups": case.groups, "order": case.order, "sequential": case.sequential, **case.settings}
    with recording(model, path, denoisers={"unet": "model.diffusion_model"}, progress=False, **said, **options):
        recorded = sample(model, cond, uncond, **run)
    assert torch.equal(plain, recorded)
    return model, witness


def attention_of(case: Case, name: str) -> Attention:
    kinds = {"warp_flow_blks": "warp", "image_attentions": "image"}
    return case.layers[next((kind for block, kind in kinds.items() if block in name), name.rpartition(".")[2])]


def block_grid(name: str) -> tuple[int, int]:
    warp = {"warp_flow_blks.0": SMALL, "warp_flow_blks.1": LATENT}
    return next(grid for block, grid in {**GRIDS, **warp}.items() if f"unet.{block}" in name)


def where(case: Case, branch: str, step: int, one: int, samples: int) -> tuple[int, int]:
    """Pass and row of a sample in a branch."""
    part = case.order.index(branch)
    return (step * len(case.order) + part, one) if case.sequential else (step, part * samples + one)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("family", CASES)
def test_the_trace_holds_the_models_own_factors_under_the_right_labels(family: str, samples: int, memory: type[MemoryWriter]) -> None:
    case = CASES[family]
    _, witness = record_case(case, PATH, samples, encoding="factors", branches="both")
    writer, trace = memory.last, memory.last.trace
    assert (trace.samples, trace.branches, trace.steps, trace.latent_grid) == (samples, ("cond", "uncond"), STEPS, LATENT)
    assert [commit["timestep"] for commit in writer.commits] == TIMES
    assert [commit["evaluation"] for commit in writer.commits] == [commit["scheduler_step"] for commit in writer.commits] == [0, 1, 2]
    assert len(writer.blocks) == len(trace.layers) * samples * 2 * STEPS
    expected = {f"unet.{path}" for path, name in witness.outputs if name == "to_q" and path.endswith(tuple(case.layers))}
    if "attn2" in case.layers:  # the warp blocks' self-attention is theirs alone
        expected -= {path for path in expected if "attn1" in path and "attn1" not in case.layers}
    assert {layer.path for layer in trace.layers} == expected
    for layer in trace.layers:
        said, grid = attention_of(case, layer.name), block_grid(layer.name)
        kept = said.keys(grid)
        assert (layer.grid, layer.heads, layer.tokens, layer.partial_keys) == (grid, HEADS, len(kept), said.shared), layer.name
        (group,) = layer.groups
        assert (group.role, group.start, group.stop, group.specials, group.grid) == (
            said.role,
            0,
            len(kept),
            said.specials,
            said.grid(grid),
        )
    for (index, one, branch, step), blocks in writer.blocks.items():
        layer = trace.layers[index]
        said = attention_of(case, layer.name)
        query, key = witness.factors(layer.path.removeprefix("unet."), said.projection, *where(case, branch, step, one, samples))
        assert np.array_equal(blocks["query"].reshape(HEADS, -1, layer.head_dim), query[:, said.queries(layer.grid)])
        assert np.array_equal(blocks["key"], key[:, said.keys(layer.grid)])


@pytest.mark.parametrize("family", CASES)
def test_probabilities_are_the_models_own_softmax(family: str, memory: type[MemoryWriter]) -> None:
    case = CASES[family]
    model, witness = record_case(case, PATH)
    trace = memory.last.trace
    for (index, one, branch, step), blocks in memory.last.blocks.items():
        layer = trace.layers[index]
        path, said = layer.path.removeprefix("unet."), attention_of(case, layer.name)
        at = where(case, branch, step, one, 1)
        own: list[Tensor] = model.model["diffusion_model"].get_submodule(path).attention
        truth = own[at[0]][at[1]].numpy() if own else softmax(scores(layer.scale, *witness.factors(path, said.projection, *at)), 2)
        found = decode_probability(blocks["probability"]).reshape(HEADS, -1, layer.tokens)
        np.testing.assert_allclose(found, truth[:, said.queries(layer.grid)][..., said.keys(layer.grid)], rtol=1e-3, atol=1e-6)


def scores(scale: float, query: np.ndarray, key: np.ndarray) -> np.ndarray:
    return scale * query.astype(np.float64) @ key.astype(np.float64).swapaxes(1, 2)


def softmax(values: np.ndarray, axis: int) -> np.ndarray:
    weights = np.exp(values - values.max(axis, keepdims=True))
    return weights / weights.sum(axis, keepdims=True)


def truth(case: Case, witness: Witness, layers: Any, direction: str, to: tuple[int, int]) -> np.ndarray:
    """A map in float64 from the model's own queries and keys: sums over steps, then the mean of all heads of all layers."""
    maps = []
    for layer in layers:
        said = attention_of(case, layer.name)
        total: Any = 0
        for step in range(STEPS):
            path, at = layer.path.removeprefix("unet."), where(case, "cond", step, 0, 1)
            values = scores(layer.scale, *witness.factors(path, said.projection, *at))[:, said.queries(layer.grid)]
            P, G = softmax(values, 2)[..., said.keys(layer.grid)], softmax(values[..., said.keys(layer.grid)], 1)
            place = AT[0] * layer.grid[0] // LATENT[0] * layer.grid[1] + AT[1] * layer.grid[1] // LATENT[1]
            found = {"r2g": G.mean(2), "g2r": P.mean(1)[:, said.specials :], "sram": P[:, place, said.specials :]}[direction]
            grid = layer.grid if direction == "r2g" else said.grid(layer.grid)
            total = total + (found if grid is None else np.maximum(resize(found.reshape(HEADS, *grid), to, "bicubic"), 0))
        maps += list(total)
    return np.mean(maps, 0)


@pytest.mark.parametrize("encoding", ["factors", "probabilities"])
@pytest.mark.parametrize("family", CASES)
def test_maps_equal_an_oracle_of_the_models_own_tensors(family: str, encoding: str, tmp_path: Path) -> None:
    case = CASES[family]
    _, witness = record_case(case, tmp_path / "run.zarr", encoding=encoding)
    trace = open_trace(tmp_path / "run.zarr")
    assert trace.present.all()
    for name in dict.fromkeys(group.name for layer in trace.layers for group in layer.groups):
        layers = [layer for layer in trace.layers if layer.groups[0].name == name]
        reference = max((group.grid for layer in layers for group in layer.groups if group.grid), default=LATENT)
        for direction in ("r2g", "g2r", "sram"):
            to = LATENT if direction == "r2g" else reference
            expected = truth(case, witness, layers, direction, to)
            ask: Any = {"r2g": r2g, "g2r": g2r}.get(direction, lambda trace, **o: sram(trace, AT, **o))
            found = ask(trace, group=name).values
            tolerance = 1e-5 if encoding == "factors" else 2e-3
            np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * expected.max())


def test_token_groups_may_be_the_schemas_own(memory: type[MemoryWriter]) -> None:
    model, cond, uncond = super_resolution()
    row = TokenGroup("low", "reference", 0, 15, 0, REFERENCE)
    groups = {"*image_attentions*": [row], "*": [{"name": "text", "start": 0, "stop": TEXT}]}
    with recording(model, PATH, denoisers={"unet": "model.diffusion_model"}, groups=groups, order=("uncond", "cond"), layers="*image*"):
        sample(model, cond, uncond)
    assert [layer.groups for layer in memory.last.trace.layers] == [(row,)] * 5


def way_out(module: Any) -> nn.Linear:
    found = getattr(module, "to_out", None) or module.out_proj
    return found[0] if isinstance(found, nn.Sequential) else found


@pytest.mark.parametrize("family", CASES)
def test_what_all_tokens_give_is_what_the_module_gives(family: str, memory: type[MemoryWriter]) -> None:
    case = CASES[family]
    model, cond, uncond = case.build(samples=1)
    run: dict[str, Any] = {"order": case.order, "sequential": case.sequential, "samples": 1, "steps": 2}
    plain = sample(model, cond, uncond, **run)
    out: dict[str, list[Tensor]] = defaultdict(list)
    modules = dict(model.model["diffusion_model"].named_modules())
    for path, module in modules.items():
        if hasattr(module, "to_out") or hasattr(module, "out_proj"):
            way_out(module).register_forward_hook(lambda _, args, output, path=path: out[f"unet.{path}"].append(output.clone()))
    said = {"groups": case.groups, "order": case.order, "sequential": case.sequential, **case.settings}
    with recording(model, PATH, denoisers=UNET, progress=False, encoding="factors", values="full", **said):
        assert torch.equal(plain, sample(model, cond, uncond, **run))
    trace, blocks = memory.last.trace, memory.last.blocks
    assert {layer.values for layer in trace.layers} == {"full"}
    sums: dict[str, Any] = defaultdict(float)
    for index, layer in enumerate(trace.layers):
        linear = way_out(modules[layer.path.removeprefix("unet.")])
        output, given = (
            memory.last.outputs[index],
            {name: numbers.astype(np.float64) for name, numbers in blocks[index, 0, "cond", 0].items()},
        )
        assert np.array_equal(output.reshape(-1, layer.output_dim), linear.weight.detach().T)
        if not layer.partial_keys:
            scores = layer.scale * np.einsum("hxc,htc->hxt", given["query"].reshape(layer.heads, -1, layer.head_dim), given["key"])
            shares = np.exp(scores - scores.max(2, keepdims=True))
            shares /= shares.sum(2, keepdims=True)
            sums[layer.path] += np.einsum("hxt,htc,hco->xo", shares, given["value"], output)
    row = 0 if case.sequential else case.order.index("cond")
    one = case.order.index("cond") if case.sequential else 0
    for path, found in sums.items():
        linear = way_out(modules[path.removeprefix("unet.")])
        truth = out[path][one][row].detach() - (0 if linear.bias is None else linear.bias.detach())
        np.testing.assert_allclose(found, truth, rtol=1e-4, atol=1e-5)


def test_a_module_that_changes_what_it_took_keeps_no_values(memory: type[MemoryWriter]) -> None:
    model, cond, uncond = paint_by_example()
    network = model.model["diffusion_model"]
    path, module = next((p, m) for p, m in network.named_modules() if p.endswith("attn2"))
    way_out(module).register_forward_pre_hook(lambda _, args: (2 * args[0],), prepend=True)
    with recording(
        model, PATH, denoisers=UNET, progress=False, encoding="factors", values="norms", groups="reference", order=("uncond", "cond")
    ):
        sample(model, cond, uncond, steps=1)
    kinds = {layer.path: layer.values for layer in memory.last.trace.layers}
    assert kinds.pop(f"unet.{path}") == "none"
    assert set(kinds.values()) == {"norms"}
