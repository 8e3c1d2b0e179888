"""Training windows as they are changed: flips and turns are exact, labels stay with their pixels, colours in bounds."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fcn_batch.pipeline.core.recipe import Augment
from fcn_batch.pipeline.network.augment import augment, resized

SIDE = 6
PLAIN = Augment(flips=False, turns=False)


def _window() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Three bands of unlike values, and labels that number the pixels."""
    image = np.random.default_rng(0).normal(size=(3, SIDE, SIDE)).astype(np.float32)
    return image, np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)


def _dice(*first: float) -> NDArray[np.float64]:
    """The dice of one window, the rest in the middle."""
    return np.array([*first, *[0.5] * (8 - len(first))])


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=8, max_size=8), st.booleans(), st.booleans())
def test_flips_and_turns_take_image_and_labels_along(dice: list[float], flips: bool, turns: bool) -> None:
    image, labels = _window()
    pixels, truth = augment(image, labels, np.array(dice), Augment(flips=flips, turns=turns))
    assert sorted(truth.ravel().tolist()) == labels.ravel().tolist()
    flat = image.reshape(3, -1)
    assert np.array_equal(pixels, flat[:, truth])
    assert pixels.flags.c_contiguous
    assert truth.flags.c_contiguous
    if not flips and not turns:
        assert np.array_equal(truth, labels)


@pytest.mark.parametrize(("flips", "turns", "count"), [(True, True, 8), (True, False, 4), (False, True, 2)])
def test_all_ways_come_up(flips: bool, turns: bool, count: int) -> None:
    image, labels = _window()
    choice, dice = Augment(flips=flips, turns=turns), product((0.2, 0.8), repeat=3)
    ways = {augment(image, labels, _dice(*three), choice)[1].tobytes() for three in dice}
    assert len(ways) == count


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=8, max_size=8), st.floats(0, 0.9))
def test_jitter_is_a_gain_for_each_band_and_one_shift(dice: list[float], jitter: float) -> None:
    image, labels = _window()
    pixels, truth = augment(image, labels, np.array(dice), PLAIN.model_copy(update={"jitter": jitter}))
    assert np.array_equal(truth, labels)
    assert pixels.dtype == np.float32
    for band, found in zip(image, pixels, strict=True):
        gain, shift = np.polyfit(band.ravel().astype(float), found.ravel().astype(float), 1)
        assert abs(gain - 1) <= jitter + 1e-5
        assert abs(shift) <= jitter + 1e-5
        assert np.allclose(found, gain * band + shift, atol=1e-5)


@pytest.mark.parametrize(("number", "factor"), [(0.0, 0.6), (0.5, 1.0), (1.0, 1.4)])
def test_saturation_moves_bands_from_or_to_their_mean(number: float, factor: float) -> None:
    image, labels = _window()
    pixels, _ = augment(image, labels, _dice(0, 0, 0, 0, number), PLAIN.model_copy(update={"saturation": 0.4}))
    mean = image.mean(axis=0)
    assert np.allclose(pixels.mean(axis=0), mean, atol=1e-6)
    assert np.allclose(pixels - mean, factor * (image - mean), atol=1e-6)


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(1, 5))
def test_enlarged_windows_keep_labels_at_their_pixels(side: int, factor: int) -> None:
    labels = np.random.default_rng(side).integers(0, 9, (side, side), dtype=np.uint8)
    pixels, truth = resized(labels[None].astype(np.float32), labels, side * factor)
    assert np.array_equal(truth, labels.repeat(factor, axis=0).repeat(factor, axis=1))
    centres = slice(factor // 2, None, factor)
    if factor % 2:  # else no new pixel has an old one's centre
        assert np.allclose(pixels[0, centres, centres], labels, atol=1e-5)


def test_windows_made_smaller_are_averaged() -> None:
    """Every fourth row is bright, and far from where the new pixels' centres are."""
    image = (np.indices((8, 8))[0] % 4 == 0).astype(np.float32)
    pixels, truth = resized(image[None], image.astype(np.uint8), 2)
    assert pixels.shape == (1, 2, 2)
    assert truth.tolist() == [[0, 0], [0, 0]]
    assert (abs(pixels - 0.25) < 0.15).all()
