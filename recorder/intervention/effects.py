"""Effects of trials: a recorded run repeated with something left out each time, and how far each patch of the picture moves."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from ...schema.errors import InvalidInput, UnsupportedModel
from ...schema.experiments.effects import TRUTH, EffectRecord
from ...schema.messages import option
from ...schema.trace import Image
from ..images.pictures import reference_values
from ..labels.tokens import context_role
from ..specs.arguments import arguments_of
from ..specs.loading import explained
from ..store.effects import EffectStore
from .outputs import NEAR, distance, pictures_of, place_effect
from .pixels import alter_pixels
from .running import check_determinism, intervene
from .trials import Place, Rank, left_out

SEVERAL: Final = ("num_images_per_prompt", "num_videos_per_prompt")
"""Arguments that say how many are painted in one run."""


@dataclass(frozen=True, slots=True)
class Replay:
    """The call of a recorded run, which paints the same each time."""

    pipeline: Any
    call: Mapping[str, Any]
    sample: int
    picture: NDArray[np.float32]
    """What it paints as it is: (frame, y, x, channel)."""
    seconds: float
    """That one run takes."""
    batch: int = 1
    """Pictures in one run of several trials, of which the first is as it is."""
    batch_seconds: float = 0.0

    def forecast(self, missing: Iterable[tuple[str, Place]]) -> tuple[int, float]:
        """How many runs these trials are, and how many seconds they take."""
        alone = together = 0
        for name, places in itertools.groupby(missing, key=lambda trial: trial[0]):
            runs = -(-len(list(places)) // self.size(name))
            alone, together = (alone + runs, together) if self.is_alone(name) else (alone, together + runs)
        return alone + together, alone * self.seconds + together * self.batch_seconds

    def is_alone(self, name: str) -> bool:
        """Whether trials of an array are made one in a run: the reference's pixels are the same for all pictures of a run."""
        return self.batch == 1 or name == "pixels"

    def size(self, name: str) -> int:
        """Trials of an array that one run makes."""
        return 1 if self.is_alone(name) else self.batch - 1


def prepare(pipeline: Any, call: Mapping[str, Any], sample: int, batch: int, samples: int) -> Replay:
    """Run the pipeline twice as it is, and once more in a batch, to see that it paints the same.

    Raises   UnsupportedModel if it is not deterministic, paints nothing, or cannot paint several from the same noise
    """
    numbers = _float_arguments(pipeline, call)
    if batch > 1:
        _require_batches(pipeline, numbers, samples)
    began = time.monotonic()
    with explained(f"{type(pipeline).__name__} refuses its arguments", (ValueError, TypeError)):
        picture = pictures_of(check_determinism(pipeline, **numbers))[sample]
    alone = Replay(pipeline, numbers, sample, picture, (time.monotonic() - began) / 2)
    if batch == 1:
        return alone
    began = time.monotonic()
    with explained(f"{type(pipeline).__name__} cannot paint {batch} pictures in one run; use a smaller {option('batch')}, or 1"):
        painted = pictures_of(intervene(pipeline, (), **_together(pipeline, numbers, batch)))
    if len(painted) != batch or max(distance(picture, one) for one in painted) > NEAR:
        raise UnsupportedModel(
            f"{type(pipeline).__name__} paints other pictures when it paints {batch} in one run from the same noise; leave out "
            f"{option('batch')}"
        )
    return replace(alone, batch=batch, batch_seconds=time.monotonic() - began)


def _float_arguments(pipeline: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call whose pictures are numbers, not 8 bits, which would round small effects to none."""
    takes = "output_type" in arguments_of(pipeline).names and call.get("output_type", "pil") == "pil"
    return {**call, "output_type": "np"} if takes else dict(call)


def _require_batches(pipeline: Any, call: Mapping[str, Any], samples: int) -> None:
    names = arguments_of(pipeline).names
    if not any(name in names for name in SEVERAL):
        raise UnsupportedModel(
            f"{type(pipeline).__name__} takes no {' or '.join(SEVERAL)}, so it makes one trial in a run; leave out {option('batch')}"
        )
    if samples > 1 or not isinstance(call.get("generator"), torch.Generator):
        found = f"paints {samples} pictures" if samples > 1 else "has no seed, or a list of them"
        raise InvalidInput(f"several trials in one run need one picture from one seed, and this run {found}; leave out {option('batch')}")


def _together(pipeline: Any, call: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The arguments of a call that paints several, each from the noise of the one."""
    names, generator = arguments_of(pipeline).names, call["generator"]
    several = next(name for name in SEVERAL if name in names)
    same = [torch.Generator(generator.device).set_state(generator.get_state()) for _ in range(count)]
    return {**call, several: count, "generator": same}


def alter_call(pipeline: Any, call: Mapping[str, Any], image: Image, cells: Sequence[Place], lattice: tuple[int, int]) -> dict[str, Any]:
    """The arguments of a call with cells of one reference inverted.

    Raises   UnsupportedModel if that reference is not among the arguments as one picture
    """
    known, met = reference_values(pipeline, call, context_role(pipeline)).get(image.name), list[Any]()

    def exchange(value: Any) -> Any:
        if value is known is not None:
            met.append(value)
            return alter_pixels(value, [(row, column) for row, column in cells], lattice, window=image.window)
        return [exchange(one) for one in value] if isinstance(value, list) else value

    altered = {name: exchange(value) for name, value in call.items()}
    if not met:
        raise UnsupportedModel(
            f"the picture {image.name} of the trace is no argument of this call, so its pixels cannot be altered; leave pixels out of "
            f"{option('trials')}"
        )
    return altered


def measure(
    replay: Replay,
    store: EffectStore,
    orders: Mapping[str, NDArray[np.float64]],
    image: Image | None,
    progress: Callable[[int], object] = lambda count: None,
) -> None:
    """Make the trials that were not made yet; each is kept as soon as it is known.

    `orders` gives the importance of cells by all orders but what was measured, `image` is the reference whose pixels are altered.

    Raises   as `intervene`; InvalidInput where an order of the experiment is not among them
    """

    def rank(order: str) -> NDArray[np.float64]:
        if order not in (TRUTH, *orders):
            raise InvalidInput(
                f"the experiment leaves cells out by {order}, and nothing that ranks them so is installed now; install what did, or begin "
                f"anew with {option('overwrite', True)}"
            )
        return store.read_cells() if order == TRUTH else orders[order]

    for name, trials in itertools.groupby(store.missing, key=lambda trial: trial[0]):
        places = iter([place for _, place in trials])
        while several := list(itertools.islice(places, replay.size(name))):
            for place, effect in zip(several, _try(replay, store.record, name, several, rank, image), strict=True):
                store.put(name, place, effect)
            progress(len(several))


def _try(
    replay: Replay, record: EffectRecord, name: str, places: list[Place], rank: Rank, image: Image | None
) -> list[NDArray[np.float32]]:
    """The effects of some trials of one array, made in one run."""
    pipeline, call, before = replay.pipeline, replay.call, replay.picture
    if name == "pixels":
        assert image is not None
        after = [pictures_of(intervene(pipeline, (), **alter_call(pipeline, call, image, places, record.cells)))[replay.sample]]
    elif replay.is_alone(name):
        after = [pictures_of(intervene(pipeline, left_out(record, name, places[0], rank), **call))[replay.sample]]
    else:
        rows = [replace(left_out(record, name, place, rank), samples=row) for row, place in enumerate(places, 1)]
        before, *after = pictures_of(intervene(pipeline, rows, **_together(pipeline, call, 1 + len(rows))))
    return [place_effect(before, one, record.grid) for one in after]
