"""The majority filter against the definition, pixel by pixel, and against itself in any tiling."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.majority import Majority
from tests.errors import refuses
from tests.memorymaps import ArrayMap, legend_of, utm, whole


def by_definition(ids: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Count every square on its own."""
    halo, result = side // 2, ids.copy()
    for row, col in np.ndindex(*ids.shape):
        if ids[row, col] == NODATA:
            continue
        around = ids[max(0, row - halo) : row + halo + 1, max(0, col - halo) : col + halo + 1]
        votes = Counter(int(v) for v in around.ravel() if v != NODATA)
        winners = sorted(c for c, n in votes.items() if n == max(votes.values()))
        result[row, col] = ids[row, col] if ids[row, col] in winners else winners[0]
    return result


@st.composite
def maps(draw: st.DrawFn) -> NDArray[np.uint8]:
    shape = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    choices = draw(st.lists(st.integers(0, 255), min_size=1, max_size=5))
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).choice(np.array(choices, np.uint8), shape)


@settings(max_examples=40)
@given(maps(), st.sampled_from([3, 5, 7, 31]))
def test_it_is_what_the_definition_says(ids: NDArray[np.uint8], side: int) -> None:
    assert np.array_equal(whole(Majority(ArrayMap(ids), side)), by_definition(ids, side))


@settings(max_examples=40)
@given(maps(), st.sampled_from([3, 5, 9]), st.integers(1, 14), st.integers(1, 14), st.integers(1, 6))
def test_no_window_makes_a_seam(ids: NDArray[np.uint8], side: int, height: int, width: int, patch: int) -> None:
    source = Majority(ArrayMap(ids), side)
    expected = whole(source)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fcn_batch.pipeline.core.majority._PATCH", patch)
        for row in range(0, source.size.height, height):
            for col in range(0, source.size.width, width):
                window = Window(row, col, height, width).clipped(source.size)
                assert np.array_equal(source.read(window), expected[window.slices()])


@pytest.mark.parametrize("side", [3, 15])
def test_larger_than_a_patch(side: int) -> None:
    ids = np.random.default_rng(5).integers(0, 3, (530, 520)).astype(np.uint8)
    found = whole(Majority(ArrayMap(ids), side))
    corner = by_definition(ids[500:, 490:], side)
    assert np.array_equal(found[508:, 498:], corner[8:, 8:])


def test_counts_beyond_16_bits_do_not_wrap() -> None:
    ids = np.zeros((300, 300), np.uint8)
    ids[:, :70] = 1  # 21,000 votes; the others' 69,000 would be 3,464 modulo 2^16
    ids[150, 150] = 2
    assert np.unique(whole(Majority(ArrayMap(ids), 901))).tolist() == [0]


def test_it_keeps_everything_else() -> None:
    source = ArrayMap(np.zeros((20, 30), np.uint8), legend_of("a"), utm())
    found = Majority(source, 3)
    assert (found.size, found.georeference, found.block, found.legend) == (
        source.size,
        source.georeference,
        source.block,
        source.legend,
    )


@pytest.mark.parametrize("side", [-3, 1, 4, 1001])
def test_sides_that_make_no_sense_are_refused(side: int) -> None:
    with refuses("option-value", option="majority", value=side):
        Majority(ArrayMap(np.zeros((2, 2), np.uint8)), side)
