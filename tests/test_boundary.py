"""Boundary IU against erosion written out, mask by mask, and any chunks against the whole maps."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fcn_batch.pipeline.core.boundary import Boundary, BoundarySweep, boundary, default_distance
from fcn_batch.pipeline.core.geometry import Size, Window

IDS = [0, 1, 254, 255]
Ids = NDArray[np.uint8]


@st.composite
def _maps(draw: st.DrawFn) -> tuple[Ids, Ids, int]:
    """Truth and prediction of patches that lie over each other, and a distance."""
    side = st.integers(0, 13)
    patch = st.tuples(side, side, st.integers(1, 9), st.integers(1, 9), st.sampled_from(IDS))
    shape = draw(st.tuples(st.integers(1, 14), st.integers(1, 14)))
    truth = np.full(shape, draw(st.sampled_from(IDS)), np.uint8)
    for row, col, height, width, k in draw(st.lists(patch, max_size=4)):
        truth[row : row + height, col : col + width] = k
    predicted = truth.copy()
    for row, col, height, width, k in draw(st.lists(patch, max_size=4)):
        predicted[row : row + height, col : col + width] = k
    return truth, predicted, draw(st.integers(1, 4))


def _inner(mask: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """Erode with a 3x3 square as often as `distance` says; beyond the border there is background."""
    for _ in range(distance):
        wide = np.pad(mask, 1)
        kept = np.ones_like(mask)
        for row in range(3):
            for col in range(3):
                kept &= wide[row : row + mask.shape[0], col : col + mask.shape[1]]
        mask = kept
    return mask


def _oracle(truth: Ids, predicted: Ids, distance: int) -> dict[int, tuple[int, int, int]]:
    """For each class: pixels of both boundaries, of that of the truth, of that of the prediction."""
    found = {}
    for k in IDS[:-1]:
        masks = [truth == k, (predicted == k) & (truth != 255)]
        edges = [mask & ~_inner(mask, distance) for mask in masks]
        found[k] = (int((edges[0] & edges[1]).sum()), int(edges[0].sum()), int(edges[1].sum()))
    return found


def _counted(found: Boundary) -> dict[int, tuple[int, ...]]:
    return {k: tuple(found.counts[:, k].tolist()) for k in IDS[:-1]}


@given(_maps())
def test_the_counts_are_those_of_eroded_masks(case: tuple[Ids, Ids, int]) -> None:
    truth, predicted, distance = case
    found = boundary(truth, predicted, distance)
    assert _counted(found) == _oracle(truth, predicted, distance)
    assert found.counts.sum() == sum(sum(counts) for counts in _counted(found).values())


@given(_maps(), st.data())
def test_any_chunks_count_the_same(case: tuple[Ids, Ids, int], data: st.DataObject) -> None:
    truth, predicted, distance = case
    size = Size(*truth.shape)
    sweep = BoundarySweep(size, distance)
    row = 0
    while row < size.height:
        height = data.draw(st.integers(1, size.height - row))
        col = 0
        while col < size.width:
            window = Window(row, col, height, data.draw(st.integers(1, size.width - col)))
            sweep.push(window, truth[window.slices()], predicted[window.slices()])
            col = window.stop_col
        row += height
    assert np.array_equal(sweep.result().counts, boundary(truth, predicted, distance).counts)


@pytest.mark.parametrize("side", [7, 64])
@pytest.mark.parametrize("distance", [1, 5, 16])
def test_larger_maps_in_square_chunks(side: int, distance: int) -> None:
    rng = np.random.default_rng(side)
    truth = np.kron(rng.choice(IDS, (7, 9)), np.ones((17, 13))).astype(np.uint8)
    predicted = np.roll(truth, (2, -3), (0, 1))
    truth[rng.random(truth.shape) < 0.001] = 255
    size = Size(*truth.shape)
    sweep = BoundarySweep(size, distance)
    for row in range(0, size.height, side):
        for col in range(0, size.width, side):
            window = Window(row, col, side, side).clipped(size)
            sweep.push(window, truth[window.slices()], predicted[window.slices()])
    assert _counted(sweep.result()) == _oracle(truth, predicted, distance)


def test_a_mask_cut_by_the_border_has_a_contour_there() -> None:
    everywhere = np.zeros((10, 10), np.uint8)
    assert boundary(everywhere, everywhere, 2).counts[:, 0].tolist() == [100 - 36] * 3


def test_what_has_no_truth_is_a_border_of_both_maps() -> None:
    truth = np.zeros((9, 9), np.uint8)
    truth[4, 4] = 255
    found = boundary(truth, np.zeros((9, 9), np.uint8), 1)  # the prediction knows nothing of the hole
    assert found.counts[:, 0].tolist() == [32 + 8] * 3
    assert found.iu[0] == 1


def test_predicted_nodata_is_a_contour_of_the_prediction_alone() -> None:
    predicted = np.zeros((9, 9), np.uint8)
    predicted[4, 4] = 255
    assert boundary(np.zeros((9, 9), np.uint8), predicted, 1).counts[:, 0].tolist() == [32, 32, 32 + 8]


def test_a_class_in_neither_map_is_left_out_and_a_wrong_one_counts_as_zero() -> None:
    truth, predicted = np.zeros((3, 3), np.uint8), np.zeros((3, 3), np.uint8)
    predicted[0, 0] = 1
    found = boundary(truth, predicted, 1).restricted((0, 1, 2))
    assert found.iu.tolist()[:2] == [7 / 9, 0]
    assert math.isnan(found.iu[2])
    assert found.mean_iu == pytest.approx(7 / 18)


def test_the_default_distance_is_the_papers_up_to_its_images() -> None:
    for height, width in ((1, 1), (60, 80), (333, 500), (480, 640)):
        dilation = max(1, round(0.02 * math.sqrt(height**2 + width**2)))  # as `mask_to_boundary` has it
        assert default_distance(Size(height, width)) == dilation
    assert default_distance(Size(10**6, 10**6)) == 16


def test_memory_is_what_is_kept() -> None:
    sweep = BoundarySweep(Size(10**9, 1000), 16)
    assert sweep._above.nbytes + sweep._below.nbytes == BoundarySweep.memory(sweep.size, 16) == 128_000


def test_chunks_out_of_order_are_refused() -> None:
    ids = np.zeros((4, 4), np.uint8)
    sweep = BoundarySweep(Size(8, 8), 1)
    for window in (Window(4, 0, 4, 4), Window(0, 4, 4, 4), Window(0, 0, 9, 4)):
        with pytest.raises(ValueError):
            sweep.push(window, ids, ids)
    with pytest.raises(ValueError):
        sweep.push(Window(0, 0, 4, 4), ids, ids.astype(np.int64))
    sweep.push(Window(0, 0, 4, 4), ids, ids)
    with pytest.raises(ValueError):
        sweep.push(Window(0, 4, 3, 4), ids[:3], ids[:3])  # lower than its neighbour
    with pytest.raises(ValueError):
        sweep.result()


def test_what_is_no_count() -> None:
    with pytest.raises(ValueError):
        Boundary(0, np.zeros((3, 2), np.int64))
    with pytest.raises(ValueError):
        Boundary(1, np.zeros((2, 2), np.int64))
