"""Law: a record travels through JSON unchanged, and nothing that is not a trace of this version is read."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2am.schema import Codec, Image, Layer, TokenGroup, TraceRecord, decode_probability, encode_probability, layout
from i2am.schema import errors as tree
from i2am.schema.arrays.array import CHUNK_BYTES, SHARD_BYTES
from i2am.schema.arrays.layers import data_plans
from i2am.schema.codec import PROBABILITY_SCALE, decode_bits, factor_dtype
from i2am.schema.errors import CorruptTrace, InvalidInput, TraceError, UnknownVersion
from i2am.schema.layout import documents, root_document

pytestmark = pytest.mark.analyzer


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    rows, columns, specials = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(0, 2))
    text = draw(st.integers(0, 5))
    groups = [TokenGroup("text", "text", 0, text)] if text else []
    stop = text + specials + rows * columns
    groups.append(TokenGroup("reference", "reference", text, stop, specials, (rows, columns), "reference"))
    grid = draw(st.tuples(st.integers(1, 70), st.integers(1, 70)))
    encoding = draw(st.sampled_from(["probabilities", "factors"]))
    heads, depth = draw(st.integers(1, 20)), draw(st.integers(1, 160))
    more = draw(st.sampled_from([0, stop, stop + 7]))
    frames = draw(st.sampled_from([0, 0, 1, 2, 21]))
    return Layer(
        "unet.attn2", draw(st.integers(0, 3)), heads, depth, 0.5, grid, stop, tuple(groups), encoding, call_tokens=more, frames=frames
    )


@st.composite
def traces(draw: st.DrawFn) -> TraceRecord:
    layer = draw(layers())
    images = (Image("reference", "reference", 8, 6, 3, (0.0, 0.0, 6.0, 6.0)), Image("generated_0", "generated", 8, 6, 3, frames=2))
    branches = draw(st.sampled_from([("cond",), ("uncond",), ("cond", "uncond")]))
    status = draw(st.sampled_from(["recording", "interrupted", "complete"]))
    codec = Codec(draw(st.sampled_from(["lz4", "zstd"])), draw(st.integers(0, 9)))
    return TraceRecord(
        "an-id", status, draw(st.integers(1, 3)), branches, draw(st.integers(0, 5)), (layer,), images, codec, (8, 6), inputs={"seed": 1}
    )


@given(traces())
def test_a_record_travels_through_json_unchanged(trace: TraceRecord) -> None:
    assert TraceRecord.from_json(json.loads(json.dumps(trace.to_json()))) == trace


@given(traces())
def test_the_plan_is_made_of_whole_pieces_within_their_bounds(trace: TraceRecord) -> None:
    for plan in layout(trace):
        assert len(plan.dims) == len(plan.shape) == len(plan.chunks) == len(plan.file_shape)
        assert all(file % chunk == 0 for file, chunk in zip(plan.file_shape, plan.chunks, strict=True))
    for plan in data_plans(trace, 0).values():
        assert "frame" not in plan.dims or 1 in (plan.chunks[4], plan.shape[5] // plan.chunks[5]), "a piece is frames, or rows of one"
        assert plan.file_shape[:3] == (1, 1, 1), "one file is one sample, branch and step"
        lead = 2 if "frame" in plan.dims else 1
        row = math.prod((plan.shape[3], *plan.shape[4 + lead :])) * np.dtype(plan.dtype).itemsize
        assert math.prod(plan.file_shape) * np.dtype(plan.dtype).itemsize <= max(SHARD_BYTES, row)
        assert math.prod(plan.chunks) * np.dtype(plan.dtype).itemsize <= max(CHUNK_BYTES[1], row)


def test_a_typical_shard_is_read_in_about_eight_pieces() -> None:
    layer = Layer("unet.attn2", 0, 8, 40, 0.1, (64, 64), 257, (TokenGroup("reference", "reference", 0, 257, 1, (16, 16)),))
    plan = data_plans(TraceRecord("t", "complete", 1, ("cond",), 50, (layer,)), 0)["probability"]
    assert plan.file_shape == (1, 1, 1, 8, 64, 64, 257)
    assert plan.chunks == (1, 1, 1, 8, 8, 64, 257)
    assert (plan.files, plan.nbytes) == (50, 50 * 8 * 64 * 64 * 257 * 2)


def test_the_root_carries_every_document_once_complete() -> None:
    trace = TraceRecord("t", "complete", 1, ("cond",), 2)
    assert root_document(trace)["consolidated_metadata"]["metadata"] == documents(trace)
    assert "consolidated_metadata" not in root_document(TraceRecord("t", "recording", 1, ("cond",), 2))


@given(st.floats(0, 1, width=32))
def test_a_probability_survives_within_the_stated_error(value: float) -> None:
    stored = encode_probability(np.array([value], np.float32))
    error = abs(float(decode_probability(stored)[0]) - value)
    assert error <= (2.0**-11 * value if value >= 2.0**-29 else 2.0**-40)


@np.errstate(invalid="ignore")  # some bits are of a NaN that signals
def test_every_number_that_can_be_stored_is_decoded_exactly() -> None:
    stored = np.arange(2**16, dtype=np.uint16).view(np.float16)
    expected = (stored.astype(np.float64) * 2.0**-15).astype(np.float32)
    parts = (slice(0, 0x7C00), slice(0, 0x7C01), slice(0x7C00, 0x8000), slice(0x8000, None), slice(None), slice(0, 0))
    for part in parts:
        found = decode_probability(stored[part])
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected[part])
    np.testing.assert_array_equal(decode_probability(stored[:0x7C00:-1][::3].reshape(-1, 1).T), expected[:0x7C00:-1][::3][None])


def test_zero_and_absent_keep_what_they_mean() -> None:
    back = decode_probability(encode_probability(np.array([0.0, np.nan, 1.0])))
    assert back[0] == 0 and np.isnan(back[1]) and back[2] == 1


def test_moving_bits_equals_a_cast_for_every_finite_stored_number() -> None:
    stored = np.arange(0x7C00, dtype=np.uint16).view(np.float16)
    out = np.empty(stored.shape, np.float32)
    factor = decode_bits(stored, out)
    np.testing.assert_array_equal(out.astype(np.float64) * factor, stored.astype(np.float64) * PROBABILITY_SCALE)


def test_factors_keep_the_models_numbers() -> None:
    assert [factor_dtype(d) for d in ("float16", "bfloat16", "float32")] == ["float16", "float32", "float32"]


@pytest.mark.parametrize("version", [0, 3, "1", None])
def test_another_version_is_refused(version: object) -> None:
    doc = TraceRecord("t", "complete", 1, ("cond",), 2).to_json() | {"version": version}
    with pytest.raises(UnknownVersion, match=r"reads versions 1 and 2\. Open it with"):
        TraceRecord.from_json(doc)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, 'unknown "colour"'),
        ({"samples": 0}, "needs samples"),
        ({"status": "done"}, "recording, interrupted, complete"),
        ({"branches": ["left"]}, "cond, uncond or both"),
        ({"layers": [{"path": "a"}]}, "layers, item 0 has missing"),
        ({"codec": {"name": "pickle", "level": 1}}, 'codec, name, should be one of lz4, zstd, but is "pickle"'),
    ],
)
def test_a_changed_record_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(CorruptTrace, match=message):
        TraceRecord.from_json(TraceRecord("t", "complete", 1, ("cond",), 2).to_json() | change)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"stop": 0}, "start < stop"),
        ({"grid": (3, 3)}, "does not hold its 4"),
        ({"specials": 9}, "9 specials among 4"),
        ({"name": "a/b"}, "letters, digits"),
        ({"role": "sound"}, "roles are text"),
    ],
)
def test_an_impossible_token_group_is_never_born(group: dict[str, object], message: str) -> None:
    fields = {"name": "reference", "role": "reference", "start": 0, "stop": 4} | group
    with pytest.raises(InvalidInput, match=message):
        TokenGroup(**fields)  # type: ignore[arg-type]


def test_groups_must_cover_the_keys() -> None:
    with pytest.raises(InvalidInput, match="do not cover its 5 keys"):
        Layer("a", 0, 1, 1, 1.0, (1, 1), 5, (TokenGroup("text", "text", 0, 4),))


@pytest.mark.parametrize(("numbers", "of"), [((0, 2), 2), ((2, 0), 8), ((1, 1), 8), ((1,), 8), ((0, 1), 0), ((), 8), ((-1, 0), 8)], ids=str)
def test_kept_heads_are_named_in_order_among_the_models(numbers: tuple[int, ...], of: int) -> None:
    group = TokenGroup("text", "text", 0, 4)
    with pytest.raises(InvalidInput, match="do not name its 2 in order"):
        Layer("a", 0, 2, 1, 1.0, (1, 1), 4, (group,), head_numbers=numbers, call_heads=of)
    layer = Layer("a", 0, 2, 1, 1.0, (1, 1), 4, (group,), head_numbers=(1, 5), call_heads=8)
    whole = TraceRecord("t", "complete", 1, ("cond",), 2, (layer,))
    assert TraceRecord.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    heads = [plan for plan in layout(TraceRecord("t", "complete", 1, ("cond",), 2, (layer,))) if plan.path == "layers/000/head"]
    assert [(plan.dims, plan.shape) for plan in heads] == [(("head",), (2,))]


@pytest.mark.parametrize("bits", [0, 11, 1.5, True])
def test_bits_that_a_mantissa_does_not_have(bits: object) -> None:
    with pytest.raises(InvalidInput, match="mantissa bits to keep from 1 to 10"):
        Codec(keep_bits=bits)  # type: ignore[arg-type]


def test_the_error_tree_is_the_one_drawn() -> None:
    drawn = {line.split()[1]: line.split()[2:4] for line in (tree.__doc__ or "").splitlines() if "-- " in line}
    classes = {c.__name__: c for c in TraceError.__subclasses__()}
    assert set(drawn) == set(classes)
    for name, (builtin, code) in drawn.items():
        assert builtin in {base.__name__ for base in classes[name].__mro__}
        assert classes[name].exit_code == int(code)
        assert str(classes[name]("a sentence")) == "a sentence"
