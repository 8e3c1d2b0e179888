"""`fcn-batch evaluate` on real files, against loops over the whole arrays."""

import csv
import io
import json
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
from tests.errors import refused
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
MEANING = ("--ignore", 30, "--map", "20=9")
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


def evaluated(*arguments: object) -> dict[str, Any]:
    result = fcn_batch("evaluate", *arguments, "--json", "-q")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def table(folder: Path, *options: object) -> dict[str, Any]:
    return evaluated(folder / "a.classes.tif", folder / "truth.tif", *options)


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
    """Every pixel of the map is read once, in small parts."""
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
    found = evaluated(folder / name, folder / "truth.tif", *MEANING, "--boundary", 3)
    assert_same(found, brute_force(*read_as_meant(folder), 3))
    assert found["pixels"] + found["pixels_without_label"] == 150 * 170
    assert found["boundary"]["mean_iu"] < found["mean_iu"] - 0.02  # there is more than boundary
    assert (times == 1).all()
    assert largest == (64 * 64 if name.endswith("zarr") else 150 * 170)  # the COG's blocks are larger than the map


def test_a_class_without_pixels_has_no_numbers_and_a_wrong_one_counts_as_zero(folder: Path) -> None:
    options = ("--ignore", 30, "--ignore", 20)
    found = table(folder, *options)
    ice = found["classes"][3]
    assert (ice["name"], ice["label_pixels"], ice["iu"], ice["recall"]) == ("ice", 0, 0, None)
    assert ice["predicted_pixels"] > 0
    assert found["mean_iu"] == pytest.approx(sum(one["iu"] for one in found["classes"]) / 4)
    bare = table(folder, *MEANING, "--boundary", 0)
    assert (bare["boundary"], {one["boundary_iu"] for one in bare["classes"]}) == (None, {None})
    assert found["boundary"]["distance"] == default_distance(Size(150, 170)) == 5
    result = fcn_batch("evaluate", folder / "a.classes.tif", folder / "truth.tif", *options)
    lines = result.stdout.splitlines()
    assert f"{found['mean_iu']:.3f} mean, " in lines[3]
    assert lines[9].split() == ["class", "0.000", "0.000", "-", "0.000", "0", "9", "ice"]
    assert result.stderr.startswith("a.classes.tif: 100 % of 0.0 MPx")


def test_without_a_legend_the_classes_are_what_is_found(tmp_path: Path, folder: Path) -> None:
    truth, given = read_as_meant(folder)
    write_raster(tmp_path / "given.tif", given[None].astype(np.int16), nodata=255, crs=UTM, transform=PLACE)
    write_raster(tmp_path / "truth.tif", truth[None].astype(np.int32), crs=UTM, transform=PLACE)
    found = evaluated(tmp_path / "given.tif", tmp_path / "truth.tif")
    assert [(one["id"], one["name"]) for one in found["classes"]] == [(k, f"class {k}") for k in (0, 4, 7, 9)]
    assert found["mean_iu"] == pytest.approx(brute_force(truth, given, 5)["mean_iu"])


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
    problem = str(refused(result, "reference-unusable").fields["problem"])
    assert "'trees'" in problem
    assert "--value" in problem


# --- reading ---------------------------------------------------------------------------------------------------


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


# --- what is written and printed -----------------------------------------------------------------------------


def test_files(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "new" / "scores"
    call = ("evaluate", folder / "a.classes.zarr", folder / "truth.tif", *MEANING, "-o", out)
    assert fcn_batch(*call).exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["confusion.csv", "confusion.png", "metrics.json"]
    found = json.loads((out / "metrics.json").read_text())
    rows = list(csv.reader(io.StringIO((out / "confusion.csv").read_text())))
    assert rows[0] == ["label \\ prediction", *(c.name for c in CLASSES), "no prediction"]
    assert [row[0] for row in rows[1:]] == rows[0][1:-1]
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == found["confusion"]
    refused(fcn_batch(*call), "output-exists", path=out / "metrics.json")
    (out / "metrics.json").write_text("old")
    assert fcn_batch(*call, "--overwrite").exit_code == 0
    assert json.loads((out / "metrics.json").read_text()) == found


# --- errors ----------------------------------------------------------------------------------------------------


def no(code: str, prediction: Path, labels: Path, *options: object, **fields: object) -> None:
    refused(fcn_batch("evaluate", prediction, labels, *options, "-q"), code, **fields)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--map", "20=5"), "option-class"),
        (("--map", "20=255"), "option-map"),
        (("--map", "255=4"), "option-map"),
        (("--map", "20=4", "--ignore", 20), "option-map"),
        (("--map", "20=4", "--map", "20=7"), "option-map"),
        (("--boundary", -1), "option-boundary"),
        (("--boundary", 10**7), "option-boundary"),
        (("--field", "kind"), "option-field"),
        (("--value", "a=1"), "option-values"),
        (("--burn", 1), "option-polygons"),
        (("--field", "k", "--value", "a=1", "--burn", 1), "option-field"),
        (("--field", "k", "--value", "a=1", "--value", "a=2"), "option-values"),
    ],
)
def test_options_that_do_not_fit(folder: Path, options: tuple[object, ...], code: str) -> None:
    no(code, folder / "a.classes.tif", folder / "truth.tif", *options)
    for unreadable in (("--map", "20"), ("--value", "a")):
        assert fcn_batch("evaluate", folder / "a.classes.tif", folder / "truth.tif", *unreadable).exit_code == 2


def test_labels_that_cannot_be_compared_with(tmp_path: Path, folder: Path) -> None:
    cog = folder / "a.classes.tif"
    window = Window(0, 0, 150, 170)
    truth = folder / "truth.tif"
    no("reference-ids", cog, truth, "--ignore", 3, path=truth, ids="20, 30", window=window)
    no("option-polygons", cog, tmp_path / "a.gpkg", path=tmp_path / "a.gpkg")
    no("reference-folder", cog, folder / "a.classes.zarr", path=folder / "a.classes.zarr")
    there = Affine(10, 0, 900_000, 0, -10, 5_000_000)
    far = write_raster(tmp_path / "far.tif", np.zeros((1, 5, 5), np.uint8), crs=UTM, transform=there)
    no("reference-unusable", cog, far)
    empty = write_raster(tmp_path / "empty.tif", np.full((1, 150, 170), 255, np.uint8), crs=UTM, transform=PLACE)
    no("reference-empty", cog, empty, path=empty)
    no("output-unwritable", cog, folder / "truth.tif", *MEANING, "-o", empty, path=empty)


def test_predictions_that_are_no_class_map(tmp_path: Path, folder: Path) -> None:
    colour = write_raster(tmp_path / "rgb.tif", np.zeros((3, 5, 5), np.uint8))
    floats = write_raster(tmp_path / "float.tif", np.zeros((1, 5, 5), np.float32))
    high = write_raster(tmp_path / "high.tif", np.full((1, 150, 170), 300, np.int16), crs=UTM, transform=PLACE)
    for path in (colour, floats, high, tmp_path, tmp_path / "none.tif"):
        assert fcn_batch("evaluate", path, folder / "truth.tif", *MEANING).exit_code == 4
    cog, _ = write_maps(tmp_path, np.full((150, 170), 5, np.uint8))
    no("map-ids", cog, folder / "truth.tif", *MEANING, path=cog, ids="5")
