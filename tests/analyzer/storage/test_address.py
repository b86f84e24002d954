"""A trace at an address answers as its folder does, in few requests; a server that answers wrongly costs one line."""

from __future__ import annotations

import json
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from dask.base import compute
from webserver import Web
from zips import Entry, craft, zip_trace

from i2am.analyzer import evaluate, g2r, open_trace, r2g, sram
from i2am.analyzer.cli.main import run
from i2am.analyzer.inspection.verify import verify
from i2am.analyzer.storage import address
from i2am.analyzer.storage.location import locate
from i2am.analyzer.storage.storage import Part
from i2am.schema.errors import CorruptTrace, InvalidInput, MissingExtra, NotATrace
from traces import reference_layer, synthetic_trace

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.analyzer


@pytest.mark.parametrize("name", ["small.zarr.zip", "small.zarr", "small.zarr/"])
def test_maps_pictures_and_checks_are_those_of_the_folder(name: str, web: Web) -> None:
    opened, here = open_trace(f"{web.address}/{name}"), open_trace(web.root / "small.zarr")
    for map in (r2g, g2r):
        xr.testing.assert_equal(map(opened).compute(), map(here).compute())
    assert np.array_equal(opened.image("reference"), here.image("reference"))
    assert verify(f"{web.address}/{name}").ok


def test_opening_a_zip_is_one_request_a_patch_four_and_a_map_reads_no_byte_twice(web: Web) -> None:
    assert (web.root / "run.zarr.zip").stat().st_size > 10 * 2**20
    opened, here = open_trace(f"{web.address}/run.zarr.zip"), open_trace(web.root / "run.zarr")
    assert (web.requests, web.nbytes) == (1, 2**19)
    for at in ((0, 0), (17, 30)):
        web.reset()
        found = sram(opened, at=at, layers=1, steps=[1]).compute()
        assert (found == sram(here, at=at, layers=1, steps=[1]).compute()).all()
        assert web.requests <= 4
    address.MEMORY.clear()
    web.reset()
    opened = open_trace(f"{web.address}/run.zarr.zip")
    found = r2g(opened).compute()
    assert (found == r2g(here).compute()).all()
    assert web.twice() == 0
    assert web.nbytes <= (web.root / "run.zarr.zip").stat().st_size


def test_a_trace_of_many_layers_opens_in_four_requests(web: Web) -> None:
    layers = [reference_layer(f"unet.block_{number}.attn2", (2, 2), heads=2, reference=(2, 2)) for number in range(60)]
    trace = synthetic_trace(web.root / "many.zarr", layers=layers, steps=40).path
    zip_trace(trace, web.root / "many.zarr.zip")
    opened = open_trace(f"{web.address}/many.zarr.zip")
    assert len(opened.layers) == 60
    assert web.requests <= 4
    assert web.nbytes < 4 * 2**20
    assert web.twice() == 0


def test_nothing_is_fetched_again_from_a_small_trace(web: Web) -> None:
    opened = open_trace(f"{web.address}/small.zarr.zip")
    compute(r2g(opened), g2r(opened))
    assert web.requests == 1


def test_parts_that_are_near_are_one_request_and_distant_ones_are_asked_for_side_by_side(web: Web) -> None:
    storage = locate(f"{web.address}/")
    data = (web.root / "run.zarr.zip").read_bytes()
    assert storage.size("run.zarr.zip") == len(data)
    web.reset(delay=0.2)
    near = [Part("run.zarr.zip", at, 100) for at in (0, 100, 5000, 60_000, 4800)]
    assert [part.tobytes() for part in storage.fetch(near)] == [data[at : at + 100] for _, at, _ in near]
    assert web.requests == 1
    web.reset(delay=0.2)
    far = [Part("run.zarr.zip", 10**6 * (7 - i), 1000) for i in range(8)]
    assert [part.tobytes() for part in storage.fetch(far)] == [data[at : at + 1000] for _, at, _ in far]
    assert web.requests == 8


def test_memory_stays_bounded_however_much_is_read(web: Web) -> None:
    with open(web.root / "large", "wb") as file:
        file.truncate(2**28)
    storage = locate(f"{web.address}/")
    storage.size("large")
    tracemalloc.start()
    total = sum(len(part) for part in storage.fetch(Part("large", at, 2**22) for at in range(0, 2**28, 2**22)))
    assert total == 2**28
    assert tracemalloc.get_traced_memory()[1] < 3 * 2**25, "the server, which is of this process, included"
    tracemalloc.stop()
    (web.root / "large").unlink()


def test_an_opened_trace_travels_without_its_bytes(web: Web) -> None:
    opened = open_trace(f"{web.address}/run.zarr.zip?key=1")
    sent = pickle.dumps(opened.storage)
    assert len(sent) < 1000
    again = pickle.loads(sent)
    assert again == opened.storage
    assert again is pickle.loads(sent)
    assert (again.read("zarr.json", 0, 9) == opened.storage.read("zarr.json", 0, 9)).all()


def test_other_processes_read_it_themselves(web: Web) -> None:
    opened = open_trace(f"{web.address}/small.zarr.zip")
    web.reset()
    found = r2g(opened).compute(scheduler="processes", num_workers=1)
    assert (found == r2g(open_trace(web.root / "small.zarr")).compute()).all()
    assert web.requests == 1


