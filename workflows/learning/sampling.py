"""Random windows of the training regions, ready for the network.

All random numbers of a step come from the seed and the step's number, so a training that is resumed sees what an
uninterrupted one would have seen, and every process of several draws the same batch and reads its own share of it.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.core.errors import TrainingError
from fcn_batch.pipeline.core.geometry import Window, round_up
from fcn_batch.pipeline.core.model_card import InputSpec
from fcn_batch.pipeline.core.recipe import Recipe
from fcn_batch.pipeline.network.augment import augment, resized
from fcn_batch.pipeline.network.distributed import ALONE, Peers
from fcn_batch.pipeline.network.training import Batch
from fcn_batch.workflows.learning.labelled import LabelledImage

_READ_AHEAD = 4
_TRIES = 4


@dataclass(frozen=True, slots=True)
class Draw:
    """The random numbers of one training window, drawn ahead so that threads cannot change their order."""

    chances: list[tuple[LabelledImage, Window]]
    """Windows to choose from: the first with a mix of classes is taken."""
    dice: NDArray[np.float64]


class Sampler:
    """Batches of a recipe's training windows."""

    def __init__(
        self, images: Sequence[LabelledImage], spec: InputSpec, recipe: Recipe, stride: int, *, peers: Peers = ALONE
    ) -> None:
        self.spec, self.recipe, self.peers = spec, recipe, peers
        self.side = round_up(recipe.schedule.crop, stride)
        self._regions = [(image, region) for image in images for region in image.regions["train"]]
        if not self._regions:
            raise TrainingError("no training region; check [split]")
        pixels = np.array([region.pixels for _, region in self._regions], dtype=np.float64)
        self._share = pixels / pixels.sum()
        self.steps_of_an_epoch = max(1, round(float(pixels.sum()) / (recipe.schedule.batch * self.side**2)))
        """Steps after which as many pixels were seen as the training regions have."""
        if recipe.schedule.batch % peers.world:
            raise TrainingError(
                f"a batch of {recipe.schedule.batch} windows cannot be shared by {peers.world} processes"
            )

    def batches(self, stage: int, start: int, stop: int) -> Iterator[Batch]:
        """This process's share of the batches of steps `start` to `stop` - 1; read ahead by threads."""
        with ThreadPoolExecutor(_READ_AHEAD) as pool:
            numbers = iter(range(start, stop))
            ahead = [pool.submit(self._batch, stage, step) for step in islice(numbers, _READ_AHEAD)]
            while ahead:
                batch = ahead.pop(0).result()
                if (step := next(numbers, None)) is not None:
                    ahead.append(pool.submit(self._batch, stage, step))
                yield batch

    def _batch(self, stage: int, step: int) -> Batch:
        rng = np.random.default_rng([self.recipe.schedule.seed, stage, step])
        drawn = [self._draw(rng) for _ in range(self.recipe.schedule.batch)]
        samples = [self._sample(one) for one in drawn[self.peers.rank :: self.peers.world]]
        images, labels, origins = zip(*samples, strict=True)
        return Batch(np.stack(images), np.stack(labels), origins)

    def _draw(self, rng: np.random.Generator) -> Draw:
        """Windows to choose from, each with its side in raster pixels, and dice for what is done to the chosen one."""
        largest = self.recipe.augment.scale
        side = max(1, round(self.side * largest ** rng.uniform(-1, 1)))
        chances = []
        for index in rng.choice(len(self._regions), _TRIES, p=self._share):
            image, region = self._regions[index]
            height, width = min(side, region.height), min(side, region.width)
            row = region.row + int(rng.integers(region.height - height + 1))
            col = region.col + int(rng.integers(region.width - width + 1))
            chances.append((image, Window(row, col, height, width)))
        return Draw(chances, np.array([side, *rng.random(5 + len(self.spec.bands))]))

    def _sample(self, drawn: Draw) -> tuple[NDArray[np.float32], NDArray[np.uint8], str]:
        """Image and labels of the first window with a mix of classes, padded where a region is smaller, augmented."""
        for image, window in drawn.chances:
            labels = image.read_labels(window)
            counts = np.bincount(labels[labels != NODATA], minlength=1)
            if counts.any() and counts.max() <= self.recipe.schedule.one_class_at_most * counts.sum():
                break
        side = int(drawn.dice[0])
        pixels, truth = _placed(image.read_image(window, self.spec), labels, side)
        pixels, truth = resized(pixels, truth, self.side)
        pixels, truth = augment(pixels, truth, drawn.dice[1:], self.recipe.augment)
        return pixels, truth, f"{image.name} row {window.row} col {window.col}"


def _placed(
    image: NDArray[np.float32], labels: NDArray[np.uint8], side: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A window of `side`: what a smaller region lacks at the bottom and right has no data and no label."""
    rows, cols = labels.shape
    if (rows, cols) == (side, side):
        return image, labels
    down, across = side - rows, side - cols
    return (
        np.pad(image, ((0, 0), (0, down), (0, across))),
        np.pad(labels, ((0, down), (0, across)), constant_values=NODATA),
    )
