"""The README's example runs from end to end, on a tiny model of the same pipeline."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from repository import ROOT

from i2am.analyzer.cli.main import run

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's two Python blocks have run."""
    pytest.importorskip("torch")
    from diffusers import StableDiffusionInpaintPipeline

    from pipelines import load_adapters, stable_diffusion, text_arguments

    folder = tmp_path_factory.mktemp("readme")
    (folder / "examples").symlink_to(ROOT / "examples")
    tiny, words = stable_diffusion(StableDiffusionInpaintPipeline, channels=9, encoder=True), text_arguments()
    load_adapters(tiny, "full")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(StableDiffusionInpaintPipeline, "from_pretrained", lambda *_, **__: tiny)
        patch.setattr(type(tiny), "load_ip_adapter", lambda *_, **__: None)
        patch.setattr(type(tiny), "encode_prompt", lambda *_, **__: (words["prompt_embeds"], words["negative_prompt_embeds"]))
        patch.setattr(type(tiny), "to", lambda self, _: self)
        space: dict[str, object] = {}
        for block in blocks(README, "python"):
            exec(compile(block.replace("512", "32"), "README.md", "exec"), space)  # the size of the tiny model's pictures
    return folder


def test_the_example_records_what_it_then_asks(recorded: Path) -> None:
    assert (recorded / "run.zarr" / "manifest.json").exists()
    assert (recorded / "run.png").exists()


def test_the_commands_answer_of_the_same_recording(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("h5netcdf")
    monkeypatch.chdir(recorded)
    (shown,) = (block for block in blocks(README, "sh") if "i2am info run.zarr" in block)
    for line in shown.splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "i2am"
        assert run(words[1:]) == 0, capsys.readouterr().err
    assert {"r2g.png", "strip.png", "patch.nc", "daam.png"} <= {path.name for path in recorded.iterdir()}
