"""From how a stretch is asked for to the values of this raster that stand for 0 and 1 in training.

LOW,HIGH            of all bands, or a pair for each
2%,98%              percentiles of each band, over the whole raster: read once, and kept in the plan
sentinel-2          surface reflectance (level 2A) of processing baseline 04.00 and later
landsat             surface reflectance of Collection 2, level 2
tags                reflectance by the scale and offset that the file gives each band
"""

import math
from collections.abc import Iterator, Sequence

from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.model_card import InputSpec
from fcn_batch.pipeline.core.plan import Plan
from fcn_batch.pipeline.core.source import RasterInfo, RasterSource
from fcn_batch.pipeline.core.stretch import Histogram, Range, Stretch
from fcn_batch.pipeline.core.tiling import BlockGrid
from fcn_batch.workflows.inputs.bands import choose_full_scale

_SENSORS: dict[str, Range] = {
    # reflectance = (DN - 1000) / 10000: Sentinel-2 Products Specification Document, BOA_ADD_OFFSET
    "sentinel-2": (1000.0, 11000.0),
    # reflectance = DN * 0.0000275 - 0.2: Landsat 8-9 Collection 2 Level 2 Science Product Guide
    "landsat": (0.2 / 0.0000275, 1.2 / 0.0000275),
}
_HOW = "give LOW,HIGH, percentiles like 2%,98%, sentinel-2, landsat or tags"
_READ_PIXELS = 2**22
"""About as many are read at a time."""


def choose_scaling(
    source: RasterSource,
    spec: InputSpec,
    bands: Sequence[int],
    wanted: tuple[float | None, str | None],
    known: Sequence[Plan] = (),
) -> tuple[float, Stretch | None]:
    """The full scale, and what stands in its place, if anything; `wanted` are the two options.

    Tags are taken unasked where the type of the pixels is not the model's: nothing else says what they are.
    """
    info, (full_scale, stretch) = source.info, wanted
    if stretch is None:
        if full_scale is not None or info.dtype == spec.dtype or not _tagged(info, bands):
            return choose_full_scale(info, spec, full_scale), None
        stretch = "tags"
    if full_scale is not None:
        raise OptionError(f"--stretch {stretch} with --full-scale {full_scale:g}: give one of them")
    return spec.full_scale, choose_stretch(source, bands, stretch, known)


def choose_stretch(source: RasterSource, bands: Sequence[int], wanted: str, known: Sequence[Plan] = ()) -> Stretch:
    """The ranges of `bands`, which count from 1; `known` are plans of the same input, whose percentiles are taken.

    OptionError when `wanted` means nothing for this raster, InputError when it cannot be read.
    """
    if wanted in _SENSORS:
        return Stretch(by=wanted, ranges=(_SENSORS[wanted],) * len(bands))
    if wanted == "tags":
        return _of_tags(source.info, bands)
    numbers, percents = _numbers(wanted)
    if not percents:
        return _fixed(wanted, numbers, len(bands))
    if len(numbers) != 2 or not 0 <= numbers[0] < numbers[1] <= 100:
        raise OptionError(f"--stretch {wanted}: percentiles are two, from 0% to 100%; {_HOW}")
    for plan in known:
        if plan.stretch is not None and plan.stretch.by == wanted and plan.bands == tuple(bands):
            return plan.stretch
    return Stretch(by=wanted, ranges=_measured(source, bands, (numbers[0], numbers[1])))


def _tagged(info: RasterInfo, bands: Sequence[int]) -> bool:
    """Whether the file says how numbers in these bands become others."""
    return any(info.scales[band - 1] != (1.0, 0.0) for band in bands)


def _numbers(wanted: str) -> tuple[list[float], bool]:
    """The numbers, and whether they are percents.

    >>> _numbers("2%,98%"), _numbers("0,3000")
    (([2.0, 98.0], True), ([0.0, 3000.0], False))
    """
    parts = [part.strip() for part in wanted.split(",")]
    percents = [part.endswith("%") for part in parts]
    try:
        numbers = [float(part.removesuffix("%")) for part in parts]
    except ValueError:
        raise OptionError(f"--stretch {wanted}: not understood; {_HOW}") from None
    if any(percents) != all(percents) or not all(map(math.isfinite, numbers)):
        raise OptionError(f"--stretch {wanted}: all numbers are percents, or none is; {_HOW}")
    return numbers, all(percents)


def _fixed(wanted: str, numbers: list[float], bands: int) -> Stretch:
    if len(numbers) not in (2, 2 * bands):
        raise OptionError(f"--stretch {wanted}: give LOW,HIGH, or {bands} such pairs, one for each band")
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    try:
        return Stretch(by=wanted, ranges=tuple(pairs) if len(pairs) == bands else tuple(pairs * bands))
    except ValueError as error:
        raise OptionError(f"--stretch {wanted}: {_HOW}, the lower value first") from error


def _of_tags(info: RasterInfo, bands: Sequence[int]) -> Stretch:
    """Reflectance is value * scale + offset: 0 is -offset / scale, 1 is (1 - offset) / scale."""
    if not _tagged(info, bands):
        raise OptionError(f"--stretch tags: {info.path} gives its bands no scale and offset; give the range itself")
    ranges = tuple((-offset / scale, (1 - offset) / scale) for scale, offset in (info.scales[b - 1] for b in bands))
    try:
        return Stretch(by="tags", ranges=ranges)
    except ValueError as error:
        raise OptionError(f"--stretch tags: {info.path} has a negative scale; give the range itself") from error


def _measured(source: RasterSource, bands: Sequence[int], percents: Range) -> tuple[Range, ...]:
    """Percentiles of each band over all valid pixels; 0 and 1 where there are none."""
    counted = [Histogram(source.info.dtype) for _ in bands]
    try:
        for window in _parts(source.info):
            pixels = source.read(window, tuple(bands))
            for band, histogram in zip(pixels.values, counted, strict=True):
                histogram.add(band[pixels.valid])
    finally:
        source.close()
    ranges: list[Range] = []
    for histogram in counted:
        low, high = (histogram.percentile(percent) if histogram.count else 0.0 for percent in percents)
        ranges.append((low, high if high > low else low + 1))
    return tuple(ranges)


def _parts(info: RasterInfo) -> Iterator[Window]:
    """Windows of whole storage blocks, in reading order; over the whole width where blocks are not high."""
    height, width = info.storage_block
    rows = max(height, _READ_PIXELS // info.size.width // height * height)
    cols = max(width, _READ_PIXELS // rows // width * width)
    grid = BlockGrid(info.size, rows, cols)
    return map(grid.__getitem__, range(len(grid)))
