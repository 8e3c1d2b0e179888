"""Polygons as labels and regions: burned in any window as in the whole, and what is refused."""

import copy
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.features import rasterize
from rasterio.transform import Affine

from fcn_batch.pipeline.core.burn import NO_LABEL
from fcn_batch.pipeline.core.errors import TrainingError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference
from fcn_batch.pipeline.raster import vectors
from fcn_batch.pipeline.raster.crs import wkt_of
from fcn_batch.pipeline.raster.features import Features
from fcn_batch.pipeline.raster.labels import Burn, Grid, Labels, open_labels
from fcn_batch.pipeline.raster.vectors import Polygons, VectorLabels
from tests.errors import refuses

UTM, LONLAT = "EPSG:32633", "EPSG:4326"
NORTH_UP = Affine(10, 0, 500000, 0, -10, 5000000)
KINDS = {"a.gpkg": "GPKG", "a.geojson": "GeoJSON", "a.shp": "ESRI Shapefile", "a.fgb": "FlatGeobuf"}
HERE = GeoReference(None, IDENTITY)


def grid_of(height: int, width: int, transform: Affine = NORTH_UP, crs: str | None = UTM) -> Grid:
    return Grid(Size(height, width), GeoReference(wkt_of(crs) if crs else None, tuple(transform)[:6]))


PIXELS = grid_of(40, 50, Affine.identity(), None)


def write(path: Path, shapes: list[Any], crs: str | None, **fields: list[Any]) -> Path:
    """Write polygons to a file of the kind that its ending says; GeoPackages may get a further layer."""
    kind = {ending: driver for name, driver in KINDS.items() if (ending := Path(name).suffix)}[path.suffix]
    layer = {"layer": fields.pop("layer")[0]} if "layer" in fields else {}
    pyogrio.raw.write(
        path,
        geometry=np.array(shapely.to_wkb(shapes)),
        field_data=[np.array(values) for values in fields.values()],
        fields=list(fields),
        geometry_type="Unknown" if kind != "ESRI Shapefile" else "Polygon",
        crs=crs,
        driver=kind,
        append=bool(layer) and path.exists(),
        **layer,
    )
    return path


def whole(labels: Labels, grid: Grid) -> NDArray[np.int32]:
    return labels.read(Window(0, 0, grid.size.height, grid.size.width))


def placed(shape: Any, *transforms: Affine) -> Any:
    """Take a polygon from pixels to the plane of a transform."""
    for transform in transforms:
        a, b, c, d, e, f = tuple(transform)[:6]
        shape = shapely.transform(shape, lambda p: p @ np.array([[a, d], [b, e]]) + [c, f])  # noqa: B023
    return shape


def unsaved(shapes: list[Any], ids: list[int], grid: Grid) -> VectorLabels:
    """Labels of polygons in pixels that stand in no file."""
    polygons, kept = vectors._on_grid(Path("none"), Features(np.array(shapes), [], HERE), grid)
    return VectorLabels(grid.size, polygons, np.array(ids, np.int32)[kept], 0)


SHAPES = [
    shapely.box(3, 4, 20, 30),
    shapely.Polygon([(10, 10), (45, 12), (30, 38)], [[(20, 15), (35, 16), (28, 30)]]),
    shapely.MultiPolygon([shapely.box(40, 30, 48, 39), shapely.box(0, 35, 5, 60)]),
]
IDS = [7, 300, NO_LABEL]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("crs", [UTM, LONLAT])
def test_polygons_of_any_kind_of_file(tmp_path: Path, name: str, crs: str) -> None:
    """Later over earlier, holes, several parts, by what a field says; in the image's system and in another."""
    grid = grid_of(40, 50)
    shapes = [placed(shape, NORTH_UP) for shape in SHAPES]
    if crs != UTM:
        step = Transformer.from_crs(UTM, crs, always_xy=True)
        shapes = [shapely.transform(s, lambda p: np.stack(step.transform(*p.T), axis=1)) for s in shapes]
    if name.endswith(".geojson") and crs != LONLAT:
        pytest.skip("GeoJSON is in longitude and latitude")
    path = write(tmp_path / name, shapes, crs, kind=["field", "wood", "unknown"], other=[1, 2, 3])
    burn = Burn("kind", dict(zip(("field", "wood", "unknown"), IDS, strict=True)))
    labels = open_labels(path, grid, burn=burn)
    order = [0, 1, 2] if not name.endswith(".fgb") else [int(v) for v in _order(path)]
    expected = rasterize([(SHAPES[k], IDS[k]) for k in order], out_shape=(40, 50), fill=0, dtype="int32")
    ids = whole(labels, grid)
    assert ids.dtype == np.int32
    assert set(np.unique(ids)) == {0, *IDS}
    assert np.array_equal(ids, expected)
    again = copy.copy(labels)  # by the way of pickle
    assert np.array_equal(again.read(Window(5, 6, 20, 30)), expected[5:25, 6:36])


