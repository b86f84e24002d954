"""Prints docs/pipelines.md from the rows of recorder/families.py, from what recordings of the tests' tiny pipelines see, and from what
`every_row.py` kept of every class that diffusers exports:

python tests/support/pipelines_table.py > docs/pipelines.md
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import every_row
    import pipelines_adapters
    import pipelines_proofs
    import pipelines_sequences
    import pipelines_transformers
    import pipelines_video
    from diffusers import MarigoldDepthPipeline, StableDiffusionInstructPix2PixPipeline, StableUnCLIPImg2ImgPipeline

    import pipelines

from memory import MemoryWriter

from i2am.recorder import record
from i2am.recorder.families import DEFAULT, FAMILIES, INPUT_GOES, Family
from i2am.recorder.labels import layers as sites
from i2am.recorder.session import run
from i2am.schema.errors import UnsupportedModel
from i2am.schema.trace import Layer, TokenGroup
from pipelines import Built

TITLE = """# Pipelines

Printed by `python tests/support/pipelines_table.py > docs/pipelines.md`; a test compares them.

## How each family is recorded

The rows of `recorder/families.py`; the first that matches a pipeline's class, or one of its bases, counts, and an empty cell is as in the
last row. A row says what is expected; labels are proven from the run's own values, position ids and shapes wherever these can tell.

- **guidance**: parts of the denoiser's batch, in order; `other` is neither branch. The rows' own inputs, the embeddings or prompts that the
  call was given, count before it; and what the scheduler is given must lead from uncond to cond, or the run is refused.
- **reference**: where the denoiser meets it; `none` holds unless an IP-Adapter, or keys of the denoiser's own, read it.
- **encoded of it**: the part that token grids cover.
- **frames**: axis of the sample that holds them, where each frame is a row of the denoiser's batch.
- **IP-Adapters**: how many, and where their image encoder comes from.
- **left out**: attention that nothing listens to and that reads more than the image itself is counted in `provenance.notes`.
- **dry run**: what makes the shapes of the denoiser's inputs; without it only those of plain UNets are known.
"""
HEADINGS: tuple[tuple[str, Callable[[Family], str]], ...] = (
    ("pipelines", lambda row: "any other" if row is DEFAULT else f"`{row.glob}`"),
    ("guidance", lambda row: "a pass for each branch, cond first" if row.sequential else guidance(row)),
    ("reference", lambda row: reference(row)),
    (
        "encoded of it",
        lambda row: {"crop": "the processor's crop", "cells": "whole cells of tokens", "whole": "all, stretched"}[row.window],
    ),
    ("frames", lambda row: "not in rows" if row.frame_axis is None else str(row.frame_axis)),
    ("IP-Adapters", lambda row: ("one" if row.one_adapter else "any") + (", encoder apart" if row.encoder_apart else ", encoder beside")),
    ("dry run", lambda row: f"`{row.inputs}`" if row.inputs else "none"),
)
INPUTS = """
Pipelines of any family that are asked for `keys="reference"` and read text only are refused where their `image` is no reference:
"""
SEEN = """## What recordings see

With the tests' tiny random components: token counts and grids are theirs, not those of published models. The images were equal, bit by
bit, with and without recording (`test_capture.py`, `test_adapters.py`, `test_families.py`, `test_sequences.py`, `test_proofs.py`,
`test_video_recording.py`).

- **reference tokens**: of one attention call. `+` stands between references, `;` between calls, `CLS` for a token without a place.
- **softmax shared with**: what else the model weighs against the reference in the same softmax. With `keys="auto"` only the reference's
  part of such a call is stored; P stays the model's own, because `query_lse` runs over all of its keys.
- **steps**: evaluations in this run, and how many denoiser passes make one where there are several.
- **frames**: of a layer, which may be fewer than the video's, as several frames of a picture may share one of the latent.
"""
EVERY = """## Every class of diffusers

