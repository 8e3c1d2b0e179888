"""Windows as sets of pixels: every operation must agree with the sets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_batch.pipeline.core.geometry import Size, Window, round_up

SMALL = st.integers(1, 6)
WINDOWS = st.builds(Window, row=st.integers(-5, 8), col=st.integers(-5, 8), height=SMALL, width=SMALL)


def _pixels(window: Window) -> set[tuple[int, int]]:
    return {(r, c) for r in range(window.row, window.stop_row) for c in range(window.col, window.stop_col)}


@given(WINDOWS)
def test_a_window_counts_its_pixels(window: Window) -> None:
    assert window.pixels == len(_pixels(window))


@given(WINDOWS, WINDOWS)
def test_an_intersection_holds_the_shared_pixels(one: Window, other: Window) -> None:
    shared = _pixels(one) & _pixels(other)
    if shared:
        assert _pixels(one.intersection(other)) == shared
        whole = Size(other.height, other.width)
        moved = Window(one.row - other.row, one.col - other.col, one.height, one.width)
        assert moved.clipped(whole).pixels == len(shared)
    else:
        with pytest.raises(ValueError, match="Window"):
            one.intersection(other)


@given(WINDOWS, st.integers(0, 3))
def test_padding_adds_every_pixel_within_the_margin(window: Window, margin: int) -> None:
    reach = range(-margin, margin + 1)
    near = {(r + dr, c + dc) for r, c in _pixels(window) for dr in reach for dc in reach}
    assert _pixels(window.padded(margin)) == near


@given(WINDOWS, WINDOWS)
def test_slices_cut_the_window_from_an_array_of_its_origin(origin: Window, other: Window) -> None:
    if not _pixels(origin) & _pixels(other):
        return
    window = origin.intersection(other)
    rows, columns = np.mgrid[origin.row : origin.stop_row, origin.col : origin.stop_col]
    cut = window.slices(origin)
    found = set(zip(rows[cut].ravel().tolist(), columns[cut].ravel().tolist(), strict=True))
    assert found == _pixels(window)


def test_slices_without_an_origin_start_at_the_raster() -> None:
    assert Window(3, 4, 5, 6).slices() == (slice(3, 8), slice(4, 10))


@given(st.integers(0, 10_000), st.integers(1, 500))
def test_round_up_is_the_next_multiple(value: int, step: int) -> None:
    rounded = round_up(value, step)
    assert rounded % step == 0
    assert value <= rounded < value + step


@pytest.mark.parametrize(("height", "width"), [(0, 1), (1, 0), (-3, 5)])
def test_empty_rectangles_are_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=str(height)):
        Size(height, width)
    with pytest.raises(ValueError, match=str(height)):
        Window(0, 0, height, width)
