"""Views of all kinds of traces: samples, branches, groups, words, probes, videos, and what is not there."""

import numpy as np
import pytest
from probed import trace_of

from i2am.analyzer import get_recipe, make_overview, open_trace, word_map
from i2am.analyzer.overview.group import GroupReader, Overview, decode_maps, decode_rows
from i2am.schema.errors import InvalidInput
from i2am.schema.text import Text, Word
from i2am.schema.trace import Layer, TokenGroup
from traces import reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

SENTENCE = Text("text", "a dog", ("<s>", "a", "dog", "</s>", "</s>"), (Word("a", 1, 2), Word("dog", 2, 3)), branch="cond")


def read_maps(reader: GroupReader, path: str, name: str, i: int) -> np.ndarray:
    return decode_maps(reader.read(f"{path}/{name}_{i:03d}"), reader.read(f"{path}/{name}_{i:03d}_max"))


def read_words(reader: GroupReader, path: str, i: int) -> np.ndarray:
    codes, top = reader.read(f"{path}/words_{i:03d}"), reader.read(f"{path}/words_{i:03d}_max")
    return decode_rows(codes.reshape(*top.shape, -1), top).reshape(codes.shape)


def check(made: Overview) -> None:
    """Every array can be read, and has the heads, places and keys that the facts say."""
    reader, facts = made.reader(), made.facts
    for path in reader.arrays:
        reader.read(path)
    for view in facts["views"]:
        heads = sum(layer["heads"] for layer in view["layers"])
        assert reader.shape(f"{view['path']}/scores") == (heads + len(view["layers"]) + 1, len(facts["scores"]))
        for i, layer in enumerate(view["layers"]):
            lead = (facts["times"], layer["heads"], len(facts["frames"]))
            assert reader.shape(f"{view['path']}/rows_{i:03d}") == (*lead, *layer["row_grid"], layer["keys"])
            assert reader.shape(f"{view['path']}/r2g_{i:03d}") == (*lead, *layer["grid"])
            assert reader.shape(f"{view['path']}/stats_{i:03d}") == (facts["steps"], layer["heads"], len(facts["measures"]))


def test_samples_branches_and_groups_are_views(tmp_path) -> None:
    layers = [reference_layer(text=5), reference_layer("unet.up_blocks.1.attentions.0.attn2", (8, 6), reference=None, text=5)]
    trace = synthetic_trace(
        tmp_path / "run.zarr", layers=layers, samples=2, branches=("cond", "uncond"), texts=[SENTENCE], encoding="factors"
    )
    made = make_overview(open_trace(trace.path), time_groups=2)
    check(made)
    views = made.facts["views"]
    assert [(v["sample"], v["branch"], v["group"]) for v in views] == [
        (s, b, g) for s in (0, 1) for b in ("cond", "uncond") for g in ("text", "reference")
    ]
    assert views[0]["images"] == {"generated": "generated_0", "reference": None, "mask": "mask", "reference_mask": None}
    assert views[5]["images"]["generated"] == "generated_1" and views[5]["ref_grid"] == [3, 5] and views[5]["specials"] == 1
    assert [word["text"] for word in views[0]["words"]] == ["<s>", "a", "dog", "</s>"] and views[0]["words"][3]["tokens"] == [3, 4]
    assert views[1]["words"] == views[2]["words"] == []
    assert [layer["short"] for layer in views[0]["layers"]] == ["mid_block.attentions.0.transformer_blocks", "up_blocks.1.attentions"]
    assert [layer["block"] for layer in views[0]["layers"]] == ["mid", "up.1"]
    p = trace.probabilities[1][0, 0].mean(1)
    expected = np.stack([p[steps].mean(0)[..., 3:5].mean(-1) for steps in ([0, 1], [2, 3])])
    np.testing.assert_allclose(read_words(made.reader(), "views/000", 1)[:, 3, 0], expected, atol=0.004 * expected.max())
    alone = make_overview(open_trace(trace.path), group="reference", sample=1, branch="uncond", time_groups=2)
    assert [v["path"] for v in alone.facts["views"]] == ["views/000"]
    assert np.array_equal(alone.reader().read("views/000/rows_000"), made.reader().read("views/007/rows_000"))


