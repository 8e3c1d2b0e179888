"""`fcn-batch evaluate` on real files, against loops over the whole arrays."""

import csv
import io
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.transform import Affine

from fcn_batch.pipeline.core.boundary import default_distance
from fcn_batch.pipeline.core.classes import ClassInfo, Legend
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.raster.classmap import MapHead, write_cog
from fcn_batch.pipeline.raster.crs import cf_grid_mapping, coordinate_attributes
from fcn_batch.pipeline.raster.mapfile import MapFile
from fcn_batch.pipeline.store.classstore import ClassStore, Layout
from fcn_batch.pipeline.store.finished import FinishedMap
from fcn_batch.workflows.finished.maps import chunk_windows
from tests.rasters import write_raster
from tests.runs import fcn_batch

Ids = NDArray[np.uint8]
UTM = "EPSG:32633"
PLACE = Affine(10, 0, 500_000, 0, -10, 5_000_000)
LEGEND = Legend(
    classes=(
        ClassInfo(id=4, name="bare soil", colour="#aa8866"),
        ClassInfo(id=0, name="water, still", colour="#1f78b4"),
        ClassInfo(id=7, name="forest", colour="#106020"),
        ClassInfo(id=9, name="ice", colour="#ffffff"),
    )
)


CLASSES = sorted(LEGEND.classes, key=lambda one: one.id)
"""In the order of what is reported."""


def patches(ids: list[int], height: int, width: int, seed: int) -> Ids:
    """Patches of 25 x 31 pixels, and a few single ones."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(ids, (height // 25 + 1, width // 31 + 1))
    values = np.kron(coarse, np.ones((25, 31)))[:height, :width]
    return np.where(rng.random(values.shape) < 0.002, rng.choice(ids, values.shape), values).astype(np.uint8)


def georeference() -> GeoReference:
    return GeoReference(rasterio.CRS.from_string(UTM).to_wkt(version="WKT2_2019"), tuple(PLACE)[:6])


def write_maps(folder: Path, ids: Ids, chunk: int = 64) -> tuple[Path, Path]:
    """The class map as COG and as zarr store."""
    size, place = Size(*ids.shape), georeference()
    everything = Window(0, 0, size.height, size.width)
    write_cog(folder / "a.classes.tif", MapHead(place, size, LEGEND), [(everything, ids)])
    y, x = coordinate_attributes(place)
    layout = Layout(size, chunk, LEGEND, place, cf_grid_mapping(place), UTM, y, x, {})
    store = ClassStore.create(folder / "a.classes.zarr", layout)
    store.write(everything, ids)
    store.consolidate()
    return folder / "a.classes.tif", folder / "a.classes.zarr"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Truth without class 9 but with a class of its own to map (20) and one to ignore (30); maps with nodata."""
    place = tmp_path_factory.mktemp("evaluate")
    truth = patches([4, 0, 7, 20, 30, 255], 150, 170, 1)
    given = np.where(np.isin(truth, [0, 4, 7]), truth, 7)
    noise = patches([4, 0, 7, 9, 255], 150, 170, 2)
    given = np.where(patches([0, 1, 2, 3, 4], 150, 170, 3) == 0, noise, given).astype(np.uint8)
    write_maps(place, given)
    write_raster(place / "truth.tif", truth[None], crs=UTM, transform=PLACE)
    np.savez(place / "arrays.npz", truth=truth, given=given)
    return place


MEANING = ("--ignore", 30, "--map", "20=9")


