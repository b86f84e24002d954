"""Known truth as files and arrays: pairs of places, or a flow image.

All places are shares of a picture's height and width, from 0 at its top left to 1. The centre of pixel j of n is (j + 0.5) / n.
"""

from __future__ import annotations

import csv
import zipfile
from os import PathLike
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInput
from ..messages import plain

Places: TypeAlias = NDArray[np.float64]

COLUMNS: Final = ("y", "x", "ref_y", "ref_x")
FORM: Final = "a CSV file with the columns y,x,ref_y,ref_x, or a .npy or .npz file of an array (y, x, 2) with NaN where there is none"
SHARES: Final = "places are shares of a picture's height and width, from 0 to 1: of pixel j of n, (j + 0.5) / n"
MOST_BYTES: Final = 2**26
"""Of a file, and of the array in it."""


def read_truth(given: Any) -> Places:
    """Truth from a file, or as an array.

    Dims     -> (pair, 4): y, x, ref_y, ref_x; or (y, x, 2): ref_y and ref_x of every place of the generated image, NaN where there is none
    Raises   InvalidInput for what is no truth, or is too large
    """
    path = Path(given) if isinstance(given, (str, PathLike)) else None
    where = "the truth" if path is None else plain(str(path))
    try:
        raw = np.asarray(given if path is None else _read_file(path))
        values = np.array(raw, np.float64) if raw.dtype.kind in "fiu" else None
    except OSError as error:
        raise InvalidInput(f"cannot read the truth {where}: {error.strerror or error}; give {FORM}") from error
    except Exception as error:  # damaged arrays and zip files raise errors of many kinds
        why = plain((str(error).splitlines() or [""])[0])
        raise InvalidInput(f"{where} cannot be read as truth: {why}; give {FORM}") from error
    if values is None:
        raise InvalidInput(f"{where} holds {plain(str(raw.dtype))}, not numbers; give {FORM}")
    if not np.isfinite(values).any():
        raise InvalidInput(f"{where} knows no place: it is empty, or NaN everywhere; give {FORM}")
    if not ((values.ndim == 2 and values.shape[1] == len(COLUMNS)) or (values.ndim == 3 and values.shape[2] == 2)):
        raise InvalidInput(f"{where} has shape {values.shape}; expected pairs (pair, 4) of {', '.join(COLUMNS)}, or a flow (y, x, 2)")
    known = values[np.isfinite(values).all(-1)] if values.ndim == 3 else values
    if (odd := known[~((known >= 0) & (known <= 1))]).size:
        raise InvalidInput(f"{where} has a place at {odd[0]:g}; {SHARES}")
    return values


def _read_file(path: Path) -> Any:
    """Raises   OSError, ValueError, zipfile.BadZipFile, EOFError"""
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"it has {size} bytes, and {MOST_BYTES} at most are read")
    if path.suffix == ".csv":
        return _read_pairs(path)
    if path.suffix == ".npy":
        # Mapped, so that a header cannot ask for more memory than the file has.
        return np.load(path, mmap_mode="r", allow_pickle=False)
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as members:
            sizes = [member.file_size for member in members.infolist()]
        if len(sizes) != 1 or sizes[0] > MOST_BYTES:
            raise ValueError(f"it holds {len(sizes)} arrays of {sum(sizes)} bytes; one of {MOST_BYTES} at most is read")
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[arrays.files[0]]
    raise ValueError(f"its name ends in {path.suffix!r}")


def _read_pairs(path: Path) -> list[list[float]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file, strict=True)
        header = tuple(cell.strip() for cell in next(lines, []))
        if header != COLUMNS:
            raise ValueError(f"its first line is {','.join(header)[:80]!r}, not {','.join(COLUMNS)!r}")
        return [_read_pair(cells, lines.line_num) for cells in lines if cells]


def _read_pair(cells: list[str], line: int) -> list[float]:
    try:
        numbers = [float(cell) for cell in cells]
    except ValueError as error:
        raise ValueError(f"line {line}: {error}") from error
    if len(numbers) != len(COLUMNS):
        raise ValueError(f"line {line} has {len(numbers)} numbers under {len(COLUMNS)} columns")
    return numbers
