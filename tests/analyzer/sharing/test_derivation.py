"""Smaller traces made of others: maps of what was kept are those of the source, and what was rounded or computed says so."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from i2am.analyzer import g2r, open_trace, pack, r2g, sram
from i2am.analyzer.inspection.verify import verify
from i2am.analyzer.sharing.origin import round_mantissa
from i2am.schema import Codec, InvalidInput, UnknownSelection
from i2am.schema.codec import decode_probability, encode_probability
from traces import default_layers, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer


@pytest.mark.parametrize("encoding", ["probabilities", "factors"])
@pytest.mark.parametrize("static_keys", [True, False])
@pytest.mark.parametrize(
    ("kept", "selected"),
    [
        ({"steps": 3}, {"steps": 3}),
        ({"steps": "1:7:2"}, {"steps": [1, 3, 5]}),
        ({"layers": "*up_blocks*"}, {"layers": 2}),
        ({"heads": [1]}, {"heads": [1]}),
        ({"layers": [0, 1], "heads": "1:", "steps": "::3"}, {"layers": [0, 1], "heads": "1:", "steps": "::3"}),
    ],
    ids=str,
)
def test_maps_are_those_of_the_source_with_the_same_selection(
    tmp_path: Path, encoding: str, static_keys: bool, kept: dict[str, Any], selected: dict[str, Any]
) -> None:
    made = synthetic_trace(
        tmp_path / "t.zarr", steps=8, encoding=encoding, static_keys=static_keys, branches=("cond", "uncond"), absent={(0, 1), (5, 1)}
    )
    source, small = open_trace(made.path), open_trace(pack(made.path, tmp_path / "p.zip", chunk_steps=3, **kept).path)
    for branch in ("cond", "uncond"):
        for find in (r2g, g2r):
            np.testing.assert_allclose(find(small, branch=branch), find(source, branch=branch, **selected), rtol=1e-6)
        at = sram(source, at=(2, 3), branch=branch, **selected)
        np.testing.assert_allclose(sram(small, at=(2, 3), branch=branch), at, rtol=1e-6)
    assert verify(tmp_path / "p.zip").ok
    said = small.record.provenance["derived"][-1]
    assert said["trace"] == source.id != small.id
    assert said["manifest_sha256"] == hashlib.sha256((made.path / "manifest.json").read_bytes()).hexdigest()
    assert set(said["options"]) == set(kept)


def test_what_a_trace_was_derived_from_is_told_in_order(tmp_path: Path) -> None:
    synthetic_trace(tmp_path / "t.zarr", steps=8)
    one = pack(tmp_path / "t.zarr", tmp_path / "1.zip", steps="::2").record
    two = pack(tmp_path / "1.zip", tmp_path / "2.zip", heads=0, keep_bits=6).record
    assert [each["trace"] for each in two.provenance["derived"]] == [open_trace(tmp_path / "t.zarr").id, one.id]
    assert two.provenance["derived"][1]["options"] == {"heads": [0], "keep_bits": 6}
    assert pack(tmp_path / "1.zip", tmp_path / "3.zip", heads=0, keep_bits=6).record.id == two.id
    assert (tmp_path / "2.zip").read_bytes() == (tmp_path / "3.zip").read_bytes()


def test_heads_keep_the_models_numbers_and_layers_without_any_are_left_out(tmp_path: Path) -> None:
    synthetic_trace(tmp_path / "t.zarr", steps=2)  # of 2, 4 and 2 heads
    small = open_trace(pack(tmp_path / "t.zarr", tmp_path / "p.zip", heads=[2, 3]).path)
    assert [(layer.name, layer.heads_kept, layer.model_heads) for layer in small.layers] == [(default_layers()[1].name, (2, 3), 4)]
    with pytest.raises(UnknownSelection, match="head 1 was not recorded"):
        pack(tmp_path / "p.zip", tmp_path / "q.zip", heads=[1])


@pytest.mark.parametrize("hidden", [0, 3])
@pytest.mark.parametrize("frames", [0, 2])
def test_probabilities_from_factors_are_those_of_the_oracle(tmp_path: Path, hidden: int, frames: int) -> None:
    layers = [reference_layer("unet.a.attn2", hidden=hidden, frames=frames), reference_layer("unet.b.attn2", (2, 5), heads=3)]
    made = synthetic_trace(tmp_path / "t.zarr", layers=layers, steps=5, encoding="factors", absent={(1, 0)}, static_keys=False)
    pack(made.path, tmp_path / "p.zip", encoding="probabilities", chunk_steps=2)
    found = open_trace(tmp_path / "p.zip")
    for index in range(2):
        want, there = made.probabilities[index], ~np.isnan(made.probabilities[index])
        stored = found.blocks(index, "probability")[...]
        np.testing.assert_array_equal(np.isnan(stored), ~there)
        off = np.abs(stored[there].view(np.int16).astype(int) - encode_probability(want)[there].view(np.int16).astype(int))
        assert off.max() <= 1  # where float32 rounds before float16 does
        called = ~np.isnan(found.blocks(index, "query_lse")[...])
        np.testing.assert_allclose(found.blocks(index, "query_lse")[...][called], made.query_lse[index][called], rtol=1e-6)
        tokens = found.blocks(index, "token_lse")[...]
        np.testing.assert_allclose(tokens[~np.isnan(tokens)], made.token_lse[index][~np.isnan(tokens)], rtol=1e-6, atol=1e-6)
        assert found.layers[index].column_mass_lost == pytest.approx(_lost(made, index, decode_probability(stored)), abs=1e-6)
    assert verify(tmp_path / "p.zip").ok


def _lost(made: Any, index: int, probability: np.ndarray) -> float:
    """Worst distance of a column of G, as decoded, from 1."""
    layer = made.trace.layers[index]
    shape = (*probability.shape[:4], -1, layer.tokens)
    shift = made.query_lse[index].reshape(shape[:-1])[..., None] - made.token_lse[index][..., None, :]
    columns = (probability.reshape(shape) * np.exp(shift)).sum(-2)
    return float(np.nanmax(np.abs(1 - columns)))


@pytest.mark.parametrize("bits", [1, 5, 9])
def test_rounding_is_to_nearest_and_half_to_even(bits: int) -> None:
    numbers = np.arange(0x7C00, dtype=np.uint16).view(np.float16)  # every finite one that is not negative
    exponents = np.maximum(np.floor(np.log2(np.maximum(numbers.astype(np.float64), 2.0**-24))), -14)
    unit = 2.0 ** (exponents - bits)
    want = np.round(numbers.astype(np.float64) / unit) * unit
    np.testing.assert_array_equal(round_mantissa(numbers, bits).astype(np.float64), np.where(want > 65504, np.inf, want))
    assert np.isnan(round_mantissa(np.array([np.nan], np.float16), bits)).all()


def test_rounded_probabilities_say_so_and_what_it_cost(tmp_path: Path) -> None:
    made = synthetic_trace(tmp_path / "t.zarr", steps=3)
    rounded = open_trace(pack(made.path, tmp_path / "p.zip", keep_bits=4).path)
    assert rounded.record.codec.keep_bits == 4
    for index in range(3):
        stored = rounded.blocks(index, "probability")[...]
        np.testing.assert_array_equal(stored, round_mantissa(encode_probability(made.probabilities[index]), 4))
        assert rounded.layers[index].column_mass_lost == pytest.approx(_lost(made, index, decode_probability(stored)), abs=1e-6)
    assert verify(tmp_path / "p.zip").ok
    with pytest.raises(InvalidInput, match="rounded to 4 bits already"):
        pack(tmp_path / "p.zip", tmp_path / "q.zip", keep_bits=6)


def test_factors_as_float16_are_half_the_size_and_near(tmp_path: Path) -> None:
    made = synthetic_trace(tmp_path / "t.zarr", steps=4, encoding="factors", sharpness=1.0)
    small = open_trace(pack(made.path, tmp_path / "p.zip", factor_dtype="float16").path)
    assert {layer.factor_dtype for layer in small.layers} == {"float16"}
    np.testing.assert_allclose(r2g(small), r2g(open_trace(made.path)), rtol=2e-3)
    assert verify(tmp_path / "p.zip").ok


@pytest.mark.parametrize(
    ("encoding", "options", "words"),
    [
        ("factors", {"keep_bits": 5}, "rounds probabilities, and the trace has factors; add encoding='probabilities'"),
        ("probabilities", {"factor_dtype": "float16"}, "is of factors, and the trace has probabilities"),
        ("probabilities", {"encoding": "factors"}, "cannot be had from probabilities"),
        ("probabilities", {"keep_bits": 11}, "mantissa bits to keep from 1 to 10"),
        ("probabilities", {"layers": []}, "the layer selection is empty"),
        ("probabilities", {"steps": "9:"}, "the selection of steps is empty"),
    ],
)
def test_what_cannot_be_had_is_refused_in_words(tmp_path: Path, encoding: str, options: dict[str, Any], words: str) -> None:
    synthetic_trace(tmp_path / "t.zarr", steps=2, encoding=encoding, codec=Codec())
    with pytest.raises(InvalidInput, match=words):
        pack(tmp_path / "t.zarr", tmp_path / "p.zip", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["t.zarr"]
