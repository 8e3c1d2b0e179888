"""The training loop: batches of arrays in, a trained network out. No rasters, no files.

The loss is the paper's (section 4.3): cross-entropy over all pixels of a batch, 255 ignored; score layers start at
zero. The optimiser is the paper's SGD, or AdamW for trunks that start from random weights.

One step is one batch, however it is computed: in `accumulate` parts one after the other, and by several processes at
once. Each part's loss is a sum divided by the labelled weight of the whole batch, so the gradients add up to those of
the whole, also where parts hold unlike numbers of labelled pixels. (Batch norm and the Dice loss see their own part
only.) Random numbers of a step (dropout) come from its number, so a training that is resumed goes on bit by bit as if
it had not stopped.
"""

import io
import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.core.errors import TrainingError
from fcn_batch.pipeline.core.recipe import Schedule
from fcn_batch.pipeline.network.distributed import ALONE, Peers
from fcn_batch.pipeline.network.fcn import FcnNetwork

_WARM_UP = 0.05
_AVERAGE_DECAY = 0.999
_GRADIENT_NORM = 1.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Normalised images (n, bands, rows, cols), float32, and channel numbers (n, rows, cols), 255 ignored."""

    images: NDArray[np.float32]
    labels: NDArray[np.uint8]
    origins: tuple[str, ...] = ()
    """File and window of each, for the message when the loss is not finite."""


def class_weights(counts: NDArray[np.int64], balance: float) -> NDArray[np.float32]:
    """Return the loss weight of each class: share ** -balance, scaled so that the mean over pixels is 1.

    >>> class_weights(np.array([80, 20]), 0.0).tolist()
    [1.0, 1.0]
    """
    share = np.maximum(counts, 1) / max(int(counts.sum()), 1)
    weights = share**-balance
    return np.asarray(weights / (weights * share).sum(), dtype=np.float32)


def seed(*numbers: int) -> None:
    """Start torch's random numbers, of the first weights and of dropout, at a place that `numbers` name."""
    torch.manual_seed(zlib.crc32(repr(numbers).encode()))


