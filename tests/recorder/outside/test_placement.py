"""Laws of what is said of keys: groups cover them once, panels are a permutation, and queries are places of the image being made."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2am.recorder.outside.declaration import Tokens
from i2am.recorder.outside.placement import cover, declared_queries, panels
from i2am.schema.errors import InvalidInput

SIDES = st.integers(1, 9)


def row(name: str, **said: object) -> Tokens:
    return Tokens.read({"name": name, **said})


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(0, 5), st.integers(0, 40))
def test_groups_cover_the_keys_once_in_order(counts: list[int], open_row: int, left: int) -> None:
    rows = [row(f"reference_{i}", count=count) for i, count in enumerate(counts)]
    if left:
        rows.insert(min(open_row, len(rows)), row("text"))
    groups = cover("layer", rows, sum(counts) + left, None)
    assert [group.start for group in groups] == [0, *(group.stop for group in groups)][:-1]
    assert groups[-1].stop == sum(counts) + left
    assert [group.tokens for group in groups if group.name != "text"] == counts
    for wrong in (sum(counts) + left + 1, sum(counts) - 1) if not left else (sum(counts), sum(counts) - 1):
        with pytest.raises(InvalidInput, match="groups add up to"):
            cover("layer", rows, wrong, None)


@given(SIDES, st.lists(SIDES, min_size=2, max_size=4))
def test_panels_are_a_permutation_that_reads_each_row_by_row(height: int, widths: list[int]) -> None:
    width = sum(widths)
    rows = [row("self" if i == 0 else f"reference_{i}", columns=w / width) for i, w in enumerate(widths)]
    order = panels("layer", rows, height * width, (height, width))
    table = np.arange(height * width).reshape(height, width)
    cuts = np.split(table, np.cumsum(widths)[:-1], axis=1)
    assert list(order) == [int(cell) for cut in cuts for cell in cut.ravel()]
    groups = cover("layer", rows, height * width, (height, width))
    assert [group.grid for group in groups] == [(height, w) for w in widths]
    assert declared_queries("layer", groups, height * width, height * width, (height, width)) == (
        slice(0, height * widths[0]),
        (height, widths[0]),
    )


@given(SIDES, SIDES, SIDES, st.integers(0, 7))
def test_queries_are_the_image_wherever_it_stands(height: int, width: int, other: int, text: int) -> None:
    own = height * width
    rows = [*([row("text", count=text)] if text else []), row("self"), row("reference", grid=(other, 2), specials=1)]
    keys = text + own + other * 2 + 1
    groups = cover("layer", rows, keys, (height, width))
    assert declared_queries("layer", groups, keys, keys, (height, width)) == (slice(text, text + own), (height, width))
    assert declared_queries("layer", groups, own, keys, (height, width)) == (slice(0, own), (height, width))
    assert not panels("layer", rows, keys, (height, width))
    with pytest.raises(InvalidInput, match="say the rows and columns of the image being made"):
        declared_queries("layer", groups, own + keys, keys, (height, width))


def test_a_layer_without_a_grid_says_how_to_give_one() -> None:
    with pytest.raises(
        InvalidInput, match=r'no enclosing module sees an image; say its rows and columns: grid={"layer": \(rows, columns\)}'
    ):
        cover("layer", [row("self")], 12, None)
    with pytest.raises(InvalidInput, match="asks from 12 positions, but no enclosing module sees an image"):
        declared_queries("layer", cover("layer", [row("text")], 5, None), 12, 5, None)
    with pytest.raises(InvalidInput, match="but the image around it has 4 x 4; say the rows"):
        declared_queries("layer", cover("layer", [row("text")], 5, None), 12, 5, (4, 4))
