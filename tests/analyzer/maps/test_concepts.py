"""Maps of concepts: a softmax over concepts in each step and layer and their mean, as plain loops in float64 have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from i2am.analyzer import concept_map, open_trace
from i2am.analyzer.cli.main import run
from i2am.analyzer.inspection.verify import verify
from i2am.analyzer.sharing.packing import pack
from i2am.analyzer.trace.reader import Trace
from i2am.schema.errors import InvalidInput, UnknownSelection
from i2am.schema.trace import TraceRecord
from traces import Synthetic, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

CONCEPTS = ("cat", "sky", "a red hat")
LAYERS = (
    reference_layer("transformer.transformer_blocks.0.attn", (8, 6), concepts=CONCEPTS),
    reference_layer("transformer.transformer_blocks.1.attn", (8, 6), concepts=CONCEPTS),
    reference_layer("transformer.single_transformer_blocks.0.attn", (8, 6)),
)


@pytest.fixture(scope="module", params=["probabilities", "factors"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Synthetic, Trace]:
    path = tmp_path_factory.mktemp("concepts") / "run.zarr"
    found = synthetic_trace(path, layers=LAYERS, samples=2, branches=("cond", "uncond"), encoding=request.param, absent={(1, 0)})
    return found, open_trace(path)


def share(made: Synthetic, layer: int, at: tuple[int, int, int], y: int, x: int) -> np.ndarray:
    scores = made.concept[layer]
    assert scores is not None
    powers = np.exp(scores[at][:, y, x].astype(np.float64))
    return powers / powers.sum()


def test_a_map_is_the_mean_over_steps_and_layers_of_the_softmax_over_concepts(made: tuple[Synthetic, Trace]) -> None:
    found, trace = made
    each, one = concept_map(trace, sample=1), concept_map(trace, "sky", sample=1)
    assert (each.dims, one.dims) == (("concept", "y", "x"), ("y", "x"))
    assert each["concept"].values.tolist() == list(CONCEPTS)
    assert hasattr(one.data, "dask")
    np.testing.assert_array_equal(one.values, each.sel(concept="sky").values)
    for y, x in ((0, 0), (7, 5), (3, 2)):
        calls = [share(found, layer, (1, 0, step), y, x) for layer in (0, 1) for step in range(4) if (step, layer) != (1, 0)]
        first = [each for layer, each in zip([0] * 3 + [1] * 4, calls, strict=True) if layer == 0]
        mean = (np.sum(first, 0) + np.sum(calls[3:], 0)) / 7
        np.testing.assert_allclose(each.values[:, y, x], mean, rtol=1e-6)


def test_axes_steps_layers_and_branches_are_chosen(made: tuple[Synthetic, Trace]) -> None:
    found, trace = made
    kept = concept_map(trace, "cat", keep=("layer", "time"), branch="uncond", steps=[0, 1, 3])
    assert kept.dims == ("time", "layer", "y", "x")
    assert kept["layer"].values.tolist() == [layer.name for layer in LAYERS[:2]]
    np.testing.assert_allclose(kept.values[2, 1, 4, 3], share(found, 1, (0, 1, 3), 4, 3)[0], rtol=1e-6)
    assert np.isnan(kept.values[1, 0]).all()
    assert not np.isnan(kept.values[1, 1]).any()
    alone = concept_map(trace, "cat", layers="*blocks.1.*", steps=2)
    np.testing.assert_allclose(alone.values[0, 1], share(found, 1, (0, 0, 2), 0, 1)[0], rtol=1e-6)


def test_products_come_back_packed_and_in_part(made: tuple[Synthetic, Trace], tmp_path: Path) -> None:
    found, trace = made
    pack(found.path, tmp_path / "packed.zarr.zip", chunk_steps=3)
    pack(found.path, tmp_path / "part.zarr", heads=[1], steps=[0, 2])
    packed, part = open_trace(tmp_path / "packed.zarr.zip"), open_trace(tmp_path / "part.zarr")
    np.testing.assert_array_equal(packed.concept_scores(1).values, found.concept[1])
    np.testing.assert_array_equal(part.concept_scores(1).values, trace.concept_scores(1).isel(step=[0, 2]).values)
    assert verify(packed.path).ok
    assert verify(part.path).ok
    assert TraceRecord.from_json(found.trace.to_json()) == found.trace


def test_a_map_is_drawn_and_saved_by_its_command(made: tuple[Synthetic, Trace], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, trace = made
    asked = ["map", str(found.path), "--concept-attention", "sky", "--steps", "0,2"]
    assert run([*asked, "--keep", "layer", "-o", str(tmp_path / "sky.png")]) == 0
    assert run([*asked, "-o", str(tmp_path / "sky.npy"), "--json"]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "sky.npy"), concept_map(trace, "sky", steps=[0, 2]).values)
    assert run(["info", str(found.path)]) == 0
    assert "cat, sky, a red hat" in capsys.readouterr().out
    for wrong, message in ((("--heads", "0"), "takes no --heads"), (("--r2g",), "say which map")):
        assert run([*asked, *wrong]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"concept": "dog"}, UnknownSelection, "has no concept 'dog'.*cat, sky, a red hat"),
        ({"concept": "skye"}, UnknownSelection, "did you mean.*sky"),
        ({"layers": "*single*"}, UnknownSelection, "no selected layer .* has concepts; record double blocks of Flux"),
        ({"keep": "head"}, InvalidInput, "cannot keep 'head'; .* time, layer"),
        ({"sample": 2}, UnknownSelection, "no sample 2"),
        ({"steps": 9}, UnknownSelection, "step"),
    ],
)
def test_what_there_is_not_is_refused(options: dict[str, Any], kind: type[Exception], message: str, made: tuple[Synthetic, Trace]) -> None:
    with pytest.raises(kind, match=message):
        concept_map(made[1], **options)
    with pytest.raises(UnknownSelection, match=r"layer transformer.single_transformer_blocks.0.attn has no concepts"):
        made[1].concept_scores("*single*")
