"""Maps as files: `.npy`, `.nc`, `.zarr` and bytes of pictures; whole or not at all, and never over something silently."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr

from ...schema.errors import AlreadyExists, InvalidInput
from ...schema.messages import EXTRAS, refuse_taken, require_extra


def save_map(map: xr.DataArray, path: Path, *, overwrite: bool = False) -> None:
    """Write the numbers of a map in the format that the path's suffix names.

    Raises   AlreadyExists if the path is taken, InvalidInput for another suffix, MissingExtra if netCDF cannot be written
    """
    save_maps({str(map.name or "map"): map}, path, overwrite=overwrite)


def save_maps(maps: Mapping[str, xr.DataArray], path: Path, *, overwrite: bool = False) -> None:
    """Write several maps into one file, each under its name.

    Raises   as `save_map`; InvalidInput for .npy, which holds one alone
    """
    if path.suffix not in WRITERS:
        raise InvalidInput(f"cannot tell from {path.name!r} what to write; end it in {', '.join(WRITERS)}, or .png for a picture")
    if path.suffix == ".npy" and len(maps) > 1:
        raise InvalidInput(f"{path.name!r} would hold one map, and there are {len(maps)}: {', '.join(maps)}; end it in .nc or .zarr")
    named = xr.Dataset({name: portable(map).rename(name) for name, map in maps.items()})
    place_output(path, lambda part: WRITERS[path.suffix](named, part), overwrite=overwrite)


def save_bytes(content: bytes, path: Path, *, overwrite: bool = False) -> None:
    """Write a file.

    Raises   AlreadyExists if the path is taken
    """
    place_output(path, lambda part: part.write_bytes(content), overwrite=overwrite)


def refuse_existing(path: Path, *, overwrite: bool = False) -> None:
    """Say early, before any work, that an output path cannot be written.

    Raises   AlreadyExists if it is taken, or is a trace; InvalidInput if its folder does not exist
    """
    if not path.parent.is_dir():
        raise InvalidInput(f"the folder {path.parent} does not exist; make it first, or choose another path")
    refuse_taken(path, overwrite)
    if path.is_dir() and not _is_map(path):
        raise AlreadyExists(f"{path} is a folder that holds something other than a map, so it is not overwritten; choose another name")


def place_output(path: Path, write: Callable[[Path], Any], *, overwrite: bool) -> None:
    """Let `write` fill a path beside the output, then move it into place; a failure leaves nothing behind."""
    refuse_existing(path, overwrite=overwrite)
    part = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        write(part)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(part, path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)
        raise


def portable(map: xr.DataArray) -> xr.DataArray:
    """The map with attributes that netCDF and Zarr both hold: None goes, tuples become lists, records JSON text."""
    attributes = {str(name): _plain(value) for name, value in map.attrs.items() if value is not None}
    plain = map.load().copy()
    plain.attrs = attributes
    for name, axis in plain.coords.items():
        # Fixed-length unicode has no settled form in Zarr v3; strings of any length do.
        if axis.dtype.kind == "U":
            plain = plain.assign_coords({name: axis.astype(object)})
    return plain.rename(map.name or "map")


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, (list, tuple)) and all(isinstance(item, (int, float)) for item in value):
        return list(value)
    return value if isinstance(value, (str, int, float, np.number)) else json.dumps(value)


def _npy(maps: xr.Dataset, path: Path) -> None:
    # Into memory first: numpy's own writing to a full disk gives an error without its cause.
    buffer = BytesIO()
    np.save(buffer, next(iter(maps.values())).values)
    path.write_bytes(buffer.getbuffer())


def require_netcdf() -> None:
    """Say what to install where .nc cannot be written or read.

    Raises   MissingExtra
    """
    require_extra(EXTRAS["netcdf"], "writing and reading .nc", ", or take .zarr")


def _netcdf(maps: xr.Dataset, path: Path) -> None:
    require_netcdf()
    # Into memory first: HDF5 crashes the process at its end if it could not flush a file to a full disk.
    buffer = BytesIO()
    maps.to_netcdf(buffer, engine="h5netcdf")
    path.write_bytes(buffer.getbuffer())


def _zarr(maps: xr.Dataset, path: Path) -> None:
    maps.to_zarr(path, mode="w-", zarr_format=3, consolidated=False)


def _is_map(path: Path) -> bool:
    """Whether a folder is a Zarr group that is no trace: the only folder that may be overwritten."""
    try:
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    except (OSError, ValueError, KeyError):
        return False
    return isinstance(attributes, dict) and "i2am" not in attributes


WRITERS: Final[dict[str, Callable[[xr.Dataset, Path], None]]] = {".npy": _npy, ".nc": _netcdf, ".zarr": _zarr}
