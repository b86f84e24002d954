"""Overviews that were made before are taken from the cache, if they are whole and of this trace."""

from pathlib import Path

import numpy as np
import pytest

from i2am.analyzer import Overview, load_overview, open_trace
from i2am.analyzer.overview import cache
from i2am.analyzer.storage.cache import VARIABLE, DiskCache
from traces import reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer


@pytest.fixture
def trace(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return open_trace(synthetic_trace(tmp_path / "run.zarr", steps=1, layers=[reference_layer(heads=1)]).path)


@pytest.fixture
def makes(monkeypatch) -> list[int]:
    """One entry for each overview that is made."""
    found: list[int] = []
    make = cache.make_overview
    monkeypatch.setattr(cache, "make_overview", lambda *args, **options: found.append(1) or make(*args, **options))
    return found


def test_it_is_made_once_for_each_plan(trace, makes) -> None:
    first = load_overview(trace)
    assert load_overview(trace).files == first.files and len(makes) == 1
    assert not load_overview(trace, time_groups=1, budget="5MB").note and len(makes) == 2


@pytest.mark.parametrize(
    "data", [b"", b"nothing", b"{}\n", Overview({"zarr.json": b'{"attributes": {"i2am_overview": {"version": 1}}}'}).pack()]
)
def test_what_is_no_overview_of_this_trace_is_made_again(trace, makes, monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(DiskCache, "get", lambda self, key: np.frombuffer(data, np.uint8))
    assert load_overview(trace).facts["trace"]["id"] == trace.id and len(makes) == 1


def test_a_changed_file_is_made_again(trace, makes, tmp_path) -> None:
    load_overview(trace)
    (kept,) = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    data = bytearray(kept.read_bytes())
    data[-9] ^= 1
    kept.write_bytes(data)
    load_overview(trace)
    assert len(makes) == 2


def test_a_folder_that_cannot_be_written_is_only_said(trace, tmp_path, monkeypatch) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "overviews-1").write_text("a file")
    found = load_overview(trace)
    assert "could not be kept" in found.note and found.facts["trace"]["id"] == trace.id


@pytest.mark.parametrize("partial", [False, True])
def test_nothing_is_kept_of_an_unfinished_recording_or_where_none_is_asked(tmp_path: Path, monkeypatch, makes, partial: bool) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache") if partial else "none")
    made = synthetic_trace(
        tmp_path / "run.zarr", steps=1, layers=[reference_layer(heads=1)], status="interrupted" if partial else "complete"
    )
    trace = open_trace(made.path, partial=partial)
    assert not load_overview(trace).note and not load_overview(trace).note
    assert len(makes) == 2 and not (tmp_path / "cache").exists()
