"""Whatever the blend, the weights at every pixel sum to 1."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_batch.pipeline.core.blending import axis_weights, ramp
from fcn_batch.pipeline.core.tiling import Axis, Blend

BLENDS: tuple[Blend, ...] = get_args(Blend)
KINDS = st.sampled_from(BLENDS)


@st.composite
def axes(draw: st.DrawFn, smallest_tile: int = 1) -> Axis:
    """Any valid axis; half of them with the largest overlap or none."""
    tile = draw(st.integers(smallest_tile, 33))
    overlap = draw(st.sampled_from([0, tile // 2]) | st.integers(0, tile // 2))
    return Axis(length=draw(st.integers(1, 100)), tile=tile, overlap=overlap)


@given(axes(), KINDS)
def test_weights_sum_to_one_at_every_pixel(axis: Axis, blend: Blend) -> None:
    total = np.zeros(axis.length)
    for index in range(axis.count):
        start, stop = axis.span(index)
        weights = axis_weights(axis, index, blend)
        assert weights.shape == (stop - start,)
        assert ((weights >= 0) & (weights <= 1)).all()
        total[start:stop] += weights
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-12)


@given(axes(smallest_tile=8), axes(smallest_tile=8), KINDS, st.floats(-1e3, 1e3))
def test_a_constant_stays_a_constant_in_two_dimensions(rows: Axis, columns: Axis, blend: Blend, value: float) -> None:
    image = np.zeros((rows.length, columns.length))
    for i in range(rows.count):
        for j in range(columns.count):
            tile = np.outer(axis_weights(rows, i, blend), axis_weights(columns, j, blend)) * value
            image[slice(*rows.span(i)), slice(*columns.span(j))] += tile
    np.testing.assert_allclose(image, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("blend", BLENDS)
def test_a_raster_of_one_tile_has_full_weight_to_its_edges(blend: Blend) -> None:
    assert (axis_weights(Axis(length=20, tile=32, overlap=16), 0, blend) == 1).all()


@given(KINDS, st.integers(1, 64), st.integers(0, 64))
def test_ramps_rise_and_are_symmetric(blend: Blend, overlap: int, extra: int) -> None:
    rising = ramp(blend, overlap, 2 * overlap + extra)
    assert (np.diff(rising) >= 0).all()
    middle = slice(overlap // 2, overlap // 2 + 1) if overlap % 2 else slice(0, 0)
    mirrored = 1 - rising[::-1]
    if blend == "none":  # a step gives an odd overlap's middle pixel to one of the two
        mirrored[middle] = rising[middle]
    np.testing.assert_allclose(rising, mirrored, rtol=0, atol=1e-12)


@given(st.integers(1, 24), st.integers(0, 24))
def test_the_gaussian_is_the_share_of_two_windows(overlap: int, extra: int) -> None:
    tile = 2 * overlap + extra
    sigma = tile / 8

    def window(pixel: int, start: int) -> float:
        return float(np.exp(-((pixel + 0.5 - start - tile / 2) ** 2) / (2 * sigma**2)))

    start = tile - overlap  # of the later tile
    pixels = range(start, tile)
    expected = [window(p, start) / (window(p, start) + window(p, 0)) for p in pixels]
    np.testing.assert_allclose(ramp("gaussian", overlap, tile), expected, rtol=1e-9, atol=1e-12)


def test_hann_is_the_squared_sine() -> None:
    expected = [np.sin(np.pi * p / 16) ** 2 for p in (1, 3, 5, 7)]
    np.testing.assert_allclose(ramp("hann", 4, 16), expected)
