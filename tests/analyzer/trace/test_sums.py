"""Traces that hold maps only answer as those that hold the attention, and refuse what needs it in one sentence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from i2am.analyzer import available, g2r, get_recipe, judge, looks, open_trace, r2g, sram, token_map, word_map
from i2am.analyzer.cli.main import run
from i2am.analyzer.inspection.verify import verify
from i2am.analyzer.methods.recipes import RECIPES
from i2am.analyzer.sharing.copying import copy
from i2am.analyzer.sharing.packing import pack, unpack
from i2am.recorder.store.recovery import seal
from i2am.schema import CorruptTrace, InvalidInput, TraceRecord
from i2am.schema.arrays.sums import KeptSums
from i2am.schema.text import Text, Word
from tests.support.traces import Synthetic, reference_layer, synthetic_trace

OWN = (0, 1, 2, 4)
KEPT = ((), ("time", "layer", "head"))
RECIPE_FIELDS = {"clamp": False, "choose_heads": False, "factors": (), "skip": "", "reference_layers": ""}
"""Every recipe with these can be made of sums: what is resampled is not clamped, so that its order does not matter."""


def layers(encoding: str, frames: int = 0) -> tuple[Any, ...]:
    made = []
    for i, (grid, heads, specials) in enumerate([((8, 6), 2, 1), ((4, 3), 3, 1), ((8, 6), 2, 0)]):
        one = reference_layer(f"unet.up_blocks.{i}.attn2", grid, heads=heads, text=6, specials=specials, frames=frames)
        kept = KeptSums(OWN, ("mask",)) if encoding == "sums" else None
        made.append(dataclasses.replace(one, encoding=encoding, sums=kept))
    return tuple(made)


WORDS = (Word("a", 1, 2), Word("red", 2, 3), Word("dog", 3, 5))
TEXT = Text("text", "a red dog", ("<s>", "a", "red", "do", "g", "</s>"), WORDS)


def pair(folder: Path, frames: int = 0, **options: Any) -> tuple[Synthetic, Synthetic]:
    """The same run with factors, and with maps only."""
    common = {"encoding": None, "steps": 2, **options}
    made = [synthetic_trace(folder / f"{name}.zarr", layers=layers(name, frames), **common) for name in ("factors", "sums")]
    return made[0], made[1]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Synthetic, Synthetic]:
    return pair(tmp_path_factory.mktemp("sums"), absent={(1, 2)}, texts=[TEXT])


def same(ask: Callable[[Any], xr.DataArray], full: Synthetic, maps: Synthetic, rtol: float = 1e-6) -> None:
    expected, found = (ask(open_trace(made.path)).compute() for made in (full, maps))
    assert found.dims == expected.dims
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * float(np.nanmax(expected)))
    for name in expected.coords:
        assert np.array_equal(found[name], expected[name])


@pytest.mark.parametrize("keep", KEPT)
@pytest.mark.parametrize("name", RECIPES)
def test_maps_are_those_of_the_attention(both: tuple[Synthetic, Synthetic], name: str, keep: tuple[str, ...]) -> None:
    row = get_recipe(name, **RECIPE_FIELDS)
    same(lambda trace: r2g(trace, recipe=row, keep=keep), *both)
    if row.g2r != "none":
        same(lambda trace: g2r(trace, recipe=row, keep=keep), *both)
    if name == "i2am":
        same(lambda trace: r2g(trace, recipe=row, keep=keep, specials=False), *both)
        same(lambda trace: g2r(trace, recipe=row, keep=keep, query_mask="mask"), *both)
        same(lambda trace: g2r(trace, recipe=get_recipe(row, g2r="generated"), keep=keep, query_mask="mask"), *both)


@pytest.mark.parametrize("keep", KEPT)
def test_tokens_of_their_own_have_the_maps_of_the_attention_by_any_recipe(both: tuple[Synthetic, Synthetic], keep: tuple[str, ...]) -> None:
    for name, r in [
        ("daam", "keys"),
        ("daam", "generated"),
        ("attention-map-diffusers", "keys"),
        ("ovam", "keys"),
        ("i2am-official", "keys"),
    ]:
        row = get_recipe(name, r2g=r, factors=(), choose_heads=False, skip="")
        # P of such tokens is float16, as where all of it is kept.
        same(lambda trace, row=row: token_map(trace, [1, 4], recipe=row, keep=(*keep, "token")), *both, rtol=2**-11)
        same(lambda trace, row=row: token_map(trace, [0, 2], among=OWN, recipe=row, keep=keep), *both, rtol=2**-10)
    same(lambda trace: word_map(trace, "red", keep=keep), *both, rtol=2**-11)


def test_a_video_has_its_frames(tmp_path: Path) -> None:
    both = pair(tmp_path, frames=3)
    same(r2g, *both)
    same(lambda trace: g2r(trace, query_mask="mask", frames=None), *both)
    with pytest.raises(InvalidInput, match=r"maps only.*weight that was not recorded"):
        g2r(open_trace(both[1].path), frames=[1])


def test_what_needs_the_attention_is_refused_in_one_sentence(both: tuple[Synthetic, Synthetic]) -> None:
    trace = open_trace(both[1].path)
    asked: list[Callable[[], Any]] = [
        lambda: sram(trace, (2, 3)),
        lambda: looks(trace),
        lambda: trace.probabilities(0),
        lambda: trace.scores(0),
        lambda: trace.generated_softmax(0),
        lambda: g2r(trace, query_mask=np.eye(8, 6)),
        lambda: token_map(trace, [1, 3]),
        lambda: token_map(trace, [1], among=[1, 3]),
        lambda: word_map(trace, "dog"),
        lambda: r2g(trace, weight="norm"),
        lambda: r2g(trace, recipe="i2am-official"),
        lambda: r2g(trace, recipe=get_recipe("i2am", r2g="keys", renormalize=True)),
    ]
    for ask in asked:
        with pytest.raises(InvalidInput, match=r"the trace holds maps only.*record with keep='attention'"):
            ask()


def test_verify_holds_sums_to_their_law_and_finds_a_changed_byte(tmp_path: Path) -> None:
    made = synthetic_trace(tmp_path / "t.zarr", layers=layers("sums"), encoding=None, steps=2)
    report = verify(made.path)
    assert report.ok and report.column_lost < 1e-6
    file = next(made.path.glob("layers/000/position_sum/c.*"))
    file.write_bytes(file.read_bytes()[:-9] + b"x" + file.read_bytes()[-8:])
    assert not verify(made.path).ok


def test_packed_and_copied_maps_are_the_same(both: tuple[Synthetic, Synthetic], tmp_path: Path) -> None:
    made = both[1]
    pack(made.path, tmp_path / "p.zip", chunk_steps=4)
    unpack(tmp_path / "p.zip", tmp_path / "back.zarr")
    copy(made.path, tmp_path / "copy.zarr")
    whole = {name.relative_to(made.path): name.read_bytes() for name in made.path.rglob("*") if name.is_file()}
    for other in ("back.zarr", "copy.zarr"):
        same_files = all((tmp_path / other / name).read_bytes() == data for name, data in whole.items() if name.parts[0] == "layers")
        assert same_files
    for path in (tmp_path / "p.zip", tmp_path / "back.zarr"):
        for ask in (r2g, g2r, lambda trace: token_map(trace, [4])):  # of steps that share a file, sums over time are rounded together
            np.testing.assert_allclose(ask(open_trace(path)), ask(open_trace(made.path)), rtol=1e-6)
        assert verify(path).ok
    pack(made.path, tmp_path / "part.zarr", heads=[1], layers=[0, 2], steps=[1])
    assert np.array_equal(r2g(open_trace(tmp_path / "part.zarr")), r2g(open_trace(made.path), heads=1, layers=[0, 2], steps=[1]))
    with pytest.raises(InvalidInput, match="maps only, and another encoding or rounding"):
        pack(made.path, tmp_path / "rounded.zarr", keep_bits=5)


def test_xarray_opens_the_sums(both: tuple[Synthetic, Synthetic]) -> None:
    trace = open_trace(both[1].path)
    layer = trace.to_datatree()["layers/002"]
    assert np.array_equal(np.isnan(layer["position_sum"].values).all((-1, -2, -3, -4, -5))[0, 0], [False, True])
    total = layer["position_sum"].sel(softmax="keys").sum("segment").isel(step=0).values
    np.testing.assert_allclose(total, 1, rtol=1e-6)
    assert list(layer["weighting"].values) == ["", "mask"]


def test_what_is_said_of_such_a_trace_and_what_judges_it(
    both: tuple[Synthetic, Synthetic], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["info", str(both[1].path)]) == 0
    shown = capsys.readouterr().out
    assert "maps only: R2G, G2R, and maps of 4 tokens" in shown and "sums" in shown
    names = available(open_trace(both[1].path))
    assert "imacs_g" in names and not {"pck", "row_entropy", "copy_score"} & set(names)
    assert judge(open_trace(both[1].path), ["imacs_g", "imacs_r"]).keys() == {"imacs_g", "imacs_r"}
    for command in (
        ["diagnose"],
        ["view", "-o", str(tmp_path / "page.html")],
        ["pack", "-o", str(tmp_path / "p.zip"), "--keep-bits", "5"],
    ):
        assert run([*command, str(both[1].path)]) == 2
        assert "the trace holds maps only" in capsys.readouterr().err
    assert run(["report", str(both[1].path), "-o", str(tmp_path / "report.png")]) == 0


def test_the_committed_steps_of_an_interrupted_recording_are_maps_too(both: tuple[Synthetic, Synthetic], tmp_path: Path) -> None:
    made = synthetic_trace(tmp_path / "t.zarr", layers=layers("sums"), encoding=None, steps=2, planned=5, status="interrupted")
    partial = open_trace(made.path, partial=True)
    assert partial.record.version == 2
    expected = r2g(open_trace(both[1].path), steps=0).values
    np.testing.assert_array_equal(r2g(partial, steps=0), expected)
    seal(made.path)
    np.testing.assert_array_equal(r2g(open_trace(made.path), steps=0), expected)
    assert verify(made.path).ok


def test_a_mask_that_was_not_weighed_by_has_no_g2r(tmp_path: Path) -> None:
    one = dataclasses.replace(layers("sums")[0], sums=KeptSums())
    trace = open_trace(synthetic_trace(tmp_path / "t.zarr", layers=[one], encoding=None, steps=1).path)
    g2r(trace)
    with pytest.raises(InvalidInput, match=r"weight that was not recorded \(masks: none\)"):
        g2r(trace, query_mask="mask")


def test_earlier_releases_refuse_such_a_trace_and_no_other(both: tuple[Synthetic, Synthetic]) -> None:
    full, maps = (open_trace(made.path).record for made in both)
    assert (full.to_json()["version"], maps.to_json()["version"]) == (1, 2)
    assert "sums" not in full.to_json()["layers"][0]
    with pytest.raises(CorruptTrace, match="says format version 1, and its layers are of version 2"):
        TraceRecord.from_json({**maps.to_json(), "version": 1})
