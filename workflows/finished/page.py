"""A class map as one self-contained page for browsers: works offline, asks for nothing, runs no code but its own.

page.html, page.css and page.js are joined here with the map's data. Class and file names are other people's words:
they travel as JSON in which no `<` is left, and the script sets them as text. The page's policy (CSP) allows exactly
this style and this script, by their hashes, and pictures that are part of the page.
"""

import base64
import hashlib
import html
import json
import zlib
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.georeference import IDENTITY
from fcn_batch.pipeline.core.location import input_of, is_remote
from fcn_batch.pipeline.core.plan import InputIdentity, Plan
from fcn_batch.pipeline.core.source import Pixels
from fcn_batch.pipeline.raster.crs import coordinate_attributes, system_name
from fcn_batch.pipeline.raster.ground import Ground
from fcn_batch.pipeline.raster.picture import jpeg
from fcn_batch.workflows.finished.quicklook import share_text
from fcn_batch.workflows.finished.survey import Covered, Survey
from fcn_batch.workflows.inputs.identity import identify
from fcn_batch.workflows.inputs.resolution import metres
from fcn_batch.workflows.inputs.sources import source_of, thumbnail

SIDE = 2000
"""Rows and columns of the map in the page, at most."""
_EMPTY = (205, 211, 216)
"""Where the image has no data."""
_DARKEST, _BRIGHTEST = 0.5, 99.5
"""Percentiles of the image that become black and white."""
_AXES = {"longitude": "longitude", "latitude": "latitude", "grid_longitude": "longitude", "grid_latitude": "latitude"}


@dataclass(frozen=True, slots=True)
class About:
    """What a page says of a map beside its pixels."""

    name: str
    ground: Ground | None = None
    report: dict[str, Any] = field(default_factory=dict)
    """Of the run that made it; empty: not known."""
    plan: Plan | None = None
    """Of the same run."""
    cleaned: tuple[str, ...] = ()
    """What was done to the map on its way here."""
    local_only: bool = False
    """True: an image on another machine, which is what the report says, is not fetched."""


def make_page(seen: Survey, about: About) -> str:
    """The page of a surveyed map.

    The image under the classes is the raster that the plan names, if it is still there and as large as the map.
    """
    image, why = _image(seen, about.plan, local_only=about.local_only)
    found = sorted((one for one in seen.classes if one.pixels), key=lambda one: -one.pixels)
    y_axis, x_axis = coordinate_attributes(seen.georeference)
    data = {
        "name": about.name,
        "line": _line(seen, about),
        "size": [seen.size.height, seen.size.width],
        "shape": list(seen.ids.shape),
        "step": seen.step,
        "transform": _transform(seen),
        "axes": [_AXES.get(str(axis.get("standard_name")), name) for name, axis in (("x", x_axis), ("y", y_axis))],
        "metres": about.ground and about.ground.metres,
        "same": about.ground is None or about.ground.same,
        "north": about.ground and about.ground.north,
        "classes": [_class(one, seen, about) for one in found],
        "facts": _facts(seen, about, why),
        "ids": base64.b64encode(zlib.compress(seen.ids.tobytes(), 9)).decode(),
        "image": image,
    }
    return _joined(about.name, data)