def test_words_of_probes_are_those_of_word_map(tmp_path) -> None:
    trace = open_trace(trace_of(tmp_path / "run.zarr").path)
    made = make_overview(trace, sample=1, branch="cond", time_groups=1)
    view = made.facts["views"][0]
    assert [word["text"] for word in view["words"]] == ["dog", "polar bear", "cat", "red", "ultramarine", "tiny"]
    assert all(word["kind"] == "probe" and word["probe"] == "concepts" for word in view["words"])
    recipe = get_recipe("ovam", heads="mean", target=(8, 6), time="mean", skip="")
    for word in (0, 4):  # one token, and four
        expected = word_map(trace, view["words"][word]["text"], probe="concepts", sample=1, branch="cond", layers=0, recipe=recipe)
        found = read_words(made.reader(), "views/000", 0)[0, word, 0]
        np.testing.assert_allclose(found, expected.values, atol=0.004 * expected.values.max())
    assert np.isnan(made.reader().read("views/000/words_002_max")).all()


def test_words_are_dropped_where_nothing_else_helps(tmp_path) -> None:
    said = tuple(f"w{i}" for i in range(60))
    text = Text("text", " ".join(said), said, tuple(Word(word, i, i + 1) for i, word in enumerate(said)))
    layers = [reference_layer(f"unet.{i}.attn2", (16, 16), heads=1, reference=None, text=60) for i in range(3)]
    trace = open_trace(synthetic_trace(tmp_path / "run.zarr", layers=layers, steps=3, texts=[text]).path)
    made = make_overview(trace, budget=100_000)
    assert made.nbytes <= 100_000 and "maps of words" in made.facts["plan"]["dropped"]
    assert len(made.facts["views"][0]["words"]) == 60 and made.facts["views"][0]["layers"][0]["word_grid"] is None
    assert not any("words" in path for path in made.reader().arrays)


