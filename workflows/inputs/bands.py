"""A raster's numbers as a model takes them: which bands, and which values stand for 0 and 1 in its training.

LOW,HIGH            of all bands, or a pair for each
2%,98%              percentiles of each band, over the whole raster: read once, and kept in the plan
sentinel-2          surface reflectance (level 2A) of processing baseline 04.00 and later
landsat             surface reflectance of Collection 2, level 2
tags                reflectance by the scale and offset that the file gives each band
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from fcn_batch.pipeline.core.errors import InputError, OptionError
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.model_card import InputSpec
from fcn_batch.pipeline.core.plan import Plan
from fcn_batch.pipeline.core.source import RasterInfo, RasterSource
from fcn_batch.pipeline.core.stretch import Histogram, Range, Stretch
from fcn_batch.pipeline.core.tiling import BlockGrid

_SENSORS: dict[str, Range] = {
    # reflectance = (DN - 1000) / 10000: Sentinel-2 Products Specification Document, BOA_ADD_OFFSET
    "sentinel-2": (1000.0, 11000.0),
    # reflectance = DN * 0.0000275 - 0.2: Landsat 8-9 Collection 2 Level 2 Science Product Guide
    "landsat": (0.2 / 0.0000275, 1.2 / 0.0000275),
}
_HOW = "give LOW,HIGH, percentiles like 2%,98%, sentinel-2, landsat or tags"
_READ_PIXELS = 2**22
"""About as many are read at a time."""


def numbered(info: RasterInfo, wanted: tuple[int | str, ...]) -> tuple[int, ...]:
    """Bands by number, from 1: names are those of the file, whole or up to a comma, or its colours, in any case.

    OptionError when a band has no such name, or two have it.
    """
    return tuple(band if isinstance(band, int) else _numbered(info, band) for band in wanted)


def _numbered(info: RasterInfo, name: str) -> int:
    wanted = name.casefold()
    for labels in (info.descriptions, [(text or "").split(",")[0] for text in info.descriptions], info.colour_roles):
        found = [number for number, label in enumerate(labels, start=1) if (label or "").strip().casefold() == wanted]
        if len(found) == 1:
            return found[0]
        if found:
            raise OptionError(
                "band-ambiguous",
                "--bands {name}: bands {found} of {path} have this name; give the number",
                name=name,
                found=_commas(found),
                path=info.path,
            )
    raise OptionError(
        "band-unknown",
        "--bands {name}: {path} has no band of this name, but {known}; or give its number",
        name=name,
        path=info.path,
        known=", ".join(text or role for text, role in zip(info.descriptions, info.colour_roles, strict=True)),
    )


def choose_bands(info: RasterInfo, spec: InputSpec, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    """Raster bands, from 1, in the model's order: as asked, by name, or in order when the numbers agree."""
    names = [band.name for band in spec.bands]
    if wanted is not None:
        if len(wanted) != len(names):
            raise OptionError(
                "bands-mismatch",
                "--bands {bands}: the model takes {needed} bands ({names}), got {given}",
                bands=_commas(wanted),
                needed=len(names),
                names=", ".join(names),
                given=len(wanted),
            )
        for band in wanted:
            if not 1 <= band <= info.bands:
                raise OptionError(
                    "band-unknown",
                    "--bands {bands}: {path} has bands 1 to {last}, not {name}",
                    bands=_commas(wanted),
                    path=info.path,
                    last=info.bands,
                    name=band,
                )
        return wanted
    if (named := _named_bands(info, spec)) is not None:
        return named
    if "palette" in info.colour_roles and len(names) != 1:
        raise InputError(
            "palette-unexpanded",
            "{path}: its pixels are numbers of colours in a palette, but the model takes {names}; "
            "expand it first: gdal_translate -expand rgb IN OUT",
            path=info.path,
            names=", ".join(names),
        )
    data = [i for i, role in enumerate(info.colour_roles, start=1) if role != "alpha"]
    if len(data) == len(names):
        return tuple(data)
    example = [data[min(i, len(data) - 1)] for i in range(len(names))] if data else []
    raise InputError(
        "bands-unclear",
        "{path}: cannot tell which of its {bands} bands are {names}; say it with --bands{example}",
        path=info.path,
        bands=info.bands,
        names=", ".join(names),
        example=f", e.g. --bands {_commas(example)}" if example else "",
    )


