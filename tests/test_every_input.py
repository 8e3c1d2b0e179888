"""One image in every form that its users have it in: the map is always that of the plain GeoTIFF."""

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.shutil import copy as copy_raster
from rasterio.transform import Affine

from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from tests.models import save_tiny_model
from tests.rasters import noise, write_raster
from tests.remote_servers import http_server, s3_server
from tests.runs import class_map, fcn_batch, segmented, small_blocks
from tests.slides import levels_of, ome, pyramid
from tests.zarrs import bare_array, by_convention, by_gdal, by_xarray, by_xarray_in_variables, ome_by_hand

HEIGHT, WIDTH = 200, 170
PLACE: dict[str, Any] = {"crs": "EPSG:32633", "transform": Affine(7000, 0, 4e5, 0, -7000, 5e6)}
COLOURS = {"photometric": "RGB"}
TILED: dict[str, Any] = {"tiled": True, "blockxsize": 64, "blockysize": 48}


def pixels() -> NDArray[np.uint8]:
    """An image of which 200 colours are enough, so that a palette can have them."""
    few = noise(3, 25, 8, seed=5).reshape(3, -1)
    return np.asarray(few[:, np.random.default_rng(1).integers(0, 200, (HEIGHT, WIDTH))], dtype=np.uint8)


def hole() -> NDArray[np.bool_]:
    """Where there is data, in the forms that can say so."""
    valid = np.ones((HEIGHT, WIDTH), np.bool_)
    valid[30:110, 20:70] = False
    return valid


@dataclass(frozen=True)
class Form:
    """How the image is written, and what is asked for."""

    write: Callable[[Path], Any]
    """Into a folder; gives the input, or several."""
    options: Sequence[str] = field(default_factory=tuple)
    masked: bool = False
    """True: `hole` is without data."""
    placed: bool = True
    """False: the form has no place on the Earth."""


def tiff(folder: Path, values: NDArray[Any] | None = None, **profile: Any) -> Path:
    return write_raster(folder / "a.tif", pixels() if values is None else values, **{**PLACE, **COLOURS, **profile})


def converted(folder: Path, driver: str, name: str, **options: Any) -> Path:
    plain = write_raster(folder / "plain.tif", pixels(), **PLACE, **COLOURS)
    with accept_pixel_space():
        copy_raster(plain, folder / name, driver=driver, **options)
    plain.unlink()
    return folder / name


def with_mask_band(folder: Path) -> Path:
    path = tiff(folder)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(hole())
    return path


def with_alpha(folder: Path) -> Path:
    alpha = np.where(hole(), 255, 0).astype(np.uint8)[None]
    path = tiff(folder, np.concatenate([pixels(), alpha]))
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    return path


def zarr_of_variables(folder: Path) -> Path:
    tif = tiff(folder, np.where(hole(), pixels(), np.uint8(0)), nodata=0)
    return by_xarray_in_variables(tif, folder / "a.zarr", 2)


def with_nan(folder: Path) -> Path:
    values = pixels().astype(np.float32)
    values[:, ~hole()] = np.nan
    return tiff(folder, values, photometric="MINISBLACK")


def in_another_order(folder: Path) -> Path:
    values = pixels()
    path = tiff(folder, np.stack([noise(1, HEIGHT, WIDTH)[0], *values[::-1]]), photometric="MINISBLACK")
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("B08", "blue", "green", "red")
    return path


def blue_first(folder: Path) -> Path:
    """Three bands of bytes are red, green and blue to GDAL, whoever wrote them; what they are called counts."""
    path = tiff(folder, pixels()[::-1])
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("Blue", "Green", "Red")
    return path


def with_palette(folder: Path) -> Path:
    colours, numbers = np.unique(pixels().reshape(3, -1), axis=1, return_inverse=True)
    path = tiff(folder, numbers.reshape(1, HEIGHT, WIDTH).astype(np.uint8), photometric="PALETTE")
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {k: (*map(int, colour), 255) for k, colour in enumerate(colours.T)})
    return path


