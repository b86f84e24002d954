"""Runs of models outside diffusers in the ways that samplers have: steps that are told, lengths that are not, several denoisers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory import MemoryWriter, memory
from outside_models import (
    CONTEXT,
    GUIDED,
    HEADS,
    LATENT,
    PATH,
    TEXT,
    UNET,
    Conditions,
    Diffusion,
    EinsumAttention,
    cat_vton,
    garment_network,
    paint_by_example,
    sample,
    stable_viton,
    super_resolution,
)
from torch import Tensor, nn

from i2am.analyzer import open_trace
from i2am.analyzer.cli.main import run
from i2am.recorder import recording
from i2am.schema.codec import decode_probability
from i2am.schema.trace import TraceRecord

__all__ = ["memory"]

SR = {"*image_attentions*": "reference", "*": "text"}


def record(build: Any, said: dict[str, Any], **run: Any) -> tuple[Tensor, Tensor]:
    """The picture without and with a recording."""
    model, cond, uncond = build()
    plain = sample(model, cond, uncond, **run)
    with recording(model, PATH, **{"denoisers": UNET, "order": GUIDED, **said}):
        return plain, sample(model, cond, uncond, **run)


def test_every_option_means_what_it_means_for_pipelines(memory: type[MemoryWriter]) -> None:
    said = {"groups": SR, "layers": ["*middle_block*", "re:output_blocks.1"], "steps": "::2", "heads": [1], "keep_bits": 6}
    plain, recorded = record(super_resolution, {**said, "encoding": "auto", "facts": {"pair": 7}, "codec": "zstd"}, steps=5)
    assert torch.equal(plain, recorded)
    trace = memory.last.trace
    assert [commit["evaluation"] for commit in memory.last.commits] == [0, 2, 4]
    assert (trace.steps, trace.codec.name, trace.codec.keep_bits) == (3, "zstd", 6)
    assert [layer.path.split(".")[-4] for layer in trace.layers] == ["attentions", "image_attentions"] * 2
    assert {(layer.head_numbers, layer.call_heads, layer.encoding) for layer in trace.layers} == {((1,), HEADS, "factors")}
    assert trace.provenance["facts"] == {"pair": 7}
    assert trace.model["components"]["unet"]["class"] == "UNet"
    assert trace.sampler == {"order": ["uncond", "cond"], "sequential": False, "evaluations": 5}
    record(super_resolution, {"groups": SR, "keys": "reference"})
    assert {layer.groups[0].role for layer in memory.last.trace.layers} == {"reference"}


def test_a_shared_softmax_may_keep_what_is_asked(memory: type[MemoryWriter]) -> None:
    groups = {"*attn1": [{"name": "text", "count": 8}, {"name": "self", "count": 40, "grid": (8, 5)}, {"name": "reference", "rows": 1}]}
    said = {"groups": groups, "grid": {"*attn1": LATENT}, "layers": "*output_blocks.1*attn1", "keys": "all", "self_grid": 0}
    record(lambda: garment_network(adapter=False, chunked=False), said)
    (layer,) = memory.last.trace.layers
    assert [(group.name, group.start, group.stop) for group in layer.groups] == [("text", 0, 8), ("reference", 8, 56)]
    assert (layer.call_tokens, layer.grid) == (96, (8, 5))


def test_evaluations_are_counted_where_nobody_says_how_many(tmp_path: Path) -> None:
    model, cond, uncond = paint_by_example()
    with recording(model, tmp_path / "run.zarr", denoisers=UNET, groups="reference", order=GUIDED) as running:
        sample(model, cond, uncond, steps=7)
    assert running.trace is not None
    trace = open_trace(tmp_path / "run.zarr")
    assert (trace.record.steps, len(trace.present), trace.complete) == (7, 7, True)
    attributes = json.loads((tmp_path / "run.zarr" / "zarr.json").read_text())["attributes"]["i2am"]
    assert TraceRecord.from_json(attributes) == running.trace
    with recording(model, tmp_path / "some.zarr", denoisers=UNET, groups="reference", order=GUIDED, steps="2:6:3"):
        sample(model, cond, uncond, steps=7)
    assert open_trace(tmp_path / "some.zarr").steps["evaluation"].tolist() == [2, 5]


def test_steps_beyond_the_run_are_said_to_be_missing(memory: type[MemoryWriter]) -> None:
    with pytest.warns(UserWarning, match="steps=7, 9 were asked for, but the run made 3 evaluations"):
        record(paint_by_example, {"groups": "reference", "steps": [1, 7, 9]})
    assert [commit["evaluation"] for commit in memory.last.commits] == [1]


def test_a_sampler_that_evaluates_a_timestep_twice(memory: type[MemoryWriter]) -> None:
    model, cond, uncond = paint_by_example()
    both = {name: torch.cat([uncond[name], cond[name]]) for name in cond}
    times = [981, 961, 961, 941, 921]  # as PLMS begins
    with torch.no_grad(), recording(model, PATH, denoisers=UNET, groups="reference", order=GUIDED):
        for time in times:
            model.apply_model(torch.zeros(2, 4, *LATENT), torch.full((2,), time), both)
    assert [commit["timestep"] for commit in memory.last.commits] == times
    assert memory.last.trace.status == "complete"


def test_gradients_go_through(memory: type[MemoryWriter]) -> None:
    model, cond, _ = cat_vton(axis=3)
    groups = [{"name": "self", "columns": 0.5}, {"name": "reference", "columns": 0.5}]
    x = torch.zeros(1, 4, *LATENT)
    found = []
    for recorded in (False, True):
        start = x.clone().requires_grad_()
        if recorded:
            with recording(model, PATH, denoisers=UNET, groups=groups):
                model.apply_model(start, torch.tensor([900]), cond).square().sum().backward()
        else:
            model.apply_model(start, torch.tensor([900]), cond).square().sum().backward()
        found.append(start.grad)
    assert found[0] is not None
    assert torch.equal(found[0], found[1])


def test_arguments_may_come_by_name_and_in_any_order(memory: type[MemoryWriter]) -> None:
    model, cond, _ = paint_by_example()

    def call(this: Diffusion, x: Tensor, t: Tensor, c: dict[str, Tensor]) -> Tensor:
        latent = torch.cat([x, c["c_concat"]], 1)
        return this.model["diffusion_model"](conditions=Conditions(c["c_crossattn"]), timesteps=t, x=latent)

    model._call = call
    with recording(model, PATH, denoisers=UNET, groups="reference"):
        sample(model, cond)
    assert memory.last.trace.latent_grid == LATENT
    assert [commit["timestep"] for commit in memory.last.commits] == [999, 666, 333]


def test_steps_that_are_told_hold_several_denoisers_and_evaluations(memory: type[MemoryWriter]) -> None:
    model, cond, uncond = garment_network(adapter=False, chunked=True)
    both = {"garment": "model.garment_unet", **UNET}
    groups = {"unet*attn1": ["self", {"name": "reference", "rows": 1}], "*attn2": "text"}
    with recording(model, PATH, denoisers=both, groups=groups, order=GUIDED) as running:
        sample(model, cond, uncond, before=lambda timestep: running.step(timestep / 10, timestep / 1000))
    commits = memory.last.commits
    assert [(c["timestep"], c["sigma"], c["scheduler_step"]) for c in commits] == [(99.9, 0.999, 0), (66.6, 0.666, 1), (33.3, 0.333, 2)]
    assert {layer.path.partition(".")[0] for layer in memory.last.trace.layers} == {"garment", "unet"}
    assert len(memory.last.blocks) == 3 * 15
    # Two evaluations of one denoiser in one told step, as Heun's, stay two.
    with recording(model, PATH, denoisers=UNET, groups=groups) as running:
        for timestep in (900, 500):
            running.step(timestep)
            for _ in range(2):
                with torch.no_grad():
                    model.apply_model(torch.zeros(1, 4, *LATENT), torch.tensor([timestep]), cond)
    assert [(c["timestep"], c["scheduler_step"]) for c in memory.last.commits] == [(900, 0), (900, 0), (500, 1), (500, 1)]


def test_denoisers_that_take_turns_are_evaluations_of_their_own(memory: type[MemoryWriter]) -> None:
    first, cond, _ = paint_by_example()
    second = paint_by_example()[0]
    switch = nn.ModuleDict({"base": first.model["diffusion_model"], "refiner": second.model["diffusion_model"]})

    def call(this: Diffusion, x: Tensor, t: Tensor, c: dict[str, Tensor]) -> Tensor:
        name = "base" if float(t[0]) > 500 else "refiner"
        return switch[name](torch.cat([x, c["c_concat"]], 1), timesteps=t, conditions=Conditions(c["c_crossattn"]))

    first._call = call
    with recording(first, PATH, denoisers=dict(switch), groups="reference", layers="*middle*"):
        sample(first, cond)
    assert [commit["timestep"] for commit in memory.last.commits] == [999, 666, 333]
    assert sorted(memory.last.blocks) == [(0, 0, "cond", 0), (0, 0, "cond", 1), (1, 0, "cond", 2)]


def test_guidance_that_ends_early(memory: type[MemoryWriter]) -> None:
    model, cond, uncond = paint_by_example()
    both = {name: torch.cat([uncond[name], cond[name]]) for name in cond}
    x = torch.zeros(1, 4, *LATENT)
    said = {"groups": "reference", "order": GUIDED, "branches": "both", "layers": "*middle*"}
    with torch.no_grad(), recording(model, PATH, denoisers=UNET, **said):
        model.apply_model(torch.cat([x, x]), torch.tensor([900, 900]), both)
        model.apply_model(x, torch.tensor([800]), cond)
    assert sorted(memory.last.blocks) == [(0, 0, "cond", 0), (0, 0, "cond", 1), (0, 0, "uncond", 0)]


def test_a_part_of_the_batch_may_be_neither_branch(memory: type[MemoryWriter]) -> None:
    model, cond, uncond = paint_by_example()
    three = {name: torch.cat([uncond[name], cond[name], cond[name] * 2]) for name in cond}
    with torch.no_grad(), recording(model, PATH, denoisers=UNET, groups="reference", order=("uncond", "cond", None), branches="both"):
        model.apply_model(torch.zeros(3, 4, *LATENT), torch.tensor([900] * 3), three)
    assert {(key[1], key[2]) for key in memory.last.blocks} == {(0, "cond"), (0, "uncond")}


class Packed(nn.Module):
    """A transformer over a packed sequence, whose rows and columns no module shows; its attention has other names for its projections."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(CONTEXT, 3 * CONTEXT)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.time = self.Block(), nn.Linear(1, CONTEXT)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x + self.attn(x + self.time(t[:, None] / 1000)[:, None])


