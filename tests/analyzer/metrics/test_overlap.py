"""Overlap and boxes of maps and masks: laws, then oracles in plain loops, then what is refused."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from i2am.analyzer.metrics.boxes import box_iou, box_of, clean, find_boxes, largest, overlap, random_box_iou, whole_box_iou
from i2am.analyzer.metrics.overlap import cut, imacs, iou, miou, segment
from i2am.analyzer.metrics.placement import hide
from i2am.analyzer.numerics.resize import resize
from i2am.schema.errors import InvalidInput

pytestmark = pytest.mark.analyzer

shapes = st.tuples(st.integers(2, 9), st.integers(2, 9))
pictures = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@st.composite
def maps_and_masks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(shapes)
    mask = draw(arrays(bool, shape).filter(lambda m: 0 < m.sum() < m.size))
    return draw(arrays(np.float64, shape, elements=st.integers(0, 64).map(lambda n: n / 64))), mask


def strong(values: np.ndarray, above: float) -> set[tuple[int, ...]]:
    low, high = values.min(), values.max()
    return {at for at in np.ndindex(values.shape) if high > low and (values[at] - low) / (high - low) > above}


@given(maps_and_masks(), st.floats(0, 0.99))
@settings(max_examples=60, deadline=None)
def test_iou_counts_pixels(case: tuple[np.ndarray, np.ndarray], above: float) -> None:
    values, mask = case
    found, inside = strong(values, above), {at for at in np.ndindex(mask.shape) if mask[at]}
    assert float(iou(values, mask, above)) == pytest.approx(len(found & inside) / len(found | inside), abs=1e-12)


@given(maps_and_masks())
@settings(max_examples=40, deadline=None)
def test_a_mask_overlaps_itself_wholly_and_its_complement_not_at_all(case: tuple[np.ndarray, np.ndarray]) -> None:
    mask = case[1]
    assert float(iou(mask, mask)) == float(miou(mask, mask)) == 1
    assert float(iou(mask, ~mask)) == float(miou(~mask, mask)) == 0


@given(maps_and_masks(), st.integers(1, 3), st.integers(-2, 2))
@settings(max_examples=40, deadline=None)
def test_gain_and_offset_change_no_overlap(case: tuple[np.ndarray, np.ndarray], gain: int, offset: int) -> None:
    values, mask = case
    for measure in (iou, miou, box_iou):
        assert float(measure(gain * values + offset, mask)) == pytest.approx(float(measure(values, mask)), abs=1e-12)


def test_miou_is_the_mean_over_thresholds_and_keeps_axes() -> None:
    rng = np.random.default_rng(0)
    map = xr.DataArray(rng.random((3, 6, 5)), dims=("head", "y", "x"), coords={"head": [1, 4, 7]}, attrs={"trace": "t"})
    mask = rng.random((6, 5)) > 0.4
    found = miou(map, mask, (0.2, 0.7))
    np.testing.assert_allclose(found.values, (iou(map, mask, 0.2).values + iou(map, mask, 0.7).values) / 2)
    assert (found.dims, list(found["head"].values), found.attrs["trace"], found.name) == (("head",), [1, 4, 7], "t", "miou")


@given(arrays(np.float64, shapes, elements=st.floats(0, 1, width=16), unique=True), st.floats(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_percentile_leaves_its_share_of_cells(values: np.ndarray, percentile: float) -> None:
    left = int(segment(values, values.shape, percentile=percentile).sum())
    assert left == pytest.approx((1 - percentile / 100) * values.size, abs=1)
    assert float(cut(values, percentile)) == pytest.approx(np.percentile(values, percentile))


def morphed(picture: np.ndarray, side: int, every: bool) -> np.ndarray:
    """Erosion (every) or dilation of a picture, pixel by pixel, windows cut at the edge."""
    out, reach = np.zeros_like(picture), side // 2
    for y, x in np.ndindex(picture.shape):
        window = picture[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
        out[y, x] = window.all() if every else window.any()
    return out


@given(pictures, st.sampled_from([1, 3, 5]))
@settings(max_examples=40, deadline=None)
def test_cleaning_opens_closes_and_dilates(picture: np.ndarray, side: int) -> None:
    expected = picture
    for every in (True, False, False, True, False):
        expected = morphed(expected, side, every)
    np.testing.assert_array_equal(clean(picture, side), expected)


@given(pictures)
@settings(max_examples=60, deadline=None)
def test_the_box_is_that_of_the_part_whose_box_holds_most(picture: np.ndarray) -> None:
    box = largest(picture)
    if not picture.any():
        assert np.isnan(box).all()
        return
    held = []
    for part in flood(picture):
        rows, columns = [y for y, _ in part], [x for _, x in part]
        edges = (min(rows), min(columns), max(rows) + 1, max(columns) + 1)
        held.append((int(picture[edges[0] : edges[2], edges[1] : edges[3]].sum()), edges))
    most = max(count for count, _ in held)
    assert tuple(int(edge) for edge in box) in {edges for count, edges in held if count == most}


def flood(picture: np.ndarray) -> list[set[tuple[int, int]]]:
    """What hangs together by sides or corners."""
    left, parts = {(int(y), int(x)) for y, x in np.argwhere(picture)}, []
    while left:
        queue = deque([left.pop()])
        part = set(queue)
        while queue:
            y, x = queue.popleft()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            part |= near
            queue.extend(near)
        parts.append(part)
    return parts


@given(arrays(np.int64, (2, 4), elements=st.integers(0, 8)))
@settings(max_examples=60, deadline=None)
def test_overlap_of_boxes_counts_cells(edges: np.ndarray) -> None:
    edges = np.concatenate([np.sort(edges[:, ::2], axis=1)[:, :1], np.sort(edges[:, 1::2], axis=1)[:, :1], edges + 9], axis=1)[
        :, [0, 1, 4, 5]
    ]
    cells = [{(y, x) for y in range(t, b) for x in range(left, r)} for t, left, b, r in edges.tolist()]
    first, second = edges.astype(float)
    assert float(overlap(first, second)) == pytest.approx(len(cells[0] & cells[1]) / len(cells[0] | cells[1]))
    assert float(overlap(first, second)) == float(overlap(second, first))
    assert float(overlap(first, np.full(4, np.nan))) == 0


def test_the_box_of_a_bright_rectangle_is_found_on_its_picture() -> None:
    values = np.zeros((2, 8, 8))
    values[0, 2:6, 1:5] = 1.0
    map = xr.DataArray(values, dims=("head", "y", "x"), attrs={"image_shape": (64, 64)})
    found = find_boxes(map)
    assert (found.dims, list(found.edge.values)) == (("head", "edge"), ["top", "left", "bottom", "right"])
    assert np.abs(found.values[0] - [16, 8, 48, 40]).max() <= 8  # within the smooth edge of one cell of 8 pixels, dilation included
    assert np.isnan(found.values[1]).all()
    mask = np.zeros((64, 64), bool)
    mask[16:48, 8:40] = True
    np.testing.assert_array_equal(box_of(mask), [16, 8, 48, 40])
    scores = box_iou(map, mask)
    assert scores.values[0] > 0.5
    assert scores.values[1] == 0


@given(maps_and_masks())
@settings(max_examples=30, deadline=None)
def test_masking_first_is_scoring_the_product(case: tuple[np.ndarray, np.ndarray]) -> None:
    values, mask = case
    assert float(imacs(values, mask, pre_mask=True)) == pytest.approx(float(imacs(values * mask, mask)), abs=1e-12)
    # Nothing is left outside to be charged for: a map in its whole range scores as if there were no penalty.
    assert float(imacs(values + 1, mask, penalty=10, pre_mask=True)) >= 0


def test_the_mask_of_a_windowed_map_is_cut_and_brought_to_its_grid() -> None:
    rng = np.random.default_rng(3)
    map = xr.DataArray(rng.random((4, 4)), dims=("ref_y", "ref_x"), attrs={"window": (2.0, 0.0, 10.0, 8.0), "image_shape": (12, 8)})
    mask = rng.random((12, 8)) > 0.5
    np.testing.assert_allclose(hide(map, mask).values, map.values * resize(mask[2:10].astype(float), (4, 4)))


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (lambda: iou(np.eye(3), np.eye(3), 1.0), "threshold is 1.0"),
        (lambda: iou(np.eye(3), np.eye(3), percentile=101), "percentile is 101"),
        (lambda: iou(np.eye(3), np.ones((3, 3))), "full"),
        (lambda: miou(np.eye(3), np.eye(3), ()), "no threshold"),
        (lambda: find_boxes(np.eye(3)), r"give size=\(height, width\)"),
        (lambda: find_boxes(np.eye(3), (9, 9), square=4), "odd number"),
        (lambda: box_iou(xr.DataArray(np.eye(3), attrs={"image_shape": (6, 6)}), np.eye(3)), "resize the mask"),
    ],
)
def test_what_cannot_be_meant_is_refused(ask: object, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        ask()  # type: ignore[operator]


def test_baselines_of_boxes_know_the_mask_alone() -> None:
    rng = np.random.default_rng(0)
    map = xr.DataArray(rng.random((2, 6, 8)), dims=("head", "y", "x"), coords={"head": [0, 1]})
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:7] = True
    mask[2, 3] = False  # its box counts
    np.testing.assert_allclose(whole_box_iou(map, mask), [15 / 48] * 2)
    boxes = np.random.default_rng(1)
    drawn = []
    while len(drawn) < 20_000:
        area = boxes.uniform(0.1, 0.3)
        height = boxes.uniform(area, 1)
        width = area / height
        top, left = boxes.uniform(0, 1 - height), boxes.uniform(0, 1 - width)
        rows = min((top + height) * 6, 4) - max(top * 6, 1)
        columns = min((left + width) * 8, 7) - max(left * 8, 2)
        both = max(rows, 0) * max(columns, 0)
        drawn.append(both / (15 + area * 48 - both))
    found = random_box_iou(map, mask, draws=20_000)
    np.testing.assert_allclose(found, [np.mean(drawn)] * 2, atol=0.005)
    assert found.equals(random_box_iou(2 * map, mask, draws=20_000)) and 0 < float(random_box_iou(map[0], mask)) < 1
