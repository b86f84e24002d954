"""Maps of single tokens: of probes that the run never saw, over any kept axes, and what is said of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from methods import LATENT, LAYERS, lse, method_trace, resample

from i2am.analyzer import Trace, get_recipe, open_trace, r2g, token_map
from i2am.schema.errors import InvalidInput, UnknownSelection
from i2am.schema.trace import TokenGroup
from traces import Synthetic

pytestmark = pytest.mark.analyzer

PROBES = (TokenGroup("animals", "text", 0, 4), TokenGroup("concepts", "text", 4, 10))
PROBED = [dataclasses.replace(layer, probes=PROBES) if i != 2 else layer for i, layer in enumerate(LAYERS)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return method_trace(tmp_path_factory.mktemp("tokens") / "run.zarr", "factors", layers=PROBED)


def attention(made: Synthetic, index: int, keys: slice, axis: Any = -1, branch: int = 0) -> np.ndarray:
    """Softmax of the run's queries over a probe's keys, or over positions: (step, head, y, x, probe token), NaN where absent."""
    key = made.probe_key[index]
    assert key is not None
    query = made.query[index][0, branch].astype(np.float64)
    scores = made.trace.layers[index].scale * np.einsum("thyxc,hrc->thyxr", query, key[:, keys].astype(np.float64))
    found = np.exp(scores - lse(scores, axis))
    found[np.isnan(made.scores[index][0, branch]).any((1, 2, 3, 4))] = np.nan
    return found


def ovam(made: Synthetic, keys: slice, token: int, branch: int = 0) -> np.ndarray:
    """Sum over steps and heads, bilinear to the largest, sum over the blocks but the middle one."""
    total = np.zeros(LATENT)
    for index in (0, 1, 4):
        total += resample(np.nansum(attention(made, index, keys, branch=branch)[..., token], (0, 1)), LATENT, "bilinear")
    return total


def test_a_probe_is_answered_as_open_vocabulary_maps_are(made: Synthetic) -> None:
    trace = open_trace(made.path)
    found = token_map(trace, [2], probe="concepts", recipe="ovam", branch="cond")
    np.testing.assert_allclose(found, ovam(made, slice(4, 10), 2), rtol=1e-5)
    assert (found.attrs["probe"], found.attrs["group"], found.attrs["tokens"]) == ("concepts", "concepts", [2])
    usual = token_map(trace, [2], probe="concepts", recipe="ovam")  # of the unconditional half, as the published hook
    np.testing.assert_allclose(usual, ovam(made, slice(4, 10), 2, branch=1), rtol=1e-5)
    some = token_map(trace, [3], probe="concepts", among=slice(2, 5), recipe="ovam", branch="cond")
    np.testing.assert_allclose(some, ovam(made, slice(6, 9), 1), rtol=1e-5)


def test_a_probe_s_softmax_may_run_over_positions(made: Synthetic) -> None:
    found = token_map(open_trace(made.path), [1], probe="animals", recipe="i2am", layers=1)
    columns = attention(made, 1, slice(0, 4), axis=(-3, -2))[..., 1]
    np.testing.assert_allclose(found, np.nansum(columns, 0).mean(0), rtol=1e-5)


def test_all_tokens_of_a_probe_together_are_all_attention(made: Synthetic) -> None:
    each = token_map(open_trace(made.path), probe="animals", recipe=get_recipe("ovam", tokens="sum"), branch="cond", keep="layer")
    assert each["layer"].values.tolist() == [0, 1, 4]  # layer 2 has no such keys, the middle is left out
    np.testing.assert_allclose(each, np.broadcast_to(np.array([2 * 2, 3 * 2, 3 * 3])[:, None, None], each.shape), rtol=1e-5)


def test_tokens_are_kept_beside_other_axes(made: Synthetic) -> None:
    trace = open_trace(made.path)
    found = token_map(trace, [4, 1], keep=("head", "token", "time"), time_groups=2)
    assert found.dims == ("time", "head", "token", "y", "x")
    assert found["token"].values.tolist() == [1, 4]
    assert found.attrs["levels"] == "TLAM+HLAM"
    np.testing.assert_allclose(found.sel(token=4), token_map(trace, 4, keep=("head", "time"), time_groups=2), rtol=1e-9)


def test_the_tokens_of_a_reference_together_are_its_r2g(made: Synthetic) -> None:
    trace = open_trace(made.path)
    for name in ("i2am", "i2am-official", "attention-map-diffusers"):
        options: dict[str, Any] = {"recipe": name, "layers": [0, 1], "keep": "head"}
        np.testing.assert_allclose(token_map(trace, group="reference", **options), r2g(trace, **options), rtol=1e-5)


@pytest.mark.parametrize(("call", "error", "words"), [
    (lambda t: token_map(t, probe="plants"), UnknownSelection, "no selected layer has the probe 'plants'; there are animals, concepts"),
    (lambda t: token_map(t, [6], probe="concepts"), UnknownSelection, "no token 6; it has 0 to 5"),
    (lambda t: token_map(t, probe="concepts", layers=2), UnknownSelection, "no selected layer has the probe"),
    (lambda t: token_map(t, [0], probe="concepts", among=[1, 2]), InvalidInput, "add it to among"),
    (lambda t: token_map(t, group="plants"), UnknownSelection, "no selected layer has the token group 'plants'"),
    (lambda t: token_map(t, group="text", probe="animals"), InvalidInput, "a group or a probe"),
])  # fmt: skip
def test_what_cannot_be_asked_is_said_in_one_line(
    made: Synthetic, call: Callable[[Trace], Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        call(open_trace(made.path))


def test_probes_need_the_queries(tmp_path: Path) -> None:
    trace = open_trace(method_trace(tmp_path / "t.zarr", "probabilities", layers=PROBED).path)
    with pytest.raises(InvalidInput, match=r"layer down_blocks\.0\.attn2 keeps probabilities; record with encoding factors"):
        token_map(trace, probe="concepts")
