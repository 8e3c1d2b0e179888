"""The quick look: right colours in the right places, honest numbers, scale and north as the ground has them."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from pyproj import Geod
from rasterio.io import MemoryFile

from fcn_batch.pipeline.core.geometry import Size
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference
from fcn_batch.pipeline.core.maps import Ids
from fcn_batch.pipeline.raster.crs import row_areas_m2
from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from fcn_batch.pipeline.raster.ground import Ground, ground_of
from fcn_batch.workflows.console.progress import Quiet
from fcn_batch.workflows.finished.quicklook import NODATA_COLOUR, quicklook_png
from fcn_batch.workflows.finished.survey import survey
from tests.errors import refuses
from tests.memorymaps import ArrayMap, legend_of, patches, utm, wkt

METRE = Ground(1.0, (-1.0, 0.0), same=True)


def pixels(png: bytes) -> NDArray[np.int64]:
    """(rows, cols, 3), as GDAL reads it."""
    with accept_pixel_space(), MemoryFile(png) as file, file.open() as dataset:
        assert dataset.driver == "PNG"
        shown: NDArray[np.uint8] = dataset.read()
        return np.moveaxis(shown[:3], 0, -1).astype(np.int64)


def look(ids: Ids, *names: str, ground: Ground | None = None, title: str = "map") -> NDArray[np.int64]:
    return pixels(quicklook_png(survey(ArrayMap(ids, legend_of(*names)), 2000, Quiet()), ground, title))


def is_colour(picture: NDArray[np.int64], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    return np.asarray((picture == colour).all(axis=-1))


def halved_by_hand(ids: Ids) -> Ids:
    """Each pixel by itself: the most frequent class of four with data, of several the first in reading order."""
    rows, cols = -(-ids.shape[0] // 2), -(-ids.shape[1] // 2)
    result = np.full((rows, cols), 255, np.uint8)
    for row, col in np.ndindex(rows, cols):
        four = [int(k) for k in ids[2 * row : 2 * row + 2, 2 * col : 2 * col + 2].ravel() if k != 255]
        if four:
            result[row, col] = max(four, key=four.count)
    return result


@pytest.mark.parametrize("side", [5, 20, 1000])
def test_a_survey_does_not_depend_on_its_windows(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcn_batch.workflows.finished.survey._WINDOW_PIXELS", 500)
    monkeypatch.setattr("fcn_batch.workflows.finished.survey._SIDE", 16)
    ids = patches(61, 83, 3, side=4)
    ids[5:9, 60:70] = 255
    ref = GeoReference(wkt("EPSG:4326"), (2.0, 0.0, -80.0, 0.0, -2.0, 80.0))
    seen = survey(ArrayMap(ids, legend_of("a", "b", "c"), ref), side, Quiet())
    assert max(seen.ids.shape) <= side
    expected = ids
    for _ in range(int(math.log2(seen.step))):
        expected = halved_by_hand(expected)
    assert np.array_equal(seen.ids, expected)
    areas = row_areas_m2(ref, Size(61, 83))
    assert areas is not None
    for one in seen.classes:
        here = ids == one.info.id
        assert one.pixels == here.sum()
        assert one.share == pytest.approx(here.sum() / (ids != 255).sum())
        assert one.area_m2 == pytest.approx((here * areas[:, None]).sum())
    assert seen.nodata == (ids == 255).sum() == 40


def test_classes_that_nobody_named_get_a_name_and_a_colour() -> None:
    seen = survey(ArrayMap(np.array([[0, 9, 200]], np.uint8), legend_of("water")), 10, Quiet())
    assert [one.info.name for one in seen.classes] == ["water", "class 9", "class 200"]
    assert len({one.info.colour for one in seen.classes}) == 3


def test_a_map_without_any_class_has_nothing_to_show() -> None:
    with refuses("map-empty"):
        survey(ArrayMap(np.full((2, 2), 255, np.uint8)), 10, Quiet())


def test_every_pixel_of_the_map_is_drawn_in_its_colour() -> None:
    ids = patches(30, 40, 3, seed=4)
    ids[0:10, 0:10] = 255
    picture = look(ids, "a", "b", "c")
    zoom = 900 // 40
    for class_id, colour in [*((one.id, one.rgb) for one in legend_of("a", "b", "c").classes), (255, NODATA_COLOUR)]:
        drawn = is_colour(picture, colour)
        wanted = (ids == class_id).repeat(zoom, axis=0).repeat(zoom, axis=1)
        rows, cols = np.nonzero(is_colour(picture, NODATA_COLOUR))
        top, left = rows.min(), cols.min()  # no data is in the map's upper left corner
        assert np.array_equal(drawn[top : top + 30 * zoom, left : left + 40 * zoom], wanted)
        legend = drawn[top + 30 * zoom + 5 :]
        assert legend.sum() > 50  # its swatch


def test_the_most_frequent_class_comes_first() -> None:
    ids = np.zeros((40, 40), np.uint8)
    ids[:30] = 1
    picture = look(ids, "few", "many", "absent")
    legend = picture[-45:]
    swatches = [np.argwhere(is_colour(legend, one.rgb)) for one in legend_of("few", "many", "absent").classes]
    assert len(swatches[2]) == 0
    few, many = (found.min(axis=0) for found in swatches[:2])
    assert tuple(many[::-1]) < tuple(few[::-1])  # in the column before, or above


@pytest.mark.parametrize("metres", [0.25e-6, 7421.3])
def test_the_scale_bar_is_as_long_as_it_says(metres: float) -> None:
    ids = np.zeros((300, 900), np.uint8)
    with_bar = look(ids, "a", ground=Ground(metres, None, same=True))
    rows, cols = np.nonzero(is_colour(with_bar[420:], (0x1B, 0x1F, 0x23)))
    lengths = [np.ptp(cols[rows == row]) for row in np.unique(rows)]
    most = max(lengths) / 0.75  # the last quarter is white
    # 1, 2 or 5 times a power of ten, at most 22 % of the map
    length = most * metres
    digit = length / 10 ** math.floor(math.log10(length) + 0.02)
    assert min(abs(digit - nice) / nice for nice in (1, 2, 5)) < 0.05
    assert 0.08 * 900 < most <= 0.225 * 900


def test_the_arrow_points_where_north_is() -> None:
    """Without a place there is neither arrow nor bar."""
    ids = np.zeros((90, 90), np.uint8)
    up, down = (look(ids, "a", ground=Ground(1.0, north, same=True)) for north in ((-1.0, 0.0), (1.0, 0.0)))
    assert up.shape == down.shape
    corner = (slice(-160, -60), slice(-60, None))
    ink_up, ink_down = (is_colour(one, (0x1B, 0x1F, 0x23))[corner].nonzero() for one in (up, down))
    assert abs(ink_up[0].mean() - ink_down[0].mean()) > 3
    bare = look(ids, "a")
    assert bare.shape[0] < up.shape[0]
    ink = [is_colour(one, (0x1B, 0x1F, 0x23))[-150:, -300:].sum() for one in (bare, up)]
    assert ink[0] == 0
    assert ink[1] > 200


def test_any_name_is_drawn_as_it_is() -> None:
    names = ("$x^2$", "$\\frac{$", "森林", "a\nb\tc", "n" * 100)
    ids = np.arange(25, dtype=np.uint8).reshape(5, 5) % 5
    picture = look(ids, *names, title="$\\frac{$ 森 " + "t" * 300)
    assert 900 < picture.shape[1] < 1200


@pytest.mark.parametrize("shape", [(2, 900), (900, 2), (1, 1)])
def test_maps_of_any_shape(shape: tuple[int, int]) -> None:
    picture = look(np.zeros(shape, np.uint8), "a", ground=METRE)
    assert picture.shape[0] > 100
    assert picture.shape[1] > 200


def test_the_same_map_makes_the_same_bytes() -> None:
    seen = survey(ArrayMap(patches(50, 50, 3)), 2000, Quiet())
    assert quicklook_png(seen, METRE, "a") == quicklook_png(seen, METRE, "a")


@pytest.mark.parametrize(
    ("code", "transform"),
    [
        ("EPSG:32633", (10.0, 0.0, 300000.0, 0.0, -10.0, 6500000.0)),
        ("EPSG:32633", (6.0, 8.0, 500000.0, 8.0, -6.0, 5000000.0)),  # rotated
        ("EPSG:4326", (0.001, 0.0, 20.0, 0.0, 0.001, 60.0)),  # south-up
        ("EPSG:3857", (30.0, 0.0, 0.0, 0.0, -30.0, 8000000.0)),
        ("EPSG:2263", (3.0, 0.0, 980000.0, 0.0, -3.0, 200000.0)),  # feet
        ("EPSG:4326", (0.002, 0.0, 179.8, 0.0, -0.002, 1.0)),  # across the antimeridian
    ],
)
def test_scale_and_north_are_those_of_the_ellipsoid(
    code: str, transform: tuple[float, float, float, float, float, float]
) -> None:
    from rasterio.warp import transform as to_degrees

    size = Size(100, 200)
    found = ground_of(GeoReference(wkt(code), transform), size)
    assert found is not None
    assert found.north is not None

    def place(row: float, col: float) -> tuple[float, float]:
        a, b, c, d, e, f = transform
        lon, lat = to_degrees(code, "EPSG:4326", [a * col + b * row + c], [d * col + e * row + f])
        return lon[0], lat[0]

    ellipsoid = Geod(ellps="WGS84")
    azimuth, _, length = ellipsoid.inv(*place(50, 99), *place(50, 101))
    assert found.metres == pytest.approx(length / 2, rel=1e-4)
    row, col = found.north
    azimuth, _, _ = ellipsoid.inv(*place(50, 100), *place(50 + row, 100 + col))
    assert azimuth == pytest.approx(0, abs=0.05)


def test_what_is_not_known_is_not_said() -> None:
    size = Size(10, 10)
    assert ground_of(GeoReference(None, IDENTITY), size) is None
    assert ground_of(GeoReference(None, IDENTITY), size, 0.25) == Ground(0.25e-6, None, same=True)
    drawing = 'ENGCRS["x",EDATUM["y"],CS[Cartesian,2],AXIS["a",east],AXIS["b",north],LENGTHUNIT["m",1]]'
    assert ground_of(GeoReference(drawing, IDENTITY), size) is None


def test_a_scale_that_changes_is_told() -> None:
    world = GeoReference(wkt("EPSG:4326"), (1.0, 0.0, -180.0, 0.0, -1.0, 90.0))
    found = ground_of(world, Size(180, 360))
    assert found is not None
    assert not found.same
    small = ground_of(utm(), Size(180, 360))
    assert small is not None
    assert small.same
