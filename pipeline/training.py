"""The training loop: batches of arrays in, a trained network out. No rasters, no files.

A plain recipe in the spirit of the paper (section 4.3: cross-entropy over all pixels, 255 ignored, score layers
from zero), with AdamW in place of momentum 0.99, because the trunk starts from random weights.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fcn_batch.pipeline.classes import NODATA
from fcn_batch.pipeline.errors import TrainingError
from fcn_batch.pipeline.fcn import Fcn
from fcn_batch.pipeline.recipe import Schedule

_WARM_UP = 0.05
_AVERAGE_DECAY = 0.999
_GRADIENT_NORM = 1.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Normalised images (n, bands, rows, cols), float32, and channel numbers (n, rows, cols), 255 ignored."""

    images: NDArray[np.float32]
    labels: NDArray[np.uint8]


def class_weights(counts: NDArray[np.int64], balance: float) -> NDArray[np.float32]:
    """Loss weight of each class: share ** -balance, scaled so that the mean over pixels is 1.

    >>> class_weights(np.array([80, 20]), 0.0).tolist()
    [1.0, 1.0]
    """
    share = np.maximum(counts, 1) / max(int(counts.sum()), 1)
    weights = share**-balance
    return np.asarray(weights / (weights * share).sum(), dtype=np.float32)


def seed(number: int) -> None:
    """Start torch's random numbers, of the first weights and of dropout, at `number`."""
    torch.manual_seed(number)


def rate_factor(step: int, steps: int) -> float:
    """Share of the peak learning rate at `step`: linear up, then half a cosine down."""
    warm = max(1, round(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _running_average(average: torch.Tensor, current: torch.Tensor, steps: torch.Tensor | int) -> torch.Tensor:
    """Exponential average over the last steps; over all of them while they are few."""
    decay = min(_AVERAGE_DECAY, (1 + float(steps)) / (10 + float(steps)))
    return torch.lerp(average, current, 1 - decay)


class Trainer:
    """Trains a network and keeps a running average of its weights, which is what is scored and saved."""

    def __init__(self, network: Fcn, schedule: Schedule, weights: NDArray[np.float32], device: str) -> None:
        self.device = torch.device(device)
        self.network = network.to(self.device).to(memory_format=torch.channels_last)  # twice as fast on CPUs
        self.schedule = schedule
        self.weights = torch.from_numpy(weights).to(self.device)
        self.average = torch.optim.swa_utils.AveragedModel(
            self.network,
            avg_fn=_running_average,
        )
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        self.rates = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: rate_factor(step, schedule.steps))

    @property
    def averaged(self) -> Fcn:
        """The network with averaged weights."""
        module = self.average.module
        assert isinstance(module, Fcn)
        return module

    def run(self, batches: Iterable[Batch], after_step: Callable[[int, float], None]) -> None:
        """Take one step for each batch; `after_step(step, loss)` is called after it, steps from 1."""
        for step, batch in enumerate(batches, start=1):
            after_step(step, self._step(step, batch))

    def _step(self, step: int, batch: Batch) -> float:
        if (batch.labels == NODATA).all():
            return 0.0  # nothing to learn from; the mean over no pixel would be NaN
        self.network.train()
        images = torch.from_numpy(batch.images).to(self.device, non_blocking=True)
        labels = torch.from_numpy(batch.labels).to(self.device, non_blocking=True).long()
        images = images.to(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.schedule.precision == "bf16"):
            scores = self.network(images)
        loss = functional.cross_entropy(scores.float(), labels, self.weights, ignore_index=NODATA)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"the loss became {value} at step {step}; lower schedule.learning_rate")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), _GRADIENT_NORM)
        self.optimiser.step()
        self.rates.step()
        self.average.update_parameters(self.network)
        return value
