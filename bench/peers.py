"""Other systems on the same network, raster and normalised input, each used the way its users do.

Each reads the GeoTIFF with rasterio and writes one. MONAI keeps the scores of the whole raster and blends
overlapping windows; torchgeo's recipe takes chips from a sampler, cuts their edges off and pastes them. GeoDeep, which
needs no torch, is in `onnx_job`. Every function returns seconds (libraries and weights are loaded before) and how
many pixels went through the network for each pixel of the raster.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray

from bench.networks import Network, plain_forward
from fcn_batch.pipeline.network.predictor import Scaling

SIDE, OVERLAP = 512, 128
"""Tile and overlap that their users start with: a quarter."""
BATCH = 4
"""Windows of 512 pixels at once."""


@dataclass
class Counted:
    """A network as a function from normalised images to float32 scores, and how many pixels it saw."""

    network: Network
    pixels: int = field(default=0)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Scores of (n, bands, rows, cols)."""
        self.pixels += images.shape[0] * images.shape[-2] * images.shape[-1]
        weight = next(self.network.module.parameters())
        x = images.to(weight.device, weight.dtype).contiguous(memory_format=torch.channels_last)
        scores: torch.Tensor = self.network.module(x)
        return scores.float()


def read(raster: Path, network: Network) -> torch.Tensor:
    """The whole raster, normalised: (1, bands, rows, cols)."""
    with rasterio.open(raster) as source:
        values = source.read()
    valid = np.ones(values.shape[1:], np.bool_)
    return Scaling(network.spec, "cpu").image(values, valid, valid.shape).contiguous()


def write(raster: Path, output: Path, classes: NDArray[np.uint8]) -> None:
    """Write a class map on the grid of `raster`."""
    with rasterio.open(raster) as source:
        profile = {k: v for k, v in source.profile.items() if k not in {"photometric", "interleave"}}
    with rasterio.open(output, "w", **{**profile, "count": 1, "dtype": "uint8", "nodata": 255}) as target:
        target.write(classes, 1)


@torch.inference_mode()
def run_whole(raster: Path, output: Path, network: Network) -> tuple[float, float]:
    """The whole raster in one pass."""
    started = time.perf_counter()
    write(raster, output, plain_forward(network, read(raster, network))[0].byte().cpu().numpy())
    return time.perf_counter() - started, 1.0


@torch.inference_mode()
def run_monai(raster: Path, output: Path, network: Network, roi: int, overlap: int) -> tuple[float, float]:
    """Sliding windows with gaussian weights; `roi` 0: two windows along each axis, the fewest that overlap."""
    from monai.inferers import sliding_window_inference

    scores = Counted(network)
    started = time.perf_counter()
    image = read(raster, network)
    sides = [roi or fewest(side, overlap, network.stride) for side in image.shape[-2:]]
    total = sliding_window_inference(
        image,
        roi_size=sides,
        sw_batch_size=BATCH if roi else 1,
        predictor=scores,
        overlap=[overlap / side for side in sides],
        mode="gaussian",
        padding_mode="reflect",
    )
    write(raster, output, total[0].argmax(0).byte().cpu().numpy())
    return time.perf_counter() - started, scores.pixels / image[0, 0].numel()


def fewest(side: int, overlap: int, stride: int) -> int:
    """Side of the window, a multiple of `stride`, of which two cover `side` pixels and overlap by `overlap`.

    >>> fewest(3072, 448, 32)
    1760
    """
    return -(-(side + overlap) // 2 // stride) * stride


@torch.inference_mode()
def run_torchgeo(raster: Path, output: Path, network: Network, size: int, overlap: int) -> tuple[float, float]:
    """Chips of a grid sampler; half the overlap is cut off each side that is not the raster's."""
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset
    from torchgeo.samplers import GridGeoSampler

    scores = Counted(network)
    started = time.perf_counter()
    dataset = RasterDataset([str(raster)])
    with rasterio.open(raster) as source:
        grid = source.transform
        classes: NDArray[np.uint8] = np.full(source.shape, 255, np.uint8)
    sampler = GridGeoSampler(dataset, size=size, stride=size - overlap)
    # samples stay a list: their bounds are slices, which torchgeo does not stack
    for chips in DataLoader(dataset, batch_size=BATCH, sampler=sampler, collate_fn=list):
        places = [_place(chip["bounds"], grid) for chip in chips]
        images = [_inside(c["image"], p, classes.shape, network) for c, p in zip(chips, places, strict=True)]
        best = scores(torch.stack(images)).argmax(1).byte().cpu().numpy()
        for numbers, place in zip(best, places, strict=True):
            _paste(classes, numbers, place, overlap // 2)
    write(raster, output, classes)
    return time.perf_counter() - started, scores.pixels / classes.size


def _place(bounds: tuple[slice, slice, slice], grid: Any) -> tuple[int, int]:
    """Row and column of a chip's upper left pixel."""
    column, row = ~grid * (bounds[0].start, bounds[1].stop)
    return round(row), round(column)


def _inside(values: torch.Tensor, place: tuple[int, int], shape: tuple[int, ...], network: Network) -> torch.Tensor:
    """A chip normalised, 0 where it hangs over the raster's edge: what the other systems pad with."""
    rows, cols = (np.arange(n) + at for n, at in zip(values.shape[-2:], place, strict=True))
    valid = ((rows >= 0) & (rows < shape[0]))[:, None] & ((cols >= 0) & (cols < shape[1]))[None]
    return Scaling(network.spec, "cpu").image(values.numpy(), valid, valid.shape)[0].contiguous()


def _paste(classes: NDArray[np.uint8], chip: NDArray[np.uint8], place: tuple[int, int], margin: int) -> None:
    """Put the middle of a chip in its place; its margins count only along the raster's edges."""
    spans = [
        _kept(start, length, whole, margin)
        for start, length, whole in zip(place, chip.shape, classes.shape, strict=True)
    ]
    (top, bottom), (left, right) = spans
    classes[top:bottom, left:right] = chip[top - place[0] : bottom - place[0], left - place[1] : right - place[1]]


def _kept(start: int, length: int, whole: int, margin: int) -> tuple[int, int]:
    """First and last pixel (exclusive) of the raster that a chip decides along one axis.

    >>> _kept(0, 512, 2000, 64), _kept(384, 512, 2000, 64), _kept(1536, 512, 2000, 64)
    ((0, 448), (448, 832), (1600, 2000))
    """
    first = start + margin if start > 0 else 0
    last = start + length - margin if start + length < whole else whole
    return first, last
