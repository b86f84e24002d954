"""Law 6: nothing on the way flips, transposes or mirrors. One bright corner, through every output, on grids that are not square."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import traces
from i2am.analyzer.cli.main import run
from i2am.analyzer.output.colours import BAR, STYLES
from i2am.analyzer.output.sheets import MARGIN
from traces import reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

GRID = (8, 6)
REFERENCE = (3, 5)
SIZES = {"generated": (64, 48), "reference": (30, 50)}

Corner = tuple[int, int]
CORNERS = [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.fixture(scope="module", params=CORNERS, ids=["top-left", "top-right", "bottom-left", "bottom-right"])
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Corner]:
    """A trace in which one corner of the generated image looks at one corner of the reference, and nothing else looks anywhere."""
    corner: Corner = request.param
    path = tmp_path_factory.mktemp("golden") / "run.zarr"
    draw = traces._draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traces, "_draw", lambda result, layer, *rest: (draw(result, layer, *rest), point(result, layer, corner)))
        patch.setattr(traces, "_pictures", lambda rng, samples, size, reference: pictures(corner))
        layers = [reference_layer("a", GRID, reference=REFERENCE), reference_layer("b", (4, 3), reference=REFERENCE, heads=3)]
        synthetic_trace(path, layers=layers, steps=2, encoding="factors")
    return path, corner


def point(result: traces.Synthetic, layer: traces.Layer, corner: Corner) -> None:
    """Set q and k so that the corner's patches, and they alone, look at the corner's token."""
    query, key = result.query[-1], result.key[-1]
    query[:], key[:] = 0, 0
    rows, columns = layer.grid
    token = 1 + index(corner[0], REFERENCE[0]) * REFERENCE[1] + index(corner[1], REFERENCE[1])
    query[..., index(corner[0], rows), index(corner[1], columns), 0] = 10 * layer.head_dim**0.5
    key[..., token, 0] = 1


def index(corner: int, length: int) -> int:
    return corner * (length - 1)


def pictures(corner: Corner) -> dict[str, np.ndarray]:
    """Black pictures with the same corner white."""
    found = {}
    for name, (height, width) in {"generated_0": SIZES["generated"], "reference": SIZES["reference"]}.items():
        found[name] = np.zeros((height, width, 3), np.uint8)
        found[name][_half(corner[0], height), _half(corner[1], width)] = 255
    masks = {"mask": found["generated_0"], "reference_mask": found["reference"]}
    return found | {name: pixels[..., :1] for name, pixels in masks.items()}


def _half(corner: int, length: int) -> slice:
    return slice(length * 3 // 4, None) if corner else slice(0, length // 4)


def corner_of(values: np.ndarray) -> Corner:
    """Which corner of an array (y, x) holds its greatest value."""
    y, x = np.unravel_index(values.argmax(), values.shape)
    return int(y >= values.shape[0] / 2), int(x >= values.shape[1] / 2)


def arguments(direction: str, corner: Corner) -> list[str]:
    return [f"--at={index(corner[0], GRID[0])},{index(corner[1], GRID[1])}"] if direction == "sram" else [f"--{direction}"]


@pytest.mark.parametrize("direction", ["r2g", "g2r", "sram"])
@pytest.mark.parametrize("suffix", [".npy", ".nc", ".zarr"])
def test_numbers_keep_the_corner(golden: tuple[Path, Corner], tmp_path: Path, direction: str, suffix: str) -> None:
    path, corner = golden
    out = tmp_path / f"map{suffix}"
    assert run(["map", str(path), *arguments(direction, corner), "-o", str(out)]) == 0
    if suffix == ".npy":
        values = np.load(out)
    else:
        engine = {".nc": "h5netcdf", ".zarr": "zarr"}[suffix]
        with xr.open_dataset(out, engine=engine, **({"consolidated": False} if suffix == ".zarr" else {})) as opened:
            map = next(iter(opened.data_vars.values())).load()
        values = map.values
        at = map.argmax(...)
        assert [float(map[dim][int(i)]) >= 0.5 for dim, i in at.items()] == [bool(c) for c in corner]
    assert values.shape == (GRID if direction == "r2g" else REFERENCE)
    assert corner_of(values) == corner


@pytest.mark.parametrize("direction", ["r2g", "g2r", "sram"])
@pytest.mark.parametrize("style", ["viridis", "i2am", "daam", "plain"])
def test_pictures_keep_the_corner(golden: tuple[Path, Corner], tmp_path: Path, direction: str, style: str) -> None:
    path, corner = golden
    out = tmp_path / "map.png"
    assert run(["map", str(path), *arguments(direction, corner), "--style", style, "-o", str(out)]) == 0
    with Image.open(out) as opened:
        pixels = np.asarray(opened.convert("RGB"), dtype=int)
    if direction == "sram":
        # The generated image with the framed patch stands on the left, what it looked at on the right.
        generated, pixels = split_tiles(pixels)
        assert corner_of(blocks(generated, SIZES["generated"])) == corner
    elif STYLES[style].scale == "shared":
        pixels = pixels[: -(MARGIN + BAR[1])]
    height, width = SIZES["generated" if direction == "r2g" else "reference"]
    assert pixels.shape[0] / height == pixels.shape[1] / width
    # The hot corner is the one that differs most from the colour of nothing.
    cold = np.median(pixels.reshape(-1, 3), axis=0)
    assert corner_of(blocks(np.abs(pixels - cold).repeat(1, 0), (height, width))) == corner


def split_tiles(sheet: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two tiles of a sheet: generated, then reference, each enlarged by a whole factor."""
    margin, label = 6, 18
    factors = [-(-256 // min(size)) for size in (SIZES["generated"], SIZES["reference"])]
    (gh, gw), (rh, rw) = ((factor * h, factor * w) for factor, (h, w) in zip(factors, SIZES.values(), strict=True))
    column = margin + gw + margin
    top = margin + label
    return sheet[top : top + gh, margin : margin + gw], sheet[top : top + rh, column : column + rw]


def blocks(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Mean brightness of a coarse 4 x 4 grid of a picture."""
    rows, columns = pixels.shape[0] // 4, pixels.shape[1] // 4
    return pixels[: rows * 4, : columns * 4].reshape(4, rows, 4, columns, 3).mean(axis=(1, 3, 4))


def test_scores_meet_the_corner(golden: tuple[Path, Corner], capsys: pytest.CaptureFixture[str]) -> None:
    """A map that fell on any other corner would score below 0."""
    assert run(["imacs", str(golden[0])]) == 0
    scores = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(scores) == 3
    assert min(scores) > 0.2


def test_tiles_of_a_grid_keep_the_corner(golden: tuple[Path, Corner], tmp_path: Path) -> None:
    path, corner = golden
    out = tmp_path / "grid.png"
    assert run(["map", str(path), "--r2g", "--keep", "layer", "--style", "plain", "-o", str(out)]) == 0
    with Image.open(out) as opened:
        pixels = np.asarray(opened.convert("RGB"), dtype=int)
    height, width = (6 * n for n in SIZES["generated"])
    for left in (6, 6 + width + 6):
        tile = pixels[24 : 24 + height, left : left + width]
        assert corner_of(blocks(np.abs(tile - np.median(tile.reshape(-1, 3), axis=0)), SIZES["generated"])) == corner


def test_plain_xarray_sees_the_corner(golden: tuple[Path, Corner]) -> None:
    """And so does whoever reads the trace without this package."""
    path, corner = golden
    with xr.open_zarr(path, group="layers/000") as opened:
        assert corner_of(opened["query"].isel(sample=0, branch=0, step=0, head=0, channel=0).values) == corner
