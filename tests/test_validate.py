"""Every kind of damage to the outputs of a run is named, in its place, and nothing else is."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import zarr
from rasterio.control import GroundControlPoint
from rasterio.transform import Affine

from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.store.classstore import ClassStore, consolidate
from fcn_batch.pipeline.store.finished import FinishedMap
from fcn_batch.workflows.console.progress import Quiet
from fcn_batch.workflows.finished.validate import Validation, validate
from fcn_batch.workflows.outputs.publishing import find_run
from tests.errors import refused
from tests.models import save_tiny_model
from tests.rasters import noise, write_raster
from tests.runs import fcn_batch, scene, segmented, small_blocks

Damage = Callable[[Path], object]
CHECKS = ["report", "outputs", "checksums", "store", "map", "geotiff", "geotiff map", "confidence", "pyramid", "item"]
STORE, COG, SURE = "a.classes.zarr", "a.classes.tif", "a.confidence.zarr"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


@pytest.fixture(autouse=True)
def _many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A run with everything: 15 blocks of 128, a pyramid of two levels, no data in a corner."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch)
        segmented(scene(folder / "a.tif", 530, 330, nodata=0), "-m", model, "-q", "--confidence", "--pyramid")
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, model: Path, run: Path) -> Path:
    """Another run of the same raster."""
    folder = tmp_path_factory.mktemp("other")
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch)
        options = ["--tile", "96", "--overlap", "32", "--confidence", "--pyramid", "-o", folder]
        segmented(run / "a.tif", "-m", model, "-q", *options)
    return folder


def looked_at(path: Path) -> Validation:
    return validate(path, Quiet())


def failed(found: Validation) -> dict[str, str]:
    """Names of the checks that failed, with all they say."""
    return {check.name: "\n".join(check.faults) for check in found.checks if not check.ok}


def flip(path: Path, where: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 0xFF
    path.write_bytes(data)


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change a JSON file as Python sees it."""
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def edited(name: str, change: Callable[[Any], object]) -> Damage:
    return lambda folder: edit(folder / name, change)


def attribute(folder: Path, array: str, name: str, value: object) -> None:
    """Change an attribute as a careful person would: in the array's own metadata and in those of the root."""
    edit(folder / STORE / array / "zarr.json", lambda found: found["attributes"].update({name: value}))
    consolidate(folder / STORE)


