"""Polygons of any kind, in any system, select the pixels whose centres lie in them. Oracle: shapely, pixel by pixel."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.transform import Affine
from shapely import Polygon, box
from shapely.affinity import rotate, translate

from fcn_batch.pipeline.core import area as area_module
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.raster.clip import inside
from fcn_batch.pipeline.raster.rasterfile import inspect
from fcn_batch.workflows.inputs.area import choose_area
from tests.errors import refuses
from tests.rasters import noise, write_raster

ROWS, COLS = 60, 90
GRIDS: dict[str, tuple[str, Affine]] = {
    "UTM": ("EPSG:32633", Affine(10, 0, 500000, 0, -10, 5000000)),
    "south-up": ("EPSG:32633", Affine(10, 0, 500000, 0, 10, 5000000)),
    "rotated": ("EPSG:32633", Affine(8, 6, 500000, 6, -8, 5000000)),
    "degrees": ("EPSG:4326", Affine(0.5, 0, -22, 0, -0.5, 20)),
    "degrees from 0": ("EPSG:4326", Affine(4, 0, 0, 0, -3, 90)),
    "across the dateline": ("EPSG:4326", Affine(0.1, 0, 176, 0, -0.1, 3)),
    "across the dateline from the west": ("EPSG:4326", Affine(0.1, 0, -185, 0, -0.1, 3)),
    "across the dateline in UTM": ("EPSG:32601", Affine(1000, 0, 130000, 0, -1000, 6000000)),
    "polar": ("EPSG:3413", Affine(50000, 0, -2250000, 0, -50000, 1500000)),
}


def raster(folder: Path, grid: str) -> Path:
    crs, transform = GRIDS[grid]
    return write_raster(folder / "a.tif", noise(3, ROWS, COLS), crs=crs, transform=transform, photometric="RGB")


def centres(grid: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Longitude, in -180..180, and latitude of every pixel's centre."""
    crs, transform = GRIDS[grid]
    row, col = np.mgrid[:ROWS, :COLS] + 0.5
    x, y = transform @ (col, row)
    lon, lat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
    return (np.asarray(lon) + 180) % 360 - 180, np.asarray(lat)


