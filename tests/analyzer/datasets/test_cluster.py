"""Datasets on a cluster: a real scheduler and two real workers, processes of their own."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from probed import CONCEPTS, trace_of
from repository import ROOT

from i2am.analyzer import evaluate
from i2am.analyzer.cli.main import run
from i2am.analyzer.datasets import cluster
from i2am.analyzer.datasets.cluster import connected, evaluate_there, require_workers
from i2am.analyzer.datasets.rows import DatasetRequest, TraceScores, evaluate_trace
from i2am.analyzer.storage import folder
from i2am.analyzer.storage.folder import open_file
from i2am.analyzer.store.discovery import find_traces
from i2am.schema.errors import InvalidInput, NoCluster
from traces import synthetic_trace

pytestmark = pytest.mark.analyzer

LOCAL = ["--no-dashboard", "--host", "127.0.0.1"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler with two workers of one thread each, gone afterwards whatever happens."""
    folder = tmp_path_factory.mktemp("cluster")
    file, started = folder / "scheduler.json", []

    def start(*arguments: str) -> None:
        log = (folder / f"{len(started)}.log").open("w")
        with log:
            command = [sys.executable, "-P", "-m", "dask", *arguments, *LOCAL, "--scheduler-file", str(file)]
            started.append(subprocess.Popen(command, cwd=folder, stdout=log, stderr=log))

    patient = pytest.MonkeyPatch()
    for name in ("ANSWER_SECONDS", "WORKER_SECONDS"):
        patient.setattr(cluster, name, 120)  # for machines that have much else to do
    try:
        start("scheduler", "--port", "0", "--idle-timeout", "600")
        for name in ("one", "two"):
            # A worker without a scheduler ends by itself, even if nobody is left to end it.
            options = ("--nthreads", "1", "--no-nanny", "--death-timeout", "60", "--local-directory", str(folder / name))
            start("worker", *options)
        yield _address(file, started)
    finally:
        patient.undo()
        for process in started:
            process.kill()
        for process in started:
            process.wait()


