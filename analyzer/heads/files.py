"""Scores of heads as small files, with all that is needed to know which model they are of: `.nc` and `.zarr`."""

from __future__ import annotations

import json
import os
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr

from ...schema.errors import InvalidInput
from ...schema.layout import JOURNAL, MANIFEST
from ..output.files import Output, check_output, endings, require_library, save, suffixes

KIND: Final = "i2am_heads"
VERSION: Final = 1


def save_heads(scores: xr.DataArray, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write head relevance vectors or other scores of heads, to `.nc` or `.zarr`.

    Raises   InvalidInput for another suffix, AlreadyExists if the path is taken, MissingExtra if netCDF cannot be written
    """
    target = Path(path)
    check_heads_path(target, overwrite=overwrite)
    kept = scores.drop_attrs(deep=False).assign_attrs({KIND: VERSION, "facts": json.dumps(scores.attrs)})
    save(Output({str(scores.name or "map"): kept}), target, overwrite=overwrite)


def check_heads_path(path: Path, *, overwrite: bool = False) -> None:
    """Say early, before anything is counted, that scores cannot be written there."""
    if path.suffix not in suffixes("maps"):
        raise InvalidInput(f"cannot keep the names of layers and concepts in {path.name!r}; end it in {endings('maps')}")
    check_output(path, "maps", overwrite=overwrite)


def load_heads(path: str | os.PathLike[str]) -> xr.DataArray:
    """Read what `save_heads` wrote, checked.

    Raises   InvalidInput if it is no such file, MissingExtra if netCDF cannot be read
    """
    source = Path(path)
    if source.suffix not in suffixes("maps") or not source.exists():
        what = "there is no" if not source.exists() else "cannot read"
        raise InvalidInput(f"{what} {source}; scores of heads are a {endings('maps')} that `i2am heads -o` wrote")
    if (source / JOURNAL).exists() or (source / MANIFEST).exists():
        raise InvalidInput(f"{source} is a trace and holds no scores of heads; `i2am heads {source} -o FILE` makes them")
    found = _read(source)
    if found.attrs.get(KIND) != VERSION:
        raise InvalidInput(f"{source} holds no scores of heads (its attributes lack {KIND} = {VERSION}); `i2am heads -o` writes such files")
    try:
        attributes = json.loads(found.attrs["facts"])
        needed = {"layer", "head", "heads", "head_dim", "position"} <= set(found.coords) and {"layer", "head"} <= set(found.dims)
        if not (needed and isinstance(attributes, dict) and isinstance(attributes.get("traces"), list)):
            raise ValueError("it lacks what tells one head from another")
    except (KeyError, ValueError) as error:
        raise InvalidInput(f"{source} is damaged: {error}; count the heads again, or take another copy") from error
    return found.drop_attrs(deep=False).assign_attrs(attributes)


def _read(source: Path) -> xr.DataArray:
    require_library(source.suffix)
    try:
        if source.suffix == ".zarr":
            dataset = xr.open_zarr(source, consolidated=False).load()
        else:
            dataset = xr.load_dataset(BytesIO(source.read_bytes()), engine="h5netcdf")
    except Exception as error:  # h5netcdf, zarr and xarray each have their own for a file that is none of theirs
        raise InvalidInput(f"{source} cannot be read as scores of heads ({type(error).__name__}: {error})") from error
    if len(dataset.data_vars) != 1:
        raise InvalidInput(f"{source} holds {len(dataset.data_vars)} arrays, and no scores of heads; `i2am heads -o` writes such files")
    found = next(iter(dataset.data_vars.values()))
    # Each format brings strings back in its own way; plain ones are what names are compared with.
    texts = {str(key): (axis.dims, np.array(axis.values.tolist(), str)) for key, axis in found.coords.items() if axis.dtype.kind in "OTU"}
    numbers = {str(key): axis.astype(np.int64) for key, axis in found.coords.items() if axis.dtype.kind in "iu"}
    plain: xr.DataArray = found.assign_coords({**texts, **numbers})
    return plain
