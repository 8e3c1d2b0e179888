"""Which pixels hold data: the used bands decide, by nodata, NaN, masks and alpha. Oracle: numpy on what was written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.plan import Plan
from fcn_batch.pipeline.core.validity import NodataOption, Rule, counts
from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from fcn_batch.pipeline.raster.rasterfile import RasterioSource
from fcn_batch.workflows.inputs.sources import find_source, resampled, source_of
from tests.errors import refused
from tests.models import save_tiny_model
from tests.rasters import noise, write_raster
from tests.runs import class_map, fcn_batch, segmented

ROWS, COLS = 40, 60
HOLE = (slice(5, 15), slice(10, 30))
RGBN = {"photometric": "RGB", "interleave": "pixel"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


def report(folder: Path, stem: str = "a") -> Any:
    return json.loads((folder / f"{stem}.run.json").read_text())


def hole(bands: int, dtype: str = "uint8", **fill: float) -> NDArray[Any]:
    """Noise with a hole in which the bands named b1, b2, … have a value."""
    values = noise(bands, ROWS, COLS, dtype)
    for name, value in fill.items():
        values[int(name[1:]) - 1][HOLE] = value
    return values


def in_hole() -> NDArray[np.bool_]:
    found = np.zeros((ROWS, COLS), np.bool_)
    found[HOLE] = True
    return found


def _held(dtype: str) -> range:
    return range(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max) + 1)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_rule(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(["uint8", "uint16", "int16", "float32"]))
    bands = data.draw(st.integers(1, 5))
    some = [0, 1, 7] + ([-9999, -1] if dtype in ("int16", "float32") else [255])
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = rng.choice(np.array([*some, 3]), (bands, 9, 11)).astype(dtype)
    if dtype == "float32":
        values[rng.random(values.shape) < 0.1] = np.nan
        values[rng.random(values.shape) < 0.1] = data.draw(st.sampled_from([np.inf, -np.inf, 3.4e38]))
    nodata = data.draw(st.sampled_from([None, *some, -5.5e7, 0.5]))
    given_values = data.draw(st.sampled_from([None, "none", "7", ",".join(["0", "1", "7", "7", "0"][:bands])]))
    rule: Rule | None = data.draw(st.sampled_from([None, "any", "all"]))
    alpha = data.draw(st.sampled_from([None, *range(1, bands + 1)]))
    used = tuple(data.draw(st.permutations(range(1, bands + 1)))[: data.draw(st.integers(1, bands))])
    path = tmp_path_factory.mktemp("rule") / "a.tif"
    with accept_pixel_space(), rasterio.open(path, "w", "GTiff", 11, 9, bands, dtype=dtype) as dataset:
        dataset.write(values)
        kinds = [rasterio.enums.ColorInterp.undefined] * bands
        if alpha is not None:
            kinds[alpha - 1] = rasterio.enums.ColorInterp.alpha
        dataset.colorinterp = kinds
        if nodata is not None and (dtype == "float32" or (nodata == int(nodata) and nodata in _held(dtype))):
            dataset.nodata = nodata
    with accept_pixel_space(), rasterio.open(path) as dataset:
        nodata, roles = dataset.nodata, [role.name for role in dataset.colorinterp]
        alpha = roles.index("alpha") + 1 if "alpha" in roles else None  # GDAL keeps it in some of the places
    if given_values is None:
        missing = [nodata] * bands
    elif given_values == "none":
        missing = [None] * bands
    else:
        listed = [float(part) for part in given_values.split(",")]
        missing = listed if len(listed) > 1 else listed * bands
    says = [values[band - 1] == missing[band - 1] for band in used if missing[band - 1] is not None]
    every = rule == "all" or (rule is None and dtype.startswith("u"))
    empty = (np.all if every else np.any)(says, axis=0) if says else np.zeros((9, 11), np.bool_)
    valid = ~empty & (np.abs(values[[band - 1 for band in used]].astype(np.float64)) < 1e30).all(axis=0)
    if alpha is not None:
        valid &= values[alpha - 1] != 0
    source = RasterioSource(path, nodata=NodataOption(given_values, rule))
    found = source.read(Window(0, 0, 9, 11), used)
    assert (found.valid == valid).all()
    assert sum(counts(found.reasons).values()) == (~valid).sum()


def _rgbn(path: Path) -> Path:
    """Four bytes whose fourth GDAL could take for alpha; near infrared is 0 over water."""
    return write_raster(path, hole(4, b4=0), nodata=0, **RGBN)


def _alpha_last(dtype: str) -> Any:
    def make(path: Path) -> Path:
        values = hole(5, dtype)
        values[4] = 200
        values[4][HOLE] = 0
        write_raster(path, values)
        with accept_pixel_space(), rasterio.open(path, "r+") as dataset:
            dataset.colorinterp = [*dataset.colorinterp[:4], rasterio.enums.ColorInterp.alpha]
        return path

    return make


def _vrt(path: Path) -> Path:
    """Only band 1 has a nodata value."""
    write_raster(path.with_suffix(".tif"), hole(3, b1=0, b2=0, b3=0))
    band = (
        '<VRTRasterBand dataType="Byte" band="{0}">{1}<SimpleSource><SourceFilename relativeToVRT="1">a.tif'
        "</SourceFilename><SourceBand>{0}</SourceBand></SimpleSource></VRTRasterBand>"
    )
    bands = "".join(band.format(k, "<NoDataValue>0</NoDataValue>" if k == 1 else "") for k in (1, 2, 3))
    path.with_suffix(".vrt").write_text(f'<VRTDataset rasterXSize="{COLS}" rasterYSize="{ROWS}">{bands}</VRTDataset>')
    return path.with_suffix(".vrt")


def _zarr(path: Path) -> Path:
    """One used band has the value that stands for no data, of signed numbers."""
    array = zarr.create_array(
        path.with_suffix(".zarr"), data=hole(3, "int16", b2=-9999), dimension_names=("b", "y", "x")
    )
    array.attrs["_FillValue"] = -9999
    return path.with_suffix(".zarr")


CASES: dict[str, tuple[Any, tuple[Any, ...], bool]] = {
    "infrared that is 0 is no hole": (_rgbn, ("-b", "1,2,3"), False),
    "infrared that is used, and 0 in itself alone": (_rgbn, ("-b", "4,2,3"), False),
    "alpha of bytes behind four bands": (_alpha_last("uint8"), ("-b", "1,2,3"), True),
    "alpha of uint16": (_alpha_last("uint16"), ("-b", "1,2,3", "--full-scale", 255), True),
    "alpha of int16": (_alpha_last("int16"), ("-b", "1,2,3", "--full-scale", 255), True),
    "alpha of floats": (_alpha_last("float32"), ("-b", "1,2,3", "--full-scale", 255), True),
    "a quality band that is not used": (
        lambda path: write_raster(path, hole(4, b1=0, b2=0, b3=0, b4=1), nodata=0, photometric="MINISBLACK"),
        ("-b", "1,2,3"),
        True,
    ),
    "a VRT in which one band has nodata": (_vrt, (), True),
    "signed nodata in one used band": (
        lambda path: write_raster(path, hole(3, "int16", b2=-9999), nodata=-9999),
        ("--full-scale", 255),
        True,
    ),
    "signed nodata in a band that is not used": (
        lambda path: write_raster(path, hole(4, "int16", b4=-9999), nodata=-9999),
        ("-b", "1,2,3", "--full-scale", 255),
        False,
    ),
    "float nodata in one used band": (
        lambda path: write_raster(path, hole(3, "float32", b1=-1), nodata=-1),
        ("--full-scale", 255),
        True,
    ),
    "zarr's fill value in one used band": (_zarr, ("--full-scale", 255, "-b", "1,2,3"), True),
    "pure red under nodata 0": (lambda path: write_raster(path, hole(3, b2=0, b3=0), nodata=0, **RGBN), (), False),
    "saturated pixels under nodata 0": (
        lambda path: write_raster(path, hole(3, b1=255, b2=255, b3=255), nodata=0, **RGBN),
        (),
        False,
    ),
    "a collar without a tag": (lambda path: write_raster(path, hole(3, b1=0, b2=0, b3=0), **RGBN), (), False),
    "a collar that is said": (
        lambda path: write_raster(path, hole(3, b1=0, b2=0, b3=0), **RGBN),
        ("--nodata", 0),
        True,
    ),
    "a colour that is said": (
        lambda path: write_raster(path, hole(3, b1=255, b2=0, b3=255), **RGBN),
        ("--nodata", "255,0,255"),
        True,
    ),
    "nodata that is denied": (
        lambda path: write_raster(path, hole(3, b1=0, b2=0, b3=0), nodata=0, **RGBN),
        ("--nodata", "none"),
        False,
    ),
    "any band": (
        lambda path: write_raster(path, hole(3, b2=0), nodata=0, **RGBN),
        ("--nodata-rule", "any"),
        True,
    ),
    "nodata that no byte can be": (lambda path: write_raster(path, hole(3, b1=0), **RGBN), (), False),
}


@pytest.mark.parametrize("case", CASES)
def test_what_has_no_class(tmp_path: Path, model: Path, case: str) -> None:
    make, options, empty = CASES[case]
    path = make(tmp_path / "a.tif")
    segmented(path, "-m", model, "-o", tmp_path, *options)
    expected = in_hole() if empty else np.zeros((ROWS, COLS), np.bool_)
    assert ((class_map(tmp_path, "a") == 255) == expected).all()
    assert sum(report(tmp_path)["nodata"]["why"].values()) == expected.sum()


@pytest.mark.parametrize("text", ["", "x", "1,", "1,2", "300", "0.5", "nan", "-1"])
def test_nodata_that_cannot_be(tmp_path: Path, model: Path, text: str) -> None:
    path = write_raster(tmp_path / "a.tif", noise(3, ROWS, COLS), photometric="RGB")
    refused(fcn_batch("segment", path, "-m", model, "-o", tmp_path, "--nodata", text), "nodata-invalid")


def test_the_report_says_why_and_by_which_rule(tmp_path: Path, model: Path) -> None:
    values = hole(4, b1=0, b2=0, b3=0)
    values[3] = 255
    values[3, 30:] = 0  # transparent
    values[0, 20:24] = 0  # not red, but no hole
    path = write_raster(tmp_path / "a.tif", values, nodata=0, photometric="RGB", alpha="YES", tiled=True)
    result = segmented(path, "-m", model, "-o", tmp_path, "--bbox", f"0,0,{COLS - 4},{ROWS}")
    found = report(tmp_path)
    assert found["nodata"]["why"] == {"alpha": 10 * COLS, "nodata": 200, "outside": 30 * 4}
    assert found["nodata_pixels"] == 10 * COLS + 200 + 30 * 4
    assert (found["nodata"]["rule"], found["nodata"]["values"]) == ("all", [0, 0, 0, 0])
    assert found["nodata"]["rules_differ_pixels"] == 4 * COLS
    assert any("--nodata-rule any" in note for note in found["notes"])
    assert f"alpha {10 * COLS:,}" in result.stderr
    again = segmented(path, "-m", model, "-o", tmp_path, "--nodata-rule", "any", "--overwrite")
    assert report(tmp_path)["nodata"]["why"]["nodata"] == 200 + 4 * COLS
    assert "--nodata-rule all" in again.stderr


def test_a_plan_remembers_what_was_said(tmp_path: Path, model: Path) -> None:
    """Other processes read the same pixels, and another nodata is another plan."""
    path = write_raster(tmp_path / "a.tif", hole(3, b1=9, b2=9, b3=9), photometric="RGB")
    said = find_source(path, nodata=NodataOption("9")).info
    assert said.sources[0].nodata == NodataOption("9")
    segmented(path, "-m", model, "-o", tmp_path, "--nodata", 9)
    plan = report(tmp_path)["plan"]
    assert plan["input"]["nodata"] == [9.0, 9.0, 9.0]
    refused(fcn_batch("segment", path, "-m", model, "-o", tmp_path), "output-exists")
    read = source_of(Plan.model_validate(plan).input).read(Window(0, 0, ROWS, COLS), (1, 2, 3))
    assert (read.valid == ~in_hole()).all()


@pytest.mark.parametrize("kind", ["png", "mask", "msk", "bits"])
def test_masks_that_are_stored_count(tmp_path: Path, kind: str) -> None:
    """Also a PNG's transparent colour, which is one of all bands together."""
    values = hole(3, b1=7, b2=8, b3=9)
    if kind == "png":
        image = pytest.importorskip("PIL.Image").fromarray(np.moveaxis(values, 0, -1))
        image.save(tmp_path / "a.png", transparency=(7, 8, 9))
        path = tmp_path / "a.png"
    else:
        path = write_raster(tmp_path / "a.tif", values, photometric="RGB")
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=kind != "msk"),
            accept_pixel_space(),
            rasterio.open(path, "r+") as dataset,
        ):
            dataset.write_mask(~in_hole())
    pixels = RasterioSource(path).read(Window(0, 0, ROWS, COLS), (2,))
    assert (pixels.valid == ~in_hole()).all()
    assert counts(pixels.reasons) == {"mask": 200}


def test_reasons_follow_pixels_to_another_grid(tmp_path: Path) -> None:
    values = hole(3, b1=0, b2=0, b3=0)
    place = rasterio.Affine(10, 0, 500000, 0, -10, 5000000)
    path = write_raster(tmp_path / "a.tif", values, nodata=0, crs="EPSG:32633", transform=place, photometric="RGB")
    coarse = resampled(find_source(path), 2.0)
    size = coarse.info.size
    found = coarse.read(Window(0, 0, size.height, size.width), (1, 2, 3))
    assert (found.valid == ~in_hole()[::2, ::2]).mean() > 0.95
    assert set(counts(found.reasons)) <= {"nodata", "mostly without data"}
    assert sum(counts(found.reasons).values()) == (~found.valid).sum()
