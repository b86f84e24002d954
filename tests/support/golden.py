"""Writes the golden trace that every later release must read: `python tests/support/golden.py`.

Its top left generated corner looks at the top right reference corner, brightly; both grids are not square, so any flip, transpose
or mirror on the way shows. One layer of each encoding, two branches, one absent call, CLS before the patches.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from repository import DATA

from i2am.recorder.store.writer import Writer
from i2am.schema import Image, Layer, TokenGroup, TraceRecord, encode_probability

FOLDER = DATA
GOLDEN = FOLDER / "golden-1.zarr"
EXPECTED = FOLDER / "golden-1.json"

STEPS, HEADS, DEPTH, REFERENCE = 3, 2, 4, (3, 5)
GRIDS = ((6, 4), (3, 2))
ABSENT = (2, 1)
TOKENS = 1 + REFERENCE[0] * REFERENCE[1]
BRIGHT_PATCH, BRIGHT_TOKEN = (0, 0), (0, REFERENCE[1] - 1)


def draw(grid: tuple[int, int], step: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """q (branch, head, y, x, channel) and k (branch, head, token, channel) in which one corner looks at one corner."""
    random = np.random.default_rng(seed)
    query = 0.3 * random.standard_normal((2, HEADS, *grid, DEPTH)) * (1 + 0.1 * step)
    key = 0.3 * np.random.default_rng(seed + 1).standard_normal((2, HEADS, TOKENS, DEPTH))
    query[..., *BRIGHT_PATCH, 0] = 6
    key[..., 1 + BRIGHT_TOKEN[0] * REFERENCE[1] + BRIGHT_TOKEN[1], 0] = 2
    return query.astype(np.float32), key.astype(np.float32)


def softmax(query: np.ndarray, key: np.ndarray) -> tuple[np.ndarray, ...]:
    """P, G, a and b in float64."""
    scores = DEPTH**-0.5 * np.einsum("bhyxc,bhtc->bhyxt", query.astype(np.float64), key.astype(np.float64))
    query_lse, token_lse = np.log(np.exp(scores).sum(-1)), np.log(np.exp(scores).sum((2, 3)))
    p, g = np.exp(scores - query_lse[..., None]), np.exp(scores - token_lse[:, :, None, None])
    return p, g, query_lse.astype(np.float32), token_lse.astype(np.float32)


def pictures() -> list[tuple[Image, np.ndarray]]:
    """A picture of each role, white in the corner that is bright."""
    generated, reference = np.zeros((24, 16, 3), np.uint8), np.zeros((12, 20, 3), np.uint8)
    generated[:4, :4], reference[:4, 16:] = 255, 255
    mask, reference_mask = generated[..., :1].copy(), reference[..., :1].copy()
    named = {"generated_0": generated, "reference": reference, "mask": mask, "reference_mask": reference_mask}
    return [(Image(n, n if n != "generated_0" else "generated", *p.shape), p) for n, p in named.items()]  # type: ignore[arg-type]


def write(path: Path) -> dict[str, list[list[float]]]:
    """Write the trace; what each layer's G2R, R2G and the bright patch's SRAM sum to over steps, mean over heads, in float64."""
    encodings = ("probabilities", "factors")
    group = TokenGroup("reference", "reference", 0, TOKENS, 1, REFERENCE, "reference")
    layers = [Layer(f"unet.layer{i}.attn2", 0, HEADS, DEPTH, DEPTH**-0.5, g, TOKENS, (group,), encodings[i]) for i, g in enumerate(GRIDS)]
    writer = Writer(
        path, TraceRecord("9f0c0000-0000-4000-8000-000000000001", "recording", 1, ("cond", "uncond"), STEPS, latent_grid=GRIDS[0])
    )
    sums: dict[str, np.ndarray] = {}
    for layer in layers:
        writer.add_layer(layer)
    for step in range(STEPS):
        for i, grid in enumerate(GRIDS):
            if (step, i) == ABSENT:
                continue
            query, key = draw(grid, step, seed=10 + 100 * i)
            p, g, query_lse, token_lse = softmax(query, key)
            maps = {
                "r2g": g[0].mean((0, -1)),
                "g2r": p[0].mean((0, 1, 2))[1:].reshape(REFERENCE),
                "sram": p[0].mean(0)[0, 0, 1:].reshape(REFERENCE),
            }
            for name, value in maps.items():
                sums[f"{name} {i}"] = sums.get(f"{name} {i}", 0) + value
            for b, branch in enumerate(("cond", "uncond")):
                stored = {"probability": encode_probability(p[b]), "query_lse": query_lse[b], "token_lse": token_lse[b]}
                writer.put(i, 0, branch, step, stored if i == 0 else {"query": query[b], "key": key[b]})
        writer.commit(step, evaluation=2 * step, timestep=900.0 - 300 * step, sigma=float("nan"), scheduler_step=2 * step)
    writer.finish(images=pictures(), inputs={"seed": 1}, model={"pipeline": "golden"})
    return {name: value.tolist() for name, value in sums.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    EXPECTED.write_text(json.dumps(write(GOLDEN), indent=1))