def rate_factor(step: int, steps: int) -> float:
    """Return the share of the peak learning rate at `step`: linear up, then half a cosine down."""
    warm = max(1, round(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _running_average(average: torch.Tensor, current: torch.Tensor, steps: torch.Tensor | int) -> torch.Tensor:
    """Exponential average over the last steps; over all of them while they are few."""
    if not average.is_floating_point():
        return current  # a counter
    decay = min(_AVERAGE_DECAY, (1 + float(steps)) / (10 + float(steps)))
    return torch.lerp(average, current, 1 - decay)


def dice_loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """1 - the mean over classes of 2 * overlap / (predicted + true), of probabilities, over the labelled pixels.

    Scores are (n, classes, rows, cols), labels (n, rows, cols); Milletari et al. 2016 (V-Net), with plain sums.
    """
    known = labels != NODATA
    shares = scores.softmax(dim=1).movedim(1, -1)[known]
    truth = functional.one_hot(labels[known], scores.shape[1]).to(shares.dtype)
    overlap = (shares * truth).sum(dim=0)
    return 1 - ((2 * overlap + 1) / (shares.sum(dim=0) + truth.sum(dim=0) + 1)).mean()


class Trainer:
    """Trains a network and keeps a running average of its weights, which is what is scored and saved."""

    def __init__(
        self,
        network: FcnNetwork,
        schedule: Schedule,
        weights: NDArray[np.float32],
        device: str,
        *,
        peers: Peers = ALONE,
        stage: int = 0,
    ) -> None:
        self.device = torch.device(device)
        self.network = network.to(self.device).to(memory_format=torch.channels_last)  # twice as fast on CPUs
        self.schedule = schedule
        self.stage, self.steps = stage, 0
        self.average = torch.optim.swa_utils.AveragedModel(self.network, avg_fn=_running_average, use_buffers=True)
        self._peers = peers
        self._module = peers.share(self.network)
        self._dtype = next(network.parameters()).dtype
        self._weights = torch.from_numpy(weights).to(self.device, self._dtype)
        groups = _groups(self.network, schedule, schedule.learning_rate * schedule.stage_rate**stage)
        self._peaks = [group["lr"] for group in groups]
        self._optimiser = _optimiser(groups, schedule)

    @property
    def averaged(self) -> Any:
        """The network with averaged weights."""
        return self.average.module

    def step(self, batch: Batch) -> float:
        """Learn from a batch, of which this process holds its share; the mean loss over the whole batch.

        0.0, and nothing is learnt, when no pixel is labelled. TrainingError when loss or gradient is not finite: the
        step then does not count, and the weights are those before it.
        """
        seed(self.schedule.seed, self.stage, self.steps, self._peers.rank)
        factor = 1.0 if self.schedule.rates == "fixed" else rate_factor(self.steps, self.schedule.steps)
        for group, peak in zip(self._optimiser.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        labels = torch.from_numpy(batch.labels).to(self.device).long()
        known = labels != NODATA
        total = self._peers.sum(float(self._weights[labels[known]].sum()))
        value = 0.0  # without a label there is nothing to learn; the mean over no pixel would be NaN
        if total:
            value = self._learn(batch, labels, total)
        self.steps += 1
        return value

    def _learn(self, batch: Batch, labels: torch.Tensor, total: float) -> float:
        """Take a step and return the loss. TrainingError, with the network as it was, when it is not finite."""
        self.network.train()
        self._optimiser.zero_grad(set_to_none=True)
        before = [buffer.clone() for buffer in self.network.buffers()]  # batch norm's averages, which forward changes
        value = self._peers.sum(self._gradients(batch.images, labels, total))
        norm = float(torch.nn.utils.clip_grad_norm_(self.network.parameters(), _GRADIENT_NORM))
        if not math.isfinite(value + norm):
            for buffer, old in zip(self.network.buffers(), before, strict=True):
                buffer.copy_(old)
            raise TrainingError(
                "loss-not-finite",
                "loss {loss} and gradient {gradient} at step {step} (batch of {origins}) are not finite; repair the "
                "images, or lower schedule.learning_rate and give --restart",
                loss=value,
                gradient=norm,
                step=self.steps + 1,
                origins="; ".join(batch.origins),
            )
        self._optimiser.step()
        self.average.update_parameters(self.network)
        return value

    def _gradients(self, pixels: NDArray[np.float32], labels: torch.Tensor, total: float) -> float:
        """Add up the gradients of this process's equal parts and return its share of the loss."""
        value = 0.0
        windows = len(pixels) // self.schedule.accumulate
        for start in range(0, len(pixels), windows):
            part = slice(start, start + windows)
            images = torch.from_numpy(pixels[part]).to(self.device, self._dtype, non_blocking=True)
            images = images.to(memory_format=torch.channels_last)
            with self._peers.alone_until_last(self._module, last=part.stop == len(pixels)):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.schedule.precision == "bf16"):
                    scores = self._module(images)
                loss = self._loss(scores.to(self._dtype), labels[part], total)
                (loss * self._peers.world).backward()  # the processes' gradients are averaged
            value += float(loss.detach())
        return value

    def _loss(self, scores: torch.Tensor, labels: torch.Tensor, total: float) -> torch.Tensor:
        """This part's share of the batch's loss."""
        loss = functional.cross_entropy(scores, labels, self._weights, ignore_index=NODATA, reduction="sum") / total
        known = labels != NODATA
        if self.schedule.dice and known.any():
            share = float(self._weights[labels[known]].sum()) / total
            loss = loss + self.schedule.dice * share * dice_loss(scores, labels)
        return loss

    def state(self) -> dict[str, Any]:
        """Return all that the next step depends on."""
        return {
            "stage": self.stage,
            "steps": self.steps,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self._optimiser.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.steps = state["steps"]
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self._optimiser.load_state_dict(state["optimiser"])


def _groups(network: nn.Module, schedule: Schedule, rate: float) -> list[dict[str, Any]]:
    """Parameters by their learning rate and weight decay: of the trunk or not, biases or not."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        groups.setdefault((name.startswith(("trunk.", "backbone.")), name.endswith("bias")), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": rate * (schedule.trunk_rate if trunk else 1.0) * (schedule.bias_rate if bias else 1.0),
            "weight_decay": 0.0 if bias and schedule.bias_rate != 1.0 else schedule.weight_decay,
        }
        for (trunk, bias), parameters in groups.items()
    ]


def _optimiser(groups: list[dict[str, Any]], schedule: Schedule) -> torch.optim.Optimizer:
    if schedule.optimiser == "sgd":
        return torch.optim.SGD(groups, momentum=schedule.momentum)
    return torch.optim.AdamW(groups)


def to_bytes(state: dict[str, Any]) -> bytes:
    """Return a state as a file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def from_bytes(data: bytes) -> dict[str, Any]:
    """Return the state in a file that `to_bytes` made: tensors and plain values, nothing that can run."""
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return state


STORED = {"fp32": torch.float32, "fp16": torch.float16}
"""Types that weights are stored as."""


def round_weights(network: nn.Module, kind: str) -> None:
    """Give every weight the value that it has when read again from a file that stores it as `kind`."""
    network.to(STORED[kind]).float()
