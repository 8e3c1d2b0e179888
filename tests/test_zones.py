"""The table of classes by zone says what brute force says, zone by zone."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from rasterio.features import rasterize

from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.raster.crs import row_areas_m2
from fcn_batch.workflows.console.progress import PIXELS, Quiet, Unit
from fcn_batch.workflows.finished import maps
from fcn_batch.workflows.finished.maps import open_map
from fcn_batch.workflows.finished.zones import write_zones
from tests.classmaps import LEGEND, PLACES, blobs, write_store, write_tif
from tests.errors import refuses
from tests.test_clip import SHAPES, write

IDS = blobs(50, 70)
NAMES = {entry.id: entry.name for entry in LEGEND.classes}
# The last two: away from the map, and on pixels without data only.
EMPTY = np.argwhere(IDS == 255)[0].tolist()
ZONES = [*SHAPES, shapely.box(300, 300, 310, 310), shapely.box(EMPTY[1], EMPTY[0], EMPTY[1] + 1, EMPTY[0] + 1)]
WORDS = ["a", "b", "b", "away, far", "bare"]


class Counted(Quiet):
    """Adds up what is said to be done."""

    def __init__(self) -> None:
        self.total = self.done = 0

    def start(self, what: str, total: int, done: int, unit: Unit = PIXELS) -> None:
        assert (what, done, unit) == ("zones", 0, PIXELS)
        self.total = total

    def advance(self, amount: int) -> None:
        self.done += amount


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def by_brute_force(ids: NDArray[np.uint8], place: GeoReference, shapes: list[Any], words: list[str]) -> list[Any]:
    """Rows as they should be: every zone burned on the whole map, alone."""
    areas = row_areas_m2(place, Size(*ids.shape))
    rows: list[Any] = []
    for word, shape in zip(words, shapes, strict=True):
        inside = rasterize([shape], out_shape=ids.shape) == 1
        total = (ids[inside] != 255).sum()
        for k, name in NAMES.items():
            mine = inside & (ids == k)
            area = "" if areas is None else pytest.approx((mine.sum(axis=1) * areas).sum(), rel=1e-12)
            rows.append((word, k, name, mine.sum(), area, pytest.approx(mine.sum() / total) if total else ""))
    return rows


def as_rows(path: Path) -> list[Any]:
    def number(text: str) -> Any:
        return float(text) if text else ""

    keys: dict[str, Callable[[str], Any]] = {
        "zone": str,
        "class_id": int,
        "class": str,
        "pixels": int,
        "area_m2": number,
        "share": number,
    }
    return [tuple(kind(row[key]) for key, kind in keys.items()) for row in rows_of(path)]


@pytest.mark.parametrize(
    ("where", "side"), [("north up", 2048), ("south up", 16), ("rotated", 16), ("degrees", 2048), ("degrees", 16)]
)
def test_zones_are_counted_each_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, side: int
) -> None:
    monkeypatch.setattr(maps, "_SIDE", side)  # one chunk, or many
    place = PLACES[where]
    source = open_map(write_store(tmp_path / "m.classes.zarr", IDS, place))
    path = write(tmp_path / "z.gpkg", ZONES, place, name=WORDS)
    progress = Counted()
    write_zones(source, path, tmp_path / "t.csv", progress, name_field="name")
    assert as_rows(tmp_path / "t.csv") == by_brute_force(IDS, place, ZONES, WORDS)
    assert progress.done == progress.total == IDS.size
    write_zones(source, path, tmp_path / "n.csv", Quiet())
    assert as_rows(tmp_path / "n.csv") == by_brute_force(IDS, place, ZONES, ["1", "2", "3", "4", "5"])


def test_zones_in_another_system_keep_their_numbers(tmp_path: Path) -> None:
    place = PLACES["north up"]
    source = open_map(write_store(tmp_path / "m.classes.zarr", IDS, place))
    shapes = [shapely.box(9000, 0, 9010, 10), shapely.box(4.2, 3.2, 30.2, 40.2), shapely.box(40.2, 2.2, 60.2, 9.2)]
    path = write(tmp_path / "z.geojson", shapes, place, "EPSG:4326", code=[7, 8, 9])
    write_zones(source, path, tmp_path / "t.csv", Quiet(), name_field="code")
    assert as_rows(tmp_path / "t.csv") == by_brute_force(IDS, place, shapes, ["7", "8", "9"])


def test_a_zone_of_many_vertices_is_one_zone(tmp_path: Path) -> None:
    """Large polygons are cut into pieces for speed; that must not show."""
    place = PLACES["north up"]
    angle = np.linspace(0, 2 * np.pi, 9000, endpoint=False)
    radius = 20 + 2 * np.sin(40 * angle)
    shape = shapely.Polygon(np.stack([35 + radius * np.cos(angle), 25 + radius * np.sin(angle)], axis=1))
    source = open_map(write_store(tmp_path / "m.classes.zarr", IDS, place))
    write_zones(source, write(tmp_path / "z.gpkg", [shape], place), tmp_path / "t.csv", Quiet())
    assert as_rows(tmp_path / "t.csv") == by_brute_force(IDS, place, [shape], ["1"])


def test_a_map_without_legend_or_system(tmp_path: Path) -> None:
    place = PLACES["nowhere"]
    source = open_map(write_tif(tmp_path / "foreign.tif", IDS, place))
    with pytest.warns(UserWarning, match="crs"):
        path = write(tmp_path / "z.gpkg", [SHAPES[2], ZONES[3]], place)
    write_zones(source, path, tmp_path / "t.csv", Quiet())
    found = rows_of(tmp_path / "t.csv")
    inside = rasterize([SHAPES[2]], out_shape=IDS.shape) == 1
    present = sorted({*IDS[inside].tolist()} - {255})
    assert [(row["zone"], row["class_id"], row["class"]) for row in found] == [
        (zone, str(k), f"class {k}") for zone in ("1", "2") for k in present
    ]
    assert [int(row["pixels"]) for row in found] == [(IDS[inside] == k).sum() for k in present] + [0] * len(present)
    assert {row["area_m2"] for row in found} == {""}
    with pytest.warns(UserWarning, match="crs"):
        away = write(tmp_path / "away.gpkg", [ZONES[3]], place)
    write_zones(source, away, tmp_path / "away.csv", Quiet())
    assert rows_of(tmp_path / "away.csv") == [
        {"zone": "1", "class_id": "", "class": "", "pixels": "0", "area_m2": "", "share": ""}
    ]


def test_windows_without_zones_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "_SIDE", 16)
    place = PLACES["north up"]
    source = open_map(write_store(tmp_path / "m.classes.zarr", IDS, place))
    read: list[Window] = []

    def noted(_: object, window: Window) -> NDArray[np.uint8]:
        read.append(window)
        return IDS[window.slices()]

    monkeypatch.setattr(type(source), "read", noted)
    write_zones(source, write(tmp_path / "z.gpkg", [shapely.box(17, 17, 30, 30)], place), tmp_path / "t.csv", Quiet())
    assert [(window.row, window.col) for window in read] == [(16, 16)]


def test_what_does_not_fit(tmp_path: Path) -> None:
    place = PLACES["north up"]
    source = open_map(write_store(tmp_path / "m.classes.zarr", IDS, place))
    path = write(tmp_path / "z.gpkg", ZONES, place, name=WORDS)
    with refuses("polygons-unusable"):
        write_zones(source, path, tmp_path / "t.csv", Quiet(), name_field="nome")
    with refuses("polygons-unusable"):
        write_zones(source, path, tmp_path / "t.csv", Quiet(), layer="b")
    with refuses("output-unwritable", path=tmp_path / "none" / "t.csv"):
        write_zones(source, path, tmp_path / "none" / "t.csv", Quiet())
    assert not (tmp_path / "t.csv").exists()