def vrt(folder: Path) -> Path:
    """Of two halves, with another nodata value in each band."""
    values = np.where(hole(), pixels(), np.array([201, 202, 203], np.uint8)[:, None, None])
    for name, columns in (("left", slice(0, 90)), ("right", slice(90, None))):
        write_raster(folder / f"{name}.tif", values[:, :, columns])
    sources = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><NoDataValue>{200 + band}</NoDataValue>'
        f"<ColorInterp>{colour}</ColorInterp>"
        + "".join(
            f'<ComplexSource><SourceFilename relativeToVRT="1">{name}.tif</SourceFilename><SourceBand>{band}'
            f'</SourceBand><SrcRect xOff="0" yOff="0" xSize="{width}" ySize="{HEIGHT}"/>'
            f'<DstRect xOff="{left}" yOff="0" xSize="{width}" ySize="{HEIGHT}"/></ComplexSource>'
            for name, left, width in (("left", 0, 90), ("right", 90, WIDTH - 90))
        )
        + "</VRTRasterBand>"
        for band, colour in ((1, "Red"), (2, "Green"), (3, "Blue"))
    )
    path = folder / "a.vrt"
    transform = ", ".join(map(str, PLACE["transform"].to_gdal()))
    path.write_text(
        f'<VRTDataset rasterXSize="{WIDTH}" rasterYSize="{HEIGHT}"><SRS>EPSG:32633</SRS>'
        f"<GeoTransform>{transform}</GeoTransform>{sources}</VRTDataset>"
    )
    return path


def quarters(folder: Path, *, overlap: int = 0) -> list[Path]:
    """Four files, each with a corner; with some rows and columns of its neighbours' that must not be seen."""
    values = pixels()
    paths: list[Path] = []
    for row, col in ((0, 0), (0, 100), (120, 0), (120, 100)):
        stop_row, stop_col = (120 if row == 0 else HEIGHT), (100 if col == 0 else WIDTH)
        top, left = max(0, row - overlap), max(0, col - overlap)
        part = np.zeros((3, stop_row - top, stop_col - left), np.uint8)
        part[:, row - top :, col - left :] = values[:, row:stop_row, col:stop_col]
        part[:, : row - top] = part[:, :, : col - left] = 77
        transform = PLACE["transform"] @ Affine.translation(left, top)
        paths.append(
            write_raster(folder / f"part{len(paths)}.tif", part, crs=PLACE["crs"], transform=transform, **COLOURS)
        )
    return paths


def items(folder: Path) -> Path:
    """The same four as STAC items, those that hold wrong pixels older."""
    paths = quarters(folder, overlap=10)
    features = [
        {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": path.stem,
            "properties": {"datetime": f"2024-05-{20 - number:02d}T10:00:00Z"},
            "assets": {
                "visual": {"href": f"./{path.name}", "type": "image/tiff; application=geotiff", "roles": ["visual"]},
                "thumbnail": {"href": "./none.png", "type": "image/png", "roles": ["thumbnail"]},
            },
        }
        for number, path in enumerate(paths)
    ]
    collection = folder / "items.json"
    collection.write_text(json.dumps({"type": "FeatureCollection", "features": features[::-1]}))
    return collection


def listed(folder: Path) -> Path:
    names = "\n".join(path.name for path in quarters(folder))
    (folder / "list.txt").write_text(names)
    return folder / "list.txt"


def zarr_by(writer: Callable[[Path, Path, Literal[2, 3]], Path], version: Literal[2, 3], folder: Path) -> Path:
    """A store with the name that the others have, and nothing beside it."""
    plain = tiff(folder, crs=PLACE["crs"])
    store = writer(plain, folder / "a.zarr", version)
    plain.unlink()
    return store


