import json
import math

import numpy as np
import pytest
from pyproj import CRS, Geod, Transformer

from fcn_batch.pipeline.core.geometry import Size
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference
from fcn_batch.pipeline.raster.crs import authority_code, cf_grid_mapping, coordinate_attributes, row_areas_m2
from tests.errors import refuses

NORTH_UP = (10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0)
SHIFTED = "+proj=laea +ellps=GRS80 +towgs84=1,2,3"
LOCAL = 'LOCAL_CS["x",UNIT["metre",1]]'
ROTATED_POLE = "+proj=ob_tran +o_proj=longlat +o_lat_p=39 +lon_0=18 +R=6371229"


def reference(crs: str | int, transform: tuple[float, float, float, float, float, float] = NORTH_UP) -> GeoReference:
    return GeoReference(CRS.from_user_input(crs).to_wkt(), transform)


def test_grid_mapping_of_utm() -> None:
    mapping = cf_grid_mapping(reference(32633))
    assert mapping["grid_mapping_name"] == "transverse_mercator"
    assert mapping["spatial_ref"] == mapping["crs_wkt"]
    assert CRS.from_wkt(str(mapping["spatial_ref"])) == CRS.from_epsg(32633)
    assert str(mapping["crs_wkt"]).startswith("PROJCRS[")
    assert mapping["GeoTransform"] == "500000.0 10.0 0.0 5000000.0 0.0 -10.0"


@pytest.mark.parametrize("crs", [4326, 2263, 3031, 3857, "EPSG:32633+5773", SHIFTED, LOCAL, ROTATED_POLE])
def test_grid_mapping_of_any_system_reads_back_from_json(crs: str | int) -> None:
    ref = reference(crs)
    mapping = cf_grid_mapping(ref)
    assert json.loads(json.dumps(mapping)) == mapping
    assert CRS.from_wkt(str(mapping["spatial_ref"])) == CRS.from_wkt(str(ref.crs_wkt))


def test_no_crs_leaves_the_transform_alone() -> None:
    ref = GeoReference(None, NORTH_UP)
    assert cf_grid_mapping(ref) == {"GeoTransform": ref.gdal_geotransform}
    assert authority_code(ref) is None
    assert row_areas_m2(ref, Size(5, 1)) is None
    y, x = coordinate_attributes(ref)
    assert (y["axis"], x["axis"]) == ("Y", "X")
    assert "units" not in y


def test_unreadable_wkt_is_an_input_error() -> None:
    with refuses("crs-invalid", wkt="nonsense"):
        cf_grid_mapping(GeoReference("nonsense", IDENTITY))


@pytest.mark.parametrize("code", ["EPSG:32633", "EPSG:4326", "EPSG:7405", "IAU_2015:30100"])
def test_authority_code_of_registered_systems(code: str) -> None:
    assert authority_code(reference(code)) == code


def test_authority_code_without_an_id_in_the_wkt() -> None:
    wkt = CRS.from_epsg(32633).to_wkt("WKT1_ESRI")
    assert "EPSG" not in wkt
    assert authority_code(GeoReference(wkt, NORTH_UP)) == "EPSG:32633"


def test_changed_parameters_have_no_authority_code() -> None:
    changed = CRS.from_epsg(32633).to_wkt().replace("0.9996", "0.9997")
    assert authority_code(GeoReference(changed, NORTH_UP)) is None
    assert authority_code(reference("EPSG:32633+5773")) is None


def test_coordinates_of_projected_systems() -> None:
    y, x = coordinate_attributes(reference(2193))  # its first axis is the northing
    assert y == {"standard_name": "projection_y_coordinate", "axis": "Y", "units": "m"}
    assert x == {"standard_name": "projection_x_coordinate", "axis": "X", "units": "m"}
    feet, _ = coordinate_attributes(reference(2263))
    assert feet["units"] == "0.30480060960121924 m"
    assert coordinate_attributes(reference("+proj=utm +zone=33 +units=km"))[0]["units"] == "km"


def test_coordinates_of_geographic_systems() -> None:
    y, x = coordinate_attributes(reference(4326))
    assert (y["standard_name"], y["units"]) == ("latitude", "degrees_north")
    assert (x["standard_name"], x["units"]) == ("longitude", "degrees_east")
    y, x = coordinate_attributes(reference(ROTATED_POLE))
    assert (y["standard_name"], x["units"]) == ("grid_latitude", "degrees")


