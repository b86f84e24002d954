"""A call that samples more than once is refused, before it samples where that is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline
from pipelines_video import animate

from i2am.recorder import record
from i2am.schema.errors import UnsupportedModel
from pipelines import generator, stable_diffusion, text_arguments

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


class Twice(StableDiffusionPipeline):
    """A small picture, then a large one."""

    def __call__(self, prompt_embeds: Any = None, **arguments: Any) -> Any:
        for size in (16, 32):
            made = super().__call__(prompt_embeds=prompt_embeds, height=size, width=size, **arguments)
        return made


@pytest.mark.parametrize("steps", [None, "0", "-1"])
def test_a_call_that_samples_twice_is_refused(steps: str | None, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="evaluation after the 3 that its schedule has"):
        record(stable_diffusion(Twice), tmp_path / "a.zarr", steps=steps, **text_arguments(), generator=generator())


def test_free_init_is_refused_before_it_samples(tmp_path: Path) -> None:
    pipeline, call = animate()
    pipeline.enable_free_init(num_iters=2)
    pipeline.unet.register_forward_pre_hook(lambda *_: pytest.fail("it sampled"))
    for keys in ("auto", "text"):
        with pytest.raises(UnsupportedModel, match=r"pipeline\.disable_free_init\(\)"):
            record(pipeline, tmp_path / "a.zarr", keys=keys, **call())
