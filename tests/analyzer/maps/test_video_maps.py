"""Maps of videos: a frame axis before rows and columns, held to float64 loops over what was recorded."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from i2am.analyzer import g2r, open_trace, r2g, sram
from i2am.analyzer.maps.attribution import token_map
from i2am.analyzer.numerics.resize import resize
from i2am.analyzer.trace.reader import Trace
from i2am.schema.errors import InvalidInput, UnknownSelection
from traces import Synthetic, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

LATENT = (6, 4)
FRAMES = 3
LAYERS = (
    reference_layer("down.attn2", (6, 4), heads=2, text=4, frames=FRAMES),
    reference_layer("mid.attn2", (3, 2), heads=3, frames=FRAMES),
    reference_layer("up.attn2", (6, 4), heads=2, hidden=3, frames=FRAMES),
)
ENCODINGS = ["probabilities", "factors"]


def make(path: Path, encoding: str = "factors", **options: Any) -> Synthetic:
    given: dict[str, Any] = {"layers": LAYERS, "steps": 3, "latent_grid": LATENT, "image_size": (24, 16), "frames": 9, **options}
    return synthetic_trace(path, encoding=encoding, **given)


@pytest.fixture(scope="module", params=ENCODINGS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return make(tmp_path_factory.mktemp("video") / "run.zarr", request.param, samples=2, branches=("cond", "uncond"), absent={(1, 1)})


@pytest.fixture(scope="module")
def trace(made: Synthetic) -> Trace:
    return open_trace(made.path)


def near(found: Any, truth: np.ndarray, made: Synthetic) -> None:
    # What float16 loses of P is the encoding's; the oracle has the exact numbers.
    tolerance = 1e-5 if made.trace.layers[0].encoding == "factors" else 2e-3
    np.testing.assert_allclose(np.asarray(found), truth, rtol=tolerance, atol=tolerance * np.nanmax(np.abs(truth)))


def calls(made: Synthetic, softmax: str, at: tuple[int, int] = (0, 0)) -> list[tuple[int, int, np.ndarray]]:
    """(layer, step, reference tokens' softmax (head, frame, y, x, token)) of every call that happened."""
    found = []
    for index, layer in enumerate(made.trace.layers):
        group = next(g for g in layer.groups if g.name == "reference")
        for step in range(3):
            values = getattr(made, softmax)[index][(*at, step)][..., group.start : group.stop]
            if not np.isnan(values).any():
                found.append((index, step, values))
    return found


def pooled(maps: list[tuple[int, np.ndarray]], made: Synthetic) -> np.ndarray:
    """Sums over calls of (head, ...) maps, then the mean over (layer, head) pairs."""
    total = np.sum([values.sum(0) for _, values in maps], 0)
    return np.asarray(total / sum(layer.heads for layer in made.trace.layers))


@pytest.mark.parametrize("at", [(0, 0), (1, 1)])
def test_r2g_has_the_frames_of_the_latent(made: Synthetic, trace: Trace, at: tuple[int, int]) -> None:
    found = r2g(trace, sample=at[0], branch=("cond", "uncond")[at[1]])
    assert found.dims == ("frame", "y", "x")
    assert found.shape == (FRAMES, *LATENT)
    assert found.frame.values.tolist() == [1 / 6, 3 / 6, 5 / 6]
    maps = [(layer, np.maximum(resize(values.mean(-1), LATENT), 0)) for layer, _, values in calls(made, "generated", at)]
    near(found, pooled(maps, made), made)


def test_g2r_is_the_mean_over_the_places_of_all_frames(made: Synthetic, trace: Trace) -> None:
    found = g2r(trace)
    assert found.dims == ("ref_y", "ref_x")
    maps = [(i, values[..., 1:].mean((1, 2, 3)).reshape(-1, 3, 5)) for i, _, values in calls(made, "probabilities")]
    near(found, pooled(maps, made), made)


@pytest.mark.parametrize("frames", [1, [0, 2], slice(1, None), [True, False, True]])
def test_g2r_of_some_frames_is_their_mean(frames: Any, made: Synthetic, trace: Trace) -> None:
    picked = np.atleast_1d(np.arange(FRAMES)[frames])
    maps = [(i, values[:, picked][..., 1:].mean((1, 2, 3)).reshape(-1, 3, 5)) for i, _, values in calls(made, "probabilities")]
    found = g2r(trace, frames=frames)
    assert found.attrs["frames"] == picked.tolist()
    near(found, pooled(maps, made), made)
    shown = r2g(trace, frames=frames)
    xr.testing.assert_equal(shown, r2g(trace).isel(frame=picked.tolist()))
    assert shown.attrs["frames"] == picked.tolist()


def test_frames_together_with_a_mask(made: Synthetic, trace: Trace) -> None:
    mask = made.images["mask"][..., 0] / 255
    maps = []
    for i, _, values in calls(made, "probabilities"):
        weights = resize(mask, made.trace.layers[i].grid, "nearest")
        maps.append((i, (values[:, 1, ..., 1:] * weights[..., None]).mean((1, 2)).reshape(-1, 3, 5)))
    near(g2r(trace, frames=1, query_mask="mask"), pooled(maps, made), made)
    near(g2r(trace, frames=1, query_mask=mask), pooled(maps, made), made)
    # A mask of frames: the middle one alone, which the latent's middle frame stands for.
    video = np.zeros((9, 24, 16))
    video[4] = mask
    near(g2r(trace, query_mask=video), pooled(maps, made) / FRAMES, made)


@pytest.mark.parametrize("at", [(0, 0, 0), (2, 5, 3), (1, 3, 2)])
def test_sram_is_one_place_of_one_frame(at: tuple[int, int, int], made: Synthetic, trace: Trace) -> None:
    maps = []
    for i, _, values in calls(made, "probabilities"):
        rows, columns = made.trace.layers[i].grid
        maps.append((i, values[:, at[0], at[1] * rows // 6, at[2] * columns // 4, 1:].reshape(-1, 3, 5)))
    found = sram(trace, at)
    assert found.attrs["at"] == at
    near(found, pooled(maps, made), made)


def test_kept_axes_stand_before_frames(made: Synthetic, trace: Trace) -> None:
    kept = r2g(trace, keep=("time", "layer", "head"))
    assert kept.dims == ("time", "layer", "head", "frame", "y", "x")
    _, _, values = next(c for c in calls(made, "generated") if c[:2] == (1, 2))
    near(kept.isel(time=2, layer=1, head=slice(0, 3)), np.maximum(resize(values.mean(-1), LATENT), 0), made)
    time = r2g(trace, keep="time", time_groups=2)
    np.testing.assert_allclose(time.isel(time=0), r2g(trace, steps=slice(0, 2)), rtol=1e-12)


def test_tokens_of_a_prompt_have_maps_of_frames(made: Synthetic, trace: Trace) -> None:
    found = token_map(trace, [1, 3], keep="token", layers="down*", recipe="i2am")
    assert found.dims == ("token", "frame", "y", "x")
    values = made.generated[0][0, 0].sum(0).mean(0)  # (frame, y, x, token)
    near(found, np.moveaxis(values[..., [1, 3]], -1, 0), made)


@pytest.mark.parametrize("kind", ["probabilities", "scores", "generated_softmax"])
def test_attention_is_handed_out_with_its_frames(kind: str, made: Synthetic, trace: Trace) -> None:
    found = getattr(trace, kind)(2)
    assert found.dims == ("sample", "branch", "step", "head", "frame", "y", "x", "token")
    truth = getattr(made, {"generated_softmax": "generated"}.get(kind, kind))[2]
    tolerance = 1e-5 if made.trace.layers[0].encoding == "factors" else 2e-3
    np.testing.assert_allclose(found, truth, rtol=tolerance, atol=1e-3 if kind == "scores" else 1e-7)
    picked = found.isel(frame=[2, 0], y=slice(1, 3), x=2, head=1, step=[2])
    np.testing.assert_allclose(
        picked, truth[:, :, 2:, 1][..., [2, 0], :, :, :][..., 1:3, 2, :], rtol=tolerance, atol=1e-3 if kind == "scores" else 1e-7
    )


def test_rows_of_p_and_columns_of_g_sum_to_1_over_all_frames(trace: Trace) -> None:
    np.testing.assert_allclose(trace.probabilities(1).isel(step=0).sum("token"), 1, atol=1e-3)
    np.testing.assert_allclose(trace.generated_softmax(1).isel(step=0).sum(("frame", "y", "x")), 1, atol=1e-3)


def test_blocks_are_indexed_as_they_are_stored(made: Synthetic, trace: Trace) -> None:
    names = {"probabilities": ("probability", "query_lse", "token_lse"), "factors": ("query", "query_lse")}[made.trace.layers[2].encoding]
    for name in names:
        blocks = trace.blocks(2, name)
        stored = xr.open_zarr(made.path, group="layers/002", mask_and_scale=False)[name].values
        assert blocks.shape == stored.shape
        assert np.array_equal(blocks[1, 0, 2], stored[1, 0, 2])
        if "frame" in blocks.plan.dims:
            assert np.array_equal(blocks[1, 0, 2, :, [2, 0], 1], stored[1, 0, 2][:, [2, 0], 1])


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("shard", "chunk"), [(1 << 20, 1 << 20), (1500, 400), (700, 700), (100, 100)])
def test_maps_do_not_depend_on_how_files_are_cut(
    encoding: str, shard: int, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole videos, some frames, some rows of a frame, with inner chunks of the same kinds."""
    plan = import_module("i2am.schema.arrays.array")
    monkeypatch.setattr(plan, "SHARD_BYTES", shard)
    monkeypatch.setattr(plan, "CHUNK_BYTES", (chunk, chunk))
    layers = [reference_layer("a", (6, 4), heads=2, reference=(2, 2), frames=4)]
    made = make(tmp_path / "t.zarr", encoding, layers=layers, steps=1)
    trace = open_trace(made.path)
    truth = made.generated[0][0, 0, 0].mean((0, -1))
    near(r2g(trace), truth, made)
    near(g2r(trace), made.probabilities[0][0, 0, 0][..., 1:].mean((0, 1, 2, 3)).reshape(2, 2), made)
    near(sram(trace, (3, 4, 1)), made.probabilities[0][0, 0, 0][:, 3, 4, 1, 1:].mean(0).reshape(2, 2), made)
    near(trace.probabilities(0), made.probabilities[0], made)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_layers_with_fewer_frames_are_brought_to_those_with_most(encoding: str, tmp_path: Path) -> None:
    layers = [reference_layer("a", (6, 4), frames=4), reference_layer("b", (3, 2), frames=2), reference_layer("c", (6, 4))]
    made = make(tmp_path / "t.zarr", encoding, layers=layers, steps=1)
    trace = open_trace(made.path)
    fine, coarse, still = (made.generated[i][0, 0, 0].mean(-1) for i in range(3))
    coarse = resize(coarse, LATENT)
    coarse = np.moveaxis(resize(np.moveaxis(coarse, 1, -1), (4, 4)), -1, 1)  # frames as the last axis, x untouched
    maps = [(0, fine), (1, np.maximum(coarse, 0)), (2, np.repeat(still[:, None], 4, 1))]
    near(r2g(trace), pooled(maps, made), made)
    places = [np.s_[:, 3, 5, 1, 1:], np.s_[:, 1, 2, 0, 1:], np.s_[:, 5, 1, 1:]]
    patches = [made.probabilities[i][0, 0, 0][place].reshape(-1, 3, 5) for i, place in enumerate(places)]
    near(sram(trace, (3, 5, 1)), pooled(list(enumerate(patches)), made), made)
    with pytest.raises(InvalidInput, match=r"in those of the map, 4, and layer b has 2; select layers"):
        g2r(trace, frames=1)


def test_an_unfinished_video_opens_with_its_committed_steps(tmp_path: Path) -> None:
    made = make(tmp_path / "t.zarr", steps=2, planned=5, status="recording")
    trace = open_trace(made.path, partial=True)
    maps = [(i, np.maximum(resize(v.mean(-1), LATENT), 0)) for i, _, v in calls_of(made, 2)]
    near(r2g(trace), pooled(maps, made), made)


def calls_of(made: Synthetic, steps: int) -> list[tuple[int, int, np.ndarray]]:
    groups = [next(g for g in layer.groups if g.name == "reference") for layer in made.trace.layers]
    return [(i, s, made.generated[i][0, 0, s][..., g.start : g.stop]) for i, g in enumerate(groups) for s in range(steps)]


def test_what_a_video_has_not_is_said(trace: Trace, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"a patch is \(frame, row, column\) on the latent grid of 3 x 6 x 4, got \(1, 2\)"):
        sram(trace, (1, 2))
    with pytest.raises(UnknownSelection, match=r"no patch \(3, 0, 0\); frames are 0 to 2 from the start, rows 0 to 5 from the top"):
        sram(trace, (3, 0, 0))
    with pytest.raises(UnknownSelection, match="the trace has no frame 7; it has 0 to 2"):
        g2r(trace, frames=7)
    with pytest.raises(
        InvalidInput, match=r"expected \(rows, columns\) .* 6 x 4 or 24 x 16, for all frames or with as many as 3 or 9 before"
    ):
        g2r(trace, query_mask=np.ones((2, 24, 16)))
    image = open_trace(synthetic_trace(tmp_path / "image.zarr", steps=1).path)
    with pytest.raises(InvalidInput, match="the trace is of an image, which has no frames; leave out frames="):
        r2g(image, frames=0)
    with pytest.raises(InvalidInput, match=r"a patch is \(row, column\) on the latent grid of 8 x 6, got \(0, 1, 2\)"):
        sram(image, (0, 1, 2))