def _joined(name: str, data: dict[str, Any]) -> str:
    """Template, style, script and data in one text."""
    template, style, script = (
        (files("fcn_batch.workflows.finished") / f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js")
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    # in a script element only "<" can end the text or begin a comment
    told = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {
        "POLICY": policy,
        "TITLE": html.escape(f"{name}: class map"),
        "STYLE": style,
        "SCRIPT": script,
        "DATA": told,
    }
    pieces = template.split("@")  # every second one is the name of a part: none of them is looked into
    return "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _transform(seen: Survey) -> list[float] | None:
    ref = seen.georeference
    return None if ref.crs_wkt is None and ref.transform == IDENTITY else list(ref.transform)


def _class(one: Covered, seen: Survey, about: About) -> dict[str, Any]:
    """A class as the script wants it; `amount` is what its bar stands for."""
    area = one.area_m2
    if area is None and seen.georeference.crs_wkt is None and about.ground is not None:  # a slide
        area = one.pixels * about.ground.metres**2
    return {
        "id": one.info.id,
        "name": one.info.name,
        "colour": one.info.colour,
        "share": share_text(one.share),
        "area": f"{one.pixels:,} px" if area is None else area_text(area),
        "amount": one.pixels if area is None else area,
    }


def area_text(square_metres: float) -> str:
    """An area as people write it.

    >>> [area_text(area) for area in (3.6e14, 2.5e6, 25_000.0, 12.0, 3.4e-6, 2e-10)]
    ['360,000,000 km²', '2.5 km²', '2.5 ha', '12 m²', '3.4 mm²', '200 µm²']
    """
    units = (("km²", 1e6), ("ha", 1e4), ("m²", 1.0), ("mm²", 1e-6), ("µm²", 1e-12))
    unit, size = next((unit for unit in units if square_metres >= unit[1]), units[-1])
    value = square_metres / size
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def _line(seen: Survey, about: About) -> str:
    size = f"{seen.size.width:,} × {seen.size.height:,} pixels"
    return size if about.plan is None else f"{size}, classified by {about.plan.model.name}"


def _facts(seen: Survey, about: About, why: str | None) -> list[tuple[str, str]]:
    """Label and value, one pair a line."""
    facts = [("system", system_name(seen.georeference))]
    if about.ground is not None:
        facts.append(("pixel", metres(about.ground.metres) + ("" if about.ground.same else ", in the middle")))
    if seen.step > 1:
        facts.append(("shown", f"1 of {seen.step} × {seen.step} pixels: the most frequent class"))
    if seen.nodata:
        facts.append(("no data", share_text(seen.nodata / seen.size.pixels)))
    facts += [("cleaned up", step) for step in about.cleaned]
    plan, report = about.plan, about.report
    if plan is not None:
        bands = ", ".join(str(band) for band in plan.bands)
        facts += [
            ("image", f"{Path(plan.input.path).name}, bands {bands}"),
            ("model", f"{plan.model.name} {plan.model.version}"),
            ("result", plan.exactness if plan.cut.exact else f"windows, blended ({plan.cut.blend})"),
            ("precision", plan.kernel.precision),
            ("device", plan.kernel.instructions),
            ("made", str(report.get("timing", {}).get("finished", "not known")).replace("T", " ")),
            ("fcn-batch", plan.kernel.fcn_batch),
        ]
        facts += [(str(name), str(version)) for name, version in report.get("versions", {}).items()]
    return facts + ([] if why is None else [("image", why)])


def _image(seen: Survey, plan: Plan | None, *, local_only: bool) -> tuple[str | None, str | None]:
    """The image that the map was made from as a data URL, or why there is none (no reason without a plan)."""
    if plan is None:
        return None, None
    bands = plan.bands[:3] if len(plan.bands) >= 3 else plan.bands[:1]
    try:
        if local_only and any(map(is_remote, map(input_of, plan.input.places))):
            return None, "not shown: it is on another machine"
        pixels = thumbnail(plan.input, bands, seen.step)
        changed = _changed(plan.input)
    except InputError:
        return None, "not shown: it is no longer where it was"
    if pixels.values.shape[1:] != seen.ids.shape or changed:
        return None, "not shown: it is another one now"
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(stretched(pixels))).decode(), None


def _changed(image: InputIdentity) -> bool:
    """True when a file of the image is not as it was when the map was made; others may lie beside it by now."""
    return not {*image.files} <= {*identify(source_of(image).info, hashed=image.hashed).files}


def stretched(pixels: Pixels) -> NDArray[np.uint8]:
    """An image for people: (rows, cols, 3), from one band or three of any type.

    The darkest and the brightest values that count become black and white: those of all bands together in an image of
    bytes, whose colours people know, else those of each band.
    """
    values = pixels.values.astype(np.float32)
    if not pixels.valid.any():
        return np.full((*pixels.valid.shape, 3), _EMPTY, np.uint8)
    bands = [values[:, pixels.valid]] if pixels.values.dtype == np.uint8 else [band[pixels.valid] for band in values]
    limits = np.array([np.percentile(band, (_DARKEST, _BRIGHTEST)) for band in bands])
    low, high = limits[:, 0].reshape(-1, 1, 1), limits[:, 1].reshape(-1, 1, 1)
    grey = (values - low) / np.maximum(high - low, 1e-12)
    picture = np.round(255 * np.clip(grey, 0, 1)).astype(np.uint8)
    picture = np.moveaxis(np.broadcast_to(picture, (3, *picture.shape[1:])), 0, -1).copy()
    picture[~pixels.valid] = _EMPTY
    return picture
