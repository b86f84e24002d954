"""Output files by suffix, in one table: pictures, maps, tables and pages; written whole or not at all, and never over something silently.

The command line makes its help from the table, so what a format needs is imported when it is written.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from ...schema.errors import AlreadyExists, InvalidInput
from ...schema.messages import refuse_taken, require_extra

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from .latex import Cell

Kind: TypeAlias = Literal["picture", "figure", "map", "maps", "table", "page"]
Draw: TypeAlias = "Callable[[], tuple[Image, Mapping[str, str]]]"
"""Draws the picture, and says where it comes from."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of named columns."""

    columns: Mapping[str, type[str] | type[float]]
    rows: Sequence[Mapping[str, str | float | None]]
    facts: Mapping[str, Any]
    """What all rows have in common, as plain JSON."""
    caption: str
    paper: Sequence[Mapping[str, Cell]] = ()
    """What a paper prints of it, such as means with intervals; none is the rows themselves."""


@dataclass(frozen=True, slots=True)
class Output:
    """One answer in every form it can be written in; a format takes its own."""

    maps: Mapping[str, xr.DataArray] = field(default_factory=dict)
    draw: Draw | None = None
    table: Table | None = None
    figure: Figure | None = None
    page: bytes | None = None
    """A whole HTML document."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The forms there are."""
        kinds: list[tuple[Kind, bool]] = [("picture", self.draw is not None), ("figure", self.figure is not None)]
        kinds += [("table", self.table is not None), ("page", self.page is not None)]
        kinds += [("map", len(self.maps) == 1), ("maps", len(self.maps) > 1)]
        return tuple(kind for kind, there in kinds if there)


@dataclass(frozen=True, slots=True)
class Format:
    """What a file of one suffix can hold, and how it is written."""

    holds: tuple[Kind, ...]
    write: Callable[[Output, Path], None]
    needs: tuple[str, ...] = ()
    """Modules of an extra."""
    otherwise: str = ""
    """The way out where they cannot be installed."""


def suffixes(*kinds: Kind) -> list[str]:
    """The suffixes of files that can hold any of these."""
    return [suffix for suffix, known in FORMATS.items() if not set(kinds).isdisjoint(known.holds)]


def endings(*kinds: Kind) -> str:
    """The same for help and messages: `.png, .nc or .zarr`."""
    *most, last = suffixes(*kinds)
    return f"{', '.join(most)} or {last}" if most else last


def check_output(path: Path, *kinds: Kind, overwrite: bool = False) -> Format:
    """The format of an output path, checked before any work.

    Raises   InvalidInput for a suffix that can hold none of these kinds, or a folder that does not exist; MissingExtra if its library is
             not installed; AlreadyExists if the path is taken, or is a trace
    """
    if path.suffix not in suffixes(*kinds):
        more = "; `i2am figure` writes .pdf and .svg" if path.suffix in (".pdf", ".svg") and "picture" in kinds else ""
        raise InvalidInput(f"cannot tell from {path.name!r} what to write; end it in {endings(*kinds)}{more}")
    require_library(path.suffix)
    if not path.parent.is_dir():
        raise InvalidInput(f"the folder {path.parent} does not exist; make it first, or choose another path")
    refuse_taken(path, overwrite)
    if path.is_dir() and not _is_map(path):
        raise AlreadyExists(f"{path} is a folder that holds something other than a map, so it is not overwritten; choose another name")
    return FORMATS[path.suffix]


def require_library(suffix: str) -> None:
    """Say what to install where files of this suffix can be neither written nor read."""
    known = FORMATS[suffix]
    require_extra(known.needs, f"the format {suffix}", known.otherwise)


def save(output: Output, path: Path, *, overwrite: bool = False) -> None:
    """Write an answer in the format that the path's suffix names, whole or not at all; raises as `check_output`."""
    found = check_output(path, *output.kinds, overwrite=overwrite)
    part = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        found.write(output, part)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(part, path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)
        raise


