"""Head relevance vectors: equal to a step-by-step float64 oracle, lawful, and found where they were planted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from probed import CONCEPTS, LAYERS, ORDER, PIECES, TEXTS, probed, trace_of, word_texts

from i2am.analyzer import concept_words, head_relevance, load_concepts, open_trace
from i2am.analyzer.heads.counting import Span, draw, winners
from i2am.analyzer.heads.probes import ProbeWords
from i2am.analyzer.heads.scores import vectors
from i2am.analyzer.trace.heads import published_order
from i2am.schema.errors import InvalidInput, UnknownSelection
from i2am.schema.text import Text, Word
from i2am.schema.trace import Layer, TokenGroup
from traces import Synthetic, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Synthetic]:
    folder = tmp_path_factory.mktemp("relevance")
    return [trace_of(folder / f"{i}.zarr", i, absent={(1, 3)} if i == 0 else ()) for i in range(3)]


def oracle(made: Sequence[Synthetic], seed: int = 0, draws: int = 1, branch: int = 1) -> dict[str, np.ndarray]:
    """Counts (step, concept, head) by layer, word by word in float64."""
    counts: dict[str, np.ndarray] = {}
    for each in made:
        for index, layer in enumerate(each.trace.layers):
            if not layer.probes:
                continue
            found = counts.setdefault(layer.name, np.zeros((3, 3, layer.heads), int))
            for sample, step in np.ndindex(2, 3):
                if np.isnan(each.scores[index][sample, branch, step]).any():
                    continue
                name = f"{seed}/{each.trace.id}/{layer.name}/{sample}/{step}"
                rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()))
                for _ in range(draws):
                    picked = rng.integers([3, 2, 1])
                    words = [CONCEPTS[concept][i] for concept, i in zip(CONCEPTS, picked, strict=True)]
                    for head in range(layer.heads):
                        query = each.query[index][sample, branch, step, head].astype(np.float64)
                        found[step, strongest(layer, query, each.probe_key[index][head].astype(np.float64), words), head] += 1
    return counts


def strongest(layer: Layer, query: np.ndarray, key: np.ndarray, words: list[str]) -> int:
    """The word of the three that one head attends to most."""
    at = {text.text: 4 + text.start for text in TEXTS}
    keys = [key[at[words[0]]]]  # the first word's start of text
    for word in words:
        keys += [key[at[word] + 1 + i] for i in range(PIECES[word])]
    total = np.zeros(len(keys))
    for row in query.reshape(-1, layer.head_dim):
        scores = np.array([layer.scale * (row @ k) for k in keys])
        weights = np.exp(scores - scores.max())
        total += weights / weights.sum()
    share, start = [], 1
    for word in words:
        share.append(total[start : start + PIECES[word]].mean())
        start += PIECES[word]
    return int(np.argmax(share))


@pytest.mark.parametrize(("seed", "draws"), [(0, 1), (5, 3)])
def test_counts_are_the_oracle_s(made: list[Synthetic], seed: int, draws: int) -> None:
    found = head_relevance([each.path for each in made], concepts=CONCEPTS, seed=seed, draws=draws, keep="time")
    truth = oracle(made, seed, draws)
    for name, counts in truth.items():
        np.testing.assert_array_equal(found["count"].sel(layer=name)[..., : counts.shape[-1]], counts)
        assert (found["count"].sel(layer=name)[..., counts.shape[-1] :] == 0).all()
    whole = head_relevance([each.path for each in made], concepts=CONCEPTS, seed=seed, draws=draws)
    np.testing.assert_array_equal(whole["count"], found["count"].sum("time"))
    assert len({tuple(row.ravel()) for row in truth.values()}) == len(truth), "the oracle tells layers apart"


def test_what_is_counted_is_what_is_published(made: list[Synthetic]) -> None:
    found = head_relevance([each.path for each in made], concepts=CONCEPTS)
    assert found.dims == ("concept", "layer", "head")
    assert found["layer"].values.tolist() == ORDER and found["heads"].values.tolist() == [4, 3, 2]
    assert found["position"].values.tolist() == [[0, 1, 2, 3], [4, 5, 6, -1], [7, 8, -1, -1]]
    share = found["count"] / found["count"].sum("concept")
    np.testing.assert_allclose(found["share"], share)
    np.testing.assert_allclose(found, 9 * share / share.sum(("layer", "head")))
    assert np.isnan(found.values).sum() == 3 * 3, "heads that a layer does not have are absent, not 0"
    assert found.attrs["traces"] == sorted(each.trace.id for each in made)
    assert found.attrs["words"] == CONCEPTS and found.attrs["model"] == "synthetic"


def test_branches_are_counted_apart(made: list[Synthetic]) -> None:
    found = head_relevance(made[1].path, concepts=CONCEPTS, branch="uncond")
    truth = oracle(made[1:2], branch=0)
    for name, counts in truth.items():
        np.testing.assert_array_equal(found["count"].sel(layer=name)[..., : counts.shape[-1]], counts.sum(0))
    with pytest.raises(UnknownSelection, match="no branch 'both'; it has uncond, cond"):
        head_relevance(made[1].path, concepts=CONCEPTS, branch="both")


def test_traces_of_the_same_words_share_what_is_known_of_them(made: list[Synthetic]) -> None:
    first, second = (open_trace(each.path) for each in made[:2])
    asked = ProbeWords(first, load_concepts(CONCEPTS), "concepts", None, None)
    rows = [spans for trace in (first, second) for _, spans in asked.rows(trace)]
    assert len(rows) == 6 and all(spans is rows[0] for spans in rows)


def test_order_workers_and_company_do_not_matter(made: list[Synthetic]) -> None:
    found = head_relevance([each.path for each in made], concepts=CONCEPTS)
    with dask.config.set(scheduler="synchronous"):
        again = head_relevance([open_trace(each.path) for each in reversed(made)], concepts=CONCEPTS)
    assert found.identical(again)
    alone = [head_relevance(each.path, concepts=CONCEPTS)["count"] for each in made]
    np.testing.assert_array_equal(sum(alone), found["count"])
    one = head_relevance([each.path for each in made], concepts=CONCEPTS, layers="*mid*")["count"]
    np.testing.assert_array_equal(one[:, 0, :3], found["count"].sel(layer=ORDER[1])[:, :3])
    other = head_relevance([each.path for each in made], concepts=CONCEPTS, seed=1)
    assert not np.array_equal(other["count"], found["count"])


def test_blocks_do_not_matter(made: list[Synthetic], monkeypatch: pytest.MonkeyPatch) -> None:
    found = head_relevance(made[0].path, concepts=CONCEPTS, draws=4)
    monkeypatch.setattr("i2am.analyzer.trace.softmax.ROW_BYTES", 1)
    assert found.identical(head_relevance(made[0].path, concepts=CONCEPTS, draws=4))


@pytest.mark.parametrize("sharpness", [3.0, 40.0])
def test_a_planted_head_comes_out_first(tmp_path: Path, sharpness: float) -> None:
    def plant(index: int, key: np.ndarray) -> None:
        for text in TEXTS:
            if text.text in CONCEPTS["Color"] and index == 3:
                key[1, 4 + text.start + 1 : 4 + text.start + len(text.tokens) - 1] *= 8  # half of all queries match it, and strongly

    made = trace_of(tmp_path / "planted.zarr", plant=plant, sharpness=sharpness)
    found = head_relevance(made.path, concepts=CONCEPTS, draws=5)
    best = found.sel(concept="Color").stack(at=("layer", "head")).idxmax().item()
    assert best == (ORDER[1], 1)
    assert float(found["share"].sel(concept="Color", layer=ORDER[1], head=1)) == 1


@settings(max_examples=50, deadline=None)
@given(arrays(np.int64, (4, 2, 3), elements=st.integers(0, 20)))
def test_shares_and_vectors_sum_as_they_must(counts: np.ndarray) -> None:
    share, relevance = vectors(counts)
    asked = counts.sum(0) > 0
    np.testing.assert_allclose(share.sum(0)[asked], 1)
    assert np.isnan(share[:, ~asked]).all() and np.isnan(relevance[:, ~asked]).all()
    for row, total in zip(relevance, counts.sum((1, 2)), strict=True):
        np.testing.assert_allclose(np.nansum(row), asked.sum() if total else 0, atol=1e-12)


@given(st.permutations(range(3)), st.integers(0, 2**32 - 1))
def test_concepts_may_come_in_any_order(order: list[int], seed: int) -> None:
    """Without specials, which are the first word's, it makes no difference which concept stands first."""
    rng = np.random.default_rng(seed)
    query, key = rng.standard_normal((2, 5, 4)), rng.standard_normal((2, 9, 4))
    spans = [Span((), (0,)), Span((), (1, 2, 3)), Span((), (5, 6))]
    plain = winners(query, key, spans)
    assert [order[i] for i in winners(query, key, [spans[i] for i in order])] == plain.tolist()


