"""Videos: frames before rows and columns, whether a transformer's sequence holds them or the rows of a UNet's batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import xarray as xr
from memory import MemoryWriter, memory
from pipelines_video import FRAMES, IMAGE_TOKENS, LATENT_FRAMES, VIDEO, animate, build, svd, wan_channels, wan_video
from spied import Spy, check_factors, check_probabilities

from i2am.analyzer import g2r, open_trace, r2g
from i2am.analyzer.inspection.verify import verify
from i2am.analyzer.maps.resampler import carry
from i2am.analyzer.numerics.resize import resize
from i2am.recorder import record
from i2am.recorder.capture.call import Call
from i2am.recorder.images.pictures import generated_pictures
from i2am.recorder.labels.frames import frames_in_rows, whole_video
from i2am.schema.errors import UnsupportedModel
from i2am.schema.trace import Layer

__all__ = ["memory"]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]

PATH = Path("nowhere.zarr")
SEQUENTIAL = ("wan",)
"""Families that guide in two passes, cond first; the others hold both in one, uncond first."""


def call_of(family: str, spy: Spy, layer: Layer, at: tuple[int, str, int], samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Query (head, frame y x, channel) and key (head, token, channel) of one (sample, branch, step), put together place by place."""
    sample, branch, step = at
    frames, (rows, columns) = layer.frames, layer.grid
    if family.startswith(SEQUENTIAL):
        passes = spy.calls[layer.path]
        # The image's keys are asked before the text's, but are the layer's second call.
        calls = passes[(step - passes_before(layer)) * 2 + (branch == "uncond")]
        query, key, _ = calls[-1 - layer.call]
        return query[sample], key[min(sample, len(key) - 1)]
    query, key, _ = spy.calls[layer.path][step][layer.call]
    guided = family != "svd-unguided"
    video = sample + (samples if guided and branch == "cond" else 0)
    whole = torch.empty(query.shape[1], frames, rows, columns, query.shape[3])
    temporal = "temporal" in layer.path
    for frame in range(frames):
        for y in range(rows):
            for x in range(columns):
                place = y * columns + x
                row, position = (video * rows * columns + place, frame) if temporal else (video * frames + frame, place)
                whole[:, frame, y, x] = query[row, :, position]
    first = video * (rows * columns if temporal else frames)
    return whole.flatten(1, 3), key[first]


def passes_before(layer: Layer) -> int:
    """Steps before a denoiser took over: of Wan's two the second does after one."""
    return 1 if layer.path.startswith("transformer_2") else 0


