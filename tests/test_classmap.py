import itertools
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, WktVersion
from rio_cogeo.cogeo import cog_validate

from fcn_batch.pipeline.core.classes import NODATA, ClassInfo, Legend
from fcn_batch.pipeline.core.errors import InputError, OutputError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference, GroundControl
from fcn_batch.pipeline.core.sidefile import write_side_file
from fcn_batch.pipeline.raster import classmap
from fcn_batch.pipeline.raster.classmap import MapHead, write_cog
from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from fcn_batch.pipeline.raster.rasterfile import inspect
from tests.errors import refuses

UTM = CRS.from_epsg(32633).to_wkt()
NORTH_UP = GeoReference(UTM, (10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0))
LEGEND = Legend(
    classes=(
        ClassInfo(id=3, name='<bare> & "dry" soil', colour="#aa8866"),
        ClassInfo(id=0, name="water", colour="#1f78b4"),
    )
)


def ids(height: int, width: int) -> NDArray[np.uint8]:
    """Blobs of the classes 0 and 3 and of no data."""
    coarse = np.random.default_rng(1).choice(np.array([0, 3, NODATA], np.uint8), (height // 7 + 1, width // 7 + 1))
    return np.repeat(np.repeat(coarse, 7, axis=0), 7, axis=1)[:height, :width]


TAGS: dict[str, str | int] = {"fcn:exactness": "exact", "fcn:tile": 512}


def parts(values: NDArray[np.uint8], step: int) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
    height, width = values.shape
    for row, col in itertools.product(range(0, height, step), range(0, width, step)):
        window = Window(row, col, step, step).clipped(Size(height, width))
        rows, cols = window.slices()
        yield window, values[rows, cols]


def write(folder: Path, values: NDArray[np.uint8], ref: GeoReference = NORTH_UP, step: int = 512) -> Path:
    path = folder / "map.tif"
    write_cog(path, MapHead(ref, Size(*values.shape), LEGEND, TAGS), parts(values, step))
    return path


def opened(path: Path) -> Any:
    with accept_pixel_space():
        return rasterio.open(path)


def test_a_valid_cog_with_all_that_was_said(tmp_path: Path) -> None:
    values = ids(1100, 1030)
    path = write(tmp_path, values)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.tif", "map.tif.aux.xml"]
    valid, errors, _ = cog_validate(path, strict=True)
    assert valid, errors
    with opened(path) as dataset:
        assert (dataset.read(1) == values).all()
        assert dataset.crs == CRS.from_epsg(32633)
        assert tuple(dataset.transform)[:6] == NORTH_UP.transform
        assert dataset.nodata == NODATA
        assert dataset.block_shapes == [(512, 512)]
        assert dataset.colorinterp == (ColorInterp.palette,)
        assert dataset.colormap(1)[3] == (0xAA, 0x88, 0x66, 255)
        assert dataset.colormap(1)[0] == (0x1F, 0x78, 0xB4, 255)
        assert dataset.descriptions == ("classes",)
        assert dataset.tags(1)["flag_values"] == "3 0"
        assert dataset.tags(1)["flag_meanings"] == "_bare_dry_soil water"
        assert (dataset.tags()["fcn_exactness"], dataset.tags()["fcn_tile"]) == ("exact", "512")


def test_overviews_take_the_most_frequent_class(tmp_path: Path) -> None:
    values = np.zeros((1024, 1024), np.uint8)
    values[::2, ::2] = 3  # one pixel of four, the one that nearest-neighbour would take
    path = write(tmp_path, values)
    with accept_pixel_space(), rasterio.open(path, overview_level=0) as overview:
        assert (overview.read(1) == 0).all()


def test_gdal_reads_the_class_names_and_the_table(tmp_path: Path) -> None:
    path = write(tmp_path, ids(20, 20))
    with accept_pixel_space():
        rasterio.shutil.copy(path, tmp_path / "copy.vrt", driver="VRT")  # says in XML what GDAL has understood
    band = ET.parse(tmp_path / "copy.vrt").find("VRTRasterBand")  # noqa: S314  (written by us)
    assert band is not None
    names = [e.text or "" for e in band.findall("CategoryNames/Category")]
    assert names == ["water", "", "", '<bare> & "dry" soil']
    table = band.find("GDALRasterAttributeTable")
    assert table is not None
    assert table.get("tableType") == "thematic"
    assert [[f.text for f in row] for row in table.findall("Row")] == [
        ["0", "water", "31", "120", "180", "255"],
        ["3", '<bare> & "dry" soil', "170", "136", "102", "255"],
    ]
    assert [e.text for e in table.findall("FieldDefn/Usage")] == ["5", "2", "6", "7", "8", "9"]


def test_names_with_control_characters_stay_readable(tmp_path: Path) -> None:
    legend = Legend(classes=(ClassInfo(id=1, name="a\0b\x1bc é", colour="#000000"),))
    side = write_side_file(tmp_path / "map.tif", legend)
    texts = [e.text for e in ET.parse(side).iter("Category")]  # noqa: S314  (written by us)
    assert texts == [None, "a\ufffdb\ufffdc é"]


@pytest.mark.parametrize(
    "ref",
    [
        GeoReference(UTM, (10.0, 0.0, 500000.0, 0.0, 10.0, 4000000.0)),
        GeoReference(UTM, (3.0, 4.0, 500000.0, 4.0, -3.0, 4000000.0)),
        GeoReference(None, (10.0, 0.0, 500000.0, 0.0, -10.0, 4000000.0)),
        GeoReference(UTM, IDENTITY),
        GeoReference(None, IDENTITY),
    ],
    ids=["south-up", "rotated", "no crs", "no transform", "pixel space"],
)
def test_every_georeference_survives(tmp_path: Path, ref: GeoReference) -> None:
    values = ids(700, 600)
    path = write(tmp_path, values, ref)
    info = inspect(path)
    assert info.georeference.transform == ref.transform
    assert (info.georeference.crs_wkt is None) == (ref.crs_wkt is None)
    with opened(path) as dataset:
        assert (dataset.read(1) == values).all()
        assert ref.crs_wkt is None or dataset.crs == CRS.from_epsg(32633)


PIXELS = GeoReference(None, IDENTITY)
POINTS = ((0.0, 0.0, 10 / 3, 50.0, 0.0), (0.0, 600.0, 10.5, 50.1, 120.25), (700.0, 0.5, 10.0, 49.0, -3.0))


def with_points(folder: Path, ground: GroundControl) -> Path:
    values = ids(700, 600)
    write_cog(folder / "map.tif", MapHead(PIXELS, Size(700, 600), LEGEND, TAGS, ground), parts(values, 512))
    return folder / "map.tif"


@pytest.mark.parametrize("crs", [CRS.from_epsg(4326), CRS.from_epsg(32633), None], ids=["degrees", "metres", "unknown"])
def test_ground_control_points_are_carried_on(tmp_path: Path, crs: CRS | None) -> None:
    path = with_points(tmp_path, GroundControl(None if crs is None else crs.to_wkt(), POINTS))
    assert cog_validate(path, strict=True)[0]
    Path(f"{path}.aux.xml").unlink()  # the file itself has them
    found = inspect(path).ground
    assert found is not None
    assert np.allclose(found.points, POINTS, rtol=1e-15)
    assert (None if found.crs_wkt is None else CRS.from_wkt(found.crs_wkt)) == crs
    with opened(path) as dataset:
        assert (dataset.crs, tuple(dataset.transform)[:6]) == (None, IDENTITY)
        assert (dataset.read(1) == ids(700, 600)).all()


def test_points_that_a_geotiff_has_no_room_for_stand_beside_it(tmp_path: Path) -> None:
    number = np.arange(11_000.0)
    many = np.stack([number % 700, number % 599, number / 7, -number / 3, 0 * number], axis=1)
    path = with_points(tmp_path, GroundControl(UTM, tuple(map(tuple, many.tolist()))))
    assert len(ET.parse(tmp_path / "map.tif.aux.xml").findall("GCPList/GCP")) == 11_000  # noqa: S314 (ours)
    found = inspect(path).ground
    assert found is not None
    assert np.array_equal(found.points, many)
    assert CRS.from_wkt(str(found.crs_wkt)) == CRS.from_epsg(32633)


# The first two have no GeoTIFF keys; rasterio reads the third in other words than it is written in.
@pytest.mark.parametrize(
    ("proj", "beside"),
    [
        ("+proj=ob_tran +o_proj=longlat +o_lon_p=-162 +o_lat_p=39.25 +lon_0=180 +R=6371000", True),
        ("+proj=vandg4", True),
        ("+proj=geos +h=35785831 +lon_0=-75 +sweep=x +ellps=GRS80", False),
        ("EPSG:4326", False),
    ],
    ids=["rotated pole", "vandg4", "geostationary", "degrees"],
)
def test_reference_systems_that_geotiff_cannot_say_stand_beside_it(tmp_path: Path, proj: str, beside: bool) -> None:
    crs, transform = CRS.from_string(proj), (0.1, 0.0, 1 / 3, 0.0, -0.1, 7.7)
    wkt = crs.to_wkt(version=WktVersion.WKT2_2019)
    path = write(tmp_path, ids(700, 600), GeoReference(wkt, transform))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.tif", "map.tif.aux.xml"]
    with rasterio.open(path) as dataset:
        assert dataset.crs in (crs, CRS.from_wkt(crs.to_wkt()))
        assert tuple(dataset.transform)[:6] == transform
    assert inspect(path).georeference.transform == transform
    root = ET.parse(tmp_path / "map.tif.aux.xml").getroot()  # noqa: S314  (written by us)
    assert root.findtext("SRS") == (wkt if beside else None)
    assert cog_validate(path, strict=True)[0]


def test_differences_of_place_and_of_control_points_are_found(tmp_path: Path) -> None:
    path, size = write(tmp_path, ids(9, 9)), Size(9, 9)
    assert classmap.place_differs(path, MapHead(NORTH_UP, size, LEGEND)) is None
    for ref in (
        GeoReference(CRS.from_epsg(32634).to_wkt(), NORTH_UP.transform),
        GeoReference(None, NORTH_UP.transform),
        GeoReference(UTM, (10.0, 0.0, 500001.0, 0.0, -10.0, 5000000.0)),
    ):
        assert classmap.place_differs(path, MapHead(ref, size, LEGEND)) is not None
    path, size = with_points(tmp_path, GroundControl(UTM, POINTS)), Size(700, 600)
    assert classmap.place_differs(path, MapHead(PIXELS, size, LEGEND, {}, GroundControl(UTM, POINTS))) is None
    for ground in (
        GroundControl(UTM, POINTS[:2]),
        GroundControl(UTM, (*POINTS[:2], (700.0, 0.5, 10.0, 49.0, -2.0))),
        GroundControl(CRS.from_epsg(4326).to_wkt(), POINTS),
        GroundControl(None, POINTS),
        None,
    ):
        assert classmap.place_differs(path, MapHead(PIXELS, size, LEGEND, {}, ground)) is not None


@pytest.mark.parametrize(
    ("checked", "says", "code", "fields"),
    [
        ("place_differs", lambda *_: "it is elsewhere", "place-lost", {"differs": "it is elsewhere"}),
        ("_checksum", lambda _: object(), "output-damaged", {"where": "rows 0..8, cols 0..8"}),
    ],
)
def test_a_map_that_is_other_than_it_was_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: str, says: Any, code: str, fields: dict[str, str]
) -> None:
    monkeypatch.setattr(classmap, checked, says)
    with refuses(code, path=tmp_path / "map.tif", **fields):
        write(tmp_path, ids(9, 9))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 900)])
