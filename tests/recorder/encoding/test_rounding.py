"""Fewer bits and fewer heads: what is kept is what the whole recording had there, and the image stays the pipeline's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import zarr

from i2am.recorder import record, recording
from i2am.recorder.encoding.scores import encode_scores, heads_of, round_mantissa
from i2am.schema.codec import PROBABILITY_SCALE
from i2am.schema.errors import InvalidInput, NoSpace, UnknownSelection
from i2am.schema.trace import TraceRecord
from pipelines import build

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
MID = "*mid_block*"
NORMAL = 2.0**-29
"""Smallest P that is a normal number when stored."""


def stored(path: Path, name: str, layer: int = 1) -> np.ndarray:
    return np.asarray(zarr.open_array(path / f"layers/{layer:03d}/{name}", mode="r")[:])


def trace_of(path: Path) -> TraceRecord:
    return TraceRecord.from_json(json.loads((path / "zarr.json").read_text())["attributes"]["i2am"])


def every_stored_number() -> torch.Tensor:
    return torch.arange(0x7801, dtype=torch.int16).view(torch.float16)  # 0 to 2**15, subnormals too


@pytest.mark.parametrize("bits", range(1, 11))
def test_rounding_is_to_the_nearest_and_half_to_even(bits: int) -> None:
    exact = every_stored_number().double().numpy()
    rounded = every_stored_number()
    round_mantissa(rounded, bits)
    unit = 2.0 ** (np.floor(np.log2(np.maximum(exact, 2.0**-14))) - bits)  # one unit in the last kept place
    np.testing.assert_array_equal(rounded.double().numpy(), np.rint(exact / unit) * unit)
    assert len(rounded.unique()) == 30 * 2**bits + 1
    error, probability = np.abs(rounded.double().numpy() - exact) * PROBABILITY_SCALE, exact * PROBABILITY_SCALE
    normal = probability >= NORMAL
    if bits < 10:
        assert (error[normal] / probability[normal]).max() <= 2.0 ** -(bits + 1)
        assert error[~normal].max() <= 2.0 ** -(bits + 30)


def test_what_rounding_loses_is_measured() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 30, 8, generator=generator) for _ in range(2))
    whole, coarse = (encode_scores(query, key, 0.5, keep_bits=bits) for bits in (10, 2))
    expected = whole.probability.clone()
    round_mantissa(expected, 2)
    assert torch.equal(coarse.probability, expected)
    assert torch.equal(coarse.query_lse, whole.query_lse) and torch.equal(coarse.token_lse, whole.token_lse)
    shift = (whole.query_lse[..., None] - whole.token_lse[:, None]).double().exp()
    column = (coarse.probability.double() * PROBABILITY_SCALE * shift).sum(1)
    assert float(coarse.lost) == pytest.approx(float((1 - column).abs().max()), abs=1e-4)
    assert coarse.lost > 10 * whole.lost


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    path = tmp_path_factory.mktemp("whole") / "t.zarr"
    pipeline, call = build("ip-full")
    return path, record(pipeline, path, layers=MID, **call()).images[0]


def test_a_trace_with_fewer_bits(whole: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, image = whole
    pipeline, call = build("ip-full")
    assert np.array_equal(record(pipeline, tmp_path / "t.zarr", layers=MID, keep_bits=4, **call()).images[0], image)
    expected = torch.from_numpy(stored(path, "probability").copy())
    round_mantissa(expected, 4)
    np.testing.assert_array_equal(stored(tmp_path / "t.zarr", "probability"), expected.numpy())
    for name in ("query_lse", "token_lse"):
        np.testing.assert_array_equal(stored(tmp_path / "t.zarr", name), stored(path, name))
    trace = trace_of(tmp_path / "t.zarr")
    assert (trace.codec.keep_bits, trace.provenance["options"]["keep_bits"]) == (4, 4)
    assert trace.layers[1].column_mass_lost > trace_of(path).layers[1].column_mass_lost
    assert trace_of(path).codec.keep_bits == 10


@pytest.mark.parametrize("encoding", ["probabilities", "factors"])
def test_a_trace_with_fewer_heads(whole: tuple[Path, np.ndarray], tmp_path: Path, encoding: str) -> None:
    image, paths = whole[1], {}
    for name, heads in (("all", None), ("one", [1])):
        pipeline, call = build("ip-full")
        paths[name] = tmp_path / f"{name}.zarr"
        made = record(pipeline, paths[name], layers=MID, heads=heads, encoding=encoding, **call())
        assert np.array_equal(made.images[0], image)
    for name in ("probability", "query_lse", "token_lse") if encoding == "probabilities" else ("query", "key"):
        every, one = stored(paths["all"], name), stored(paths["one"], name)
        assert one.shape[3] == 1
        # One head's scores are another matrix product, whose last bits may differ; factors are copies.
        rtol = 0 if encoding == "factors" else 2e-3 if name == "probability" else 1e-5
        np.testing.assert_allclose(one[:, :, :, 0].astype(np.float64), every[:, :, :, 1].astype(np.float64), rtol=rtol)
    layer = trace_of(paths["one"]).layers[1]
    assert (layer.heads, layer.head_numbers, layer.call_heads) == (1, (1,), 2)
    opened = xr.open_zarr(paths["one"], group="layers/001")
    assert opened["head"].to_numpy().tolist() == [1]
    assert "head" not in xr.open_zarr(paths["all"], group="layers/001").coords


def test_heads_of_shared_keys_and_of_a_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(4, 5, 8, generator=generator), torch.randn(2, 6, 8, generator=generator)
    for mask in (None, torch.randn(4, 5, 6, generator=generator), torch.randn(1, 5, 6, generator=generator), torch.randn(5, 6)):
        every = encode_scores(query, key, 0.5, mask)
        some = encode_scores(*(heads := heads_of(query, key, mask, (1, 3)))[:2], 0.5, heads[2])
        torch.testing.assert_close(some.probability, every.probability[[1, 3]], rtol=2e-3, atol=0)
        torch.testing.assert_close(some.token_lse, every.token_lse[[1, 3]])


def test_a_limit_stops_a_pipeline_after_its_first_evaluation(tmp_path: Path) -> None:
    pipeline, call = build("ip-full")
    with pytest.raises(NoSpace, match=r"the limit is max_bytes='1kB'; encoding='\w+' makes it .*, layers=.*, steps='::\d"):
        record(pipeline, tmp_path / "t.zarr", max_bytes=1000, **call())
    assert trace_of(tmp_path / "t.zarr").status == "interrupted"
    made = record(pipeline, tmp_path / "fits.zarr", layers=MID, max_bytes="5GB", **call())
    assert len(made.images) == 1


def test_bits_and_heads_that_there_are_not(tmp_path: Path) -> None:
    pipeline, call = build("ip-full")
    with pytest.raises(UnknownSelection, match=r"unet.mid_block.* has no head 2; it has 0 to 1"):
        record(pipeline, tmp_path / "t.zarr", layers=MID, heads=[0, 2], **call())
    with pytest.raises(InvalidInput, match="keep_bits 11; float16 has"), recording(pipeline, tmp_path / "t.zarr", keep_bits=11):
        pass
    with (
        pytest.raises(InvalidInput, match="factors are kept exactly"),
        recording(pipeline, tmp_path / "t.zarr", keep_bits=6, encoding="factors"),
    ):
        pass
