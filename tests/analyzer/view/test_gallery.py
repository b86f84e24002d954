"""The gallery: a card for every trace, with the scores of `evaluate`; what cannot be read says why."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from i2am.analyzer import evaluate, open_trace
from i2am.analyzer.store.discovery import find_traces
from i2am.analyzer.view.exact import NewestFirst
from i2am.analyzer.view.export import export_gallery, file_name, write_gallery
from i2am.analyzer.view.gallery import THUMBNAIL, make_card, make_gallery
from i2am.analyzer.view.routes import gallery_routes
from i2am.analyzer.view.runs import Run
from i2am.analyzer.view.server import Find
from i2am.schema.errors import AlreadyExists
from traces import reference_layer, synthetic_trace

pytestmark = pytest.mark.analyzer

HOSTILE = "</script><img src=x onerror=alert(1)>"


def opening(folder: Path) -> Callable[[int], Run]:
    members = find_traces(folder)
    return lambda index: Run.of(open_trace(members[index].path))


def test_cards_have_the_scores_of_evaluate(folder: Path) -> None:
    gallery = make_gallery(find_traces(folder), "traces").to_json({1: "run.html"})
    cards = {card["name"]: card for card in gallery["cards"]}
    assert list(cards) == ["broken", "run0", "run1", "run2"]
    names = ["imacs_g", "imacs_r", "imacs_r_plain", "concentration_g", "entropy_g"]
    table = evaluate(str(folder), metrics=names)
    for name in names:
        assert [cards[run]["scores"][name] for run in ("run0", "run1", "run2")] == pytest.approx(table[name].values.tolist())
        (metric,) = [metric for metric in gallery["metrics"] if metric["name"] == name]
        assert (metric["mean"], metric["low"], metric["count"]) == pytest.approx(
            (table[name].attrs["mean"], table[name].attrs["interval"][0], 3)
        )
    assert cards["run0"]["href"] == "run.html" and cards["run1"]["href"] is None
    assert "zarr.json" in cards["broken"]["error"] and cards["broken"]["href"] is None and cards["broken"]["scores"] == {}


def test_pictures_are_small_and_of_the_run(folder: Path) -> None:
    (card,) = [make_card(member) for member in find_traces(folder / "run0.zarr")]
    assert set(card.images) == {"generated", "r2g"}
    for address in card.images.values():
        kind, _, data = address.partition(",")
        picture = Image.open(BytesIO(base64.b64decode(data)))
        assert kind == "data:image/jpeg;base64" and max(picture.size) <= THUMBNAIL
        assert picture.width / picture.height == pytest.approx(48 / 64, abs=0.01)


@pytest.mark.parametrize(
    ("options", "metrics"),
    [
        ({"layers": [reference_layer(reference=None, text=6, grid=(8, 6))]}, {"concentration_g", "entropy_g"}),
        ({"layers": [reference_layer(reference=None, text=6), reference_layer(call=1)]}, None),
        ({"frames": 3, "layers": [reference_layer(grid=(4, 3), frames=3)], "latent_grid": (4, 3)}, {"concentration_g", "entropy_g"}),
        ({"steps": 1}, None),
    ],
)
def test_traces_of_every_kind_have_a_card(tmp_path: Path, options: dict[str, Any], metrics: set[str] | None) -> None:
    path = synthetic_trace(tmp_path / "run.zarr", **options).path
    (card,) = [make_card(member) for member in find_traces(path)]
    assert card.row.error == ""
    assert card.images["r2g"]
    assert metrics is None or metrics <= set(card.row.values)


def test_an_unfinished_recording_is_a_card_when_asked(tmp_path: Path) -> None:
    path = synthetic_trace(tmp_path / "part.zarr", steps=2, planned=5, status="interrupted").path
    (member,) = find_traces(path)
    assert "partial" in make_card(member).row.error
    card = make_card(member, partial=True)
    assert "2 of 5 steps, interrupted" in card.facts and "generated" not in card.images


def test_the_file_holds_all_and_names_stay_text(tmp_path: Path) -> None:
    synthetic_trace(tmp_path / "a.zarr", model=HOSTILE, steps=1)
    gallery = make_gallery(find_traces(tmp_path), HOSTILE)
    page = export_gallery(gallery)
    assert page == export_gallery(make_gallery(find_traces(tmp_path), HOSTILE))
    assert b"<img" not in page and page.count(b"</script>") == 2
    _, _, text = page.partition(b'id="gallery">')
    carried = json.loads(text.partition(b"</script>")[0])
    assert carried["title"] == HOSTILE and carried["cards"][0]["facts"].startswith(HOSTILE)
    assert carried["cards"][0]["href"] is None


def test_a_folder_links_to_the_page_of_each_run(folder: Path, tmp_path: Path) -> None:
    gallery, out = make_gallery(find_traces(folder), "traces"), tmp_path / "gallery"
    files = write_gallery(gallery, out, opening(folder))
    assert [path.name for path in files] == ["index.html", "0001-run0.html", "0002-run1.html", "0003-run2.html"]
    assert sorted(out.iterdir()) == sorted(files)
    index = files[0].read_text()
    assert all(f'"href":"{path.name}"' in index for path in files[1:])
    assert b'id="overview">' in files[1].read_bytes()
    with pytest.raises(AlreadyExists):
        write_gallery(gallery, out, opening(folder))
    before = [path.read_bytes() for path in files]
    write_gallery(gallery, out, opening(folder), overwrite=True)
    assert [path.read_bytes() for path in files] == before


@pytest.mark.parametrize("name", ["../../etc/passwd", "a b/c", "<img>", "ü" * 300, "index", ""])
def test_names_of_files_are_plain(name: str) -> None:
    found = file_name(3, name)
    assert found.startswith("0003-") and found.endswith(".html") and len(found) < 100
    assert set(found) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def test_runs_are_opened_when_they_are_asked_for(folder: Path, serve: Callable[[Find], Any]) -> None:
    opened, make = [], opening(folder)

    def open(index: int) -> Run:
        opened.append(index)
        return make(index)

    asker = serve(gallery_routes(make_gallery(find_traces(folder), "traces"), open, NewestFirst()))
    cards = json.loads(asker.ask("gallery")[2])["cards"]
    assert [card["href"] for card in cards] == [None, "runs/1/", "runs/2/", "runs/3/"]
    assert asker.ask("")[0] == asker.ask("runs/2/")[0] == asker.ask("runs/2/view.css")[0] == 200
    assert opened == []
    assert asker.ask("runs/2/overview")[0] == 200
    status, headers, body = asker.ask("runs/2/exact?at=1,1")
    assert (status, json.loads(headers["x-i2am"])["shape"], len(body)) == (200, [3, 5], 60)
    assert opened == [2]
    status, _, told = asker.ask("runs/0/overview")
    assert status == 400 and b"zarr.json" in told
    for path in ("runs/9/", "runs/", "runs/-1/", "runs/2/../1/", "runs/2", "overview"):
        assert asker.ask(path)[0] == 404
    assert np.isfinite([card["scores"]["imacs_g"] for card in cards[1:]]).all()