@pytest.mark.parametrize("family", VIDEO)
@pytest.mark.parametrize("encoding", ["factors", "probabilities"])
def test_what_is_kept_of_a_video_is_the_models_own(family: str, encoding: str, memory: type[MemoryWriter]) -> None:
    pipeline, call = build(family)
    spy = Spy(pipeline)
    with spy:
        plain = np.asarray(pipeline(**call()).frames)
    branches = "cond" if family == "svd-unguided" else "both"
    recorded = record(pipeline, PATH, encoding=encoding, branches=branches, **call())
    assert np.array_equal(plain, np.asarray(recorded.frames))

    trace, samples = memory.last.trace, len(plain)
    assert trace.samples == samples
    assert {layer.path for layer in trace.layers} == set(spy.calls)
    assert {layer.frames for layer in trace.layers} == {LATENT_FRAMES if family.startswith("wan") else FRAMES}
    assert {layer.encoding for layer in trace.layers} == {encoding}
    for (index, *at), blocks in memory.last.blocks.items():
        layer = trace.layers[index]
        query, key = call_of(family, spy, layer, tuple(at), samples)  # type: ignore[arg-type]
        check = check_factors if encoding == "factors" else check_probabilities
        check(blocks, layer, query, key, key)
    expected = len(trace.layers) * samples * len(trace.branches) * len(memory.last.commits)
    assert len(memory.last.blocks) == (expected if family != "wan-denoisers" else expected // 2)


@pytest.mark.parametrize(
    ("family", "names", "images"),
    [
        ("wan-first", [("reference", 0)], {"reference": (48, 32, (8.0, 0.0, 40.0, 32.0))}),
        (
            "wan-first-last",
            [("reference_0", 0), ("reference_1", IMAGE_TOKENS)],
            {"reference_0": (48, 32, (8.0, 0.0, 40.0, 32.0)), "reference_1": (32, 48, (0.0, 8.0, 32.0, 40.0))},
        ),
        # The whole picture is stretched to the encoder's square, whatever its processor is set to.
        ("svd", [("reference", 0)], {"reference": (24, 16, None)}),
        ("animate", [("reference", 0)], {"reference": (48, 32, (8.0, 0.0, 40.0, 32.0))}),
    ],
)
def test_references_are_tied_to_the_pictures_they_were_made_of(
    family: str, names: list[tuple[str, int]], images: dict[str, Any], memory: type[MemoryWriter]
) -> None:
    pipeline, call = build(family)
    record(pipeline, PATH, keys="reference", **call())
    found = {image.name: (image.height, image.width, image.window) for image in memory.last.trace.images if image.role == "reference"}
    assert found == images
    for layer in memory.last.trace.layers:
        assert [(group.name, group.start) for group in layer.groups] == names
        assert all(group.image == group.name for group in layer.groups)
    given = call()
    values = [given[name] for name in ("image", "last_image", "ip_adapter_image") if name in given]
    for name, value in zip(images, values, strict=True):
        assert np.array_equal(memory.last.images[name], np.asarray(value))


@pytest.mark.parametrize("family", ["svd", "wan-first"])
@pytest.mark.parametrize("kind", ["np", "pil", "pt"])
@pytest.mark.parametrize("named", [True, False])
def test_a_video_is_kept_as_one_picture_with_frames(family: str, kind: str, named: bool, memory: type[MemoryWriter]) -> None:
    pipeline, call = build(family)
    output = record(pipeline, PATH, output_type=kind, return_dict=named, **{k: v for k, v in call().items() if k != "output_type"})
    video = output.frames if named else output if family == "svd" else output[0]
    frames = [np.asarray(frame) for frame in (video[0].permute(0, 2, 3, 1) if kind == "pt" else video[0])]
    truth = np.stack(frames if kind == "pil" else [(frame * 255).round().astype(np.uint8) for frame in frames])
    image = next(image for image in memory.last.trace.images if image.name == "generated_0")
    assert (image.frames, image.height, image.width) == truth.shape[:3]
    assert np.array_equal(memory.last.images["generated_0"], truth)


def test_a_video_is_read_without_i2am(tmp_path: Path) -> None:
    pipeline, call = svd()
    path = tmp_path / "video.zarr"
    video = record(pipeline, path, layers="*mid_block*.transformer_blocks*", **call()).frames[0]
    layer = xr.open_zarr(path, group="layers/000")
    assert layer.probability.dims == ("sample", "branch", "step", "head", "frame", "y", "x", "token")
    assert layer.frame.values.tolist() == [1 / 6, 3 / 6, 5 / 6]
    assert (layer.probability == 1).all()  # one token takes it all
    images = xr.open_zarr(path, group="images")
    assert images.generated_0.dims == ("generated_0_frame", "generated_0_y", "generated_0_x", "rgb")
    assert np.array_equal(images.generated_0, (video * 255).round().astype(np.uint8))


def test_latents_and_single_frames_are_no_videos() -> None:
    assert generated_pictures(torch.zeros(1, 3, 4, 2, 2), "latent") == []
    ((image, pixels),) = generated_pictures([[PIL.Image.new("RGB", (4, 2))]])
    assert (image.frames, pixels.shape) == (0, (2, 4, 3))


@pytest.mark.parametrize("family", ["svd", "wan-video"])
def test_nothing_is_mirrored_or_moved_in_time(family: str, memory: type[MemoryWriter]) -> None:
    """A change of the latent in the upper right of its last frame is seen there in the queries of the first layer."""
    pipeline, call = svd(frames=4, num_inference_steps=1) if family == "svd" else wan_video(frames=13)
    shape = (1, 4, 8, 8, 16) if family == "svd" else (1, 16, 4, 4, 6)
    shape = (1, 4, 4, 8, 16) if family == "svd" else shape  # (video, frame, channel, y, x) or (video, channel, frame, y, x)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    changed = latents.clone()
    spot = (slice(None), 3, slice(None), slice(0, 2), slice(-2, None))
    changed[spot if family == "svd" else (slice(None), slice(None), *spot[1:2], *spot[3:])] += 3
    seen = []
    for start in (latents, changed):
        record(pipeline, PATH, encoding="factors", steps=[0], latents=start, **call())
        seen.append(memory.last.blocks[0, 0, "cond", 0]["query"])
    difference = np.linalg.norm(seen[1] - seen[0], axis=-1).sum(0)  # (frame, y, x)
    frame, y, x = np.unravel_index(difference.argmax(), difference.shape)
    assert (frame, y) == (3, 0)
    assert x >= difference.shape[2] - 2


def test_one_frame_is_an_image(memory: type[MemoryWriter]) -> None:
    pipeline, call = svd(frames=1, guidance=1.0)
    plain = pipeline(**call()).frames
    assert np.array_equal(plain, record(pipeline, PATH, encoding="factors", **call()).frames)
    assert {layer.places for layer in memory.last.trace.layers} == {(8, 16), (4, 8)}
    assert memory.last.trace.images[0].frames == 0


def nudge(size: float, after: int = 0) -> Any:
    """A hook that changes the keys of the second frame, from the given call on."""
    calls = []

    def hook(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        if len(calls) <= after:
            return output
        output = output.clone()
        output[1::FRAMES] *= 1 + size
        return output

    return hook


def test_keys_that_rounding_tells_apart_are_kept_as_probabilities(memory: type[MemoryWriter]) -> None:
    pipeline, call = animate()
    site = "mid_block.attentions.0.transformer_blocks.0.attn2"
    handle = pipeline.unet.get_submodule(f"{site}.to_k").register_forward_hook(nudge(2**-22))
    record(pipeline, PATH, encoding="factors", **call())
    handle.remove()
    found = {layer.name: layer.encoding for layer in memory.last.trace.layers}
    assert [name for name, encoding in found.items() if encoding == "probabilities"] == [f"unet.{site}"]


@pytest.mark.parametrize("after", [0, 2])
def test_keys_of_their_own_for_each_frame_are_refused(after: int, memory: type[MemoryWriter]) -> None:
    pipeline, call = animate()
    site = "mid_block.attentions.0.transformer_blocks.0.attn2"
    handle = pipeline.unet.get_submodule(f"{site}.to_k").register_forward_hook(nudge(0.1, after))
    with pytest.raises(UnsupportedModel, match=r"the keys of unet.mid_block.*differ from frame to frame.*give all frames the same"):
        record(pipeline, PATH, **call())
    handle.remove()


def rows(path: str, count: int, positions: int, mask: torch.Tensor | None = None) -> Call:
    query, key = torch.randn(count, 2, positions, 4), torch.randn(1, 2, 3, 4).expand(count, 2, 3, 4)
    return Call(path=path, projection="to_v", query=query, key=key, scale=0.5, mask=mask, around=(2, 3))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (rows("unet.attentions.0.attn2", 7, 6), "attends from 6 positions in 7 rows"),
        (rows("unet.attentions.0.attn2", 8, 5), "attends from 5 positions in 8 rows"),
        (rows("unet.temporal_transformer_blocks.0.attn2", 8, 6), "attends from 6 positions in 8 rows"),
        (rows("unet.attentions.0.attn2", 8, 6, torch.zeros(8, 1, 1, 3)), "has a mask for each row"),
    ],
)
def test_rows_that_are_neither_frames_nor_places_are_refused(call: Call, says: str) -> None:
    with pytest.raises(UnsupportedModel, match=rf"{says}, which is not how 4 frames of 2 x 3 places"):
        whole_video(call, 4)


