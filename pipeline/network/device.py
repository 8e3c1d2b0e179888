"""What computes: the device, its precisions, its threads and its memory. No networks here."""

import ctypes
import re
from contextlib import suppress
from pathlib import Path
from typing import Literal

import psutil
import torch

from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.pipeline.core.plan import Precision

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_FAST_ON_CPU = ("amx_bf16", "avx512_bf16")  # AVX512 alone emulates bfloat16, slower than float32
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


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
        raise OptionError(
            "device-unknown", "--device {value}: not a device; give auto, cpu, cuda, cuda:N or mps", value=wanted
        ) from None
    if device.type == "cuda":
        index = int(re.sub(r"\D", "", wanted) or 0)  # torch keeps 8 bits: its cuda:256 is cuda:0
        if index >= (found := cuda_devices()):
            raise OptionError(
                "device-missing",
                "--device {value}: this machine has {found} CUDA devices; try --device auto",
                value=wanted,
                found=found,
            )
        return f"cuda:{index}"
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise OptionError("device-missing", "--device {value}: no Apple GPU here; try --device auto", value=wanted)
    if device.type not in ("cpu", "mps"):
        raise OptionError(
            "device-unsupported", "--device {value}: not supported; give auto, cpu, cuda, cuda:N or mps", value=wanted
        )
    return device.type


def torch_kind(device: str) -> Literal["cpu", "cuda", "mps"]:
    """The kind of a device that `choose_device` gave."""
    return "cuda" if device.startswith("cuda") else "mps" if device == "mps" else "cpu"


def torch_version() -> str:
    """The version of torch: another one may round otherwise."""
    return str(torch.__version__)


def cudnn_version(device: str) -> int | None:
    """The version of cuDNN, such as 91002; None for other devices than NVIDIA's GPUs."""
    return torch.backends.cudnn.version() if device.startswith("cuda") else None


def cuda_devices() -> int:
    """How many CUDA devices this machine shows."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def set_threads(count: int) -> None:
    """Let the network use `count` CPU threads in this process."""
    torch.set_num_threads(count)


def thread_count() -> int:
    """How many CPU threads a network takes in this process."""
    return torch.get_num_threads()


def describe_device(device: str) -> str:
    """What decides how a device rounds: the CPU's instruction set, or the GPU's name."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    if device == "mps":
        return device
    fast = [name for name in _FAST_ON_CPU if torch.cpu.get_capabilities().get(name)]
    return " ".join([torch.backends.cpu.get_cpu_capability(), *fast[:1]])


def fast_precision(device: str) -> Precision:
    """bf16 where the hardware multiplies it, else fp32."""
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device == "cpu" and has_fast_bf16() else "fp32"


def has_fast_bf16() -> bool:
    """True when the CPU multiplies bfloat16 itself: AMX or AVX512-BF16; False where oneDNN is told to do without."""
    return multiplies_bf16() and any(torch.cpu.get_capabilities().get(name) for name in _FAST_ON_CPU)


def check_precision(precision: Precision, device: str) -> None:
    """OptionError when `device` cannot compute in `precision`."""
    why = None
    if device == "cpu" and precision == "fp16":
        why = "for GPUs; give fp32 or bf16 on the CPU"
    elif device == "cpu" and precision == "bf16" and not multiplies_bf16():
        why = "this CPU has no instructions for it; give fp32"
    elif device == "mps" and precision != "fp32":
        why = "not on an Apple GPU; give fp32"
    if why is not None:
        raise OptionError("precision-unsupported", "--precision {value}: {why}", value=precision, why=why)


def multiplies_bf16() -> bool:
    """True when oneDNN can compute in bfloat16, fast or not, with those of this CPU's instructions that it may use."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - public under no other name


def free_memory(device: str) -> int:
    """Bytes that are free on the device: of the machine and of the limit set to this process's group."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):  # no cgroup, or no limit ("max")
        free = min(free, int(_CGROUP_LIMIT.read_text()) - psutil.Process().memory_info().rss)
    return max(free, 0)


def keep_pages() -> None:
    """Tell the C library to keep freed memory for the next strip instead of giving it back to the system.

    Fresh pages must be cleared by the kernel: FCN-8s took 2.6 s for 1024² pixels with them, 2.0 s without (2 CPUs).
    Other C libraries than glibc have no such switch; there it is only slower.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_ARENA_MAX, 1)  # the arenas of single threads cannot hold a strip, and would map it anew each time


def is_out_of_memory(error: BaseException) -> bool:
    """True for torch's two ways to say that memory ran out, and for Python's."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
