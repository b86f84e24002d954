"""Traces to look at, and a server that answers of them."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from i2am.analyzer import open_trace
from i2am.analyzer.view.exact import NewestFirst
from i2am.analyzer.view.routes import run_routes
from i2am.analyzer.view.runs import Run
from i2am.analyzer.view.server import Find, Server
from traces import Synthetic, synthetic_trace


@dataclass(frozen=True)
class Asker:
    """A client of a server."""

    server: Server

    def ask(
        self, path: str, *, method: str = "GET", token: str | None = None, host: str | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer to a path below the token."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=30)
        place = f"/{self.server.token if token is None else token}/{path}"
        connection.putrequest(method, place, skip_host=True)
        connection.putheader("Host", host or f"127.0.0.1:{self.server.server_port}")
        connection.endheaders()
        answer = connection.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return found


@contextmanager
def answering(find: Find) -> Iterator[Asker]:
    """A server in a thread."""
    with Server() as server:
        thread = threading.Thread(target=server.run, args=(find,), kwargs={})
        thread.start()
        try:
            yield Asker(server)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return synthetic_trace(tmp_path_factory.mktemp("view") / "run.zarr", branches=("cond", "uncond"))


@pytest.fixture(scope="session")
def run_made(made: Synthetic) -> Run:
    return Run.of(open_trace(made.path), time_groups=2)


@pytest.fixture(scope="session")
def asker(run_made: Run) -> Iterator[Asker]:
    """A server of one run."""
    with answering(run_routes(lambda _: run_made, 1, NewestFirst())) as found:
        yield found


@pytest.fixture
def serve() -> Iterator[Callable[[Find], Asker]]:
    """Start servers that end with the test."""
    with ExitStack() as stack:
        yield lambda find: stack.enter_context(answering(find))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three traces and a broken one."""
    root = tmp_path_factory.mktemp("gallery") / "traces"
    root.mkdir()
    for seed in range(3):
        synthetic_trace(root / f"run{seed}.zarr", seed=seed, steps=2)
    broken = synthetic_trace(root / "broken.zarr", seed=9, steps=2).path
    (broken / "zarr.json").write_text("no json")
    return root
