"""The promise, tested: a class map is what the network gives for the whole image in one forward pass.

Nothing here uses the program's readers, tiling or stores, but for the model file: the raster is read by rasterio, the
map by zarr, and numpy scales the values as the model's card says.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
import zarr
from numpy.typing import NDArray
from rasterio.enums import MaskFlags
from torch.nn import functional

from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.core.model_card import ModelCard
from fcn_batch.pipeline.network.fcn import Fcn, Upsample
from fcn_batch.pipeline.network.weights import load_model
from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from tests.runs import segmented

TIE = 1e-4
"""Scores closer than this, as a share of the largest, may be ordered otherwise in another order of summing."""
MOST_TIES = 1e-3
"""Share of the pixels that may have the second of two such classes."""

Truth = tuple[NDArray[Any], NDArray[np.bool_]]
"""Values (bands as the network wants them, rows, cols), and where they are valid."""


@dataclass(frozen=True)
class Exact:
    """A run whose map is exact, and what it was compared with."""

    paths: tuple[Path, ...]
    """What the run printed: store, GeoTIFF, report …"""
    classes: NDArray[np.uint8]
    scores: NDArray[Any]
    """The oracle's (classes, rows, cols)."""
    valid: NDArray[np.bool_]
    report: dict[str, Any]
    stderr: str


def assert_exact(
    raster: str | Path | Sequence[str | Path],
    model: str | Path,
    *,
    output: Path | None = None,
    truth: Truth | None = None,
    **options: Any,
) -> Exact:
    """Run `segment` with these options; every pixel of zarr map and GeoTIFF must be the class of one whole pass.

    `options` are those of the command line, such as `tile=64, full_scale=255, confidence=True`; None leaves one out.
    With a number as `overlap`, scores are the weighted means of those of all tiles. `truth`: the pixels, where rasterio
    cannot read them from `raster`, or other options (``--stretch``, ``--aoi``, ``--mpp``) change them.
    """
    inputs = [raster] if isinstance(raster, str | Path) else list(raster)
    words: list[Any] = ["-m", model, *(["-o", output] if output else [])]
    for name, value in {"precision": "fp32", **options}.items():
        words += _words(f"--{name.replace('_', '-')}", value)
    result = segmented(*inputs, *words)
    paths = tuple(Path(line) for line in result.stdout.splitlines())
    report = json.loads(paths[-1].read_text())
    card = load_model(Path(model))[0].card
    values, valid = truth or pixels_of(inputs[0], card, options.get("bands"))
    image = scaled(values, valid, card, options.get("full_scale"))
    if options.get("overlap") in (None, "auto"):
        scores: NDArray[Any] = whole_scores(model, image)
    else:
        scores = blended_scores(model, image, options["tile"], options["overlap"], options.get("blend") or "hann")
    stored = zarr.open_array(str(paths[0] / "classes"), mode="r")
    classes: NDArray[np.uint8] = np.asarray(stored[:])
    assert_best(classes, scores, valid, card.legend.ids)
    with accept_pixel_space(), rasterio.open(next(path for path in paths if path.suffix == ".tif")) as dataset:
        assert (dataset.read(1) == classes).all()
    return Exact(paths, classes, scores, valid, report, result.stderr)


def _words(name: str, value: Any) -> list[Any]:
    if value is None or value is False:
        return []
    if value is True:
        return [name]
    return [word for one in (value if isinstance(value, list) else [value]) for word in (name, one)]


def assert_best(
    classes: NDArray[np.uint8], scores: NDArray[Any], valid: NDArray[np.bool_], ids: Sequence[int] = range(0, 250, 10)
) -> None:
    """The map has the best class of each valid pixel, but where two are as good; and no data elsewhere."""
    assert classes.shape == valid.shape == scores.shape[1:]
    number = np.full(256, -1)
    number[list(ids)[: len(scores)]] = np.arange(len(scores))
    chosen = number[classes]
    assert (classes[~valid] == NODATA).all()
    assert (chosen[valid] >= 0).all()
    lost = scores.max(axis=0) - np.take_along_axis(scores, np.maximum(chosen, 0)[None], axis=0)[0]
    lost = lost[valid] / max(1.0, float(np.abs(scores).max()))
    assert lost.max(initial=0) < TIE
    assert not lost.size or (lost > 0).mean() < MOST_TIES


