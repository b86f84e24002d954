"""A drawn picture with planted attention: a red house under a yellow sun, whose words look where they are painted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from i2am.recorder.store.writer import Writer
from i2am.schema.text import Text, Word
from i2am.schema.trace import Codec, Image, Layer, TokenGroup, TraceRecord

SIZE = 96
STEPS = 5
PROMPT = "a red house under a yellow sun"
THINGS = {"house": (1.0, 0, 0, 0), "red": (0.7, 0, 0, 0), "sun": (0, 1.0, 0, 0), "yellow": (0, 0.8, 0, 0), "under": (0, 0, 0.3, 0.6)}
"""What each word attends to, of house, sun, sky and meadow."""
CONCEPTS = {"Things": ("house", "sun"), "Colours": ("red", "yellow"), "Places": ("under",)}
GRIDS = {"unet.down_blocks.0.attn2": 16, "unet.mid_block.attn2": 8, "unet.up_blocks.0.attn2": 16}
HEADS = 4
CHANNELS = 8


def paint() -> tuple[np.ndarray, np.ndarray]:
    """The picture, and how much of house, sun, sky and meadow is in each pixel."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    sun = np.hypot(y - 0.22, x - 0.76) < 0.13
    walls = (abs(x - 0.34) < 0.17) & (y > 0.5) & (y < 0.8)
    roof = (y > 0.3) & (y <= 0.5) & (abs(x - 0.34) < (y - 0.3) * 1.15)
    meadow = (y > 0.7 + 0.04 * np.sin(7 * x)) & ~walls
    pixels = np.stack([150 + 60 * y, 190 + 30 * y, 235 + 0 * y], -1)
    for there, colour in ((sun, (245, 205, 60)), (meadow, (110, 160, 80)), (walls, (190, 60, 50)), (roof, (120, 40, 40))):
        pixels[there] = colour
    pixels[(abs(x - 0.34) < 0.045) & (y > 0.63) & (y < 0.8)] = (90, 60, 45)
    house = walls | roof
    parts = np.stack([house, sun, ~(house | sun | meadow), meadow], -1)
    return pixels.astype(np.uint8), parts.astype(np.float64)


def prompt_text() -> Text:
    tokens, words = ["<s>"], []
    for word in PROMPT.split():
        words.append(Word(word, len(tokens), len(tokens) + 1))
        tokens.append(word)
    return Text("text", PROMPT, (*tokens, "</s>", "</s>"), tuple(words))


def keys(tokens: tuple[str, ...], rng: np.random.Generator, likes: np.ndarray) -> np.ndarray:
    """(head, token, channel): the parts that a word is of, each head minding them as much as it likes."""
    found = rng.normal(0, 0.1, (HEADS, len(tokens), CHANNELS))
    for t, token in enumerate(tokens):
        found[:, t, :4] += likes[:, None] * np.array(THINGS.get(token, (0, 0, 0, 0)))
        found[:, t, 4] += 1.2 if token == "<s>" else 0.0  # the sink that every model has
    return found.astype(np.float32)


def scene_trace(path: Path) -> Path:
    """A trace of the picture: three layers of four heads, five steps, and the concepts as a probe."""
    pixels, parts = paint()
    text, rng = prompt_text(), np.random.default_rng(0)
    probe = [
        Text("concepts", word, ("<s>", word, "</s>"), (Word(word, 1, 2),), start=3 * i) for i, word in enumerate(sum(CONCEPTS.values(), ()))
    ]
    record = TraceRecord("00000000-0000-4000-8000-00000000cafe", "recording", 1, ("cond",), STEPS, codec=Codec(), latent_grid=(16, 16),
                         created="2026-01-01T00:00:00+00:00")  # fmt: skip
    writer = Writer(path, record)
    groups = (TokenGroup("text", "text", 0, len(text.tokens)),)
    probes = (TokenGroup("concepts", "text", 0, 3 * len(probe)),)
    likes = {name: rng.uniform(0.4, 1.6, HEADS) for name in GRIDS}
    for name, side in GRIDS.items():
        layer = Layer(name, 0, HEADS, CHANNELS, 1.0, (side, side), len(text.tokens), groups, encoding="factors", probes=probes)
        layer = dataclasses.replace(layer, dtype="float32", factor_dtype="float32")
        words = tuple(token for each in probe for token in each.tokens)
        writer.add_layer(layer, keys(words, rng, likes[name]))
    writer.add_texts([text, *probe])
    for step in range(STEPS):
        for index, (name, side) in enumerate(GRIDS.items()):
            share = parts.reshape(side, SIZE // side, side, SIZE // side, 4).mean((1, 3))
            query = rng.normal(0, 0.25, (HEADS, side, side, CHANNELS))
            query[..., :4] += (1 + step) * (0.4 if side < 16 else 0.9) * share
            query[..., 4] += 1.5
            block = {"query": query.astype(np.float32), "key": keys(text.tokens, np.random.default_rng(index), likes[name])}
            writer.put(index, 0, "cond", step, block, lost=0.0)
        writer.commit(step, evaluation=step, timestep=900.0 - 200 * step, sigma=float(STEPS - step), scheduler_step=step)
    image = Image("generated_0", "generated", SIZE, SIZE, 3)
    writer.finish(images=[(image, pixels)], model={"pipeline": "drawn"}, inputs={}, provenance={})
    return path