What becomes of each pipeline class that diffusers {version} exports: of {classes} classes, {numbers}. Each was made of tiny random parts
and recorded with the default options, both branches and, where it takes one, an IP-Adapter (`python tests/support/every_row.py` runs all
of them again; `every_influence.py` holds what they recorded against their inputs: that another prompt changes the keys of its own branch
alone, and another picture those of the tokens that are tied to it). What is refused so may be recorded otherwise: the message says how.

- **recorded**: how many layers have which token groups, and `of` which stored picture; `beside its own tokens` where the image's own share
  the softmax.
- **refused**: in these words, before the run or at its first evaluation.
- **not run**: what a tiny one would need, or why there can be none.
"""
HEAD = ("family", "pipeline", "reference tokens", "grid", "softmax shared with", "steps", "branches", "what is stored, or why nothing")


def guidance(row: Family) -> str:
    """The parts of a family's guided batch in words."""
    batches = [", ".join(part or "other" for part in batch) for batch in (row.batch, row.batch_with_references) if batch]
    return "; with references ".join(batches) + ("; always" if row.always_guided else "")


def reference(row: Family) -> str:
    """Where a family's reference is expected, in words."""
    parts = (
        "one token" if row.pooled else "",
        "`image`, in the sequence" if row.edits else "",
        f"none: it {row.reference_goes}" if row.reference_goes else "",
        f"after {row.longest_text} text tokens" if row.longest_text else "",
        f"`image_reference` {'behind it' if row.inpaints == 'behind' else 'in its place'}" if row.inpaints else "",
        f"`{row.leading}`, as frames before the video's" if row.leading else "",
    )
    return "; ".join(part for part in parts if part) or "cross-attention"


def instructions() -> Built:
    pipeline = pipelines.stable_diffusion(StableDiffusionInstructPix2PixPipeline, channels=8)
    return pipeline, lambda: {**pipelines.text_arguments(), "image": pipelines.picture(1), "generator": pipelines.generator()}


def unclip() -> Built:
    plain = pipelines.stable_diffusion()
    absent = ("feature_extractor", "image_encoder", "image_normalizer", "image_noising_scheduler", "tokenizer", "text_encoder")
    pipeline = StableUnCLIPImg2ImgPipeline(**dict.fromkeys(absent), unet=plain.unet, scheduler=plain.scheduler, vae=plain.vae)
    return pipeline, lambda: {"image": pipelines.picture(1), **pipelines.text_arguments()}


def marigold() -> Built:
    plain = pipelines.stable_diffusion(channels=8)
    pipeline = MarigoldDepthPipeline(plain.unet, plain.vae, plain.scheduler, None, None)
    return pipeline, lambda: {"image": pipelines.picture(1)}


ALIKE = ("text-pndm", "text-euler", "text-wide", "text-unguided", "text-two", "img2img", "inpaint-plain", "ip-unguided")
"""Left out: the page would say the same of them again."""
REFUSED: dict[str, Callable[[], Built]] = {
    "flux-fill": pipelines_transformers.flux_fill,
    "instruct-pix2pix": instructions,
    "stable-unclip": unclip,
    "marigold": marigold,
    "wan-channels": pipelines_video.wan_channels,
}
ROWS: dict[str, Callable[[], Built]] = {
    **{name: build for name, build in pipelines.FAMILIES.items() if name not in (*ALIKE, "paint-by-example-unguided")},
    **pipelines_adapters.ADAPTED,
    **pipelines_transformers.SHARED,
    **pipelines_sequences.SEQUENCES,
    **pipelines_video.VIDEO,
    **pipelines_proofs.PROVEN,
    **REFUSED,
}


@contextmanager
def watched() -> Iterator[list[tuple[TokenGroup, ...]]]:
    """The keys of every call site, whole, while recordings stay in memory."""
    seen: list[tuple[TokenGroup, ...]] = []
    writer, label = run.Writer, sites.token_groups

    def note(*args: Any, **kwargs: Any) -> tuple[TokenGroup, ...]:
        seen.append(label(*args, **kwargs))
        return seen[-1]

    run.Writer, sites.token_groups = MemoryWriter, note  # type: ignore[assignment, misc]
    try:
        yield seen
    finally:
        run.Writer, sites.token_groups = writer, label  # type: ignore[misc]


