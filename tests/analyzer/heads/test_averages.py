"""How much heads take of a group, against plain float64 sums, and as a score like any other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from oracles import softmaxes

from i2am.analyzer import head_contribution, load_heads, open_trace, rank_heads, select_heads, selective_iou
from i2am.analyzer.cli.main import run
from i2am.schema.errors import InvalidInput, UnknownSelection
from traces import Synthetic, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

LAYERS = (
    reference_layer("up.attn2", (8, 6), heads=2, text=4, values="full", value_dim=5, output_dim=6),
    reference_layer(
        "down.attn2", (4, 3), heads=3, values="full", value_dim=4, output_dim=7, gain=0.5, call_heads=4, head_numbers=(0, 1, 3)
    ),
)


@pytest.fixture(scope="module", params=["probabilities", "factors"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Synthetic]:
    home = tmp_path_factory.mktemp("averages")
    return [
        synthetic_trace(home / f"{seed}.zarr", layers=LAYERS, encoding=request.param, static_keys=False, seed=seed, absent={(2, 0)})
        for seed in range(2)
    ]


def lengths(made: Synthetic, layer: int, group: str) -> np.ndarray:
    """Mean over positions and steps, head by head."""
    tokens = next(g for g in made.trace.layers[layer].groups if g.name == group)
    value, output, found = made.value[layer], made.output[layer], []
    assert value is not None
    assert output is not None
    P = softmaxes(made, layer)[0][0, 0]
    for step in range(len(P)):
        taken = [
            sum(
                P[step, head, ..., r, None] * (value[0, 0, step, head, r].astype(float) @ output[head].astype(float))
                for r in range(tokens.start, tokens.stop)
            )
            for head in range(P.shape[1])
        ]
        found.append(made.trace.layers[layer].gain * np.linalg.norm(taken, axis=-1).mean((1, 2)))
    return np.nanmean(found, 0)


def test_contributions_equal_the_oracle(made: list[Synthetic]) -> None:
    found = head_contribution([each.path for each in made])
    assert found["layer"].values.tolist() == ["down.attn2", "up.attn2"]
    assert found["head"].values.tolist() == [0, 1, 3]
    truth = np.full((2, 3), np.nan)
    truth[0] = np.mean([lengths(each, 1, "reference") for each in made], 0)
    truth[1, :2] = np.mean([lengths(each, 0, "reference") for each in made], 0)
    np.testing.assert_allclose(found, truth, rtol=1e-5)
    text = head_contribution(made[0].path, group="text")
    np.testing.assert_allclose(text, [[*lengths(made[0], 0, "text")]], rtol=1e-5)


def test_heads_are_ranked_and_selected_by_it(made: list[Synthetic]) -> None:
    scores = head_contribution(made[0].path)
    best = rank_heads(scores)[0]
    assert scores.sel(layer=best[0], head=best[1]) == scores.max()
    assert select_heads([made[0].path], top=1, by="contribution") == {best[0]: [best[1]]}
    table = selective_iou([open_trace(each.path) for each in made], by="contribution", count=1)
    assert table.attrs["by"] == "contribution"
    with pytest.raises(InvalidInput, match="contribution knows no concepts"):
        selective_iou([open_trace(each.path) for each in made], by="contribution", concept="Animals")


def test_the_command_scores_by_contribution(made: list[Synthetic], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "taken.nc"
    paths = [str(each.path) for each in made]
    assert run(["heads", *paths, "--by", "contribution", "-o", str(path)]) == 0
    assert "mean length of what the head takes of the group" in capsys.readouterr().out
    assert load_heads(path).identical(head_contribution(paths))
    assert run(["heads", paths[0], "--by", "contribution", "--group", "text", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "contribution"
    assert run(["heads", paths[0], "--by", "contribution", "--seed", "1"]) == 2
    assert "--seed is of heads scored by relevance, not by contribution" in capsys.readouterr().err


def test_values_have_to_be_there(tmp_path: Path) -> None:
    made = synthetic_trace(tmp_path / "run.zarr", layers=[reference_layer("down.attn2", (8, 6), values="norms")])
    with pytest.raises(UnknownSelection, match=r"down.attn2 has norms of values only; record them with values='full'"):
        head_contribution(made.path)
