"""What is done at random to a training window, decided by numbers from 0 to 1 that somebody else has drawn."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fcn_batch.pipeline.core.recipe import Augment

_Pair = tuple[NDArray[np.float32], NDArray[np.uint8]]


def resized(image: NDArray[np.float32], labels: NDArray[np.uint8], side: int) -> _Pair:
    """A square window at `side` pixels: the image (bands, rows, cols) bilinear, the labels (rows, cols) nearest."""
    if labels.shape == (side, side):
        return image, labels
    pixels = torch.from_numpy(np.ascontiguousarray(image))[None]
    wide = functional.interpolate(pixels, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
    rows = ((np.arange(side) + 0.5) * labels.shape[0] / side).astype(np.int64)
    cols = ((np.arange(side) + 0.5) * labels.shape[1] / side).astype(np.int64)
    return wide[0].numpy(), labels[np.ix_(rows, cols)]


def augment(image: NDArray[np.float32], labels: NDArray[np.uint8], dice: NDArray[np.float64], choice: Augment) -> _Pair:
    """Flip, turn and recolour a square window; `dice` holds 5 numbers and one more for each band.

    Flips and turns are exact; colours change as ``gain * image + shift``, on normalised values.
    """
    if choice.flips and dice[0] < 0.5:
        image, labels = image[:, ::-1], labels[::-1]
    if choice.flips and dice[1] < 0.5:
        image, labels = image[:, :, ::-1], labels[:, ::-1]
    if choice.turns and dice[2] < 0.5:
        image, labels = image.transpose(0, 2, 1), labels.T
    if choice.saturation:
        grey = image.mean(axis=0, keepdims=True)
        image = grey + (image - grey) * np.float32(1 + (2 * dice[4] - 1) * choice.saturation)
    if choice.jitter:
        gain = 1 + (2 * dice[5:] - 1) * choice.jitter
        shift = (2 * dice[3] - 1) * choice.jitter
        image = image * gain[:, None, None].astype(np.float32) + np.float32(shift)
    return np.ascontiguousarray(image, dtype=np.float32), np.ascontiguousarray(labels)
