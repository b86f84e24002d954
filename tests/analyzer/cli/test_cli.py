"""The command line: what it prints, what it writes, what it loads."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import xarray as xr
from PIL import Image

from i2am.analyzer.cli import group
from i2am.analyzer.cli.failures import DEBUG
from i2am.analyzer.cli.group import COMMANDS, i2am
from i2am.analyzer.cli.main import run
from i2am.schema.trace import Layer, TokenGroup
from traces import Synthetic, reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return synthetic_trace(tmp_path_factory.mktemp("cli") / "run.zarr")


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    """The one JSON document that a command prints."""
    assert run([*map(str, arguments), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    doc = json.loads(captured.out)
    assert isinstance(doc, dict)
    return doc


@pytest.mark.torch
def test_help_lists_every_command_and_loads_neither_torch_nor_dask() -> None:
    code = "from i2am.analyzer.cli.main import run; import sys; run(['--help']); print(*sorted(sys.modules))"
    shown = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    for name in ("info", "verify", "map", "imacs", "report", "record", "demo"):
        assert f"\n  {name} " in shown
    assert not {"torch", "diffusers", "dask", "xarray", "zarr"} & set(shown.splitlines()[-1].split())


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_help_ends_with_examples(command: click.Command, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([str(command.name), flag]) == 0
    assert "Examples:\n" in capsys.readouterr().out


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("i2am ")


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    assert "Commands:" in capsys.readouterr().out


def test_info_says_what_there_is(made: Synthetic, capsys: pytest.CaptureFixture[str]) -> None:
    facts = answer(capsys, "info", made.path)
    assert facts["status"] == "complete"
    assert facts["steps"] == 4
    assert [row["name"] for row in facts["layers"]] == [layer.name for layer in made.trace.layers]
    assert facts["bytes"] == sum(p.stat().st_size for p in made.path.rglob("*") if p.is_file())
    assert facts["bytes_raw_float16"] == sum(p.size * 2 for p in made.probabilities)
    assert run(["info", str(made.path)]) == 0
    shown = capsys.readouterr().out
    for text in ("complete", "generated_0 64x48", "up_blocks.1", "reference 3x5", "lost by the encoding"):
        assert text in shown


def test_info_says_how_far_a_partial_trace_came(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = synthetic_trace(tmp_path / "part.zarr", steps=2, planned=9, status="interrupted").path
    facts = answer(capsys, "info", path, "--partial")
    assert (facts["status"], facts["steps"], facts["steps_planned"]) == ("interrupted", 2, 9)
    assert facts["column_mass_lost"] > 0
    assert run(["info", str(path), "--partial"]) == 0
    assert "2 of 9 planned steps" in capsys.readouterr().out


def test_verify_says_ok(made: Synthetic, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "verify", made.path)["ok"] is True
    assert run(["verify", str(made.path)]) == 0
    assert ": ok, complete, 4 steps" in capsys.readouterr().out


@pytest.mark.parametrize(("direction", "dims"), [("--r2g", ("y", "x")), ("--g2r", ("ref_y", "ref_x")), ("--at=7,5", ("ref_y", "ref_x"))])
@pytest.mark.parametrize("suffix", [".npy", ".nc", ".zarr", ".png"])
def test_map_writes_what_the_library_computes(
    made: Synthetic, capsys: pytest.CaptureFixture[str], direction: str, dims: tuple[str, str], suffix: str
) -> None:
    from i2am.analyzer import g2r, open_trace, r2g, sram

    trace = open_trace(made.path)
    map = {"--r2g": r2g, "--g2r": g2r}[direction](trace) if "at" not in direction else sram(trace, at=(7, 5))
    out = Path(f"map{suffix}")
    facts = answer(capsys, "map", made.path, direction, "-o", out)
    assert (facts["out"], facts["trace"], tuple(facts["dims"])) == (str(out), made.trace.id, dims)
    if suffix == ".png":
        with Image.open(out) as picture:
            assert picture.text["i2am-trace"] == made.trace.id
            assert json.loads(picture.text["i2am-map"])["direction"] == facts["direction"]
        return
    values = np.load(out) if suffix == ".npy" else _written(out).values
    np.testing.assert_array_equal(values, map.values)


def _written(path: Path) -> xr.DataArray:
    opened = (
        xr.open_dataset(path, engine="zarr", consolidated=False) if path.suffix == ".zarr" else xr.open_dataset(path, engine="h5netcdf")
    )
    with opened:
        return next(iter(opened.data_vars.values())).load()


def test_map_keeps_axes_and_takes_selections(made: Synthetic, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--keep", "time,layer", "--time-groups", "2", "--steps", "0:3", "--heads", "0,1", "--layers", "*down*,*up*"]
    facts = answer(capsys, "map", made.path, "--r2g", *options, "-o", "m.nc")
    assert (facts["dims"], facts["shape"][:2]) == (["time", "layer", "y", "x"], [2, 2])
    written = _written(Path("m.nc"))
    assert written.attrs["trace"] == made.trace.id
    assert [str(name) for name in written["layer_name"].values] == [made.trace.layers[0].name, made.trace.layers[2].name]
    answer(capsys, "map", made.path, "--r2g", *options, "-o", "m.zarr")
    answer(capsys, "map", made.path, "--r2g", *options, "-o", "m.png")
    xr.testing.assert_allclose(_written(Path("m.zarr")).reset_coords(drop=True), written.reset_coords(drop=True))


def test_a_picture_is_always_the_same_bytes(made: Synthetic, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one.png", "two.png"):
        answer(capsys, "map", made.path, "--g2r", "--style", "i2am", "-o", name)
    assert Path("one.png").read_bytes() == Path("two.png").read_bytes()


def test_outputs_are_replaced_only_if_asked(made: Synthetic, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix in (".png", ".npy", ".nc", ".zarr"):
        given = ["map", str(made.path), "--r2g", "-o", f"m{suffix}"]
        assert [run(given), run(given), run([*given, "--overwrite"])] == [0, 2, 0]
        assert "add --overwrite" in capsys.readouterr().err
    assert sorted(os.listdir()) == ["m.nc", "m.npy", "m.png", "m.zarr"]


def test_a_partial_trace_without_pictures_is_drawn_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = synthetic_trace(tmp_path / "part.zarr", steps=2, planned=5, status="recording").path
    for direction in ("--r2g", "--g2r", "--at=1,2"):
        answer(capsys, "map", path, "--partial", direction, "-o", f"m{direction}.png")


def test_imacs_prints_the_library_s_numbers(made: Synthetic, capsys: pytest.CaptureFixture[str]) -> None:
    from i2am.analyzer import g2r, imacs, open_trace, r2g

    trace = open_trace(made.path)
    facts = answer(capsys, "imacs", made.path)
    assert facts["imacs_g"] == pytest.approx(float(imacs(r2g(trace), made.images["mask"])))
    assert facts["imacs_r_plain"] == pytest.approx(float(imacs(g2r(trace), made.images["reference_mask"])))
    weighed = g2r(trace, query_mask=made.images["mask"][..., 0])
    assert facts["imacs_r"] == pytest.approx(float(imacs(weighed, made.images["reference_mask"])), rel=1e-5)
    assert run(["imacs", str(made.path)]) == 0
    assert f"{facts['imacs_g']:.4f}" in capsys.readouterr().out


def test_imacs_takes_masks_from_files(made: Synthetic, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("mask", "reference_mask"):
        Image.fromarray(made.images[name][..., 0]).convert("RGB").save(f"{name}.png")
    own, files = (
        answer(capsys, "imacs", made.path),
        answer(capsys, "imacs", made.path, "--mask", "mask.png", "--reference-mask", "reference_mask.png"),
    )
    assert {k: files[k] for k in ("imacs_g", "imacs_r", "imacs_r_plain")} == {k: own[k] for k in ("imacs_g", "imacs_r", "imacs_r_plain")}


def test_the_report_is_a_picture_and_its_numbers(made: Synthetic, capsys: pytest.CaptureFixture[str]) -> None:
    facts = answer(capsys, "report", made.path, "-o", "r.png")
    assert facts["verified"]["ok"]
    assert len(facts["sram"]) == 3
    assert facts["imacs_g"] == answer(capsys, "imacs", made.path)["imacs_g"]
    with Image.open("r.png") as sheet:
        assert sheet.width > 800
    assert run(["report", str(made.path), "-o", "r.png", "--overwrite"]) == 0
    assert "IMACS_R" in capsys.readouterr().out


def test_a_trace_with_two_references_is_reported_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = [reference_layer("a", (8, 6)), dataclasses.replace(reference_layer("a", (8, 6), call=1))]
    second = dataclasses.replace(layers[1].groups[0], name="shoes")
    layers[1] = dataclasses.replace(layers[1], groups=(second,))
    path = synthetic_trace(tmp_path / "two.zarr", layers=layers, steps=2).path
    assert run(["report", str(path), "-o", "r.png"]) == 2
    assert "shoes" in capsys.readouterr().err
    assert answer(capsys, "report", path, "--group", "shoes", "-o", "r.png")["r2g"]["calls"] == 2


def test_a_reader_that_has_had_enough_is_no_error(made: Synthetic) -> None:
    command = [sys.executable, "-P", "-m", "i2am.analyzer.cli", "info", str(made.path), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.close()
        assert child.stderr is not None
        assert child.stderr.read() == ""
    assert child.returncode == 0


def test_without_a_netcdf_library_the_line_names_it(
    made: Synthetic, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("i2am.schema.messages.find_spec", lambda name: None)
    assert run(["map", str(made.path), "--r2g", "-o", "m.nc"]) == 5
    assert 'pip install "i2am[netcdf]"' in capsys.readouterr().err
    assert os.listdir() == []


def test_a_missing_extra_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Entry:
        name = "record"

        def load(self) -> click.Command:
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(group, "announced", lambda: {"record": Entry()})
    assert run(["record", "spec.toml"]) == 5
    assert capsys.readouterr().err == 'i2am: `i2am record` needs torch, which is not installed; install it: pip install "i2am[record]"\n'


def test_without_torch_the_demo_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run(["demo", "-o", "out", "--json"]) == 5
    assert 'pip install "i2am[record]"' in json.loads(capsys.readouterr().out)["error"]["message"]
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (KeyboardInterrupt(), 130, "Interrupted"),
        (OSError(28, "No space left on device", "map.npy"), 7, "NoSpace"),
        (PermissionError(13, "Permission denied", "map.npy"), 1, "PermissionError"),
        (ModuleNotFoundError("No module named 'diffusers'", name="diffusers"), 5, "MissingExtra"),
        (RuntimeError("two\nlines"), 1, "RuntimeError"),
        (MemoryError(), 1, "MemoryError"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_failures_have_their_exit_code_and_one_line(
    error: BaseException, code: int, kind: str, as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setitem(i2am.commands, "fail", click.Command("fail", callback=fail, params=[click.Option(["--json"], is_flag=True)]))
    assert run(["fail", *(["--json"] if as_json else [])]) == code
    captured = capsys.readouterr()
    if as_json:
        assert captured.err.strip() == ""
        assert {k: json.loads(captured.out)["error"][k] for k in ("type", "exit_code")} == {"type": kind, "exit_code": code}
    else:
        assert captured.out == ""
        assert len(captured.err.strip().splitlines()) == 1
        assert "Traceback" not in captured.err


def test_the_traceback_is_there_for_who_asks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(DEBUG, "1")
    assert run(["info", "nothing"]) == 3
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("resampled", "way"), [(True, "--patches carries them back"), (False, "--r2g draws where they came in")])
def test_a_map_of_tokens_without_a_place_names_the_way_out_before_it_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], resampled: bool, way: str
) -> None:
    tokens = TokenGroup("reference", "reference", 0, 4, image="reference")
    patches = (TokenGroup("reference", "reference", 0, 15, 0, (3, 5), "reference"), TokenGroup("latents", "self", 15, 19))
    layers = [Layer("unet.a.attn2", 0, 2, 8, 8**-0.5, (8, 6), 4, (tokens,))]
    if resampled:
        layers.insert(0, Layer("unet.proj.0.attn", 0, 2, 8, 8**-0.5, (1, 4), 19, patches, queries="reference"))
    path = str(synthetic_trace(tmp_path / "run.zarr", layers=layers, steps=2, static_keys=False).path)
    out = str(tmp_path / "x.png")
    with monkeypatch.context() as patch:
        patch.setattr("xarray.DataArray.compute", lambda _: pytest.fail("computed"))
        assert run(["map", path, "--g2r", "-o", out]) == 2
    said = capsys.readouterr().err
    assert way in said and ".npy" in said
    assert run(["report", path, "-o", str(tmp_path / "r.png")]) == 0
    assert ("--g2r --patches" in capsys.readouterr().out) is resampled
    if resampled:
        assert run(["map", path, "--g2r", "--patches", "-o", out]) == 0
