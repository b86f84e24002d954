"""Figures for papers: the right panels, one scale, text as text, the same bytes each time, and one line for what cannot be shown."""

from __future__ import annotations

import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray as xr
from probed import CONCEPTS, trace_of

from i2am.analyzer import figure, flow, head_relevance, open_trace, r2g, sram, warp_reference
from i2am.analyzer.cli.commands.figure import KINDS as TYPED
from i2am.analyzer.cli.main import run
from i2am.analyzer.figures.figure import KINDS
from i2am.analyzer.figures.panels import Asked, Grid, Panel, wrap
from i2am.analyzer.figures.parts import layers, methods, time, tokens, words
from i2am.analyzer.figures.runs import patches, runs, warped
from i2am.schema.errors import InvalidInput, MissingExtra, TraceError
from i2am.schema.text import Text, Word
from traces import reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

matplotlib = pytest.importorskip("matplotlib", reason="the extra plot is not installed")

TOKENS = ("<s>", "a", "red", "ze", "bra", "and", "a", "bird", "</s>", "</s>")
WORDS = (Word("a", 1, 2), Word("red", 2, 3), Word("zebra", 3, 5), Word("and", 5, 6), Word("a", 6, 7), Word("bird", 7, 8))
TEXT = Text("text", "a red zebra and a bird", TOKENS, WORDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("figures")
    synthetic_trace(root / "run.zarr", steps=6)
    synthetic_trace(root / "other.zarr", steps=3, seed=1, absent={(1, 2), (0, 2), (2, 2)})
    said = [
        reference_layer(f"unet.{name}.attn2", (8, 6), text=10, reference=None) for name in ("down_blocks.0", "mid_block", "up_blocks.1")
    ]
    synthetic_trace(root / "words.zarr", layers=said, steps=2, texts=[TEXT])
    trace_of(root / "probed.zarr")
    return root


def asked(path: Path, **more: Any) -> Asked:
    return Asked(**{"traces": (open_trace(path),), "options": {}, **more})


def texts(made: Any, folder: Path, kind: str) -> str:
    """All text of a saved figure."""
    path = folder / f"saved.{kind}"
    made.savefig(path)
    if kind == "svg":
        return "\n".join("".join(each.itertext()) for each in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text"))
    return "\n".join(spelled(path.read_bytes()))


def spelled(pdf: bytes) -> Iterator[str]:
    """Lines of text that a PDF shows; its characters are one byte or two, of which the first is 0."""
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, flags=re.S):
        try:
            content = zlib.decompress(stream).decode("latin1").replace("\0", "")
        except zlib.error:
            continue
        for line in re.findall(r"\[(.*?)\]\s*TJ|(\((?:\\.|[^\\)])*\))\s*Tj", content, flags=re.S) if " Tf" in content else ():
            yield re.sub(r"\\(.)", r"\1", "".join(re.findall(r"\(((?:\\.|[^\\)])*)\)", line[0] or line[1])))


def test_the_command_line_offers_all_kinds() -> None:
    assert tuple(KINDS) == TYPED


def test_layers_by_time_are_rows_and_columns_on_one_scale(folder: Path) -> None:
    grid = layers(asked(folder / "run.zarr", time_groups=3))
    assert (len(grid.rows), len(grid.rows[0]), list(grid.scales)) == (3, 3, ["all"])
    assert list(grid.row_names) == ["down.0\n8 × 6", "mid\n4 × 3", "up.1\n8 × 6"]
    assert list(grid.column_names) == ["steps 0–1", "steps 2–3", "steps 4–5"]
    expected = r2g(open_trace(folder / "run.zarr"), keep=("layer", "time"), time_groups=3)
    panel = grid.compute().rows[2][1]
    assert panel is not None and panel.map is not None
    np.testing.assert_array_equal(panel.map, expected.isel(layer=2, time=1))


def test_one_kept_axis_wraps(folder: Path) -> None:
    grid = layers(asked(folder / "run.zarr", keep=("time",), time_groups=6, columns=4))
    assert [[panel is not None for panel in row] for row in grid.rows] == [[True] * 3] * 2
    assert grid.panels[0].title == "step 0"


def test_time_has_a_row_and_a_scale_for_each_direction(folder: Path) -> None:
    grid = time(asked(folder / "run.zarr", at=((6, 4),), time_groups=2))
    assert list(grid.row_names) == ["R2G", "G2R", "SRAM"] and list(grid.scales) == ["r2g", "g2r", "sram"]
    assert grid.spans("row") == {"r2g": (0, 0), "g2r": (1, 1), "sram": (2, 2)}


def test_runs_are_rows_as_papers_lay_them_out(folder: Path) -> None:
    grid = runs(
        asked(folder / "run.zarr", traces=(open_trace(folder / "run.zarr"), open_trace(folder / "other.zarr")), at=((1, 2), (7, 5)))
    )
    assert list(grid.row_names) == ["run", "other"]
    assert [name for name in grid.column_names if name != "input"] == ["reference", "generated", "R2G", "G2R", "SRAM 1", "SRAM 2"]
    first = grid.column_names.index("R2G")
    assert grid.spans("column") == {"R2G": (first, first), "G2R": (first + 1,) * 2, "SRAM": (first + 2, first + 3)}
    row = dict(zip(grid.column_names, grid.compute().rows[1], strict=True))
    generated, second = row["generated"], row["SRAM 2"]
    assert generated is not None and [mark.label for mark in generated.marks] == ["1", "2"]
    assert second is not None and second.map is not None
    np.testing.assert_array_equal(second.map, sram(open_trace(folder / "other.zarr"), (7, 5)))


def test_patches_are_chosen_where_none_is_named(folder: Path) -> None:
    grid = patches(asked(folder / "run.zarr"))
    assert [panel.title.partition(":")[0] for panel in grid.panels] == ["generated", "1", "2", "3"]


def test_flow_shows_the_reference_warped_to_the_generated_image(folder: Path) -> None:
    trace = open_trace(folder / "run.zarr")
    panels = {panel.title: panel.picture for panel in warped(asked(folder / "run.zarr", options={"layers": [0]})).panels}
    assert list(panels) == ["generated", "reference, warped", "reference"]
    np.testing.assert_array_equal(panels["reference, warped"], warp_reference(trace, flow(trace, layers=[0]), fade=True))
    assert [pixels.shape for pixels in panels.values() if pixels is not None] == [(64, 48, 3), (64, 48, 3), (30, 50, 3)]


def test_methods_are_in_units_of_their_mean_and_say_how_alike_they_are(folder: Path) -> None:
    grid = methods(asked(folder / "run.zarr", recipes=("i2am", "i2am-custom", "i2am-v1"))).compute()
    found = grid.panels[1:]
    assert [panel.title for panel in found] == ["i2am", "i2am-custom", "i2am-v1"]
    assert all(panel.map is not None and float(panel.map.mean()) == pytest.approx(1) for panel in found)
    assert found[0].number is None and found[1].number is not None and -1 <= float(found[1].number[1]) <= 1
    assert found[2].map is not None and float(found[2].map.std()) == 0


def test_a_tile_a_word_and_a_token(folder: Path) -> None:
    trace = folder / "words.zarr"
    assert [panel.title for panel in words(asked(trace)).panels] == ["generated", "a", "red", "zebra", "and", "bird"]
    assert [panel.title for panel in words(asked(trace, words=("zebra",))).panels] == ["generated", "zebra"]
    assert [panel.title for panel in tokens(asked(trace)).panels] == ["generated", *TOKENS[:9]]


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_text_is_text(folder: Path, tmp_path: Path, kind: str) -> None:
    made = figure(folder / "run.zarr", "layers", time_groups=2, title="R2G of $one$ run", dpi=40)
    found = texts(made, tmp_path, kind)
    for text in ("R2G of $one$ run", "down.0", "steps 3", "times an even share"):
        assert text in found
    if kind == "pdf":
        data = (tmp_path / "saved.pdf").read_bytes()
        assert b"/FontFile2" in data and b"/Type3" not in data and b"CreationDate" not in data


@pytest.mark.parametrize("kind", ["svg", "pdf", "png"])
def test_the_same_figure_is_the_same_bytes(folder: Path, tmp_path: Path, kind: str) -> None:
    for name in ("a", "b"):
        figure(folder / "run.zarr", "patches", at=(3, 3), dpi=40).savefig(tmp_path / f"{name}.{kind}")
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_settings_of_the_user_neither_count_nor_change(folder: Path, tmp_path: Path) -> None:
    figure(folder / "run.zarr", "patches", at=(3, 3), dpi=40).savefig(tmp_path / "a.png")
    with matplotlib.rc_context({"figure.facecolor": "black", "font.size": 30, "pdf.fonttype": 3, "savefig.bbox": "tight"}):
        before = dict(matplotlib.rcParams)
        figure(folder / "run.zarr", "patches", at=(3, 3), dpi=40).savefig(tmp_path / "b.png")
        assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_place_is_drawn_where_it_is() -> None:
    from i2am.analyzer.figures.canvas import draw
    from i2am.analyzer.figures.layout import measure
    from i2am.analyzer.figures.paper import make_look

    map = xr.DataArray(np.zeros((4, 4)), dims=("y", "x"))
    map[0, 3] = 1
    look = make_look("mako", "shared", "sum", 2, 100, None, None)
    grid = Grid(rows=[[Panel(map=map, scale="all")]])
    made = draw(grid, measure(grid, look), look)
    pixels = np.asarray(made.axes[0].images[0].get_array()).astype(float).sum(-1)
    y, x = np.unravel_index(pixels.argmin(), pixels.shape)
    assert y < pixels.shape[0] / 4 and x > pixels.shape[1] * 3 / 4


def test_what_was_not_recorded_and_what_is_constant_is_said(folder: Path, tmp_path: Path) -> None:
    found = texts(figure(folder / "other.zarr", "layers", keep=("layer", "time"), time_groups=3, dpi=40), tmp_path, "svg")
    assert found.count("not recorded") == 3
    found = texts(figure(folder / "run.zarr", "methods", recipes=["i2am", "i2am-v1"], dpi=40), tmp_path, "svg")
    assert found.count("constant") == 1


def test_scales_of_their_own_stand_above_panels(folder: Path, tmp_path: Path) -> None:
    found = texts(figure(folder / "run.zarr", "layers", keep="layer", scale="own", unit="sum", dpi=40), tmp_path, "svg")
    assert len(re.findall(r"\S+ to \S+", found)) == 3 and "above it: sum of probabilities." in found


def test_bars_count_what_maps_say(folder: Path, tmp_path: Path) -> None:
    assert "sum of probabilities" in texts(figure(folder / "run.zarr", "layers", unit="sum", dpi=40), tmp_path, "svg")


def test_bars_of_heads(folder: Path, tmp_path: Path) -> None:
    scores = head_relevance(folder / "probed.zarr", concepts=CONCEPTS)
    made = figure(folder / "probed.zarr", "heads", scores=scores)
    assert [axes.get_title() for axes in made.axes] == list(CONCEPTS)
    heights = [bar.get_height() for bar in made.axes[0].patches]
    expected = scores.sel(concept="Animals").values
    np.testing.assert_allclose(heights, expected[np.isfinite(expected)])
    assert "head relevance" in texts(made, tmp_path, "svg")


def test_a_figure_is_never_taller_than_a_page(tmp_path: Path) -> None:
    many = [reference_layer(f"unet.up_blocks.{i}.attn2", (4, 3)) for i in range(40)]
    trace = synthetic_trace(tmp_path / "deep.zarr", layers=many, steps=1, latent_grid=(4, 3))
    width, height = figure(trace.path, "layers", dpi=40).get_size_inches()
    assert height <= 9 and width < 6.75


def test_wrapped_rows_are_of_about_one_length() -> None:
    assert [len(row) for row in wrap(list(range(9)), 7)] == [5, 5]
    assert wrap([1, 2, 3, 4], 3) == [[1, 2], [3, 4]]


WRONG: list[tuple[str, str, dict[str, Any], str]] = [
    ("run.zarr", "layer", {}, "no figure is called 'layer'; did you mean layers?"),
    ("run.zarr", "words", {}, "the trace does not say what its text tokens are"),
    ("words.zarr", "runs", {}, "no selected layer sees a reference"),
    ("run.zarr", "heads", {}, "neither a known truth nor a probe"),
    ("run.zarr", "layers", {"keep": ("layer", "time", "head")}, "keeps one axis or two"),
    ("run.zarr", "layers", {"words": ["a"]}, "words= is of kind= words, heads, not of layers"),
    ("run.zarr", "layers", {"at": [(0, 0), (1, 1)]}, "shows one patch"),
    ("run.zarr", "patches", {"at": (99, 0)}, "the latent grid has no patch"),
    ("run.zarr", "methods", {"recipes": ["i2am"]}, "needs two recipes"),
    ("run.zarr", "runs", {"style": "jett"}, "did you mean jet?"),
    ("run.zarr", "runs", {"font": "Comic"}, "no font 'Comic'"),
    ("run.zarr", "runs", {"width": "wide"}, "is no width"),
    ("run.zarr", "runs", {"dpi": 3}, "is no resolution"),
    ("run.zarr", "runs", {"scale": "log"}, "is none of shared, own"),
]


@pytest.mark.parametrize(("name", "kind", "options", "said"), WRONG)
def test_what_cannot_be_shown_is_said_before_anything_is_computed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, options: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr("i2am.analyzer.figures.panels.compute", lambda *_: pytest.fail("computed"))
    with pytest.raises(TraceError, match=re.escape(said)):
        figure(folder / name, kind, **options)


def test_one_run_is_asked_of_kinds_that_show_one(folder: Path) -> None:
    with pytest.raises(InvalidInput, match="shows one run, got 2; runs, heads show several"):
        figure([folder / "run.zarr", folder / "other.zarr"], "time")


def test_without_matplotlib_the_line_names_the_extra(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("i2am.schema.messages.find_spec", lambda module: None)
    with pytest.raises(MissingExtra, match=re.escape('pip install "i2am[plot]"')):
        figure(folder / "run.zarr")
    for name in ("x.pdf", "x.png"):
        assert run(["figure", str(folder / "run.zarr"), "-o", str(tmp_path / name)]) == 5
        assert 'pip install "i2am[plot]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nothing_else_loads_matplotlib() -> None:
    code = "import sys, i2am.analyzer as a, i2am.analyzer.cli.group; [getattr(a, n) for n in a.__all__]; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("ending", ["pdf", "svg", "png"])
def test_the_command_writes_each_ending(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str) -> None:
    out = tmp_path / f"x.{ending}"
    line = ["figure", str(folder / "run.zarr"), "--kind", "patches", "--at", "1,2", "--at", "3,4", "--dpi", "40", "-o", str(out)]
    assert run(line) == 0
    assert out.read_bytes()[:4] == {"pdf": b"%PDF", "svg": b"<?xm", "png": b"\x89PNG"}[ending]
    assert run(line) == 2 and "exists already" in capsys.readouterr().err


def test_an_ending_that_is_none_is_said_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["figure", "nowhere.zarr", "-o", str(tmp_path / "x.jpg")]) == 2
    assert "end it in .png, .pdf or .svg" in capsys.readouterr().err
