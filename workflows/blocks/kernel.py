"""What computes here: device, versions and settings that decide the last bits of a score."""

import os
from importlib.metadata import version

import numpy as np

import fcn_batch
from fcn_batch.pipeline.core.plan import Kernel, Precision
from fcn_batch.pipeline.network.device import cudnn_version, describe_device, torch_kind, torch_version
from fcn_batch.pipeline.raster.gdal import gdal_version

_SWITCHES = (
    "ONEDNN_DEFAULT_FPMATH_MODE",  # float32 convolutions may be done in bfloat16
    "DNNL_DEFAULT_FPMATH_MODE",  # the same by oneDNN's older name, as below
    "ONEDNN_MAX_CPU_ISA",  # other instructions, other order of sums
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "NPY_DISABLE_CPU_FEATURES",
    "NVIDIA_TF32_OVERRIDE",  # 10 bits of 23 in the factors, or not
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG",
    "TORCH_CUDNN_USE_HEURISTIC_MODE_B",
    "PYTORCH_MPS_FAST_MATH",
)
"""Variables of the environment that the libraries under torch and numpy read; ATEN's shows in the instructions."""


def kernel_here(device: str, precision: Precision, threads: int) -> Kernel:
    """The kernel of a run in this process: on `device`, as `choose_device` gives it, with so many CPU threads.

    That images are laid out with their channels last is a matter of this program's version.
    """
    return Kernel(
        device=torch_kind(device),
        precision=precision,
        torch=torch_version(),
        gdal=gdal_version(),
        fcn_batch=fcn_batch.__version__,
        threads=threads,
        instructions=describe_device(device),
        cudnn=cudnn_version(device),
        torchvision=version("torchvision"),
        rasterio=version("rasterio"),
        numpy=np.__version__,
        switches=tuple(f"{name}={os.environ[name]}" for name in sorted(_SWITCHES) if os.environ.get(name)),
    )
