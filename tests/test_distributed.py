"""Several processes train as one: what torchrun tells them. (test_train_command.py starts two.)"""

import pytest

from fcn_batch.pipeline.network.distributed import ALONE, Peers, joined, local_device
from tests.errors import refuses


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
