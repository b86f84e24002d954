"""Classifier-free guidance by data: which rows of a batch are cond, by the pipeline's own inputs and by what it makes of the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import permutations
from typing import Any, Final

import torch
from torch import Tensor, nn

from ...schema.errors import UnsupportedModel
from .passes import Evaluation
from .rows import is_told, unknown_batch

NEGATIVE: Final = ("negative", "uncond")
"""What the names of arguments hold that the run is guided away from."""
LOOKS: Final = 3
"""Guided evaluations of which the outputs are looked at, until they tell."""
LONG: Final = 4
"""Letters of a prompt that no other text holds by chance."""
ENOUGH: Final = 8
"""Numbers that tell a sum of two others from what is none."""
MISFIT: Final = 0.05
"""Greatest distance of a guided output from a sum of its branches, as a share of what the branches differ by."""


class Inputs:
    """The embeddings and texts that a pipeline's call was given for each branch."""

    def __init__(self, arguments: Mapping[str, Any], read: Callable[[Tensor], Sequence[str]]) -> None:
        given = {name: value for name, value in arguments.items() if value is not None}
        embeds = {name: value for name, value in given.items() if "embeds" in name and not name.startswith("ip_adapter")}
        self._tensors = [(_branch(name), value) for name, value in embeds.items() if isinstance(value, Tensor)]
        self._texts = {_branch(name): _texts(value) for name, value in given.items() if name in ("prompt", "negative_prompt")}
        self._read = read

    def branch(self, conditioning: Sequence[Tensor], row: int) -> str | None:
        """The branch whose inputs a row is conditioned on; None where nothing, or both, tell."""
        told = [{branch for branch, value in self._tensors if _holds(value, tensor[row])} for tensor in conditioning]
        found = set.intersection(*filter(None, told)) if any(told) else set()
        context = next((tensor for tensor in conditioning if tensor.ndim == 3), None)
        if not found and context is not None and (said := [_plain(text) for text in self._read(context[row])]):
            found = {branch for branch, texts in self._texts.items() if any(text in said for text in texts)}
            # Pipelines put words around a prompt, or change some: that it is missing tells nothing.
            long = {branch: [text for text in texts if len(text) >= LONG] for branch, texts in self._texts.items()}
            within = {branch for branch, texts in long.items() if any(text in one for text in texts for one in said)}
            found = found or (within if within == {"cond"} else set())
        return found.pop() if len(found) == 1 else None


def _branch(name: str) -> str:
    return "uncond" if any(word in name for word in NEGATIVE) else "cond"


def _texts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else []
    return [plain for text in texts if isinstance(text, str) and (plain := _plain(text))]


def _plain(text: str) -> str:
    """A text as pipelines clean it before they encode it."""
    return " ".join(text.lower().split())


def _holds(value: Tensor, row: Tensor) -> bool:
    """Whether a row is one of an argument's."""
    if value.shape[1:] != row.shape or row.ndim == 0 or row.is_meta:
        return False
    return any(torch.equal(one.to(row), row) for one in value)


def settle(order: Sequence[str | None], said: Sequence[str | None]) -> tuple[str | None, ...]:
    """The parts of a batch: as `order` expects them, unless the rows' own inputs say otherwise.

    Raises   UnsupportedModel if no order of these parts agrees with them
    """
    if None not in order and all(branch == "cond" for branch in said):
        return ("cond",)
    if len(said) % len(order) or is_told(order, said):
        return tuple(order)
    size = len(said) // len(order)
    parts = [set(said[i * size : (i + 1) * size]) - {None} for i in range(len(order))]
    agree = [one for one in dict.fromkeys((tuple(order), *permutations(order))) if _agrees(one, parts)]
    if not agree or (agree[0] != tuple(order) and len(agree) > 1):
        raise unknown_batch(len(said), f"the inputs of {', '.join(name or 'other' for name in order)} in some order", order)
    return agree[0]


def _agrees(order: Sequence[str | None], parts: Sequence[set[str | None]]) -> bool:
    return all(name is None or found <= {name} for name, found in zip(order, parts, strict=True))


class Outputs:
    """What the denoisers gave since the last step, held against what the scheduler is given: guidance leads to cond, away from uncond."""

    def __init__(self) -> None:
        self._given: list[Tensor] = []
        self._looks = 0

    @contextmanager
    def watched(self, denoisers: Mapping[str, nn.Module]) -> Iterator[None]:
        """Listen for as long as the context lasts."""
        with ExitStack() as stack:
            for denoiser in denoisers.values():
                stack.callback(denoiser.register_forward_hook(self._keep).remove)
            try:
                yield
            finally:
                self._given.clear()

    def _keep(self, _: nn.Module, args: Any, output: Any) -> None:
        if self._looks < LOOKS:
            found = output[0] if isinstance(output, (tuple, list)) else getattr(output, "sample", output)
            self._given.append(found if isinstance(found, Tensor) else torch.empty(0))

    def check(self, now: Evaluation | None, guided: Any) -> None:
        """Raise UnsupportedModel if what the scheduler is given leads away from what was taken for cond."""
        given, self._given = self._given, []
        if now is None or self._looks >= LOOKS or len(given) != len(now.passes) or not isinstance(guided, Tensor):
            return
        parts: dict[str, Tensor] = {}
        for one, output in zip(now.passes, given, strict=True):
            if len(output) == one.rows and not output.is_meta:
                parts |= {row.branch: output[row.index] for row in one.labelled if row.sample == 0}
        if len(parts) < 2:
            return
        self._looks += 1
        leads = leading_part(parts["uncond"], parts["cond"], guided[0])
        self._looks = self._looks if leads is None else LOOKS
        if leads is False:
            order = ", ".join(name or "other" for one in now.passes for name in one.order)
            raise UnsupportedModel(
                f"the pipeline guides its run towards the part of the batch that was taken for uncond ({order}), so cond and uncond "
                "are not where they are expected; give it prompt_embeds and negative_prompt_embeds, by which they can be told"
            )


def leading_part(uncond: Tensor, cond: Tensor, guided: Tensor) -> bool | None:
    """Whether a guided output extrapolates from uncond through cond; False if it is the other way, None if it is no such sum.

    Dims     (channel, ...) each, or (token, channel); the guided one may have fewer channels
    """
    if uncond.ndim != guided.ndim or uncond.shape[1:] != guided.shape[1:] or len(guided) > len(uncond):
        return None
    # Some guide their first channels only, and some scale each token.
    few = slice(0, 1) if guided[0].numel() >= ENOUGH else slice(0, len(guided))
    start, end, made = (part[few].detach().to("cpu", torch.float64).flatten() for part in (uncond, cond, guided))
    along = end - start
    scale, share = torch.linalg.lstsq(torch.stack([start, along], 1), made[:, None]).solution[:, 0].tolist()
    misfit = (made - scale * start - share * along).norm()
    if not misfit <= MISFIT * (share * along).norm() or share * (scale - share) >= 0:
        return None  # not a sum of the two, or between them
    return bool(abs(share) > abs(scale - share))