def test_a_layer_that_nothing_lays_out_is_left_to_say_so() -> None:
    call = replace(rows("unet.attn2", 8, 6), around=None)
    assert whole_video(call, 4) is call
    assert frames_in_rows(torch.nn.Linear(1, 1), torch.zeros(1, 2, 3, 4, 5)) == 0


def test_a_first_frame_that_is_in_the_channels_only_is_refused(memory: type[MemoryWriter]) -> None:
    pipeline, call = wan_channels()
    with pytest.raises(UnsupportedModel, match=r"the image goes into the latent, as channels or as its first frame.*keys='text'"):
        record(pipeline, PATH, **call())
    record(pipeline, PATH, keys="text", **call())
    (layer,) = memory.last.trace.layers
    assert (layer.places, layer.groups[0].role) == ((2, 2, 3), "text")
    assert {image.name: image.role for image in memory.last.trace.images} == {"generated_0": "generated", "input": "input"}


def test_a_frame_that_is_given_does_not_hide_the_timestep(memory: type[MemoryWriter]) -> None:
    pipeline, call = wan_channels(latent=True)
    plain = pipeline(**call()).frames
    assert np.array_equal(plain, record(pipeline, PATH, keys="text", encoding="factors", **call()).frames)
    assert [commit["timestep"] for commit in memory.last.commits] == pipeline.scheduler.timesteps.tolist()