def test_words_are_drawn_alike() -> None:
    spans = [[Span((), (word,)) for word in range(count)] for count in (4, 1, 2)]
    rng = np.random.default_rng(0)
    drawn = np.array([[span.tokens[0] for span in draw(rng, spans)] for _ in range(4000)])
    for column, count in zip(drawn.T, (4, 1, 2), strict=True):
        np.testing.assert_allclose(np.bincount(column, minlength=count) / 4000, 1 / count, atol=0.03)


def test_a_text_of_two_tokenizers_has_the_tokens_of_both(tmp_path: Path) -> None:
    texts = [*word_texts({"dog": 1, "red": 1}), Text("concepts", "dog", ("do", "g", "</s>"), (Word("dog", 0, 2),), start=6)]
    layer = reference_layer(ORDER[0], reference=None, text=3, probes=(TokenGroup("concepts", "text", 0, 9),))

    def plant(index: int, key: np.ndarray) -> None:
        key[0, 7] *= 30  # only the second tokenizer's piece gives the animal away

    made = synthetic_trace(tmp_path / "t.zarr", layers=[layer], encoding="factors", texts=texts, plant=plant)
    found = head_relevance(made.path, concepts={"Animals": ["dog"], "Color": ["red"]})
    assert found["count"].sel(concept="Animals", head=0).item() == 4