def test_a_replaced_zip_is_refused_in_the_process_that_opens_it_again(web: Web) -> None:
    sent = pickle.dumps(open_trace(f"{web.address}/small.zarr.zip?once").storage)
    kept = (web.root / "small.zarr.zip").read_bytes()
    try:
        (web.root / "small.zarr.zip").write_bytes((web.root / "run.zarr.zip").read_bytes())
        address.MEMORY.clear()
        with pytest.raises(CorruptTrace, match="is not the one that was opened before"):
            pickle.loads(sent).size("zarr.json")
        with pytest.raises(CorruptTrace, match="is not the one that was opened before"):
            pickle.loads(sent).size("zarr.json")
        again = pickle.dumps(open_trace(f"{web.address}/small.zarr.zip?once").storage)
        assert pickle.loads(again).size("zarr.json") > 0, "a process that has read the old one can read the new one"
    finally:
        (web.root / "small.zarr.zip").write_bytes(kept)


def test_what_is_no_trace_is_said(web: Web, tmp_path: Path) -> None:
    for name, data, why in (
        ("none.zip", b"hello", "is a file, not a trace"),
        ("empty.zip", b"", "is a file, not a trace"),
        ("other.zip", craft([Entry(b"x", b"x")]), "without zarr.json"),
    ):
        (web.root / name).write_bytes(data)
        with pytest.raises(NotATrace, match=why):
            open_trace(f"{web.address}/{name}")
    with pytest.raises(NotATrace, match=r"there is no zarr\.json at http://"):
        open_trace(f"{web.address}/nothing.zarr")
    deflated = web.root / "deflated.zip"
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zarr.json", b"{}" * 99)
    with pytest.raises(CorruptTrace, match="is compressed by the archive"):
        open_trace(f"{web.address}/deflated.zip")


def test_a_changed_byte_in_a_folder_at_an_address_is_found(web: Web, tmp_path: Path) -> None:
    broken = synthetic_trace(web.root / "broken.zarr").path
    name = next(name for name in json.loads((broken / "manifest.json").read_text())["files"] if "/probability/c" in name)
    data = bytearray((broken / name).read_bytes())
    data[20] ^= 1
    (broken / name).write_bytes(data)
    with pytest.raises(CorruptTrace, match="does not match its checksum"):
        r2g(open_trace(f"{web.address}/broken.zarr")).compute()
    (broken / name).unlink()
    with pytest.raises(CorruptTrace, match="is missing"):
        r2g(open_trace(f"{web.address}/broken.zarr")).compute()
    assert not verify(f"{web.address}/broken.zarr").ok


def test_a_dataset_may_be_addresses_and_keys_are_not_shown(web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"{web.address}/small.zarr.zip?sig=secret", f"{web.address}/small.zarr?sig=secret", str(web.root / "small.zarr")]
    table = evaluate(given, metrics=["imacs_g"])
    assert table.sizes["trace"] == 3
    assert "secret" not in str(table.to_dict())
    assert len(set(table["imacs_g"].values.tolist())) == 1
    map = r2g(open_trace(given[0]))
    assert "secret" not in str(map.attrs) + repr(open_trace(given[0]))
    assert run(["evaluate", *given, "--metric", "imacs_g", "--json"]) == 0
    assert "secret" not in capsys.readouterr().out


def test_every_command_takes_an_address(web: Web, tmp_path: Path) -> None:
    at = f"{web.address}/small.zarr.zip"
    for words in (
        ["info", at],
        ["verify", at],
        ["map", at, "--r2g", "-o", str(tmp_path / "map.npy")],
        ["imacs", at],
        ["diff", at, str(web.root / "small.zarr")],
        ["report", at, "-o", str(tmp_path / "sheet.png")],
    ):
        assert run(words) == 0, words


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ("nosuch://bucket/run.zarr", InvalidInput, "nosuch://bucket/run.zarr cannot be opened"),
        ("zip://x::https://host/run.zip", InvalidInput, "is several addresses in one"),
        ("hf://only", InvalidInput, "is no file on the hub"),
    ],
)
def test_an_address_that_cannot_be_one_is_said(given: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        open_trace(given)


def test_without_the_extra_the_pip_command_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find = address.FileSystem.__init__.__globals__["importlib"].util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name in ("s3fs", "aiohttp") else find(name, *rest))
    for given in ("https://host/run.zarr.zip", "s3://bucket/run.zarr"):
        with pytest.raises(MissingExtra, match=r'pip install "i2am\[remote\]"'):
            open_trace(given)
        assert run(["info", given]) == 5


def test_an_address_that_went_through_a_path_and_one_of_a_file_are_understood(web: Web) -> None:
    at = Path(f"{web.address}/small.zarr.zip")
    assert str(at).startswith("http:/1")
    assert open_trace(at).complete
    assert open_trace(f"file://{web.root}/small.zarr.zip").complete
    assert open_trace((web.root / "small.zarr").as_uri()).complete


def test_any_file_system_of_fsspec_will_do(root: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/run.zarr.zip", (root / "small.zarr.zip").read_bytes())
    for path in (path for path in (root / "small.zarr").rglob("*") if path.is_file()):
        memory.pipe(f"/bucket/run.zarr/{path.relative_to(root / 'small.zarr').as_posix()}", path.read_bytes())
    expected = r2g(open_trace(root / "small.zarr")).compute()
    for name in ("run.zarr.zip", "run.zarr"):
        assert (r2g(open_trace(f"memory://bucket/{name}")).compute() == expected).all()
    assert evaluate("memory://bucket", metrics=["imacs_g"]).sizes["trace"] == 2
    assert evaluate("memory://buck*/*.zip", metrics=["imacs_g"]).sizes["trace"] == 1
    with pytest.raises(NotATrace):
        open_trace("memory://bucket/nothing.zarr")
    with pytest.raises(NotATrace, match="there is no trace in memory://nowhere"):
        evaluate("memory://nowhere")
    memory.rm("/bucket", recursive=True)
