"""Pyramids: every level against brute force, whatever the chunks; attributes against the validators of others."""

import itertools
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rioxarray  # noqa: F401 - gives xarray its `rio`
import xarray
import zarr
import zarr_cm
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from ome_zarr_models.v05.image_label import ImageLabel
from pyproj import CRS

from fcn_batch.pipeline.core import pyramid as halving
from fcn_batch.pipeline.core.classes import NODATA, ClassInfo, Legend
from fcn_batch.pipeline.core.conventions import microns_of
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference
from fcn_batch.pipeline.core.pyramid import halve, halved, levels_of
from fcn_batch.pipeline.store.classstore import ClassStore
from fcn_batch.pipeline.store.finished import FinishedMap
from fcn_batch.workflows.console.progress import Quiet
from fcn_batch.workflows.finished.maps import open_map
from fcn_batch.workflows.outputs import pyramid
from fcn_batch.workflows.outputs.pyramid import write_ome_zarr, write_pyramid
from tests.errors import refuses
from tests.test_store import LEGEND, NORTH_UP, NOWHERE, ROTATED, THIRDS, layout, made

Ids = NDArray[np.uint8]
SIZE = Size(1201, 131)  # odd, two levels above it, more than one chunk of each

pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul instead of `\\*`:PendingDeprecationWarning")