def _order(path: Path) -> Any:
    """FlatGeobuf files are sorted in space: the numbers of their features as the file has them."""
    return pyogrio.raw.read(path, columns=["other"])[3][0] - 1


def test_without_a_field_and_with_numbers_and_nothing_in_one(tmp_path: Path) -> None:
    grid, shapes = grid_of(40, 50), [placed(shape, NORTH_UP) for shape in SHAPES]
    path = write(tmp_path / "a.gpkg", shapes[:1], UTM)
    ids = whole(open_labels(path, grid, burn=Burn(burn=5, background=NO_LABEL)), grid)
    assert np.array_equal(ids == 5, rasterize([SHAPES[0]], out_shape=(40, 50)) == 1)
    assert set(np.unique(ids)) == {5, NO_LABEL}
    path = write(tmp_path / "b.gpkg", shapes, UTM, kind=[3.0, 2.5, np.nan])
    ids = whole(open_labels(path, grid, burn=Burn("kind", {"3": 1, "2.5": 2, "null": 3})), grid)
    assert set(np.unique(ids)) == {0, 1, 2, 3}


_corners = st.tuples(st.floats(-30, 90), st.floats(-30, 90))
_half = st.tuples(st.integers(-60, 180).map(lambda n: n / 2), st.integers(-60, 180).map(lambda n: n / 2))


@settings(max_examples=50)
@given(
    st.lists(st.lists(_corners | _half, min_size=3, max_size=8), min_size=1, max_size=5),
    st.integers(0, 39), st.integers(0, 49), st.integers(1, 40), st.integers(1, 50),
)  # fmt: skip
def test_windows_agree_with_the_whole(
    rings: list[list[tuple[float, float]]], row: int, col: int, height: int, width: int
) -> None:
    """Any polygons, crossing themselves too, with corners and edges on pixel centres."""
    labels = unsaved([shapely.Polygon(ring) for ring in rings], list(range(1, len(rings) + 1)), PIXELS)
    window = Window(row, col, height, width).clipped(PIXELS.size)
    assert np.array_equal(labels.read(window), whole(labels, PIXELS)[window.slices()])


def test_large_polygons_are_cut_and_burn_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window takes the part of a coastline that is near it; holes, self-crossings and the order stay."""
    turn = np.linspace(0, 2 * np.pi, 700, endpoint=False)
    radius = 14 + 5 * np.sin(40 * turn)
    coast = np.stack([24.3 + radius * np.cos(turn), 19.6 + radius * np.sin(turn)], axis=1)
    crossing = np.stack([25.2 + 19 * np.sin(turn), 20.1 + 17 * np.sin(2 * turn)], axis=1)
    shapes = [
        shapely.Polygon(coast, [coast[:200:20] * 0.1 + 20]),
        shapely.Polygon(crossing),
        shapely.box(20, 3, 23, 37),
    ]
    at_once = unsaved(shapes, [1, 2, 3], PIXELS)
    monkeypatch.setattr(vectors, "_VERTICES", 30)
    cut = unsaved(shapes, [1, 2, 3], PIXELS)
    counts = shapely.get_num_coordinates(cut._polygons.shapes)
    assert len(counts) > 30
    assert counts.max() <= 30
    ids = whole(cut, PIXELS)
    assert set(np.unique(ids)) == {0, 1, 2, 3}
    assert np.array_equal(ids, whole(at_once, PIXELS))
    for row in range(0, 40, 7):
        window = Window(row, 2 * row // 3, 7, 19).clipped(PIXELS.size)
        assert np.array_equal(cut.read(window), ids[window.slices()])


@pytest.mark.parametrize("far", [[], [shapely.box(-58.9, 70.2, -58.5, 70.5)]])
def test_edges_in_another_system_follow_the_curve(tmp_path: Path, far: list[Any]) -> None:
    """A parallel of 600 km is 90 km away from the straight line between its ends on a polar map."""
    polar = grid_of(400, 400, Affine(2000, 0, -400000, 0, -2000, -1900000), "EPSG:3413")
    box = shapely.box(-60, 71, -30, 74)
    path = write(tmp_path / "a.geojson", [shapely.multipolygons([*far, box]) if far else box], LONLAT)
    ids = whole(open_labels(path, polar, burn=Burn()), polar)
    step = Transformer.from_crs("EPSG:3413", LONLAT, always_xy=True)
    col, row = np.meshgrid(np.arange(400) + 0.5, np.arange(400) + 0.5)
    lon, lat = step.transform(-400000 + 2000 * col, -1900000 - 2000 * row)
    inside = (lon > -60) & (lon < -30) & (lat > 71) & (lat < 74)
    assert 0.2 < inside.mean() < 0.8
    assert (ids != inside).sum() <= 0.001 * inside.sum(), "an edge is off by 0.05 pixels at most"


def test_edges_that_bend_both_ways(tmp_path: Path) -> None:
    """In Mercator's map an edge over the equator bends up and down, and meets its chord in the middle."""
    grid = grid_of(300, 300, Affine(50000, 0, -7500000, 0, -50000, 7500000), "EPSG:3857")
    corners = [(-60, -50), (-40, -50), (60, 50), (40, 50)]
    path = write(tmp_path / "a.geojson", [shapely.Polygon(corners)], LONLAT)
    ids = whole(open_labels(path, grid, burn=Burn()), grid)
    step = Transformer.from_crs("EPSG:3857", LONLAT, always_xy=True)
    col, row = np.meshgrid(np.arange(300) + 0.5, np.arange(300) + 0.5)
    lon, lat = step.transform(-7500000 + 50000 * col, 7500000 - 50000 * row)
    inside = (np.abs(lat) < 50) & (lon > lat - 10) & (lon < lat + 10)
    assert inside.sum() > 1000
    assert (ids != inside).sum() <= 0.005 * inside.sum()


