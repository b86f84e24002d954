"""Concepts: words that run through a denoiser's double blocks beside the text and attend to the image, which does not attend to them.

As ConceptAttention has it (Helbling et al., ICML 2025): each concept is one token, the first that the text encoder makes of it; it has the
weights that the blocks have for text, no place, and a pooled text of zeros; it attends to all concepts and to the image. What attention
gives a concept, multiplied with what it gives a position, both before the output projection, says how far the two agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...schema.errors import UnsupportedModel
from ...schema.messages import option
from ...schema.trace import TraceRecord
from ..capture.call import Call
from ..capture.hooks import Capture
from ..capture.mode import Mode
from ..capture.modules import DOUBLE_BLOCKS, denoisers, double_blocks
from ..capture.wrapping import only_here, replaced
from ..labels.rows import bind_arguments
from ..text.readings import Texts
from .encoding import aside, text_alone

HALF: Final = torch.finfo(torch.float16).max
"""What the text's own numbers are cut to in half precision."""


class Concepts:
    """The concepts of one run, from their texts to how far each position agrees with each.

    Raises   UnsupportedModel for a denoiser whose double blocks are not known
    """

    def __init__(self, pipeline: Any, texts: tuple[str, ...], modules: tuple[str, ...], readings: Texts) -> None:
        self._pipeline, self._texts, self._readings = pipeline, texts, readings
        self._name, blocks = type(pipeline).__name__, double_blocks(pipeline) if texts else {}
        if texts and not blocks:
            found = " and ".join(type(denoiser).__name__ for denoiser in denoisers(pipeline).values()) or "no denoiser"
            raise UnsupportedModel(
                f"concepts attend in the double blocks of {', '.join(DOUBLE_BLOCKS)}, and {self._name} has {found}; record without "
                f"{option('concepts')}; words can be asked for with {option('probes')}, too"
            )
        last = max((index for index, path in enumerate(blocks) if path in modules), default=-1)
        self._blocks = dict(list(blocks.items())[: last + 1])
        if texts and not self._blocks:
            raise UnsupportedModel(f"no chosen module is in a double block, where concepts attend; choose {next(iter(blocks))} or others")
        self._vectors: Tensor | None = None
        """One token of each concept, (concept, channel), and zeros in place of a pooled text."""
        self._busy = False
        self._given: dict[str, Any] = {}
        """Arguments of the denoiser's run."""
        self._stream: tuple[Tensor, Tensor] | None = None
        """The concepts' hidden states, (row, concept, channel), and what modulates them, as the next block is given them."""
        self._scores: dict[str, Tensor] = {}
        self._mode: Mode | None = None
        self._seen: tuple[Tensor, Tensor, float | None] | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """The pipeline's prompts: concepts are encoded after the first, with the same arguments."""
        with ExitStack() as stack:
            if self._texts:
                stack.enter_context(replaced(type(self._pipeline), "encode_prompt", self._wrap))
            yield

    @contextmanager
    def following(self, capture: Capture) -> Iterator[None]:
        """Run the concepts beside all that a capture listens to; its hooks are set already, and the concepts' stand around them."""
        with ExitStack() as stack:
            for denoiser in denoisers(self._pipeline).values() if self._texts else ():
                stack.callback(denoiser.register_forward_pre_hook(only_here(self._begin), with_kwargs=True).remove)
            for path, block in self._blocks.items():
                attention: Any = block.attn
                enter, leave = partial(self._enter, capture, path, block), only_here(self._leave)
                hook = attention.register_forward_pre_hook(only_here(enter), prepend=True, with_kwargs=True)
                stack.callback(hook.remove)
                stack.callback(attention.register_forward_hook(leave, always_call=True).remove)
            stack.callback(self._leave)
            yield

    def scores(self, call: Call) -> Tensor | None:
        """How far what attention gives each position agrees with what it gives each concept.

        Dims     (row, concept, x), float32
        """
        return self._scores.get(call.path) if call.own and "add_v_proj" in call.projection else None

    def check(self, trace: TraceRecord) -> None:
        """Raise UnsupportedModel if no layer of a trace has concepts that were asked for."""
        if self._texts and not any(layer.concepts for layer in trace.layers):
            raise UnsupportedModel(f"no recorded layer of {self._name} has concepts; record double blocks ({option('layers')})")

    def _wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def encode(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
            output = original(pipeline, *args, **kwargs)
            if pipeline is self._pipeline and not self._busy and self._vectors is None:
                arguments = bind_arguments(original, pipeline, args, kwargs)
                self._busy = True
                try:
                    with aside(), self._readings.apart():
                        made = original(pipeline, **{**arguments, **text_alone(list(self._texts), arguments)})
                except (AttributeError, TypeError, ValueError) as error:
                    raise UnsupportedModel(f"{self._name} cannot encode concepts: {error}; load its text encoders") from error
                finally:
                    self._busy = False
                self._vectors = made[0][:, 0]
            return output

        return encode

    def _begin(self, denoiser: nn.Module, args: Any, kwargs: Any) -> None:
        self._given, self._stream = bind_arguments(type(denoiser).forward, denoiser, args, kwargs), None
        self._scores.clear()

    def _start(self, denoiser: Any, rows: int, capture: Capture) -> tuple[Tensor, Tensor]:
        """What the first block is given of the concepts."""
        if self._vectors is None:
            raise UnsupportedModel(f"{self._name} encoded no prompt, so its concepts cannot be encoded as it would be; pass a prompt")
        given, pooled = self._given, torch.zeros_like(self._given["pooled_projections"])
        with capture.unheard():
            hidden = denoiser.context_embedder(self._vectors.to(pooled.device, given["encoder_hidden_states"].dtype))
            times = [given[name].to(given["hidden_states"].dtype) * 1000 for name in ("timestep", "guidance") if given[name] is not None]
            return hidden.expand(rows, *hidden.shape), denoiser.time_text_embed(*times, pooled)

    def _enter(self, capture: Capture, path: str, block: nn.Module, _: nn.Module, args: Any, kwargs: Any) -> None:
        text = kwargs.get("encoder_hidden_states")
        if not capture.listens or not isinstance(text, Tensor):
            return

        def attend(query: Tensor, key: Tensor, value: Tensor, *others: Any, scale: float | None = None, **kwargs: Any) -> Any:
            if self._seen is None and key.shape[2] == query.shape[2] > text.shape[1]:
                self._seen = key[:, :, text.shape[1] :], value[:, :, text.shape[1] :], scale
                return partial(self._step, capture, path, block)
            return None

        self._seen, self._mode = None, Mode(attend)
        self._mode.__enter__()  # type: ignore[no-untyped-call]

    def _leave(self, *_: Any) -> None:
        self._seen = None
        if self._mode is not None:
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._mode = None

    def _step(self, capture: Capture, path: str, block: Any, output: Tensor) -> Tensor:
        """One block for the concepts, given what its attention gave the image; leaves that as it is.

        Dims     output (row, head, x, channel)
        """
        assert self._seen is not None
        key, value, scale = self._seen
        denoiser = denoisers(self._pipeline)[path.partition(".")[0]]
        with torch.no_grad(), capture.unheard():
            hidden, modulation = self._stream or self._start(denoiser, output.shape[0], capture)
            norms = block.norm1_context(hidden, emb=modulation)
            made = functional.scaled_dot_product_attention(*_with_image(block.attn, norms[0], key, value), scale=scale)
            gathered = made.transpose(1, 2).flatten(2)  # (row, concept, channel)
            self._scores[path] = gathered.float() @ output.transpose(1, 2).flatten(2).float().transpose(1, 2)
            self._stream = _pass_on(block, hidden, norms, block.attn.to_add_out(gathered)), modulation
        return output


def _with_image(attention: Any, hidden: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of the concepts, keys and values of them and of the image behind them; rotation leaves what has no place as it is.

    Dims     hidden (row, concept, channel), key and value (row, head, place, channel)
    """
    fused = getattr(attention, "fused_projections", False)
    parts = attention.to_added_qkv(hidden).chunk(3, -1) if fused else [getattr(attention, f"add_{name}_proj")(hidden) for name in "qkv"]
    q, k, v = (part.unflatten(-1, (key.shape[1], -1)) for part in parts)
    q, k, v = (part.transpose(1, 2) for part in (attention.norm_added_q(q), attention.norm_added_k(k), v))
    return q, torch.cat([k, key], 2), torch.cat([v, value], 2)


def _pass_on(block: Any, hidden: Tensor, norms: tuple[Tensor, ...], gathered: Tensor) -> Tensor:
    """What the next block is given of the concepts, as this one makes it of text."""
    _, gate, shift, scale, last_gate = norms
    hidden = hidden + gate.unsqueeze(1) * gathered
    turned = block.norm2_context(hidden) * (1 + scale[:, None]) + shift[:, None]
    hidden = hidden + last_gate.unsqueeze(1) * block.ff_context(turned)
    return hidden.clip(-HALF, HALF) if hidden.dtype == torch.float16 else hidden