def test_pictures_are_words_too(tmp_path: Path) -> None:
    """Four garments of six tokens, the first CLS: two are dots, and one head was made for dots."""
    garments = tuple(TokenGroup(f"garments_{i}", "reference", 6 * i, 6 * i + 6, 1, (1, 5)) for i in range(4))
    layer = reference_layer(ORDER[0], heads=2, probes=garments)

    def plant(index: int, key: np.ndarray) -> None:
        key[1, [*range(7, 12), *range(19, 24)]] *= 8

    made = synthetic_trace(tmp_path / "t.zarr", layers=[layer], encoding="factors", plant=plant, steps=6)
    kinds = {"stripes": ["garments_0", "garments_2"], "dots": ["garments_1", "garments_3"]}
    found = head_relevance(made.path, concepts=kinds, probe="garments", keep="time")
    assert found["count"].sel(concept="dots", head=1).sum() == 6
    for step in range(6):
        name = f"0/{made.trace.id}/{layer.name}/0/{step}"
        picked = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest())).integers([2, 2])
        stripes, dots = 2 * picked[0], 2 * picked[1] + 1
        keys = made.probe_key[0][0][[6 * stripes, *(6 * stripes + 1 + i for i in range(5)), *(6 * dots + 1 + i for i in range(5))]]
        scores = layer.scale * (made.query[0][0, 0, step, 0].reshape(-1, 8).astype(np.float64) @ keys.T.astype(np.float64))
        shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        first = shares[:, 1:6].mean() > shares[:, 6:].mean()
        assert found["count"].sel(head=0).values[step, :, 0].tolist() == [int(first), int(not first)]
    with pytest.raises(UnknownSelection, match="lacks 1 of the concepts' words: garments_4; it has garments_0, garments_1"):
        head_relevance(made.path, concepts={**kinds, "logo": ["garments_4"]}, probe="garments")


def test_layers_come_in_the_published_order() -> None:
    unet = [f"unet.{part}.attn2" for part in ("up_blocks.1", "up_blocks.2", "mid_block", "down_blocks.0", "down_blocks.1")]
    assert published_order(unet) == [3, 4, 2, 0, 1]
    assert published_order(["m.output_blocks.3", "m.middle_block.1", "m.input_blocks.1"]) == [2, 1, 0]
    assert published_order(["transformer.b.9", "transformer.b.10"]) == [0, 1]


def test_the_published_concepts_are_there() -> None:
    known = load_concepts()
    assert len(known) == 34 and {len(words) for words in known.values()} == {10}
    assert next(iter(known)) == "Animals" and list(known)[-1] == "Geometric Patterns"
    assert known["Geo-locations"][-1] == "Rio de Janeiro"
    assert len(concept_words()) == 340 and concept_words()[:2] == ["Dog", "Cat"]