def band_notes(info: RasterInfo, spec: InputSpec, wanted: tuple[int, ...] | None) -> list[str]:
    """What to say when `choose_bands` went by the order of the bands alone."""
    if wanted is not None or _named_bands(info, spec) is not None:
        return []
    bands, names = choose_bands(info, spec, None), ", ".join(band.name for band in spec.bands)
    which = f"bands {_commas(bands)} are" if len(bands) > 1 else f"band {bands[0]} is"
    return [f"{which} taken as {names}: nothing in the file says so; --bands chooses others"]


def choose_full_scale(info: RasterInfo, spec: InputSpec, wanted: float | None) -> float:
    """The raster value that stands for what was 1 in training; asked for when the data types differ."""
    if wanted is not None:
        if not (math.isfinite(wanted) and wanted > 0):
            raise OptionError("option-value", "--full-scale {value}: give a positive number", value=wanted)
        # pixels are multiplied by 1 / (full scale * std) in float32
        if min(wanted * band.std for band in spec.bands) * float(np.finfo(np.float32).max) < 1:
            raise OptionError(
                "option-value",
                "--full-scale {value}: too small to divide 32-bit numbers by; give the pixel value that is white, "
                "such as 255, 10000 or 1",
                value=wanted,
            )
        return wanted
    if info.dtype == spec.dtype:
        return spec.full_scale
    raise InputError(
        "values-unclear",
        "{path}: pixels are {dtype}, the model was trained on {trained} up to {full_scale:g}; say which value is white "
        "with --full-scale (65535 for full 16 bit, 1 for 0..1), or what the values are with --stretch (sentinel-2, "
        "landsat, LOW,HIGH or 2%,98%)",
        path=info.path,
        dtype=info.dtype,
        trained=spec.dtype,
        full_scale=spec.full_scale,
    )


def _named_bands(info: RasterInfo, spec: InputSpec) -> tuple[int, ...] | None:
    """The bands whose descriptions, else whose colour roles, are the model's names; None when some are missing.

    Descriptions first: somebody gave them, while GDAL makes any three bands of bytes red, green and blue.
    """
    names = [band.name for band in spec.bands]
    for labels in ([(d or "").lower() for d in info.descriptions], info.colour_roles):
        found = [list(labels).index(name) + 1 for name in names if name in labels]
        if len(found) == len(names):
            return tuple(found)
    return None


def _commas(values: "tuple[int, ...] | list[int]") -> str:
    return ",".join(str(v) for v in values)


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
        raise OptionError(
            "option-conflict",
            "--stretch {stretch} with --full-scale {full_scale:g}: give one of them",
            stretch=stretch,
            full_scale=full_scale,
        )
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
        raise _no_stretch(wanted, "percentiles are two, from 0% to 100%")
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
        raise _no_stretch(wanted, "not understood") from None
    if any(percents) != all(percents) or not all(map(math.isfinite, numbers)):
        raise _no_stretch(wanted, "all numbers are percents, or none is")
    return numbers, all(percents)


def _fixed(wanted: str, numbers: list[float], bands: int) -> Stretch:
    if len(numbers) not in (2, 2 * bands):
        raise _no_stretch(wanted, f"one pair of numbers, or {bands}, one for each band")
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    try:
        return Stretch(by=wanted, ranges=tuple(pairs) if len(pairs) == bands else tuple(pairs * bands))
    except ValueError as error:
        raise _no_stretch(wanted, "the lower value comes first") from error


def _no_stretch(wanted: str, why: str) -> OptionError:
    return OptionError("option-value", "--stretch {value}: {why}; {how}", value=wanted, why=why, how=_HOW)


def _of_tags(info: RasterInfo, bands: Sequence[int]) -> Stretch:
    """Reflectance is value * scale + offset: 0 is -offset / scale, 1 is (1 - offset) / scale."""
    if not _tagged(info, bands):
        raise OptionError(
            "tags-unusable",
            "--stretch tags: {path} gives its bands no scale and offset; give the range",
            path=info.path,
        )
    ranges = tuple((-offset / scale, (1 - offset) / scale) for scale, offset in (info.scales[b - 1] for b in bands))
    try:
        return Stretch(by="tags", ranges=ranges)
    except ValueError as error:
        raise OptionError(
            "tags-unusable", "--stretch tags: {path} has a negative scale; give the range", path=info.path
        ) from error


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
