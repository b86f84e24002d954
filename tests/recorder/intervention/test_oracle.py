"""What an attention module gives under an intervention, held against float64 attention with a column of P, or a head, left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pipelines_transformers as transformers
import pipelines_video as videos
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

import pipelines
from i2am.recorder import Intervention, intervene
from i2am.recorder.capture.call import Call
from i2am.recorder.capture.modules import attention_modules
from i2am.recorder.demo.pipeline import load_shipped
from i2am.recorder.intervention.change import Edit, change
from i2am.schema.errors import InvalidInput

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

Ends = tuple[int, int | None]
EVERY: Ends = (0, None)
SD3_IMAGE: Ends = (0, 48)
"""Queries of SD3 that are places: they stand before the text."""
FLUX_IMAGE: Ends = (transformers.TEXT, transformers.TEXT + 48)


def demo() -> Any:
    images = {"image": pipelines.picture(1, 64, 64), "example_image": pipelines.picture(2, 64, 64)}
    given = {**images, "mask_image": pipelines.square_mask(64, 64), "num_inference_steps": 2, "output_type": "np"}
    return load_shipped(), lambda: {**given, "generator": pipelines.generator()}


@dataclass(frozen=True)
class Case:
    """A family, what is left out of it, and where that stands in its calls."""

    build: Callable[[], Any]
    group: str
    tokens: tuple[int, ...]
    """Within the group; empty for the one key there is."""
    first: int = 0
    """Key of the call at which the group begins."""
    call: int = 0
    """Which call of the module reads it."""
    queries: Ends = EVERY
    """Places of the image being made."""
    out: Ends = EVERY
    """Queries whose sums go into `to_out`."""
    rows: int = 2
    """The last of so many parts of the batch is what the branch `cond` is."""


CASES = {
    "ip-full": Case(lambda: pipelines.build("ip-full"), "reference", (0, 3, 7), call=1),
    "text": Case(lambda: pipelines.build("text-two"), "text", (1, 4)),
    "paint-by-example": Case(lambda: pipelines.build("paint-by-example"), "reference", ()),
    "sdxl": Case(lambda: pipelines.build("sdxl"), "reference", (2,), call=1),
    "sd3": Case(lambda: transformers.build("sd3"), "text", (1, 4), first=48, queries=SD3_IMAGE, out=SD3_IMAGE),
    "kontext": Case(
        lambda: transformers.build("kontext"),
        "reference",
        (0, 5),
        first=transformers.TEXT + 48,
        queries=FLUX_IMAGE,
        out=(transformers.TEXT, None),
        rows=1,
    ),
    "svd": Case(lambda: videos.build("svd"), "reference", ()),
    "animate": Case(lambda: videos.build("animate"), "reference", (0, 3), call=1),
    "demo": Case(demo, "reference", (0, 8, 100)),
}


class Watch(TorchFunctionMode):
    """What each module of a pipeline attends with, and what its output projection is given."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.seen: dict[str, list[tuple[list[Any], Tensor]]] = {}
        self._calls: list[Any] = []
        for path, module in attention_modules(pipeline).items():
            module.register_forward_pre_hook(lambda *_: self._calls.clear())
            if getattr(module, "to_out", None) is not None:
                module.to_out[0].register_forward_pre_hook(self._keep(path))

    def _keep(self, path: str) -> Any:
        def keep(_: Any, args: Any) -> None:
            self.seen.setdefault(path, []).append((list(self._calls), args[0].clone()))

        return keep

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and "dropout_p" in kwargs:  # the model's own call says this
            named = {**dict(zip(("query", "key", "value"), args, strict=False)), **kwargs}
            self._calls.append([named["query"], named["key"], named["value"], named.get("attn_mask")])
        return func(*args, **kwargs)


def attend(call: list[Any]) -> tuple[Tensor, Tensor]:
    """Scores and values in float64."""
    query, key, value, mask = call
    assert mask is None
    return query.double() @ key.double().transpose(2, 3) * query.shape[-1] ** -0.5, value.double()


def left_out(kind: str, keys: list[int], scores: Tensor, value: Tensor) -> Tensor:
    """What attention gives without some keys, or without its heads."""
    hidden, weights = scores.clone(), scores.softmax(-1)
    hidden[..., keys] = -torch.inf
    weights[..., keys] = 0
    return hidden.softmax(-1) @ value if kind == "drop" else weights @ value if kind == "zero" else torch.zeros_like(weights @ value)


