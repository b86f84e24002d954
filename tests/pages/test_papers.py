"""docs/reproduce.md: every command of every published table runs, in order, on tiny stand-ins of the models it names."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from outside_models import paint_by_example as pbe_code
from outside_models import sample, stable_viton
from pipelines_custom import SIZE, tiny_custom
from pipelines_text import prompted
from repository import ROOT

from i2am.analyzer import open_trace
from i2am.analyzer.cli.main import run
from pipelines import paint_by_example, picture, square_mask

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

PAPERS = ROOT / "examples" / "papers"
PAGE = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
STAND_INS: dict[str, Callable[[], Any]] = {
    "PaintByExamplePipeline": lambda: paint_by_example()[0],
    "i2am.recorder.custom.pipeline:CustomTryOnPipeline": tiny_custom,
    "StableDiffusionPipeline": lambda: prompted()[0],
}
"""By the class that a spec names."""
SMALLER = {
    "-o coco": "-o coco --side 32",
    "--at 30,20": "--at 3,4",
    "--at 20,28": "--at 5,2",
    "--layers 6": "--layers 0",
    "--time-groups 5": "--time-groups 2",
    "--recipe i2am-official --group reference": "--group reference",  # the stand-in has no fifth block
    "--top 30": "--top 2",
    "--count 30": "--count 2",
}
"""What a model of some heads and cells asks for in place of the published numbers."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkout's examples with stand-ins for weights, two steps, small pictures, two rows of each manifest; and some data."""
    home = tmp_path_factory.mktemp("papers")
    weights: dict[str, Path] = {}
    for path in [ROOT / "examples/mouse.toml", *sorted(PAPERS.iterdir())]:
        copy = home / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".toml":
            copy.write_text(stand_in(path.read_text(encoding="utf-8"), home, weights))
        elif path.suffix == ".csv":
            copy.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:3]))
        elif path.suffix == ".py":
            copy.write_text(path.read_text(encoding="utf-8"))
    make_coco(home)
    make_pairs(home)
    make_repositories(home)
    (home / "pictures").mkdir()
    (home / "masks").mkdir()
    for name in ("dog-0", "dog-1"):
        square_mask().save(home / f"masks/{name}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        yield home


def stand_in(spec: str, home: Path, weights: dict[str, Path]) -> str:
    """The spec with its class's stand-in for weights, at its size."""
    (name,) = re.findall(r'^class = "([\w.:]+Pipeline)"', spec, flags=re.M)
    if name not in weights:
        weights[name] = home / f"weights-{len(weights)}"
        STAND_INS[name]().save_pretrained(weights[name])
    spec = re.sub(r'^from_pretrained = ".*?"', f'from_pretrained = "{weights[name]}"', spec, flags=re.M)
    spec = re.sub(r'torch_dtype = "float16", variant = "fp16"', "", spec).replace('"float16"', '"float32"')
    return re.sub(r"^num_inference_steps = 50", "num_inference_steps = 2", spec, flags=re.M).replace("= 512", "= 32")


def make_coco(home: Path) -> None:
    (home / "val2017").mkdir()
    rows = []
    for index in range(2):
        picture(index, 40, 60).save(home / f"val2017/{index}.png")
        rows.append({"id": index, "file_name": f"{index}.png", "width": 60, "height": 40})
    objects = [{"image_id": index, "bbox": [10, 5 + index, 30, 20]} for index in range(2)]
    (home / "instances_val2017.json").write_text(json.dumps({"images": rows, "annotations": objects}))


def make_pairs(home: Path) -> None:
    """VITON-HD's folders, and the manifest that its script makes of them."""
    for folder, made in (("image", picture), ("cloth", picture), ("cloth-mask", square_mask), ("agnostic-mask", square_mask)):
        (home / "test" / folder).mkdir(parents=True)
        for index, name in enumerate(("00006_00", "00008_00")):
            still = picture(index, 64, 48) if made is picture else square_mask(64, 48)
            still.save(home / "test" / folder / (f"{name}_mask.png" if folder == "agnostic-mask" else f"{name}.jpg"))
    (home / "test_pairs.txt").write_text("00006_00.jpg 00008_00.jpg\n")
    main = runpy.run_path(str(PAPERS / "viton_hd.py"))["main"]
    for asked in ([str(home / "viton-hd")], [str(home / "unpaired"), "--unpaired"]):
        made = CliRunner().invoke(main, [str(home / "test"), *asked, "--height", str(SIZE[0])], catch_exceptions=False)
        assert made.exit_code == 0
    assert "00006_00_example_image.png" in (home / "unpaired/pairs.csv").read_text()


def make_repositories(home: Path) -> None:
    """A trace of each repository's model, recorded in its own loop."""
    program = runpy.run_path(str(PAPERS / "repositories.py"))
    guided = {"dci-vton": (pbe_code(extra=4), True), "stableviton": (stable_viton(), False)}
    assert set(guided) == set(program["REPOSITORIES"])
    garment = np.asarray(picture(3, 32, 24))
    mask = np.arange(24) > np.arange(32)[:, None]
    for name, ((model, cond, uncond), both) in guided.items():
        pictures = {"garment": garment, "mask": mask, "garment_mask": mask}
        (home / name).mkdir()
        with program["recording_of"](name, model, home / name / "0.zarr", **pictures) as running:
            latent = sample(model, cond, uncond if both else None)
            running.images(generated=latent[:, :3].repeat_interleave(4, 2).repeat_interleave(4, 3))


def commands(section: str) -> list[str]:
    shown = re.findall(r"^```sh\n(.*?)^```$", SECTIONS[section], flags=re.M | re.S)
    return [line for block in shown for line in block.splitlines() if line.startswith("i2am ")]


def test_every_command_runs_in_order(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One test, since tables are made of what sections before them recorded."""
    pytest.importorskip("matplotlib")
    for command in (line for section in SECTIONS for line in commands(section)):
        for published, small in SMALLER.items():
            command = command.replace(published, small)
        words, _, kept = command.partition(" > ")
        capsys.readouterr()
        assert run(shlex.split(words)[1:]) == 0, (command, capsys.readouterr().err)
        if kept:
            (home / kept).write_text(capsys.readouterr().out)
    trace = open_trace(home / "custom/00006_00.zarr")
    assert trace.record.model["pipeline"] == "CustomTryOnPipeline" and len(trace.present) == 2
    rows = (home / "detection.csv").read_text().splitlines()
    assert rows[0].startswith("trace,id,box_iou_g,random_box_iou,whole_box_iou") and len(rows) == 3
    assert float(rows[1].split(",")[4]) == pytest.approx(30 * 20 / (60 * 40), abs=0.02)


def test_specs_are_as_published() -> None:
    specs = {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in PAPERS.glob("*.toml")}
    assert all(spec["call"]["num_inference_steps"] == 50 for spec in specs.values())
    assert (specs["detection"]["seed"], specs["detection"]["call"]["guidance_scale"]) == (321, 5.0)
    ranking = specs["ranking"]
    assert (ranking["seed"], ranking["scheduler"]["class"], ranking["call"]["guidance_scale"]) == (22, "PNDMScheduler", 7.5)
    custom, refined = (specs[f"imacs-{name}"] for name in ("custom", "refined"))
    assert {**custom, "pipeline": None} == {**refined, "pipeline": None} and custom["pipeline"] != refined["pipeline"]
    assert all(f"examples/papers/{path.name}" in PAGE for path in PAPERS.iterdir() if path.suffix != ".pyc" and path.is_file())