def covered(shape: Any, lon: NDArray[np.float64], lat: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where a shape in longitude and latitude, in whatever turn, holds a point."""
    found = [shapely.contains_xy(shape, lon + turn, lat) for turn in (-360, 0, 360)]
    return np.asarray(np.logical_or.reduce(found))


def geojson(path: Path, *shapes: Any) -> Path:
    features = [{"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(one)} for one in shapes]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def selected(image: Path, polygons: Path) -> NDArray[np.bool_]:
    found = choose_area(inspect(image), polygons, None)
    assert found is not None
    return inside(found, Window(0, 0, ROWS, COLS))


def fine_star(x: float, y: float, radius: float, points: int) -> Polygon:
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    away = radius * (0.7 + 0.3 * np.cos(9 * angle))
    return Polygon(np.stack([x + away * np.cos(angle), y + away * np.sin(angle)], axis=1))


def middle(grid: str) -> tuple[float, float, float]:
    """Longitude and latitude of the middle pixel, and about a third of the raster's height in degrees."""
    lon, lat = centres(grid)
    row, col = ROWS // 2, COLS // 2
    reach = abs(lat[row, col] - lat[row - ROWS // 3, col])
    x, y = lon[row, col] + 0.0117 * reach, lat[row, col] + 0.0071 * reach  # no centre lies on a border
    return float(x), float(y), float(0.9871 * reach)


def _in_another_turn(x: float, y: float, r: float) -> Any:
    return translate(rotate(box(x - r, y - r / 2, x + r, y + r / 2), 20), -360 if x > 0 else 360)


SHAPES: dict[str, Any] = {
    "box": lambda x, y, r: box(x - r, y - r, x + r, y + r),
    "two apart": lambda x, y, r: shapely.union(box(x - r, y - r, x, y), box(x + r / 2, y, x + r, y + r)),
    "hole": lambda x, y, r: box(x - r, y - r, x + r, y + r).difference(box(x - r / 2, y - r / 2, x + r / 2, y + r / 3)),
    "collection": lambda x, y, r: shapely.GeometryCollection(
        [shapely.Point(x, y), box(x - r, y - r, x, y), shapely.GeometryCollection([box(x, y, x + r, y + r)])]
    ),
    "10,000 vertices": lambda x, y, r: fine_star(x, y, r, 10_000),
    "far beyond the raster": lambda x, y, r: rotate(box(x - r / 3, y - 9 * r, x + r / 3, y + 9 * r), 30),
    "another turn": _in_another_turn,
}


@pytest.mark.parametrize("grid", [name for name in GRIDS if name != "polar"])
@pytest.mark.parametrize("kind", SHAPES)
def test_the_pixels_whose_centres_lie_inside(tmp_path: Path, grid: str, kind: str) -> None:
    x, y, r = middle(grid)
    shape = SHAPES[kind](x, y, r)
    if grid == "degrees from 0" and kind in ("far beyond the raster", "10,000 vertices"):
        r = min(r, 8)
        shape = SHAPES[kind](x, y, r)
    lon, lat = centres(grid)
    expected = covered(shape, lon, lat)
    assert expected.any()
    found = selected(raster(tmp_path, grid), geojson(tmp_path / "a.geojson", shape))
    # straight edges in degrees are drawn to a twentieth of a pixel on a grid in another system
    assert (found != expected).sum() <= (3 if "UTM" in grid or grid in ("south-up", "rotated") else 0)


def test_around_greenwich_on_a_grid_from_0_to_360(tmp_path: Path) -> None:
    """It lies at both edges of the raster."""
    shape = box(-31, -41, 51, 41)
    expected = covered(shape, *centres("degrees from 0"))
    assert expected[:, :5].any()
    assert expected[:, -5:].any()
    path = raster(tmp_path, "degrees from 0")
    assert (selected(path, geojson(tmp_path / "a.geojson", shape)) == expected).all()
    everywhere = box(-180, -90, 180, 90)
    assert selected(path, geojson(tmp_path / "b.geojson", everywhere)).all()


def test_around_a_pole(tmp_path: Path) -> None:
    """In longitude and latitude a cap is a strip, here in two halves."""
    halves = box(-180, 80, 0, 90), box(0, 80, 180, 90)
    _, lat = centres("polar")
    found = selected(raster(tmp_path, "polar"), geojson(tmp_path / "a.geojson", *halves))
    differ = found != (lat > 80)
    assert differ.sum() <= 4
    assert found.sum() > 300


def test_across_the_dateline_as_the_standard_has_it_and_beyond_180(tmp_path: Path) -> None:
    lon, lat = centres("across the dateline")
    expected = (np.abs(lat) < 1) & ((lon > 178) | (lon < -178))
    path = raster(tmp_path, "across the dateline")
    cut = shapely.MultiPolygon([box(178, -1, 180, 1), box(-180, -1, -178, 1)])
    for k, shape in enumerate((cut, box(178, -1, 182, 1), box(-182, -1, -178, 1))):
        assert (selected(path, geojson(tmp_path / f"{k}.geojson", shape)) == expected).all(), shape
    uncut = Polygon([(178, -1), (-178, -1), (-178, 1), (178, 1)])
    with refuses("polygons-ambiguous", start=178.0, stop=-178.0):
        selected(path, geojson(tmp_path / "uncut.geojson", uncut))


def test_too_many_points_are_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcn_batch.workflows.inputs.area.MAX_POINTS", 5000)
    assert area_module.MAX_POINTS >= 1_000_000
    x, y, r = middle("UTM")
    with refuses("polygons-too-fine", most=5000):
        selected(raster(tmp_path, "UTM"), geojson(tmp_path / "a.geojson", fine_star(x, y, r, 10_000)))
