"""Where some heads were kept, they go by the model's numbers everywhere."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from i2am.analyzer import g2r, open_trace, r2g, sram
from i2am.analyzer.cli.main import run
from i2am.schema.errors import InvalidInput, UnknownSelection
from traces import Synthetic, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

LAYERS = [
    reference_layer("some", (8, 6), heads=2, head_numbers=(2, 5), call_heads=8),
    reference_layer("all", (8, 6), heads=4),
    reference_layer("other", (8, 6), heads=2, head_numbers=(1, 2), call_heads=8),
]


@pytest.fixture(scope="module", params=["probabilities", "factors"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return synthetic_trace(tmp_path_factory.mktemp("heads") / "t.zarr", layers=LAYERS, steps=2, encoding=request.param)


def expected(made: Synthetic, layer: int, position: int) -> np.ndarray:
    """R2G of one stored head: the mean over tokens, summed over steps."""
    return made.generated[layer][0, 0, :, position].mean(-1).sum(0)


def test_maps_carry_the_model_s_numbers(made: Synthetic) -> None:
    trace = open_trace(made.path)
    found = r2g(trace, keep=("layer", "head"))
    assert found["head"].values.tolist() == [0, 1, 2, 3, 5]
    held = {0: {2: 0, 5: 1}, 1: {0: 0, 1: 1, 2: 2, 3: 3}, 2: {1: 0, 2: 1}}
    for layer, numbers in held.items():
        for number in (0, 1, 2, 3, 5):
            map = found.sel(layer=layer, head=number).values
            if number in numbers:
                np.testing.assert_allclose(map, expected(made, layer, numbers[number]), rtol=2e-2)
            else:
                assert np.isnan(map).all()


def test_heads_are_selected_by_the_model_s_numbers(made: Synthetic) -> None:
    trace = open_trace(made.path)
    both = [expected(made, 0, 0), expected(made, 1, 2), expected(made, 2, 1)]
    np.testing.assert_allclose(r2g(trace, heads=2), np.mean(both, 0), rtol=2e-2)
    np.testing.assert_allclose(r2g(trace, heads=[5]), expected(made, 0, 1), rtol=2e-2)
    for ask in (g2r, r2g, lambda t, **options: sram(t, (1, 1), **options)):
        np.testing.assert_array_equal(ask(trace, heads=-3), ask(trace, heads=5))
        np.testing.assert_array_equal(ask(trace, heads=slice(4, None)), ask(trace, heads=[5]))
        np.testing.assert_array_equal(ask(trace, heads=[i == 5 for i in range(8)]), ask(trace, heads=5))


@pytest.mark.parametrize(
    ("layers", "heads", "error", "words"),
    [
        ("some", 3, UnknownSelection, "head 3 was not recorded; of 8 the trace has 2, 5"),
        ("some", [2, 0], UnknownSelection, "head 0 was not recorded"),
        (None, 8, UnknownSelection, "no head 8; it has 0 to 7"),
        ("all", 5, UnknownSelection, "no head 5; it has 0 to 3"),
        ("some", slice(6, 8), InvalidInput, "the selection of heads is empty"),
    ],
)
def test_heads_that_were_not_kept_are_named(made: Synthetic, layers: str | None, heads: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        r2g(open_trace(made.path), layers=layers, heads=heads)


def test_raw_attention_goes_by_the_model_s_numbers(made: Synthetic) -> None:
    trace = open_trace(made.path)
    found = trace.probabilities("some").sel(head=5, step=0).isel(sample=0, branch=0)
    np.testing.assert_allclose(found, made.probabilities[0][0, 0, 0, 1], atol=1e-3)
    assert trace.scores("all")["head"].values.tolist() == [0, 1, 2, 3]


def test_info_counts_them(made: Synthetic, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", str(made.path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["layers"]
    assert [(row["heads"], row["call_heads"], row["head_numbers"]) for row in rows][:2] == [(2, 8, [2, 5]), (4, 4, [0, 1, 2, 3])]
    assert run(["info", str(made.path)]) == 0
    assert "2 of 8" in capsys.readouterr().out
    assert "2 of 8" in open_trace(made.path)._repr_html_()
    assert run(["verify", str(made.path)]) == 0
