"""A clipped map has the pixels whose centres the polygons hold, whatever window is read."""

from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.features import rasterize

from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.core.maps import ClassMap
from fcn_batch.pipeline.raster.clip import Clipped
from fcn_batch.workflows.finished.maps import open_map
from tests.classmaps import LEGEND, PLACES, blobs, write_store
from tests.errors import refuses

IDS = blobs(50, 70)
SHAPES = [
    shapely.Polygon([(5, 3), (40.3, 9), (22, 44.7)], [[(15, 12), (28, 13), (22, 20)]]),
    shapely.MultiPolygon([shapely.box(50.5, 30.5, 61, 39), shapely.box(-9, 40, 4, 70)]),
    shapely.box(30, 5, 55, 20),
]


def write(path: Path, shapes: list[Any], place: GeoReference, system: str | None = None, **fields: list[Any]) -> Path:
    """Write polygons given in a map's pixels, to a layer `layer`, in the map's system or in another one."""
    a, b, c, d, e, f = place.transform
    shapes = [shapely.transform(shape, lambda p: p @ np.array([[a, d], [b, e]]) + [c, f]) for shape in shapes]
    if system is not None:
        change = Transformer.from_crs(place.crs_wkt, system, always_xy=True)
        shapes = [shapely.transform(shape, lambda p: np.stack(change.transform(*p.T), axis=1)) for shape in shapes]
    layer = fields.pop("layer", ["polygons"])[0]
    pyogrio.raw.write(
        path,
        geometry=np.array(shapely.to_wkb(shapes)),
        field_data=[np.array(values) for values in fields.values()],
        fields=list(fields),
        geometry_type="Unknown",
        crs=system or place.crs_wkt,
        driver={".gpkg": "GPKG", ".geojson": "GeoJSON"}[path.suffix],
        layer=layer,
        append=path.exists(),
    )
    return path


def clipped_at_once(ids: NDArray[np.uint8], shapes: list[Any]) -> NDArray[np.uint8]:
    """Brute force: rasterio's mask of the whole map."""
    return np.where(rasterize(shapes, out_shape=ids.shape) == 1, ids, 255).astype(np.uint8)


def whole(source: ClassMap) -> NDArray[np.uint8]:
    return source.read(Window(0, 0, source.size.height, source.size.width))


@pytest.fixture(scope="module")
def clipped(tmp_path_factory: pytest.TempPathFactory) -> Clipped:
    folder = tmp_path_factory.mktemp("clip")
    source = open_map(write_store(folder / "m.classes.zarr", IDS, PLACES["north up"]))
    return Clipped(source, write(folder / "a.gpkg", SHAPES, PLACES["north up"]))


@pytest.mark.parametrize("where", ["north up", "south up", "rotated", "degrees"])
def test_pixels_outside_are_no_data(tmp_path: Path, where: str) -> None:
    place = PLACES[where]
    source = open_map(write_store(tmp_path / "m.classes.zarr", IDS, place))
    found = Clipped(source, write(tmp_path / "a.gpkg", SHAPES, place))
    assert np.array_equal(whole(found), clipped_at_once(IDS, SHAPES))
    assert (found.size, found.block, found.legend) == (source.size, source.block, LEGEND)
    assert found.georeference == place


@given(st.integers(0, 49), st.integers(0, 69), st.integers(1, 50), st.integers(1, 70))
def test_a_window_is_a_part_of_the_whole(clipped: Clipped, row: int, col: int, height: int, width: int) -> None:
    window = Window(row, col, height, width).clipped(clipped.size)
    assert np.array_equal(clipped.read(window), clipped_at_once(IDS, SHAPES)[window.slices()])


def test_polygons_in_another_system(tmp_path: Path) -> None:
    source = open_map(write_store(tmp_path / "m.classes.zarr", IDS, PLACES["north up"]))
    path = write(tmp_path / "a.geojson", SHAPES, PLACES["north up"], "EPSG:4326")
    found, expected = whole(Clipped(source, path)), clipped_at_once(IDS, SHAPES)
    assert (found != expected).sum() < 30  # centres on an edge, whose way through another system rounds
    assert (found == 255).sum() > (IDS == 255).sum() + 1000


def test_a_layer_is_chosen(tmp_path: Path) -> None:
    source = open_map(write_store(tmp_path / "m.classes.zarr", IDS, PLACES["north up"]))
    for name, shape in (("one", SHAPES[0]), ("two", SHAPES[2])):
        path = write(tmp_path / "a.gpkg", [shape], PLACES["north up"], layer=[name])
    assert np.array_equal(whole(Clipped(source, path, "two")), clipped_at_once(IDS, [SHAPES[2]]))
    with pytest.raises(InputError, match="several layers; choose one with `layer`: one, two"):
        Clipped(source, path)


def test_polygons_that_cannot_clip(tmp_path: Path) -> None:
    source = open_map(write_store(tmp_path / "m.classes.zarr", IDS, PLACES["north up"]))
    away = write(tmp_path / "a.gpkg", [shapely.box(200, 200, 210, 210)], PLACES["north up"])
    with refuses("polygons-elsewhere"):
        Clipped(source, away)
    with pytest.raises(InputError, match="does not exist"):
        Clipped(source, tmp_path / "none.gpkg")
    with pytest.raises(InputError, match=r"is no file of polygons; one of \.gpkg"):
        Clipped(source, tmp_path / "m.classes.zarr")
    points = write(tmp_path / "b.gpkg", [shapely.Point(3, 3)], PLACES["north up"])
    with pytest.raises(InputError, match="holds Point"):
        Clipped(source, points)
    nowhere = open_map(write_store(tmp_path / "n.classes.zarr", IDS, PLACES["nowhere"]))
    with pytest.raises(InputError, match="the image has no reference system, the other has"):
        Clipped(nowhere, away)
