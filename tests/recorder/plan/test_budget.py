"""Budgets: a size is read as people write it, and a recording that would not fit is refused with three ways that hold what they say."""

from __future__ import annotations

import dataclasses
import re
import sys

import pytest

from i2am.recorder.plan.budget import check_budget, encoded, layer_bytes, weigh
from i2am.recorder.plan.options import keep_heads, select_heads, select_layers, select_steps
from i2am.schema.errors import InvalidInput, NoSpace, UnknownSelection
from i2am.schema.layout import layout
from i2am.schema.messages import parse_bytes, size_text
from i2am.schema.trace import Codec, Layer, TokenGroup, TraceRecord

EVALUATIONS = 50


def layer(path: str, side: int, heads: int = 8, tokens: int = 257) -> Layer:
    group = TokenGroup("reference", "reference", 0, tokens)
    return Layer(path, 0, heads, 40, 0.1, (side, side), tokens, (group,))


NAMES = {"down_blocks.0": 64, "down_blocks.1": 32, "mid_block": 8, "up_blocks.1": 16, "up_blocks.3": 64}
TRACE = TraceRecord("t", "recording", 1, ("cond",), EVALUATIONS, tuple(layer(f"unet.{name}.attn2", side) for name, side in NAMES.items()))


def ways(trace: TraceRecord, limit: int) -> dict[str, str]:
    """What a refusal proposes, by option, and the sizes it promises."""
    with pytest.raises(NoSpace) as caught:
        check_budget(trace, EVALUATIONS, "run.zarr", limit, sys.maxsize)
    assert "\n" not in str(caught.value)
    return dict(re.findall(r"((?:encoding|layers|steps)=\S+) makes it ([\d.e+]+ \w+)", str(caught.value)))


@pytest.mark.parametrize(
    ("written", "size"),
    [("5GB", 5 * 10**9), ("500 MB", 5 * 10**8), ("1.5gib", 3 * 2**29), ("2k", 2000), ("7", 7), (7, 7), ("1e9", 10**9), (None, None)],
)
def test_sizes_as_people_write_them(written: object, size: object) -> None:
    assert parse_bytes("max_bytes", written) == size  # type: ignore[arg-type]


@pytest.mark.parametrize("written", ["", "5 apples", "-5GB", "0", 0, True, "GB"])
def test_what_is_no_size(written: object) -> None:
    with pytest.raises(InvalidInput, match="is no size; use a number with a unit, such as 5GB"):
        parse_bytes("max_bytes", written)  # type: ignore[arg-type]


def test_a_trace_weighs_what_its_arrays_do() -> None:
    assert weigh(TRACE).nbytes == sum(plan.nbytes for plan in layout(TRACE))
    assert sum(layer_bytes(TRACE, index) for index in range(5)) == pytest.approx(weigh(TRACE).nbytes, rel=1e-4)
    factors = encoded(TRACE, "factors")
    keys = sum(plan.nbytes for plan in layout(factors) if plan.path.endswith("/key"))
    assert weigh(factors).nbytes == sum(plan.nbytes for plan in layout(factors)) - keys + keys // EVALUATIONS, "a key is stored once"


@pytest.mark.parametrize("share", [0.5, 0.1, 0.03])
def test_each_way_makes_what_it_promises(share: float) -> None:
    limit = int(weigh(TRACE).nbytes * share)
    proposed = ways(TRACE, limit)
    assert [name.split("=")[0] for name in proposed] == ["encoding", "layers", "steps"]
    paths, fits = [layer.path for layer in TRACE.layers], []
    for name, size in proposed.items():
        option, value = name.split("=")
        value = value.strip("'")
        made = TRACE
        if option == "encoding":
            made = encoded(TRACE, value)
        elif option == "layers":
            made = dataclasses.replace(TRACE, layers=tuple(x for x in TRACE.layers if x.path in select_layers(value, paths)))
        else:
            made = dataclasses.replace(TRACE, steps=len(select_steps(value, EVALUATIONS)))
        assert size_text(weigh(made).nbytes) == size
        assert weigh(made).nbytes < weigh(TRACE).nbytes
        fits.append(weigh(made).nbytes <= limit)
    assert all(fits[1:]), "layers and steps are chosen so that they fit"


