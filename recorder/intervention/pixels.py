"""Pictures with cells of a lattice inverted or blanked, so that what a reference's pixels do can be told from what its keys do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from ...schema.errors import InvalidInput
from ...schema.messages import option
from .request import Cell, require_cells

WAYS: Final = ("invert", "blank")


def alter_pixels(
    image: Any, cells: Iterable[Cell], lattice: tuple[int, int], how: str = "invert", window: Sequence[float] | None = None
) -> Any:
    """A picture with some cells of a lattice inverted or blanked; the picture given stays as it is, and so does the kind.

        altered = alter_pixels(garment, [(0, 3)], lattice=(8, 8))

    `image`    PIL image, array (y, x[, channel]) or tensor ([image, channel,] y, x)
    `cells`    (row, column) of the lattice, from its top left
    `lattice`  (rows, columns) that the window is cut into
    `how`      invert: white becomes black; blank: the middle between them
    `window`   (top, left, bottom, right) in pixels that the lattice covers, such as a trace's `Image.window`; None is all of the picture

    Range    floats in [0, 1], or in [-1, 1] if any is negative
    Raises   InvalidInput, UnknownSelection for a cell that the lattice does not have
    """
    if how not in WAYS:
        raise InvalidInput(f"{option('how', how)}; use {' or '.join(WAYS)}")
    if isinstance(image, PIL.Image.Image):
        plain = image if image.mode in ("L", "RGB") else image.convert("RGB")
        return PIL.Image.fromarray(alter_pixels(np.asarray(plain), cells, lattice, how, window))
    if isinstance(image, torch.Tensor) and image.ndim > 1:
        chosen = torch.from_numpy(_inside(list(cells), lattice, (image.shape[-2], image.shape[-1]), window)).to(image.device)
        low, high = (-1, 1) if bool((image < 0).any()) else (0, 1 if image.is_floating_point() else 255)
        return torch.where(chosen, low + high - image if how == "invert" else torch.full_like(image, (low + high) / 2), image)
    if isinstance(image, np.ndarray) and image.ndim in (2, 3) and image.dtype != np.bool_:
        inside = _inside(list(cells), lattice, (image.shape[0], image.shape[1]), window)
        low, high = (-1, 1) if (image < 0).any() else (0, 1 if image.dtype.kind == "f" else 255)
        other = low + high - image if how == "invert" else np.full_like(image, (low + high) / 2)
        return np.where(inside if image.ndim == 2 else inside[..., None], other, image).astype(image.dtype)
    raise InvalidInput(f"a {type(image).__name__} is no picture; give a PIL image, an array (y, x, 3) or a tensor (3, y, x)")


def _inside(cells: Sequence[Cell], lattice: tuple[int, int], size: tuple[int, int], window: Sequence[float] | None) -> NDArray[np.bool_]:
    """Which pixels have their middle in one of the cells.

    Dims     -> (y, x)
    """
    top, left, bottom, right = window or (0, 0, *size)
    if not (bottom > top and right > left and min(lattice) > 0):
        raise InvalidInput(f"{option('window', window)} and {option('lattice', lattice)} need a height and a width")
    require_cells(cells, lattice, "the picture")
    rows, columns = (
        np.floor((np.arange(length) + 0.5 - start) / (stop - start) * count).astype(int)
        for length, start, stop, count in ((size[0], top, bottom, lattice[0]), (size[1], left, right, lattice[1]))
    )
    found = np.zeros(size, dtype=np.bool_)
    for row, column in cells:
        found |= (rows == row)[:, None] & (columns == column)
    return found
