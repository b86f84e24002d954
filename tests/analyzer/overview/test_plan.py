"""Plans: what is dropped first, and that no overview is larger than its budget."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2am.analyzer import Trace, make_overview, open_trace
from i2am.analyzer.overview import overview, plan
from i2am.analyzer.overview.group import decode_rows
from i2am.analyzer.overview.plan import cell_starts, distinct, ladder, sampled, sampled_places, summed
from i2am.analyzer.overview.views import list_views
from i2am.schema.errors import InvalidInput, TraceError
from traces import reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> Trace:
    layers = [reference_layer(f"unet.b.{i}.attn2", (18, 20), heads=3, reference=(9, 17)) for i in range(2)]
    path = tmp_path_factory.mktemp("o") / "run.zarr"
    return open_trace(synthetic_trace(path, layers=layers, latent_grid=(18, 20)).path)


@given(st.integers(1, 300), st.integers(1, 40))
def test_sampled_places_are_on_the_grid_every_nth_and_at_most_as_many(length: int, most: int) -> None:
    kept = sampled(length, most)
    places = sampled_places(length, kept)
    assert 1 <= kept <= most and places[0] >= 0 and places[-1] < length
    assert len(set(np.diff(places))) <= 1


@given(st.integers(1, 300), st.integers(1, 40))
def test_cells_take_every_key_once(length: int, most: int) -> None:
    cells = summed(length, most)
    starts = cell_starts(length, cells)
    assert cells <= most and starts[0] == 0 and (np.diff(starts) > 0).all() and starts[-1] < length


def test_the_ladder_drops_one_thing_after_the_other() -> None:
    plans = ladder(8_000_000, 5)
    assert [plan.rows for plan in plans] == ["full"] + ["marginal"] * 10 + ["none"] * 5
    assert not plans[0].dropped
    assert all(plan.dropped for plan in plans[1:-3])


def test_what_leaves_nothing_out_is_no_step(trace: Trace) -> None:
    views, _ = list_views(trace)
    plans = distinct(ladder(8_000_000, 3), views)
    assert (
        len(plans) == len(set(plans)) and {plan.heads for plan in plans} == {None} and {plan.patches for plan in plans} == {None, 16, 12, 8}
    )
    assert all(plan.words for plan in plans) and {plan.keys for plan in plans} == {None, 16, 8}


@settings(max_examples=12, deadline=None)
@given(budget=st.integers(20_000, 1_500_000))
def test_no_overview_is_larger_than_its_budget(trace: Trace, budget: int) -> None:
    try:
        made = make_overview(trace, budget=budget)
    except InvalidInput as error:
        (least,) = re.findall(r"budget='(\d+)kB'", str(error))
        assert budget < int(least) * 1000
        made = make_overview(trace, budget=f"{least}kB")
        budget = int(least) * 1000
    assert made.nbytes <= budget
    assert made.facts["plan"]["budget"] == budget


def test_a_poorer_plan_keeps_exact_rows_of_sampled_patches_and_sums_of_keys(trace: Trace) -> None:
    made = make_overview(trace, budget=200_000)
    kept, layer, reader = made.facts["plan"], made.facts["views"][0]["layers"][1], made.reader()
    assert kept["rows"] == "marginal" and kept["patches"] is not None and any("every n-th" in said for said in kept["dropped"])
    p = trace.probabilities(1).values[0, 0][..., 1:].astype(np.float64)
    down, across = (np.arange(n) * (m // n) + (m // n) // 2 for n, m in zip(layer["row_grid"], (18, 20), strict=True))
    rows = p[:, :, down][:, :, :, across].reshape(4, 3, len(down), len(across), 9, 17)
    n, m = layer["key_grid"] or (9, 17)
    cells = np.add.reduceat(np.add.reduceat(rows, np.arange(n) * 9 // n, -2), np.arange(m) * 17 // m, -1).reshape(*rows.shape[:4], -1)
    by_time = np.stack([each.mean((0, 1)) for each in np.array_split(cells, kept["times"])])
    for name, expected in (("heads", cells.mean(0)), ("times", by_time)):
        codes, top = reader.read(f"views/000/rows_{name}_001"), reader.read(f"views/000/rows_{name}_001_max")
        found = decode_rows(codes, top)[:, 0]
        assert (np.abs(found - expected) <= 0.00392 * expected.max(-1, keepdims=True) + 1e-6).all()
    assert layer["keys"] == n * m == reader.shape("views/000/rows_times_001")[-1]


def test_few_heads_are_those_with_the_highest_scores(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "FEW_HEADS", 2)
    monkeypatch.setattr(overview, "ladder", lambda budget, times: [p for p in ladder(budget, times) if p.heads])
    made = make_overview(trace)
    scores, layers = made.reader().read("views/000/scores"), made.facts["views"][0]["layers"]
    best = np.argsort(-scores[:6, made.facts["scores"].index("copy")])[:2]
    kept = [(i, head) for i, layer in enumerate(layers) for head in layer["row_heads"]]
    assert sorted(divmod(int(n), 3) for n in best) == kept
    for i, layer in enumerate(layers):
        path = f"views/000/rows_heads_{i:03d}"
        assert (made.reader().shape(path)[0] if path in made.reader() else 0) == len(layer["row_heads"])
    assert np.isnan(scores[:6, 0]).all() and np.isfinite(scores[6:, 0]).all()


BAD = [{"budget": 0}, {"budget": "much"}, {"time_groups": 0}, {"recipe": "daam"}, {"sample": 7}, {"group": "no"}, {"branch": "x"}]


@pytest.mark.parametrize("given", BAD)
def test_bad_options_are_errors_of_one_line(trace: Trace, given: dict) -> None:
    with pytest.raises(TraceError) as found:
        make_overview(trace, **given)
    assert "\n" not in str(found.value)