def replace_pixel(folder: Path) -> None:
    with rasterio.open(folder / COG, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
        window = ((400, 401), (300, 301))
        values = dataset.read(1, window=window)
        dataset.write(np.where(values == 0, 10, 0).astype(np.uint8), 1, window=window)


def foreign_class(folder: Path) -> None:
    store, window = ClassStore(folder / STORE), Window(128, 0, 128, 128)
    values = store.read(window)
    values[5, 5] = 77
    store.write(window, values)


def repaint(folder: Path) -> None:
    with rasterio.open(folder / COG, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
        dataset.write_colormap(1, {**dataset.colormap(1), 20: (1, 2, 3, 255)})


def shift_x(folder: Path) -> None:
    array = zarr.open_array(str(folder / STORE / "x"), mode="r+")
    array[:] = np.asarray(array[:]) - 1 / 32


def pipe_for_style(folder: Path) -> None:
    (folder / "a.classes.qml").unlink()
    os.mkfifo(folder / "a.classes.qml")


def test_what_a_run_made_is_found_to_be_so(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    found = looked_at(run)
    assert failed(found) == {}
    assert found.ok
    assert [check.name for check in found.checks] == CHECKS
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


# Block 4 is in the second row of blocks, in the middle; zarr calls its chunk 1/1. The words of each check must hold
# these parts: the place of the damage and the values that differ.
CHUNK_4, SITE_4 = "classes/c/1/1", "block 4, rows 128..255, cols 128..255"
DAMAGES: dict[str, tuple[Damage, dict[str, str]]] = {
    "a flipped byte of a chunk": (lambda f: flip(f / STORE / CHUNK_4), {"checksums": CHUNK_4, "map": SITE_4}),
    "a chunk that is gone": (lambda f: (f / STORE / CHUNK_4).unlink(), {"checksums": CHUNK_4, "map": SITE_4}),
    "half a chunk": (lambda f: os.truncate(f / STORE / CHUNK_4, 200), {"checksums": CHUNK_4, "map": SITE_4}),
    "chunks changed places": (
        lambda f: shutil.copy(f / STORE / "classes/c/0/1", f / STORE / CHUNK_4),
        {"checksums": CHUNK_4, "map": SITE_4},
    ),
    "a file beside the chunks": (
        lambda f: (f / STORE / "classes/c/1/1.tmp").write_bytes(b"x"),
        {"checksums": "classes/c/1/1.tmp"},
    ),
    "a class that is none": (foreign_class, {"checksums": "classes/c/1/0", "map": "class 77"}),
    "a name in the metadata": (
        lambda f: attribute(f, "classes", "class_names", ["forest", *"abcde"]),
        {"checksums": "classes/zarr.json", "store": "class_names"},
    ),
    "a title": (
        edited(f"{STORE}/zarr.json", lambda r: r["attributes"].update(title="mine")),
        {"checksums": "a.classes.zarr/zarr.json"},
    ),
    "an attribute that the root does not know": (
        edited(f"{STORE}/classes/zarr.json", lambda r: r["attributes"].update(long_name="x")),
        {"checksums": "classes/zarr.json", "store": "classes: attributes"},
    ),
    "metadata not gathered": (
        edited(f"{STORE}/zarr.json", lambda r: r.pop("consolidated_metadata")),
        {"checksums": "zarr.json", "store": "root"},
    ),
    "metadata that are no JSON": (
        lambda f: (f / STORE / "classes/zarr.json").write_text("{"),
        {"checksums": "classes/zarr.json", "store": "JSONDecodeError", "map": STORE},
    ),
    "another nodata": (
        edited(f"{STORE}/classes/zarr.json", lambda r: r.update(fill_value=0)),
        {"checksums": "classes/zarr.json", "store": "fill_value is 0 instead of 255"},
    ),
    "another place": (
        lambda f: attribute(f, "spatial_ref", "GeoTransform", "0.0 1.0 0.0 0.0 0.0 -1.0"),
        {"checksums": "spatial_ref/zarr.json", "store": "GeoTransform is 0.0 1.0 0.0"},
    ),
    "another reference system": (
        lambda f: attribute(f, "spatial_ref", "crs_wkt", rasterio.CRS.from_epsg(3857).to_wkt()),
        {"checksums": "spatial_ref/zarr.json", "store": "3857"},
    ),
    "another system by convention": (
        lambda f: attribute(f, "classes", "proj:wkt2", rasterio.CRS.from_epsg(3857).to_wkt()),
        {"checksums": "classes/zarr.json", "store": "proj:wkt2"},
    ),
    "coordinates moved by half a pixel": (shift_x, {"checksums": "x/c/0", "store": "x: "}),
    "an array that is not ours": (
        lambda f: shutil.copytree(f / STORE / "x", f / STORE / "extra"),
        {"checksums": "extra/zarr.json", "store": "extra: "},
    ),
    "a pixel of the GeoTIFF": (
        replace_pixel,
        {"checksums": COG, "geotiff": "COG", "geotiff map": "block 11, rows 384..511, cols 256..329"},
    ),
    "a flipped byte of the GeoTIFF": (lambda f: flip(f / COG, 0.9), {"checksums": COG, "geotiff map": "block "}),
    "no GeoTIFF": (
        lambda f: (f / COG).unlink(),
        {"outputs": COG, "checksums": COG, "geotiff": "RasterioIOError", "geotiff map": COG},
    ),
    "no side file": (  # the GeoTIFF itself holds the names once more
        lambda f: (f / f"{COG}.aux.xml").unlink(),
        {"outputs": "aux.xml", "checksums": "aux.xml"},
    ),
    "a name beside the GeoTIFF": (
        lambda f: (f / f"{COG}.aux.xml").write_text((f / f"{COG}.aux.xml").read_text().replace("class 2", "sea")),
        {"checksums": "aux.xml", "geotiff": "class 20 is called 'sea' instead of 'class 2'"},
    ),
    "half a side file": (lambda f: os.truncate(f / f"{COG}.aux.xml", 300), {"checksums": "aux.xml"}),
    "a GeoTIFF in another place": (
        lambda f: rasterio.open(f / COG, "r+", IGNORE_COG_LAYOUT_BREAK="YES").__setattr__(
            "transform", Affine(1, 0, 5, 0, -1, 9)
        ),
        {"checksums": COG, "geotiff": "transform"},
    ),
    "another palette": (repaint, {"checksums": COG, "geotiff": "(1, 2, 3, 255) for class 20"}),
    "another style": (lambda f: (f / "a.classes.qml").write_text("<qgis/>"), {"checksums": "a.classes.qml"}),
    "a pipe for a file": (pipe_for_style, {"checksums": "a.classes.qml"}),
    "a flipped byte of a confidence": (
        lambda f: flip(f / SURE / "margin/c/1/1"),
        {"checksums": "margin/c/1/1", "confidence": SITE_4},
    ),
    "a confidence that is gone": (
        lambda f: (f / SURE / "confidence/c/1/1").unlink(),
        {"checksums": "confidence/c/1/1", "confidence": SITE_4},
    ),
    "no confidences": (
        lambda f: shutil.rmtree(f / SURE),
        {"outputs": SURE, "checksums": SURE, "confidence": "FileNotFoundError"},
    ),
    "another scale of confidences": (
        edited(f"{SURE}/margin/zarr.json", lambda r: r["attributes"].update(scale_factor=1)),
        {"checksums": "margin/zarr.json", "confidence": "scale_factor is 1 instead of 0.004"},
    ),
    "a flipped byte of the pyramid": (
        lambda f: flip(f / "a.pyramid.zarr/0/classes/c/1/1"),
        {"checksums": "pyramid.zarr/0/classes/c/1/1", "pyramid": "level 0: " + SITE_4},
    ),
    "a coarser level": (
        lambda f: (f / "a.pyramid.zarr/1/classes/c/1/0").unlink(),
        {"checksums": "pyramid.zarr/1/classes/c/1/0", "pyramid": "rows 128..255, cols 0..127"},
    ),
    "no item": (
        lambda f: (f / "a.stac.json").unlink(),
        {"outputs": "a.stac.json", "checksums": "a.stac.json", "item": "FileNotFoundError"},
    ),
    "an item of another map": (
        edited("a.stac.json", lambda r: r.update(id="b")),
        {"checksums": "a.stac.json", "item": "a.stac.json"},
    ),
    "an item that leaves something out": (
        edited("a.stac.json", lambda r: r["assets"].pop("cog")),
        {"checksums": "a.stac.json", "item": COG},
    ),
    "another cut in the report": (
        edited("a.run.json", lambda r: r["plan"]["cut"].update(tile=96)),
        {
            "report": "fingerprint",
            "store": "fingerprint",
            "geotiff": "fingerprint",
            "confidence": "fingerprint",
            "pyramid": "fingerprint",
        },
    ),
    "another fingerprint in the report": (
        edited("a.run.json", lambda r: r.update(fingerprint="0" * 64)),
        {"report": "0" * 64},
    ),
    "another count in the report": (
        edited("a.run.json", lambda r: r["classes"][2].update(pixels=7)),
        {"report": "report_sha256", "map": "class 20"},
    ),
    "another hash in the report": (
        edited("a.run.json", lambda r: r["journal"]["sha256"].__setitem__(4, "0" * 64)),
        {"report": "report_sha256", "map": SITE_4, "geotiff map": SITE_4, "pyramid": SITE_4},
    ),
    "a hash less in the report": (
        edited("a.run.json", lambda r: r["journal"]["sha256"].pop()),
        {"report": "14 blocks", "map": "block 14", "geotiff map": "14", "pyramid": "14"},
    ),
    "a report that forgets an output": (
        edited("a.run.json", lambda r: r["outputs"].remove("a.classes.qml")),
        {"report": "report_sha256", "outputs": "a.classes.qml"},
    ),
    "another note in the report": (
        edited("a.run.json", lambda r: r.update(notes=["all is well"])),
        {"report": "report_sha256"},
    ),
    "a report without its own hash": (
        edited("a.run.json", lambda r: r.pop("report_sha256")),
        {"report": "report_sha256"},
    ),
    "a report that leads elsewhere": (
        edited("a.run.json", lambda r: r["checksums"].update({"../b": "0", "/dev/zero": "0"})),
        {"report": "report_sha256", "checksums": "../b"},
    ),
    "half a report": (lambda f: os.truncate(f / "a.run.json", 300), {"report": "a.run.json"}),
    "an unfinished report": (edited("a.run.json", lambda r: r.update(complete=False)), {"report": "a.run.json"}),
    "a report whose outputs are no list": (edited("a.run.json", lambda r: r.update(outputs=5)), {"report": "5"}),
    "a report whose checksums are none": (edited("a.run.json", lambda r: r.update(checksums=5)), {"report": "int"}),
    "a report without its plan": (edited("a.run.json", lambda r: r.pop("plan")), {"report": "KeyError"}),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_nothing_else(tmp_path: Path, run: Path, name: str) -> None:
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    damage, expected = DAMAGES[name]
    damage(tmp_path)
    found = looked_at(tmp_path / "a.run.json")
    faults = failed(found)
    assert set(faults) == set(expected), faults
    for check, part in expected.items():
        assert part in faults[check], (check, faults[check])
    assert not found.ok
    if set(expected) != {"report"}:
        assert [check.name for check in found.checks] == CHECKS, "all are made, whatever one of them finds"


def test_an_output_of_another_run_is_found(tmp_path: Path, run: Path, other: Path) -> None:
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    print_of_other = str(find_run(other)[1]["fingerprint"])
    for name, expected in (
        (STORE, {"checksums", "store", "map"}),
        (COG, {"checksums", "geotiff", "geotiff map"}),
        (SURE, {"checksums", "confidence"}),
        ("a.pyramid.zarr", {"checksums", "pyramid"}),
        ("a.stac.json", {"checksums"}),
    ):
        (tmp_path / name).rename(tmp_path / "kept")
        copy = shutil.copytree if (other / name).is_dir() else shutil.copy2
        copy(other / name, tmp_path / name)
        faults = failed(looked_at(tmp_path / "a.run.json"))
        assert set(faults) == expected
        for check in expected & {"store", "geotiff", "confidence", "pyramid"}:
            assert f"fingerprint is {print_of_other}" in faults[check]
        (tmp_path / name).rename(tmp_path / f"{name}.of_other")
        (tmp_path / "kept").rename(tmp_path / name)


@pytest.mark.filterwarnings("ignore::rasterio.errors.RasterioDeprecationWarning")
def test_statistics_that_rasterio_adds_are_no_damage(tmp_path: Path, run: Path) -> None:
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    with rasterio.open(tmp_path / COG) as dataset:
        dataset.statistics(1)
    assert "STATISTICS_MAXIMUM" in (tmp_path / f"{COG}.aux.xml").read_text()
    assert failed(looked_at(tmp_path)) == {}


def test_a_pyramid_added_later_does_not_make_damage_right(tmp_path: Path, model: Path) -> None:
    options = ["-m", model, "-q"]
    segmented(scene(tmp_path / "a.tif"), *options)
    (tmp_path / "a.classes.qml").write_text("<qgis/>")
    segmented(tmp_path / "a.tif", *options, "--pyramid")
    found = looked_at(tmp_path)
    assert set(failed(found)) == {"checksums"}
    assert "a.classes.qml" in failed(found)["checksums"]
    assert "\n" not in failed(found)["checksums"]
    assert "pyramid" in [check.name for check in found.checks]


POINTS = [
    GroundControlPoint(row=r, col=c, x=10 + c / 100, y=50 - r / 100, z=3) for r, c in ((0, 0), (150, 0), (0, 160))
]
PLACES: dict[str, dict[str, Any]] = {
    "south-up": {"crs": "EPSG:32633", "transform": Affine(10, 0, 5e5, 0, 10, 5e6)},
    "rotated": {"crs": "EPSG:32633", "transform": Affine(3, 4, 5e5, 4, -3, 5e6)},
    "nowhere": {"crs": None, "transform": Affine.identity()},
    "no system": {"crs": None, "transform": Affine(3, 0, 5, 0, -3, 7)},
    "points": {"crs": "EPSG:4326", "gcps": POINTS},
    "no code": {"crs": "+proj=laea +lat_0=12 +lon_0=34 +ellps=GRS80", "transform": Affine(30, 0, 5, 0, -30, 7)},
    "not in GeoTIFF, no way back": {"crs": "+proj=vandg4", "transform": Affine(30, 0, 5, 0, -30, 7)},
}


@pytest.mark.parametrize("place", PLACES)
def test_maps_in_any_place_are_found_to_be_right(tmp_path: Path, model: Path, place: str) -> None:
    write_raster(tmp_path / "a.tif", noise(3, 150, 160), **PLACES[place])
    options = ["--confidence", "--shard", "256", "--pyramid"] if place == "rotated" else []
    segmented(tmp_path / "a.tif", "-m", model, "-q", *options)
    found = looked_at(tmp_path)
    assert failed(found) == {}
    names = [name for name in CHECKS if options or name not in ("confidence", "pyramid")]
    assert [check.name for check in found.checks] == names


def test_a_damaged_shard_is_found(tmp_path: Path, model: Path) -> None:
    segmented(scene(tmp_path / "a.tif"), "-m", model, "-q", "--shard", "256")
    assert FinishedMap(tmp_path / STORE).block == (128, 128)
    flip(tmp_path / STORE / "classes/c/1/1", 0.1)
    faults = failed(looked_at(tmp_path))
    assert set(faults) == {"checksums", "map"}
    assert "block 3, rows 256..299, cols 256..329: " in faults["map"]


def test_the_command_prints_a_line_for_each_check_and_fails_with_9(tmp_path: Path, run: Path) -> None:
    good = fcn_batch("validate", run / COG, "-q")
    assert good.exit_code == 0
    assert [line.split()[0] for line in good.stdout.splitlines()[1:]] == [name.split()[0] for name in CHECKS]
    assert all(re.match(r"[a-z ]{12} ok    \S", line) for line in good.stdout.splitlines()[1:])
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    for chunk in (tmp_path / STORE / "classes/c").glob("*/*"):
        chunk.unlink()
    bad = fcn_batch("validate", tmp_path, "-q")
    assert bad.exit_code == 9
    lines = [line for line in bad.stdout.splitlines() if "FAIL" in line]
    assert len(lines) == 12
    told = json.loads(fcn_batch("validate", tmp_path / STORE, "-q", "--json").stdout)
    assert told["ok"] is False
    assert [check["name"] for check in told["checks"] if not check["ok"]] == ["checksums", "map"]
    assert [len(check["faults"]) for check in told["checks"] if not check["ok"]] == [15, 15]


@pytest.mark.parametrize(
    ("name", "code"), [(".", "run-missing"), ("a.tif", "not-an-output"), ("b.run.json", "run-missing")]
)
def test_what_is_no_output_is_refused(tmp_path: Path, name: str, code: str) -> None:
    (tmp_path / "a.tif").touch()
    refused(fcn_batch("validate", tmp_path / name), code, path=tmp_path / name)