def as_slide(writer: Callable[..., Path], folder: Path) -> Path:
    image = np.moveaxis(pixels(), 0, -1)
    return writer(folder / "a.tif", levels_of(image, (HEIGHT // 2, WIDTH // 2)), compression="deflate")


def array_alone(folder: Path, version: Literal[2, 3], **options: Any) -> Path:
    return bare_array(pixels(), folder / "a.zarr", version, **options)


def as_ome(folder: Path, version: Literal[2, 3]) -> Path:
    return ome_by_hand(pixels(), folder / "a.zarr", version, ("red", "green", "blue"))


MOSAIC = ("--mosaic", "a")
IN_ORDER = ("--bands", "1,2,3")
FORMS: dict[str, Form] = {
    "tiled": Form(lambda folder: tiff(folder, **TILED, compress="deflate", predictor=2)),
    "strips": Form(lambda folder: tiff(folder, compress="lzw", blockysize=7)),
    "planes": Form(lambda folder: tiff(folder, interleave="band", compress="zstd", **TILED)),
    "BigTIFF": Form(lambda folder: tiff(folder, BIGTIFF="YES")),
    "COG": Form(lambda folder: converted(folder, "COG", "a.tif", compress="deflate", blocksize=128)),
    "PNG": Form(lambda folder: converted(folder, "PNG", "a.png")),
    "JPEG 2000": Form(lambda folder: converted(folder, "JP2OpenJPEG", "a.jp2", QUALITY=100, REVERSIBLE="YES")),
    "Erdas Imagine": Form(lambda folder: converted(folder, "HFA", "a.img")),
    "ENVI": Form(lambda folder: converted(folder, "ENVI", "a.dat"), ("--bands", "1,2,3")),
    "uint16": Form(lambda folder: tiff(folder, pixels().astype(np.uint16) * 257)),
    "int16": Form(
        lambda folder: tiff(folder, pixels().astype(np.int16), photometric="MINISBLACK"), ("--bands", "1,2,3")
    ),
    "float32": Form(lambda folder: tiff(folder, pixels().astype(np.float32) / 255, photometric="MINISBLACK")),
    "bands by name": Form(in_another_order, ("--bands", "red,green,blue")),
    "blue first": Form(blue_first),
    "bands by number": Form(in_another_order, ("--bands", "4,3,2")),
    "palette": Form(with_palette),
    "mask band": Form(with_mask_band, masked=True),
    "alpha": Form(with_alpha, masked=True),
    "nodata": Form(lambda folder: tiff(folder, np.where(hole(), pixels(), np.uint8(0)), nodata=0), masked=True),
    "NaN": Form(with_nan, ("--full-scale", "255"), masked=True),
    "VRT": Form(vrt, masked=True),
    "zarr 2 of xarray": Form(partial(zarr_by, by_xarray, 2)),
    "zarr 3 of GDAL": Form(partial(zarr_by, by_gdal, 3), ("--bands", "1,2,3")),
    "zarr 3 by conventions": Form(partial(zarr_by, by_convention, 3)),
    "zarr of variables": Form(zarr_of_variables, ("--bands", "1,2,3"), masked=True),
    "zarr 2, an array alone": Form(partial(array_alone, version=2), IN_ORDER, placed=False),
    "zarr 3 in shards": Form(partial(array_alone, version=3, shards=(3, 64, 96)), IN_ORDER, placed=False),
    "OME-Zarr 0.4": Form(partial(as_ome, version=2), placed=False),
    "OME-Zarr 0.5": Form(partial(as_ome, version=3), placed=False),
    "OME-TIFF": Form(partial(as_slide, ome), ("--tissue", "off"), placed=False),
    "pyramid": Form(partial(as_slide, pyramid), ("--tissue", "off"), placed=False),
    "URL of a file": Form(lambda folder: tiff(folder).as_uri()),
    "mosaic of a pattern": Form(lambda folder: quarters(folder)[0].with_name("part*.tif"), MOSAIC),
    "mosaic": Form(quarters, MOSAIC),
    "mosaic in order": Form(lambda folder: quarters(folder, overlap=10), MOSAIC),
    "mosaic of STAC items": Form(items, (*MOSAIC, "--priority", "date")),
    "mosaic of a list": Form(lambda folder: ["--list", listed(folder)], MOSAIC),
    "mosaic of a folder": Form(lambda folder: quarters(folder)[0].parent, MOSAIC),
}
VALIDATED = {"tiled", "alpha", "palette", "VRT", "OME-Zarr 0.5", "pyramid", "mosaic of STAC items"}
"""Of the others, `validate` would see outputs of the same kind again."""
SCALED = {"uint16": ("--full-scale", "65535"), "int16": ("--full-scale", "255"), "float32": ("--full-scale", "1")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


@pytest.fixture(scope="module")
def maps(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, NDArray[np.uint8]]:
    """Of the plain GeoTIFF, without and with the hole."""
    found = {}
    for masked in (False, True):
        folder = tmp_path_factory.mktemp("plain")
        with pytest.MonkeyPatch.context() as patch:
            small_blocks(patch)
            path = with_mask_band(folder) if masked else tiff(folder)
            segmented(path, "-m", model, "-o", folder / "out", "--precision", "fp32")
        found[masked] = class_map(folder / "out", "a")
    assert len(np.unique(found[False])) > 2
    assert (found[True] == 255).sum() == (~hole()).sum()
    return found


@pytest.mark.parametrize("name", FORMS)
def test_the_map_is_that_of_the_plain_geotiff(
    name: str, model: Path, maps: dict[bool, NDArray[np.uint8]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)
    form, folder = FORMS[name], tmp_path / "in"
    folder.mkdir()
    given = form.write(folder)
    given = given if isinstance(given, list) else [given]
    options = [*form.options, *SCALED.get(name, ())]
    segmented(*given, "-m", model, "-o", tmp_path / "out", "--precision", "fp32", *options)
    found = class_map(tmp_path / "out", "a")
    wanted = maps[form.masked]
    if name in SCALED:  # multiplied and divided by another number: ties may fall the other way
        assert (found != wanted).mean() < 1e-3
    else:
        assert (found == wanted).all()
    if form.placed:
        with rasterio.open(tmp_path / "out" / "a.classes.tif") as dataset:
            assert dataset.crs == PLACE["crs"]
            assert dataset.transform.almost_equals(PLACE["transform"])
    for command in ("validate", "verify") if name in VALIDATED else ("verify",):
        result = fcn_batch(command, tmp_path / "out" / "a.run.json")
        assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    ("driver", "name", "options"),
    [
        ("JPEG", "a.jpg", {}),
        ("GTiff", "a.tif", {"compress": "jpeg", "photometric": "YCBCR", **TILED, "blockysize": 64}),
    ],
)
def test_the_map_of_a_jpeg_is_that_of_its_pixels(
    driver: str, name: str, options: dict[str, Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what it decodes to, which is not what was written."""
    small_blocks(monkeypatch)
    (tmp_path / "in").mkdir()
    path = converted(tmp_path / "in", driver, name, **options)
    with accept_pixel_space(), rasterio.open(path) as dataset:
        decoded = dataset.read()
    assert (decoded != pixels()).any()
    for given, out in ((path, "out"), (tiff(tmp_path, decoded), "plain")):
        segmented(given, "-m", model, "-o", tmp_path / out, "--precision", "fp32")
    assert (class_map(tmp_path / "out", "a") == class_map(tmp_path / "plain", "a")).all()


@contextmanager
def elsewhere(where: str, path: Path) -> Iterator[str]:
    """What a file or store is called that is not on this machine's disks, or in an archive there."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    names = {one: one.relative_to(path.parent).as_posix() for one in files}
    if where == "http":
        with http_server(path.parent) as served:
            yield f"{served.url}/{path.name}"
    elif where == "s3":
        with s3_server() as client:
            for one, name in names.items():
                client.upload_file(str(one), "images", f"2024/{name}")
            yield f"s3://images/2024/{path.name}"
    else:
        archive = path.parent / "archive.zip"
        with zipfile.ZipFile(archive, "w") as opened:
            opened.write(path, f"inner/{path.name}")
        yield f"/vsizip/{archive}/inner/{path.name}"


@pytest.mark.parametrize(
    ("where", "name"),
    [("http", "COG"), ("http", "zarr 2 of xarray"), ("s3", "COG"), ("s3", "zarr 3 of GDAL"), ("zip", "tiled")],
)
def test_the_map_is_the_same_wherever_the_image_is(
    where: str,
    name: str,
    model: Path,
    maps: dict[bool, NDArray[np.uint8]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_blocks(monkeypatch)
    (tmp_path / "in").mkdir()
    with elsewhere(where, FORMS[name].write(tmp_path / "in")) as given:
        segmented(given, "-m", model, "-o", tmp_path / "out", "--precision", "fp32", *FORMS[name].options)
        result = fcn_batch("verify", tmp_path / "out" / "a.run.json")
    assert result.exit_code == 0, result.stderr
    assert (class_map(tmp_path / "out", "a") == maps[False]).all()
