"""record() and recording(): what lands in the trace beside attention, and what happens when a run goes wrong."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from memory import MemoryWriter, memory
from torch import nn

from i2am.analyzer import open_trace, sram
from i2am.recorder import record, recording
from i2am.recorder.demo.encoder import GarmentEncoder
from i2am.recorder.demo.pipeline import TryOnPipeline
from i2am.recorder.labels.refusals import refuse_pipeline
from i2am.recorder.plan.options import Options
from i2am.schema.errors import AlreadyExists, InvalidInput, UnsupportedModel
from i2am.schema.trace import TraceRecord
from pipelines import (
    SCHEDULERS,
    adapter_weights,
    build,
    generator,
    ip_adapter,
    picture,
    square_mask,
    text_to_image,
    unet,
)

__all__ = ["memory"]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

PATH = Path("nowhere.zarr")
MID = "*mid_block*"


def attributes(path: Path) -> Any:
    return json.loads((path / "zarr.json").read_text())["attributes"]["i2am"]


def test_a_trace_on_disk_is_plain_zarr(tmp_path: Path) -> None:
    pipeline, call = build("ip-full")
    path = tmp_path / "run.zarr"
    projected: list[torch.Tensor] = []
    attention = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    for name in ("to_q", "processor.to_k_ip.0"):
        attention.get_submodule(name).register_forward_hook(lambda module, args, output: projected.append(output[1].clone()))
    with recording(pipeline, path, layers=MID, facts={"pair": 7}) as running:
        output = pipeline(**call())
        running.facts["late"] = [1, 2]
    assert running.path == path
    assert running.trace == TraceRecord.from_json(attributes(path))
    assert running.trace.status == "complete"
    assert running.trace.provenance["facts"] == {"pair": 7, "late": [1, 2]}
    assert [layer.call for layer in running.trace.layers] == [0, 1]
    opened = xr.open_zarr(path, group="layers/001", consolidated=False)
    query, key = (tensor.reshape(-1, 2, 4).transpose(0, 1).double() for tensor in projected[-2:])
    truth = torch.softmax(query @ key.transpose(1, 2) * running.trace.layers[1].scale, 2).unflatten(1, (8, 6))
    np.testing.assert_allclose(opened.probability[0, 0, -1], truth, rtol=1e-3, atol=1e-6)
    assert opened.timestep.values.tolist() == pipeline.scheduler.timesteps.tolist()
    painted = zarr.open_array(path / "images/generated_0", mode="r")
    assert np.array_equal(painted[:], (output.images[0] * 255).round().astype(np.uint8))


def test_the_help_of_record_explains_every_option() -> None:
    assert all(f"`{name}`" in (record.__doc__ or "") for name in Options.__dataclass_fields__)


def test_record_returns_what_the_pipeline_returns(memory: type[MemoryWriter]) -> None:
    pipeline, call = text_to_image()
    plain = pipeline(**call(), return_dict=False)
    assert np.array_equal(plain[0], record(pipeline, PATH, **call(), return_dict=False)[0])
    assert list(memory.last.images) == ["generated_0"]


def demo_pipeline() -> Any:
    torch.manual_seed(0)
    encoder = GarmentEncoder(image_size=16, patch_size=4, width=8).eval()
    model = unet(channels=7 * 16 + 8)
    model.register_to_config(sample_size=4)
    model.conv_out = nn.Conv2d(4, 48, 3, padding=1)
    pipeline = TryOnPipeline(encoder, model, SCHEDULERS["ddim"]())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_demo_pipeline_is_a_reference_with_places(memory: type[MemoryWriter]) -> None:
    pipeline = demo_pipeline()
    images = {"image": picture(1, 16, 16), "mask_image": square_mask(16, 16), "example_image": picture(2, 16, 16)}
    call = {**images, "num_inference_steps": 3, "guidance_scale": 2.0, "num_images_per_prompt": 2, "output_type": "np"}
    plain = pipeline(**call, generator=generator()).images
    assert np.array_equal(plain, record(pipeline, PATH, branches="both", **call, generator=generator()).images)
    trace = memory.last.trace
    group = trace.layers[0].groups[0]
    assert (group.role, group.specials, group.grid, group.image) == ("reference", 1, (4, 4), "reference")
    assert (trace.samples, trace.latent_grid) == (2, (4, 4))
    assert list(memory.last.images) == ["generated_0", "generated_1", "reference", "input", "mask"]
    # Without a reference all tokens are one learned vector, so every key gets the same attention.
    uncond = memory.last.blocks[0, 0, "uncond", 0]["probability"].astype(np.float32)
    assert np.ptp(uncond, axis=-1).max() <= 2
    assert np.ptp(memory.last.blocks[0, 0, "cond", 0]["probability"].astype(np.float32), axis=-1).max() > 100


def test_two_calls_in_one_recording_are_an_error(memory: type[MemoryWriter]) -> None:
    pipeline, call = text_to_image()
    with recording(pipeline, PATH, layers=MID):
        pipeline(**call())
        with pytest.raises(InvalidInput, match="called a second time"):
            pipeline(**call())
    assert memory.last.trace.status == "complete"


def test_no_call_in_a_recording_is_an_error() -> None:
    pipeline, _ = text_to_image()
    with pytest.raises(InvalidInput, match="was not called while recording"), recording(pipeline, PATH):
        pass
    assert "__call__" in type(pipeline).__dict__


def test_an_error_after_the_call_leaves_a_complete_trace(memory: type[MemoryWriter]) -> None:
    pipeline, call = text_to_image()

    def divide() -> None:
        with recording(pipeline, PATH, layers=MID):
            pipeline(**call())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        divide()
    assert memory.last.trace.status == "complete"


def test_a_taken_path_is_refused_before_the_run(tmp_path: Path) -> None:
    pipeline, call = text_to_image()
    (tmp_path / "run.zarr").mkdir()
    with pytest.raises(AlreadyExists, match="overwrite=True"), recording(pipeline, tmp_path / "run.zarr"):
        pytest.fail("the block must not start")
    record(pipeline, tmp_path / "other.zarr", layers=MID, **call())
    first = attributes(tmp_path / "other.zarr")["id"]
    with pytest.raises(AlreadyExists):
        record(pipeline, tmp_path / "other.zarr", layers=MID, **call())
    assert attributes(tmp_path / "other.zarr")["id"] == first
    record(pipeline, tmp_path / "other.zarr", layers=MID, overwrite=True, **call())
    assert attributes(tmp_path / "other.zarr")["id"] != first


def stop_at(step: int, act: Any) -> Any:
    def callback(pipeline: Any, index: int, time: Any, values: Any) -> Any:
        if index == step:
            act()
        return values

    return callback


def test_a_failing_pipeline_leaves_what_was_committed(tmp_path: Path) -> None:
    pipeline, call = text_to_image(num_inference_steps=5)

    def fail() -> None:
        raise RuntimeError("out of memory\nmore")

    path = tmp_path / "run.zarr"
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        record(pipeline, path, layers=MID, **call(), callback_on_step_end=stop_at(2, fail))
    record_ = attributes(path)
    assert (record_["status"], record_["reason"]) == ("interrupted", "RuntimeError: out of memory after 3 recorded evaluations")
    assert len((path / "journal.jsonl").read_text().splitlines()) == 3
    (note,) = caught.value.__notes__
    assert note == f"3 of 5 steps are recorded and readable: `i2am info {path} --partial`, or open_trace({str(path)!r}, partial=True)"


def test_a_patch_of_a_partial_trace_is_that_of_the_whole_run(tmp_path: Path) -> None:
    pipeline, call = build("ip-full")
    record(pipeline, tmp_path / "whole.zarr", **call())

    def stop() -> None:
        raise ZeroDivisionError

    for step in (0, 1):
        with pytest.raises(ZeroDivisionError):
            record(pipeline, tmp_path / f"{step}.zarr", **call(), callback_on_step_end=stop_at(step, stop))
        whole, part = open_trace(tmp_path / "whole.zarr"), open_trace(tmp_path / f"{step}.zarr", partial=True)
        assert part.record.latent_grid == whole.latent_grid == (16, 12)
        last = {"at": (15, 11), "steps": f"0:{step + 1}"}
        assert np.array_equal(sram(part, **last), sram(whole, **last))


def test_a_partial_trace_has_the_pictures_known_from_the_start(tmp_path: Path) -> None:
    pipeline, call = build("inpaint")
    path = tmp_path / "run.zarr"
    with pytest.raises(KeyboardInterrupt):
        record(pipeline, path, layers=MID, **call(), callback_on_step_end=stop_at(0, lambda: signal.raise_signal(signal.SIGINT)))
    trace = open_trace(path, partial=True)
    assert [image.name for image in trace.images] == ["input", "mask"]
    np.testing.assert_array_equal(trace.image("mask")[..., 0], np.asarray(call()["mask_image"].convert("L")))


def test_attention_too_sharp_for_float16_is_said(tmp_path: Path) -> None:
    pipeline, call = build("ip-full")
    with torch.no_grad():
        pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_q.weight.mul_(300)
    with pytest.warns(UserWarning, match=r"float16 lost up to \d+% of one token's column of G in \d of \d layers.*encoding='auto'"):
        record(pipeline, tmp_path / "run.zarr", layers=MID, **call())


def test_a_polite_kill_leaves_what_was_committed(memory: type[MemoryWriter]) -> None:
    pipeline, call = text_to_image()
    with pytest.raises(SystemExit) as caught:
        record(pipeline, PATH, **call(), callback_on_step_end=stop_at(1, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert caught.value.code == 128 + signal.SIGTERM
    assert memory.last.committed == 2
    assert memory.last.reason == "SystemExit: 143 after 2 recorded evaluations"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_polite_kill_while_closing_leaves_all_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, call = text_to_image()

    def kill(*args: Any) -> Any:
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("i2am.recorder.store.writer.complete", kill)
    with pytest.raises(SystemExit) as caught:
        record(pipeline, tmp_path / "run.zarr", layers=MID, **call())
    assert caught.value.code == 128 + signal.SIGTERM
    trace = open_trace(tmp_path / "run.zarr", partial=True)
    assert (trace.record.status, trace.record.reason) == ("interrupted", "SystemExit: 143 after 3 recorded evaluations")
    assert len(trace.steps["evaluation"]) == 3 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_bad_arguments_of_the_pipeline_stay_its_own_error(tmp_path: Path) -> None:
    pipeline, _ = build("image-variation")
    with pytest.raises(TypeError, match="banana"):
        record(pipeline, tmp_path / "run.zarr", banana=1)
    with pytest.raises(InvalidInput, match=r"recording\(\) does not take this.*banana"), recording(pipeline, PATH, banana=1):
        pass
    with pytest.raises(InvalidInput, match=r"recording\(\) does not take this: 'enconding'; did you mean encoding\?"):
        recording(pipeline, PATH, enconding="factors")
    assert not (tmp_path / "run.zarr").exists()


class Painter(DiffusionPipeline):
    """A pipeline without a denoiser."""

    def __call__(self) -> None:
        return None


def test_a_pipeline_without_a_denoiser_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="Painter has no unet or transformer with a scheduler"):
        record(Painter(), PATH)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("StableUnCLIPImg2ImgPipeline", "class label"),
        ("StableDiffusionInstructPix2PixPipeline", "channels"),
        ("StableDiffusionXLInstructPix2PixPipeline", "channels"),
        ("MarigoldDepthPipeline", "channels"),
        ("MarigoldNormalsPipeline", "channels"),
        ("StableDiffusionLatentUpscalePipeline", "channels"),
        ("StableDiffusionUpscalePipeline", "channels"),
        ("StableDiffusionDepth2ImgPipeline", "initial latent"),
    ],
)
def test_a_reference_that_never_enters_attention_is_refused(name: str, where: str) -> None:
    import diffusers

    assert hasattr(diffusers, name)
    pipeline = type(name, (), {})()
    with pytest.raises(UnsupportedModel, match=rf"{name} has no reference in its attention: the image .*{where}.*keys='text'"):
        refuse_pipeline(pipeline, "all")
    refuse_pipeline(pipeline, "text")


def test_a_pipeline_of_self_attention_only_is_refused() -> None:
    from diffusers import DDPMPipeline, UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    model = UNet2DModel(sample_size=8, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, attention_head_dim=2, **blocks)
    pipeline = DDPMPipeline(model, SCHEDULERS["ddim"]())
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises(UnsupportedModel, match="has no cross-attention in its denoiser"):
        record(pipeline, PATH, num_inference_steps=2)


def test_the_pipelines_own_progress_bar_waits(memory: type[MemoryWriter], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pipeline, call = text_to_image()
    pipeline.set_progress_bar_config(disable=False, desc="mine")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    record(pipeline, PATH, layers=MID, **call())
    assert pipeline._progress_bar_config == {"disable": False, "desc": "mine"}
    shown = capsys.readouterr().err
    assert "recording nowhere.zarr" in shown
    assert "3/3" in shown
    assert "mine" not in shown


def test_adapters_loaded_after_the_recording_began_are_seen(memory: type[MemoryWriter]) -> None:
    pipeline, call = ip_adapter("plain")
    arguments = call()
    with recording(pipeline, PATH, layers=MID):
        pipeline.unet._load_ip_adapter_weights([adapter_weights(pipeline.unet, "full")], low_cpu_mem_usage=False)
        pipeline(**arguments)
    assert [layer.tokens for layer in memory.last.trace.layers] == [7, 17]