def _address(file: Path, started: Sequence[subprocess.Popen[bytes]]) -> str:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        ended = [process.args for process in started if process.poll() is not None]
        assert not ended, f"{ended} ended; its log lies beside {file}"
        try:
            return str(json.loads(file.read_text())["address"])
        except (OSError, ValueError):
            time.sleep(0.05)
    raise AssertionError(f"the scheduler did not say where it is within 30 s; its log lies beside {file}")


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four sound traces, of both encodings, and one that did not finish."""
    folder = tmp_path_factory.mktemp("traces")
    for seed in range(4):
        encoding = ("probabilities", "factors")[seed % 2]
        synthetic_trace(folder / f"pair-{seed}.zarr", steps=2, seed=seed, encoding=encoding)
    synthetic_trace(folder / "part.zarr", steps=2, planned=5, status="interrupted", seed=5)
    return folder


def refuse_attention(root: Path, name: str) -> object:
    assert not name.startswith("layers/"), "attention was read in the client's process"
    return open_file(root, name)


def test_a_cluster_gives_what_threads_give_bit_for_bit(address: str, traces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = ("imacs_g", "imacs_r", "imacs_r_plain", "iou_g", "entropy_r", "row_entropy")
    here = evaluate(traces, metrics=metrics, layers="*_blocks.*")
    with connected(address) as client, monkeypatch.context() as patch:
        patch.setattr(folder, "open_file", refuse_attention)
        there = evaluate(traces, metrics=metrics, layers="*_blocks.*", client=client)
        assert len(client.scheduler_info()["workers"]) in (1, 2), "the second may still be on its way"
    assert there.sizes["trace"] == 4
    xr.testing.assert_identical(here.drop_attrs(), there.drop_attrs())
    assert [here[name].attrs for name in metrics] == [there[name].attrs for name in metrics]
    assert [row["type"] for row in json.loads(there.attrs["skipped"])] == ["IncompleteTrace"]


def test_the_command_prints_the_same_on_a_cluster(
    address: str, traces: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(traces.parent)
    for command in (["evaluate", traces.name], ["imacs", f"{traces.name}/pair-2.zarr", f"{traces.name}/pair-0.zarr"]):
        documents = []
        for where in ([], ["--scheduler", address]):
            code = run([*command, "--json", *where])
            captured = capsys.readouterr()
            assert (captured.err, code) == ("", 4 if command[0] == "evaluate" else 0)
            documents.append(json.loads(captured.out))
        skipped = [document.pop("skipped") for document in documents]
        assert documents[0] == documents[1]
        assert [row["message"].replace(f"{traces.parent}/", "") for row in skipped[1]] == [row["message"] for row in skipped[0]]
        assert all("--partial" in row["message"] for row in skipped[1]), "as who types commands reads it"


def test_masks_from_files_reach_the_workers(
    address: str, traces: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    picture = Image.new("L", (48, 64))
    picture.paste(255, (0, 0, 20, 64))
    picture.save("mask.png")
    found = []
    for where in ([], ["--scheduler", address]):
        assert run(["evaluate", str(traces / "pair-0.zarr"), "--mask", "mask.png", "--metric", "imacs_g", "--json", *where]) == 0
        found.append(json.loads(capsys.readouterr().out)["traces"])
    assert found[0] == found[1]


def test_the_page_s_commands_work(
    address: str, traces: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "datasets.md").read_text().replace("tcp://10.0.0.1:8786", address)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(traces, "traces")
    shutil.copytree(traces / "pair-0.zarr", "run.zarr")
    lines = [line.split("#")[0] for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    asked = [shlex.split(line)[1:] for line in lines if re.match("i2am (imacs|evaluate) ", line)]
    assert len(asked) == 5
    for arguments in asked:
        assert run([*arguments, *(["--overwrite"] if "-o" in arguments else [])]) == 4, "one of the traces did not finish"
        assert "1 of 5 traces were skipped" in capsys.readouterr().err
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "datasets.md", "exec"), {})


def test_a_worker_of_another_release_is_named(address: str, traces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "version", lambda name: "99.1")
    with connected(address) as client, pytest.raises(NoCluster, match=r"worker tcp://127.0.0.1:\d+ has i2am .*, this is 99.1"):
        evaluate(traces, client=client)


def test_what_distributed_logs_does_not_come_beside_our_line(
    address: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("distributed.client")
    handler = logging.StreamHandler(sys.stderr)
    log.addHandler(handler)
    try:
        with connected(address):
            log.error("inside")
        log.error("outside")
        monkeypatch.setattr(cluster, "ANSWER_SECONDS", 1)
        with pytest.raises(NoCluster), connected("127.0.0.1:1"):
            pass
        log.error("after")
    finally:
        log.removeHandler(handler)
    shown = capfd.readouterr().err
    assert "inside" not in shown and "outside" in shown and "after" in shown


def test_what_travels_is_small(traces: Path) -> None:
    request = DatasetRequest(metrics=("imacs_g", "row_entropy"))
    row = evaluate_trace(traces / "pair-0.zarr", request)
    assert row.values
    assert len(pickle.dumps((request, row))) < 4096


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 1)


def refused(address: str, traces: Path, capsys: pytest.CaptureFixture[str], code: int) -> str:
    """The one line that a command prints about a scheduler, within seconds."""
    begin = time.monotonic()
    assert run(["evaluate", str(traces), "--scheduler", address]) == code
    assert time.monotonic() - begin < 15
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    return captured.err


def test_a_scheduler_that_is_not_there_is_one_line(hasty: None, traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    line = refused(f"tcp://127.0.0.1:{port}", traces, capsys, 6)
    assert f"no dask scheduler answered at tcp://127.0.0.1:{port} within 1 s" in line
    assert "`dask scheduler`" in line and "leave --scheduler out" in line


def test_something_that_listens_and_says_nothing_is_one_line(hasty: None, traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "no dask scheduler answered" in refused(f"127.0.0.1:{server.getsockname()[1]}", traces, capsys, 6)


def test_another_part_of_a_cluster_is_no_scheduler(address: str, traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with connected(address) as client:
        client.wait_for_workers(1, timeout=cluster.WORKER_SECONDS)
        worker = next(iter(client.scheduler_info()["workers"]))
    assert f"no dask scheduler answered at {worker}" in refused(worker, traces, capsys, 6)


def test_without_distributed_the_line_names_the_extra(
    traces: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert 'pip install "i2am[cluster]"' in refused("tcp://127.0.0.1:1", traces, capsys, 5)


@pytest.mark.parametrize("address", ["", "here", "tcp://10.0.0.1", "10.0.0.1:port", "tcp://a b:1", "http//x:1"])
def test_what_is_no_address_is_said(address: str, traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected one such as tcp://10.0.0.1:8786" in refused(address, traces, capsys, 2)


def client_of(found: Any, *, workers: bool = True) -> Any:
    """As much of a client as is asked before any work: `found` is what its worker answers."""

    def wait(count: int, timeout: float) -> None:
        if not workers:
            raise TimeoutError

    return SimpleNamespace(
        scheduler=SimpleNamespace(address="tcp://s:1"), wait_for_workers=wait, run=lambda *given, on_error: {"tcp://w:2": found}
    )


def test_workers_that_cannot_do_the_work_are_named(traces: Path) -> None:
    here, trace = cluster.look(str(traces / "pair-0.zarr")), traces / "pair-0.zarr"
    require_workers(client_of(here), trace)
    for found, reason in (
        (ModuleNotFoundError("No module named 'i2am'"), r"the worker tcp://w:2 cannot run i2am \(No module named 'i2am'\)"),
        ((here[0], False), r"the worker tcp://w:2 does not see .*pair-0.zarr"),
    ):
        with pytest.raises(NoCluster, match=reason):
            require_workers(client_of(found), trace)
    with pytest.raises(NoCluster, match=f"no worker for {cluster.WORKER_SECONDS} s; start some: dask worker tcp://s:1"):
        require_workers(client_of(here, workers=False), trace)


def test_work_that_takes_long_is_waited_for(address: str, traces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(path: str, request: DatasetRequest, **options: object) -> TraceScores:
        time.sleep(1)
        return TraceScores(id=Path(path).stem)

    members = find_traces(sorted(traces.glob("pair-*.zarr"))[:2])
    with connected(address) as client:
        client.wait_for_workers(1, timeout=cluster.WORKER_SECONDS)
        monkeypatch.setattr(cluster, "WORKER_SECONDS", 0.2)
        monkeypatch.setattr(cluster, "require_workers", lambda client, path: None)
        monkeypatch.setattr(cluster, "evaluate_trace", slow)
        rows = dict(evaluate_there(client, members, DatasetRequest(metrics=("imacs_g",))))
    assert [rows[0].id, rows[1].id] == ["pair-0", "pair-1"]


def test_work_that_every_worker_has_left_is_given_up_and_a_scheduler_that_is_gone_is_another_matter(
    tmp_path: Path, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "require_workers", lambda client, path: None)
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 20)  # a client may look for the scheduler that is gone for as long before it closes
    members, request = find_traces(traces), DatasetRequest(metrics=("imacs_g",))
    command = [sys.executable, "-P", "-m", "dask", "scheduler", "--port", "0", *LOCAL, "--scheduler-file", str(tmp_path / "s.json")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    try:
        with connected(_address(tmp_path / "s.json", [process])) as client:
            monkeypatch.setattr(cluster, "WORKER_SECONDS", 0.5)
            begin = time.monotonic()
            with pytest.raises(NoCluster, match=r"lost its last worker after 0 of 5 traces, and none came for 0\.5 s"):
                list(evaluate_there(client, members, request))
            assert 0.5 < time.monotonic() - begin < 15
            assert not client.futures, "nothing is left for a worker that may yet come"
            monkeypatch.setattr(cluster, "WORKER_SECONDS", 60)
            threading.Timer(0.5, process.kill).start()
            with pytest.raises(NoCluster, match="the dask scheduler went away after 0 of 5 traces"):
                list(evaluate_there(client, members, request))
    finally:
        process.kill()
        process.wait()


def ended(status: str, outcome: Any) -> Any:
    """As much of a future as is asked of it."""
    return SimpleNamespace(status=status, exception=lambda: outcome, result=lambda: outcome)


def test_a_trace_that_only_the_client_sees_says_so(traces: Path) -> None:
    gone = ended("finished", TraceScores(kind="NotATrace", error="there is no such folder", code=3))
    text = "the worker that was to read it does not see it; workers read traces themselves"
    assert text in cluster._row(gone, traces / "pair-0.zarr").error
    assert cluster._row(gone, traces / "nothing.zarr") is gone.result()


def test_a_trace_that_costs_its_worker_is_a_row_like_others(traces: Path) -> None:
    row = cluster._row(ended("error", RuntimeError("worker died\nfour times")), traces)
    assert (row.kind, row.code) == ("RuntimeError", 1)
    assert "(worker died four times); they may be short of memory" in row.error


def test_addresses_are_checked_before_anything_is_asked() -> None:
    with pytest.raises(InvalidInput), connected("nonsense"):
        pass


def refuse_calls(root: Path, name: str) -> object:
    assert not re.match(r"layers/\d+/(probability|query|key|query_lse|token_lse|probe_key)/c", name), "attention was read by the client"
    return open_file(root, name)


def test_a_large_trace_is_spread_over_the_workers_bit_for_bit(address: str, traces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = ("imacs_g", "imacs_r", "iou_g", "row_entropy")
    here = evaluate(traces, metrics=metrics)
    computed: list[int] = []
    computing_there = cluster.compute_there

    def counted(client: Any, graph: Any, keys: Any, **options: Any) -> Any:
        computed.append(len(dict(graph.__dask_graph__())))
        return computing_there(client, graph, keys, **options)

    with connected(address) as client, monkeypatch.context() as patch:
        patch.setattr(cluster, "LARGE", 0)
        patch.setattr(cluster, "compute_there", counted)
        patch.setattr(folder, "open_file", refuse_calls)
        there = evaluate(traces, metrics=metrics, client=client)
    assert len(computed) == 4 and min(computed) >= 6, "a task a call and more"
    xr.testing.assert_identical(here.drop_attrs(), there.drop_attrs())
    assert [here[name].attrs for name in metrics] == [there[name].attrs for name in metrics]


def test_a_large_trace_that_only_workers_see_is_one_worker_s(address: str, traces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = evaluate(traces, metrics="imacs_g")
    with connected(address) as client, monkeypatch.context() as patch:
        patch.setattr(cluster, "LARGE", 0)
        patch.setattr(cluster, "_is_seen", lambda place: False)
        xr.testing.assert_identical(here.drop_attrs(), evaluate(traces, metrics="imacs_g", client=client).drop_attrs())


def test_a_broken_large_trace_is_a_row_and_a_scheduler_that_goes_away_is_not(
    address: str, traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pair-0.zarr", "pair-1.zarr"):
        shutil.copytree(traces / name, tmp_path / name)
    file = next((tmp_path / "pair-0.zarr").glob("layers/000/probability/c.*"))
    file.write_bytes(file.read_bytes()[:-9] + bytes(9))
    monkeypatch.setattr(cluster, "LARGE", 0)
    with connected(address) as client:
        table = evaluate(tmp_path, metrics="imacs_g", client=client)
        (row,) = json.loads(table.attrs["skipped"])
        assert (row["trace"], row["type"]) == ("pair-0", "CorruptTrace")

        def away(*_: object, **__: object) -> None:
            raise NoCluster("the dask scheduler went away")

        monkeypatch.setattr(cluster, "compute_there", away)
        with pytest.raises(NoCluster):
            evaluate(tmp_path, metrics="imacs_g", client=client)


@pytest.mark.parametrize(
    "command",
    [
        ["map", "pair-1.zarr", "--g2r", "--query-mask", "mask.png", "-o", "map.npy"],
        ["compare", "pair-0.zarr", "--recipes", "i2am,daam", "-o", "maps.zarr"],
        ["diagnose", "pair-0.zarr"],
        ["heads", "pair-0.zarr", "pair-1.zarr", "--by", "truth", "-o", "heads.zarr"],
        ["heads", "probed.zarr", "-o", "heads.zarr", "--concepts", "own.toml"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_commands_compute_on_a_cluster_what_threads_compute(
    address: str, traces: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str]
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    if "heads" in command:
        for seed in range(2):
            position = np.random.default_rng(seed).random((8, 6, 2)).tolist()
            synthetic_trace(Path(f"pair-{seed}.zarr"), steps=2, seed=seed, facts={"demo": {"position": position}})
        trace_of(Path("probed.zarr"))
        words = [f"{name} = {json.dumps(list(each))}" for name, each in CONCEPTS.items()]
        Path("own.toml").write_text("\n".join(["[concepts]", *words]))
    else:
        for name in ("pair-0.zarr", "pair-1.zarr"):
            shutil.copytree(traces / name, name)
    picture = Image.new("L", (48, 64))
    picture.paste(255, (0, 0, 20, 64))
    picture.save("mask.png")
    found = []
    for where in ([], ["--scheduler", address]):
        with monkeypatch.context() as patch:
            if where:
                patch.setattr(folder, "open_file", refuse_calls)
            assert run([*command, "--json", *where, *(["--overwrite"] if where and "-o" in command else [])]) == 0
        found.append((json.loads(capsys.readouterr().out), Path("map.npy").read_bytes() if Path("map.npy").exists() else b""))
    assert found[0] == found[1]


def test_a_command_is_refused_in_words_as_a_dataset_is(hasty: None, traces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(traces / "pair-0.zarr")
    for command in (["map", path, "--r2g", "-o", "x.npy"], ["compare", path], ["diagnose", path], ["heads", path, "--by", "truth"]):
        assert run([*command, "--scheduler", "127.0.0.1:1"]) == 6
        assert "no dask scheduler answered at 127.0.0.1:1 within 1 s" in capsys.readouterr().err
        assert run([*command, "--scheduler", "nonsense"]) == 2
        assert "no address of a scheduler" in capsys.readouterr().err


def test_workers_of_a_nanny_keep_what_tasks_free(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import resource, sys, numpy as np
from i2am.analyzer.datasets.cluster import keep_memory
if sys.argv[1] == "kept":
    keep_memory()
for _ in range(1000):
    np.ones(2**17)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}
    faults = {
        how: int(subprocess.run([sys.executable, "-c", code, how], env=environment, capture_output=True, text=True, check=True).stdout)
        for how in ("as it is", "kept")
    }
    if faults["as it is"] < 100_000:
        pytest.skip("this system's malloc gives no pages back")
    assert faults["kept"] < faults["as it is"] / 4
