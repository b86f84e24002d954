"""Token strings and words: those that the tokenizers made, proven by what the denoiser was given, or none at all."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import MemoryWriter, memory
from pipelines_text import FAMILIES, LENGTH, clip_tokenizer, prompted, prompted_xl, t5_tokenizer
from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

from i2am.analyzer import open_trace
from i2am.recorder import record
from i2am.recorder.text.readings import Texts, align, find_words, lettered
from i2am.schema.text import Text

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
__all__ = ["memory"]


def said(text: Text) -> list[tuple[str, str]]:
    """Each word and its tokens, joined."""
    return [(word.text, " ".join(text.tokens[word.start : word.stop])) for word in text.words]


# -- words of a text -------------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab é_1,.'!  \nनि中", max_size=30), st.data())
def test_words_are_stretches_of_the_text_and_of_its_tokens(text: str, data: st.DataObject) -> None:
    ends = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text)), max_size=10))})
    spans = ((0, 0), *itertools.pairwise(ends), (0, 0))
    words = find_words(text, spans)
    place = token = 0
    for word in words:
        found = text.index(word.text, place)
        assert not text[place:found].strip()
        assert token <= word.start < word.stop
        inside = [i for i, (a, b) in enumerate(spans) if a < found + len(word.text) and b > found]
        assert (inside[0], inside[-1] + 1) == (word.start, word.stop)
        place, token = found + len(word.text), word.stop
    assert not text[place:].strip()


def test_words_are_told_apart_as_people_would() -> None:
    tokenizer = clip_tokenizer()
    text = "a zebra, Dog's cat-hat! a dog"
    encoding = tokenizer(text).encodings[0]
    words = find_words(text, tuple(encoding.offsets))
    assert [word.text for word in words] == ["a", "zebra", ",", "Dog", "'", "s", "cat", "-", "hat", "!", "a", "dog"]
    assert (words[1].stop - words[1].start, words[2].stop - words[2].start) == (2, 1)
    shared = find_words("it's", ((0, 2), (2, 4)))
    assert [(word.text, word.start, word.stop) for word in shared] == [("it", 0, 1), ("'s", 1, 2)]
    cut = tokenizer(text, max_length=5, truncation=True).encodings[0]
    assert [word.text for word in find_words(text, tuple(cut.offsets))] == ["a", "zebra"]
    assert find_words("नि दो", tuple((i, i + 1) for i in range(5)))[0].text == "नि"


@pytest.mark.parametrize("make", [clip_tokenizer, t5_tokenizer])
@settings(max_examples=40, deadline=None)
@given(words=st.lists(st.sampled_from(["a", "zebra", "Dog", "red", "ox", ",", ".", "cat,", "hat"]), max_size=8))
def test_tokens_without_offsets_are_found_where_offsets_say(make: Any, words: list[str]) -> None:
    tokenizer, text = make(), " ".join(words)
    encoding = tokenizer(text, padding="max_length", max_length=30).encodings[0]
    pieces = ["" if special else token for token, special in zip(encoding.tokens, encoding.special_tokens_mask, strict=True)]
    assert find_words(text, align(text, pieces)) == find_words(text, lettered(encoding.tokens, tuple(encoding.offsets)))


def test_letters_whose_lower_case_is_longer_are_not_guessed() -> None:
    assert align("İstanbul dog", ["İstanbul", "dog"]) == ((0, 0), (0, 0))
    assert align("a dog", ["a</w>", "cat</w>", "dog</w>"]) == ((0, 1), (0, 0), (2, 5))
    assert align("▁ a", ["▁", "</w>", "▁a"])[:2] == ((0, 0), (0, 0))


def test_templates_that_are_dropped_and_padding_that_is_zero() -> None:
    pipeline, _ = prompted()
    watch = Texts(pipeline)
    with watch.watched(), torch.no_grad():
        ids = pipeline.tokenizer("in the hat a red zebra", padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
        vectors = pipeline.text_encoder(ids).last_hidden_state[0, 4:]  # from "a" on
    masked = vectors.clone()
    masked[5:] = 0
    for shown in (vectors, masked):
        (stretch,) = watch.find(shown)
        text = stretch.text("text")
        assert said(text) == [("a", "a</w>"), ("red", "red</w>"), ("zebra", "zeb ra</w>")]
        assert len(text.tokens) == LENGTH - 4
    assert watch.find(vectors.half())[0].text("text") == watch.find(vectors)[0].text("text")
    assert watch.find(vectors.flip(0))[0].count < LENGTH - 4
    assert watch.find(vectors + 1) == ()
    with watch.apart():
        assert watch.find(vectors) == ()


def test_a_tokenizer_that_tells_no_places() -> None:
    torch.manual_seed(0)
    encoder = T5EncoderModel(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=400)).eval()
    watch = Texts(SimpleNamespace(components={"tokenizer": ByT5Tokenizer(), "text_encoder": encoder}))
    with watch.watched(), torch.no_grad():
        encoded = ByT5Tokenizer()(["a red dog", "cat"], padding=True, return_tensors="pt")
        assert getattr(encoded, "encodings", None) is None
        vectors = encoder(encoded.input_ids).last_hidden_state
    first, second = (watch.find(row)[0].text("text") for row in vectors)
    assert said(first) == [("a", "a"), ("red", "r e d"), ("dog", "d o g")]
    assert said(second) == [("cat", "c a t")]
    assert watch.find(vectors[1])[0].kept == (True,) * 4 + (False,) * 6


# -- what recordings say ---------------------------------------------------------------------------------------------------------


def run(tmp_path: Path, family: Any, prompt: Any, options: dict[str, Any] | None = None, **changes: Any) -> Any:
    pipeline, call = family(prompt, **changes)
    return record(pipeline, tmp_path / "t.zarr", progress=False, **{"branches": "both", "keys": "all", **(options or {})}, **call())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_says_what_its_tokens_are(tmp_path: Path, family: str) -> None:
    run(tmp_path, FAMILIES[family], "a red zebra, a cat")
    trace = open_trace(tmp_path / "t.zarr").record
    (size,) = {group.tokens for layer in trace.layers for group in layer.groups if group.role == "text"}
    texts = [text for text in trace.texts if text.branch == "cond"]
    assert [text.start for text in texts] == [0, *np.cumsum([len(text.tokens) for text in texts])[:-1]]
    assert sum(len(text.tokens) for text in texts) == size
    for text in texts:
        assert [word for word, _ in said(text)] == ["a", "red", "zebra", ",", "a", "cat"]
        assert dict(said(text))["zebra"] == {"CLIPTokenizer": "zeb ra</w>", "T5Tokenizer": "▁z ebra"}[text.tokenizer]
        assert text.sample is None
    assert [text.tokenizer for text in texts] == {"sd3": ["CLIPTokenizer", "T5Tokenizer"], "flux": ["T5Tokenizer"]}.get(
        family, ["CLIPTokenizer"]
    )
    assert trace.provenance["notes"] == []


def hooks(pipeline: Any) -> int:
    """Hooks on the text encoders; transformers has some of its own."""
    modules = [m for name, part in pipeline.components.items() if name.startswith("text_encoder") for m in part.modules()]
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_image_is_the_same(memory: type[MemoryWriter], tmp_path: Path, family: str) -> None:
    pipeline, call = FAMILIES[family]("a red dog")
    plain = pipeline(**call()).images
    before = hooks(pipeline)
    recorded = record(pipeline, tmp_path / "t.zarr", keys="all", progress=False, **call()).images
    np.testing.assert_array_equal(recorded, plain)
    assert memory.last.trace.texts
    assert hooks(pipeline) == before
    assert "tokenize" not in type(pipeline.tokenizer).__call__.__qualname__


def texts_of(memory: type[MemoryWriter], branch: str = "cond") -> list[Text]:
    return [text for text in memory.last.trace.texts if text.branch == branch]


def test_branches_and_samples_have_their_own(memory: type[MemoryWriter], tmp_path: Path) -> None:
    run(tmp_path, prompted, ["a red dog", "a dog"], negative_prompt=["hat", "hat"], num_images_per_prompt=2)
    cond, uncond = texts_of(memory), texts_of(memory, "uncond")
    assert [(text.sample, text.text) for text in cond] == [(0, "a red dog"), (1, "a red dog"), (2, "a dog"), (3, "a dog")]
    assert [(text.sample, text.text) for text in uncond] == [(None, "hat")]


@pytest.mark.parametrize("family", [prompted, prompted_xl])
def test_layers_that_an_encoder_skips_are_known_too(memory: type[MemoryWriter], tmp_path: Path, family: Any) -> None:
    pipeline, call = family("a red dog", clip_skip=1)
    # Where older transformers had it, and diffusers still looks for the norm that it then calls by itself.
    object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    record(pipeline, tmp_path / "t.zarr", progress=False, **call())
    assert [text.text for text in texts_of(memory)] == ["a red dog"]


def test_a_prompt_that_is_cut_has_the_words_that_are_left(memory: type[MemoryWriter], tmp_path: Path) -> None:
    run(tmp_path, prompted, "a red dog and a cat in the hat and a zebra")
    (text,) = texts_of(memory)
    assert len(text.tokens) == LENGTH
    assert [word for word, _ in said(text)] == ["a", "red", "dog", "and", "a", "cat", "in", "the", "hat", "and"]


def test_zeros_say_nothing_and_want_no_note(memory: type[MemoryWriter], tmp_path: Path) -> None:
    run(tmp_path, prompted_xl, "a dog")
    assert {text.branch for text in memory.last.trace.texts} == {"cond"}
    assert memory.last.trace.provenance["notes"] == []


def test_embeddings_that_were_given_say_nothing(memory: type[MemoryWriter], tmp_path: Path) -> None:
    embeds = torch.randn(1, LENGTH, 8, generator=torch.Generator().manual_seed(1))
    run(tmp_path, prompted, None, {"branches": "cond"}, prompt_embeds=embeds, negative_prompt_embeds=embeds)
    assert memory.last.trace.texts == ()


def test_embeddings_that_were_changed_are_left_out_with_a_note(memory: type[MemoryWriter], tmp_path: Path) -> None:
    pipeline, call = prompted("a dog")
    embeds = 1.5 * pipeline.encode_prompt("a dog", "cpu", 1, False)[0]
    changed = {**call(), "prompt": None, "prompt_embeds": embeds, "negative_prompt": "hat"}
    record(pipeline, tmp_path / "t.zarr", branches="both", progress=False, **changed)
    assert [text.text for text in memory.last.trace.texts] == ["hat"]
    (note,) = memory.last.trace.provenance["notes"]
    assert note == "what the cond text's tokens say is not known: no text encoder made them as they are, or fewer of them"


def test_an_interrupted_recording_has_its_texts(tmp_path: Path) -> None:
    def stop(pipeline: Any, index: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        if index == 1:
            raise RuntimeError("stopped")
        return given

    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path, prompted, "a red dog", callback_on_step_end=stop, num_inference_steps=3)
    trace = open_trace(tmp_path / "t.zarr", partial=True).record
    assert [text.text for text in trace.texts] == ["a red dog", ""]
