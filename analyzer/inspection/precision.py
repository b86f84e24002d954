"""What the encoding lost of each layer, and the sentence that says what this does to R2G."""

from __future__ import annotations

from collections.abc import Iterable

from ...schema.codec import MANTISSA
from ...schema.journal import decode_lines
from ...schema.layout import JOURNAL
from ...schema.trace import LOSSY
from ..trace.reader import Trace


def column_mass_lost(trace: Trace) -> list[float]:
    """What the encoding changed at worst of one token's column of G, per layer; an unfinished trace has it in its journal."""
    lost = [layer.column_mass_lost for layer in trace.record.layers]
    journal = trace.path / JOURNAL
    if not trace.complete and journal.is_file():
        for entry in decode_lines(journal.read_bytes()):
            for index, share in entry["lost"].items():
                lost[int(index)] = max(lost[int(index)], float(share))
    return lost


def precision_note(trace: Trace, layers: Iterable[int] | None = None) -> str | None:
    """The one sentence to read before trusting R2G of these layers, by default all; None if their columns are whole.

    G2R and SRAM come from rows, which the encoding keeps.
    """
    lost = column_mass_lost(trace)
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