def pixels_of(raster: str | Path, card: ModelCard, bands: str | None = None) -> Truth:
    """Values and validity as the file says: its mask, alpha or nodata; NaN and infinity are no data either."""
    with accept_pixel_space(), rasterio.open(raster) as dataset:
        labels = [
            str(text or colour.name).lower()
            for text, colour in zip(dataset.descriptions, dataset.colorinterp, strict=True)
        ]
        wanted = bands.split(",") if bands else [band.name for band in card.input.bands]
        numbers = [
            int(one) if one.isdigit() else labels.index(one) + 1 for one in wanted if one.isdigit() or one in labels
        ]
        if len(numbers) < len(wanted):
            numbers = list(range(1, len(wanted) + 1))
        values = dataset.read(numbers)
        valid = np.ones(values.shape[1:], np.bool_)
        for flags in dataset.mask_flag_enums[:1]:
            if MaskFlags.per_dataset in flags or MaskFlags.alpha in flags:
                valid &= dataset.read_masks(1) > 0
        missing = [dataset.nodatavals[number - 1] for number in numbers]
    with np.errstate(invalid="ignore"):
        if None not in missing:
            valid &= (values != np.array(missing)[:, None, None]).any(axis=0)
    return values, valid & np.isfinite(values).all(axis=0)


def scaled(
    values: NDArray[Any], valid: NDArray[np.bool_], card: ModelCard, full_scale: float | str | None = None
) -> NDArray[np.float32]:
    """The image as the network was trained on it; pixels without data are the mean."""
    mean, std = (
        np.array([getattr(band, name) for band in card.input.bands])[:, None, None] for name in ("mean", "std")
    )
    with np.errstate(invalid="ignore"):
        image = (values.astype(np.float64) / float(full_scale or card.input.full_scale) - mean) / std
    return np.where(valid, image, 0).astype(np.float32)


@lru_cache(maxsize=4)
def _network(model: str, _changed_ns: int) -> torch.nn.Module:
    return load_model(Path(model))[1].eval()


def whole_scores(model: str | Path, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """One pass over all of an image (bands, rows, cols), filled up with zeros to the network's stride."""
    network = _network(str(model), Path(model).stat().st_mtime_ns)
    stride = load_model(Path(model))[0].card.stride
    rows, cols = image.shape[1:]
    padded = functional.pad(torch.from_numpy(image), (0, -cols % stride, 0, -rows % stride))
    with torch.inference_mode():
        out: NDArray[np.float32] = network(padded[None])[0, :, :rows, :cols].numpy()
    return out


def blended_scores(
    model: str | Path, image: NDArray[np.float32], tile: int, overlap: int, blend: str
) -> NDArray[np.float64]:
    """Weighted mean of the scores of all tiles that hold a cell, over the whole raster at once, then upsampled.

    For FCNs of this package only: their last upsampling is taken off.
    """
    network = load_model(Path(model))[1]
    assert isinstance(network, Fcn)
    side = network.stride * network.up_final(torch.zeros(1, network.classes, 1, 1)).shape[2] // 32
    network.up_final = Upsample(1)
    _, height, width = image.shape
    down, across = -(-height // side), -(-width // side)
    sums, total = np.zeros((network.classes, down, across)), np.zeros((down, across))
    tile, overlap = tile // side, overlap // side
    rows, cols = (range(0, max(length - overlap, 1), tile - overlap) for length in (down, across))
    for row in rows:
        for col in cols:
            seen = torch.from_numpy(image[:, row * side : (row + tile) * side, col * side : (col + tile) * side])
            padded = functional.pad(seen, (0, -seen.shape[2] % 32, 0, -seen.shape[1] % 32))
            part = (slice(row, row + tile), slice(col, col + tile))
            weights = np.outer(
                _window(blend, tile, overlap, first=row == 0, last=row == rows[-1]),
                _window(blend, tile, overlap, first=col == 0, last=col == cols[-1]),
            )[: total[part].shape[0], : total[part].shape[1]]
            with torch.inference_mode():
                scores = network(padded[None])[0].numpy()[:, : weights.shape[0], : weights.shape[1]]
            sums[(slice(None), *part)] += scores * weights
            total[part] += weights
    mean = torch.from_numpy(sums / total)[None]
    wide = functional.interpolate(mean, scale_factor=side, mode="bilinear", align_corners=False)
    out: NDArray[np.float64] = wide[0, :, :height, :width].numpy()
    return out


def _window(blend: str, tile: int, overlap: int, *, first: bool, last: bool) -> NDArray[np.float64]:
    """Unnormalised weights of a tile along one axis."""
    place = np.arange(tile) + 0.5
    if blend == "gaussian":
        return np.asarray(np.exp(-((place - tile / 2) ** 2) / (2 * (tile / 8) ** 2)))
    rise = np.ones(tile) if first or not overlap else np.clip(place / overlap, 0, 1)
    fall = np.ones(tile) if last or not overlap else np.clip((tile - place) / overlap, 0, 1)
    weights: NDArray[np.float64] = rise * fall
    if blend == "hann":
        weights = np.sin(weights * np.pi / 2) ** 2
    return (weights > 0.5).astype(np.float64) if blend == "none" else weights
