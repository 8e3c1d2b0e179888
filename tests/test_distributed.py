"""Several processes train as one."""

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fcn_batch.pipeline.core.recipe import Schedule
from fcn_batch.pipeline.network.distributed import ALONE, Peers, joined, local_device
from fcn_batch.pipeline.network.training import Batch
from tests.errors import refuses
from tests.peers import trained, trained_together

SGD = Schedule(steps=3, batch=4, learning_rate=0.1, optimiser="sgd", momentum=0.9, bias_rate=2.0)


def _batches(count: int) -> list[Batch]:
    """Noise in windows with few labels and with many; in the last batch one process of two has none."""
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(count):
        labels = rng.integers(0, 2, (4, 32, 32)).astype(np.uint8)
        labels[0, :30] = labels[3, :, 5:] = 255
        batches.append(Batch(rng.normal(size=(4, 2, 32, 32)).astype(np.float32), labels))
    batches[-1].labels[1::2] = 255
    return batches


def _spoilt() -> list[Batch]:
    """Two batches, and a pixel that is no number in the second, which only process 1 sees."""
    batches = _batches(2)
    batches[1].labels[:] = 1
    batches[1].images[1, 0, 9, 9] = math.nan
    return batches


def _furthest(one: dict[str, NDArray[np.float64]], other: dict[str, NDArray[np.float64]]) -> float:
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    """In double precision to 1e-12, also in parts; a loss that is not finite in one of them stops both."""
    in_parts = SGD.model_copy(update={"accumulate": 2})
    orders = [(SGD, _batches(3)), (in_parts, _batches(3)), (SGD, _spoilt())]
    peers = trained_together(tmp_path, 2, orders)
    whole = trained(*orders[0])
    assert whole["losses"][0] > 0
    for found in peers:
        for one in found[:2]:
            assert one["error"] == ""
            assert one["sum"] == 3.0
            assert one["losses"] == pytest.approx(whole["losses"], rel=1e-12)
            assert _furthest(one["weights"], whole["weights"]) < 1e-12
    once = trained(SGD, _spoilt()[:1])
    assert _furthest(once["weights"], whole["weights"]) > 1e-4
    for found in peers:
        assert found[2]["error"] == "loss-not-finite at step 2"
        assert _furthest(found[2]["weights"], once["weights"]) < 1e-12, "the step was taken"


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined("cpu") as peers:
        assert peers is ALONE
    assert ALONE.sum(2.5) == 2.5
    assert [Peers(rank, 3).leads for rank in range(3)] == [True, False, False]


@pytest.mark.parametrize(("rank", "world"), [(None, "2"), ("2", "2"), ("-1", "2"), ("0", "two")])
def test_half_of_torchruns_environment(monkeypatch: pytest.MonkeyPatch, rank: str | None, world: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    with refuses("torchrun-environment"), joined("cpu"):
        pass


def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert (local_device("cpu"), local_device("cuda")) == ("cpu", "cuda")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (local_device("cpu"), local_device("cuda")) == ("cpu", "cuda:1")
