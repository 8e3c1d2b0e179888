"""Processes that train one network together, as torchrun starts them."""

import multiprocessing
import os
import pickle
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fcn_batch.pipeline.core.errors import TrainingError
from fcn_batch.pipeline.core.recipe import Schedule
from fcn_batch.pipeline.network.distributed import ALONE, Peers, joined
from fcn_batch.pipeline.network.training import Batch, Trainer
from tests.models import tiny_architecture, tiny_network
from tests.patience import PATIENCE_S


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun tells process `rank`."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    return {name: str(value) for name, value in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def trained(schedule: Schedule, batches: Sequence[Batch], peers: Peers = ALONE) -> dict[str, Any]:
    """Weights, average and losses after a step for each batch, of which peers take their share; and the error."""
    torch.set_num_threads(1)
    network = tiny_network(tiny_architecture(dropout=0.0), bands=2, classes=2, dtype=torch.float64)
    trainer = Trainer(network, schedule, np.array([0.4, 2.0], np.float32), "cpu", peers=peers)
    losses, error = [], ""
    try:
        losses += [trainer.step(shared(batch, peers)) for batch in batches]
    except TrainingError as caught:
        error = f"{caught.code} at step {caught.fields['step']}"
    state = {"network": network.state_dict(), "average": trainer.averaged.state_dict()}
    flat = {f"{part}.{name}": tensor.numpy() for part, tensors in state.items() for name, tensor in tensors.items()}
    return {"weights": flat, "losses": losses, "error": error, "sum": peers.sum(peers.rank + 1.0)}


def shared(batch: Batch, peers: Peers) -> Batch:
    """The part of a batch that one process is given."""
    own = slice(peers.rank, None, peers.world)
    return Batch(batch.images[own], batch.labels[own])


def trained_together(folder: Path, world: int, orders: Sequence[tuple[Schedule, list[Batch]]]) -> list[list[Any]]:
    """What each of `world` processes came to, for each order."""
    port, spawn = free_port(), multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_peer, args=(folder, rank, world, port, orders)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE_S)
        process.kill()
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(world)]  # noqa: S301 - our own


def _peer(folder: Path, rank: int, world: int, port: int, orders: Sequence[tuple[Schedule, list[Batch]]]) -> None:
    os.environ.update(environment(rank, world, port))
    with joined("cpu") as peers:
        found = [trained(schedule, batches, peers) for schedule, batches in orders]
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))
