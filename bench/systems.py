"""The systems and the plan of a run: which system works on which raster, as command lines. No heavy imports."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from bench.records import OURS

WORKER = (sys.executable, "-m", "bench.worker")
SCENES = (sys.executable, "-m", "bench.scenes")
_HALOS = 448
"""Twice the halo of FCN-8s: with this overlap every pixel is once far enough from a window's edge."""

_PRECISIONS = ("fp32", "bf16")
VGG, NARROW, RESNET, LAND = "FCN-8s VGG16", "FCN-8s narrow", "fcn_resnet50", "landcover-world"
MODELS = {
    VGG: "full width, random weights, 21 classes",
    NARROW: "a sixteenth of the width, random weights, 21 classes",
    RESNET: "torchvision, random weights, 21 classes",
    LAND: "trained, comes with fcn-batch, 6 classes",
}


@dataclass(frozen=True, slots=True)
class System:
    """One way to make a class map of a raster."""

    name: str
    options: tuple[str, ...]
    """Of `fcn-batch segment`, or the worker's job and its options; GeoDeep has none."""

    @property
    def ours(self) -> bool:
        """Through our own command line."""
        return self.name.startswith(OURS)

    def command(self, raster: Path, model: str, output: Path, precision: str, device: str) -> list[str]:
        """The command line that writes the map of `raster` below the folder `output`."""
        if self.ours:
            fixed = ["segment", str(raster), "--model", model, "--output", str(output), "--quiet"]
            chosen = ["--precision", precision, "--device", device, *self.options]
            return [sys.executable, "-m", "fcn_batch", *fixed, *chosen]
        files = [str(raster), model, str(output / "map.tif")]
        if self == GEODEEP:
            return [sys.executable, "-m", "bench.onnx_job", *files]
        job, *options = self.options
        return [*WORKER, job, *files, "--precision", precision, *options]

    def made(self, raster: Path, output: Path) -> Path:
        """The class map that the command wrote."""
        return output / (f"{raster.stem}.classes.tif" if self.ours else "map.tif")


DEFAULT = System(OURS, ())
TILES = System(f"{OURS} --tile 1024", ("--tile", "1024"))
BLENDED = System(f"{OURS} --overlap 128", ("--overlap", "128"))
MONAI = System("MONAI 512, 25 %", ("monai", "--roi", "512", "--overlap", "128"))
MONAI_BEST = System("MONAI, fewest windows", ("monai", "--roi", "0", "--overlap", str(_HALOS)))
TORCHGEO = System("torchgeo 512, 25 %", ("torchgeo", "--roi", "512", "--overlap", "128"))
GEODEEP = System("GeoDeep 512, 25 %", ())
WHOLE = System("whole image at once", ("whole",))
PEERS = (MONAI, MONAI_BEST, TORCHGEO, GEODEEP)
NOTES = {
    DEFAULT.name: "the default: whole rows in a stream, exact",
    TILES.name: "exact tiles with a halo",
    BLENDED.name: "tiles that overlap by 128 pixels, blended: approximate",
    MONAI.name: "`sliding_window_inference`, gaussian, batches of 4",
    MONAI_BEST.name: f"the same with 2 x 2 windows that overlap by {_HALOS} pixels",
    TORCHGEO.name: "`GridGeoSampler`, batches of 4, margins cut off, pasted",
    WHOLE.name: "one plain forward of everything; its fp32 is what all are compared with",
    GEODEEP.name: "ONNX of the same network; filters its maps with a median of 5 pixels",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One run to measure."""

    section: str
    system: System
    model: str
    precision: str
    size: tuple[int, int]
    """Rows and columns."""
    device: str = "cpu"

    @property
    def land(self) -> bool:
        """On the real image: only there labels mean anything."""
        return self.section == "labels"


@dataclass(frozen=True, slots=True)
class Pass:
    """One plain forward to measure, over a square of noise."""

    model: str
    precision: str
    side: int
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Everything that one run of the benchmark measures."""

    passes: tuple[Pass, ...]
    cases: tuple[Case, ...]
    repeats: int
    rate_side: int
    widths: dict[str, float] = field(default_factory=lambda: {VGG: 1.0, NARROW: 1 / 16})
    """Of the FCN-8s models, as a share of VGG16's."""


def schedule(*, quick: bool, gpu: bool) -> Schedule:
    """The whole run, or a trial of a minute or two with small rasters and narrow models."""
    if quick:
        passes = [Pass(VGG, "fp32", 512), Pass(VGG, "bf16", 512), Pass(LAND, "fp32", 256)]
        cases = [*_speed(768, 1024), *_memory((DEFAULT, MONAI), (512, 1024)), *_labels((611, 707))]
        cases += [Case("speed", DEFAULT, RESNET, "fp32", (256, 256))]
        return Schedule(tuple(passes), tuple(cases), 1, 512, {VGG: 1 / 8, NARROW: 1 / 16})
    passes = [Pass(VGG, p, side) for side in (1024, 2048) for p in _PRECISIONS]
    passes += [Pass(model, p, 1024) for model in (RESNET, LAND) for p in _PRECISIONS]
    passes += [Pass(NARROW, "fp32", 2048)]
    cases = [*_speed(3072, 8192), *(Case("speed", DEFAULT, RESNET, p, (2048, 2048)) for p in _PRECISIONS)]
    cases += _memory((DEFAULT, TILES, BLENDED, WHOLE, *PEERS), (2048, 4096))
    cases += _memory((DEFAULT,), (8192, 16384))  # the others would need more than there is
    for size in ((1003, 1277), (1280, 1536), (911, 1409), (1531, 1111)):
        cases += _labels(size)
    if gpu:
        passes += [Pass(VGG, p, 2048, "cuda") for p in _PRECISIONS]
        cases += [Case("speed", DEFAULT, VGG, p, (8192, 8192), "cuda") for p in _PRECISIONS]
    return Schedule(tuple(passes), tuple(cases), repeats=3, rate_side=4096)


def _speed(middle: int, large: int) -> list[Case]:
    """Ours on the large raster, every system on the middle one."""
    cases = [Case("speed", DEFAULT, VGG, p, (large, large)) for p in _PRECISIONS]
    chosen = [(s, "fp32") for s in (DEFAULT, TILES, BLENDED, *PEERS)] + [(DEFAULT, "bf16"), (MONAI_BEST, "bf16")]
    return cases + [Case("speed", system, VGG, p, (middle, middle)) for system, p in chosen]


def _memory(systems: tuple[System, ...], sides: tuple[int, ...]) -> list[Case]:
    return [Case("memory", system, NARROW, "fp32", (side, side)) for system in systems for side in sides]


def _labels(size: tuple[int, int]) -> list[Case]:
    chosen = [(s, "fp32") for s in (DEFAULT, TILES, BLENDED, *PEERS)] + [(DEFAULT, "bf16"), (WHOLE, "bf16")]
    return [Case("labels", system, LAND, p, size) for system, p in chosen]