def test_far_parts_of_a_polygon_do_not_matter(tmp_path: Path) -> None:
    """The whole world in degrees leaves what UTM can show; an image of centimetres would need far too many points."""
    world = shapely.Polygon(
        [(-180, -90), (180, -90), (180, 90), (-180, 90)], [[(15, 45), (16, 45), (16, 46), (15, 46)]]
    )
    path = write(tmp_path / "a.geojson", [world], LONLAT)
    grid = grid_of(40, 50, Affine(0.05, 0, 499999, 0, -0.05, 4983000))
    ids = whole(open_labels(path, grid, burn=Burn()), grid)
    assert np.array_equal(ids[0], (np.arange(50) + 0.5 < 20).astype(int))
    spike = [(500000, 4982999), (500000, 4982998.5), (500000, 4982999)]  # a line on which nothing lies
    outline = [(-1e12, 4982999), *spike, (1e12, 4982999), (1e12, 1e12), (-1e12, 1e12)]
    huge = write(tmp_path / "b.gpkg", [shapely.Polygon(outline)], UTM)
    assert whole(open_labels(huge, grid, burn=Burn()), grid).sum() == 20 * 50


def test_polygons_over_the_edge_of_a_system(tmp_path: Path) -> None:
    over = shapely.box(300000, 9, 1500000, 500000)  # zone 60, over 180 degrees east
    path = write(tmp_path / "a.gpkg", [over], "EPSG:32660")
    with refuses("polygons-beyond-crs", path=path):
        open_labels(path, grid_of(90, 180, Affine(2, 0, -180, 0, -2, 90), LONLAT), burn=Burn())


def test_polygons_in_pixels(tmp_path: Path) -> None:
    """GeoJSON counts as degrees; for drawings in pixels the recipe has to say otherwise."""
    path = write(tmp_path / "a.geojson", SHAPES, LONLAT)
    with refuses("crs-one-sided", which="image has"):
        open_labels(path, PIXELS, burn=Burn())
    ids = whole(open_labels(path, PIXELS, burn=Burn(), georeference=HERE), PIXELS)
    assert np.array_equal(ids, rasterize(SHAPES, out_shape=(40, 50)))
    path.write_bytes(b"\xef\xbb\xbf \n" + path.read_bytes())  # a byte order mark is no harm
    doubled = GeoReference(None, (2.0, 0.0, 1.0, 0.0, 2.0, 3.0))
    moved = [placed(shape, Affine(*doubled.transform)) for shape in SHAPES]
    ids = whole(open_labels(path, PIXELS, burn=Burn(), georeference=doubled), PIXELS)
    assert np.array_equal(ids, rasterize(moved, out_shape=(40, 50)))