def expected(case: Case, kind: str, heads: list[int] | None, calls: list[Any]) -> Tensor:
    """The sum of what all calls give, with keys or heads left out of one of them.

    Dims     -> (row, x, head * channel)
    """
    total = []
    for index, call in enumerate(calls):
        scores, value = attend(call)
        whole = scores.softmax(-1) @ value
        if index == case.call:
            changed = left_out(kind, [case.first + token for token in case.tokens or (0,)], scores, value)
            rows, queries = slice(scores.shape[0] - scores.shape[0] // case.rows, None), slice(*case.queries)
            for head in range(scores.shape[1]) if heads is None else heads:
                whole[rows, head, queries] = changed[rows, head, queries]
        total.append(whole.transpose(1, 2).flatten(2)[:, slice(*case.out)])
    return torch.stack(total).sum(0)


@pytest.mark.parametrize("heads", [None, [1]], ids=["all heads", "one head"])
@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, case in CASES.items() for kind in ("drop", "zero", "off") if case.tokens or kind != "drop"]
)
def test_a_module_gives_what_attention_without_the_keys_gives(name: str, kind: str, heads: list[int] | None) -> None:
    case = CASES[name]
    pipeline, call = case.build()
    watch = Watch(pipeline)
    tokens = list(case.tokens) if case.tokens and kind != "off" else None
    with watch:
        intervene(pipeline, Intervention(kind, group=case.group, heads=heads, tokens=tokens), **call())  # type: ignore[arg-type]
    assert watch.seen
    for runs in watch.seen.values():
        for calls, given in runs:
            found = expected(case, kind, heads, calls)
            torch.testing.assert_close(given.double().reshape(found.shape), found, rtol=1e-4, atol=2e-5 * float(found.abs().max()))


def small_call(**changes: Any) -> tuple[Call, Tensor]:
    noise = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, length, 8, generator=noise) for heads, length in ((4, 5), (2, 6), (2, 6)))
    return Call(path="attn", projection="to_v", query=query, key=key, scale=0.3, **changes), value


@pytest.mark.parametrize("additive", [None, False, True], ids=["no mask", "boolean mask", "additive mask"])
@pytest.mark.parametrize("kind", ["drop", "zero", "off"])
def test_shared_keys_masks_and_single_queries(kind: str, additive: bool | None) -> None:
    hidden = torch.zeros(2, 1, 1, 6, dtype=torch.bool)
    hidden[0, ..., 2] = hidden[1, ..., 4:] = True
    mask = None if additive is None else torch.where(hidden, -1e4, 0.0) if additive else ~hidden
    call, value = small_call(mask=mask)
    key, values = (part.double().repeat_interleave(2, 1) for part in (call.key, value))
    scores = call.query.double() @ key.transpose(2, 3) * 0.3
    scores = scores if mask is None else scores.masked_fill(hidden, -torch.inf)
    output = (scores.softmax(-1) @ values).float()
    edit = Edit(kind, slice(1, 2), (0, 3), (2,), () if kind == "off" else (0, 1))  # type: ignore[arg-type]
    found = change(call, [edit], value, output)

    truth = output.double()
    truth[1, 2, [0, 3]] = left_out(kind, [0, 1], scores, values)[1, 2, [0, 3]]
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-6)
    assert torch.equal(found[0], output[0]) and torch.equal(found[1, [0, 1, 3]], output[1, [0, 1, 3]])


def test_edits_of_one_call_are_made_together() -> None:
    call, value = small_call()
    output = torch.randn(2, 4, 5, 8)
    every = (slice(0, 2), tuple(range(5)), (0, 1))
    both = change(call, [Edit("drop", *every, (0, 1))], value, output)
    assert torch.equal(both, change(call, [Edit("drop", *every, (0,)), Edit("drop", *every, (1,))], value, output))
    off = change(call, [Edit("drop", *every, tuple(range(6))), Edit("off", *every, ())], value, output)
    assert not off[:, :2].any() and torch.equal(off[:, 2:], output[:, 2:])


def test_a_query_that_has_no_key_left_is_refused() -> None:
    mask = torch.ones(1, 1, 1, 6, dtype=torch.bool)
    mask[..., 3:] = False
    call, value = small_call(mask=mask)
    with pytest.raises(InvalidInput, match=r"attn would have no key left.*use zero.*or off"):
        change(call, [Edit("drop", slice(0, 1), (0,), (0,), (0, 1, 2))], value, torch.zeros(2, 4, 5, 8))
    assert change(call, [Edit("drop", slice(0, 1), (0,), (0,), (0, 1))], value, torch.zeros(2, 4, 5, 8)).isfinite().all()