@pytest.mark.parametrize(
    ("code", "transform"),
    [
        (32633, NORTH_UP),
        (32633, (30.0, 40.0, 400000.0, 40.0, -30.0, 5000000.0)),
        (2263, (100.0, 0.0, 980000.0, 0.0, -100.0, 200000.0)),
        (3035, (1000.0, 0.0, 4000000.0, 0.0, 1000.0, 2000000.0)),
        (3995, (50.0, 0.0, 1000000.0, 0.0, -50.0, -900000.0)),
    ],
)
def test_areas_of_projected_pixels_agree_with_geodesic_polygons(
    code: int, transform: tuple[float, float, float, float, float, float]
) -> None:
    size = Size(4, 2)
    areas = row_areas_m2(reference(code, transform), size)
    assert areas is not None
    crs = CRS.from_epsg(code)
    geod = crs.get_geod()
    assert crs.geodetic_crs is not None
    assert geod is not None
    to_degrees = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    a, b, c, d, e, f = transform
    for row in range(size.height):
        # the pixel around the middle column, with many vertices along its edges
        along = np.linspace(0, 1, 100)
        col = np.concatenate([along, np.ones(100), along[::-1], np.zeros(100)]) + 0.5
        down = np.concatenate([np.zeros(100), along, np.ones(100), along[::-1]]) + row
        lon, lat = to_degrees.transform(a * col + b * down + c, d * col + e * down + f)
        area, _ = geod.polygon_area_perimeter(lon, lat)
        assert areas[row] == pytest.approx(abs(area), rel=1e-5)


def test_web_mercator_pixels_shrink_away_from_the_equator() -> None:
    y = math.log(math.tan(math.radians(75))) * 6378137  # 60 degrees north
    at_sixty = row_areas_m2(reference(3857, (1.0, 0.0, 0.0, 0.0, -1.0, y)), Size(1, 1))
    assert at_sixty is not None
    assert at_sixty[0] == pytest.approx(0.25, rel=1e-6)


def test_no_area_outside_the_projection() -> None:
    assert row_areas_m2(reference(3035, (1e7, 0.0, 0.0, 0.0, -1e7, 1e8)), Size(4, 4)) is None


@pytest.mark.parametrize("top", [80.0, 45.0, 0.05, -60.0])
def test_areas_of_geographic_pixels_agree_with_geodesic_polygons(top: float) -> None:
    step, height = 0.1, 4
    areas = row_areas_m2(reference(4326, (step, 0.0, 7.0, 0.0, -step, top)), Size(height, 1))
    assert areas is not None
    # Parallels are no geodesics: many vertices along them bring the polygon close.
    lons = np.linspace(7.0, 7.0 + step, 400)
    for row in range(height):
        north, south = top - row * step, top - (row + 1) * step
        lon = np.concatenate([lons, lons[::-1]])
        lat = np.concatenate([np.full(400, south), np.full(400, north)])
        area, _ = Geod(ellps="WGS84").polygon_area_perimeter(lon, lat)
        assert areas[row] == pytest.approx(abs(area), rel=1e-8)


def test_the_whole_earth() -> None:
    areas = row_areas_m2(reference(4326, (1.0, 0.0, -180.0, 0.0, -1.0, 90.0)), Size(180, 360))
    assert areas is not None
    assert 360 * areas.sum() == pytest.approx(510065621724089.0, rel=1e-12)  # of WGS 84
    moon = row_areas_m2(reference("IAU_2015:30100", (1.0, 0.0, -180.0, 0.0, 1.0, -90.0)), Size(180, 360))
    assert moon is not None
    assert 360 * moon.sum() == pytest.approx(4 * math.pi * 1737400.0**2, rel=1e-12)


def test_rows_beyond_a_pole_have_no_area() -> None:
    areas = row_areas_m2(reference(4326, (1.0, 0.0, 0.0, 0.0, -1.0, 92.0)), Size(3, 1))
    assert areas is not None
    assert areas[:2].tolist() == [0.0, 0.0]
    assert areas[2] > 0


def test_grads_give_the_same_area_as_degrees() -> None:
    degrees = row_areas_m2(
        reference("+proj=longlat +a=6378249.2 +b=6356515", (0.9, 0.0, 0.0, 0.0, -0.9, 45.0)), Size(1, 1)
    )
    grads = row_areas_m2(reference(4807, (1.0, 0.0, 0.0, 0.0, -1.0, 50.0)), Size(1, 1))
    assert degrees is not None
    assert grads is not None
    assert grads[0] == pytest.approx(degrees[0], rel=1e-9)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        (4326, (1.0, 0.1, 0.0, 0.1, -1.0, 10.0)),
        (ROTATED_POLE, (1.0, 0.0, 0.0, 0.0, -1.0, 10.0)),
        (LOCAL, NORTH_UP),
    ],
)
def test_no_areas_where_they_cannot_be_said(
    crs: str | int, transform: tuple[float, float, float, float, float, float]
) -> None:
    assert row_areas_m2(reference(crs, transform), Size(4, 4)) is None
