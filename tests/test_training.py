"""The training loop: what a step does, that its parts do not show, and that it stops before it does harm."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fcn_batch.pipeline.core.recipe import Schedule
from fcn_batch.pipeline.network.training import (
    Batch,
    Trainer,
    class_weights,
    dice_loss,
    from_bytes,
    rate_factor,
    round_weights,
    to_bytes,
)
from tests.errors import refuses
from tests.models import tiny_architecture, tiny_network

State = dict[str, torch.Tensor]


class Small(nn.Module):
    """A network with a trunk, a batch norm and a score layer."""

    def __init__(self, *, norm: bool = False) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4) if norm else nn.Tanh())
        self.score = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores (n, 2, rows, cols)."""
        scores: torch.Tensor = self.score(self.trunk(x))
        return scores


def _small(**options: bool) -> Small:
    torch.manual_seed(1)
    return Small(**options).double()


def _schedule(**changes: Any) -> Schedule:
    return Schedule(**{"steps": 3, "batch": 4, "learning_rate": 0.01, **changes})


def _trainer(network: Any, weights: tuple[float, ...] = (1.0, 1.0), stage: int = 0, **changes: Any) -> Trainer:
    return Trainer(network, _schedule(**changes), np.array(weights, np.float32), "cpu", stage=stage)


def _batches(count: int, windows: int = 4, side: int = 8, seed: int = 0) -> list[Batch]:
    """Noise, labelled unevenly: the first window hardly, the last one wholly."""
    rng = np.random.default_rng(seed)
    batches = []
    for _ in range(count):
        labels = rng.integers(0, 2, (windows, side, side)).astype(np.uint8)
        for number in range(windows - 1):
            labels[number][rng.random((side, side)) < 0.9 - 0.2 * number] = 255
        images = rng.normal(size=(windows, 2, side, side)).astype(np.float32)
        batches.append(Batch(images, labels, tuple(f"window {n}" for n in range(windows))))
    return batches


def _copied(network: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _furthest(one: State, other: State) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


# rates and weights


def test_the_rate_rises_then_falls() -> None:
    rates = [rate_factor(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 50)
    assert rates[49] == rates[50] == max(rates) == 1
    assert all(a < b for a, b in pairwise(rates[:50]))
    assert all(a > b for a, b in pairwise(rates[50:]))
    assert rates[525] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-4
    assert rate_factor(1000, 1000) == pytest.approx(0)
    assert rate_factor(0, 1) == 1


@pytest.mark.parametrize("balance", [0.0, 0.3, 1.0])
def test_class_weights(balance: float) -> None:
    counts = np.array([900, 90, 10])
    weights = class_weights(counts, balance)
    assert weights.dtype == np.float32
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(10**balance)
    assert weights[2] / weights[1] == pytest.approx(9**balance)
    assert np.isfinite(class_weights(np.array([0, 5]), balance)).all()


# one step, by hand


@pytest.mark.parametrize("rates", ["fixed", "cosine"])
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_steps_are_those_of_the_optimiser(optimiser: str, rates: str) -> None:
    """Biases at twice the rate and without decay, weighted mean over labelled pixels, clipped gradient."""
    changes = {"optimiser": optimiser, "momentum": 0.9, "weight_decay": 0.1, "bias_rate": 2.0, "rates": rates}
    changes |= {"trunk_rate": 0.25, "stage_rate": 0.5, "learning_rate": 0.4}
    network, expected = _small(), _small()
    trainer = _trainer(network, (0.5, 3.0), stage=2, **changes)
    parameters = [p for layer in (expected.trunk[0], expected.score) for p in (layer.weight, layer.bias)]
    peaks = [0.4 * 0.5**2 * factor for factor in (0.25, 0.25 * 2, 1, 2)]
    groups = [{"params": [p], "weight_decay": d} for p, d in zip(parameters, [0.1, 0.0] * 2, strict=True)]
    optimisers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": partial(torch.optim.SGD, momentum=0.9, lr=0),
        "adamw": torch.optim.AdamW,
    }
    other = optimisers[optimiser](groups)
    weights = torch.tensor([0.5, 3.0], dtype=torch.float64)
    for step, batch in enumerate(_batches(3)):
        images, labels = torch.from_numpy(batch.images).double(), torch.from_numpy(batch.labels).long()
        other.zero_grad()
        loss = functional.cross_entropy(expected(images), labels, weights, ignore_index=255)
        loss.backward()
        nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
        for group, peak in zip(other.param_groups, peaks, strict=True):
            group["lr"] = peak * (rate_factor(step, 3) if rates == "cosine" else 1.0)
        other.step()
        assert trainer.step(batch) == pytest.approx(float(loss.detach()), rel=1e-12)
    assert _furthest(_copied(network), _copied(expected)) < 1e-12
    assert _furthest(_copied(network), _copied(_small())) > 1e-3


def test_dice_against_sums_over_pixels_and_added_to_the_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, 3, 4, 5))
    labels = rng.choice([0, 1, 2, 255], (2, 4, 5))
    overlap, sizes = np.zeros(3), np.zeros(3)
    for n, row, col in np.argwhere(labels != 255):
        shares = np.exp(scores[n, :, row, col]) / np.exp(scores[n, :, row, col]).sum()
        truth = np.arange(3) == labels[n, row, col]
        overlap += shares * truth
        sizes += shares + truth
    found = dice_loss(torch.from_numpy(scores), torch.from_numpy(labels).long())
    assert float(found) == pytest.approx(1 - np.mean((2 * overlap + 1) / (sizes + 1)), rel=1e-12)
    (batch,) = _batches(1)
    images, truth = torch.from_numpy(batch.images).double(), torch.from_numpy(batch.labels).long()
    own = _small()(images)
    expected = functional.cross_entropy(own, truth, ignore_index=255) + 0.7 * dice_loss(own, truth)
    trainer = _trainer(_small(), dice=0.7, weight_decay=0.2)
    assert trainer.step(batch) == pytest.approx(float(expected.detach()), rel=1e-12)
    decays = {group["weight_decay"] for group in trainer.state()["optimiser"]["param_groups"]}
    assert decays == {0.2}, "without a rate of their own biases decay too"


