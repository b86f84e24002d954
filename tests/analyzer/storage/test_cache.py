"""What was read at an address is kept on disk, within bounds, and checked before it is given back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from webserver import Web, serving
from zips import zip_trace

from i2am.analyzer import open_trace, r2g
from i2am.analyzer.cli.main import run
from i2am.analyzer.storage import address
from i2am.analyzer.storage.cache import DiskCache, cache, default_folder
from i2am.schema.errors import InvalidInput
from traces import reference_layer, synthetic_trace

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.analyzer


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web")
    layers = [reference_layer("unet.mid.attn2", (32, 32), heads=8, reference=(7, 11))]
    zip_trace(synthetic_trace(folder / "run.zarr", layers=layers, steps=3, latent_grid=(32, 32)).path, folder / "run.zarr.zip")
    return folder


@pytest.fixture
def web(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("I2AM_CACHE", str(tmp_path / "cache"))
    address.MEMORY.clear()
    with serving(root) as web:
        yield web


def blocks(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "cache").rglob("*") if path.is_file())


def look(web: Web) -> np.ndarray:
    """A map, as in another process."""
    web.reset()
    address.MEMORY.clear()
    return r2g(open_trace(f"{web.address}/run.zarr.zip")).compute().values


def test_what_was_read_is_not_asked_for_again(web: Web, tmp_path: Path) -> None:
    first = look(web)
    assert web.requests > 1
    assert np.array_equal(look(web), first)
    assert web.requests == 1, "opening makes sure that the file is the same"
    assert (tmp_path / "cache" / "bytes-1").stat().st_mode & 0o077 == 0


def test_a_damaged_block_is_fetched_anew(web: Web, tmp_path: Path) -> None:
    first = look(web)
    for path in blocks(tmp_path):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    assert np.array_equal(look(web), first)
    asked = web.requests
    assert asked > 1
    blocks(tmp_path)[0].write_bytes(b"short")
    a, b = blocks(tmp_path)[:2]
    b.write_bytes(blocks(tmp_path)[2].read_bytes())
    assert np.array_equal(look(web), first), "a block of another place is none of this one"
    assert 1 < web.requests < asked
    assert a.exists()


def test_a_file_that_changed_is_read_anew(web: Web) -> None:
    first = look(web)
    os.utime(web.root / "run.zarr.zip")
    assert np.array_equal(look(web), first)
    assert web.requests > 1


def test_what_was_used_least_recently_goes_first(tmp_path: Path) -> None:
    kept = DiskCache(tmp_path / "cache", most=100_000)
    for number in range(40):
        kept.put(f"{number}", np.full(5000, number, np.uint8))
        path = kept._path(f"{number}")
        os.utime(path, (number, number)) if path.exists() else None
        assert kept.get("0") is not None, "it was just used"
    kept.sweep()
    assert sum(path.stat().st_size for path in blocks(tmp_path)) <= 100_000
    found = [number for number in range(40) if kept.get(f"{number}") is not None]
    assert found[0] == 0
    assert found[1:] == list(range(found[1], 40))
    kept.put("large", np.zeros(50_000, np.uint8))
    assert kept.get("large") is None, "one block is not to push all others out"


def test_several_processes_and_threads_share_a_folder(tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np\n"
        "from i2am.analyzer.storage.cache import DiskCache\n"
        "from pathlib import Path\n"
        "kept = DiskCache(Path(sys.argv[1]), most=300_000)\n"
        "for i in range(300):\n"
        "    key = str(i % 50)\n"
        "    found = kept.get(key)\n"
        "    assert found is None or (found == i % 50).all()\n"
        "    kept.put(key, np.full(9000, i % 50, np.uint8))\n"
    )
    commands = [[sys.executable, "-c", script, str(tmp_path / "cache")]] * 3
    with ThreadPoolExecutor(3) as pool:
        for done in pool.map(lambda command: subprocess.run(command, capture_output=True, check=False), commands):
            assert done.returncode == 0, done.stderr
    assert not [path for path in blocks(tmp_path) if path.name.startswith(".")]


def test_a_folder_that_cannot_be_written_keeps_nothing_and_nothing_fails(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    kept = DiskCache(tmp_path / "cache" / "below")
    kept.put("a", np.zeros(9, np.uint8))
    assert kept.get("a") is None


def test_the_place_is_named_by_option_environment_or_platform(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at = f"{web.address}/run.zarr.zip"
    assert run(["imacs", at, "--cache", str(tmp_path / "other")]) == 0
    assert len(list((tmp_path / "other").rglob("*"))) > 3
    assert os.environ["I2AM_CACHE"] == str(tmp_path / "cache")
    assert run(["imacs", at, "--cache", "none"]) == 0
    assert not (tmp_path / "cache").exists()
    (tmp_path / "file").write_text("")
    capsys.readouterr()
    assert run(["info", at, "--cache", str(tmp_path / "file")]) == 2
    assert "is a file; give a folder, or none" in capsys.readouterr().err
    monkeypatch.setenv("I2AM_CACHE", str(tmp_path / "file"))
    with pytest.raises(InvalidInput):
        cache()
    monkeypatch.setenv("I2AM_CACHE", "none")
    assert cache() is None
    monkeypatch.delenv("I2AM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    kept = cache()
    assert kept is not None
    assert kept.folder.is_relative_to(default_folder())


def test_without_a_sign_of_change_nothing_is_kept_on_disk(web: Web, tmp_path: Path) -> None:
    web.reset("no tag")
    r2g(open_trace(f"{web.address}/run.zarr.zip")).compute()
    assert not blocks(tmp_path)
