"""Every command of docs/gallery.md makes a figure, and the page shows the one it makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gallery import PAGE, PICTURES, add_scene, figures, make, name_of
from PIL import Image

from traces import reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

pytest.importorskip("matplotlib", reason="the extra plot is not installed")

LAYERS = ("down_blocks.0", "mid_block", "up_blocks.0", "up_blocks.1")
MOST = 1_500_000
"""Bytes of all pictures together."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces of the names that the page uses; their patches know where they come from, as those of the demo do."""
    root = tmp_path_factory.mktemp("gallery")
    add_scene(root)
    layers = [reference_layer(f"unet.{name}.attentions.0.attn2", (16, 16), reference=(4, 4)) for name in LAYERS]
    truth = np.random.default_rng(0).random((16, 16, 2)).tolist()
    for seed, name in enumerate(("run", "pair-0", "pair-1", "pair-2")):
        facts = {"demo": {"position": truth}}
        made = {"steps": 5, "seed": seed, "latent_grid": (16, 16), "image_size": (32, 32), "reference_size": (32, 32)}
        synthetic_trace(root / f"{name}.zarr", layers=layers, facts=facts, **made)
    return root


@pytest.mark.parametrize("arguments", figures(), ids=name_of)
def test_the_command_makes_a_figure(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.chdir(folder)
    assert make(arguments, tmp_path / "out.png", 50) == 0
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width > 100


def test_the_page_shows_each_figure_and_nothing_else() -> None:
    text, names = PAGE.read_text(encoding="utf-8"), [name_of(arguments) for arguments in figures()]
    assert len(set(names)) == len(names)
    assert sorted(path.stem for path in PICTURES.iterdir()) == sorted(names)
    assert all(f"](gallery/{name}.png)" in text for name in names)
    assert sum(path.stat().st_size for path in PICTURES.iterdir()) < MOST