@pytest.mark.parametrize(
    ("burn", "code", "fields"),
    [
        (Burn("kind", {"wood": 1}), "value-without-id", {"field": "kind", "values": "'3', 'field'"}),
        (Burn("class", {"wood": 1}), "field-missing", {"field": "class", "fields": "kind"}),
        (Burn(layer="b"), "layer-missing", {"layers": "a"}),
    ],
)
def test_burns_that_do_not_fit(tmp_path: Path, burn: Burn, code: str, fields: dict[str, str]) -> None:
    shapes = [placed(shape, NORTH_UP) for shape in SHAPES]
    path = write(tmp_path / "a.gpkg", shapes, UTM, kind=["wood", "field", "3"])
    with refuses(code, path=path, **fields):
        open_labels(path, grid_of(40, 50), burn=burn)
    with pytest.raises(TrainingError):
        open_labels(path, grid_of(40, 50), burn=None)


def test_burns_that_contradict_themselves() -> None:
    for burn in ({"field": "a"}, {"values": {"a": 1}}):
        with pytest.raises(ValueError):
            Burn(**burn)


def test_several_layers(tmp_path: Path) -> None:
    for name, shape in (("one", SHAPES[0]), ("two", SHAPES[1])):
        path = write(tmp_path / "a.gpkg", [placed(shape, NORTH_UP)], UTM, layer=[name])
    with refuses("layer-missing", layers="one, two"):
        open_labels(path, grid_of(40, 50), burn=Burn())
    ids = whole(open_labels(path, grid_of(40, 50), burn=Burn(layer="two")), grid_of(40, 50))
    assert np.array_equal(ids, rasterize([SHAPES[1]], out_shape=(40, 50)))


@pytest.mark.parametrize(
    ("shapes", "crs", "code", "fields"),
    [
        ([shapely.box(0, 0, 9, 9)], UTM, "labels-elsewhere", {"image": grid_of(40, 50)}),
        ([shapely.box(-60, 0, -59, 1)], LONLAT, "labels-elsewhere", {}),
        ([], UTM, "labels-elsewhere", {"polygons": "0 polygons"}),
        ([shapely.Polygon()], UTM, "labels-elsewhere", {"polygons": "0 polygons"}),
        ([placed(SHAPES[0], NORTH_UP)], None, "crs-one-sided", {"which": "polygons have"}),
        ([shapely.Point(500001, 4999999), shapely.box(0, 0, 1, 1)], UTM, "geometry-unsupported", {"kinds": "Point"}),
    ],
)
def test_polygons_that_do_not_fit(
    tmp_path: Path, shapes: list[Any], crs: str | None, code: str, fields: dict[str, str]
) -> None:
    with pytest.warns(UserWarning, match="crs") if crs is None else nullcontext():
        path = write(tmp_path / "a.gpkg", shapes, crs)
    with refuses(code, **fields):
        open_labels(path, grid_of(40, 50), burn=Burn())


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("a.geojson", b'<OGRVRTDataSource><OGRVRTLayer name="x"/></OGRVRTDataSource>', "format-unsupported"),
        ("a.gpkg", b'{"type": "FeatureCollection", "features": []}', "format-unsupported"),
        ("a.shp", b"PK\x03\x04", "format-unsupported"),
        ("a.geojson", b'{"type": "FeatureCollection", "features": [{', "input-damaged"),
        ("a.shp", b"\x00\x00\x27\x0a" + bytes(200), "input-damaged"),
        ("b.geojson", None, "input-missing"),
    ],
)
def test_files_that_are_no_polygons(tmp_path: Path, name: str, content: bytes | None, code: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with refuses(code, path=tmp_path / name):
        open_labels(tmp_path / name, grid_of(40, 50), burn=Burn())


def test_cells_by_their_centres_and_by_shared_ground() -> None:
    shapes = Polygons(np.array([shapely.box(10, 10, 30, 21), shapely.Polygon([(40, 0), (50, 9), (40, 9), (50, 0)])]))
    windows = [Window(r, c, 10, 10) for r in range(0, 40, 10) for c in range(0, 50, 10)]
    centred, touched = (values.reshape(4, 5).astype(int).tolist() for values in shapes.cells(windows))
    assert centred == [[0, 0, 0, 0, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert touched == [[0, 0, 0, 0, 1], [0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]], "borders are not ground"


@pytest.mark.parametrize("missing", ["pyogrio", "shapely"])
def test_without_the_extra(tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.geojson", SHAPES, LONLAT)
    monkeypatch.setitem(sys.modules, missing, None)
    with refuses("extra-missing", package=missing, extra="vectors"):
        open_labels(path, PIXELS, burn=Burn())
