"""Modules that multiply matrices themselves: what they compute is compared in every call, at every step, row, head and place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory import MemoryWriter, memory
from outside_models import CONTEXT, HEADS, UNET, EinsumAttention, sample, super_resolution
from torch import Tensor, nn

from i2am.recorder import recording
from i2am.recorder.capture.projected import Factors
from i2am.schema.errors import UnsupportedModel

__all__ = ["memory"]

PATH = Path("nowhere.zarr")
STEPS, PLACES, TOKENS = 3, 48, 5
Change = Callable[[Tensor, int], Tensor]


class Own(EinsumAttention):
    """Changes its scores as `change` says, which is told how often it ran; in a kernel that cannot be seen if `hidden`."""

    def __init__(self, change: Change, hidden: bool = False, key_heads: int = HEADS) -> None:
        super().__init__(8, CONTEXT)
        self.change, self.hidden, self.ran, self.key_heads = change, hidden, 0, key_heads
        for name in ("to_k", "to_v") if key_heads < HEADS else ():
            setattr(self, name, nn.Linear(CONTEXT, 8 // HEADS * key_heads, bias=False))

    def split(self, tokens: Tensor) -> Tensor:
        found = tokens.unflatten(2, (-1, 8 // HEADS)).transpose(1, 2)
        return found.repeat_interleave(HEADS // found.shape[1], 1)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        assert context is not None
        query, key, value = (self.split(made) for made in (self.to_q(x), self.to_k(context), self.to_v(context)))
        if self.hidden:
            with torch._C.DisableTorchFunction():
                mixed = self.mix(query, key, value)
        else:
            mixed = self.mix(query, key, value)
        self.ran += 1
        return self.to_out(mixed.transpose(1, 2).flatten(2))

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.transpose(2, 3) * (8 // HEADS) ** -0.5
        return self.change(scores, self.ran).softmax(-1) @ value


def record(make: Callable[[], nn.Module], rows: int = 1) -> None:
    """A run whose text is read by another attention."""
    model, cond, _ = super_resolution(rows)
    torch.manual_seed(1)
    for module in list(model.modules()):
        if hasattr(module, "image_attentions"):
            module.attentions.transformer_blocks[0].attn2 = make()
    model.eval()
    plain = sample(model, cond, samples=rows)
    for module in model.modules():
        if isinstance(module, Own):
            module.ran = 0
    with recording(model, PATH, denoisers=UNET, groups="text", layers="*.attentions*attn2", order=("cond",)):
        assert torch.equal(plain, sample(model, cond, samples=rows))


def at(*places: Any, by: float = -torch.inf, after: int = 0) -> Change:
    """Add to some scores, from a step on."""

    def change(scores: Tensor, ran: int) -> Tensor:
        scores = scores.clone()
        if ran >= after:
            scores[places] += by
        return scores

    return change


EVERY = slice(None)
CHANGES = {
    "a mask of one token": at(..., 3),
    "an additive mask": at(..., 3, by=-1e4),
    "a mask of one row": at(1, EVERY, EVERY, 2),
    "a mask of one head": at(EVERY, 1, EVERY, 2),
    "a mask of one place": at(EVERY, EVERY, -1, 2),
    "a mask from the last step on": at(..., 3, after=STEPS - 1),
    "a bias of one place": at(EVERY, EVERY, -1, 2, by=0.5),
    "a bias of one row from a later step on": at(1, EVERY, EVERY, 2, by=0.5, after=1),
    "a position bias": lambda scores, ran: scores + torch.linspace(0, 1, scores.shape[-1]),
    "a scale of its own": lambda scores, ran: scores * 1.5,
    "a scale for one head": lambda scores, ran: scores * torch.tensor([1.0, 1.5])[:, None, None],
}


@pytest.mark.parametrize("name", CHANGES)
def test_scores_that_are_changed_anywhere_at_any_step_are_noticed(name: str, memory: type[MemoryWriter]) -> None:
    with pytest.raises(UnsupportedModel, match=r"takes its softmax of other scores.*scaled_dot_product_attention.*layers="):
        record(lambda: Own(CHANGES[name]), rows=2)


@pytest.mark.parametrize("name", [name for name in CHANGES if "one place" not in name])
def test_a_kernel_that_is_not_seen_is_known_by_its_output(name: str, memory: type[MemoryWriter]) -> None:
    with pytest.raises(UnsupportedModel, match="takes its softmax of other scores"):
        record(lambda: Own(CHANGES[name], hidden=True), rows=2)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("key_heads", [HEADS, 1])
def test_what_is_as_its_projections_make_it_is_recorded(key_heads: int, hidden: bool, memory: type[MemoryWriter]) -> None:
    made: list[Own] = []

    def make() -> Own:
        made.append(Own(lambda scores, ran: scores, hidden, key_heads))
        return made[-1]

    record(make, rows=2)
    trace = memory.last.trace
    assert len(trace.layers) == len(made)
    notes = trace.provenance["notes"]
    assert len(notes) == (len(made) if hidden else 0)
    assert all("as its output at one query of each row in every call shows" in note for note in notes)


def test_a_kernel_whose_output_says_nothing_is_on_trust(memory: type[MemoryWriter]) -> None:
    class Nameless(Own):
        def __init__(self) -> None:
            super().__init__(lambda scores, ran: scores, hidden=True)
            self.__dict__["leave"] = self.to_out
            del self.to_out

        def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
            self.__dict__["to_out"] = self.leave
            out = super().forward(x, context, mask)
            del self.__dict__["to_out"]
            return out

    record(Nameless)
    assert all("on trust" in note for note in memory.last.trace.provenance["notes"])
    assert memory.last.trace.provenance["notes"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda module: setattr(module, "scale", torch.tensor([0.5, 0.7])), "has a scale that is not one number"),
        (lambda module: setattr(module, "to_k", nn.Linear(CONTEXT, 6)), "keys to 6 channels, which 2 heads of 4 do not share"),
    ],
)
def test_scales_and_heads_that_are_no_layer(change: Any, match: str, memory: type[MemoryWriter]) -> None:
    class Odd(Own):
        def __init__(self) -> None:
            super().__init__(lambda scores, ran: scores)
            change(self)

        def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return value.mean(2, keepdim=True).expand(-1, -1, query.shape[2], -1).softmax(-1)

        def split(self, tokens: Tensor) -> Tensor:
            return tokens.unflatten(2, (HEADS, -1)).transpose(1, 2)[..., :3].repeat_interleave(2, -1)[..., :4]

    with pytest.raises(UnsupportedModel, match=match):
        record(Odd)


def test_the_models_own_random_numbers_are_left_alone(memory: type[MemoryWriter]) -> None:
    torch.manual_seed(7)
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    model, cond, _ = super_resolution()
    torch.random.set_rng_state(before)
    with recording(model, PATH, denoisers=UNET, groups="text", layers="*.attentions*attn2"):
        sample(model, cond, samples=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "autocast"])
def test_rounding_is_no_difference(kind: str, hidden: bool, memory: type[MemoryWriter]) -> None:
    torch.manual_seed(0)
    module = Own(lambda scores, ran: scores, hidden)
    dtype = torch.float32 if kind == "autocast" else getattr(torch, kind)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = module

        def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
            return self.attn(x.flatten(2).transpose(1, 2), context).transpose(1, 2).unflatten(2, x.shape[2:])

    model, t = Model().to(dtype).eval(), torch.ones(1)
    x, context = 3 * torch.randn(1, 8, 24, 32).to(dtype), 3 * torch.randn(1, 300, CONTEXT).to(dtype)
    with torch.no_grad(), recording(model, PATH, denoisers={"unet": model}, groups="text", grid=(24, 32)) as running:
        for step in range(20):
            running.step(float(step))
            with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
                model(x, t, context)
    assert len(memory.last.commits) == 20


def test_a_device_is_asked_once_a_pass_and_before_the_step_counts(memory: type[MemoryWriter], monkeypatch: pytest.MonkeyPatch) -> None:
    def later(self: Factors, far: Tensor) -> None:  # as it is where asking makes the model wait
        self._far[self._path] = far | self._far.get(self._path, torch.tensor(False))

    monkeypatch.setattr(Factors, "_doubt", later)
    with pytest.raises(UnsupportedModel, match=r"attn2 multiplies matrices itself and takes its softmax of other scores"):
        record(lambda: Own(CHANGES["a mask from the last step on"]))
    assert len(memory.last.commits) == STEPS - 1