def test_named_modules_on_a_grid_that_is_told(memory: type[MemoryWriter]) -> None:
    torch.manual_seed(0)
    model, tokens = Packed().eval(), torch.randn(1, TEXT + 12 + 8, CONTEXT)
    groups = ["text", {"name": "self", "grid": (4, 3)}, {"name": "reference", "grid": (2, 4)}]
    with torch.no_grad():
        plain = model(tokens, torch.tensor([900.0]))
        with recording(model, PATH, denoisers={"dit": model}, attention="*.attn", groups=groups, keys="all", self_grid=0):
            assert torch.equal(plain, model(tokens, torch.tensor([900.0])))
        query, key, _ = model.attn.qkv(tokens + model.time(torch.tensor([[0.9]]))).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    (layer,) = memory.last.trace.layers
    assert (layer.path, layer.grid, [group.grid for group in layer.groups]) == ("dit.attn", (4, 3), [None, (2, 4)])
    truth = torch.softmax(query[0].double() @ key[0].double().transpose(1, 2) * layer.scale, -1)
    kept = [*range(TEXT), *range(TEXT + 12, TEXT + 20)]
    found = decode_probability(memory.last.blocks[0, 0, "cond", 0]["probability"]).reshape(HEADS, 12, -1)
    np.testing.assert_allclose(found, truth[:, TEXT : TEXT + 12][..., kept], rtol=1e-3, atol=1e-6)
    assert memory.last.trace.latent_grid is None


