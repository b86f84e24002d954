"""Train the demo model on synthetic try-on pairs. The loss is about the painted image alone and never looks at attention.

    python examples/train_demo/train.py --minutes 60 --out out/weights

The learning rate falls with the share of the time budget (or step budget) that is used up, so it ends near zero however
fast the machine is. --resume continues a run that was stopped; --size, --channels and --width make a larger model.
"""

from __future__ import annotations

import json
import math
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from feed import Batch, batches, draw_pool, stack
from i2am.recorder.demo.pairs import HELD_OUT, draw_pair
from muon import Muon, split_parameters
from objective import FullPrecisionAttention, one_step_error, painting_loss
from plan import Plan, build_pipeline


class Trainer:
    """The state of a run: the pipeline being trained, the moving average of its weights, the optimisers, steps and seconds so far."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self.plan, self.device = plan, device
        torch.manual_seed(plan.seed)
        self.pipeline = build_pipeline(plan).to(device)
        self.average = build_pipeline(plan).to(device)
        self.model = nn.ModuleList([self.pipeline.unet, self.pipeline.image_encoder])
        self.shadow = nn.ModuleList([self.average.unet, self.average.image_encoder]).requires_grad_(False)
        self.shadow.load_state_dict(self.model.state_dict())
        unet, encoder = self.pipeline.unet, self.pipeline.image_encoder
        hidden, others = split_parameters(self.model, (unet.conv_in, unet.conv_out, encoder.stem, encoder.patches))
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(hidden, lr=plan.rate),
            torch.optim.AdamW(others, lr=plan.rate / 10, betas=(0.9, 0.99), weight_decay=0.01, fused=True),
        ]
        self.peaks = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.steps, self.seconds = 0, 0.0
        self.warm = 0.0

    @property
    def progress(self) -> float:
        """Share of the budget that is used up; 1 or more when the run is done."""
        if self.plan.steps:
            return self.steps / self.plan.steps
        return self.seconds / (60 * self.plan.minutes)

    def step(self, batch: Batch) -> float:
        """Make one step of both optimisers and return the loss."""
        start = time.perf_counter()
        # Every process warms up anew, also after --resume.
        self.warm = min(1.0, self.warm + 0.02)
        share = self.warm * (0.5 + 0.5 * math.cos(math.pi * min(1.0, self.progress)))
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * max(share, 1e-3)
        attention = FullPrecisionAttention() if self.device.type == "cpu" else nullcontext()
        with attention, torch.autocast(self.device.type, torch.bfloat16):
            loss = painting_loss(self.pipeline, batch, self.plan)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self._follow()
        self.steps += 1
        self.seconds += time.perf_counter() - start
        return loss.item()

    def _follow(self) -> None:
        # The average forgets faster in the first steps, or the random weights would stay in it for thousands of steps.
        weight = 1 - min(self.plan.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.shadow.parameters()), [p.detach() for p in self.model.parameters()], weight)

    def save(self, path: Path) -> None:
        """Write a checkpoint for load(), first under another name, so that a crash never leaves half of one."""
        state = {
            "plan": asdict(self.plan),
            "steps": self.steps,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "average": self.shadow.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint; the plan, and with it the budget, stays that of this trainer."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.steps, self.seconds = state["steps"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.shadow.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def export(trainer: Trainer, out: Path) -> None:
    """Save the averaged weights as float16 safetensors, in the folder layout of DiffusionPipeline.from_pretrained."""
    half = build_pipeline(trainer.plan)
    half.unet.load_state_dict(trainer.average.unet.state_dict())
    half.image_encoder.load_state_dict(trainer.average.image_encoder.state_dict())
    for part in (half.unet, half.image_encoder):
        nn.Module.to(part, torch.float16)
    half.save_pretrained(out, safe_serialization=True)


def milestones(keep: int) -> list[float]:
    """Shares of the budget after which weights are kept, in geometric steps, because painting improves fastest at the start."""
    return [float(share) for share in np.geomspace(0.01, 1, keep + 1)[:-1]]


def train(plan: Plan, out: Path, checkpoint: Path, resume: bool, every: float, keep: int) -> None:
    """Train until the budget is used up; log and write a checkpoint every `every` seconds; keep the weights at `keep` milestones."""
    torch.set_num_threads(plan.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = Trainer(plan, device)
    if resume:
        trainer.load(checkpoint)
    held_out = stack([draw_pair(HELD_OUT + index, plan.size) for index in range(64)], device)
    source = batches(draw_pool(plan), plan, device, torch.Generator().manual_seed(plan.seed + trainer.steps))
    out.mkdir(parents=True, exist_ok=True)
    losses: list[float] = []
    due = trainer.seconds + every
    kept = [share for share in milestones(keep) if share > trainer.progress]
    with (out / "log.jsonl").open("a" if resume else "w") as log:
        while trainer.progress < 1:
            losses.append(trainer.step(next(source)))
            if kept and trainer.progress >= kept[0]:
                kept.pop(0)
                export(trainer, out / "checkpoints" / f"step-{trainer.steps:06d}")
            if trainer.seconds < due and trainer.progress < 1:
                continue
            due = trainer.seconds + every
            line = {"step": trainer.steps, "minutes": round(trainer.seconds / 60, 2), "loss": round(float(np.mean(losses)), 5)}
            line["one_step_error"] = round(one_step_error(trainer.average, held_out), 4)
            print(json.dumps(line), file=log, flush=True)
            losses.clear()
            trainer.save(checkpoint)
    export(trainer, out)


def whole_numbers(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    """Read "64,96" as (64, 96)."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"expected whole numbers with commas between them, got {text!r}") from error


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the weights and log.jsonl.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Where to keep the resumable state [OUT/state.pt].")
@click.option("--resume", is_flag=True, help="Continue from the checkpoint.")
@click.option("--every", default=60.0, show_default=True, help="Seconds between log lines and checkpoints.")
@click.option("--keep", default=0, show_default=True, help="How many times to keep the weights before the end, under OUT/checkpoints.")
@click.option("--minutes", default=60.0, show_default=True, help="Time budget, all resumed parts together.")
@click.option("--steps", default=0, help="Step budget instead of the time budget.")
@click.option("--batch", default=32, show_default=True)
@click.option("--rate", default=2e-2, show_default=True, help="Peak learning rate.")
@click.option("--seed", default=0, show_default=True)
@click.option("--size", default=64, show_default=True, help="Image side in pixels.")
@click.option("--patch", default=4, show_default=True, help="Pixels to a side of a latent cell and of a reference token.")
@click.option("--channels", default="64,96", show_default=True, callback=whole_numbers, help="By resolution, finest first.")
@click.option("--layers", default=1, show_default=True, help="Blocks per resolution.")
@click.option("--heads", default=4, show_default=True)
@click.option("--width", default=96, show_default=True, help="Width of the reference tokens.")
@click.option("--pool", default=16384, show_default=True, help="Pairs drawn before training starts.")
@click.option("--threads", default=2, show_default=True)
def main(out: Path, checkpoint: Path | None, resume: bool, every: float, keep: int, **plan: Any) -> None:
    """Train the demo model and save the moving average of its weights in float16."""
    train(Plan(**plan), out, checkpoint or out / "state.pt", resume, every, keep)


if __name__ == "__main__":
    main()
