"""Rows and columns of a denoiser's sequence: from position ids, from shapes, from patches; never from a count."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from i2am.recorder.capture.call import Call
from i2am.recorder.images.pictures import reference_window
from i2am.recorder.labels.grids import Canvases, Part, by_patches, by_positions, by_shapes
from i2am.recorder.labels.tokens import Context, Scene, columns_of, generated_queries, keep_groups, moved_together, token_groups
from i2am.schema.errors import UnsupportedModel
from i2am.schema.trace import TokenGroup

EDGE = st.integers(1, 6)


def ids(image: int, rows: int, columns: int, top: int = 0, left: int = 0) -> list[list[int]]:
    return [[image, y, x] for y in range(top, top + rows) for x in range(left, left + columns)]


@given(EDGE, EDGE, st.lists(st.tuples(EDGE, EDGE), max_size=3), st.integers(0, 5))
def test_position_ids_give_each_image_its_grid(rows: int, columns: int, references: list[tuple[int, int]], left: int) -> None:
    table = ids(0, rows, columns) + [row for i, grid in enumerate(references) for row in ids(10 * (i + 1), *grid, left=left)]
    assert by_positions(table) == (Part("self", (rows, columns)), *(Part("reference", grid) for grid in references))


@pytest.mark.parametrize("table", [ids(0, 2, 3)[::-1], [*ids(0, 2, 2), [0, 5, 5]], [[0, 0, 0], [0, 0, 0]]])
def test_ids_that_are_no_rows_and_columns_are_refused(table: list[list[int]]) -> None:
    with pytest.raises(UnsupportedModel, match="position ids of image 0 are not rows and columns in order"):
        by_positions(table)


def test_shapes_name_the_generated_image_first() -> None:
    parts = (Part("self", (4, 2)), Part("reference", (4, 6)))
    assert by_shapes([[(1, 4, 2), (1, 4, 6)]] * 2) == parts
    assert by_shapes([(1, 4, 2), (1, 4, 6)]) == parts
    assert by_shapes([[(3, 4, 2)]]) == (Part("self", (4, 2), frames=3),)
    assert by_shapes([[(3, 4, 2)]])[0].tokens == 24


def test_patches_cut_a_latent() -> None:
    model: Any = SimpleNamespace(config=SimpleNamespace(patch_size=2))
    video: Any = SimpleNamespace(config=SimpleNamespace(patch_size=(1, 2, 2)))
    assert by_patches(model, torch.empty(1, 4, 8, 6)) == (Part("self", (4, 3)),)
    assert by_patches(video, torch.empty(1, 4, 1, 8, 6)) == (Part("self", (4, 3)),)
    assert by_patches(torch.nn.Linear(1, 1), torch.empty(1, 4, 8, 6)) == ()
    assert by_patches(video, torch.empty(1, 4, 5, 8, 6)) == (Part("self", (4, 3), frames=5),)
    pairs: Any = SimpleNamespace(config=SimpleNamespace(patch_size=(2, 2, 2)))
    assert by_patches(pairs, torch.empty(1, 4, 6, 8, 6))[0].places == (3, 4, 3)
    with pytest.raises(UnsupportedModel, match="Linear makes a video and does not say how it is cut into patches"):
        by_patches(torch.nn.Linear(1, 1), torch.empty(1, 4, 5, 8, 6))


def test_ids_are_read_once() -> None:
    canvases, table = Canvases(), torch.tensor(ids(0, 2, 3))
    first = canvases.read(torch.nn.Linear(1, 1), None, {"img_ids": table})
    assert canvases.read(torch.nn.Linear(1, 1), None, {"img_ids": table}) is first


def call_of(projection: str, parts: tuple[int, ...], positions: int, own: bool = True) -> Call:
    tensors = {"query": torch.empty(1, 2, positions, 4, device="meta"), "key": torch.empty(1, 2, sum(parts), 4, device="meta")}
    return Call(path="t.attn", projection=projection, query=tensors["query"], key=tensors["key"], scale=0.5, parts=parts, own=own)


CANVAS = (Part("self", (2, 3)), Part("reference", (2, 2)))
REVERSED = CANVAS[::-1]


@pytest.mark.parametrize(
    ("call", "canvas", "names", "generated"),
    [
        (call_of("add_v_proj+to_v", (5, 10), 15), CANVAS, ["text", "self", "reference"], slice(5, 11)),
        (call_of("to_v", (15,), 15), CANVAS, ["text", "self", "reference"], slice(5, 11)),
        (call_of("to_v+add_v_proj", (10, 5), 15), CANVAS, ["self", "reference", "text"], slice(0, 6)),
        (call_of("add_v_proj+to_v", (5, 10), 15), REVERSED, ["text", "reference", "self"], slice(9, 15)),
        (call_of("add_v_proj+to_v", (5, 10), 11), REVERSED, ["text", "reference", "self"], slice(5, 11)),
        (call_of("to_v+to_v_ip", (10, 4), 10), REVERSED, ["reference", "self", "reference"], slice(4, 10)),
        (call_of("to_v_ip.0", (4,), 10), CANVAS, ["reference"], slice(0, 6)),
    ],
)
def test_keys_are_named_and_generated_queries_found(call: Call, canvas: Any, names: list[str], generated: slice) -> None:
    scene = Scene((), False, canvas, 5)
    groups = token_groups(call, Context("text", None, (), ()), scene)
    assert [group.name for group in groups] == names
    assert generated_queries(call, groups, scene) == (generated, (2, 3))


def test_a_sequence_that_is_not_what_was_given_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"13 keys in one sequence, but .* self 2 x 3 \+ reference 2 x 2 and 5 text"):
        token_groups(call_of("to_v", (13,), 13), Context("text", None, (), ()), Scene((), False, CANVAS, 5))


GROUPS = (
    TokenGroup("text", "text", 0, 5),
    TokenGroup("self", "self", 5, 11, grid=(2, 3)),
    TokenGroup("reference", "reference", 11, 15, grid=(2, 2)),
)


@pytest.mark.parametrize(
    ("keys", "shared", "alone"),
    [
        ("auto", ["reference"], ["text", "reference"]),
        ("all", ["text", "self", "reference"], ["text", "reference"]),
        ("text", ["text"], ["text"]),
        ("reference", ["reference"], ["reference"]),
    ],
)
def test_a_shared_softmax_keeps_the_reference_unless_asked(keys: str, shared: list[str], alone: list[str]) -> None:
    assert [group.name for group in keep_groups(GROUPS, keys)] == shared
    assert [group.name for group in keep_groups((GROUPS[0], GROUPS[2]), keys)] == alone
    assert [group.name for group in keep_groups(GROUPS[:2], "auto")] == ["text"]


def test_kept_groups_close_ranks() -> None:
    kept = (GROUPS[0], GROUPS[2])
    assert columns_of(kept) == (slice(0, 5), slice(11, 15))
    assert columns_of(GROUPS) == (slice(0, 15),)
    assert [(group.start, group.stop) for group in moved_together(kept)] == [(0, 5), (5, 9)]


@pytest.mark.parametrize(
    ("size", "window"),
    [((64, 32), None), ((70, 64), (3.0, 0.0, 67.0, 64.0)), ((32, 48), (0.0, 8.0, 32.0, 40.0)), ((2048, 2048), None)],
)
def test_references_of_klein_are_cut_to_whole_cells(size: tuple[int, int], window: Any) -> None:
    pipeline = type("Flux2KleinPipeline", (), {"vae_scale_factor": 16})()
    height, width = size
    assert reference_window(pipeline, PIL.Image.new("RGB", (width, height))) == window
