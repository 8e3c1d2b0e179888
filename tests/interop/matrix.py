"""Every reader on every map: what it sees, as letters; and the page that says so.

`python -m tests.interop.matrix RESULT.json ...` prints the page of the results that the tests wrote, one for each
Python.
"""

import json
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyproj import CRS

from tests.interop.expected import CLOSED, find
from tests.interop.maps import KINDS, LAYOUTS, NAMES, PLACES, Made
from tests.interop.readers import Reader, Seen

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True, slots=True)
class Cell:
    """One reader on one map."""

    letters: str
    error: str = ""
    """What it raised, where the map does not open."""


def try_out(reader: Reader, made: Made) -> Cell:
    """What the reader sees."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries complain about each other here
        try:
            seen = reader.read(made)
        except Exception as error:  # noqa: BLE001 - whatever a library raises is the result
            return Cell(CLOSED, f"{type(error).__name__}: {error}".splitlines()[0])
    return Cell(letters(seen, made))


def letters(seen: Seen, made: Made) -> str:
    """What is right, as capitals; what is wrong, small; what the reader does not say is left out.

    C system, T transform, N nodata, D type, L class names, V values at the places, G ground control, M micrometres.
    """
    names = None if seen.names is None else {i: name.replace("_", " ") for i, name in seen.names.items()}
    judged = [
        ("C", _crs(seen, made)),
        ("T", _transform(seen, made)),
        ("N", None if seen.nodata is None else seen.nodata == 255),
        ("D", None if seen.dtype is None else seen.dtype.lower() in ("uint8", "byte")),
        ("L", None if names is None else names == NAMES),
        ("V", None if seen.values is None else seen.values == list(PLACES.values())),
        ("G", None if not seen.points else sorted(seen.points) == made.points),
        ("M", None if seen.microns is None else seen.microns == made.kind.microns),
    ]
    return "".join(letter if right else letter.lower() for letter, right in judged if right is not None)


def _transform(seen: Seen, made: Made) -> bool | None:
    """None for a reader that has nothing but pixels to offer."""
    if not seen.places or (seen.transform in (None, IDENTITY) and made.transform != IDENTITY):
        return None
    return bool(np.allclose(seen.transform or IDENTITY, made.transform, rtol=1e-12, atol=1e-9))


def _crs(seen: Seen, made: Made) -> bool | None:
    if not seen.places:
        return None
    ground = made.kind.ground if seen.points else None
    wanted = made.kind.georeference.crs_wkt if ground is None else ground.crs_wkt
    if seen.crs is None:
        return True if wanted is None else None
    return wanted is not None and CRS.from_wkt(seen.crs).equals(CRS.from_wkt(wanted), ignore_axis_order=True)


_INTRODUCTION = """# Who reads the maps right

Written by `make interop-page`, which makes a small map of each kind in each layout, opens it with real readers and
compares what they say with what is true. `make test-interop` compares it with what is written down in
`tests/interop/expected.py`: a reader that sees less than before fails it, and one that sees more as well.

**all**: reference system, transform, no data, type, class names, and the class at two places on the ground, each of
which is a single pixel, are right. Otherwise letters say what is: **C** reference system, **T** transform, **N** no
data, **D** type, **L** class names, **V** values at the places, **G** ground control points, **M** micrometres. What a
reader does not say is left out; ~~struck out~~ is what it says wrongly, and **no** a map that it does not open. Numbers
lead to the reasons below.

Without a reference system (ground control points, no CRS, slides) right is to claim none, and places are pixels.
GeoTIFF keeps ground control points; zarr has no place for them that readers know, so they are in the attribute
`fcn:gcps`. *Cut* is what a user of xarray makes of a map with `isel(...).to_zarr(...)`: the window must still lie
where it was.

In short: `NAME.classes.tif` for GDAL before 3.12 and what is built on it (rasterio for Python 3.11), and for rotated
grids before 3.13; `NAME.classes.zarr` for xarray and for all else, with shards from GDAL 3.13 on. Windows are cut out
of `NAME.classes.zarr`, not out of the pyramid.
"""


def page(results: list[Mapping[str, Any]]) -> str:
    """The page of what was seen, under several Pythons perhaps."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    reasons: list[str] = []
    for result in results:
        for seen in result["cells"]:
            rule = find(seen["reader"], tuple(seen["gdal"]), seen["layout"], seen["kind"])
            why = rule.why if rule is not None and rule.letters == seen["letters"] else ""
            if why and why not in reasons:
                reasons.append(why)
            note = f" [{reasons.index(why) + 1}]" if why else ""
            row = rows.setdefault((seen["layout"], seen["reader"], seen["version"]), {})
            text = f"{_shown(seen['letters'])}{note}"
            row[seen["kind"]] = text if row.get(seen["kind"], text) == text else f"{row[seen['kind']]} or {text}"
    pythons = ", ".join(sorted(result["python"] for result in results))
    lines = [_INTRODUCTION, f"Seen with Python {pythons} on Linux."]
    for layout in LAYOUTS:
        lines += [
            "",
            f"## {_TITLES[layout]}",
            "",
            f"| Reader | {' | '.join(KINDS)} |",
            f"|{' --- |' * (len(KINDS) + 1)}",
        ]
        for (place, reader, version), row in sorted(rows.items(), key=lambda item: _order(item[0])):
            if place == layout:
                lines.append(f"| {reader} {version} | {' | '.join(row.get(kind, '') for kind in KINDS)} |")
    lines += ["", "## Reasons", "", *(f"{number}. {why}" for number, why in enumerate(reasons, 1)), ""]
    return "\n".join(lines)


_TITLES = {
    "flat": "`NAME.classes.zarr`",
    "sharded": "`NAME.classes.zarr` with shards",
    "pyramid": "`NAME.pyramid.zarr`, level 0",
    "COG": "`NAME.classes.tif`",
    "flat, cut": "A window of `NAME.classes.zarr`, cut out by xarray",
    "pyramid, cut": "A window of level 0 of `NAME.pyramid.zarr`, cut out by xarray",
}


def _shown(found: str) -> str:
    if found == CLOSED:
        return "no"
    if set("CTNDLV") <= set(found) and found.isupper():
        return "all" + "".join(f", {letter}" for letter in found if letter not in "CTNDLV")
    return " ".join(letter if letter.isupper() else f"~~{letter.upper()}~~" for letter in found)


def _order(place: tuple[str, str, str]) -> tuple[str, list[int]]:
    """Readers by name, versions by number."""
    _, reader, version = place
    return reader.lower(), [int(part) for part in version.split()[0].split(".") if part.isdecimal()]


if __name__ == "__main__":
    sys.stdout.write(page([json.loads(Path(name).read_text()) for name in sys.argv[1:]]))