def test_tiny_maps(tmp_path: Path, shape: tuple[int, int]) -> None:
    values = ids(*shape)
    with opened(write(tmp_path, values)) as dataset:
        assert (dataset.read(1) == values).all()


def test_the_file_does_not_depend_on_windows_and_their_order(tmp_path: Path) -> None:
    values = ids(1100, 1100)
    first = write(tmp_path, values, step=512).read_bytes()
    assert write(tmp_path, values, step=300).read_bytes() == first
    path = tmp_path / "map.tif"
    backwards = reversed(list(parts(values, 256)))
    write_cog(path, MapHead(NORTH_UP, Size(1100, 1100), LEGEND, TAGS), backwards)
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    "windows",
    [
        [],
        [(Window(0, 0, 4, 4), np.zeros((4, 3), np.uint8))],
        [(Window(0, 0, 4, 4), np.zeros((4, 4), np.int64))],
        [(Window(0, 1, 4, 4), np.zeros((4, 4), np.uint8))],
    ],
)
def test_windows_that_do_not_fit_leave_nothing(tmp_path: Path, windows: list[Any]) -> None:
    with pytest.raises(ValueError):
        write_cog(tmp_path / "map.tif", MapHead(NORTH_UP, Size(4, 4), LEGEND), windows)
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_caller_pass_through(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[Window, NDArray[np.uint8]]]:
        yield Window(0, 0, 2, 4), np.zeros((2, 4), np.uint8)
        raise InputError("lost", "a chunk is lost")

    with refuses("lost"):
        write_cog(tmp_path / "map.tif", MapHead(NORTH_UP, Size(4, 4), LEGEND), broken())
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with refuses("output-unwritable", folder=tmp_path / "none"):
        write_cog(tmp_path / "none" / "map.tif", MapHead(NORTH_UP, Size(9, 9), LEGEND), parts(ids(9, 9), 9))
    with pytest.raises(OutputError):
        write_side_file(tmp_path / "none" / "map.tif", LEGEND)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [100, 20_000, 200_000, 350_000])
def test_a_full_disk_is_an_output_error_and_leaves_nothing(tmp_path: Path, limit: int) -> None:
    # Files that may not grow stand for a full disk: both fail in write(2).
    values = np.random.default_rng(0).integers(0, 4, (1100, 1100), np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        with pytest.raises(OutputError) as caught:
            write(tmp_path, values)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.code in ("output-unwritable", "output-damaged")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_map_is_replaced_with_its_companions_and_survives_a_failure(tmp_path: Path) -> None:
    first = write(tmp_path, ids(40, 40)).read_bytes()
    with pytest.raises(ValueError):
        write_cog(tmp_path / "map.tif", MapHead(NORTH_UP, Size(9, 9), LEGEND), [])
    assert (tmp_path / "map.tif").read_bytes() == first
    for stale in (".ovr", ".msk"):
        (tmp_path / f"map.tif{stale}").write_bytes(b"of another map")
    assert write(tmp_path, ids(50, 50)).read_bytes() != first
    assert sorted(one.name for one in tmp_path.iterdir()) == ["map.tif", "map.tif.aux.xml"]