def test_own_concepts_come_from_a_file(tmp_path: Path, made: list[Synthetic]) -> None:
    path = tmp_path / "own.toml"
    path.write_text('[concepts]\nAnimals = ["dog", "polar bear", "cat"]\nColor = ["red", "ultramarine"]\nSize = ["tiny"]\n')
    assert head_relevance(made[1].path, concepts=path).identical(head_relevance(made[1].path, concepts=CONCEPTS))


BAD_CONCEPTS: list[tuple[Any, str]] = [
    ("nowhere.toml", r"nowhere.toml cannot be read as a list of concepts .*expected a TOML file"),
    ({"Animals": ["dog"]}, "1 concepts; a head is counted for the one of several"),
    ({"Animals": ["dog"], "Color": []}, r"concept 'Color' has the words \[\]; expected a name and a list"),
    ({"Animals": "dog", "Color": ["red"]}, "concept 'Animals' has the words 'dog'; expected"),
    ({"Animals": ["dog", "dog"], "Color": ["red"]}, "concept 'Animals' has a word twice, of dog, dog"),
]


@pytest.mark.parametrize(("given", "message"), BAD_CONCEPTS)
def test_what_is_no_list_of_concepts_is_refused(given: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        load_concepts(given)


@pytest.mark.parametrize(
    ("text", "message"), [("[concepts", "is not TOML"), ("Animals = ['dog']", r"has no table \[concepts\]; expected a TOML file")]
)
def test_files_of_another_form_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(InvalidInput, match=message):
        load_concepts(tmp_path / "own.toml")


def test_traces_that_cannot_be_counted_say_why(tmp_path: Path, made: list[Synthetic]) -> None:
    first = made[1].path
    plain = trace_of(tmp_path / "plain.zarr", 7, encoding="probabilities").path
    bare = trace_of(tmp_path / "bare.zarr", 8, encoding="probabilities", layers=[LAYERS[2]], texts=()).path
    unprobed = trace_of(tmp_path / "unprobed.zarr", 9, layers=[LAYERS[2]], texts=()).path
    narrow = trace_of(tmp_path / "narrow.zarr", 10, layers=[LAYERS[0], probed(ORDER[0], 4, head_dim=8), LAYERS[3]]).path
    fewer = trace_of(tmp_path / "fewer.zarr", 11, layers=LAYERS[:2]).path
    longer = trace_of(tmp_path / "longer.zarr", 12, steps=4).path
    cases: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (plain, {}, InvalidInput, "as probabilities, which no other keys can be held against; record with enc"),
        (bare, {}, InvalidInput, "bare.zarr was recorded as probabilities, .* has no probe 'concepts': record with"),
        (unprobed, {}, UnknownSelection, "has a probe 'concepts'; it has none. To have one, record with"),
        (first, {"probe": "colours"}, UnknownSelection, "has a probe 'colours'; it has other, concepts. To have one, record with"),
        (first, {"concepts": None}, UnknownSelection, "lacks 340 of the concepts' words: Dog, .* and 328 more; it has dog, pol"),
        (first, {"layers": "*attn1"}, UnknownSelection, "no selected layer of .* has a probe 'concepts'"),
        ([], {}, InvalidInput, "there are no traces to count"),
        ([first, open_trace(first)], {}, InvalidInput, "are the same recording, which would count twice"),
        ([first, narrow], {}, InvalidInput, "cannot be counted together: of layer unet.down_blocks.0.attn2 .* 4 channels .* of 8 channels"),
        ([first, fewer], {}, InvalidInput, "of layer unet.mid_block.attn2 .* as factors, the first none"),
        ([first, longer], {"keep": "time"}, InvalidInput, r"time cannot be kept over traces with different .* \(.*: 3, .*: 4\)"),
        (first, {"keep": "head"}, InvalidInput, "cannot keep 'head'; layers and heads are always kept"),
        (first, {"draws": 0}, InvalidInput, "0 draws; expected 1 or more"),
        (first, {"seed": 0.5}, InvalidInput, "0.5 is not a seed; expected a whole number"),
    ]  # fmt: skip
    for traces, options, error, message in cases:
        with pytest.raises(error, match=message):
            head_relevance(traces, **{"concepts": CONCEPTS, **options})
