"""Maps of a trace drawn over the trace's own pictures, and what is written into the file of where they come from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from PIL.Image import Image

from ..facts import MapFacts
from ..numerics.resize import middle
from ..trace.reader import Trace
from .colours import Scale
from .sheets import Mark, compose, draw, explain, patch_mark, show


def illustrate(
    trace: Trace,
    map: xr.DataArray,
    style: str = "viridis",
    *,
    at: tuple[int, ...] | None = None,
    marks: Sequence[Mark] = (),
    scale: Scale | None = None,
) -> Image:
    """A map over its picture, with a bar of its colours; one of a patch stands beside the generated image, where the patch is framed.

    Raises   InvalidInput for a map without rows and columns or an unknown style
    """
    map, below = map.load(), picture(trace, MapFacts.of(map).image)
    drawing = explain(draw(map, below, style, marks, scale), map, style, below is not None, scale)
    generated = picture(trace, f"generated_{MapFacts.of(map).sample}")
    if at is None or generated is None:
        return drawing
    if generated.ndim > 3:
        generated = generated[middle(len(generated), trace.latent_frames)[at[0]]]
    framed = show(generated, [patch_mark(at, trace.latent_grid)])
    return compose([framed, drawing], 2, [f"patch {','.join(str(i) for i in at)}", "where it looked"])


def picture(trace: Trace, name: str | None) -> NDArray[np.uint8] | None:
    """An image of the trace; None if it has none of that name, as a recording that was cut off."""
    return trace.image(name) if name in {image.name for image in trace.images} and name is not None else None


def provenance(map: xr.DataArray) -> dict[str, str]:
    """What goes into a PNG's text chunks: the program, the trace, and what was asked."""
    asked: dict[str, Any] = {str(name): value for name, value in map.attrs.items()}
    return {
        "Software": f"i2am {version('i2am')}",
        "i2am-trace": str(asked.pop("trace", "")),
        "i2am-map": json.dumps(asked, sort_keys=True, default=str),
    }
