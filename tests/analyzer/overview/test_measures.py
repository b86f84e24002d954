"""Measures of calls and the copy score against float64 oracles."""

import numpy as np
import pytest

from i2am.analyzer import Trace, make_overview, open_trace, row_entropy
from i2am.analyzer.overview.measures import Targets, score_copied
from traces import Synthetic, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

GRID, KEYS = (8, 8), (4, 8)
"""Grids in whose cells the masks begin and end."""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Synthetic, Trace]:
    layer = reference_layer("unet.attn2", GRID, heads=3, reference=KEYS, text=3, hidden=2)
    path, sizes = tmp_path_factory.mktemp("o") / "run.zarr", {"image_size": (64, 64), "reference_size": (32, 64), "latent_grid": GRID}
    found = synthetic_trace(path, layers=[layer], steps=3, encoding="factors", **sizes)
    return found, open_trace(found.path)


def cells(picture: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    rows, columns = (n // m for n, m in zip(picture.shape, grid, strict=False))
    return picture.astype(np.float64).reshape(grid[0], rows, grid[1], columns, -1).mean((1, 3))


def oracle(found: Synthetic, step: int) -> dict[str, np.ndarray]:
    """Each measure of one call, of each head."""
    p, g = (each[0][0, 0, step].reshape(3, 64, -1) for each in (found.probabilities, found.generated))
    mask, reference_mask = (cells(found.images[name], grid).ravel() for name, grid in (("mask", GRID), ("reference_mask", KEYS)))
    inside, outside = mask > 127.5, reference_mask <= 127.5
    rows = p[..., 4:]
    shares = rows / rows.sum(-1, keepdims=True)
    masked = rows[:, inside].sum(1)
    r2g = g[..., 3:].mean(-1)
    copied = shares[:, inside] @ cells(found.images["reference"], KEYS).reshape(-1, 3)
    painted = cells(found.images["generated_0"], GRID).reshape(-1, 3)[inside]
    a, b = copied - copied.mean(1, keepdims=True), painted - painted.mean(0)
    return {
        "evenness": (-(shares * np.log(shares)).sum(-1) / np.log(32))[:, inside].mean(1),
        "leak": masked[:, outside].sum(1) / masked.sum(1),
        "inside": r2g[:, inside].sum(1) / r2g.sum(1),
        "copy": (a * b).sum((1, 2)) / np.sqrt((a**2).sum((1, 2)) * (b**2).sum()),
        "share": p[..., 3:].sum(-1).mean(1),
        "peak": shares.max(-1)[:, inside].mean(1),
    }


def test_measures_of_every_call(made: tuple[Synthetic, Trace]) -> None:
    found, trace = made
    overview = make_overview(trace, group="reference")
    stats = overview.reader().read("views/000/stats_000")
    for step in range(3):
        for i, name in enumerate(overview.facts["measures"]):
            np.testing.assert_allclose(stats[step, :, i], oracle(found, step)[name], atol=2e-6, err_msg=name)


def test_evenness_without_a_mask_is_the_analyzers_row_entropy(tmp_path) -> None:
    found = synthetic_trace(tmp_path / "run.zarr", steps=3, status="interrupted")
    trace = open_trace(found.path, partial=True)
    overview = make_overview(trace)
    scores = overview.reader().read("views/000/scores")
    expected = float(row_entropy(trace))
    counts = [2, 4, 2]
    by_layer = row_entropy(trace, keep="layer").values
    assert scores[-1, overview.facts["scores"].index("evenness")] == pytest.approx(np.average(by_layer, weights=counts), abs=1e-5)
    assert expected == pytest.approx(np.average(by_layer, weights=counts), abs=1e-5)


def targets(painted: np.ndarray) -> Targets:
    count = len(painted)
    return Targets(rows=(1, 1, count), patches=np.ones(count, bool), painted=painted, colours=None, inside=None, outside=None)


def test_a_score_copieds_one_its_negative_minus_one_and_one_colour_nothing() -> None:
    painted = np.random.default_rng(0).random((7, 3))
    weights = np.linspace(0.1, 1, 7)[:, None]
    copies = np.stack([painted, 1 - painted, np.full((7, 3), 0.3)])
    copied = np.concatenate([copies * weights, np.broadcast_to(weights, (3, 7, 1))], -1)
    np.testing.assert_allclose(score_copied(copied, targets(painted)), [1, -1, np.nan], atol=1e-12)
    assert np.isnan(score_copied(copied, targets(np.full((7, 3), 0.5)))).all()
    assert np.isnan(score_copied(copied[:, :1], targets(painted[:1]))).all()


def test_a_patch_that_gives_the_reference_nothing_is_no_number() -> None:
    painted = np.random.default_rng(0).random((7, 3))
    assert np.isnan(score_copied(np.zeros((2, 7, 4)), targets(painted))).all()
