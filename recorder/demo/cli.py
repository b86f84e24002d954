"""`i2am demo`: the shipped model on one held-out pair, recorded, verified, reported, and shown."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ...schema.errors import InvalidInput
from ...schema.messages import option, refuse_taken

if TYPE_CHECKING:
    from .pairs import Pair

STEPS: Final = 50
TRACE: Final = "run.zarr"
REPORT: Final = "report.png"
PAGE: Final = "run.html"
EPILOG: Final = """\b
Examples:
  i2am demo
  i2am demo -o out --seed 3
  i2am demo --json | jq .imacs_g"""


@click.command("demo", epilog=EPILOG)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="DIR", default="i2am-demo", show_default=True, help="Folder for what it writes."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which held-out pair, and the noise it starts from.")
@click.option("--overwrite", is_flag=True, help="Replace what an earlier demo left in the folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def demo_command(context: click.Context, out: Path, seed: int, overwrite: bool, as_json: bool) -> Any:
    """Record and analyse the small model that comes with i2am.

    A try-on pair that training never saw is painted in 50 DDIM steps with guidance; its attention goes to DIR/run.zarr,
    and what the trace alone tells of it to DIR/report.png, the terminal, and DIR/run.html, a page to look at it with.
    """
    from ..store.files import check_local

    check_local(out)
    for name in (TRACE, REPORT, PAGE):
        refuse_taken(out / name, overwrite)
    if out.exists() and not out.is_dir():
        raise InvalidInput(f"{out} is a file; name a folder with {option('out')}")
    record_demo(out / TRACE, seed, overwrite=overwrite)
    taken = ["--overwrite"] if overwrite else []
    with redirect_stdout(StringIO()) if as_json else nullcontext() as said:
        code = run_command(context, "report", [str(out / TRACE), "-o", str(out / REPORT), *taken, *(["--json"] if as_json else [])])
    with redirect_stdout(StringIO()):
        code = code or run_command(context, "view", [str(out / TRACE), "-o", str(out / PAGE), *taken])
    if said is not None:
        click.echo(json.dumps({**json.loads(said.getvalue() or "{}"), "page": str(out / PAGE)}, indent=2))
    else:
        click.echo(f"page       {out / PAGE}: open it in a browser, or send it")
    return code


def run_command(context: click.Context, name: str, given: list[str]) -> Any:
    """Run a command of the group that this one stands in, and return its exit code.

    The only way from the recorder to the analyzer: it goes through click's root group, so that neither half imports the other.
    """
    group = context.find_root().command
    assert isinstance(group, click.Group)
    command = group.get_command(context, name)
    assert command is not None
    with command.make_context(name, given, parent=context.parent) as inner:
        return command.invoke(inner)


def record_demo(path: Path, seed: int, *, steps: int = STEPS, weights: Path | None = None, overwrite: bool = False) -> None:
    """Record the shipped model, or other weights of it, on a held-out pair, ground truth included.

    Raises   InvalidInput if the weights are not there; as `record`
    """
    import torch

    from ..session.recording import record
    from .pairs import HELD_OUT, draw_pair
    from .pipeline import load_shipped

    # So small a model gains nothing from threads, and on a busy machine they wait for each other.
    torch.set_num_threads(1)
    pipeline = load_shipped(weights) if weights else load_shipped()
    pair = draw_pair(HELD_OUT + seed, pipeline.size)
    latent = pipeline.size // pipeline.block
    record(
        pipeline,
        path,
        overwrite=overwrite,
        encoding="auto",  # trained attention is so sharp that float16 probabilities lose the columns of tokens nobody looks at
        reference_mask=_picture(pair.reference_mask),
        facts={"demo": pair_facts(pair)},
        truth=true_places(pair, (latent, latent)),
        image=_picture(pair.agnostic),
        mask_image=_picture(pair.mask),
        example_image=_picture(pair.reference),
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(seed),
    )


def pair_facts(pair: Pair) -> dict[str, Any]:
    """How a pair was drawn, as JSON."""
    pose = {"angle": pair.pose.angle, "scale": pair.pose.scale, "shift": list(pair.pose.shift)}
    return {"seed": pair.seed, "pattern": pair.pattern, "pose": pose}


def true_places(pair: Pair, grid: tuple[int, int]) -> Any:
    """The true place on the reference of each cell of a grid that is mostly torso.

    Dims     (y, x, yx)
    Range    [0, 1], shares of the reference's height and width from its top left; NaN elsewhere
    """
    from .truth import truth_grid

    position, torso = truth_grid(pair, grid)
    shares = (position[..., ::-1].astype(float) + 1) / 2
    shares[torso < 0.5] = math.nan
    return shares


def _picture(pixels: Any) -> Any:
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.rint(np.asarray(pixels, dtype=np.float32) * 255).astype(np.uint8))
