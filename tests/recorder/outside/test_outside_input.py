"""What cannot be meant of a model outside diffusers: one line that says where and what to do, and nothing recorded is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory import MemoryWriter, memory
from outside_models import (
    CONTEXT,
    GUIDED,
    LATENT,
    PATH,
    UNET,
    Diffusion,
    EinsumAttention,
    FoldedAttention,
    cat_vton,
    garment_network,
    paint_by_example,
    sample,
    stable_viton,
    super_resolution,
)
from torch import Tensor, nn

from i2am.analyzer import open_trace, r2g
from i2am.recorder import recording
from i2am.schema.errors import AlreadyExists, InvalidInput, NoSpace, TraceError, UnknownSelection, UnsupportedModel

__all__ = ["memory"]


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    return text


def refused(kind: type[TraceError], match: str, run: Callable[[], object]) -> str:
    with pytest.raises(kind, match=match) as caught:
        run()
    return one_line(caught.value)


def run_example(said: dict[str, Any], build: Callable[..., Any] = paint_by_example, path: Path = PATH, **run: Any) -> None:
    model, cond, uncond = build()
    with recording(model, path, **{"denoisers": UNET, "order": GUIDED, "groups": "reference", **said}):
        sample(model, cond, uncond, **run)


@pytest.mark.parametrize(
    ("denoisers", "match"),
    [
        ({}, "name the modules that denoise"),
        (None, "name the modules that denoise"),
        ({"unet": 3}, "unet is a int, expected a torch module"),
        ({"unet": "model.difusion_model"}, "ModuleDict has no 'difusion_model'"),
        ({"unet": "apply_model"}, "unet is a method, expected a torch module"),
        ({"a unet": "model.diffusion_model"}, "name 'a unet' is not made of"),
        ({"a.b": "model.diffusion_model"}, "layer paths begin with it"),
        ({"whole": "model", "unet": "model.diffusion_model"}, "unet is a part of whole"),
        ({"one": "model.diffusion_model", "two": "model.diffusion_model"}, "is a part of"),
    ],
)
def test_denoisers_that_are_none(denoisers: Any, match: str) -> None:
    refused(InvalidInput, match, lambda: run_example({"denoisers": denoisers}))


def test_a_denoiser_without_attention() -> None:
    model, _, _ = stable_viton()
    said: dict[str, Any] = {"denoisers": {"control": "model.control_model"}}
    match = r'control has no module with to_q, to_k and heads.*attention="\*\.attn"'
    refused(UnknownSelection, match, lambda: recording(model, PATH, **said))
    said["attention"] = "*.nothing"
    refused(UnknownSelection, "attention='.*nothing' matches no module; there are control.stem", lambda: recording(model, PATH, **said))


def test_what_a_pipeline_lacks_points_to_denoisers() -> None:
    model, cond, _ = paint_by_example()
    with pytest.raises(UnsupportedModel, match=r"Diffusion has no unet or transformer.*denoisers="), recording(model, PATH):
        sample(model, cond)
    refused(InvalidInput, "takes groups, order with denoisers=", lambda: recording(model, PATH, groups="reference", order=("cond",)))


@pytest.mark.parametrize(
    ("groups", "match"),
    [
        ([3], "3 is no token group"),
        ([], "expected a list of token groups"),
        ({}, "a mapping of globs"),
        ([{"count": 1}], "has no name"),
        ([{"name": "reference", "number": 1}], "has no field number; a group has name, role, count"),
        ([{"name": "reference 1"}], "is not made of letters"),
        ([{"name": "garment"}], "garment has role 'garment'; say role=text, reference or self"),
        (["self", {"name": "other", "role": "self"}], "several groups of role self"),
        (["text", "reference"], "does not say how many tokens text and reference have"),
        ([{"name": "text", "count": 1}, {"name": "text", "count": 2}], "two groups of one name"),
        ([{"name": "reference", "grid": (4,)}], r"has grid \(4,\); expected \(rows, columns\)"),
        ([{"name": "reference", "rows": 0}], "rows=0; it is a share"),
        ([{"name": "reference", "count": -1}], "count=-1; expected a number of tokens"),
        ({"*atn2": "reference"}, r"groups: '\*atn2' matches no attention module; there are unet.input_blocks.0"),
    ],
)
def test_groups_that_are_none(groups: Any, match: str) -> None:
    model, _, _ = paint_by_example()
    refused(TraceError, match, lambda: recording(model, PATH, denoisers=UNET, groups=groups))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("build", "groups", "match"),
    [
        (
            paint_by_example,
            None,
            r"unet.input_blocks.0.*attn2 reads 1 keys, and nothing says what they are; pass groups=",
        ),
        (paint_by_example, [{"name": "reference", "count": 257}], r"reads 1 keys, but its groups add up to 257 \(reference 257\)"),
        (paint_by_example, [{"name": "text", "count": 1}, "reference"], r"reads 1 keys.*add up to 1 \(text 1 \+ reference the rest\)"),
        (super_resolution, [{"name": "text", "count": 4}], r"attn2 reads 5 keys, but its groups add up to 4 \(text 4\)"),
        (super_resolution, {"*": {"name": "text", "count": 4}, "*image*": "reference"}, "reads 5 keys, but its groups add up to 4"),
        (super_resolution, [{"name": "text", "grid": (2, 2), "specials": 2, "count": 5}], "grid 2 x 2 does not hold its 3 spatial tokens"),
        (cat_vton, ["self", {"name": "reference", "rows": 1}], r"reads 96 keys, but its groups add up to 192 \(self 96 \+ reference 96\)"),
        (
            cat_vton,
            [{"name": "self", "columns": 0.5}, {"name": "reference", "columns": 0.25}],
            "reference would have 16 x 1.5 of the 16 x 6 places",
        ),
        (cat_vton, [{"name": "self", "rows": 0.3}, "reference"], r"would have 4.8 x 6 of the 16 x 6 places"),
        (
            cat_vton,
            [{"name": "self", "columns": 0.5}, {"name": "reference", "columns": 1 / 6}],
            "add up to 64 .self 48 . reference 16",
        ),
        (
            cat_vton,
            [{"name": "self", "columns": 0.5}, {"name": "reference", "count": 48}],
            r"the panels of .* \(self 0.5, reference 1\) do not make up its 16 x 6 places side by side",
        ),
        (
            lambda: garment_network(adapter=False, chunked=False),
            {"*attn1": ["self", {"name": "reference", "count": 47}], "*": "text"},
            r"reads 96 keys, but its groups add up to 95",
        ),
    ],
)
def test_groups_that_do_not_cover_the_keys(build: Any, groups: Any, match: str, memory: type[MemoryWriter]) -> None:
    refused(InvalidInput, match, lambda: run_example({"groups": groups}, build))


def test_a_group_of_a_picture_that_was_not_given(memory: type[MemoryWriter]) -> None:
    groups = [{"name": "reference", "image": "garment"}]
    text = refused(InvalidInput, "made from the picture 'garment', which was not given", lambda: run_example({"groups": groups}))
    assert "running.images(garment=...)" in text


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"order": ("cond", "other")}, "order=.*write"),
        ({"order": ("cond", "cond")}, "order=.*write"),
        ({"order": (None,)}, "order=.*write"),
        ({"order": None, "sequential": True}, "sequential=True needs the order of the passes"),
        ({"evaluations": 0}, "evaluations=0; give the number"),
        ({"evaluations": True}, "evaluations=True; give the number"),
        ({"grid": (8,)}, r"grid: \* has grid \(8,\)"),
        ({"grid": {"*none": (8, 6)}}, "grid: '.*none' matches no attention module"),
        ({"order": None}, r'was given 2 rows, and nothing says what they are; pass order=\("uncond", "cond"\)'),
        ({"order": ("uncond", "cond", None)}, "was given 2 rows, expected a multiple of 3 for order"),
        ({"branches": "none"}, "use cond, uncond or both"),
        ({"attention": "unet.stem", "groups": "reference"}, "unet.stem .*neither scaled_dot_product_attention nor its own"),
    ],
)
def test_guidance_and_grids_that_are_none(said: dict[str, Any], match: str, memory: type[MemoryWriter]) -> None:
    refused(TraceError, match, lambda: run_example(said))  # type: ignore[arg-type]


def test_a_denoiser_that_never_ran(memory: type[MemoryWriter]) -> None:
    model, cond, _ = paint_by_example()

    def nothing() -> None:
        with recording(model, PATH, denoisers=UNET, groups="reference"):
            pass

    refused(InvalidInput, r"none of the denoisers ran while recording \(unet\).*name the modules that the sampler calls", nothing)
    other, _, _ = cat_vton()
    both = {**UNET, "refiner": other.model["diffusion_model"]}
    with pytest.warns(UserWarning, match="the denoiser refiner never ran"), recording(model, PATH, denoisers=both, groups="reference"):
        sample(model, cond)
    assert memory.last.trace.status == "complete"


def test_a_model_that_reads_nothing_but_itself(memory: type[MemoryWriter]) -> None:
    text = refused(UnsupportedModel, "nothing was recorded of 3 evaluations", lambda: run_example({"groups": None}, cat_vton))
    assert 'groups=["self"' in text
    match = "nothing was recorded of 3 evaluations.*attention in unet has reference keys"
    refused(UnsupportedModel, match, lambda: run_example({"keys": "text"}))


@pytest.mark.parametrize("evaluations", [None, 3])
def test_a_second_run_leaves_the_first_complete(evaluations: int | None, tmp_path: Path) -> None:
    model, cond, uncond = paint_by_example()
    path = tmp_path / "run.zarr"

    def twice() -> None:
        with recording(model, path, denoisers=UNET, groups="reference", order=GUIDED, evaluations=evaluations):
            sample(model, cond, uncond)
            sample(model, cond, uncond)

    refused(InvalidInput, "ran a second time while recording.*record the next to a path of its own", twice)
    trace = open_trace(path)
    assert trace.steps["timestep"].tolist() == [999, 666, 333]
    assert np.isfinite(r2g(trace).values).all()


def test_a_run_that_goes_back_to_its_beginning_says_how_long_it_is(memory: type[MemoryWriter]) -> None:
    model, cond, _ = paint_by_example()
    with recording(model, PATH, denoisers=UNET, groups="reference", evaluations=6):
        sample(model, cond)
        sample(model, cond)
    assert [commit["timestep"] for commit in memory.last.commits] == [999, 666, 333] * 2


def test_more_evaluations_than_were_planned_leave_those(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    match = "more evaluations than the trace has room for: 2 evaluations were planned"
    refused(InvalidInput, match, lambda: run_example({"evaluations": 2}, path=path))
    trace = open_trace(path, partial=True)
    assert (trace.record.status, len(trace.present), trace.record.steps) == ("interrupted", 2, 2)


@pytest.mark.parametrize("evaluations", [None, 9])
def test_an_error_leaves_the_steps_before_it(evaluations: int | None, tmp_path: Path) -> None:
    model, cond, uncond = paint_by_example()
    times: Iterator[float] = iter((999, 666))

    def stop(timestep: float) -> None:
        if next(times, None) is None:
            raise ZeroDivisionError("no more")

    path = tmp_path / "run.zarr"

    def run() -> None:
        with recording(model, path, denoisers=UNET, groups="reference", order=GUIDED, evaluations=evaluations) as running:
            running.images(reference=torch.rand(3, 8, 8))
            sample(model, cond, uncond, before=stop)

    with pytest.raises(ZeroDivisionError) as caught:
        run()
    assert caught.value.__notes__[0].startswith("2 of 9 steps are" if evaluations else "2 steps are")
    trace = open_trace(path, partial=True)
    assert (len(trace.present), trace.record.steps) == (2, evaluations or 2)
    assert "no more after 2 recorded evaluations" in trace.record.reason
    assert [image.name for image in trace.images] == ["reference"]
    assert np.isfinite(r2g(trace).values).all()


@pytest.mark.parametrize("sequential", [False, True])
def test_an_error_after_all_that_was_planned_leaves_a_complete_trace(sequential: bool, memory: type[MemoryWriter]) -> None:
    model, cond, uncond = paint_by_example()

    def run() -> None:
        with recording(model, PATH, denoisers=UNET, groups="reference", order=GUIDED, sequential=sequential, evaluations=3):
            sample(model, cond, uncond, sequential=sequential)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert (memory.last.trace.status, memory.last.trace.steps) == ("complete", 3)


def test_half_an_evaluation_is_not_kept(memory: type[MemoryWriter]) -> None:
    model, cond, uncond = paint_by_example()
    calls = iter(range(3))

    def stop(*_: Any) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    model.model["diffusion_model"].register_forward_pre_hook(stop)
    said = {"groups": "reference", "order": GUIDED, "sequential": True, "branches": "both", "evaluations": 3}
    with pytest.raises(KeyboardInterrupt), recording(model, PATH, denoisers=UNET, **said):
        sample(model, cond, uncond, sequential=True)
    assert (len(memory.last.commits), memory.last.reason) == (1, "KeyboardInterrupt after 1 recorded evaluations")


def test_two_passes_that_nobody_spoke_of(memory: type[MemoryWriter]) -> None:
    said = {"order": None}
    match = r'ran twice at timestep 999, and nothing says why.*order=\("cond", "uncond"\), sequential=True'
    refused(InvalidInput, match, lambda: run_example(said, sequential=True))
    match = "the passes of evaluation 0 are at timesteps 999 and 666"
    model, cond, _ = paint_by_example()

    def unguided() -> None:
        with recording(model, PATH, denoisers=UNET, groups="reference", order=("cond", "uncond"), sequential=True):
            sample(model, cond)

    refused(InvalidInput, match, unguided)


def test_a_single_pass_of_two(memory: type[MemoryWriter]) -> None:
    model, cond, _ = paint_by_example()
    x = torch.zeros(1, 4, *LATENT)

    def run(*order: str) -> None:
        with torch.no_grad(), recording(model, PATH, denoisers=UNET, groups="reference", order=order, sequential=True) as running:
            for timestep in (900, 800):
                running.step(timestep)
                model.apply_model(x, torch.tensor([timestep]), cond)

    refused(InvalidInput, "evaluation 0 made 1 of the passes uncond, cond, so it is not known which", lambda: run("uncond", "cond"))
    run("cond", "uncond")
    assert sorted(memory.last.blocks)[:2] == [(0, 0, "cond", 0), (0, 0, "cond", 1)]


def test_a_taken_path(tmp_path: Path) -> None:
    (tmp_path / "run.zarr").mkdir()
    refused(AlreadyExists, "overwrite=True", lambda: run_example({}, path=tmp_path / "run.zarr"))


def test_a_run_of_unknown_length_is_held_against_its_limit_step_by_step(tmp_path: Path) -> None:
    model, cond, uncond = super_resolution()
    path = tmp_path / "run.zarr"
    said = {"groups": {"*image_attentions*": "reference", "*": "text"}, "order": GUIDED, "max_bytes": 60_000}

    def long() -> None:
        with recording(model, path, denoisers=UNET, **said):
            sample(model, cond, uncond, steps=40)

    refused(NoSpace, "would hold .* and the limit is max_bytes='60kB'", long)
    assert 1 < len(open_trace(path, partial=True).present) < 39


class Changed(EinsumAttention):
    """Attention that is not of what its projections made."""

    def __init__(self, width: int, context: int | None = None, change: Callable[[Tensor], Tensor] = lambda scores: scores) -> None:
        super().__init__(width, context)
        self.change = change

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        query, key, value = self.fold(self.to_q(x)), self.fold(self.to_k(source)), self.fold(self.to_v(source))
        scores = torch.einsum("bid,bjd->bij", query, key) * self.scale
        mixed = (self.change(scores).softmax(-1) @ value).unflatten(0, (-1, self.heads))
        return self.to_out(mixed.transpose(1, 2).flatten(2))


def with_attention(make: Callable[[int, int | None], nn.Module]) -> Any:
    """Super-resolution whose text is read by another attention; 5 keys."""
    model, cond, uncond = super_resolution()
    torch.manual_seed(1)
    for module in list(model.modules()):
        if hasattr(module, "image_attentions"):
            module.attentions.transformer_blocks[0].attn2 = make(8, CONTEXT)
    return model.eval(), cond, uncond


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda scores: scores * 1.5, "takes its softmax of other scores than to_q, to_k and scale make"),
        (lambda scores: scores + torch.arange(5), "a norm, a rotation or a bias between"),
    ],
)
def test_scores_that_are_not_the_projections(change: Any, match: str, memory: type[MemoryWriter]) -> None:
    said = {"layers": "*.attentions*attn2", "groups": "text"}
    refused(UnsupportedModel, match, lambda: run_example(said, lambda: with_attention(lambda w, c: Changed(w, c, change))))


def hide(module: nn.Module) -> nn.Module:
    """The module's attention as a compiled kernel is seen: not at all."""
    forward = module.forward

    def hidden(x: Tensor, context: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        query, key, value = module.to_q(x), module.to_k(source), module.to_v(source)  # type: ignore[operator]
        with torch._C.DisableTorchFunction():
            query, key, value = (module.fold(t) for t in (query, key, value))  # type: ignore[operator]
            weights = torch.softmax(torch.einsum("bid,bjd->bij", query, key) * module.scale, -1)
            mixed = torch.einsum("bij,bjd->bid", weights, value).unflatten(0, (-1, module.heads))
        return module.to_out(mixed.transpose(1, 2).flatten(2))  # type: ignore[operator]

    module.forward = hidden  # type: ignore[method-assign]
    assert forward is not hidden
    return module


def test_a_kernel_of_its_own_is_taken_on_trust_and_that_is_said(memory: type[MemoryWriter]) -> None:
    run_example({"layers": "*.attentions*attn2", "groups": "text"}, lambda: with_attention(lambda w, c: hide(EinsumAttention(w, c))))
    trace = memory.last.trace
    assert len(trace.layers) == len(trace.provenance["notes"]) == 5
    assert "kernel of its own" in trace.provenance["notes"][0]

    def normed(width: int, context: int | None) -> nn.Module:
        module = hide(EinsumAttention(width, context))
        module.q_norm = nn.LayerNorm(4)
        return module

    match = "normalises its queries or keys after they are projected"
    said = {"layers": "*.attentions*attn2", "groups": "text"}
    refused(UnsupportedModel, match, lambda: run_example(said, lambda: with_attention(normed)))


def test_projections_that_have_no_heads_or_run_twice(memory: type[MemoryWriter]) -> None:
    class Folded(EinsumAttention):
        def __init__(self, width: int, context: int | None = None) -> None:
            super().__init__(width, context)
            self.to_q = nn.Sequential(self.to_q, nn.Unflatten(2, (2, 4)))

        def fold(self, tokens: Tensor) -> Tensor:
            return super().fold(tokens.flatten(2))

    said = {"layers": "*.attentions*attn2", "groups": "text"}
    match = r"projects to 2 x 48 x 2 x 4, expected \(row, token, head \* channel\) with 2 heads"
    refused(UnsupportedModel, match, lambda: run_example(said, lambda: with_attention(Folded)))

    class Twice(EinsumAttention):
        def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
            assert context is not None
            return super().forward(x, context[:, :2]) + super().forward(x, context[:, 2:])

    match = "projects queries 2 and keys 2 times in one run"
    refused(UnsupportedModel, match, lambda: run_example(said, lambda: with_attention(Twice)))


def test_a_layer_that_runs_twice_in_one_pass(memory: type[MemoryWriter]) -> None:
    def shared() -> Any:
        model, cond, uncond = super_resolution()
        unet = model.model["diffusion_model"]
        unet.output_blocks[1] = unet.input_blocks[0]
        return model, cond, uncond

    said = {"layers": "*.attentions*attn2", "groups": "text"}
    refused(UnsupportedModel, "attn2 ran twice in one pass of its denoiser", lambda: run_example(said, shared))


def test_a_denoiser_without_a_time(memory: type[MemoryWriter]) -> None:
    model, cond, _ = paint_by_example()
    unet = model.model["diffusion_model"]
    forward = unet.forward

    class OneStep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = unet

        def forward(self, x: Tensor, conditions: Any) -> Tensor:
            return forward(x, torch.full((len(x),), 999), conditions)

    def call(this: Diffusion, x: Tensor, t: Tensor, c: dict[str, Tensor]) -> Tensor:
        from outside_models import Conditions

        return one(torch.cat([x, c["c_concat"]], 1), Conditions(c["c_crossattn"]))

    one = OneStep()
    model._call = call

    def run(**said: Any) -> None:
        with recording(model, PATH, denoisers={"unet": one}, groups="reference", layers="*attn2") as running:
            sample(model, cond, steps=1, before=lambda timestep: running.step(timestep, 0.5) if said else None)

    refused(UnsupportedModel, r"no timestep that could be told.*running.step\(timestep\)", run)
    run(said=True)
    assert (memory.last.commits[0]["timestep"], memory.last.commits[0]["sigma"]) == (999, 0.5)
    assert memory.last.trace.layers[0].grid == LATENT


@pytest.mark.parametrize(
    ("pictures", "match"),
    [
        ({"reference": "garment.png"}, "reference is a str, expected a PIL image"),
        ({"a b": np.zeros((2, 2, 3))}, "name 'a b' is not made of"),
        ({"windows": {"reference": (0, 0, 1, 1)}}, "window 'reference' is of no picture"),
        ({"windows": {"reference": (1, 0, 1, 1)}, "reference": np.zeros((2, 2, 3))}, r"is not \(top, left, bottom, right\)"),
        ({"reference": [np.zeros((2, 2, 3))], "reference_0": np.zeros((2, 2, 3)), "windows": {"reference": (0, 0, 2)}}, "window"),
    ],
)
def test_pictures_that_are_none(pictures: dict[str, Any], match: str) -> None:
    model, _, _ = paint_by_example()
    running = recording(model, PATH, denoisers=UNET, groups="reference")
    refused(InvalidInput, match, lambda: running.images(**pictures))
    running.images(mask=np.zeros((4, 4)))
    refused(InvalidInput, "named mask was given already", lambda: running.images(mask=np.zeros((4, 4))))


def test_probes_of_a_model_that_shows_no_encoder() -> None:
    said: dict[str, Any] = {"groups": "reference", "probes": {"concepts": ["a dog"]}, "encoding": "factors"}
    refused(InvalidInput, "probes are encoded as a diffusers pipeline encodes", lambda: run_example(said))


class Unprojected(EinsumAttention):
    """Its projections are there, but it multiplies by their weights itself."""

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        assert context is not None
        query, key, value = (
            nn.functional.linear(t, part.weight) for t, part in ((x, self.to_q), (context, self.to_k), (context, self.to_v))
        )
        return self.to_out((query @ key.transpose(1, 2)).softmax(-1) @ value)


def test_attention_that_shows_nowhere(memory: type[MemoryWriter]) -> None:
    said = {"layers": "*.attentions*attn2", "groups": "text"}
    match = r"attn2 \(Unprojected\) ran, but neither scaled_dot_product_attention nor its own to_q and to_k showed its attention"
    refused(UnsupportedModel, match, lambda: run_example(said, lambda: with_attention(Unprojected)))


class Turned(FoldedAttention):
    """Folds rows and heads the other way round, after a rotation."""

    def fold(self, tokens: Tensor) -> Tensor:
        return super().fold(tokens.flip(-1))


def test_folded_queries_that_are_not_the_projections(memory: type[MemoryWriter]) -> None:
    said = {"layers": "*.attentions*attn2", "groups": "text"}
    refused(UnsupportedModel, "attends with 3-D queries", lambda: run_example(said, lambda: with_attention(Turned)))
