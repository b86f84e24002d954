"""Diagnosis of a recording: every failure signature as a number, the range it has on a healthy model, and a plain sentence.

Ranges were measured, not chosen: `ranges.toml` says on what, and `benchmarks/ranges.py` measures them anew. They are those of the small
model that comes with i2am; another model may be healthy elsewhere, so a flag is a reason to look, not a verdict.
"""

from __future__ import annotations

import tomllib
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final

import xarray as xr
from dask.base import compute

from ...schema.errors import InvalidInput
from ..aggregation.selection import MapOptions, Select, choose, has_places
from ..facts import MapFacts
from ..maps.attribution import g2r, r2g
from ..metrics.masks import fit_mask
from ..trace.images import load_mask, own_mask, own_reference_mask
from ..trace.reader import Trace
from .signatures import SIGNATURES, Evidence, Found, Signature
from .survey import survey_layers

TIMES: Final = 5
"""Groups of steps that are compared with the next one."""


@lru_cache(maxsize=1)
def ranges() -> dict[str, Any]:
    """The measured ranges, by key of signature: `healthy` and `control` are 5 %, 50 % and 95 % of the pairs, `limit` lies between them."""
    return tomllib.loads(files(__package__).joinpath("ranges.toml").read_text())


def diagnose(
    trace: Trace, *, mask: str | None = None, reference_mask: str | None = None, sample: int = 0, group: str | None = None
) -> dict[str, Any]:
    """Every signature of a trace: number, range, whether it is flagged, and a sentence.

    Masks are the trace's own unless others are named.

    Raises   UnknownSelection, InvalidInput for masks that do not fit, CorruptTrace
    """
    evidence = gather(trace, mask=mask, reference_mask=reference_mask, sample=sample, group=group)
    found = [judge_signature(signature, signature.measure(evidence)) for signature in SIGNATURES]
    return {
        "trace": trace.id,
        "group": evidence.chosen.groups[0].name,
        "sample": evidence.chosen.sample,
        "flagged": [row["key"] for row in found if row["flagged"]],
        "signatures": found,
        "measured_on": {name: ranges()[name] for name in ("pairs", "steps")},
    }


def judge_signature(signature: Signature, found: Found) -> dict[str, Any]:
    """One row of the diagnosis."""
    known = ranges()[signature.key]
    row: dict[str, Any] = {"key": signature.key, "name": signature.name, "value": None, "flagged": False, **known}
    if found is None:
        return {**row, "sentence": f"not measured: {signature.needs}"}
    value, what = found
    flagged = value > known["limit"]
    text = (signature.bad if flagged else signature.good).format(value=value, share=value, rest=1 - value, what=what)
    return {**row, "value": value, "flagged": flagged, "sentence": text}


def gather(
    trace: Trace, *, mask: str | None = None, reference_mask: str | None = None, sample: int = 0, group: str | None = None
) -> Evidence:
    """Read everything once: the calls for the statistics of layers, and for the maps.

    Raises   as `diagnose`
    """
    if trace.latent_frames:
        raise InvalidInput(f"{trace.path} is of a video, and the ranges of a diagnosis were measured on images; ask for maps and metrics")
    chosen = choose(trace, Select(sample=sample, group=group))
    which: MapOptions = {"sample": sample, "group": chosen.groups[0].name}
    where = mask or own_mask(trace, sample)
    lazy = {"r2g": r2g(trace, **which)}
    inside = fit_mask(lazy["r2g"], load_mask(trace, where)) if where else None
    positions = load_mask(trace, where) if where else None
    by_time: MapOptions = {**which, "keep": "time", "time_groups": min(TIMES, len(trace.present))}
    lazy["r2g_time"] = r2g(trace, **by_time)
    used = None
    if has_places(chosen):
        lazy |= {"g2r": g2r(trace, query_mask=positions, **which), "g2r_time": g2r(trace, query_mask=positions, **by_time)}
        name = reference_mask or own_reference_mask(trace, MapFacts.of(lazy["g2r"]).image)
        used = fit_mask(lazy["g2r"], load_mask(trace, name)) if name else None
    maps: dict[str, xr.DataArray] = compute(lazy)[0]  # type: ignore[no-untyped-call]
    return Evidence(trace, chosen, survey_layers(trace, chosen), maps, inside, used)
