"""On an accelerator: recording does not change the image, and what leaves through pinned memory is what the model had."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from i2am.analyzer import open_trace, r2g
from i2am.recorder import Intervention, check_determinism, intervene, record
from pipelines import build

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")]


@pytest.fixture
def pipeline() -> tuple[Any, Any]:
    if not torch.cuda.is_available():
        pytest.skip("no accelerator here")
    built, call = build("ip-full")
    return built.to("cuda", torch.float16), call


@pytest.mark.parametrize("encoding", ["probabilities", "factors"])
def test_recording_does_not_change_the_image(pipeline: tuple[Any, Any], encoding: str, tmp_path: Path) -> None:
    built, call = pipeline
    plain = built(**call()).images
    recorded = record(built, tmp_path / "run.zarr", encoding=encoding, **call()).images
    np.testing.assert_array_equal(np.asarray(recorded), np.asarray(plain))


def test_both_encodings_give_the_same_maps(pipeline: tuple[Any, Any], tmp_path: Path) -> None:
    built, call = pipeline
    maps = {}
    for encoding in ("probabilities", "factors"):
        record(built, tmp_path / encoding, encoding=encoding, keys="reference", **call())
        maps[encoding] = r2g(open_trace(tmp_path / encoding)).to_numpy()
    np.testing.assert_allclose(maps["probabilities"], maps["factors"], rtol=1e-3)


@pytest.mark.parametrize("kind", ["drop", "zero", "off"])
def test_interventions_are_made_on_the_device(pipeline: tuple[Any, Any], kind: Any) -> None:
    built, call = pipeline
    plain = check_determinism(built, **call()).images
    tokens = None if kind == "off" else [0, 5]
    changed = intervene(built, Intervention(kind, group="reference", tokens=tokens), **call()).images
    assert np.isfinite(changed).all() and not np.array_equal(changed, plain)