# parts


def test_a_batch_in_parts_is_the_whole_batch() -> None:
    """Also where the parts hold unlike numbers of labelled pixels, or none."""
    batches = _batches(2, side=32)
    batches[1].labels[:2] = 255
    found, losses = [], []
    for parts in (1, 4):
        network = tiny_network(tiny_architecture(dropout=0.0), bands=2, classes=2, dtype=torch.float64)
        trainer = _trainer(network, (0.4, 2.0), accumulate=parts, optimiser="sgd", momentum=0.9, learning_rate=0.1)
        losses.append([trainer.step(batch) for batch in batches])
        found.append(_copied(network) | {f"average.{k}": v for k, v in _copied(trainer.averaged).items()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert _furthest(*found) < 1e-12


# harm


class Root(Small):
    """A network whose gradient at its start is infinite while its scores are not."""

    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores (n, 2, rows, cols)."""
        return super().forward(x) * (1 + self.power.sqrt())


@pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_step(*, gradient: bool) -> None:
    network = Root().double() if gradient else _small(norm=True)
    trainer = _trainer(network, steps=9)
    batches = _batches(3)
    if not gradient:
        for batch in batches[:2]:
            trainer.step(batch)
        batches[2].images[1, 0, 3, 3] = math.nan
    before, average, steps = _copied(network), _copied(trainer.averaged), trainer.steps
    origins = "window 0; window 1; window 2; window 3"
    with refuses("loss-not-finite", step=steps + 1, origins=origins):
        trainer.step(batches[2])
    assert trainer.steps == steps, "the step does not count"
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} has changed"
    assert all(torch.equal(tensor, average[name]) for name, tensor in trainer.averaged.state_dict().items())


def test_a_batch_without_labels_teaches_nothing() -> None:
    network = _small(norm=True)
    trainer = _trainer(network)
    before = _copied(network)
    (batch,) = _batches(1)
    batch.labels[:] = 255
    assert trainer.step(batch) == 0.0
    assert trainer.steps == 1, "it counts: a resumed training must not meet it again"
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


# the average, and going on


def test_the_average_is_one_of_all_weights() -> None:
    """By hand: the n-th step moves it by 1 - (n + 1) / (n + 10), and counters are copied."""
    network = _small(norm=True)
    trainer = _trainer(network)
    expected: State = {}
    for number, batch in enumerate(_batches(4)):
        trainer.step(batch)
        now = _copied(network)
        share = 1 - (number + 1) / (number + 10) if expected else 1.0
        for name, tensor in now.items():
            old = expected.get(name, tensor)
            expected[name] = old + share * (tensor - old) if tensor.is_floating_point() else tensor
    assert _furthest(_copied(trainer.averaged), expected) < 1e-12


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_a_restored_trainer_goes_on_bit_by_bit(optimiser: str) -> None:
    def made() -> Trainer:
        network = tiny_network(tiny_architecture(dropout=0.5), bands=2, classes=2)
        return _trainer(network, optimiser=optimiser, momentum=0.9, steps=3)

    batches = _batches(3, side=32)
    whole = made()
    losses = [whole.step(batch) for batch in batches]
    first, second = made(), made()
    assert [first.step(batch) for batch in batches[:1]] == losses[:1]
    torch.rand(7)  # whatever else draws numbers in between
    second.restore(from_bytes(to_bytes(first.state())))
    assert second.steps == 1
    assert [second.step(batch) for batch in batches[1:]] == losses[1:]
    assert to_bytes(second.state()) == to_bytes(whole.state())


def test_dropout_is_another_one_at_each_step_and_in_each_stage() -> None:
    (batch,) = _batches(1, side=32)
    losses = set()
    for stage in (0, 1):
        network = tiny_network(tiny_architecture(dropout=0.5), bands=2, classes=2)
        trainer = _trainer(network, stage=stage, learning_rate=1e-12)
        losses |= {trainer.step(batch) for _ in range(2)}
    assert len(losses) == 4


# what is stored


def test_weights_are_rounded_as_they_are_stored() -> None:
    network = _small().float()
    before = _copied(network)
    round_weights(network, "fp32")
    assert _furthest(before, _copied(network)) == 0
    round_weights(network, "fp16")
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert np.array_equal(tensor.numpy(), before[name].numpy().astype(np.float16).astype(np.float32))
    assert _furthest(before, _copied(network)) > 0


def test_bfloat16_is_used_for_activations_only() -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        network = tiny_network(tiny_architecture(dropout=0.0), bands=2, classes=2)
        trainer = _trainer(network, precision=precision)
        losses[precision] = trainer.step(_batches(1, side=32)[0])
        assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert losses["fp32"] != losses["bf16"]
    assert losses["fp32"] == pytest.approx(losses["bf16"], rel=0.05)