def test_the_three_together_where_none_is_enough() -> None:
    tight = 150_000
    with pytest.raises(NoSpace, match=r"encoding='factors', layers='unet.mid_block.*' and steps='::\d+' together"):
        check_budget(dataclasses.replace(TRACE, layers=TRACE.layers[:3]), EVALUATIONS, "run.zarr", tight, sys.maxsize)


def test_what_has_the_smallest_encoding_already_is_told_so() -> None:
    with pytest.raises(NoSpace, match="no other encoding is smaller, layers="):
        check_budget(encoded(TRACE, "factors"), EVALUATIONS, "run.zarr", 10**7, sys.maxsize)


def test_what_fits_is_let_pass_and_the_disk_counts_compressed() -> None:
    size = weigh(TRACE).nbytes
    check_budget(TRACE, EVALUATIONS, "run.zarr", size, size // 3 + 1)
    with pytest.raises(NoSpace, match="are free, too little even if compressed"):
        check_budget(TRACE, EVALUATIONS, "run.zarr", None, size // 4)
    rounded = dataclasses.replace(TRACE, codec=Codec(keep_bits=4))
    check_budget(rounded, EVALUATIONS, "run.zarr", None, size // 4)
    with pytest.raises(NoSpace, match=r"\(.* of others besides\) and"):
        check_budget(TRACE, EVALUATIONS, "run.zarr", None, size, 9 * size)


def test_a_flux_sized_recording_comes_down_to_five_gigabytes() -> None:
    """Kontext at 1024: 57 blocks of 24 heads of 128, 4096 places, 4096 reference tokens, 28 steps, q and k in bfloat16 kept as float32."""
    group = TokenGroup("reference", "reference", 0, 4096, 0, (64, 64))
    blocks = [f"transformer.transformer_blocks.{i}.attn" for i in range(19)]
    blocks += [f"transformer.single_transformer_blocks.{i}.attn" for i in range(38)]
    layers = [Layer(path, 0, 24, 128, 0.1, (64, 64), 4096, (group,), "factors", "bfloat16", "float32", 4096 * 2 + 512) for path in blocks]
    whole = TraceRecord("t", "recording", 1, ("cond",), 28, tuple(layers))
    assert weigh(whole).nbytes > 2 * 28 * 57 * 24 * 4096 * 128 * 4, "keys of a softmax shared with the image change with each step"
    chosen = set(select_layers("transformer.transformer_blocks.*", blocks))
    kept = tuple(keep_heads(layer, "::4") for layer in layers if layer.path in chosen)
    made = dataclasses.replace(whole, layers=kept, steps=len(select_steps("::4", 28)))
    assert weigh(made).nbytes < 5e9
    assert {layer.head_numbers for layer in kept} == {(0, 4, 8, 12, 16, 20)}


@pytest.mark.parametrize(
    ("heads", "kept"),
    [
        ("::4", [0, 4]),
        ("2:4", [2, 3]),
        ([7, 0, 7], [0, 7]),
        ("0, 7", [0, 7]),
        (3, [3]),
        (slice(-2, None), [6, 7]),
        ("6:20", [6, 7]),
        (None, list(range(8))),
    ],
)
def test_heads_that_exist(heads: object, kept: list[int]) -> None:
    assert select_heads(heads, 8, "attn2") == kept  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("heads", "error", "words"),
    [
        ([8], UnknownSelection, "attn2 has no head 8; it has 0 to 7; leave it out, or choose modules that have it with layers="),
        ("9:", InvalidInput, "the selection of heads is empty; attn2 has 0 to 7"),
        ([], InvalidInput, "the selection of heads is empty"),
        ("some", InvalidInput, "heads='some' is no choice of heads; write 5"),
        ([-9], UnknownSelection, "attn2 has no head -9"),
        ("every=2", InvalidInput, "heads='every=2' is no choice of heads; write ::2$"),
    ],
)
def test_heads_that_do_not(heads: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        select_heads(heads, 8, "attn2")  # type: ignore[arg-type]


def test_a_layer_says_which_heads_it_keeps() -> None:
    whole = layer("a", 4)
    assert keep_heads(whole, None) is whole is keep_heads(whole, "0:")
    some = keep_heads(whole, [1, 5])
    assert (some.heads, some.head_numbers, some.call_heads) == (2, (1, 5), 8)