def test_a_mask_hides_keys(memory: type[MemoryWriter]) -> None:
    torch.manual_seed(0)
    model, cond, _ = super_resolution()
    mask = torch.tensor([[True, True, False, True, False]])
    for module in list(model.modules()):
        if hasattr(module, "image_attentions"):
            block = module.attentions.transformer_blocks[0]
            block.attn2 = EinsumAttention(8, CONTEXT)
            block.attn2.register_forward_pre_hook(lambda this, args, kwargs: (args, {**kwargs, "mask": mask}), with_kwargs=True)
    said = {"denoisers": UNET, "groups": "text", "layers": "*.attentions*attn2"}
    plain = sample(model, cond)
    with recording(model, PATH, **said):
        assert torch.equal(plain, sample(model, cond))
    found = decode_probability(memory.last.blocks[0, 0, "cond", 0]["probability"])
    assert (found[..., [2, 4]] == 0).all()
    np.testing.assert_allclose(found[..., [0, 1, 3]].sum(-1), 1, atol=2e-3)


def test_pictures_lie_under_the_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, cond, uncond = stable_viton()
    path = tmp_path / "run.zarr"
    groups = {"*warp_flow_blks*": {"name": "reference", "rows": 1, "image": "garment"}, "*attn2": {"name": "cls", "role": "reference"}}
    said = {"denoisers": UNET, "groups": groups, "order": ("cond", "uncond"), "sequential": True}
    with recording(model, path, **said) as running:
        running.images({"garment": (0, 8, 64, 56)}, garment=torch.rand(3, 64, 64), mask=np.ones((64, 48)))
        samples = sample(model, cond, uncond, ("cond", "uncond"), sequential=True)
        running.images(generated=samples[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3))
    trace = open_trace(path)
    assert {(image.name, image.role, image.window) for image in trace.images} == {
        ("garment", "reference", (0, 8, 64, 56)),
        ("mask", "mask", None),
        ("generated_0", "generated", None),
    }
    assert run(["info", str(path)]) == 0
    assert "cond, timesteps 999 to 333" in capsys.readouterr().out
    for name, direction in (("r2g", ["--r2g"]), ("g2r", ["--g2r"]), ("sram", ["--at", "4,3"])):
        assert run(["map", str(path), *direction, "--group", "reference", "-o", str(tmp_path / f"{name}.png")]) == 0
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    assert run(["verify", str(path)]) == 0


