"""Which values of a raster are black and white: as said, by sensors, by tags, by percentiles of the whole raster."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fcn_batch.pipeline.core.geometry import Size
from fcn_batch.pipeline.core.model_card import Band, InputSpec
from fcn_batch.pipeline.core.stretch import Histogram, Stretch
from fcn_batch.pipeline.raster.rasterfile import RasterioSource, inspect
from fcn_batch.workflows.inputs import bands as stretching
from fcn_batch.workflows.inputs.bands import choose_stretch
from tests.errors import refused, refuses
from tests.models import save_tiny_model, scaled
from tests.rasters import noise, write_raster
from tests.runs import class_map, fcn_batch, scene, segmented
from tests.sources import info_of

PLACE = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1), st.floats(0, 100))
def test_percentiles_of_floats_are_right_to_a_2048th(values: list[float], percent: float) -> None:
    counted = Histogram("float32")
    counted.add(np.array(values, np.float32))
    exact = sorted(values)[max(1, int(np.ceil(len(values) * percent / 100))) - 1]
    found = counted.percentile(percent)
    assert counted.count == len(values)
    assert abs(found - exact) <= abs(exact) / 2**11 + np.finfo(np.float32).tiny


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_percentiles_of_whole_numbers_are_exact(dtype: str) -> None:
    span = np.iinfo(dtype)
    random = np.random.default_rng(2)
    values = random.integers(span.min, span.max, (3, 1000), dtype, endpoint=True)
    counted = Histogram(dtype)
    for part in values:
        counted.add(part)
    for percent in (0, 0.1, 2, 50, 98, 99.97, 100):
        assert counted.percentile(percent) == np.percentile(values, percent, method="inverted_cdf")


def test_what_cannot_be_counted() -> None:
    with pytest.raises(ValueError):
        Histogram("float64")
    with pytest.raises(ValueError):
        Histogram("uint8").percentile(50)


@given(
    low=st.floats(-1e4, 1e4),
    width=st.floats(1, 1e4),
    mean=st.floats(-1, 1),
    std=st.floats(0.1, 2),
)
def test_a_stretched_band_is_what_it_would_be_stretched_first(
    low: float, width: float, mean: float, std: float
) -> None:
    spec = InputSpec(bands=(Band(name="a", mean=mean, std=std),), gsd_m=1)
    stretch = Stretch(by="x", ranges=((low, low + width),))
    values = np.linspace(low, low + width, 11)[None, None]
    found = scaled(values, np.ones(values.shape[1:], bool), stretch.applied(spec), dtype=np.float64)
    expected = ((values - low) / (stretch.ranges[0][1] - low) - mean) / std
    np.testing.assert_allclose(found, expected, atol=1e-9 * (1 + abs(low)))


def stretch(path: Path, wanted: str, bands: tuple[int, ...] = (1, 2, 3)) -> tuple[tuple[float, float], ...]:
    return choose_stretch(RasterioSource(path), bands, wanted).ranges


def test_what_is_said_and_refused(tmp_path: Path) -> None:
    path = scene(tmp_path / "a.tif", 40, 50)
    assert stretch(path, "0, 3000") == ((0, 3000),) * 3
    assert stretch(path, "0,1,-2,3,4,5e2") == ((0, 1), (-2, 3), (4, 500))
    assert stretch(path, "sentinel-2") == ((1000, 11000),) * 3
    low, high = stretch(path, "landsat")[0]
    assert (low * 0.0000275 - 0.2, high * 0.0000275 - 0.2) == pytest.approx((0, 1))
    for wanted in ("bright", "1", "1,2,3,4", "5,5", "nan,1", "2%,98", "98%,2%", "2%,50%,98%"):
        with refuses("option-value"):
            stretch(path, wanted)
    with refuses("tags-unusable"):
        stretch(path, "tags")


def test_tags_say_what_values_mean(tmp_path: Path) -> None:
    path = scene(tmp_path / "a.tif", 40, 50)
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.0001, 0.0001, 0.5), (-0.1, 0.0, 0.0)
    np.testing.assert_allclose(stretch(path, "tags"), [(1000, 11000), (0, 10000), (0, 2)])
    with rasterio.open(path, "r+") as dataset:
        dataset.scales = (-1.0, 1.0, 1.0)
    with refuses("tags-unusable"):
        stretch(path, "tags")


def test_percentiles_are_of_all_valid_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretching, "_READ_PIXELS", 1000)
    values = noise(3, 170, 90).astype(np.uint16) * 50
    values[:, :30] = 7
    path = write_raster(tmp_path / "a.tif", values, nodata=7)
    valid = RasterioSource(path).read(next(stretching._parts(inspect(path))), (1,)).valid
    assert not valid.all()
    counted = values[:, 30:]
    expected = [tuple(np.percentile(band, (2, 98), method="inverted_cdf")) for band in counted]
    assert list(stretch(path, "2%,98%")) == expected
    assert stretch(path, "2%,98%", (3,)) == (expected[2],)


@pytest.mark.parametrize("block", [(1, 70_000), (256, 256), (4096, 4096), (9000, 512)])
def test_little_is_read_at_a_time_to_count(block: tuple[int, int]) -> None:
    """High blocks too: a row of them may be most of the raster."""
    size = Size(9000, 70_000)
    parts = list(stretching._parts(info_of(size, block)))
    assert sum(part.pixels for part in parts) == size.pixels
    assert all(part.row % block[0] == part.col % block[1] == 0 for part in parts), "each block is decoded once"
    assert max(part.pixels for part in parts) <= max(stretching._READ_PIXELS, block[0] * block[1])


def test_a_band_of_one_value_and_one_of_none(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", np.full((1, 20, 30), 9, np.uint8))
    assert stretch(path, "2%,98%", (1,)) == ((9, 10),)
    path = write_raster(tmp_path / "b.tif", np.full((1, 20, 30), 9, np.uint8), nodata=9)
    assert stretch(path, "2%,98%", (1,)) == ((0, 1),)


# --- runs ----------------------------------------------------------------------------------------------------


def converted(path: Path, change: Any, **profile: Any) -> Path:
    """A copy with other values of another type."""
    with rasterio.open(path) as dataset:
        values: NDArray[Any] = dataset.read()
        known = {"crs": dataset.crs, "transform": dataset.transform}
    return write_raster(path.with_name(profile.pop("name")), change(values), **known, **profile)


def test_the_same_pixels_in_other_numbers_make_the_same_map(tmp_path: Path, model: Path) -> None:
    """Of a raster of bytes: one of reflectance as Sentinel-2 writes it, in floats, and with tags."""
    plain = scene(tmp_path / "a.tif", 150, 140)
    converted(plain, lambda v: (v.astype(np.float64) / 255 * 10000 + 1000).round().astype(np.uint16), name="s2.tif")
    converted(plain, lambda v: v.astype(np.float32) * 3 - 100, name="floats.tif")
    tagged = converted(plain, lambda v: v.astype(np.int16) * 2 + 50, name="tagged.tif")
    with rasterio.open(tagged, "r+") as dataset:
        dataset.scales, dataset.offsets = (1 / 510,) * 3, (-50 / 510,) * 3
    options = ["-m", model, "-o", tmp_path / "out", "--precision", "fp32"]
    segmented(plain, *options)
    segmented(tmp_path / "s2.tif", *options, "--stretch", "sentinel-2")
    segmented(tmp_path / "floats.tif", *options, "--stretch", "-100,665")
    told = segmented(tagged, *options)
    assert "--stretch tags" in told.stderr, "taken without asking: nothing else says what the values are"
    expected = class_map(tmp_path / "out", "a")
    for stem, most in (("s2", 0.002), ("floats", 0.0005), ("tagged", 0.0005)):
        assert (class_map(tmp_path / "out", stem) != expected).mean() <= most, stem
    report = json.loads((tmp_path / "out" / "s2.run.json").read_text())
    assert report["plan"]["stretch"] == {"by": "sentinel-2", "ranges": [[1000, 11000]] * 3}


def test_percentiles_are_measured_once_and_kept(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = converted(scene(tmp_path / "a.tif", 150, 140), lambda v: v.astype(np.float32) / 7, name="f.tif")
    options = [path, "-m", model, "-o", tmp_path / "out", "--stretch", "2%,98%"]
    segmented(*options)
    verified = fcn_batch("verify", tmp_path / "out" / "f.run.json", "--samples", 3)
    assert verified.exit_code == 0, verified.stderr

    def again(*_: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(stretching, "_measured", again)
    assert "complete already" in segmented(*options).stderr
    both = fcn_batch("plan", path, "-m", model, "--stretch", "0,9", "--full-scale", "9")
    refused(both, "option-conflict", stretch="0,9", full_scale=9.0)
    planned = fcn_batch("plan", path, "-m", model, "--stretch", "100,200")
    assert "100 to 200 is black to white (--stretch 100,200)" in planned.stdout


def test_percentiles_of_another_level_are_not_taken(tmp_path: Path, model: Path) -> None:
    """The files are the same, and means of pixels have another spread."""
    path = write_raster(tmp_path / "a.tif", noise(3, 300, 280, "uint16"), tiled=True, **PLACE)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2], rasterio.enums.Resampling.average)
    options = [path, "-m", model, "--stretch", "2%,98%"]
    segmented(*options, "-o", tmp_path / "out")
    ranges = []
    for folder in ("fresh", "out"):
        segmented(*options, "--level", 1, "--overwrite", "-o", tmp_path / folder)
        ranges.append(json.loads((tmp_path / folder / "a.run.json").read_text())["plan"]["stretch"]["ranges"])
    assert ranges[0] == ranges[1]


def test_what_cannot_be_read_is_not_counted(tmp_path: Path, model: Path) -> None:
    """Where --on-error says to go on without it: already the plan reads the raster."""
    values = noise(3, 96, 96, "uint16")
    stored = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"}
    path = write_raster(tmp_path / "a.tif", values, **stored, **PLACE)
    with rasterio.open(path) as dataset:
        at = int(dataset.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * 64)
    options = ["segment", path, "-m", model, "--stretch", "2%,98%", "-o", tmp_path / "out"]
    failed = fcn_batch(*options)
    refused(failed, "pixels-unreadable", path=path)
    assert fcn_batch(*options, "--on-error", "mask").exit_code == 3
    values[:, 32:64, 32:64] = 0
    expected = [list(np.percentile(band[band > 0], (2, 98), method="inverted_cdf")) for band in values]
    assert json.loads((tmp_path / "out" / "a.run.json").read_text())["plan"]["stretch"]["ranges"] == expected


def test_bands_by_name(tmp_path: Path, model: Path) -> None:
    plain = scene(tmp_path / "a.tif", 150, 140)
    many = converted(plain, lambda v: np.stack([v[2], v[0], v[0], v[1]]), name="many.tif", photometric="MINISBLACK")
    with rasterio.open(many, "r+") as dataset:
        dataset.descriptions = ("B2", "twice", "B4, central wavelength 665 nm", "b3")
    options = ["-m", model, "-o", tmp_path / "out"]
    segmented(plain, *options)
    segmented(many, *options, "--bands", "b4,B3,1")
    assert (class_map(tmp_path / "out", "many") == class_map(tmp_path / "out", "a")).all()
    refused(fcn_batch("plan", many, "-m", model, "--bands", "B4,B3,B8"), "band-unknown", name="B8")
    assert fcn_batch("plan", many, "-m", model, "--bands", "B4,,B2").exit_code == 2
    with rasterio.open(many, "r+") as dataset:
        dataset.descriptions = ("B2", "B4", "B4", "B3")
    result = fcn_batch("plan", many, "-m", model, "--bands", "B4,B3,B2")
    refused(result, "band-ambiguous", name="B4", found="2,3")
