"""A small trace and a larger one, as folders and zip files, on a web server of the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from webserver import Web, serving
from zips import zip_trace

from i2am.analyzer.storage import address
from traces import reference_layer, synthetic_trace


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small trace and a larger one, as folders and as zip files."""
    folder = tmp_path_factory.mktemp("web")
    zip_trace(synthetic_trace(folder / "small.zarr").path, folder / "small.zarr.zip")
    layers = [reference_layer(f"unet.{where}.attn2", (32, 32), heads=8, reference=(7, 11)) for where in ("down", "mid", "up")]
    zip_trace(synthetic_trace(folder / "run.zarr", layers=layers, steps=3, latent_grid=(32, 32)).path, folder / "run.zarr.zip")
    return folder


@pytest.fixture
def web(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(address, "BACKOFF_SECONDS", 0.01)
    address.MEMORY.clear()
    with serving(root) as web:
        yield web
