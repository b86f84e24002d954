"""The benchmarks run: what only a GPU can measure is walked through at toy size on the CPU, and the clocks account for a whole run."""

from __future__ import annotations

import importlib
import itertools
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from repository import ROOT

from i2am.recorder import record
from i2am.recorder.session import run
from i2am.recorder.store import files
from pipelines import build

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:float16 lost"),
]

TINY = {
    "sample_size": 8, "block_out_channels": (4, 8), "norm_num_groups": 2, "layers_per_block": 1, "cross_attention_dim": 8,
    "attention_head_dim": 2, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
TINY_XL = {
    **TINY, "addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 4 * 6 + 8,
}  # fmt: skip


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.mark.parametrize("pooled", [0, 8])
def test_the_gpus_benchmark_on_the_cpu_at_toy_size(pooled: int, load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu: ModuleType = load("gpu")
    monkeypatch.setitem(gpu.SHAPES, "sd15", gpu.Shape(64, TINY_XL if pooled else TINY, pooled))
    options = ["--model", "sd15", "--tokens", "5", "--steps", "2", "--repeats", "1", "--device", "cpu", "--scratch", str(tmp_path)]
    shown = CliRunner().invoke(gpu.main, options, catch_exceptions=False)
    assert shown.exit_code == 0
    assert "sd15, 5 tokens, 2 steps, torch.float32: unrecorded" in shown.output
    for way in gpu.WAYS:
        (row,) = [line for line in shown.output.splitlines() if line.startswith(f"| {way} |")]
        ratio, raw, packed, rate, device, _ = (float(cell) for cell in row.strip("| ").split("|")[1:])
        assert ratio > 0 and raw > 0 and packed > 0 and rate > 0 and device == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_the_gpus_shapes_are_the_published_ones(name: str, load: Any) -> None:
    gpu = load("gpu")
    pipeline, call = gpu.build(gpu.SHAPES[name], 257, 50, torch.device("meta"), torch.float16)
    weights = sum(parameter.numel() for parameter in pipeline.unet.parameters())
    assert round(weights / 1e6) == {"sd15": 860, "sdxl": 2567}[name]
    assert pipeline.vae_scale_factor == 8
    assert call["prompt_embeds"].shape == (1, 257, {"sd15": 768, "sdxl": 2048}[name])


def test_without_a_gpu_one_line_says_so(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    shown = CliRunner().invoke(load("gpu").main, [])
    assert shown.exit_code == 1
    assert shown.output == "Error: torch finds no CUDA device here; run this where there is one, or benchmarks/recording.py on a CPU\n"


def test_clocks_count_each_second_once_and_by_thread(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shares, seconds = load("shares"), itertools.count()
    monkeypatch.setattr(shares, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    clocks = shares.Clocks()
    inner = clocks.clock("inner", lambda: None)
    outer = clocks.clock("outer", inner)
    outer()  # looks at the clock at 0 and 3, and within it at 1 and 2
    worker = threading.Thread(target=inner)
    worker.start()
    worker.join()
    assert clocks.seconds == {("inner", True): 1, ("outer", True): 2, ("inner", False): 1}
    with pytest.raises(ZeroDivisionError):
        clocks.clock("failing", lambda: 1 / 0)()
    assert clocks.seconds["failing", True] == 1


@pytest.mark.parametrize("encoding", ["factors", "probabilities"])
def test_shares_of_a_recorded_run_add_up_and_leave_the_recorder_as_it_was(encoding: str, load: Any, tmp_path: Path) -> None:
    shares, before = load("shares"), (run.encode_scores, files.Storage.write_block)
    pipeline, call = build("ip-full")
    rows = shares.shares(lambda: record(pipeline, tmp_path / "run.zarr", encoding=encoding, values="none", progress=False, **call()))
    assert (run.encode_scores, files.Storage.write_block) == before
    parts = {(part, thread) for part, thread, *_ in rows}
    assert ("compress and write", "writing") in parts and ("copy off the device", "sampling") in parts
    assert (("encode: softmax, log-sum-exps, rounding", "sampling") in parts) == (encoding == "probabilities")
    assert (("hash keys", "writing") in parts) == (encoding == "factors")
    sampling = sum(float(share.rstrip("%")) for _, thread, _, share in rows if thread == "sampling")
    assert sampling == pytest.approx(100, abs=0.1 * len(rows))
