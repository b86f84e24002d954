"""Arguments of a pipeline's call: a name that `**kwargs` would swallow is refused with the nearest one there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers import FluxModularPipeline, StableDiffusionPipeline

from i2am.recorder import record
from i2am.recorder.specs.arguments import arguments_of
from i2am.recorder.specs.loading import check_call
from i2am.recorder.specs.spec import Spec
from i2am.schema.errors import InvalidInput
from pipelines import text_to_image

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


@pytest.mark.parametrize(
    ("misspelt", "words"),
    [
        ({"enconding": "factors"}, r"'enconding' is neither an option of record\(\) nor an argument of .*did you mean encoding\?"),
        ({"max_byte": "5GB"}, r"did you mean max_bytes\?"),
        ({"guidence_scale": 3.0}, r"did you mean guidance_scale\?"),
        ({"order": ("uncond", "cond")}, r"'order' is neither .*open recording\(\) and call"),
    ],
)
def test_a_misspelt_name_is_not_swallowed(tmp_path: Path, misspelt: dict[str, Any], words: str) -> None:
    pipeline, call = text_to_image()
    with pytest.raises(InvalidInput, match=words):
        record(pipeline, tmp_path / "run.zarr", **misspelt, **call())
    assert not (tmp_path / "run.zarr").exists()


def test_a_spec_cannot_misspell_either() -> None:
    spec = Spec(Path("a.toml"), "StableDiffusionPipeline", "some/model", call={"guidence_scale": 3.0})
    with pytest.raises(InvalidInput, match=r"\[call\] of a.toml has an unknown key 'guidence_scale'; did you mean guidance_scale"):
        check_call(spec, StableDiffusionPipeline)


class Deriving(StableDiffusionPipeline):
    """A pipeline that hands on what it is given."""

    def __call__(self, *args: Any, strength: float = 1.0, **kwargs: Any) -> Any:
        kwargs.pop("tint", None)
        return super().__call__(*args, **kwargs)


def test_what_kwargs_are_known_for() -> None:
    assert {"callback", "callback_steps", "prompt"} <= set(arguments_of(StableDiffusionPipeline).names)
    known = arguments_of(Deriving)
    assert {"strength", "tint", "callback", "prompt"} <= set(known.names) and not {"self", "kwargs", "order"} & set(known.names)
    assert arguments_of(FluxModularPipeline).any_name and not known.any_name


class Layered(StableDiffusionPipeline):
    """As QwenImageLayeredPipeline, whose pictures have layers."""

    def __call__(self, *args: Any, layers: int = 4, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


def test_an_argument_with_the_name_of_an_option(tmp_path: Path) -> None:
    pipeline, call = text_to_image()
    pipeline.__class__ = Layered
    with pytest.raises(InvalidInput, match=r"Layered takes an argument layers, and record\(\) has an option of that name; keep them apart"):
        record(pipeline, tmp_path / "run.zarr", layers=3, **call())
    record(pipeline, tmp_path / "run.zarr", **call())
