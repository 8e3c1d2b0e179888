"""What readers see of a map: each of them asked in its own words."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import zarr
from affine import Affine

from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from tests.interop.maps import Made

MORE_GDALS = "INTEROP_GDAL"
"""Environment variable: folders with gdalinfo and gdallocationinfo of other versions, separated by colons."""

NOTHING = -1
"""The value at a place that is off the map for its reader."""


@dataclass(slots=True)
class Seen:
    """What a reader says; None where it says nothing."""

    places: bool = True
    """False for readers that know of arrays only."""
    crs: str | None = None
    """As WKT."""
    transform: tuple[float, ...] | None = None
    """In rasterio's order."""
    nodata: float | None = None
    dtype: str | None = None
    names: dict[int, str] | None = None
    values: list[int] | None = None
    """At the places."""
    points: list[tuple[float, ...]] | None = None
    """Ground control: (row, col, x, y)."""
    microns: float | None = None


@dataclass(frozen=True, slots=True)
class Reader:
    """A way to read maps."""

    name: str
    version: str
    read: Callable[[Made], Seen]
    gdal: tuple[int, ...] = ()
    """Version of the GDAL that it reads with, if it does."""
    stores_only: bool = False
    """True when it reads nothing but zarr stores."""


def readers() -> tuple[list[Reader], dict[str, str]]:
    """Those that are installed here, and why others are not."""
    inside = str(rasterio.__gdal_version__)
    found = [
        Reader("zarr-python", version("zarr"), _zarr, stores_only=True),
        Reader("rasterio", f"{version('rasterio')} with GDAL {inside}", _rasterio, _numbers(inside)),
    ]
    missing: dict[str, str] = {}
    for name, packages, read in (
        ("tensorstore", ["tensorstore"], _tensorstore),
        ("rioxarray", ["rioxarray"], _rioxarray),
        ("odc-geo", ["odc-geo", "rioxarray"], _odc),
        ("ome-zarr-py", ["ome-zarr"], _ome),
    ):
        try:
            versions = [version(package) for package in packages]
            found.append(Reader(name, versions[0], read, stores_only=name in ("tensorstore", "ome-zarr-py")))
        except PackageNotFoundError as error:
            missing[name] = f"{error.name} is not installed"
    folders = _gdal_folders()
    if not folders:
        missing["GDAL"] = "gdalinfo and gdallocationinfo are not on the PATH"
    for folder in folders:
        text = _run(str(folder / "gdalinfo"), "--version").split()[1].strip(",")
        found.append(Reader("GDAL", text, partial(_command_line, folder), _numbers(text)))
    try:
        text = version("gdal-wheel")
        found.append(Reader("gdal-wheel", text, _wheel, _numbers(text)))
    except PackageNotFoundError:
        missing["gdal-wheel"] = "gdal-wheel is not installed (it needs Python 3.12)"
    return found, missing


def _zarr(made: Made) -> Seen:
    group = zarr.open_group(made.path, mode="r")
    array = group[f"{made.array}classes"]
    assert isinstance(array, zarr.Array)
    points: Any = group.attrs.get("fcn:gcps")
    attributes: dict[str, Any] = array.attrs.asdict()
    names = dict(zip(attributes["flag_values"], attributes["class_names"], strict=True))
    values = [int(np.asarray(array[row, col])) for row, col in made.pixels]
    return Seen(
        places=False,
        nodata=float(str(array.metadata.fill_value)),
        dtype=str(array.dtype),
        names=names,
        values=values,
        points=points and [tuple(point[:4]) for point in points],
    )


def _tensorstore(made: Made) -> Seen:
    import tensorstore

    store = {"driver": "file", "path": f"{made.path}/{made.array}classes/"}
    array = tensorstore.open({"driver": "zarr3", "kvstore": store}, read=True, open=True).result()
    values = [int(array[row, col].read().result()) for row, col in made.pixels]
    return Seen(places=False, nodata=float(str(array.fill_value)), dtype=array.dtype.name, values=values)


def _rioxarray(made: Made) -> Seen:
    with _xarray(made) as classes:
        seen = _of_xarray(made, classes)
        seen.crs = None if classes.rio.crs is None else classes.rio.crs.to_wkt()
        seen.transform = tuple(classes.rio.transform(recalc=True))[:6]
        seen.nodata = classes.rio.nodata
        if "x" not in classes.coords:
            seen.values = _at(classes.values, seen.transform, made)
        points = classes.rio.get_gcps() or []
        seen.points = [(p.row, p.col, p.x, p.y) for p in points] or None
        return seen


def _odc(made: Made) -> Seen:
    import odc.geo.xr  # noqa: F401 - gives xarray its `odc`

    with _xarray(made) as classes:
        seen = _of_xarray(made, classes)
        box = classes.odc.geobox
        if box is not None:
            seen.crs = None if box.crs is None else box.crs.to_wkt()
            if hasattr(box, "gcps"):
                seen.points = [(p.row, p.col, p.x, p.y) for p in box.gcps()]
            else:
                seen.transform = tuple(box.affine)[:6]
        seen.nodata = classes.odc.nodata
        seen.values = _at(classes.values, seen.transform, made)
        return seen


def _xarray(made: Made) -> Any:
    import rioxarray
    import xarray

    if made.layout == "COG":
        with accept_pixel_space():
            opened: Any = rioxarray.open_rasterio(made.path)
        return opened.squeeze("band")
    return xarray.open_zarr(made.path, group=made.array or None, chunks=None)["classes"]


def _of_xarray(made: Made, classes: Any) -> Seen:
    """What xarray itself says."""
    seen = Seen(dtype=str(classes.dtype), names=_named(classes.attrs))
    if "x" in classes.coords:
        seen.values = [int(classes.sel(x=x, y=y, method="nearest")) for x, y in made.ground]
    return seen


