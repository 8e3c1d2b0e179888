"""What a raster's numbers are to a model: which bands it wants, which value is white."""

import math

import numpy as np

from fcn_batch.pipeline.core.errors import InputError, OptionError
from fcn_batch.pipeline.core.model_card import InputSpec
from fcn_batch.pipeline.core.source import RasterInfo


def numbered(info: RasterInfo, wanted: tuple[int | str, ...]) -> tuple[int, ...]:
    """Bands by number, from 1: names are those of the file, whole or up to a comma, or its colours; case is no matter.

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
            raise OptionError(f"--bands {name}: bands {_commas(found)} of {info.path} have this name; give the number")
    there = ", ".join(text or role for text, role in zip(info.descriptions, info.colour_roles, strict=True))
    raise OptionError(f"--bands {name}: {info.path} has no band of this name, but {there}; or give its number")


def choose_bands(info: RasterInfo, spec: InputSpec, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    """Raster bands, from 1, in the model's order: as asked, by name, or in order when the numbers agree."""
    names = [band.name for band in spec.bands]
    if wanted is not None:
        if len(wanted) != len(names):
            raise OptionError(
                f"--bands {_commas(wanted)}: the model wants {len(names)} bands ({', '.join(names)}), got {len(wanted)}"
            )
        for band in wanted:
            if not 1 <= band <= info.bands:
                raise OptionError(f"--bands {_commas(wanted)}: {info.path} has bands 1 to {info.bands}, not {band}")
        return wanted
    if (named := _named_bands(info, spec)) is not None:
        return named
    if "palette" in info.colour_roles and len(names) != 1:
        raise InputError(
            f"{info.path}: its pixels are numbers of colours in a palette, but the model wants {', '.join(names)}; "
            "expand it first: gdal_translate -expand rgb IN OUT"
        )
    data = [i for i, role in enumerate(info.colour_roles, start=1) if role != "alpha"]
    if len(data) == len(names):
        return tuple(data)
    example = [data[min(i, len(data) - 1)] for i in range(len(names))] if data else []
    raise InputError(
        f"{info.path}: cannot tell which of its {info.bands} bands are {', '.join(names)}; "
        "say it with --bands" + (f", e.g. --bands {_commas(example)}" if example else "")
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
            raise OptionError(f"--full-scale {wanted}: give a positive number")
        # pixels are multiplied by 1 / (full scale * std) in float32
        if min(wanted * band.std for band in spec.bands) * float(np.finfo(np.float32).max) < 1:
            raise OptionError(
                f"--full-scale {wanted}: too small to divide 32-bit numbers by; give the pixel value that is white, "
                "such as 255, 10000 or 1"
            )
        return wanted
    if info.dtype == spec.dtype:
        return spec.full_scale
    raise InputError(
        f"{info.path}: pixels are {info.dtype}, the model was trained on {spec.dtype} up to "
        f"{spec.full_scale:g}; say which value is white with --full-scale (65535 for full 16 bit, 1 for 0..1), or what "
        "the values are with --stretch (sentinel-2, landsat, LOW,HIGH or 2%,98%)"
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
