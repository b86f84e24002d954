"""Effects on disk: every kind of trial written and read, trials added later, records that do not hold together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from i2am.analyzer import open_effects
from i2am.recorder.store.effects import EffectStore
from i2am.schema.errors import AlreadyExists, CorruptTrace, InvalidInput
from i2am.schema.experiments.effects import SHARES, TRIALS, EffectRecord

RECORD = EffectRecord(
    id="one", trace="run", kind="drop", group="reference", cells=(2, 3), grid=(4, 5), trials=TRIALS, batch=8,
    layer_names=("down", "up#1"), layer_heads=(2, 3), orders=("random", "truth"), shares=SHARES,
)  # fmt: skip


def fill(store: EffectStore) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    kept = {name: np.full(plan.shape, np.nan, np.float32) for name, plan in store.record.plans.items()}
    with store.opened():
        for name, place in store.missing:
            kept[name][place] = rng.random(store.record.grid, dtype=np.float32)
            store.put(name, place, kept[name][place])
    return kept


def test_what_was_written_is_read_with_its_names(tmp_path: Path) -> None:
    kept = fill(EffectStore(tmp_path / "faith.zarr", RECORD))
    found = open_effects(tmp_path / "faith.zarr")
    assert list(found) == ["effect", "pixels", "without", "layers", "heads", "deletion", "insertion"]
    for name, values in kept.items():
        np.testing.assert_array_equal(found[name], values)
    plain = xr.open_zarr(tmp_path / "faith.zarr", consolidated=False)
    xr.testing.assert_equal(plain.load(), found.drop_vars(["layer", "head", "order", "share"]))
    assert found.layers.dims == ("layer", "y", "x") and found.deletion.dims == ("order", "share", "y", "x")
    assert found.sel(layer="up#1", head=2).heads.notnull().all() and found.sel(layer="down", head=2).heads.isnull().all()
    assert found.order.values.tolist() == ["random", "truth"] and found.share.values.tolist() == list(SHARES)
    assert found.attrs["batch"] == 8 and found.attrs["trace"] == "run"


def test_trials_and_orders_are_added_to_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "faith.zarr"
    few = dataclasses.replace(RECORD, trials=("cells", "curves"), orders=("random",), layer_names=(), layer_heads=())
    kept = fill(EffectStore(path, few))
    assert list(open_effects(path)) == ["effect", "deletion", "insertion"]
    store = EffectStore(path, dataclasses.replace(RECORD, id="two", orders=("truth", "attention")))
    assert store.record.id == "one" and store.record.orders == ("random", "truth", "attention")
    np.testing.assert_allclose(store.read_cells(), kept["effect"].mean((2, 3)), rtol=1e-6)
    added = fill(store)
    assert np.isnan(added["effect"]).all() and np.isnan(added["deletion"][0]).all() and not np.isnan(added["deletion"][1:]).any()
    found = open_effects(path)
    np.testing.assert_array_equal(found.effect, kept["effect"])
    np.testing.assert_array_equal(found.deletion[0], kept["deletion"][0])
    assert not EffectStore(path, few).missing and EffectStore(path, few).record == store.record
    with pytest.raises(AlreadyExists):
        EffectStore(path, dataclasses.replace(few, shares=(0.5,)))
    next((path / "effect").glob("c.*")).write_bytes(b"")
    with pytest.raises(CorruptTrace, match="run the same command again"):
        EffectStore(path, few).read_cells()


def test_a_record_of_cells_alone_is_read_without_the_later_fields() -> None:
    few = dataclasses.replace(RECORD, trials=("cells",), batch=1, layer_names=(), layer_heads=(), orders=(), shares=())
    document = json.loads(json.dumps(few.to_json()))
    for name in ("trials", "batch", "layer_names", "layer_heads", "orders", "shares"):
        del document["attributes"]["i2am_effects"][name]
    assert EffectRecord.from_json(document, "here") == few and list(few.plans) == ["effect"]


@pytest.mark.parametrize(
    "changes",
    [
        {"trials": ("curves", "cells")}, {"trials": ("cells", "cells")}, {"layer_heads": (2,)}, {"layer_heads": (2, 0)},
        {"layer_names": ("up", "up")}, {"orders": ("truth", "truth")}, {"orders": ()}, {"shares": (0.2, 0.1)}, {"shares": (0.5, 1.0)},
        {"layer_names": (), "layer_heads": ()}, {"layer_heads": (2, 2**20)}, {"cells": (200, 200), "grid": (200, 200)}, {"batch": 0},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_that_does_not_hold_together_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        dataclasses.replace(RECORD, **changes)


def test_a_file_that_is_cut_short_is_a_trial_to_make_again(tmp_path: Path) -> None:
    fill(EffectStore(tmp_path / "faith.zarr", RECORD))
    file = tmp_path / "faith.zarr/layers/c.1.0.0"
    file.write_bytes(file.read_bytes()[:10])
    assert EffectStore(tmp_path / "faith.zarr", RECORD).missing == [("layers", (1,))]


def test_a_record_that_cannot_be_read_is_said_to_be_that(tmp_path: Path) -> None:
    fill(EffectStore(tmp_path / "faith.zarr", RECORD))
    root = tmp_path / "faith.zarr/zarr.json"
    root.write_text(root.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    with pytest.raises(AlreadyExists, match=r"not JSON.*choose another path"):
        EffectStore(tmp_path / "faith.zarr", RECORD)
