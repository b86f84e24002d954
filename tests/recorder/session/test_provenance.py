"""Where a recording comes from: all of it in the trace, as plain JSON."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from memory import MemoryWriter, memory

from i2am.recorder import record
from i2am.recorder.session.provenance import to_plain
from i2am.schema.trace import TraceRecord
from pipelines import build, generator, text_encoder, text_to_image, tokenizer

__all__ = ["memory"]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

PATH = Path("nowhere.zarr")
MID = "*mid_block*"


def test_provenance_says_where_everything_comes_from(memory: type[MemoryWriter]) -> None:
    pipeline, call = build("ip-two")
    record(pipeline, PATH, steps="0:2", encoding="auto", queue_mb=64, **call())
    trace = memory.last.trace
    assert trace.inputs["seed"] == 0
    assert (trace.inputs["num_images_per_prompt"], trace.inputs["height"], trace.inputs["guidance_scale"]) == (2, 32, 5.0)
    assert trace.sampler["scheduler"] == "DDIMScheduler"
    assert trace.sampler["config"]["beta_schedule"] == "scaled_linear"
    assert trace.sampler["timesteps"] == pipeline.scheduler.timesteps.tolist()
    assert trace.model["pipeline"] == "StableDiffusionPipeline"
    assert trace.model["components"]["unet"]["class"] == "UNet2DConditionModel"
    assert len(trace.model["components"]["image_encoder"]["config_sha256"]) == 64
    assert (trace.model["device"], trace.model["dtype"]) == ("cpu", "float32")
    assert trace.provenance["versions"]["torch"] == torch.__version__.partition("+")[0] or trace.provenance["versions"]["torch"]
    assert set(trace.provenance["versions"]) == {"python", "i2am", "torch", "diffusers", "transformers", "numpy", "zarr"}
    options = {"steps": "0:2", "encoding": "auto", "queue_mb": 64, "branches": "cond", "keys": "auto", "layers": None}
    assert options.items() <= trace.provenance["options"].items()
    assert trace.created.endswith("+00:00")
    assert trace.latent_grid == (16, 12)
    assert TraceRecord.from_json(trace.to_json()) == trace


def test_truth_is_laid_on_the_grid_of_the_maps(memory: type[MemoryWriter]) -> None:
    pipeline, call = text_to_image()
    record(pipeline, PATH, layers=MID, truth=[[0.99, 0.01, 0.5, 0.25], [0.98, 0.02, 0.7, 0.75]], **call())
    trace = memory.last.trace
    places = np.array(trace.provenance["truth"], float)
    assert places.shape == (*trace.map_grid, 2) and places[-1, 0].tolist() == [0.6, 0.5] and np.isfinite(places).sum() == 2
    assert "truth" not in trace.provenance["options"]


def test_config_hashes_follow_the_config(memory: type[MemoryWriter]) -> None:
    hashes = []
    for size in (16, 16, 24):
        pipeline, call = text_to_image()
        pipeline.unet.register_to_config(sample_size=size)
        record(pipeline, PATH, layers=MID, **call())
        hashes.append(memory.last.trace.model["components"]["unet"]["config_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_prompt_is_kept_as_it_was_written(memory: type[MemoryWriter]) -> None:
    pipeline, call = text_to_image()
    pipeline.register_modules(tokenizer=tokenizer(), text_encoder=text_encoder())
    arguments = {name: value for name, value in call().items() if "embeds" not in name}
    texts = {"prompt": "red shirt", "negative_prompt": "blue"}
    plain = pipeline(**arguments, **texts).images
    assert np.array_equal(plain, record(pipeline, PATH, layers=MID, **{**arguments, "generator": generator()}, **texts).images)
    assert texts.items() <= memory.last.trace.inputs.items()
    assert memory.last.trace.model["components"]["text_encoder"]["class"] == "CLIPTextModel"
    assert memory.last.trace.layers[0].tokens == 7


def test_numbers_are_plain_json_or_left_out() -> None:
    assert to_plain(torch.arange(3)) == [0, 1, 2]
    assert to_plain(np.float32(0.5)) == 0.5
    assert to_plain({"a": (1, None), "_b": 2, "c": object()}) == {"a": [1, None], "c": None}
    assert to_plain([1, object()]) is None
    assert to_plain(float("nan")) is None
    assert to_plain(list(range(5000))) is None
    assert to_plain(torch.zeros(5000)) is None
