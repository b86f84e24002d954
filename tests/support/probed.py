"""Synthetic traces with words as probes: three layers of a small U-Net whose heads count concepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from i2am.schema.text import Text, Word
from i2am.schema.trace import Layer, TokenGroup
from traces import Synthetic, reference_layer, synthetic_trace

CONCEPTS = {"Animals": ["dog", "polar bear", "cat"], "Color": ["red", "ultramarine"], "Size": ["tiny"]}
PIECES = {"dog": 1, "polar bear": 3, "cat": 1, "red": 1, "ultramarine": 4, "tiny": 1}
"""Tokens of each word; beside them come a start and an end."""
ORDER = ["unet.down_blocks.0.attn2", "unet.mid_block.attn2", "unet.up_blocks.1.attn2"]


def word_texts(pieces: dict[str, int] = PIECES, group: str = "concepts") -> list[Text]:
    texts, start = [], 0
    for word, count in pieces.items():
        tokens = ("<s>", *(f"{word}/{i}" for i in range(count)), "</s>")
        texts.append(Text(group, word, tokens, (Word(word, 1, 1 + count),), start=start))
        start += len(tokens)
    return texts


TEXTS = word_texts()
SIZE = sum(len(text.tokens) for text in TEXTS)


def probed(path: str, heads: int, grid: tuple[int, int] = (4, 3), **fields: Any) -> Layer:
    # Another probe before the concepts': their tokens do not start at 0.
    probes = (TokenGroup("other", "text", 0, 4), TokenGroup("concepts", "text", 4, 4 + SIZE))
    return reference_layer(path, grid, heads=heads, reference=None, text=5, probes=probes, **fields)


LAYERS = [
    probed(ORDER[2], 2, (8, 6)),
    probed(ORDER[0], 4, (8, 6), head_dim=4),
    reference_layer("unet.down_blocks.0.attn1", reference=None, text=5),
    probed(ORDER[1], 3),
]


def trace_of(path: Path, seed: int = 0, **options: Any) -> Synthetic:
    chosen = {"layers": LAYERS, "steps": 3, "samples": 2, "branches": ("uncond", "cond"), "encoding": "factors", "texts": TEXTS}
    return synthetic_trace(path, seed=seed, **{**chosen, **options})
