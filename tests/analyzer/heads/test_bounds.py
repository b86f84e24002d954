"""A stranger's file of scores, or mask, costs no more than it must before it is refused."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from i2am.analyzer import load_heads, open_trace, save_heads
from i2am.analyzer.cli.main import run
from i2am.analyzer.trace.images import load_mask
from i2am.schema.errors import InvalidInput
from traces import synthetic_trace

pytestmark = [pytest.mark.analyzer, pytest.mark.skipif(os.name == "nt", reason="pipes and links of POSIX")]


@pytest.fixture
def scores() -> xr.DataArray:
    coords = {
        "layer": ["unet.a", "unet.b"],
        "head": [0, 1],
        "heads": ("layer", [2, 2]),
        "head_dim": ("layer", [4, 4]),
        "position": (("layer", "head"), np.arange(4).reshape(2, 2)),
    }
    return xr.DataArray(np.ones((2, 2)), coords, ("layer", "head"), "truth", {"kind": "truth", "traces": ["x"]})


def edit(path: Path, **changes: object) -> None:
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, **changes}))


def large(path: Path) -> None:
    edit(path / "truth/zarr.json", shape=[30_000, 33_000])


def chunk(path: Path) -> None:
    edit(path / "truth/zarr.json", chunk_grid={"name": "regular", "configuration": {"chunk_shape": [30_000, 33_000]}})


def codec(path: Path) -> None:
    edit(path / "truth/zarr.json", codecs=[{"name": "bytes"}, {"name": "numcodecs.pickle", "configuration": {}}])


def version_two(path: Path) -> None:
    (path / "truth/zarr.json").unlink()
    (path / "zarr.json").unlink()
    (path / ".zgroup").write_text('{"zarr_format": 2}')


def bomb(path: Path) -> None:
    """A frame that says it unpacks to 8 GB."""
    for file in (path / "truth/c").rglob("*"):
        if file.is_file():
            file.write_bytes(b"\x28\xb5\x2f\xfd\xe0" + (8 * 10**9).to_bytes(8, "little") + b"\x01\x00\x00")


def pipe(path: Path) -> None:
    os.mkfifo(path / "truth/pipe")


def link(path: Path) -> None:
    (path / "truth/link").symlink_to("/etc/passwd")


ATTACKS: tuple[Callable[[Path], None], ...] = (large, chunk, codec, version_two, bomb, pipe, link)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_zarr_that_is_more_than_it_seems_is_refused(scores: xr.DataArray, tmp_path: Path, attack: Callable[[Path], None]) -> None:
    path = tmp_path / "s.zarr"
    save_heads(scores, path)
    assert load_heads(path).attrs["kind"] == "truth"
    attack(path)
    tracemalloc.start()
    begin = time.monotonic()
    with pytest.raises(InvalidInput, match=r"s\.zarr (is not|cannot be) read as scores of heads"):
        load_heads(path)
    assert time.monotonic() - begin < 2
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


@pytest.mark.parametrize("attack", ["shape", "packed", "external", "link", "pipe"])
def test_a_netcdf_that_is_more_than_it_seems_is_refused(scores: xr.DataArray, tmp_path: Path, attack: str) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "s.nc"
    save_heads(scores, path)
    assert load_heads(path).attrs["kind"] == "truth"
    with h5py.File(path, "a") as opened:
        if attack == "shape":
            opened.create_dataset("huge", (30_000, 33_000), "f8")
        elif attack == "packed":
            opened.create_dataset("packed", (1000, 1000), "f8", compression="gzip", data=np.zeros((1000, 1000)))
        elif attack == "external":
            opened.create_dataset("outside", (8,), "u1", external=[("/etc/passwd", 0, 8)])
        elif attack == "link":
            opened["there"] = h5py.ExternalLink("/etc/passwd", "/")
    if attack == "pipe":
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(InvalidInput, match=r"s\.nc is not read as scores of heads"):
        load_heads(path)


def png(width: int, height: int) -> bytes:
    """A grey picture of zeros: a few kilobytes of any size."""

    def part(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(width + 1)) for _ in range(height)) + packer.flush()
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x00\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", rows) + part(b"IEND", b"")


def test_a_mask_of_another_size_is_refused_before_it_is_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = open_trace(synthetic_trace(tmp_path / "run.zarr", steps=1).path)
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png(13_000, 13_000))
    tracemalloc.start()
    with pytest.raises(InvalidInput, match=r"bomb.png is 13000 x 13000 \(height x width\).*64 x 48"):
        load_mask(trace, str(bomb))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert run(["imacs", str(trace.path), "--mask", str(bomb)]) == 2
    assert "13000 x 13000" in capsys.readouterr().err
    small = tmp_path / "small.png"
    Image.new("L", (48, 64), 255).save(small)
    assert load_mask(trace, str(small)).shape == (64, 48)
