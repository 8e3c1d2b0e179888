"""What scanners and programs write into a TIFF: the size of a slide's pixels, and how many planes it has."""

import math
import re
from collections.abc import Mapping

_OME_UNITS = {"µm": 1.0, "um": 1.0, "&#181;m": 1.0, "nm": 1e-3, "mm": 1e3}
_COARSEST = 5.0
"""Micrometres per pixel: coarser ones are a printer's or a camera's."""


def microns_of(tags: Mapping[str, str], *, slide: bool) -> float | None:
    """Micrometres per pixel: as Aperio's scanners or OME say it in the description, else by the TIFF's resolution.

    `tags` are those of a TIFF in GDAL's words. The latter counts only for what may be a `slide`, and in a range that a
    microscope has: 72 dots an inch are a printer's.
    """
    text = tags.get("TIFFTAG_IMAGEDESCRIPTION", "")
    if found := re.search(r"\|MPP = (\d+\.\d+)", text):
        return float(found[1]) or None
    if "www.openmicroscopy.org" in text and (found := re.search(r'\bPhysicalSizeX="([\d.eE+-]+)"', text)):
        unit = re.search(r'\bPhysicalSizeXUnit="([^"]+)"', text)
        return _in_microns(found[1], _OME_UNITS.get(unit[1] if unit else "µm"))
    length = {"2": 25400.0, "3": 10000.0}.get(tags.get("TIFFTAG_RESOLUTIONUNIT", "")[:1])  # inch, centimetre
    microns = _in_microns(tags.get("TIFFTAG_XRESOLUTION", ""), length, inverse=True)
    return microns if slide and microns is not None and microns <= _COARSEST else None


def planes_of(tags: Mapping[str, str]) -> int:
    """Channels times depths times moments of the first image, as OME says it; 1 where nobody does."""
    text = tags.get("TIFFTAG_IMAGEDESCRIPTION", "")
    pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", text) if "www.openmicroscopy.org" in text else None
    sizes = re.findall(r'\bSize[CZT]="(\d{1,9})"', pixels[0]) if pixels else []
    return math.prod(map(int, sizes))


def _in_microns(text: str, unit: float | None, *, inverse: bool = False) -> float | None:
    """A length, or its inverse, in units of so many micrometres; None where that is no length."""
    try:
        value = float(text)
    except ValueError:
        return None
    if unit is None or not 0 < value < math.inf:
        return None
    return unit / value if inverse else value * unit