def by_hand(ids: Ids) -> Ids:
    """Each cell by itself."""
    height, width = -(-ids.shape[0] // 2), -(-ids.shape[1] // 2)
    result = np.empty((height, width), np.uint8)
    for row, col in np.ndindex(height, width):
        cell = [int(one) for one in ids[2 * row : 2 * row + 2, 2 * col : 2 * col + 2].ravel() if one != NODATA]
        result[row, col] = Counter(cell).most_common(1)[0][0] if cell else NODATA  # of equals, the first that was met
    return result


def blobs(size: Size) -> Ids:
    """Classes 0 and 3, and no data, in patches and with noise."""
    random = np.random.default_rng(2)
    choice = np.array([0, 3, NODATA], np.uint8)
    patches = random.choice(choice, (size.height // 9 + 1, size.width // 9 + 1))
    ids = np.repeat(np.repeat(patches, 9, axis=0), 9, axis=1)[: size.height, : size.width]
    noisy = random.random(ids.shape) < 0.3
    return np.where(noisy, random.choice(choice, ids.shape), ids)


class Held:
    """A class map in memory that remembers what was read."""

    def __init__(self, ids: Ids, georeference: GeoReference = NORTH_UP, legend: Legend = LEGEND) -> None:
        self.ids, self.georeference = ids, georeference
        self.legend: Legend | None = legend
        self.size = Size(*ids.shape)
        self.block = (64, 64)
        self.windows: list[Window] = []

    def read(self, window: Window) -> Ids:
        self.windows.append(window)
        return self.ids[window.slices()]


@given(arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.sampled_from([1, 2, 3, NODATA])))
def test_halving_is_what_each_cell_says_by_itself(ids: Ids) -> None:
    assert (halve(ids) == by_hand(ids)).all()


@pytest.mark.parametrize("window", [Window(0, 0, 101, 66), Window(3, 5, 40, 61), Window(100, 65, 1, 1)], ids=str)
def test_pieces_make_the_same_as_the_whole(monkeypatch: pytest.MonkeyPatch, window: Window) -> None:
    monkeypatch.setattr(halving, "PIECE", 16)
    source = Held(blobs(Size(201, 131)))
    assert (halved(source.read, source.size, window) == by_hand(source.ids)[window.slices()]).all()
    assert max(one.pixels for one in source.windows) <= 32 * 32


@pytest.mark.parametrize(("side", "count"), [(1, 1), (512, 1), (513, 2), (1024, 2), (1025, 3), (500_000, 11)])
def test_levels_end_when_a_screen_holds_them(side: int, count: int) -> None:
    levels = levels_of(Size(1, side), NOWHERE)
    assert len(levels) == count
    assert levels[-1].size == Size(1, -(-side // 2 ** (count - 1)))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished map of `blobs`, north up, in chunks of 64."""
    monkeypatch.setattr("tests.test_store.ids", blobs)
    made(tmp_path / "a.classes.zarr", NORTH_UP, SIZE)
    return tmp_path / "a.classes.zarr"


def of_slide(path: Path, microns: float) -> None:
    """Give a finished map the scale of a slide."""
    from fcn_batch.pipeline.core.conventions import ome_image

    zarr.open_group(str(path), mode="r+").update_attributes(ome_image("classes", [("classes", 1)], microns, LEGEND))


def test_every_level_is_a_map_of_ours_and_what_brute_force_says(store: Path) -> None:
    target = store.with_name("a.pyramid.zarr")
    write_pyramid(store, target, Quiet())
    expected = blobs(SIZE)
    for number in range(3):
        level = open_map(target / str(number))
        assert (level.read(Window(0, 0, level.size.height, level.size.width)) == expected).all(), number
        assert level.legend == LEGEND
        assert level.georeference.crs_wkt == NORTH_UP.crs_wkt
        assert level.georeference.transform == (10.0 * 2**number, 0.0, 500000.0, 0.0, -10.0 * 2**number, 5000000.0)
        expected = by_hand(expected)
    assert not (target / "3").exists()
    assert sorted(path.name for path in store.parent.iterdir()) == ["a.classes.zarr", "a.pyramid.zarr"]


def test_level_0_is_the_flat_store(store: Path) -> None:
    target = store.with_name("a.pyramid.zarr")
    write_pyramid(store, target, Quiet())
    chunks = sorted(path.relative_to(store) for path in (store / "classes" / "c").rglob("*") if path.is_file())
    assert chunks
    for chunk in chunks:
        assert (target / "0" / chunk).read_bytes() == (store / chunk).read_bytes()
    flat, level = (json.loads((path / "classes/zarr.json").read_text()) for path in (store, target / "0"))
    for document in (flat, level):
        attributes = document["attributes"]
        document["attributes"] = {
            name: value for name, value in attributes.items() if not name.startswith(("spatial:", "zarr_conventions"))
        }
    assert level == flat
    root = zarr.open_group(str(target), mode="r").attrs.asdict()
    assert root["fcn:model"] == "tiny"
    assert "ome" not in root, "a map without scale is no slide"
    with xarray.open_datatree(target, engine="zarr") as tree:
        assert [tree[f"{number}/classes"].shape for number in range(3)] == [(1201, 131), (601, 66), (301, 33)]


def test_shards_stay_shards(tmp_path: Path) -> None:
    store = ClassStore.create(tmp_path / "a.zarr", replace(layout(NORTH_UP, SIZE), chunk=256, inner=64))
    expected = blobs(SIZE)
    for row, col in itertools.product(range(0, SIZE.height, 256), range(0, SIZE.width, 256)):
        window = Window(row, col, 256, 256).clipped(SIZE)
        store.write(window, expected[window.slices()])
    store.consolidate()
    write_pyramid(store.path, tmp_path / "p.zarr", Quiet())
    for number in range(3):
        array = zarr.open_array(str(tmp_path / f"p.zarr/{number}/classes"), mode="r")
        assert (array.shards, array.chunks) == ((256, 256), (64, 64))
        assert (np.asarray(array[:]) == expected).all()
        expected = by_hand(expected)


def test_control_points_are_said_where_their_pixels_are(store: Path) -> None:
    points = {"fcn:gcps": [[0, 0, 1, 2, 3]], "fcn:gcps_crs": "any"}
    zarr.open_group(str(store), mode="r+").update_attributes(points)
    target = store.with_name("p.zarr")
    write_pyramid(store, target, Quiet())
    found = [zarr.open_group(str(target / name), mode="r").attrs.asdict() for name in ("", "0", "1", "2")]
    assert [{*points} & {*attributes} for attributes in found] == [{*points}, {*points}, set(), set()]
    assert all(attributes["fcn:model"] == "tiny" for attributes in found)


@pytest.mark.parametrize("place", [NORTH_UP, ROTATED, THIRDS, NOWHERE], ids=["north", "rotated", "3rds", "nowhere"])
def test_conventions_are_valid_and_levels_lie_on_each_other(tmp_path: Path, place: GeoReference) -> None:
    made(tmp_path / "a.zarr", place, Size(531, 40))
    write_pyramid(tmp_path / "a.zarr", tmp_path / "p.zarr", Quiet())
    nodes = ["", "0", "1", "0/classes", "1/classes"]
    for node in nodes:
        document = json.loads((tmp_path / "p.zarr" / node / "zarr.json").read_text())
        conventions = [zarr_cm.spatial] + [zarr_cm.proj] * (place.crs_wkt is not None)
        for convention in [*conventions, zarr_cm.multiscales] if node == "" else conventions:
            convention.validate_node_metadata(document)
    layout = json.loads((tmp_path / "p.zarr/zarr.json").read_text())["attributes"]["multiscales"]["layout"]
    for level in layout:
        with xarray.open_zarr(tmp_path / "p.zarr", group=level["asset"], decode_coords="all") as dataset:
            assert list(dataset.classes.shape) == level["spatial:shape"]
            assert dataset.classes.rio.nodata == NODATA
            assert tuple(dataset.classes.rio.transform())[:6] == tuple(level["spatial:transform"])
            if place.crs_wkt is None:
                assert dataset.classes.rio.crs is None
            else:
                assert CRS.from_wkt(dataset.classes.rio.crs.to_wkt()) == CRS.from_wkt(place.crs_wkt)


def test_a_slide_opens_as_a_label_image(store: Path) -> None:
    of_slide(store, 0.25)
    target = store.with_name("a.pyramid.zarr")
    write_pyramid(store, target, Quiet())
    image = ImageLabel.from_zarr(zarr.open_group(str(target), mode="r")).attributes.ome.multiscales[0]
    assert [dataset.path for dataset in image.datasets] == ["0/classes", "1/classes", "2/classes"]
    assert microns_of(zarr.open_group(str(target), mode="r").attrs.asdict()) == 0.25


@pytest.mark.parametrize("microns", [0.5, None])
def test_any_map_becomes_ome_zarr(tmp_path: Path, microns: float | None) -> None:
    source = Held(blobs(Size(600, 70)), NOWHERE)
    write_ome_zarr(source, LEGEND, tmp_path / "a.ome.zarr", microns, Quiet(), overwrite=False)
    group = zarr.open_group(str(tmp_path / "a.ome.zarr"), mode="r")
    image = ImageLabel.from_zarr(group).attributes.ome
    assert [axis.unit for axis in image.multiscales[0].axes] == [None if microns is None else "micrometer"] * 2
    assert image.image_label is not None
    assert (FinishedMap(tmp_path / "a.ome.zarr/1").read(Window(0, 0, 300, 35)) == by_hand(source.ids)).all()


def test_no_two_tasks_share_a_chunk_and_each_reads_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyramid, "_CHUNK", 64)
    written: list[tuple[Path, Window]] = []
    read: list[Window] = []
    write, read_back = ClassStore.write, ClassStore.read

    def note_write(self: ClassStore, window: Window, classes: Ids) -> None:
        written.append((self.path, window))
        write(self, window, classes)

    def note_read(self: ClassStore, window: Window) -> Ids:
        read.append(window)
        return read_back(self, window)

    monkeypatch.setattr(ClassStore, "write", note_write)
    monkeypatch.setattr(ClassStore, "read", note_read)
    source = Held(blobs(Size(700, 130)))
    write_ome_zarr(source, LEGEND, tmp_path / "a.ome.zarr", None, Quiet(), overwrite=False)
    chunks = [(path, window.row // 64, window.col // 64) for path, window in written]
    assert len(chunks) == len(set(chunks)) == 11 * 3 + 6 * 2
    assert all(window.pixels <= 64 * 64 for _, window in written)
    assert max(window.pixels for window in source.windows) == 64 * 64
    assert max(window.pixels for window in read) == 128 * 128


def test_progress_counts_all_pixels(store: Path) -> None:
    class Counting(Quiet):
        total = done = 0

        def start(self, what: str, total: int, done: int, unit: Any = None) -> None:  # noqa: ARG002
            self.total = total

        def advance(self, amount: int) -> None:
            self.done += amount

    progress = Counting()
    write_pyramid(store, store.with_name("p.zarr"), progress)
    assert progress.done == progress.total == 1201 * 131 + 601 * 66 + 301 * 33


def test_what_is_there_stays_unless_asked(store: Path) -> None:
    target = store.with_name("p.zarr")
    target.mkdir()
    (target / "mine").touch()
    for overwrite in (False, True):  # no zarr store, so not replaced even then
        with refuses("output-exists", path=target):
            write_pyramid(store, target, Quiet(), overwrite=overwrite)
    assert (target / "mine").exists()
    (target / "zarr.json").touch()
    write_pyramid(store, target, Quiet(), overwrite=True)
    assert not (target / "mine").exists()
    assert open_map(target / "2").size == Size(301, 33)


def test_the_map_itself_is_never_replaced(store: Path) -> None:
    with refuses("output-is-map", path=store):
        write_pyramid(store, store.parent / "." / store.name, Quiet(), overwrite=True)
    assert open_map(store).size == SIZE


def test_a_damaged_map_leaves_nothing_and_what_was_there(store: Path) -> None:
    target = store.with_name("p.zarr")
    write_pyramid(store, target, Quiet())
    before = (target / "zarr.json").stat().st_mtime_ns
    chunk = store / "classes/c/3/1"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    with refuses("map-damaged"):
        write_pyramid(store, target, Quiet(), overwrite=True)
    assert (target / "zarr.json").stat().st_mtime_ns == before
    assert sorted(path.name for path in store.parent.iterdir()) == ["a.classes.zarr", "p.zarr"]


def test_what_a_killed_run_left_is_put_in_order(store: Path) -> None:
    target = store.with_name("p.zarr")
    target.with_name(".p.zarr.old").mkdir()  # killed between the two renames: the store that was to be replaced
    (target.with_name(".p.zarr.old") / "mine").touch()
    (target.with_name(".p.zarr.old") / "zarr.json").touch()
    target.with_name(".p.zarr.partial").mkdir()
    with refuses("output-exists"):
        write_pyramid(store, target, Quiet())
    assert (target / "mine").exists()
    write_pyramid(store, target, Quiet(), overwrite=True)
    assert sorted(path.name for path in store.parent.iterdir()) == ["a.classes.zarr", "p.zarr"]


def test_a_full_disk_is_told(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(ClassStore, "write", full)
    with refuses("output-unwritable", path=store.with_name("p.zarr")):
        write_pyramid(store, store.with_name("p.zarr"), Quiet())
    assert [path.name for path in store.parent.iterdir()] == ["a.classes.zarr"]


def test_a_map_of_one_class_and_one_pixel(tmp_path: Path) -> None:
    legend = Legend(classes=(ClassInfo(id=7, name="all", colour="#000000"),))
    one = Held(np.full((1, 1), 7, np.uint8), GeoReference(None, IDENTITY), legend)
    write_ome_zarr(one, legend, tmp_path / "a.zarr", 1.0, Quiet(), overwrite=False)
    assert FinishedMap(tmp_path / "a.zarr/0").read(Window(0, 0, 1, 1)).tolist() == [[7]]
