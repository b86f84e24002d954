"""Exact answers are those of the analyzer, and the newest question is answered first."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from i2am.analyzer import g2r, get_recipe, open_trace, r2g, sram, token_map
from i2am.analyzer.cli.main import run
from i2am.analyzer.view.exact import NewestFirst, answer_exactly, draw_exactly
from i2am.analyzer.view.runs import Run, differing
from traces import Synthetic, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

P = get_recipe("i2am", r2g="keys")
SHOWN = {"branch": "cond", "group": "reference"}


@pytest.mark.parametrize(
    ("asked", "answer", "steps"),
    [
        ({"at": "7,5"}, lambda t: sram(t, (7, 5), **SHOWN), 4),
        ({"at": "0,0", "layers": "0,2", "heads": "1", "view": "1"}, lambda t: sram(t, (0, 0), layers=[0, 2], heads=1, branch="uncond"), 4),
        ({"at": "0,0", "time": "0"}, lambda t: sram(t, (0, 0), steps=[0, 1], **SHOWN), 2),
        ({"at": "0,0", "time": "1,0"}, lambda t: sram(t, (0, 0), **SHOWN), 4),
        ({"token": "7"}, lambda t: token_map(t, [7], recipe=P, **SHOWN), 4),
        ({"map": "r2g", "time": "1"}, lambda t: r2g(t, steps=[2, 3], **SHOWN), 2),
        ({"map": "g2r", "heads": "0"}, lambda t: g2r(t, heads=0, **SHOWN), 4),
    ],
)
def test_answers_are_the_analyzer_s(run_made: Run, asked: dict[str, str], answer: Any, steps: int) -> None:
    facts, body = answer_exactly(run_made, asked)
    expected = answer(run_made.trace)
    assert (facts["dims"], facts["shape"], facts["steps"]) == (list(expected.dims), list(expected.shape), steps)
    assert facts["calls"] == expected.attrs["calls"]
    np.testing.assert_array_equal(np.frombuffer(body, "<f4").reshape(facts["shape"]), expected.values.astype("<f4"))


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ({"at": "3,2", "layers": "0"}, ["--at", "3,2", "--layers", "0"]),
        ({"map": "r2g", "view": "1"}, ["--r2g", "--branch", "uncond"]),
        ({"map": "g2r"}, ["--g2r"]),
        ({"token": "7"}, ["--tokens", "7", "--group", "reference", "--recipe", "i2am", "--set", "r2g=keys"]),
    ],
)
def test_a_picture_is_what_the_command_writes(
    run_made: Run, made: Synthetic, asked: dict[str, str], given: list[str], tmp_path: Path
) -> None:
    assert run(["map", str(made.path), *given, "-o", str(tmp_path / "map.png")]) == 0
    assert draw_exactly(run_made, asked) == (tmp_path / "map.png").read_bytes()


def test_text_alone_is_answered_too(tmp_path: Path) -> None:
    layers = [reference_layer(reference=None, text=6, grid=(8, 6))]
    shown = Run.of(open_trace(synthetic_trace(tmp_path / "text.zarr", layers=layers).path))
    facts, _ = answer_exactly(shown, {"at": "1,1"})
    assert (facts["dims"], facts["shape"]) == (["token"], [6])
    facts, _ = answer_exactly(shown, {"token": "5"})
    assert (facts["dims"], facts["shape"]) == (["y", "x"], [8, 6])


def test_the_newest_question_is_answered_first_and_older_ones_are_let_go() -> None:
    newest: NewestFirst[str] = NewestFirst()
    busy, go, found, order = threading.Event(), threading.Event(), {}, []

    def hold() -> str:
        busy.set()
        go.wait(10)
        return "first"

    def ask(kind: str, name: str, work: Any) -> threading.Thread:
        thread = threading.Thread(target=lambda: found.update({name: newest.ask(kind, work)}))
        thread.start()
        return thread

    def working(name: str) -> Any:
        return lambda: (order.append(name), name)[1]

    threads = [ask("a", "first", hold)]
    assert busy.wait(10)
    threads.append(ask("a", "old", working("old")))
    while len(newest._waiting) < 1:
        pass
    threads.append(ask("b", "other", working("other")))
    while len(newest._waiting) < 2:
        pass
    threads.append(ask("a", "new", working("new")))
    threads[1].join(10)
    assert found == {"old": None}, "it is let go at once, before the one in work is done"
    go.set()
    for thread in threads:
        thread.join(10)
    assert found == {"old": None, "first": "first", "other": "other", "new": "new"}
    assert order == ["new", "other"]


def test_an_error_in_an_answer_is_its_asker_s() -> None:
    newest: NewestFirst[str] = NewestFirst()
    with pytest.raises(ZeroDivisionError):
        newest.ask("a", lambda: str(1 // 0))
    assert newest.ask("a", lambda: "sound") == "sound"


def test_two_runs_that_cannot_be_subtracted_are_said(tmp_path: Path) -> None:
    def shown(name: str, **options: Any) -> Run:
        return Run.of(open_trace(synthetic_trace(tmp_path / f"{name}.zarr", **options).path))

    one, alike = shown("one"), shown("alike", seed=3)
    assert differing(one, alike) is None
    wide = shown("wide", latent_grid=(16, 6))
    assert (
        differing(one, wide)
        == f"{one.trace.path} and {wide.trace.path} differ in their latent grids (8 6 against 16 6); each is shown by itself"
    )
    keys = shown("keys", layers=[reference_layer(reference=(4, 4))])
    assert "differ in their views" in str(differing(one, keys))
    few = shown("few", layers=[reference_layer(grid=(8, 6))])
    assert "differ in their layers" in str(differing(one, few))
