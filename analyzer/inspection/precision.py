"""What the encoding lost of each layer, and the sentence that says what this does to R2G."""

from __future__ import annotations

from collections.abc import Iterable

from ...schema.codec import MANTISSA
from ...schema.trace import LOSSY
from ..trace.reader import Trace


def precision_note(trace: Trace, layers: Iterable[int] | None = None) -> str | None:
    """The one sentence to read before trusting R2G of these layers, by default all; None if their columns are whole.

    G2R and SRAM come from rows, which the encoding keeps.
    """
    lost = trace.lost
    # Nobody takes R2G over the tokens of an adapter.
    used = [lost[index] for index in (range(len(lost)) if layers is None else layers) if not trace.layers[index].is_resampler]
    bad = [share for share in used if share > LOSSY]
    if not bad:
        return None
    bits = trace.record.codec.keep_bits
    what = "float16 lost" if bits == MANTISSA else f"rounding to {bits} bits changed"
    return (
        f"note: {what} up to {max(bad):.0%} of one token's column in {len(bad)} of {len(used)} layer{'s' if len(used) > 1 else ''}, "
        "so R2G is approximate; record with encoding factors for exact maps"
    )