def _dataset(output: Output) -> xr.Dataset:
    """The maps with attributes that netCDF and Zarr both hold."""
    import xarray as xr

    from ..facts import plain_attrs

    found = {}
    for name, map in output.maps.items():
        plain = map.load().drop_attrs(deep=False).assign_attrs(plain_attrs(map.attrs))
        # Fixed-length unicode has no settled form in Zarr v3; strings of any length do.
        texts = {key: axis.astype(object) for key, axis in plain.coords.items() if axis.dtype.kind == "U"}
        found[name] = plain.assign_coords(texts).rename(name)
    return xr.Dataset(found)


def _png(output: Output, path: Path) -> None:
    from .sheets import encode_png

    if output.figure is not None:
        return _figure(output, path)
    assert output.draw is not None
    path.write_bytes(encode_png(*output.draw()))


def _figure(output: Output, path: Path) -> None:
    assert output.figure is not None
    output.figure.savefig(path)


def _npy(output: Output, path: Path) -> None:
    import numpy as np

    # Into memory first: numpy's own writing to a full disk gives an error without its cause.
    buffer = BytesIO()
    np.save(buffer, next(iter(output.maps.values())).values)
    path.write_bytes(buffer.getbuffer())


def _netcdf(output: Output, path: Path) -> None:
    # Into memory first: HDF5 crashes the process at its end if it could not flush a file to a full disk.
    buffer = BytesIO()
    _dataset(output).to_netcdf(buffer, engine="h5netcdf")
    path.write_bytes(buffer.getbuffer())


def _zarr(output: Output, path: Path) -> None:
    _dataset(output).to_zarr(path, mode="w-", zarr_format=3, consolidated=False)


def _csv(output: Output, path: Path) -> None:
    assert output.table is not None
    text = StringIO()
    writer = csv.DictWriter(text, list(output.table.columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(output.table.rows)
    path.write_bytes(text.getvalue().encode())


def _parquet(output: Output, path: Path) -> None:
    import pyarrow as arrow
    from pyarrow.parquet import write_table

    assert output.table is not None
    fields = [(name, arrow.string() if kind is str else arrow.float64()) for name, kind in output.table.columns.items()]
    # JSON has no NaN, which the interval of a single trace is.
    facts = json.dumps(output.table.facts, default=str).replace("NaN", "null")
    buffer = BytesIO()
    write_table(arrow.Table.from_pylist(output.table.rows, schema=arrow.schema(fields, metadata={"i2am": facts})), buffer)
    path.write_bytes(buffer.getvalue())


def _tex(output: Output, path: Path) -> None:
    from .latex import write_latex

    assert output.table is not None
    table = output.table
    shown = table.paper or [{name: row.get(name) for name in table.columns} for row in table.rows]
    path.write_text(write_latex(shown, table.caption, path.stem.partition("-")[2]), encoding="utf-8")


def _html(output: Output, path: Path) -> None:
    assert output.page is not None
    path.write_bytes(output.page)


def _is_map(path: Path) -> bool:
    """Whether a folder is a Zarr group that is no trace: the only folder that may be overwritten."""
    try:
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    except (OSError, ValueError, KeyError):
        return False
    return isinstance(attributes, dict) and "i2am" not in attributes


FORMATS: Final = {
    ".png": Format(("picture", "figure"), _png),
    ".pdf": Format(("figure",), _figure, ("matplotlib",)),
    ".svg": Format(("figure",), _figure, ("matplotlib",)),
    ".npy": Format(("map",), _npy),
    ".nc": Format(("map", "maps"), _netcdf, ("h5netcdf", "h5py"), ", or take .zarr"),
    ".zarr": Format(("map", "maps"), _zarr),
    ".csv": Format(("table",), _csv),
    ".parquet": Format(("table",), _parquet, ("pyarrow",), ", or write .csv"),
    ".tex": Format(("table",), _tex),
    ".html": Format(("page",), _html),
}
"""By suffix, in the order in which they are named. A new format is a row here."""
