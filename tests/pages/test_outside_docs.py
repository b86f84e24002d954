"""docs/outside.md and its example do what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from outside_models import REFERENCE, cat_vton, garment_network, paint_by_example, sample, stable_viton, super_resolution
from outside_viton import viton_v1
from repository import ROOT

from i2am.analyzer import g2r, open_trace, r2g
from i2am.analyzer.cli.main import run
from i2am.recorder.session.recording import DECLARED

PAGE = (ROOT / "docs" / "outside.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0].strip("# "): part for part in re.split(r"^## ", PAGE, flags=re.M)}
WHOLE = "Models outside diffusers"

torch.set_num_threads(1)

MODELS: dict[str, tuple[Callable[[], Any], dict[str, Any], set[str]]] = {
    # section: how its model is made, how it samples, the token groups of its trace
    WHOLE: (paint_by_example, {}, {"reference"}),
    "Paint-by-Example": (paint_by_example, {}, {"reference"}),
    "DCI-VTON": (lambda: paint_by_example(extra=4), {}, {"reference"}),
    "StableVITON": (stable_viton, {"order": ("cond", "uncond"), "sequential": True}, {"reference", "cls"}),
    "VITON-v1": (lambda: viton_v1(told=False), {"order": ("cond", "uncond")}, {"reference"}),
    "IDM-VTON": (lambda: garment_network(adapter=True, chunked=False), {}, {"reference", "text", "tokens"}),
    "OOTDiffusion": (lambda: garment_network(adapter=False, chunked=True), {"order": ("cond", "uncond")}, {"reference", "text"}),
    "CatVTON": (cat_vton, {}, {"reference"}),
    "Super-resolution with a reference": (super_resolution, {}, {"reference", "text"}),
}


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", SECTIONS[section], flags=re.S)


def test_every_snippet_has_a_model() -> None:
    assert {name for name in SECTIONS if blocks(name, "python")} == set(MODELS)
    assert all(f"| `{name}` |" in SECTIONS["What is said"] for name in DECLARED)


@pytest.mark.parametrize("section", MODELS)
def test_snippets_record_what_they_say(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build, settings, groups = MODELS[section]
    model, cond, uncond = build()
    unet = model.model["diffusion_model"]
    picture = np.random.default_rng(0).integers(0, 256, (32, 24, 3), dtype=np.uint8)
    sampler = SimpleNamespace(get_time_embedding=lambda timestep: None)
    names: dict[str, Any] = {
        "model": model,
        "pipe": SimpleNamespace(unet=unet, unet_vton=unet),
        "sampler": sampler,
        "sample": lambda: sample(model, cond, uncond, before=lambda timestep: sampler.get_time_embedding(timestep), **settings),
        "decode": lambda latent: latent[:, :3].repeat_interleave(4, 2).repeat_interleave(4, 3),
        "garment": picture,
        "warped": picture,
        "mask": np.arange(24) > np.arange(32)[:, None],
        "features": REFERENCE,
    }
    plain = names["sample"]()
    monkeypatch.chdir(tmp_path)
    (snippet,) = blocks(section, "python")
    exec("from i2am.recorder import recording\n" + snippet, names)
    assert torch.equal(plain, names["samples"])
    trace = open_trace(tmp_path / "run.zarr")
    assert {group.name for layer in trace.layers for group in layer.groups} == groups
    assert {"generated_0", "reference"} <= {image.name for image in trace.images}
    assert all(group.image == "reference" for layer in trace.layers for group in layer.groups if group.name == "reference")
    assert trace.latent_grid == (8, 6)
    assert trace.steps["timestep"].tolist() == [999, 666, 333]
    assert np.isfinite(r2g(trace, group="reference").values).all()
    assert np.isfinite(g2r(trace, group="reference").values).all()


def test_the_commands_make_their_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    test_snippets_record_what_they_say("StableVITON", tmp_path, monkeypatch)
    (commands,) = blocks("From the trace to a map", "sh")
    for line in commands.splitlines():
        given = [word.strip("'") for word in line.partition("#")[0].split()][1:]
        assert run(given) == 0, capsys.readouterr().err
    assert {path.name for path in tmp_path.glob("*.png")} == {"r2g.png", "g2r.png", "at.png", "sheet.png"}


def test_the_example_runs_as_its_page_says(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "examples" / "own_sampler.py", "own.zarr"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout == "own.zarr: 10 steps; i2am info own.zarr\n"
    trace = open_trace(tmp_path / "own.zarr")
    (layer,) = trace.layers
    assert (layer.name, layer.grid, layer.groups[0].grid, layer.groups[0].specials) == ("unet.block.attn2", (12, 9), (4, 4), 1)
    assert run(["map", str(tmp_path / "own.zarr"), "--r2g", "-o", str(tmp_path / "r2g.png")]) == 0
