"""Run a network on arrays: numpy in, numpy out. No rasters, no stores."""

import os
import re
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fcn_batch.pipeline.errors import OptionError
from fcn_batch.pipeline.fcn import Fcn


class Predictor(Protocol):
    """What a run needs of a network."""

    def scores(self, image: NDArray[np.floating]) -> NDArray[np.floating]:
        """Scores (classes, rows, cols) of a normalised image (bands, rows, cols) of any size."""

    def channels(self, image: NDArray[np.floating], core: tuple[slice, slice]) -> NDArray[np.uint8]:
        """Number of the best score channel over `core` of the image: (rows, cols), uint8."""


class TorchPredictor:
    """An `Fcn` on one device. Images are padded at right and bottom with 0 to a multiple of the stride."""

    def __init__(self, network: Fcn, device: str = "cpu") -> None:
        self.device = torch.device(device)
        if self.device.type == "cuda":
            # fp32 means fp32, and the same bytes each time
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        # channels last: the forward pass took half the time on the CPU measured (torch 2.15, oneDNN)
        self.network = network.eval().to(self.device).to(memory_format=torch.channels_last)
        self.stride = network.stride
        self.dtype = next(network.parameters()).dtype

    def scores(self, image: NDArray[np.floating]) -> NDArray[np.floating]:
        """Scores (classes, rows, cols) of a normalised image (bands, rows, cols) of any size."""
        out: NDArray[np.floating] = self._forward(image).cpu().numpy()
        return out

    def channels(self, image: NDArray[np.floating], core: tuple[slice, slice]) -> NDArray[np.uint8]:
        """Number of the best score channel over `core` of the image: (rows, cols), uint8.

        Of equal scores the first channel wins, on every device.
        """
        best = self._forward(image)[:, core[0], core[1]].argmax(dim=0)
        out: NDArray[np.uint8] = best.to(torch.uint8).cpu().numpy()
        return out

    @torch.inference_mode()
    def _forward(self, image: NDArray[np.floating]) -> torch.Tensor:
        rows, cols = image.shape[-2:]
        x = torch.from_numpy(image).to(self.device, self.dtype)
        x = functional.pad(x, (0, -cols % self.stride, 0, -rows % self.stride))
        x = x[None].contiguous(memory_format=torch.channels_last)
        scores: torch.Tensor = self.network(x)[0, :, :rows, :cols]
        return scores


def choose_device(wanted: str) -> str:
    """The torch device for `--device`: auto takes CUDA, then Apple's MPS, then the CPU.

    OptionError when the device is not there or not known.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return "cuda:0"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise OptionError(f"--device {wanted}: not a device; give auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda":
        index = int(re.sub(r"\D", "", wanted) or 0)  # torch keeps 8 bits: its cuda:256 is cuda:0
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if index >= found:
            raise OptionError(f"--device {wanted}: this machine shows {found} CUDA devices; try --device auto")
        return f"cuda:{index}"
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise OptionError(f"--device {wanted}: no Apple GPU here; try --device auto")
    if device.type not in ("cpu", "mps"):
        raise OptionError(f"--device {wanted}: not supported; give auto, cpu, cuda, cuda:N or mps")
    return device.type


def torch_version() -> str:
    """The version of torch: another one may round otherwise."""
    return str(torch.__version__)


def available_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(count: int) -> None:
    """Let the network use `count` CPU threads in this process."""
    torch.set_num_threads(count)


def describe_device(device: str) -> str:
    """What decides how a device rounds: the CPU's instruction set, or the GPU's name."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return device if device == "mps" else torch.backends.cpu.get_cpu_capability()