def test_hooks_are_gone_afterwards_and_a_compiled_denoiser_is_looked_through(memory: type[MemoryWriter]) -> None:
    model, cond, _ = cat_vton()
    groups = [{"name": "self", "rows": 0.5}, {"name": "reference", "rows": 0.5}]
    unet = model.model["diffusion_model"]
    wrapped = torch.compile(unet, backend="eager")
    with recording(model, PATH, denoisers={"unet": wrapped}, groups=groups, layers="*middle*"):
        sample(model, cond)
    assert [layer.path for layer in memory.last.trace.layers] == ["unet.middle_block.transformer_blocks.0.attn1"]
    assert not any(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in unet.modules())


def test_self_attention_is_recorded_where_it_is_declared(memory: type[MemoryWriter]) -> None:
    record(super_resolution, {"groups": {"*attn1": "self", **SR}, "keys": "self"})
    layers = memory.last.trace.layers
    assert layers and {(tuple((g.name, g.role, g.grid) for g in layer.groups)) for layer in layers} == {
        (("self", "self", layer.grid),) for layer in layers
    }
    record(super_resolution, {"groups": {"*attn1": "self", **SR}, "keys": "all", "self_grid": 0})
    assert "self" not in {group.role for layer in memory.last.trace.layers for group in layer.groups}
