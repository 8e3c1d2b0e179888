"""`fcn-batch doctor`: what this machine and installation have, what a run here would use, and what is missing."""

import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import fcn_batch
from fcn_batch.pipeline.core.errors import FcnBatchError, OutputError
from fcn_batch.pipeline.network.device import (
    choose_device,
    cuda_devices,
    describe_device,
    free_memory,
    has_fast_bf16,
    thread_count,
    torch_version,
)
from fcn_batch.pipeline.raster.gdal import driver_names, gdal_version, skipped_drivers
from fcn_batch.workflows.learning.models import embedded
from fcn_batch.workflows.outputs.disk import free_room, size_text
from fcn_batch.workflows.plan import choose_precision, choose_threads, memory_budget
from fcn_batch.workflows.processes.topology import available_cpus

DRIVERS = ("GTiff", "COG", "JPEG", "JP2OpenJPEG", "HFA", "ENVI", "VRT", "PNG")
_OF_OUTPUTS = ("GTiff", "COG")
LIBRARIES = ("dask", "numpy", "pyproj", "rasterio", "torchvision", "zarr")
EXTRAS = {
    "cuda": ("dask-cuda",),
    "jobqueue": ("cryptography", "dask-jobqueue"),
    "remote": ("obstore",),
    "slides": ("imagecodecs", "openslide-bin", "openslide-python", "tiffslide"),
    "vectors": ("pyarrow", "pyogrio", "shapely"),
    "xarray": ("xarray",),
}
"""What users may install beside, and what it consists of; as pyproject.toml has it."""
_ENVIRON = re.compile(
    r"GDAL_.*|CPL_.*|VSI_.*|PROJ_.*|AWS_ENDPOINT_URL.*|DASK_.*|CUDA_VISIBLE_DEVICES|PYTORCH_.*|MALLOC_.*|"
    r"(OMP|MKL|OPENBLAS)_NUM_THREADS|(ONEDNN|DNNL)_.*|TMPDIR|NO_COLOR"
)
_SECRET = re.compile(r"PWD|PASS|HEADER|BEARER|COOKIE|AUTH|KEY|TOKEN|SECRET|PROXY")
_SAMPLE = 64 * 2**20
"""Bytes that are written to measure a disk."""
_PIECE = 8 * 2**20
_LITTLE_MEMORY, _LITTLE_ROOM, _SLOW = 2 * 2**30, 2**30, 10e6


