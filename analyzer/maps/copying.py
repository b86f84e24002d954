"""What attention alone would copy: each patch in the mean colour of where it looked, and how well that agrees with the picture."""

from __future__ import annotations

from typing import Final, Unpack

import dask.array as da
import numpy as np
import xarray as xr

from ...schema.errors import InvalidInput
from ...schema.messages import guess, option
from ..aggregation.selection import MapOptions
from ..facts import MapFacts
from ..metrics.copying import CONTROLS, Control, Painted, score_copies
from ..numerics.cells import cell_means, covered_cells
from ..numerics.window import Window
from ..trace.images import find_image, load_mask, own_mask, still_picture
from ..trace.reader import Trace
from .looks import looks

COLOURS: Final = ("red", "green", "blue")


def repaint(trace: Trace, **options: Unpack[MapOptions]) -> xr.DataArray:
    """The picture that attention alone would copy from the reference: each patch in the mean colour of where it looked.

        picture = repaint(open_trace("run.zarr"), layers="*up_blocks.1*")

    The mean is weighted by the patch's row of `looks`; what is negative there, as contributions and bicubic resampling may be, counts as 0.

    Dims     kept axes in the order time, layer, head, then (y, x, colour); lazy
    Range    [0, 1]; NaN where no call is left to average, or a patch gives the reference nothing
    Raises   InvalidInput for a trace without a picture of the reference; as `looks`
    """
    rows = looks(trace, **options)
    facts = MapFacts.of(rows)
    image = find_image(trace, facts.image, "reference")
    if image is None:
        raise InvalidInput(f"{trace.path} holds no picture of the reference {facts.group}, whose colours would be copied")
    pixels = still_picture(trace, image) / 255
    means = cell_means(pixels, Window.of(image.window, pixels.shape[:2]), (rows.sizes["ref_y"], rows.sizes["ref_x"]))
    weights = da.maximum(rows.data, 0)
    copied = da.tensordot(weights, means, axes=2) / weights.sum((-2, -1))[..., None]
    coords = {name: axis for name, axis in rows.coords.items() if not {"ref_y", "ref_x"} & set(axis.dims)}
    attrs = {**facts.to_attrs(), "long_name": "colour of where the patch looked", "units": "share of full intensity"}
    return xr.DataArray(copied, coords | {"colour": list(COLOURS)}, (*rows.dims[:-2], "colour"), "repaint", attrs)


def find_painted(trace: Trace, sample: int = 0, mask: str | None = None) -> Painted:
    """What the generated picture shows of each patch, and which patches lie in the mask: the named one, or the trace's own.

    Raises   InvalidInput for a trace without the picture; UnknownSelection for a mask that is not there, or is not the only one
    """
    image = find_image(trace, f"generated_{sample}", "generated")
    if image is None:
        raise InvalidInput(f"{trace.path} holds no picture of sample {sample}, which says how patches were painted")
    name, grid = mask or own_mask(trace, sample), trace.latent_grid
    pixels = None if name is None else load_mask(trace, name)
    counted = np.ones(grid, bool) if pixels is None else covered_cells(pixels, Window.of(None, pixels.shape), grid)
    shown = still_picture(trace, image) / 255
    return Painted(cell_means(shown, Window.of(None, shown.shape[:2]), grid), counted)


def copy_score(trace: Trace, *, control: Control | None = None, mask: str | None = None, **options: Unpack[MapOptions]) -> xr.DataArray:
    """How well the colours of where patches looked agree with those they were painted in: correlation over patches and colours.

        copy_score(trace, keep=("layer", "head"))                    # which heads copy
        copy_score(trace, keep=("layer", "head"), control="turned")  # and what colours agree by chance

    Heads that know where a patch comes from repaint the picture. It sees colours alone: a head that looks at another place of the same
    colour scores as well, and one that points right scores nothing where the picture was recoloured. `control` scores copies that
    were dealt out to other patches: `turned`, those in the mask in reverse order, or `shuffled`. Patches in `mask` count, all without
    one.

    Dims     kept axes in the order time, layer, head
    Range    [-1, 1]; NaN for a reference or picture of one colour, and where no call is left to average
    Raises   InvalidInput for a trace without both pictures, an unknown control; as `looks`
    """
    if control is not None and control not in CONTROLS:
        raise InvalidInput(f"there is no control {control!r}; {guess(control, CONTROLS)}use {option('control', 'turned')} or shuffled")
    painted = find_painted(trace, options.get("sample", 0), mask)
    return score_copies(repaint(trace, **options), painted, control)