def test_tokens_of_a_video_are_carried_back_to_patches(tmp_path: Path) -> None:
    pipeline, call = animate("plus")
    plain = pipeline(**call()).frames
    assert np.array_equal(plain, record(pipeline, tmp_path / "run.zarr", keys="reference", **call()).frames)
    trace = open_trace(tmp_path / "run.zarr")
    assert trace.latent_places == (FRAMES, 16, 12)
    used = g2r(trace, frames=[0, 2]).compute()
    assert (used.dims, carry(trace, used).dims) == (("token",), ("ref_y", "ref_x"))


def test_fused_projections_are_told_apart(memory: type[MemoryWriter]) -> None:
    pipeline, call = wan_video(first=True)
    pipeline.transformer.fuse_qkv_projections()
    assert hasattr(pipeline.transformer.blocks[0].attn2, "to_added_kv")
    spy = Spy(pipeline)
    with spy:
        plain = pipeline(**call()).frames
    assert np.array_equal(plain, record(pipeline, PATH, encoding="factors", **call()).frames)
    assert {layer.call: layer.groups[0].role for layer in memory.last.trace.layers} == {0: "text", 1: "reference"}
    for (index, *_, step), blocks in memory.last.blocks.items():
        layer = memory.last.trace.layers[index]
        query, key = call_of("wan-first", spy, layer, (0, "cond", step), 1)
        check_factors(blocks, layer, query, key, key)


@pytest.mark.parametrize("encoding", ["factors", "probabilities"])
@pytest.mark.parametrize(("family", "group"), [("wan-first-last", "reference_1"), ("wan-first", None), ("svd", None), ("animate", None)])
def test_maps_of_a_recorded_video_equal_the_models_attention(family: str, group: str | None, encoding: str, tmp_path: Path) -> None:
    """From pipeline to map, against float64 sums over what an independent spy saw."""
    pipeline, call = build(family)
    spy = Spy(pipeline)
    with spy:
        pipeline(**call())
    record(pipeline, tmp_path / "run.zarr", encoding=encoding, keys="reference", **call())
    trace = open_trace(tmp_path / "run.zarr")
    whole, used, pairs = 0.0, 0.0, 0
    for layer in trace.layers:
        tokens = next(each for each in layer.groups if group in (None, each.name))
        for step in range(len(trace.present)):
            query, key = (each.double() for each in call_of(family, spy, layer, (0, "cond", step), 1))
            scores = query @ key.transpose(1, 2) * layer.scale
            spatial = scores.softmax(1)[..., tokens.start : tokens.stop].mean(-1).reshape(layer.heads, *layer.places).numpy()
            whole += np.maximum(resize(spatial, trace.latent_grid), 0).sum(0)
            used += scores.softmax(2)[..., tokens.start + tokens.specials : tokens.stop].mean(1).sum(0).numpy()
        pairs += layer.heads
    tolerance = 1e-5 if encoding == "factors" else 2e-3
    found = r2g(trace, group=group)
    assert found.dims == ("frame", "y", "x")
    np.testing.assert_allclose(found, whole / pairs, rtol=tolerance, atol=tolerance * np.max(whole / pairs))
    np.testing.assert_allclose(np.ravel(g2r(trace, group=group)), np.ravel(used / pairs), rtol=tolerance, atol=1e-7)
    assert verify(trace.path).ok