def test_frames_of_a_video_are_sampled(tmp_path) -> None:
    layers = [reference_layer(frames=12), reference_layer("unet.up_blocks.1.attentions.0.attn2", (8, 6), frames=6)]
    trace = synthetic_trace(tmp_path / "run.zarr", layers=layers, frames=24, steps=2, encoding="factors")
    made = make_overview(open_trace(trace.path), time_groups=1)
    check(made)
    frames = made.facts["frames"]
    assert len(frames) == 8 and made.reader().shape("images/generated_0") == (8, 64, 48, 3)
    shown = [(2 * i + 1) * 12 // 16 for i in range(8)]
    assert frames == shown
    expected = trace.generated[0][0, 0].mean(-1).sum(0)[:, shown]
    np.testing.assert_allclose(read_maps(made.reader(), "views/000", "r2g", 0)[0], expected, atol=1e-5 * expected.max())


def layer(group: TokenGroup, **fields) -> Layer:
    return Layer("net.attn", 0, 2, 8, 0.35, (8, 6), group.tokens, (group,), **fields)


KINDS = {
    "self": layer(TokenGroup("self", "self", 0, 48, 0, (8, 6))),
    "adapter": layer(TokenGroup("ip", "reference", 0, 4, 0, None, "reference")),
    "specials": layer(TokenGroup("ip", "reference", 0, 3, 3, None, "reference")),
    "one token": layer(TokenGroup("ip", "reference", 0, 1, 0, (1, 1), "reference")),
    "some keys": reference_layer(hidden=3),
    "some heads": reference_layer(heads=2, head_numbers=(1, 4), call_heads=6),
    "one head": reference_layer(heads=1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_groups_of_all_kinds(tmp_path, kind: str) -> None:
    trace = synthetic_trace(tmp_path / "run.zarr", layers=[KINDS[kind]], steps=1, encoding="factors")
    made = make_overview(open_trace(trace.path))
    check(made)
    (view,) = made.facts["views"]
    (one,) = view["layers"]
    scores = dict(zip(made.facts["scores"], made.reader().read("views/000/scores")[-1], strict=True))
    assert np.isfinite([scores["imacs_g"], scores["inside"], scores["evenness"]]).all()
    assert (one["key_grid"] is None) == (view["ref_grid"] is None) == np.isnan(scores["imacs_r"])
    assert one["head_numbers"] == list(KINDS[kind].heads_kept) and one["calls"] == [1]
    assert view["images"]["reference"] == ("generated_0" if kind == "self" else "reference")


def test_what_is_not_known_is_absent(tmp_path) -> None:
    trace = synthetic_trace(tmp_path / "run.zarr", absent=[(0, 1), (1, 1)], status="interrupted", planned=9)
    made = make_overview(open_trace(trace.path, partial=True), time_groups=2)
    check(made)
    facts, reader = made.facts, made.reader()
    assert facts["trace"]["manifest"] is None and facts["trace"]["planned"] == 9 and facts["images"] == []
    assert facts["views"][0]["images"] == dict.fromkeys(("generated", "reference", "mask", "reference_mask"))
    assert facts["views"][0]["layers"][1]["calls"] == [0, 2] and any("not called in every evaluation" in note for note in facts["notes"])
    assert "views/000/g2r_masked_000" not in reader and "views/000/truth" not in reader
    assert np.isnan(reader.read("views/000/r2g_001_max")[0]).all() and np.isfinite(reader.read("views/000/r2g_001_max")[1]).all()
    assert np.isnan(reader.read("views/000/rows_001_max")[0]).all() and np.isnan(reader.read("views/000/stats_001")[:2]).all()
    known = np.isfinite(reader.read("views/000/scores")).all(0)
    assert dict(zip(facts["scores"], known, strict=True)) == {name: name == "evenness" for name in facts["scores"]}


def test_a_layer_that_was_never_called_is_left_out_and_a_trace_without_calls_refused(tmp_path) -> None:
    trace = synthetic_trace(tmp_path / "run.zarr", steps=2, absent=[(0, 1), (1, 1)])
    made = make_overview(open_trace(trace.path))
    assert [one["index"] for one in made.facts["views"][0]["layers"]] == [0, 2]
    empty = synthetic_trace(tmp_path / "empty.zarr", steps=1, absent=[(0, i) for i in range(3)])
    with pytest.raises(InvalidInput, match="no layer was called"):
        make_overview(open_trace(empty.path))


def test_truth_and_window_stand_beside_the_view(tmp_path) -> None:
    position = np.full((8, 6, 2), 0.25).tolist()
    position[0][0] = [None, None]
    facts = {"demo": {"position": position}}
    made = make_overview(open_trace(synthetic_trace(tmp_path / "run.zarr", steps=1, facts=facts, window=(6, 10, 24, 40)).path))
    truth = made.reader().read("views/000/truth")
    assert truth.shape == (1, 8, 6, 2) and np.isnan(truth[0, 0, 0]).all() and (truth[0, 1:] == 0.25).all()
    assert made.facts["views"][0]["truth"] and made.facts["views"][0]["window"] == [0.2, 0.2, 0.8, 0.8]


def test_layers_of_a_resampler_are_named_in_a_note(tmp_path) -> None:
    squeeze = Layer(
        "resampler.attn", 0, 2, 8, 0.35, (1, 4), 24, (TokenGroup("image", "reference", 0, 24, 0, (4, 6), "reference"),), queries="ip"
    )
    trace = synthetic_trace(tmp_path / "run.zarr", layers=[KINDS["adapter"], squeeze], encoding="factors", steps=1)
    made = make_overview(open_trace(trace.path))
    assert [view["group"] for view in made.facts["views"]] == ["ip"] and "carry" in made.facts["notes"][0]