def evaluated(*arguments: object) -> dict[str, Any]:
    result = fcn_batch("evaluate", *arguments, "--json", "-q")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def edge(mask: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """Pixels of a mask that have a pixel outside it, or the border, within the distance."""
    wide = np.pad(mask, distance)
    views = np.lib.stride_tricks.sliding_window_view(wide, (2 * distance + 1, 2 * distance + 1))
    return mask & ~views.all(axis=(2, 3))


def brute_force(truth: Ids, given: Ids, distance: int) -> dict[str, Any]:
    """All numbers from the whole arrays, pixel by pixel; 255 is no class in both."""
    pairs = Counter((int(t), int(p)) for t, p in zip(truth.flat, given.flat, strict=True) if t != 255)
    total = sum(pairs.values())
    classes: list[dict[str, Any]] = []
    weighted = 0.0
    for one in CLASSES:
        hits = pairs[one.id, one.id]
        labelled = sum(n for (t, _), n in pairs.items() if t == one.id)
        predicted = sum(n for (_, p), n in pairs.items() if p == one.id)
        union = labelled + predicted - hits
        borders = [edge(truth == one.id, distance), edge((given == one.id) & (truth != 255), distance)]
        near = int((borders[0] | borders[1]).sum())
        values = {
            "iu": hits / union if union else None,
            "precision": hits / predicted if predicted else None,
            "recall": hits / labelled if labelled else None,
            "boundary_iu": int((borders[0] & borders[1]).sum()) / near if near else None,
        }
        classes.append({"name": one.name, "label_pixels": labelled, "predicted_pixels": predicted, **values})
        weighted += labelled * hits / union if union else 0
    mean = {
        key: np.mean([one[key] for one in classes if one[key] is not None]) for key in ("recall", "iu", "boundary_iu")
    }
    return {
        "pixels": total,
        "pixels_without_prediction": sum(n for (_, p), n in pairs.items() if p == 255),
        "pixel_accuracy": sum(n for (t, p), n in pairs.items() if t == p) / total,
        "mean_accuracy": float(mean["recall"]),
        "mean_iu": float(mean["iu"]),
        "frequency_weighted_iu": weighted / total,
        "boundary": {"distance": distance, "mean_iu": float(mean["boundary_iu"])},
        "classes": classes,
        "confusion": [[pairs[row.id, col] for col in (*(c.id for c in CLASSES), 255)] for row in CLASSES],
    }


def assert_same(found: Any, expected: Any) -> None:
    """Equal, floats to rounding; `found` may hold more keys."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == (pytest.approx(expected, abs=1e-12) if isinstance(expected, float) else expected)


def read_as_meant(folder: Path) -> tuple[Ids, Ids]:
    arrays = np.load(folder / "arrays.npz")
    truth = arrays["truth"].copy()
    truth[truth == 30], truth[truth == 20] = 255, 9
    return truth, arrays["given"]


# --- the numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.classes.tif", "a.classes.zarr"])
def test_all_numbers_are_those_of_the_whole_arrays(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcn_batch.workflows.finished.maps._SIDE", 64)
    found = evaluated(folder / name, folder / "truth.tif", *MEANING, "--boundary", 3)
    assert_same(found, brute_force(*read_as_meant(folder), 3))
    assert found["pixels"] + found["pixels_without_label"] == 150 * 170
    assert found["boundary"]["mean_iu"] < found["mean_iu"] - 0.02  # there is more than boundary


def test_a_class_without_pixels_has_no_numbers_and_a_wrong_one_counts_as_zero(folder: Path) -> None:
    found = evaluated(folder / "a.classes.tif", folder / "truth.tif", "--ignore", 30, "--ignore", 20)
    ice = found["classes"][3]
    assert (ice["name"], ice["label_pixels"], ice["iu"], ice["recall"]) == ("ice", 0, 0, None)
    assert ice["predicted_pixels"] > 0
    others = [one["iu"] for one in found["classes"]]
    assert found["mean_iu"] == pytest.approx(sum(others) / 4)
    assert found["boundary"]["distance"] == default_distance(Size(150, 170)) == 5


def test_without_a_legend_the_classes_are_what_is_found(tmp_path: Path, folder: Path) -> None:
    truth, given = read_as_meant(folder)
    write_raster(tmp_path / "given.tif", given[None].astype(np.int16), nodata=255, crs=UTM, transform=PLACE)
    write_raster(tmp_path / "truth.tif", truth[None].astype(np.int32), crs=UTM, transform=PLACE)
    found = evaluated(tmp_path / "given.tif", tmp_path / "truth.tif")
    assert [(one["id"], one["name"]) for one in found["classes"]] == [(k, f"class {k}") for k in (0, 4, 7, 9)]
    assert found["mean_iu"] == pytest.approx(brute_force(truth, given, 5)["mean_iu"])


def test_boundaries_can_be_left_out(folder: Path) -> None:
    found = evaluated(folder / "a.classes.tif", folder / "truth.tif", *MEANING, "--boundary", 0)
    assert found["boundary"] is None
    assert {one["boundary_iu"] for one in found["classes"]} == {None}
    assert "boundary" not in fcn_batch("evaluate", folder / "a.classes.tif", folder / "truth.tif", *MEANING,
                                       "--boundary", 0).stdout  # fmt: skip


def test_labels_of_another_resolution_and_system(tmp_path: Path) -> None:
    """Degrees, four times as coarse and larger than the map; what lies under each pixel's centre is asked of PROJ."""
    from pyproj import Transformer

    height, width, step = 60, 80, 4e-4
    lon, lat = Transformer.from_crs(UTM, "EPSG:4326", always_xy=True).transform(
        500_000 + 5 * width, 5_000_000 - 5 * height
    )
    corner = Affine(step, 0, lon - 20 * step, 0, -step, lat + 10 * step)
    coarse = np.random.default_rng(5).choice(np.array([4, 0, 7], np.uint8), (20, 40))
    write_raster(tmp_path / "truth.tif", coarse[None], crs="EPSG:4326", transform=corner)
    given = patches([4, 0, 7], height, width, 6)
    cog, _ = write_maps(tmp_path, given)
    x, y = np.meshgrid(500_005 + 10 * np.arange(width), 4_999_995 - 10 * np.arange(height))
    lons, lats = Transformer.from_crs(UTM, "EPSG:4326", always_xy=True).transform(x, y)
    rows, cols = np.floor((corner.f - lats) / step).astype(int), np.floor((lons - corner.c) / step).astype(int)
    truth = coarse[rows, cols]
    assert_same(evaluated(cog, tmp_path / "truth.tif", "--boundary", 2), brute_force(truth, given, 2))


def test_labels_that_are_polygons(tmp_path: Path) -> None:
    cog, _ = write_maps(tmp_path, np.full((40, 50), 7, np.uint8))
    x, y = 500_100, 5_000_000
    ring = [[x, y], [x + 200, y], [x + 200, y - 400], [x, y - 400], [x, y]]
    shape = {"type": "Feature", "properties": {"kind": "trees"}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    system = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    labels = tmp_path / "truth.geojson"
    labels.write_text(json.dumps({"type": "FeatureCollection", "crs": system, "features": [shape]}))
    options = ("--field", "kind", "--value", "trees=7", "--boundary", 1)
    found = evaluated(cog, labels, *options)  # outside there is 0: water
    assert found["confusion"] == [[0, 0, 1200, 0, 0], [0] * 5, [0, 0, 800, 0, 0], [0] * 5]
    assert evaluated(cog, labels, *options, "--background", -1)["pixel_accuracy"] == 1
    assert evaluated(cog, labels, "--burn", 7, "--boundary", 1) == found
    result = fcn_batch("evaluate", cog, labels, "--field", "kind", "--value", "rocks=7")
    assert (result.exit_code, "'trees'" in result.stderr, "--value" in result.stderr) == (4, True, True)


# --- reading ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.classes.tif", "a.classes.zarr"])
def test_every_pixel_is_read_once_in_small_parts(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcn_batch.workflows.finished.maps._SIDE", 64)
    times, largest = np.zeros((150, 170), int), 0
    kind: Any = FinishedMap if name.endswith("zarr") else MapFile
    read = kind.read

    def note(self: Any, window: Window) -> Ids:
        nonlocal largest
        times[window.slices()] += 1
        largest = max(largest, window.pixels)
        ids: Ids = read(self, window)
        return ids

    monkeypatch.setattr(kind, "read", note)
    evaluated(folder / name, folder / "truth.tif", *MEANING)
    assert (times == 1).all()
    assert largest == (64 * 64 if name.endswith("zarr") else 150 * 170)  # the COG's blocks are larger than the map


@pytest.mark.parametrize(
    ("size", "block"),
    [((5000, 7000), (2048, 2048)), ((5000, 7000), (512, 256)), ((3000, 500_000), (1, 500_000)), ((9, 9), (512, 512)),
     ((40_000, 3000), (40_000, 3000))],
)  # fmt: skip
def test_chunks_are_whole_blocks_of_bounded_size(size: tuple[int, int], block: tuple[int, int]) -> None:
    windows = list(chunk_windows(Size(*size), block))
    assert sum(window.pixels for window in windows) == size[0] * size[1]
    assert max(window.pixels for window in windows) <= 2**24
    if block != size:
        assert {window.row % block[0] for window in windows} | {window.col % block[1] for window in windows} == {0}


def test_both_kinds_of_maps_tell_names_colours_and_place(folder: Path) -> None:
    for opened in (MapFile(folder / "a.classes.tif"), FinishedMap(folder / "a.classes.zarr")):
        assert opened.size == Size(150, 170)
        assert opened.legend is not None
        assert sorted(opened.legend.classes, key=lambda one: one.id) == CLASSES
        assert opened.georeference.transform == tuple(PLACE)[:6]
        assert rasterio.CRS.from_wkt(opened.georeference.crs_wkt) == rasterio.CRS.from_string(UTM)


# --- what is written and printed -----------------------------------------------------------------------------


def test_files(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "new" / "scores"
    call = ("evaluate", folder / "a.classes.zarr", folder / "truth.tif", *MEANING, "-o", out)
    result = fcn_batch(*call)
    assert result.exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["confusion.csv", "confusion.png", "metrics.json"]
    found = json.loads((out / "metrics.json").read_text())
    rows = list(csv.reader(io.StringIO((out / "confusion.csv").read_text())))
    assert rows[0] == ["label \\ prediction", *(c.name for c in CLASSES), "no prediction"]
    assert [row[0] for row in rows[1:]] == rows[0][1:-1]
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == found["confusion"]
    assert f"written: {out / 'metrics.json'}" in result.stderr
    again = fcn_batch(*call)
    assert again.exit_code == 6
    assert again.stderr == (
        f"fcn-batch: {out / 'metrics.json'}: exists already; give --overwrite to replace it, or -o DIR for another "
        "folder\n"
    )
    (out / "metrics.json").write_text("old")
    assert fcn_batch(*call, "--overwrite").exit_code == 0
    assert json.loads((out / "metrics.json").read_text()) == found


def test_a_folder_that_cannot_be_made(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "file").write_text("")
    result = fcn_batch("evaluate", folder / "a.classes.tif", folder / "truth.tif", *MEANING, "-o", tmp_path / "file")
    assert (result.exit_code, result.stdout) == (6, "")
    assert "cannot write here" in result.stderr


def test_the_table(folder: Path) -> None:
    result = fcn_batch("evaluate", folder / "a.classes.tif", folder / "truth.tif", "--ignore", 30, "--ignore", 20)
    found = evaluated(folder / "a.classes.tif", folder / "truth.tif", "--ignore", 30, "--ignore", 20)
    lines = result.stdout.splitlines()
    assert f"{found['mean_iu']:.3f} mean, " in lines[3]
    assert lines[5].split() == ["IU", "precision", "recall", "boundary", "label", "px"]
    assert lines[9].split() == ["class", "0.000", "0.000", "-", "0.000", "0", "9", "ice"]
    assert result.stderr.startswith("a.classes.tif: 100 % of 0.0 MPx")


# --- errors ----------------------------------------------------------------------------------------------------


def refused(code: int, *arguments: object) -> str:
    result = fcn_batch("evaluate", *arguments)
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert result.stderr.splitlines()[-1].startswith(("fcn-batch: ", "Error: "))
    return result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--map", "20=5"), "--map 20=5: the map has no class 5; it has 0, 4, 7, 9"),
        (("--map", "20=255"), "class ids are 0 to 254; to leave a label out say --ignore 20"),
        (("--map", "255=4"), "label 255 is ignored (255 always is)"),
        (("--map", "20=4", "--ignore", 20), "label 20 is ignored"),
        (("--map", "20=4", "--map", "20=7"), "label 20 is mapped twice"),
        (("--map", "20"), "'20' is not a pair of ids like 7=2"),
        (("--boundary", -1), "--boundary -1: a distance is at least 1 pixel"),
        (("--boundary", 10**7), "--boundary 10000000: too far for 170 columns; give at most 1579"),
        (("--field", "kind"), "--field kind: --field and --value belong together"),
        (("--value", "a=1"), "--value a=1: --field and --value belong together"),
        (("--value", "a"), "'a' is not a value and an id like forest=2"),
        (("--burn", 1), "are for polygons"),
        (("--field", "k", "--value", "a=1", "--burn", 1), "--burn 1: --field k and its values say already"),
        (("--field", "k", "--value", "a=1", "--value", "a=2"), "--value a: given twice"),
    ],
)
def test_options_that_do_not_fit(folder: Path, options: tuple[object, ...], message: str) -> None:
    assert message in " ".join(refused(2, folder / "a.classes.tif", folder / "truth.tif", *options).split())


def test_labels_that_are_no_class(folder: Path) -> None:
    message = refused(4, folder / "a.classes.tif", folder / "truth.tif", "--ignore", 3)
    assert "label 20, 30 in rows 0..149, cols 0..169 of a.classes.tif is no class; classes are 0, 4, 7, 9" in message
    assert "--map ID=CLASS, or --ignore ID" in message


def test_polygons_that_mean_nothing(tmp_path: Path, folder: Path) -> None:
    assert "what do its polygons mean? Give --field NAME" in refused(2, folder / "a.classes.tif", tmp_path / "a.gpkg")


def test_labels_that_are_a_folder(folder: Path) -> None:
    message = refused(4, folder / "a.classes.tif", folder / "a.classes.zarr")
    assert f"{folder / 'a.classes.zarr'}: labels are read from rasters and polygons, not from a folder" in message


def test_maps_that_do_not_meet(tmp_path: Path, folder: Path) -> None:
    there = Affine(10, 0, 900_000, 0, -10, 5_000_000)
    far = write_raster(tmp_path / "far.tif", np.zeros((1, 5, 5), np.uint8), crs=UTM, transform=there)
    assert f"{far}: the labels, " in refused(4, folder / "a.classes.tif", far)
    empty = write_raster(tmp_path / "empty.tif", np.full((1, 150, 170), 255, np.uint8), crs=UTM, transform=PLACE)
    message = refused(4, folder / "a.classes.tif", empty)
    assert f"{empty}: no label on any pixel of {folder / 'a.classes.tif'}" in message


def test_predictions_that_are_no_class_map(tmp_path: Path, folder: Path) -> None:
    colour = write_raster(tmp_path / "rgb.tif", np.zeros((3, 5, 5), np.uint8))
    assert f"{colour}: 3 bands; a class map has one" in refused(4, colour, folder / "truth.tif")
    floats = write_raster(tmp_path / "float.tif", np.zeros((1, 5, 5), np.float32))
    assert "float32" in refused(4, floats, folder / "truth.tif")
    high = write_raster(tmp_path / "high.tif", np.full((1, 150, 170), 300, np.int16), crs=UTM, transform=PLACE)
    assert f"{high}: holds 300; class ids are 0 to 254" in refused(4, high, folder / "truth.tif", *MEANING)
    assert f"{tmp_path}: holds no report of a run" in refused(4, tmp_path, folder / "truth.tif")
    assert "does not exist" in refused(4, tmp_path / "none.tif", folder / "truth.tif")


def test_ids_that_the_maps_own_legend_does_not_name(tmp_path: Path, folder: Path) -> None:
    cog, _ = write_maps(tmp_path, np.full((150, 170), 5, np.uint8))
    assert f"{cog}: holds 5, which its legend does not name" in refused(4, cog, folder / "truth.tif", *MEANING)


def test_a_nan_would_be_no_json(folder: Path) -> None:
    found = evaluated(folder / "a.classes.tif", folder / "truth.tif", "--ignore", 30, "--ignore", 20)
    numbers = [value for one in found["classes"] for value in one.values() if isinstance(value, float)]
    assert not any(math.isnan(value) for value in numbers)