def row(family: str) -> str:
    """One line of the table."""
    pipeline, call = ROWS[family]()
    passes: list[Any] = []
    for name in ("unet", "transformer", "transformer_2"):
        if getattr(pipeline, name, None) is not None:
            getattr(pipeline, name).register_forward_pre_hook(lambda *_: passes.append(None))
    with watched() as seen:
        try:
            record(pipeline, Path("nowhere.zarr"), branches="both", progress=False, **call())
        except UnsupportedModel as error:
            return line(family, type(pipeline).__name__, "", "", "", "", "", f"refused: {str(error).rpartition(';')[0]}")
    trace, steps = MemoryWriter.last.trace, len(MemoryWriter.last.commits)
    branches = [name for name in ("cond", "uncond") if any(name == branch for _, _, branch, _ in MemoryWriter.last.blocks)]
    calls = list(dict.fromkeys(groups for groups in seen if any(g.role == "reference" for g in groups)))
    references = list(dict.fromkeys(tuple(g for g in groups if g.role == "reference") for groups in calls))
    others = {g.role for groups in calls for g in groups} - {"reference"}
    stored = ", ".join(role for role in ("text", "reference") if any(g.role == role for layer in trace.layers for g in layer.groups))
    return line(
        family,
        type(pipeline).__name__,
        "; ".join(dict.fromkeys(" + ".join(count(g) for g in groups) for groups in references)),
        "; ".join(dict.fromkeys(" + ".join(size(g) for g in groups) for groups in references)),
        {frozenset(): "nothing", frozenset({"self"}): "the image itself"}.get(frozenset(others), "text and the image itself")
        if references
        else "",
        f"{steps}, each of {len(passes) // steps} passes" if len(passes) > steps else str(steps),
        ", ".join(branches),
        (stored if references else f"{stored}: no reference here") + places(trace.layers),
    )


def places(layers: tuple[Layer, ...]) -> str:
    """The frames of a video's layers, in words."""
    frames = list(dict.fromkeys(layer.frames for layer in layers if layer.frames))
    return f"; {', '.join(map(str, frames))} frames" if frames else ""


def count(group: TokenGroup) -> str:
    """Tokens of a group, the one without a place apart."""
    return f"(CLS, {group.tokens - group.specials})" if group.specials else str(group.tokens)


def size(group: TokenGroup) -> str:
    """A group's grid in words."""
    return "none" if group.grid is None else f"{group.grid[0]} x {group.grid[1]}"


def line(*cells: str) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def families() -> list[str]:
    """The table of the recorder's rows, and the list of inputs that are no references."""
    usual = [cell(DEFAULT) for _, cell in HEADINGS]
    rows = [["" if cell(row) == other else cell(row) for (_, cell), other in zip(HEADINGS, usual, strict=True)] for row in FAMILIES]
    cells = [[heading for heading, _ in HEADINGS], ["---"] * len(HEADINGS), *rows, usual]
    return [*(line(*row) for row in cells), *INPUTS.splitlines(), *("", *(f"- `{glob}`: it {where}" for glob, where in INPUT_GOES))]


def classes() -> list[str]:
    """The table of every class, as it is kept in the file."""
    kept = every_row.load()
    counts = {word: sum(row[0] == word for row in kept.values()) for word in ("recorded", "refused", "not run")}
    numbers = ", ".join(f"{count} {word}" for word, count in counts.items())
    said = [EVERY.format(version=every_row.version(), classes=len(kept), numbers=numbers)]
    return ["", *said, line("class", "what becomes of it", "how, or why not", "branches"), line(*("---",) * 4)] + [
        line(f"`{name}`", *row) for name, row in kept.items()
    ]


def main() -> None:
    """Print the page."""
    warnings.simplefilter("ignore")
    print(TITLE)
    print("\n".join(families()))
    print()
    print(SEEN)
    print(line(*HEAD))
    print(line(*("---",) * len(HEAD)))
    for family in ROWS:
        print(row(family))
    print("\n".join(classes()))


if __name__ == "__main__":
    sys.exit(main())
