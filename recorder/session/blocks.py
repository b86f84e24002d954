"""Blocks of one row of a call: its attention as numbers on their way from the model's device to the writer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from ...schema.errors import UnsupportedModel
from ...schema.messages import option
from ...schema.trace import Layer
from ..capture.call import Call
from ..encoding.scores import encode_scores, exact, heads_of, mask_of, share_heads, sum_rows, take_keys
from ..encoding.transfer import Block, Outbox
from ..labels.frames import same_keys, uneven_keys
from ..labels.layers import Site, hides, part_of_mask


def encode_row(call: Call, row: int, site: Site, keep_bits: int, outbox: Outbox) -> tuple[Mapping[str, Block], Callable[[], float]]:
    """The blocks that a layer keeps of one row of a call, and what float16 loses of a token's column, once that is known.

    Raises   UnsupportedModel for a mask that the layer's encoding cannot say
    """
    layer, columns = site.layer, site.columns
    mask = part_of_mask(mask_of(call.mask, row), site.generated)
    # Keys of one row serve all where a pipeline leaves its embeddings unrepeated.
    own_key = call.key[row if call.key.shape[0] > 1 else 0]
    query, key, mask = heads_of(call.query[row][:, site.generated], own_key, mask, layer.head_numbers)
    if layer.encoding == "probabilities":
        encoded = encode_scores(query, key, call.scale, mask, keep_bits, columns)
        placed = {"probability": encoded.probability, "query_lse": encoded.query_lse}
        blocks = {name: outbox.block(_lay_out(tensor, layer)) for name, tensor in placed.items()}
        return {**blocks, "token_lse": outbox.block(encoded.token_lse)}, _losses(call, outbox, outbox.block(encoded.lost))
    if call.mask is not None and hides(mask_of(call.mask, row), site.generated, columns):
        raise UnsupportedModel(
            f"{layer.name} is masked from here on, which factors cannot say; record it with {option('encoding', 'probabilities')}"
        )
    kept = exact(share_heads(take_keys(key, columns), layer.heads))
    factors = {"query": outbox.block(_lay_out(query, layer)), "key": outbox.block(kept)}
    if layer.partial_keys:
        factors["query_lse"] = outbox.block(_lay_out(sum_rows(query, key, call.scale, mask), layer))
    return factors, _losses(call, outbox, None)


def _losses(call: Call, outbox: Outbox, lost: Block | None) -> Callable[[], float]:
    """What was lost, once it is known that one row's keys were those of all frames."""
    unevenness = None if call.uneven is None else outbox.block(call.uneven)
    dtype, refusal = call.key.dtype, uneven_keys(call.path)  # not the call: its tensors would live until the block is written

    def look() -> float:
        if unevenness is not None and not same_keys(dtype, float(unevenness())):
            raise refusal
        return 0.0 if lost is None else float(lost())

    return look


def _lay_out(tensor: Tensor, layer: Layer) -> Tensor:
    """Dims     (head, x, ...) -> (head, [frame,] y, x, ...)"""
    numbers = exact(tensor)
    return numbers.reshape(numbers.shape[0], *layer.places, *numbers.shape[2:])
