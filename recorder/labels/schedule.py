"""What a scheduler says of a timestep: its place, its noise level, how many evaluations are left."""

from __future__ import annotations

import math
from typing import Any, Final

HALF_STEP: Final = 2**-8
"""Relative error of a bfloat16 timestep."""


def noise_level(scheduler: Any, timestep: float) -> float:
    """The scheduler's sigma at its present place; NaN if it has none."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None or not hasattr(scheduler, "step_index"):
        return math.nan
    index = scheduler.step_index
    if index is None:
        index = _place(scheduler, timestep)
    return float(sigmas[min(index, len(sigmas) - 1)])


def scheduler_timestep(scheduler: Any, value: float) -> float:
    """The scheduler's own timestep for what a denoiser is given, which in flow models is that timestep over 1000."""
    times = getattr(scheduler, "timesteps", ())
    times = times.tolist() if hasattr(times, "tolist") else list(times)
    if not times or value in times:
        return value
    scale = float(getattr(getattr(scheduler, "config", None), "num_train_timesteps", 1000))
    nearest = min(times, key=lambda time: abs(time - value * scale))
    return nearest if math.isclose(nearest, value * scale, rel_tol=HALF_STEP) else value


def evaluations_left(scheduler: Any, timestep: float) -> int:
    """Most denoiser evaluations from this one to the end: image-to-image starts in the middle of the schedule."""
    begin = getattr(scheduler, "begin_index", None)
    return max(1, len(scheduler.timesteps) - (_place(scheduler, timestep) if begin is None else begin))


def _place(scheduler: Any, timestep: float) -> int:
    times = scheduler.timesteps
    times = times.tolist() if hasattr(times, "tolist") else list(times)
    return times.index(timestep) if timestep in times else 0