@dataclass(frozen=True, slots=True)
class Gpu:
    """One CUDA device."""

    name: str
    free_memory: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What `segment` takes when nothing is said."""

    device: str
    threads: int
    memory: int
    """Bytes, for one process."""
    precision: dict[str, str]
    """Of each embedded model."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A place for outputs."""

    path: str
    free: int | None = None
    """Bytes; None, as below, when it is no folder."""
    write_speed: float | None = None
    """Bytes a second, until they are on the disk; None when nothing can be written."""
    trouble: str | None = None
    """What the system said."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, what to do about it, and the exit code: 0 when runs can do without."""

    what: str
    remedy: str
    code: int = 0


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that was found."""

    fcn_batch: str
    python: str
    platform: str
    cpus: int
    """That this process may use, threads of cores counted."""
    cores: int
    """That it can keep busy."""
    free_memory: int
    """Bytes."""
    torch: str
    torch_threads: int
    instructions: str
    """Of the CPU, as torch names them."""
    fast_bf16: bool
    """True when the CPU multiplies bfloat16 itself (AMX, AVX512-BF16)."""
    cuda: tuple[Gpu, ...]
    chosen: Choice
    gdal: str
    drivers: dict[str, bool]
    libraries: dict[str, str | None]
    """Versions; None: missing."""
    extras: dict[str, tuple[str, ...]]
    """Of each extra the packages that are missing."""
    folder: Folder
    environment: dict[str, str]
    problems: tuple[Problem, ...] = ()

    def to_json(self) -> str:
        """All fields, for programs; `ok` is False where no run can end well."""
        return json.dumps({"ok": self.error() is None, **asdict(self)}, indent=2)

    def error(self) -> FcnBatchError | None:
        """The first problem that no run can do without, as an error."""
        grave = next((one for one in self.problems if one.code), None)
        return (
            None
            if grave is None
            else OutputError("installation-unfit", "{what}; {remedy}", what=grave.what, remedy=grave.remedy)
        )

    def describe(self) -> list[tuple[str, str]]:
        """What `fcn-batch doctor` prints: label and value, one pair a line."""
        return [
            ("fcn-batch", self.fcn_batch),
            ("python", self.python),
            ("platform", self.platform),
            ("cores", f"{self.cores} ({self.cpus} CPUs)"),
            ("memory", f"{size_text(self.free_memory)} free"),
            ("torch", f"{self.torch}, {self.torch_threads} threads"),
            ("cpu", f"{self.instructions}; {'fast' if self.fast_bf16 else 'no fast'} bf16 (AMX or AVX512-BF16)"),
            *(("cuda", f"{one.name}, {size_text(one.free_memory)} free") for one in self.cuda),
            *([] if self.cuda else [("cuda", "none")]),
            *self._describe_choice(),
            ("gdal", self.gdal),
            ("drivers", ", ".join(n if there else f"{n} MISSING" for n, there in self.drivers.items())),
            *((name, found or "MISSING") for name, found in self.libraries.items()),
            *(("extra", f"{name}: {_told_extra(name, missing)}") for name, missing in self.extras.items()),
            *self._describe_folder(),
            *(("environment", f"{name}={value}") for name, value in self.environment.items()),
            *(("problem" if one.code else "note", f"{one.what}; {one.remedy}") for one in self.problems),
        ]

    def _describe_choice(self) -> Iterator[tuple[str, str]]:
        chosen, models = self.chosen, self.chosen.precision
        for kind in sorted(set(models.values())):
            names = ", ".join(name for name, one in models.items() if one == kind)
            yield "precision", f"segment would take {kind} for {names}"
        yield "device", f"segment would take {chosen.device}, {chosen.threads} threads, {size_text(chosen.memory)}"

    def _describe_folder(self) -> Iterator[tuple[str, str]]:
        if self.folder.free is not None:
            yield "folder", f"{self.folder.path}: {size_text(self.folder.free)} free"
        if self.folder.write_speed is not None:
            yield "disk", f"{self.folder.write_speed / 1e6:,.0f} MB/s written"


def examine(folder: Path, environ: Mapping[str, str]) -> Findings:
    """Look at this machine, this installation and `folder`; never fails for what it finds."""
    device, drivers = choose_device("auto"), driver_names()
    facts = Findings(
        fcn_batch=fcn_batch.__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        cores=available_cpus(),
        free_memory=free_memory("cpu"),
        torch=torch_version(),
        torch_threads=thread_count(),
        instructions=describe_device("cpu"),
        fast_bf16=has_fast_bf16(),
        cuda=tuple(Gpu(describe_device(one), free_memory(one)) for one in map("cuda:{}".format, range(cuda_devices()))),
        chosen=Choice(
            device,
            choose_threads(None, device, 1),
            memory_budget(device, 1),
            {one.card.name: choose_precision(None, device, one.card) for one in embedded()},
        ),
        gdal=gdal_version(),
        drivers={name: name in drivers for name in DRIVERS},
        libraries={name: _version(name) for name in LIBRARIES},
        extras={name: tuple(one for one in parts if _version(one) is None) for name, parts in EXTRAS.items()},
        folder=measure(folder),
        environment=_environment(environ),
    )
    return replace(facts, problems=tuple(_amiss(facts)))


def measure(folder: Path) -> Folder:
    """Write to a nameless file in `folder`: nothing of it stays, whatever happens."""
    path = str(folder.absolute())
    if not folder.is_dir():
        return Folder(path, trouble="is no folder" if folder.exists() else "does not exist")
    data, free = os.urandom(_PIECE), free_room(folder)  # what cannot be compressed
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            began = time.perf_counter()
            for _ in range(_SAMPLE // _PIECE):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
            return Folder(path, free, _SAMPLE / (time.perf_counter() - began))
    except OSError as error:
        return Folder(path, free, trouble=f"cannot be written: {error.strerror or error}")


def _amiss(found: Findings) -> Iterator[Problem]:
    """What is wrong, the worst first."""
    grave, folder = OutputError.exit_code, found.folder
    if folder.trouble is not None:
        yield Problem(f"{folder.path}: {folder.trouble}", "create it, or choose another folder with --folder", grave)
    skipped = found.environment.get("GDAL_SKIP", "").split()
    for name in [name for name, there in found.drivers.items() if not there]:
        remedy = "take it out of GDAL_SKIP" if name in skipped else "install rasterio's own wheel: pip install rasterio"
        use = "no map can be written" if name in _OF_OUTPUTS else "such inputs cannot be read"
        yield Problem(f"GDAL has no driver {name}, {use}", remedy, grave if name in _OF_OUTPUTS else 0)
    for name in [name for name, there in found.libraries.items() if there is None]:
        yield Problem(f"{name} is not installed", "install fcn-batch again: pip install fcn-batch")
    if not found.chosen.precision:
        yield Problem("no model ships with this installation", "install fcn-batch again, or give --model FILE")
    if (
        not found.cuda
        and Path("/proc/driver/nvidia/version").exists()
        and "CUDA_VISIBLE_DEVICES" not in found.environment
    ):
        yield Problem("there is an NVIDIA driver, but torch sees no GPU", "install torch for CUDA: pytorch.org")
    if found.free_memory < _LITTLE_MEMORY:
        yield Problem(f"only {size_text(found.free_memory)} of memory free", "close programs, or give a small --tile")
    if folder.free is not None and folder.free < _LITTLE_ROOM:
        yield Problem(f"{folder.path}: only {size_text(folder.free)} free", "make room, or choose another folder")
    if folder.write_speed is not None and folder.write_speed < _SLOW:
        speed = f"{folder.write_speed / 1e6:.1f} MB/s"
        yield Problem(f"{folder.path}: writes only {speed}", "let runs write to a faster disk (-o DIR)")


def _told_extra(name: str, missing: tuple[str, ...]) -> str:
    if not missing:
        return "installed"
    return f"missing ({', '.join(missing)}): pip install 'fcn-batch[{name}]'"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that matter and are set; of what may hold a password only that it is set."""
    found = {name: value for name, value in sorted(environ.items()) if _ENVIRON.fullmatch(name)}
    if "GDAL_SKIP" in found:
        found["GDAL_SKIP"] = " ".join(skipped_drivers(found["GDAL_SKIP"]))  # without what fcn-batch itself adds
    return {name: "(set)" if _SECRET.search(name) else value for name, value in found.items() if value}
