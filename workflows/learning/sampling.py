"""Random windows of the training regions, ready for the network.

All random numbers of a step come from the seed and the step's number, so a training that is resumed sees what an
uninterrupted one would have seen, and every process of several draws the same batch and reads its own share of it.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

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
    side: int
    """Side of the window in raster pixels, before it is scaled to the network's."""
    dice: NDArray[np.float64]


class Sampler:
    """Batches of a recipe's training windows."""

    def __init__(
        self, images: Sequence[LabelledImage], spec: InputSpec, recipe: Recipe, stride: int, *, peers: Peers = ALONE
    ) -> None:
        self.spec, self.recipe, self.peers = spec, recipe, peers
        schedule = recipe.schedule
        self.side = round_up(schedule.crop, stride)
        self._regions = [(image, region) for image in images for region in image.regions["train"]]
        pixels = np.array([region.pixels for _, region in self._regions], dtype=np.float64)
        self._share = pixels / pixels.sum()
        self.steps_of_an_epoch = max(1, round(float(pixels.sum()) / (schedule.batch * self.side**2)))
        """Steps after which as many pixels were seen as the training regions have."""
        if schedule.batch % (peers.world * schedule.accumulate):
            raise TrainingError(
                "batch-shares",
                "a batch of {batch} windows cannot be shared by {world} processes in {parts} equal parts; "
                "change schedule.batch or schedule.accumulate",
                batch=schedule.batch,
                world=peers.world,
                parts=schedule.accumulate,
            )

    def batches(self, stage: int, start: int, stop: int) -> Iterator[Batch]:
        """Yield this process's share of the batches of steps `start` to `stop` - 1; threads read ahead."""
        ahead: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(_READ_AHEAD) as pool:
            for step in range(start, stop):
                ahead.append(pool.submit(self._batch, stage, step))
                if len(ahead) == _READ_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _batch(self, stage: int, step: int) -> Batch:
        rng = np.random.default_rng([self.recipe.schedule.seed, stage, step])
        drawn = [self._draw(rng) for _ in range(self.recipe.schedule.batch)]
        samples = [self._sample(one) for one in drawn[self.peers.rank :: self.peers.world]]
        images, labels, origins = zip(*samples, strict=True)
        return Batch(np.stack(images), np.stack(labels), origins)

    def _draw(self, rng: np.random.Generator) -> Draw:
        """Draw windows to choose from, and dice for the augmentation of the chosen one."""
        largest = self.recipe.augment.scale
        side = max(1, round(self.side * largest ** rng.uniform(-1, 1)))
        chances = []
        for index in rng.choice(len(self._regions), _TRIES, p=self._share):
            image, region = self._regions[index]
            height, width = min(side, region.height), min(side, region.width)
            row = region.row + int(rng.integers(region.height - height + 1))
            col = region.col + int(rng.integers(region.width - width + 1))
            chances.append((image, Window(row, col, height, width)))
        return Draw(chances, side, rng.random(5 + len(self.spec.bands)))

    def _sample(self, drawn: Draw) -> tuple[NDArray[np.float32], NDArray[np.uint8], str]:
        """Return image and labels of the first window with a mix of classes, padded to its side, and augmented."""
        for image, window in drawn.chances:
            labels = image.read_labels(window)
            counts = np.bincount(labels[labels != NODATA], minlength=1)
            if counts.any() and counts.max() <= self.recipe.schedule.one_class_at_most * counts.sum():
                break
        down, across = (0, drawn.side - window.height), (0, drawn.side - window.width)
        pixels = np.pad(image.read_image(window, self.spec), ((0, 0), down, across))
        truth = np.pad(labels, (down, across), constant_values=NODATA)
        pixels, truth = augment(*resized(pixels, truth, self.side), drawn.dice, self.recipe.augment)
        return pixels, truth, f"{image.name} row {window.row} col {window.col}"
