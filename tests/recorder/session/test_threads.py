"""Recordings beside each other: in threads, in any order, in a forked child; nothing of them stays behind."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from i2am.analyzer import open_trace, r2g
from i2am.recorder import record, recording
from i2am.recorder.capture.wrapping import replaced
from pipelines import build, text_to_image

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers", "ignore::DeprecationWarning:multiprocessing")


def with_barrier(parties: int) -> tuple[threading.Barrier, Callable[..., Any]]:
    """A step callback at which all threads wait for each other."""
    barrier = threading.Barrier(parties, timeout=60)

    def wait(pipeline: Any, step: int, time: Any, values: Any) -> Any:
        barrier.wait()
        return values

    return barrier, wait


def methods() -> list[Any]:
    return [StableDiffusionPipeline.__dict__["__call__"], DDIMScheduler.__dict__["step"]]


def test_two_recordings_and_a_plain_run_in_three_threads(tmp_path: Path) -> None:
    before = methods()
    built = [build("ip-full") for _ in range(3)]
    alone = [pipeline(**call()).images for pipeline, call in built]
    record(built[0][0], tmp_path / "alone.zarr", **built[0][1]())
    _, wait = with_barrier(3)

    def run(index: int) -> Any:
        (pipeline, call), together = built[index], {"callback_on_step_end": wait}
        return pipeline(**call(), **together) if index == 2 else record(pipeline, tmp_path / f"{index}.zarr", **call(), **together)

    with ThreadPoolExecutor(3) as pool:
        images = [future.result().images for future in [pool.submit(run, index) for index in range(3)]]
    assert all(np.array_equal(one, other) for one, other in zip(alone, images, strict=True))
    maps = [r2g(open_trace(tmp_path / f"{name}.zarr")).values for name in ("alone", "0", "1")]
    assert np.array_equal(maps[0], maps[1]) and np.array_equal(maps[0], maps[2])
    assert methods() == before


def test_threads_that_share_the_models(tmp_path: Path) -> None:
    first, call = build("ip-full")
    other = type(first)(
        **{**first.components, "scheduler": DDIMScheduler.from_config(first.scheduler.config)}, requires_safety_checker=False
    )
    other.set_progress_bar_config(disable=True)
    record(first, tmp_path / "alone.zarr", **call())
    _, wait = with_barrier(2)

    def run(pipeline: Any, shift: float) -> Any:
        arguments = call()
        arguments["prompt_embeds"] = arguments["prompt_embeds"] + shift
        if shift:
            return [pipeline(**arguments, callback_on_step_end=wait) for _ in range(1)]
        return record(pipeline, tmp_path / "together.zarr", **arguments, callback_on_step_end=wait)

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(run, first, 0.0), pool.submit(run, other, 1.0)]:
            future.result()
    alone, together = (r2g(open_trace(tmp_path / f"{name}.zarr")).values for name in ("alone", "together"))
    assert np.array_equal(alone, together)


def test_blocks_end_in_any_order(tmp_path: Path) -> None:
    before = methods()
    (one, call), (two, _) = text_to_image(), text_to_image()
    first, second = recording(one, tmp_path / "a.zarr"), recording(two, tmp_path / "b.zarr")
    first.__enter__()
    second.__enter__()
    held = one.__call__
    one(**call())
    first.__exit__(None, None, None)
    two(**call())
    one(**call())  # no longer recorded
    second.__exit__(None, None, None)
    held(**call())  # a stale wrapper calls the original
    assert methods() == before
    assert first.trace is not None and second.trace is not None


def test_what_others_put_over_a_wrapper_stays() -> None:
    class Model:
        def act(self) -> str:
            return "plain"

    def marked(mark: str) -> Callable[[Any], Any]:
        return lambda original: lambda self: f"{mark}({original(self)})"

    with replaced(Model, "act", marked("a")):
        Model.act = marked("theirs")(Model.act)  # type: ignore[method-assign]
        assert Model().act() == "theirs(a(plain))"
    assert Model().act() == "theirs(plain)"

    class Derived(Model):
        pass

    outer, inner = replaced(Model, "act", marked("a")), replaced(Derived, "act", marked("b"))
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert Derived().act() == "b(theirs(plain))"
    inner.__exit__(None, None, None)
    assert "act" not in vars(Derived)


def standing(pipeline: Any) -> dict[str, Any]:
    """What a recording may have left: hooks, methods, threads, open files."""
    parts = [module for part in pipeline.components.values() if isinstance(part, torch.nn.Module) for module in part.modules()]
    held = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks_with_kwargs",
        "_forward_hooks_always_called",
    )
    return {
        "hooks": sum(len(getattr(module, name)) for module in parts for name in held),
        "methods": methods(),
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
    }


def test_nothing_stays_after_many_runs_and_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)  # a folder of modules that changes with each run, as the working folder often does
    pipeline, call = build("ip-full")

    def failing(kind: type[BaseException]) -> Callable[..., Any]:
        def fail(pipeline: Any, step: int, time: Any, values: Any) -> Any:
            raise kind

        return fail

    def growth(runs: int, run: Callable[[], object]) -> float:
        gc.collect()
        before = len(gc.get_objects())
        for _ in range(runs):
            run()
        gc.collect()
        return (len(gc.get_objects()) - before) / runs

    def once() -> None:
        record(pipeline, tmp_path / "run.zarr", layers="*mid_block*", overwrite=True, **call())

    once()
    before = standing(pipeline)
    for kind in (ZeroDivisionError, KeyboardInterrupt, SystemExit, MemoryError):
        with pytest.raises(kind):
            record(pipeline, tmp_path / "run.zarr", overwrite=True, **call(), callback_on_step_end=failing(kind))
    growth(5, once)
    plain = growth(5, lambda: pipeline(**call()))
    assert growth(30, once) <= plain + 1
    assert standing(pipeline) == before
    assert {path.name for path in tmp_path.iterdir()} == {"run.zarr"}
    open_trace(tmp_path / "run.zarr")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_that_leaves_the_block_changes_nothing(tmp_path: Path) -> None:
    pipeline, call = text_to_image()
    before, children = standing(pipeline), []

    def fork(pipeline: Any, step: int, time: Any, values: Any) -> Any:
        if not children and step == 1:
            children.append(os.fork())
            if children == [0]:
                raise SystemExit
        return values

    try:
        record(pipeline, tmp_path / "run.zarr", **call(), callback_on_step_end=fork)
    except BaseException:
        if children == [0]:
            os._exit(0)
        raise
    assert os.waitpid(children[0], 0)[1] == 0
    open_trace(tmp_path / "run.zarr")
    assert standing(pipeline) == before
