"""Words: found with their tokens, told apart, asked of probes by an oracle in float64, and listed where one is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from i2am.analyzer import list_words, open_trace, token_map, word_map
from i2am.analyzer.cli.group import i2am
from i2am.analyzer.trace.reader import Trace
from i2am.schema.errors import InvalidInput, UnknownSelection
from i2am.schema.text import Text, Word
from i2am.schema.trace import TokenGroup
from traces import Synthetic, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

TOKENS = ("<s>", "a", "red", "zeb", "ra", ",", "a", "dog", "'s", "red", "hat", "</s>")
SPELLED = (
    ("a", 1, 2), ("red", 2, 3), ("zebra", 3, 5), (",", 5, 6), ("a", 6, 7), ("dog", 7, 8), ("'s", 8, 9), ("red", 9, 10), ("hat", 10, 11),
)  # fmt: skip
PROMPT = "a red zebra, a dog's red hat"
OTHER = (("▁a", "▁red", "▁z", "ebra", ","), (("a", 0, 1), ("red", 1, 2), ("zebra", 2, 4), (",", 4, 5)))


def text(group: str, said: str, tokens: tuple[str, ...], spelled: tuple[tuple[str, int, int], ...], start: int = 0, **of: Any) -> Text:
    return Text(group, said, tokens, tuple(Word(*word) for word in spelled), start, **of)


TEXTS = (
    text("concepts", "a mouse", ("<s>", "a", "mo", "use", "</s>"), (("a", 1, 2), ("mouse", 2, 4))),
    text("concepts", "computer mouse", ("<s>", "computer", "mo", "use", "</s>"), (("computer", 1, 2), ("mouse", 2, 4)), 5),
    text("scene", "a cat", ("<s>", "a", "cat", "</s>", "</s>", "</s>"), (("a", 1, 2), ("cat", 2, 3))),
    text("text", PROMPT, TOKENS, SPELLED, branch="cond"),
    text("text", PROMPT, *OTHER, start=12, branch="cond"),
    text("text", "Hat", ("<s>", "Hat", "</s>"), (("Hat", 1, 2),), branch="uncond", sample=0),
)
PROBES = (TokenGroup("concepts", "text", 0, 10), TokenGroup("scene", "text", 10, 16), TokenGroup("cat", "reference", 16, 20, grid=(2, 2)))
SIZE = 17


def made_trace(path: Path, encoding: str = "factors", **options: Any) -> Synthetic:
    layers = [
        reference_layer("unet.down.attn2", (8, 6), text=SIZE, reference=None, probes=PROBES, heads=3),
        reference_layer("unet.up.attn2", (8, 6), text=SIZE, reference=None, probes=PROBES),
    ]
    given = {"layers": layers, "texts": TEXTS, "branches": ("cond", "uncond"), "samples": 2, "steps": 2, "sharpness": 1.0}
    return synthetic_trace(path, encoding=encoding, **{**given, **options})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return made_trace(tmp_path_factory.mktemp("words") / "run.zarr")


@pytest.fixture(scope="module")
def trace(made: Synthetic) -> Trace:
    return open_trace(made.path)


# -- words of the prompt ---------------------------------------------------------------------------------------------------------


def test_all_words_are_listed_with_their_tokens(trace: Trace) -> None:
    rows = list_words(trace, branch="cond")
    first = [(row.word, row.occurrence, row.tokens, row.pieces) for row in rows if row.tokens[0] < 12]
    assert first == [
        ("a", 1, (1,), ("a",)),
        ("red", 1, (2,), ("red",)),
        ("zebra", 1, (3, 4), ("zeb", "ra")),
        (",", 1, (5,), (",",)),
        ("a", 2, (6,), ("a",)),
        ("dog", 1, (7,), ("dog",)),
        ("'s", 1, (8,), ("'s",)),
        ("red", 2, (9,), ("red",)),
        ("hat", 1, (10,), ("hat",)),
    ]
    assert [(row.word, row.tokens) for row in rows if row.tokens[0] >= 12] == [
        ("a", (12,)),
        ("red", (13,)),
        ("zebra", (14, 15)),
        (",", (16,)),
    ]
    assert [row.word for row in list_words(trace, branch="uncond")] == ["Hat"]
    assert [(row.word, row.occurrence) for row in list_words(trace, probe="concepts")] == [
        ("a", 1),
        ("mouse", 1),
        ("computer", 1),
        ("mouse", 2),
    ]


@pytest.mark.parametrize(("word", "options", "tokens"), [
    ("dog", {}, [7]),
    ("Dog", {}, [7]),
    ("zebra", {}, [3, 4, 14, 15]),
    ("red", {}, [2, 9, 13]),
    ("red", {"occurrence": 1}, [2, 13]),
    ("red#2", {}, [9]),
    ("a red zebra", {}, [1, 2, 3, 4, 12, 13, 14, 15]),
    ("dog's", {}, [7, 8]),
    ("zebra,", {}, [3, 4, 5, 14, 15, 16]),
    ("zebra , a", {}, [3, 4, 5, 6]),
    ("red hat", {"sample": 1, "layers": 0, "heads": [1], "keep": "time"}, [9, 10]),
    ("hat", {"branch": "uncond"}, [1]),
])  # fmt: skip
def test_a_words_map_is_that_of_its_tokens(trace: Trace, word: str, options: dict[str, Any], tokens: list[int]) -> None:
    found = word_map(trace, word, **options)
    selection = {name: value for name, value in options.items() if name != "occurrence"}
    xr.testing.assert_identical(found.drop_attrs(), token_map(trace, tokens, group="text", **selection).drop_attrs())
    assert found.attrs["tokens"] == tokens
    assert found.attrs["word"] == word.partition("#")[0]


def test_a_probability_trace_has_the_same_words(made: Synthetic, trace: Trace, tmp_path: Path) -> None:
    stored = open_trace(made_trace(tmp_path / "p.zarr", "probabilities").path)
    np.testing.assert_allclose(word_map(stored, "zebra"), word_map(trace, "zebra"), rtol=1e-3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 8), st.integers(1, 4), st.booleans())
def test_every_phrase_is_found_where_it_stands(trace: Trace, first: int, count: int, upper: bool) -> None:
    picked = SPELLED[first : first + count]
    phrase = " ".join(word for word, _, _ in picked).replace(" 's", "'s")
    found = word_map(trace, phrase.upper() if upper else phrase)
    expected = {token for _, start, stop in picked for token in range(start, stop)}
    assert expected <= set(found.attrs["tokens"])


# -- words that were never in the prompt -----------------------------------------------------------------------------------------


def oracle(made: Synthetic, tokens: list[int], among: list[int], branch: int = 0) -> np.ndarray:
    """The sum over steps of softmax over `among`, in the mean over tokens and over all heads of all layers, in float64."""
    heads = []
    for layer, query, key in zip(made.trace.layers, made.query, made.probe_key, strict=True):
        assert key is not None
        scores = layer.scale * np.einsum("shyxc,htc->shyxt", query[0, branch].astype(float), key.astype(float))
        chosen = np.exp(scores[..., among] - scores[..., among].max(-1, keepdims=True))
        share = (chosen / chosen.sum(-1, keepdims=True)).sum(0)
        heads += list(share[..., [among.index(token) for token in tokens]].mean(-1))
    return np.mean(heads, 0)


@pytest.mark.parametrize(("word", "probe", "options", "tokens", "among"), [
    ("mouse", "concepts", {"text": "computer mouse"}, [7, 8], range(5, 10)),
    ("mouse#1", "concepts", {}, [2, 3], range(5)),
    ("mouse", "concepts", {"among": "probe"}, [2, 3, 7, 8], range(10)),
    ("computer mouse", "concepts", {}, [6, 7, 8], range(5, 10)),
    ("cat", "scene", {}, [12], range(10, 16)),
])  # fmt: skip
def test_probes_answer_as_an_oracle_in_float64(
    made: Synthetic, trace: Trace, word: str, probe: str, options: dict[str, Any], tokens: list[int], among: range
) -> None:
    found = word_map(trace, word, probe=probe, recipe="daam", **options)
    np.testing.assert_allclose(found, oracle(made, tokens, list(among)), rtol=1e-5)


def test_probes_are_asked_by_their_own_method(made: Synthetic, trace: Trace) -> None:
    found = word_map(trace, "cat", probe="scene")
    assert found.attrs["recipe"] == "ovam"
    assert found.attrs["branch"] == "uncond"
    heads = sum(layer.heads for layer in trace.layers)
    alone = heads * oracle(made, [12], list(range(10, 14)), branch=1)  # OVAM encodes its attribution prompt without padding
    np.testing.assert_allclose(found, alone, rtol=1e-5)
    padded = heads * oracle(made, [12], list(range(10, 16)), branch=1)
    for options in ({"among": "probe"}, {"recipe": "ovam(padding=yes)"}):
        np.testing.assert_allclose(word_map(trace, "cat", probe="scene", **options), padded, rtol=1e-5)
    assert np.abs(padded / alone - 1).max() > 0.1


# -- what is not there -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "options", "message"), [
    ("zebr", {}, r"no word 'zebr' in text; did you mean zebra\? there are a, red, zebra, ,, dog, 's, hat"),
    ("whale", {}, "no word 'whale' in text; there are a, red, zebra"),
    ("", {}, "no word '' in text"),
    ("#", {}, "no word '#' in text"),
    ("hat dog", {}, "no word 'hat dog' in text"),
    ("whale", {"probe": "concepts"}, "no word 'whale' in concepts; there are a, mouse, computer"),
    ("red", {"occurrence": 3}, "'red' comes 2 times, counted from 1; there is no occurrence 3"),
    ("dog#2", {}, "'dog' comes once, counted from 1; there is no occurrence 2"),
    ("dog", {"occurrence": 0}, "there is no occurrence 0"),
    ("dog", {"occurrence": True}, "there is no occurrence True"),
    ("red#2", {"occurrence": 1}, "name two different times"),
    ("dog", {"probe": "animals"}, "the trace has no probe 'animals'; there are concepts, scene, cat"),
    ("cat", {"probe": "cat"}, "the probe 'cat' is of pictures and has no words; token_map"),
    ("dog", {"group": "prompt"}, "the trace has no token group 'prompt'; it has text"),
    ("dog", {"probe": "scene", "group": "text"}, "leave out group= or probe="),
    ("dog", {"branch": "both"}, "the trace has no branch 'both'; it has cond, uncond"),
    ("hat", {"branch": "uncond", "sample": 1}, "does not say what the tokens of sample 1, branch uncond are; it does of sample any, cond"),
    ("mouse", {"probe": "concepts"}, "'mouse' comes in 2 texts of the probe, each with a softmax of its own: 'a mouse', 'computer mouse'"),
    ("mouse", {"probe": "concepts", "text": "mice"}, "there is no text 'mice'; there are 'a mouse', 'computer mouse'"),
    ("cat", {"probe": "scene", "among": "all"}, "among is 'all'"),
    ("cat", {"probe": "scene", "recipe": "ovan"}, "no recipe 'ovan'"),
])  # fmt: skip
def test_what_is_not_there_is_said_in_one_line(trace: Trace, word: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises((UnknownSelection, InvalidInput), match=message):
        word_map(trace, word, **options)


def test_probes_of_stored_probabilities_are_refused(tmp_path: Path) -> None:
    stored = open_trace(made_trace(tmp_path / "p.zarr", "probabilities").path)
    with pytest.raises(InvalidInput, match=r"probes need the queries.*record with encoding factors"):
        word_map(stored, "cat", probe="scene")


def test_a_trace_without_texts_says_so(tmp_path: Path) -> None:
    trace = open_trace(made_trace(tmp_path / "t.zarr", texts=()).path)
    with pytest.raises(InvalidInput, match=r"does not say what its text tokens are: the run was given embeddings.*takes tokens by number"):
        word_map(trace, "dog")
    with pytest.raises(InvalidInput, match="does not say what its text tokens are"):
        list_words(trace)


# -- the command line ------------------------------------------------------------------------------------------------------------


def command(*arguments: object) -> Any:
    return CliRunner().invoke(i2am, [str(argument) for argument in arguments])


def test_the_command_lists_words(made: Synthetic) -> None:
    result = command("words", made.path, "--branch", "cond")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].split() == ["word", "tokens", "pieces", "in", "branch", "sample"]
    assert ["red#2", "9", "red", "text", "cond", "all"] in [line.split() for line in lines]
    rows = json.loads(command("words", made.path, "--probe", "scene", "--json").output)
    assert [(row["word"], row["tokens"], row["pieces"]) for row in rows] == [("a", [1], ["a"]), ("cat", [2], ["cat"])]


def test_info_says_what_was_said(made: Synthetic) -> None:
    lines = command("info", made.path).output.splitlines()
    assert f"cond      {PROMPT!r}" in lines
    assert "uncond    'Hat'" in lines
    assert "probes    concepts (10 tokens), scene (6 tokens), cat (4 tokens)" in lines
    facts = json.loads(command("info", made.path, "--json").output)
    assert facts["probes"]["scene"] == {"role": "text", "tokens": 6, "layers": 2}
    assert len(facts["texts"]) == 6


@pytest.mark.parametrize("suffix", ["png", "npy", "nc", "zarr"])
def test_the_command_draws_a_word(made: Synthetic, trace: Trace, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"dog.{suffix}"
    result = command("map", made.path, "--word", "red#2", "-o", out, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.output)
    assert (facts["word"], facts["occurrences"], facts["tokens"]) == ("red", [2], [9])
    assert out.exists()
    if suffix == "npy":
        np.testing.assert_array_equal(np.load(out), word_map(trace, "red#2"))


def test_the_command_draws_a_word_of_a_probe(made: Synthetic, tmp_path: Path) -> None:
    out = tmp_path / "mouse.png"
    assert command("map", made.path, "--word", "mouse", "--probe", "concepts", "--text", "a mouse", "-o", out).exit_code == 0
    assert out.exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--word", "zebr"], "did you mean zebra"),
    (["--word", "dog", "--r2g"], "say which map: one of --r2g, --g2r, --at Y,X, --word WORD"),
    (["--r2g", "--probe", "scene"], "--probe says which text a --word is of"),
])  # fmt: skip
def test_the_command_says_what_is_wrong(
    made: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = command("map", made.path, *arguments)
    assert result.exit_code != 0
    assert message in result.output + str(result.exception)