def _ome(made: Made) -> Seen:
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader as OmeReader

    place = parse_url(str(made.path))
    node = next(iter(OmeReader(place)()), None)
    if node is None or not node.data:
        raise LookupError("no image in it")
    unit = node.metadata["axes"][0].get("unit")
    steps = {step["type"]: step for step in node.metadata["coordinateTransformations"][0]}
    scale = np.array(steps["scale"]["scale"])
    first = np.array(steps.get("translation", {}).get("translation", (0.0, 0.0)))
    # lengths count from the middle of the whole map's first pixel
    middles = [(np.array([y, x]) - 0.5) * (made.kind.microns or 1) for x, y in made.ground]
    pixels = [np.rint((middle - first) / scale).astype(int) for middle in middles]
    return Seen(
        places=False,
        dtype=str(node.data[0].dtype),
        names={i: one["name"] for i, one in node.metadata["properties"].items() if one["name"] != "no data"},
        values=[_pixel(np.asarray(node.data[0]), row, col) for row, col in pixels],
        microns=float(scale[0]) if unit == "micrometer" else None,
    )


def _rasterio(made: Made) -> Seen:
    with accept_pixel_space(), rasterio.open(_gdal_name(made)) as dataset:
        if not dataset.count:
            raise LookupError("no bands")
        points, points_crs = dataset.gcps
        return Seen(
            crs=(dataset.crs or points_crs).to_wkt() if dataset.crs or points_crs else None,
            transform=tuple(dataset.transform)[:6],
            nodata=dataset.nodata,
            dtype=dataset.dtypes[0],
            names=_named({**dataset.tags(), **dataset.tags(1)}),
            values=[int(value[0]) for value in dataset.sample(made.ground)],
            points=[(p.row, p.col, p.x, p.y) for p in points] or None,
        )


def _command_line(folder: Path, made: Made) -> Seen:
    found = json.loads(_run(str(folder / "gdalinfo"), "-json", _gdal_name(made)))
    seen = _of_gdal(found)
    locate = [str(folder / "gdallocationinfo"), "-valonly", *(["-geoloc"] if seen.transform else []), _gdal_name(made)]
    asked = "".join(f"{x!r} {y!r}\n" for x, y in made.ground)
    answers = subprocess.run(locate, input=asked, capture_output=True, text=True, check=False).stdout.split()
    seen.values = [int(answer) for answer in answers] or None  # of a place off the map it says nothing
    return seen


def _wheel(made: Made) -> Seen:
    """GDAL's own Python package, in a process of its own: two GDALs in one disagree."""
    script = (
        "import sys, json; from osgeo import gdal; gdal.UseExceptions(); d = gdal.Open(sys.argv[1]);"
        "print(json.dumps([gdal.Info(d, format='json'), d.ReadAsArray().tolist()]))"
    )
    found, values = json.loads(_run(sys.executable, "-W", "ignore", "-c", script, _gdal_name(made)))
    seen = _of_gdal(found)
    seen.values = _at(np.array(values), seen.transform, made)
    return seen


def _of_gdal(found: Mapping[str, Any]) -> Seen:
    """What the JSON of gdalinfo says."""
    if not found.get("bands"):
        raise LookupError("no bands")
    band = found["bands"][0]
    tags = {**found.get("metadata", {}).get("", {}), **band.get("metadata", {}).get("", {})}
    seen = Seen(nodata=band.get("noDataValue"), dtype=band["type"], names=_named(tags))
    table = found.get("rat", band.get("rat"))  # where it stands depends on the version
    if table is not None:
        rows = [row["f"] for row in table["row"]]
        seen.names = {row[0]: row[1] for row in rows}
    seen.crs = found.get("coordinateSystem", {}).get("wkt") or None
    if "geoTransform" in found:
        c, a, b, f, d, e = found["geoTransform"]
        seen.transform = (a, b, c, d, e, f)
    if "gcps" in found:
        seen.crs = found["gcps"]["coordinateSystem"]["wkt"]
        seen.points = [(p["line"], p["pixel"], p["x"], p["y"]) for p in found["gcps"]["gcpList"]]
    return seen


def _gdal_name(made: Made) -> str:
    return f'ZARR:"{made.path}":/{made.array}classes' if made.array else str(made.path)


def _named(tags: Mapping[str, Any]) -> dict[int, str] | None:
    """Names by id of the CF flag attributes, in whatever form a reader passes lists on."""
    if "flag_values" not in tags:
        return None
    ids, names = tags["flag_values"], tags["flag_meanings"]
    if isinstance(ids, str):
        ids = ids.strip("{}[]").replace(",", " ").split()
    return dict(zip((int(i) for i in np.atleast_1d(ids)), str(names).split(), strict=True))


def _at(values: Any, transform: Sequence[float] | None, made: Made) -> list[int]:
    """The values at the places, of an array that lies where its reader says."""
    inverse = ~Affine(*(transform or (1, 0, 0, 0, 1, 0)))
    places = [inverse * point for point in made.ground]
    return [_pixel(values, int(row // 1), int(col // 1)) for col, row in places]


def _pixel(values: Any, row: int, col: int) -> int:
    inside = 0 <= row < values.shape[0] and 0 <= col < values.shape[1]
    return int(values[row, col]) if inside else NOTHING


def _gdal_folders() -> list[Path]:
    named = [Path(folder) for folder in os.environ.get(MORE_GDALS, "").split(os.pathsep) if folder]
    tools = [shutil.which(tool) for tool in ("gdalinfo", "gdallocationinfo")]
    return [Path(tool).parent for tool in tools[:1] if tool and tools[1]] + named


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LookupError((done.stderr or done.stdout).strip()[:300])
    return done.stdout
