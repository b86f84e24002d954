"""Scores of one call: against float64 numpy, against the codec, and at the edges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from i2am.recorder.encoding import scores
from i2am.recorder.encoding.scores import additive, encode_scores, exact, mask_of, share_heads, sum_rows, take_keys
from i2am.schema.codec import decode_probability, encode_probability

torch.set_num_threads(1)

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 24), st.integers(1, 9), st.integers(1, 8))
SPREADS = st.sampled_from([0.1, 1.0, 6.0, 20.0])


def draw(size: tuple[int, int, int, int], spread: float, seed: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    heads, positions, tokens, channels = size
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(heads, positions, channels, generator=generator) * spread
    key = torch.randn(heads, tokens, channels, generator=generator)
    return query, key, channels**-0.5


def oracle(query: Any, key: Any, scale: float) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """P, a and b in float64, the long way."""
    table = np.einsum("hxc,hrc->hxr", query.double().numpy(), key.double().numpy()) * scale
    query_lse = np.log(np.exp(table - table.max(2, keepdims=True)).sum(2)) + table.max(2)
    token_lse = np.log(np.exp(table - table.max(1, keepdims=True)).sum(1)) + table.max(1)
    return np.exp(table - query_lse[:, :, None]), query_lse, token_lse


@settings(deadline=None)
@given(SIZES, SPREADS, st.integers(0, 99))
def test_scores_equal_a_float64_oracle(size: tuple[int, int, int, int], spread: float, seed: int) -> None:
    query, key, scale = draw(size, spread, seed)
    encoded = encode_scores(query, key, scale)
    probability, query_lse, token_lse = oracle(query, key, scale)
    np.testing.assert_allclose(decode_probability(encoded.probability.numpy()), probability, rtol=6e-4, atol=2**-39)
    np.testing.assert_allclose(encoded.query_lse, query_lse, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(encoded.token_lse, token_lse, rtol=1e-5, atol=1e-4)


@settings(deadline=None)
@given(SIZES, SPREADS, st.integers(0, 99))
def test_both_softmaxes_sum_to_one(size: tuple[int, int, int, int], spread: float, seed: int) -> None:
    query, key, scale = draw(size, spread, seed)
    encoded = encode_scores(query, key, scale)
    probability = decode_probability(encoded.probability.numpy()).astype(np.float64)
    np.testing.assert_allclose(probability.sum(2), 1, atol=1e-3)
    shift = encoded.query_lse.double().numpy()[:, :, None] - encoded.token_lse.double().numpy()[:, None, :]
    generated = probability * np.exp(np.where(probability > 0, shift, 0))
    missing = np.abs(1 - generated.sum(1))
    # What the columns lack, or have too much by rounding up, is what the encoding says it lost.
    assert min(missing.max(), 1) == pytest.approx(float(encoded.lost), abs=1e-4)


@settings(deadline=None)
@given(SIZES, st.integers(1, 40), st.integers(0, 99))
def test_blocks_do_not_change_the_result(size: tuple[int, int, int, int], rows: int, seed: int) -> None:
    query, key, scale = draw(size, 3.0, seed)
    whole = encode_scores(query, key, scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "BLOCK_BYTES", rows * size[0] * size[2] * 4)
        parts = encode_scores(query, key, scale)
    np.testing.assert_allclose(parts.token_lse, whole.token_lse, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(parts.query_lse, whole.query_lse, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(parts.probability.float(), whole.probability.float(), rtol=2e-3, atol=1e-3)


def test_stored_probability_is_the_codecs() -> None:
    query, key, scale = draw((2, 16, 5, 4), 4.0, 0)
    table = (query @ key.transpose(1, 2)) * scale
    probability = (table - torch.logsumexp(table, 2, keepdim=True)).exp()
    stored = encode_scores(query, key, scale).probability.numpy()
    # One float32 rounding more or less may tip a value to its neighbour in float16.
    expected = encode_probability(probability.numpy())
    assert (np.abs(stored.view(np.int16) - expected.view(np.int16)) <= 1).all()
    assert (stored == expected).mean() > 0.99


@settings(deadline=None)
@given(SIZES, SPREADS, st.integers(0, 99))
def test_the_way_of_other_devices_gives_the_same(size: tuple[int, int, int, int], spread: float, seed: int) -> None:
    query, key, scale = draw(size, spread, seed)
    quick = encode_scores(query, key, scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "VANISHING", 1e30)  # every column counts as vanishing
        careful = encode_scores(query, key, scale)
    assert torch.equal(quick.probability, careful.probability)
    torch.testing.assert_close(quick.token_lse, careful.token_lse, rtol=1e-6, atol=2e-5)
    torch.testing.assert_close(quick.lost, careful.lost, rtol=0, atol=1e-4)


def test_extreme_logits_leave_no_nan_and_report_what_is_lost() -> None:
    query = torch.tensor([[[300.0], [-300.0], [0.0]]])
    key = torch.tensor([[[1.0], [-1.0], [0.1]]])
    encoded = encode_scores(query, key, 1.0)
    for tensor in (encoded.probability, encoded.query_lse, encoded.token_lse, encoded.lost):
        assert torch.isfinite(tensor).all()
    # The third token's largest score is where the first token takes everything: its whole column is gone, and that is said.
    assert float(encoded.lost) == pytest.approx(1.0)


def test_nothing_is_lost_where_attention_is_even() -> None:
    encoded = encode_scores(torch.zeros(2, 9, 4), torch.randn(2, 8, 4), 0.5)
    assert float(encoded.lost) <= 2**-11


@pytest.mark.parametrize("kind", ["bool", "additive", "diffusers"])
def test_a_mask_is_honoured(kind: str) -> None:
    query, key, scale = draw((2, 6, 4, 4), 2.0, 0)
    keep = torch.tensor([True, True, False, True])
    mask = {"bool": keep, "additive": torch.where(keep, 0.0, -math.inf), "diffusers": torch.where(keep, 0.0, -10000.0).half()}[kind]
    encoded = encode_scores(query, key, scale, mask)
    alone = encode_scores(query, key[:, keep], scale)
    assert not encoded.probability[:, :, ~keep].any()
    assert torch.isneginf(encoded.token_lse[:, ~keep]).all()
    torch.testing.assert_close(encoded.probability[:, :, keep], alone.probability)
    torch.testing.assert_close(encoded.token_lse[:, keep], alone.token_lse)
    torch.testing.assert_close(encoded.lost, alone.lost, atol=1e-6, rtol=0)


def test_a_rows_mask_is_its_own() -> None:
    mask = torch.arange(6).view(2, 1, 1, 3)
    assert mask_of(None, 1) is None
    assert mask_of(mask, 1).tolist() == [[[3, 4, 5]]]
    assert mask_of(mask[:1], 1).tolist() == [[[0, 1, 2]]]
    assert mask_of(mask[0, 0], 1).tolist() == [[0, 1, 2]]
    assert additive(torch.tensor([True, False])).tolist() == [0.0, -math.inf]


def test_grouped_queries_share_keys_in_order() -> None:
    query, key, scale = draw((4, 5, 3, 2), 1.0, 0)
    shared = share_heads(key[:2], 4)
    torch.testing.assert_close(shared, torch.stack([key[0], key[0], key[1], key[1]]))
    torch.testing.assert_close(encode_scores(query, key[:2], scale).query_lse, encode_scores(query, shared, scale).query_lse)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_factors_keep_every_bit(dtype: torch.dtype) -> None:
    stored = torch.float16 if dtype == torch.float16 else torch.float32
    factor = torch.randn(3, 4, dtype=torch.float32).to(dtype)
    assert exact(factor).dtype == stored
    assert torch.equal(exact(factor).to(dtype), factor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32_even_under_autocast(dtype: torch.dtype) -> None:
    query, key, scale = draw((1, 64, 16, 32), 2.0, 0)
    query, key = query.to(dtype), key.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        encoded = encode_scores(query, key, scale)
    probability, query_lse, _ = oracle(query, key, scale)
    np.testing.assert_allclose(encoded.query_lse, query_lse, rtol=1e-6)
    np.testing.assert_allclose(decode_probability(encoded.probability.numpy()), probability, rtol=6e-4, atol=2**-39)


@settings(deadline=None)
@given(SIZES, SPREADS, st.integers(0, 99), st.data())
def test_some_keys_of_a_softmax_keep_its_sums(size: tuple[int, int, int, int], spread: float, seed: int, data: Any) -> None:
    query, key, scale = draw(size, spread, seed)
    start = data.draw(st.integers(0, size[2] - 1))
    columns = [slice(start, data.draw(st.integers(start + 1, size[2])))]
    if columns[0].stop < size[2]:
        columns += data.draw(st.sampled_from([[], [slice(size[2] - 1, size[2])]]))
    kept = [i for column in columns for i in range(column.start, column.stop)]
    encoded = encode_scores(query, key, scale, columns=columns)
    probability, query_lse, token_lse = oracle(query, key, scale)
    np.testing.assert_allclose(decode_probability(encoded.probability.numpy()), probability[:, :, kept], rtol=6e-4, atol=2**-39)
    np.testing.assert_allclose(encoded.query_lse, query_lse, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(encoded.token_lse, token_lse[:, kept], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(sum_rows(query, key, scale), query_lse, rtol=1e-5, atol=1e-4)
    assert torch.equal(take_keys(key, columns), key[:, kept])
    assert torch.equal(take_keys(key, ()), key)


def test_kept_keys_that_a_mask_hides_count_nothing() -> None:
    query, key, scale = draw((2, 5, 6, 4), 1.0, 0)
    mask = torch.ones(5, 6, dtype=torch.bool)
    mask[:, :3] = False
    mask[0, 0] = True
    encoded = encode_scores(query, key, scale, mask, columns=[slice(0, 3)])
    probability = decode_probability(encoded.probability.numpy())
    assert np.isfinite(probability).all()
    assert (probability[:, 0, 0] > 0).all()
    assert probability.astype(bool).sum() == 2
    assert torch.isneginf(encoded.token_lse[:, 1:]).all()
    whole = encode_scores(query, key, scale, mask)
    torch.testing.assert_close(encoded.query_lse, whole.query_lse)
    torch.testing.assert_close(sum_rows(query, key, scale, mask), whole.query_lse)
    torch.testing.assert_close(encoded.token_lse, whole.token_lse[:, :3])
