"""Maps at another resolution than their input's: grids, classes, and the way back to the input's pixels."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.rpc import RPC
from rasterio.transform import Affine

from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from fcn_batch.pipeline.raster.rasterfile import RasterioSource, inspect
from fcn_batch.workflows.inputs.resolution import georeference_notes
from fcn_batch.workflows.inputs.sources import resampled
from tests.models import save_tiny_model
from tests.rasters import noise, write_raster
from tests.runs import class_map, fcn_batch, segmented, small_blocks

GSD = 7000.0
"""Metres per pixel that the tiny model is made for (about)."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


def fine(path: Path, metres: float, height: int = 500, width: int = 420) -> Path:
    values = np.repeat(np.repeat(noise(3, height // 5, width // 5, seed=2), 5, axis=1), 5, axis=2)
    transform = Affine(metres, 0, 4e5, 0, -metres, 5e6)
    return write_raster(path, values, crs="EPSG:32633", transform=transform, photometric="RGB")


def test_the_map_is_that_of_the_resampled_raster(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    path = fine(tmp_path / "a.tif", GSD / 3)
    result = segmented(path, "-m", model, "-o", tmp_path / "out", "--resample", "auto", "--precision", "fp32")
    report = json.loads((tmp_path / "out" / "a.run.json").read_text())["plan"]["input"]
    assert report["resampling"] == "average"
    factor = report["transform"][0] / (GSD / 3)
    assert "the input is taken at 7" in result.stderr
    source = resampled(RasterioSource(path), factor)
    size = source.info.size
    assert abs(size.height - 500 / factor) < 1
    pixels = source.read(Window(0, 0, size.height, size.width), (1, 2, 3))
    other = write_raster(
        tmp_path / "b.tif",
        pixels.values,
        crs="EPSG:32633",
        transform=Affine(*report["transform"]),
        photometric="RGB",
    )
    segmented(other, "-m", model, "-o", tmp_path / "out", "--precision", "fp32")
    assert (class_map(tmp_path / "out", "a") == class_map(tmp_path / "out", "b")).all()
    for command in ("validate", "verify"):
        assert fcn_batch(command, tmp_path / "out" / "a.run.json").exit_code == 0


def test_the_map_on_the_grid_of_the_input(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    path = fine(tmp_path / "a.tif", GSD / 4)
    segmented(path, "-m", model, "-o", tmp_path / "out", "--resample", "auto")
    written = tmp_path / "back.tif"
    result = fcn_batch("export", tmp_path / "out" / "a.run.json", "--to", "cog", "--grid", "input", "-o", written)
    assert result.exit_code == 0, result.stderr
    ids = class_map(tmp_path / "out", "a")
    with rasterio.open(written) as back, rasterio.open(path) as before:
        assert (back.shape, back.transform, back.crs) == (before.shape, before.transform, before.crs)
        found = back.read(1)
    with rasterio.open(tmp_path / "out" / "a.classes.tif") as dataset:
        factor = dataset.transform.a / (GSD / 4)
    rows, cols = (np.floor((np.arange(length) + 0.5) / factor).astype(int) for length in found.shape)
    assert (found == ids[rows[:, None], cols[None, :]]).all()


def test_the_map_of_a_mosaic_on_its_own_grid(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is on the right, below: the grid is its own, made larger."""
    small_blocks(monkeypatch)
    whole = fine(tmp_path / "whole.tif", GSD / 4)
    with rasterio.open(whole) as dataset:
        for name, row, col in (("a", 60, 90), ("b", 0, 0)):
            values, transform = dataset.read(), dataset.transform @ Affine.translation(col, row)
            part = values[:, row:, col:] if row else values[:, :300, :260]
            write_raster(tmp_path / f"{name}.tif", part, crs=dataset.crs, transform=transform, photometric="RGB")
    options = ["-m", model, "--resample", "auto", "-o", tmp_path / "out"]
    segmented(tmp_path / "a.tif", tmp_path / "b.tif", "--mosaic", "m", *options)
    result = fcn_batch("export", tmp_path / "out" / "m.run.json", "--to", "cog", "--grid", "input")
    assert result.exit_code == 0, result.stderr
    ids = class_map(tmp_path / "out", "m")
    with rasterio.open(tmp_path / "out" / "m.classes.tif") as coarse, rasterio.open(whole) as dataset:
        factor, grid = coarse.transform.a / (GSD / 4), (dataset.shape, dataset.transform, dataset.crs)
    with rasterio.open(result.stdout.strip()) as dataset:
        assert (dataset.shape, dataset.transform, dataset.crs) == grid
        found = dataset.read(1)
    rows, cols = (np.floor((np.arange(length) + 0.5) / factor).astype(int) for length in found.shape)
    assert (found == ids[rows[:, None], cols[None, :]]).all()


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--mpp", "0.5"], 2, "does not say how large a pixel is"),
        (["--level", "1"], 4, "has no level 1: its pyramid goes from 0 to 0"),
        (["--level", "0", "--mpp", "1"], 2, "give one of them"),
        (["--mpp", "0"], 2, "--mpp"),
        (["--mpp", "nan"], 2, "--mpp nan: give micrometres per pixel"),
        (["--mpp", "inf"], 2, "--mpp inf: give micrometres per pixel"),
    ],
)
def test_what_is_refused(model: Path, tmp_path: Path, options: list[str], code: int, told: str) -> None:
    result = fcn_batch("segment", fine(tmp_path / "a.tif", GSD), "-m", model, *options)
    assert result.exit_code == code
    assert told in result.stderr
    assert not list(tmp_path.glob("a.*[!f]"))


@pytest.mark.parametrize(
    ("gsd", "code", "told"),
    [
        (GSD / 1e8, 2, r"it would have \d{11} x \d{11} pixels, more than the limit of"),
        (GSD * 1e8, 4, r"500 x 420 of its pixels become 1 x 1; take a coarser level"),
    ],
)
def test_resolutions_that_no_map_can_have(tmp_path: Path, gsd: float, code: int, told: str) -> None:
    """Neither more pixels than a map can have, nor one of which the input is hardly a part."""
    model = save_tiny_model(tmp_path / "tiny.safetensors", fc_kernel=1, gsd_m=gsd)
    result = fcn_batch("segment", fine(tmp_path / "a.tif", GSD), "-m", model, "--resample", "auto")
    assert result.exit_code == code, result.stderr
    assert re.search(told, result.stderr)


def test_a_level_of_a_pyramid(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    path = fine(tmp_path / "a.tif", GSD / 2)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2], rasterio.enums.Resampling.average)
    with rasterio.open(path, OVERVIEW_LEVEL=0) as coarse:
        write_raster(tmp_path / "b.tif", coarse.read(), crs=coarse.crs, transform=coarse.transform, photometric="RGB")
    segmented(path, "-m", model, "-o", tmp_path / "out", "--level", "1", "--precision", "fp32")
    segmented(tmp_path / "b.tif", "-m", model, "-o", tmp_path / "out", "--precision", "fp32")
    assert (class_map(tmp_path / "out", "a") == class_map(tmp_path / "out", "b")).all()
    with rasterio.open(tmp_path / "out" / "a.classes.tif") as one, rasterio.open(tmp_path / "b.tif") as other:
        assert one.transform == other.transform
    told = fcn_batch("plan", path, "-m", model, "--level", "1").stdout
    assert "250 x 210 px (a level of its pyramid): so is the map" in told


def test_a_raster_placed_by_rpcs_is_told_of(tmp_path: Path) -> None:
    """The map does not have them."""
    path = write_raster(tmp_path / "a.tif", noise(3, 8, 9))
    assert not inspect(path).rpcs
    one, none = [1.0] + [0.0] * 19, [0.0] * 20
    rpcs = RPC(
        0, 500, 45, 0.1, one, none, 4, 4, 10, 0.1, one, none, 4, 4
    )  # height, latitude, lines, longitude, samples
    with accept_pixel_space(), rasterio.open(path, "r+") as dataset:
        dataset.rpcs = rpcs
    assert ["RPCs" in note for note in georeference_notes(inspect(path))] == [True]
