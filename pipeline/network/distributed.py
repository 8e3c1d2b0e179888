"""Several processes that train one network: the one door to torch.distributed.

`torchrun --nproc-per-node N -m fcn_batch train …` starts N processes and tells each its number in the environment.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from fcn_batch.pipeline.core.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Peers:
    """The processes of a training, and which of them this one is."""

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"process {self.rank} of {self.world}")

    @property
    def leads(self) -> bool:
        """True for the one process that scores, reports and writes."""
        return self.rank == 0

    def sum(self, value: float) -> float:
        """The sum of every process's value; all of them call it at once."""
        if self.world == 1:
            return value
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        total = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.all_reduce(total)
        return float(total)

    def share(self, network: nn.Module) -> nn.Module:
        """`network`, its gradients averaged over the processes in every backward pass."""
        return network if self.world == 1 else DistributedDataParallel(network)

    def alone_until_last(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Exchange gradients in the last part of a batch only."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) and not last else nullcontext()


ALONE = Peers()


@contextmanager
def joined(device: str) -> Iterator[Peers]:
    """The processes that torchrun started, joined while the context is open; this one alone without torchrun.

    TrainingError when torchrun's environment is not whole.
    """
    if "WORLD_SIZE" not in os.environ:
        yield ALONE
        return
    try:
        peers = Peers(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    except (KeyError, ValueError) as error:
        raise TrainingError(
            "torchrun-environment",
            "WORLD_SIZE is set but RANK does not fit it ({error}); start with torchrun",
            error=error,
        ) from error
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield peers
    finally:
        distributed.destroy_process_group()


def local_device(device: str) -> str:
    """The device of this process: torchrun's processes on one machine take a GPU each."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device.startswith("cuda") and "LOCAL_RANK" in os.environ else device
