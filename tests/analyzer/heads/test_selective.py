"""Which heads find the truth, and whether maps of the best ones agree with masks better: held to plain float64 loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from probed import CONCEPTS, TEXTS, probed

from i2am.analyzer import (
    get_recipe,
    head_accuracy,
    head_relevance,
    heatmap,
    iou,
    open_trace,
    r2g,
    rank_heads,
    select_heads,
    selective_iou,
)
from i2am.analyzer.cli.commands.heads import write_table
from i2am.analyzer.heads.selective import deal, flat_note, published_count
from i2am.analyzer.numerics.resize import resize
from i2am.analyzer.trace.heads import head_coordinates
from i2am.analyzer.trace.reader import Trace
from i2am.schema.errors import InvalidInput, UnknownSelection
from i2am.schema.text import Text, Word
from i2am.schema.trace import TokenGroup
from traces import Synthetic, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

LATENT = (8, 6)
ORDER = ["unet.down_blocks.0.attn2", "unet.mid_block.attn2", "unet.up_blocks.0.attn2"]
LAYERS = [
    reference_layer(ORDER[2], LATENT, heads=3),
    reference_layer(ORDER[0], LATENT, heads=2),
    reference_layer(ORDER[1], LATENT, heads=4),
]


def told(made: Synthetic, share: float = 0.7) -> Trace:
    """The trace with a truth that is where the second head of the first layer looks, for a share of the patches; others have none."""
    trace = open_trace(made.path)
    rng = np.random.default_rng(int(made.trace.id[-12:]))
    seen = made.probabilities[1][0, 0, :, 1].sum(0)[..., 1:].argmax(-1)  # (y, x)
    position = np.stack([(seen // 5 + 0.5) / 3, (seen % 5 + 0.5) / 5], axis=-1)
    wrong = rng.random(LATENT) > share
    position[wrong] = rng.random((int(wrong.sum()), 2))
    position[0, 0] = np.nan
    trace.record.provenance["facts"] = {"demo": {"position": [[list(map(float, cell)) for cell in row] for row in position]}}
    return trace


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Synthetic]:
    folder = tmp_path_factory.mktemp("selective")
    return [synthetic_trace(folder / f"{i}.zarr", layers=LAYERS, seed=i, encoding="factors", steps=2, sharpness=6) for i in range(4)]


@pytest.fixture(scope="module")
def traces(made: list[Synthetic]) -> list[Trace]:
    return [told(each) for each in made]


def truth_oracle(made: Synthetic, trace: Trace, layer: int, head: int) -> float:
    """Share of patches that one head sends within an eighth of the longer side of their place; the reference is 30 x 50 pixels."""
    position = np.array(trace.record.provenance["facts"]["demo"]["position"], float)
    hits = []
    for y, x in np.ndindex(LATENT):
        if np.isnan(position[y, x]).any():
            continue
        look = made.probabilities[layer][0, 0, :, head, y, x, 1:].sum(0)
        row, column = divmod(int(look.argmax()), 5)
        far = np.hypot(30 * ((row + 0.5) / 3 - position[y, x, 0]), 50 * ((column + 0.5) / 5 - position[y, x, 1])) / 50
        hits.append(far <= 0.125)
    return float(np.mean(hits))


def test_head_truth_is_the_oracle_s(made: list[Synthetic], traces: list[Trace]) -> None:
    found = head_accuracy(traces)
    assert found["layer"].values.tolist() == ORDER and found.attrs["kind"] == "truth"
    assert found.attrs["traces"] == sorted(trace.id for trace in traces)
    for layer in range(3):
        for head in range(4):
            mine = float(found.sel(layer=LAYERS[layer].name, head=head))
            if head >= LAYERS[layer].heads:
                assert np.isnan(mine)
                continue
            assert mine == pytest.approx(np.mean([truth_oracle(m, t, layer, head) for m, t in zip(made, traces, strict=True)]))
    assert rank_heads(found)[0] == (ORDER[0], 1), "the head that the truth was made of is the truest"
    assert found.identical(head_accuracy(traces[::-1]))


def test_what_is_judged_is_the_picture_of_the_recipe(traces: list[Trace]) -> None:
    table = selective_iou(traces, count=2, thresholds=(0.5,), recipe="i2am-official")
    for trace in traces:
        map = r2g(trace, recipe="i2am-official", layers=ORDER)
        wanted = iou(heatmap(map, recipe=get_recipe("i2am-official", threshold=0.0)), trace.image("mask"), 0.5)
        assert float(table.sel(heads="all", threshold=0.5, trace=trace.id)) == pytest.approx(float(wanted))
        assert float(wanted) != pytest.approx(float(iou(map, trace.image("mask"), 0.5)), abs=1e-3)


def iou_oracle(made: Synthetic, pairs: Sequence[tuple[str, int]], threshold: float) -> float:
    names = [layer.name for layer in LAYERS]
    maps = [made.generated[names.index(layer)][0, 0, :, head].mean(-1).sum(0) for layer, head in pairs]
    large = resize(np.mean(maps, axis=0), (64, 48), "bicubic")
    strong = (large - large.min()) / (large.max() - large.min()) > threshold
    mask = made.images["mask"][..., 0] > 0
    return float((strong & mask).sum() / (strong | mask).sum())


def test_the_table_is_the_oracle_s_and_nobody_is_judged_on_their_own(made: list[Synthetic], traces: list[Trace]) -> None:
    table = selective_iou(traces, count=2, thresholds=(0.3, 0.5))
    assert table.dims == ("heads", "threshold", "trace") and table["trace"].values.tolist() == [trace.id for trace in traces]
    for i, each in enumerate(made):
        others = [trace for j, trace in enumerate(traces) if (i + j) % 2]
        ranked = rank_heads(head_accuracy(others))
        for kind, pairs in (("all", ranked), ("top", ranked[:2]), ("bottom", ranked[-2:])):
            for threshold in (0.3, 0.5):
                found = float(table.sel(heads=kind, threshold=threshold, trace=each.trace.id))
                assert found == pytest.approx(iou_oracle(each, pairs, threshold), abs=2e-3), (kind, threshold)
    assert np.unique(table.values.round(4)).size > 12


def test_scores_of_other_traces_judge_all(made: list[Synthetic], traces: list[Trace]) -> None:
    scores = head_accuracy(traces[:2])
    table = selective_iou(traces[2:], scores, count=3, thresholds=[0.4])
    for each in made[2:]:
        found = float(table.sel(heads="bottom", threshold=0.4, trace=each.trace.id))
        assert found == pytest.approx(iou_oracle(each, rank_heads(scores)[-3:], 0.4), abs=2e-3)
    assert table.attrs == {"by": "truth", "word": "", "count": 3, "of": 9, "chosen_on": "2 other traces"}


def test_several_counts_make_a_curve(made: list[Synthetic], traces: list[Trace]) -> None:
    scores = head_accuracy(traces[:2])
    curve = selective_iou(traces[2:], scores, count=slice(1, None, 3), thresholds=(0.3, 0.5))
    assert curve.dims == ("heads", "count", "threshold", "trace") and curve["count"].values.tolist() == [1, 4, 7]
    assert "count" not in curve.attrs and curve.identical(selective_iou(traces[2:], scores, count="1::3", thresholds=(0.3, 0.5)))
    ranked = rank_heads(scores)
    for each in made[2:]:
        at = {"threshold": 0.5, "trace": each.trace.id}
        for count in (1, 4, 7):
            found = curve.sel(count=count, **at)
            assert float(found.sel(heads="top")) == pytest.approx(iou_oracle(each, ranked[:count], 0.5), abs=2e-3)
            assert float(found.sel(heads="bottom")) == pytest.approx(iou_oracle(each, ranked[-count:], 0.5), abs=2e-3)
            assert float(found.sel(heads="all")) == pytest.approx(iou_oracle(each, ranked, 0.5), abs=2e-3)
    whole = selective_iou(traces[2:], scores, count=[9])
    np.testing.assert_array_equal(whole.sel(heads="top"), whole.sel(heads="all"))


def test_heads_are_chosen_by_relevance_too(tmp_path: Path) -> None:
    probes = probed("unet.down_blocks.0.attn2", 3, LATENT).probes
    layers = [
        reference_layer(path, LATENT, heads=3, probes=tuple(TokenGroup(g.name, "text", g.start, g.stop) for g in probes)) for path in ORDER
    ]
    opened = [
        open_trace(synthetic_trace(tmp_path / f"{i}.zarr", layers=layers, seed=i, encoding="factors", texts=TEXTS).path) for i in range(2)
    ]
    table = selective_iou(opened, by="relevance", concept="Color", concepts=CONCEPTS)
    vector = head_relevance(opened[1], concepts=CONCEPTS)
    again = selective_iou(opened[:1], vector, concept="Color")
    np.testing.assert_array_equal(table.sel(trace=opened[0].id), again.sel(trace=opened[0].id))
    assert again.attrs["by"] == "relevance" and again.attrs["count"] == published_count(9) == 2
    with pytest.raises(InvalidInput, match="say which concept"):
        selective_iou(opened, by="relevance", concepts=CONCEPTS)


def test_words_are_judged_too(tmp_path: Path) -> None:
    layers = [reference_layer(path, LATENT, heads=3, reference=None, text=5) for path in ORDER]
    said = Text("text", "a dog", ("<s>", "a", "dog", "</s>", "</s>"), (Word("a", 1, 2), Word("dog", 2, 3)))
    made = synthetic_trace(tmp_path / "t.zarr", layers=layers, encoding="factors", texts=[said], steps=2)
    coords = head_coordinates(list(made.trace.layers))
    scores = xr.DataArray(np.arange(9.0).reshape(3, 3), dims=("layer", "head"), coords=coords, attrs={"traces": [], "kind": "truth"})
    table = selective_iou(made.path, scores, word="dog", count=2, thresholds=[0.4])
    for kind, pairs in (("all", [(i, h) for i in range(3) for h in range(3)]), ("top", [(2, 2), (2, 1)]), ("bottom", [(0, 0), (0, 1)])):
        maps = [made.probabilities[layer][0, 0, :, head, :, :, 2].sum(0) for layer, head in pairs]
        large = resize(np.mean(maps, axis=0), (64, 48), "bicubic")
        strong, mask = (large - large.min()) / np.ptp(large) > 0.4, made.images["mask"][..., 0] > 0
        assert float(table.sel(heads=kind).squeeze()) == pytest.approx((strong & mask).sum() / (strong | mask).sum(), abs=2e-3)
    assert flat_note(table) is None
    whole = selective_iou(made.path, scores, recipe="daam", group="text", count=2)
    assert (whole == 0).all() and "every map of all heads is flat" in str(flat_note(whole))


def test_traces_are_dealt_into_halves(traces: list[Trace]) -> None:
    for chosen, judged in deal(traces):
        assert not {trace.id for trace in chosen} & {trace.id for trace in judged}
    assert sorted(trace.id for _, judged in deal(traces) for trace in judged) == sorted(trace.id for trace in traces)


def test_the_published_share_of_heads() -> None:
    assert [published_count(total) for total in (128, 28, 4, 2, 1)] == [30, 7, 1, 1, 1]


def test_the_table_reads(traces: list[Trace]) -> None:
    text = write_table(selective_iou(traces, count=2)).splitlines()
    assert text[0].split() == ["threshold", "all", "9", "top", "2", "bottom", "2"]
    assert [line.split()[0] for line in text[1:4]] == ["0.3", "0.4", "0.5"]
    assert text[4].endswith("heads chosen by truth on the other half of the traces")
    alone = write_table(selective_iou(traces[0], head_accuracy(traces[1:]), thresholds=[0.3]))
    assert "+-" not in alone and "on 3 other traces" in alone


def test_what_cannot_be_judged_says_why(traces: list[Trace], tmp_path: Path) -> None:
    scores = head_accuracy(traces[:2])
    untold = open_trace(traces[0].path)
    other = told(synthetic_trace(tmp_path / "other.zarr", layers=[LAYERS[2], LAYERS[1]], seed=8))
    fewer = told(synthetic_trace(tmp_path / "fewer.zarr", layers=[*LAYERS[:2]], seed=9))
    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: selective_iou(traces, scores), InvalidInput, r"one of the 2 traces that the heads were scored on.* \(2 such traces\)"),
        (lambda: selective_iou(traces[0]), InvalidInput, "not judged on the trace they were chosen on: give two traces or more"),
        (lambda: selective_iou(traces, by="luck"), InvalidInput, "chosen by 'luck'; they are by relevance, truth, contribution"),  # type: ignore[arg-type]
        (lambda: selective_iou(traces, concept="Color"), InvalidInput, "truth knows no concepts; leave out concept='Color'"),
        (lambda: selective_iou(traces[2:], scores, concept="Color"), InvalidInput, "scores are of heads alone, not of concepts"),
        (lambda: selective_iou(traces, count=10), UnknownSelection, "cannot take 10 heads; the scores rank 9"),
        (lambda: selective_iou(traces, count=[1, 0]), UnknownSelection, "cannot take 0 heads; the scores rank 9"),
        (lambda: selective_iou(traces, count="few"), InvalidInput, "count"),
        (lambda: selective_iou(traces, mask="hat"), UnknownSelection, "hat is neither a picture file nor an image of the trace"),
        (lambda: head_accuracy(untold), InvalidInput, "does not say where its patches truly come from"),
        (lambda: head_accuracy([traces[0], other]), InvalidInput, "has the layer unet.up_blocks.0.attn2, which the trace .* does not have"),
        (lambda: head_accuracy([fewer, traces[0]]), InvalidInput, "have different layers; select with layers= those that both have"),
        (lambda: select_heads(traces[:1], by="luck", top=1), InvalidInput, "by 'luck'"),  # type: ignore[arg-type]
        (lambda: select_heads(scores, by="relevance", top=1), InvalidInput, "scores are of truth, not of relevance"),
    ]  # fmt: skip
    for ask, error, message in cases:
        with pytest.raises(error, match=message):
            ask()


def test_heads_can_be_selected_from_traces_themselves(traces: list[Trace]) -> None:
    assert select_heads(traces, by="truth", top=2) == select_heads(head_accuracy(traces), top=2)
    chosen: xr.DataArray = head_accuracy(traces)
    assert select_heads(chosen, by="truth", bottom=1) == select_heads(chosen, bottom=1)
