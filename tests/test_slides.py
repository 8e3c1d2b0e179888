"""Slides of scanners: what opens them, and that their pixels are those that were written."""

import gc
import pickle
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fcn_batch.pipeline.core.errors import FcnBatchError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.source import Pixels, RasterSource
from fcn_batch.pipeline.raster import slides as module
from fcn_batch.pipeline.raster.slides import SlideSource
from fcn_batch.workflows.inputs.identity import identify
from fcn_batch.workflows.inputs.sources import at_microns, find_source, source_of
from tests.errors import refuses
from tests.rasters import noise
from tests.slides import HEIGHT, WIDTH, aperio, cells, leica, levels_of, ome, philips, pyramid, real_slide

openslide = pytest.importorskip("openslide")
pytest.importorskip("tiffslide")
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of tiffslide
LEVELS = levels_of(cells(), (500, 668), (250, 334))
"""Halves that are none: 1001 x 1337 pixels are not twice as many."""
SIZES = tuple(Size(*level.shape[:2]) for level in LEVELS)
HALVES = levels_of(cells(1024, 1536), (512, 768), (256, 384))
LOSSY = 60
"""By so much JPEG changes pixels beside a tile's empty part."""
KINDS: dict[str, tuple[Any, str, float, int]] = {
    "jpeg.svs": (aperio, "openslide", 0.499, LOSSY),
    "lzw.svs": (lambda path, levels: aperio(path, levels, compression="lzw"), "openslide", 0.499, 1),
    "jpeg2000.svs": (
        lambda path, levels: aperio(path, levels, compression="aperio_jp2000_rgb"), "openslide", 0.499, 1,
    ),
    "flat.svs": (lambda path, levels: aperio(path, levels[:1], compression="lzw"), "rasterio", 0.499, 0),
    "flat2000.svs": (
        lambda path, levels: aperio(path, levels[:1], compression="aperio_jp2000_rgb"), "openslide", 0.499, 0,
    ),
    "a.ome.tif": (ome, "rasterio", 0.25, 0),
    "plain.tif": (pyramid, "rasterio", 0.5, 0),
    "jpegxl.tif": (lambda path, levels: pyramid(path, levels, compression="jpegxl"), "tiffslide", 0.5, 0),
    "jpeg2000.tif": (lambda path, levels: pyramid(path, levels, compression="jpeg2000"), "tiffslide", 0.5, 0),
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    """Sources that tests let go without closing them, and files that tiffslide cannot read and leaves open."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def whole(source: RasterSource, bands: tuple[int, ...] = (1, 2, 3)) -> Pixels:
    size = source.info.size
    return source.read(Window(0, 0, size.height, size.width), bands)


def differs(pixels: Pixels, image: NDArray[np.uint8]) -> int:
    return int(np.abs(np.moveaxis(pixels.values, 0, -1).astype(int) - image).max())


@pytest.mark.parametrize("name", KINDS)
def test_what_was_written_is_read(tmp_path: Path, name: str) -> None:
    write, by, microns, most = KINDS[name]
    path = write(tmp_path / name, LEVELS)
    info = find_source(path).info
    assert info.sources[0].by == by
    assert info.levels == (SIZES[:1] if "flat" in name else SIZES)
    assert info.microns == microns
    for level, size in enumerate(info.levels):
        source = find_source(path, level)
        pixels = whole(source)
        assert pixels.valid.all()
        assert differs(pixels, LEVELS[level]) <= most
        assert source.info.size == size
        assert source.info.microns == pytest.approx(microns * WIDTH / size.width)
        assert source.info.georeference.transform == (WIDTH / size.width, 0, 0, 0, HEIGHT / size.height, 0)
        assert (
            source_of(identify(source.info)).read(Window(5, 7, 9, 9), (2,)).values == pixels.values[1, 5:14, 7:16]
        ).all()
    with refuses("level-missing", level=9):
        find_source(path, 9)


def test_philips(tmp_path: Path) -> None:
    path = philips(tmp_path / "a.tiff", HALVES)
    for level, image in enumerate(HALVES):
        source = find_source(path, level)
        assert (source.info.sources[0].by, source.info.microns) == ("openslide", 0.5 * 2**level)
        assert differs(whole(source), image) < LOSSY


def test_leica_whose_first_picture_is_of_the_whole_glass(tmp_path: Path) -> None:
    """What was not scanned has no data."""
    path = leica(tmp_path / "a.scn", LEVELS, top=300, left=200)
    source = find_source(path)
    assert source.info.sources[0].by == "openslide"
    assert source.info.size == Size(HEIGHT + 600, WIDTH + 400)
    assert source.info.microns == 0.5
    pixels = whole(source)
    scanned = np.zeros(pixels.valid.shape, np.bool_)
    scanned[300 : 300 + HEIGHT, 200 : 200 + WIDTH] = True
    assert (pixels.valid == scanned).all()
    inner = Pixels(pixels.values[:, 300:1301, 200:1537], pixels.valid[300:1301, 200:1537])
    assert differs(inner, LEVELS[0]) < LOSSY


NOISE = {
    "lzw.svs": levels_of(np.moveaxis(noise(3, 1501, 1733), 0, -1), (700, 811), (281, 325)),
    "jpegxl.tif": levels_of(np.moveaxis(noise(3, 1301, 1433), 0, -1), (650, 716), (325, 358)),
}


@pytest.fixture(scope="module", params=list(NOISE))
def noisy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[tuple[RasterSource, Pixels]]]:
    path = KINDS[request.param][0](tmp_path_factory.mktemp("noise") / request.param, NOISE[request.param])
    sources = [find_source(path, level) for level in range(3)]
    yield [(source, whole(source)) for source in sources]
    for source in sources:
        source.close()


@given(st.data())
@settings(max_examples=40)
def test_pixels_do_not_depend_on_the_window(noisy: list[tuple[RasterSource, Pixels]], data: st.DataObject) -> None:
    """Also where a level's pixels do not lie on whole ones of the finest: these are 2.14 times as wide."""
    source, at_once = noisy[data.draw(st.integers(0, 2))]
    size = source.info.size
    row, col = data.draw(st.integers(0, size.height - 1)), data.draw(st.integers(0, size.width - 1))
    window = Window(row, col, data.draw(st.integers(1, 600)), data.draw(st.integers(1, 600))).clipped(size)
    found = source.read(window, (3, 1))
    assert (found.values == at_once.values[[2, 0]][(slice(None), *window.slices())]).all()
    assert (found.valid == at_once.valid[window.slices()]).all()


def test_coarser_levels_lie_where_they_were_written(noisy: list[tuple[RasterSource, Pixels]]) -> None:
    """Noise: half a pixel off would change values by 50."""
    for source, pixels in noisy:
        image = NOISE[Path(source.info.path).name][source.info.sources[0].level]
        assert np.abs(np.moveaxis(pixels.values, 0, -1).astype(int) - image).mean() < 2


def test_many_threads_and_windows_leave_nothing_open(tmp_path: Path) -> None:
    path = aperio(tmp_path / "a.svs", LEVELS)
    source = find_source(path, 1)
    at_once = whole(source)
    source.close()
    windows = [Window(7 * k % 400, 11 * k % 500, 20, 30) for k in range(1000)]

    def same(window: Window) -> bool:
        return bool((source.read(window, (1, 2, 3)).values == at_once.values[(slice(None), *window.slices())]).all())

    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(same, windows[::3]))
    assert same(windows[0])
    source.close()
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
    assert same(windows[1])
    again = pickle.loads(pickle.dumps(source))  # noqa: S301 - our own
    assert (whole(again).values == at_once.values).all()
    source.close()


@pytest.mark.parametrize(
    ("wanted", "level", "resampling", "size"),
    [
        (0.1, 0, "bilinear", (4996, 6672)),
        (0.5, 0, None, (1001, 1337)),
        (0.7, 0, "bilinear", (714, 954)),
        (1.0, 1, None, (500, 668)),
        (1.5, 1, "average", (333, 446)),
        (2.0, 2, None, (250, 334)),
        (8.0, 2, "average", (63, 84)),
    ],
)
def test_the_level_for_a_resolution(
    tmp_path: Path, wanted: float, level: int, resampling: str | None, size: tuple[int, int]
) -> None:
    info = at_microns(find_source(aperio(tmp_path / "a.svs", LEVELS)), wanted).info
    assert (info.sources[0].level, info.resampling) == (level, resampling)
    assert abs(info.size.height - size[0]) <= 1
    assert abs(info.size.width - size[1]) <= 1
    assert info.microns is not None
    assert info.microns == wanted if resampling else abs(info.microns - wanted) < 0.01 * wanted
    assert at_microns(find_source(tmp_path / "a.svs", 2), 0.5).info.sources[0].level == 2, "not finer than asked for"


def test_the_real_slide() -> None:
    path = real_slide()
    slide = openslide.OpenSlide(str(path))
    theirs = np.asarray(slide.read_region((300, 400), 0, (700, 800)))[..., :3]
    for source in (find_source(path), SlideSource(str(path), "openslide"), SlideSource(str(path), "tiffslide")):
        assert source.info.size == Size(2967, 2220)
        assert source.info.microns == 0.499
        pixels = source.read(Window(400, 300, 800, 700), (1, 2, 3))
        assert np.abs(np.moveaxis(pixels.values, 0, -1).astype(int) - theirs).max() <= 3
        assert pixels.valid.all()


@pytest.mark.parametrize("name", ["jpeg.svs", "jpegxl.tif", "a.scn"])
def test_files_that_are_cut_off(tmp_path: Path, name: str) -> None:
    path = leica(tmp_path / name, LEVELS) if name == "a.scn" else KINDS[name][0](tmp_path / name, LEVELS)
    content = path.read_bytes()
    proper = whole(find_source(path))
    refused = 0
    for share in (0.0, 0.1, 0.5, 0.9, 0.999):  # coarser levels and pictures of the label come last
        path.write_bytes(content[: int(len(content) * share)])
        try:
            assert np.abs(whole(find_source(path)).values.astype(int) - proper.values).max() <= 3
        except FcnBatchError as error:
            assert str(path) in str(error)  # noqa: PT017 - it may be raised or not
            refused += 1
    assert refused >= 3


def test_readers_that_are_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = aperio(tmp_path / "a.svs", LEVELS, compression="aperio_jp2000_rgb")
    identity = identify(find_source(path).info)
    proper = module._library
    monkeypatch.setattr(module, "_library", lambda name: None if name == "openslide" else proper(name))
    assert find_source(path).info.sources[0].by == "tiffslide"
    with refuses("extra-missing", by="openslide"):
        whole(source_of(identity))
    monkeypatch.setattr(module, "_library", lambda _: None)
    with refuses("reader-missing"):
        find_source(path)
    assert find_source(pyramid(tmp_path / "b.tif", LEVELS)).info.sources[0].by == "rasterio"
    (tmp_path / "notes.txt").write_text("nothing")
    with refuses("format-unknown"):
        find_source(tmp_path / "notes.txt")


def test_windows_and_bands_that_are_not_there(tmp_path: Path) -> None:
    source = find_source(aperio(tmp_path / "a.svs", LEVELS), 1)
    for window, bands in ((Window(0, 0, 501, 1), (1,)), (Window(0, 0, 1, 1), (4,)), (Window(-1, 0, 2, 2), (1,))):
        with pytest.raises(ValueError):
            source.read(window, bands)


def test_channels_in_pages_of_their_own(tmp_path: Path) -> None:
    """GDAL reads the first page alone; a VRT says which are the bands."""
    path = tmp_path / "a.ome.tif"
    image = np.moveaxis(LEVELS[2], -1, 0)
    tifffile.imwrite(path, image, ome=True, metadata={"axes": "CYX"}, photometric="minisblack")
    with refuses("bands-in-pages", planes=3):
        find_source(path)
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename>GTIFF_DIR:{page}:{path}'
        "</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        for band, page in enumerate((3, 1), start=1)
    )
    vrt = tmp_path / "a.vrt"
    vrt.write_text(f'<VRTDataset rasterXSize="{image.shape[2]}" rasterYSize="{image.shape[1]}">{bands}</VRTDataset>')
    source = find_source(vrt)
    assert [file.name for file in identify(source.info).files] == ["a.vrt", "a.ome.tif"]
    assert (whole(source, (1, 2)).values == image[[2, 0]]).all()
    source.close()


def test_planes_of_other_files_are_no_channels(tmp_path: Path) -> None:
    """Of an OME-TIFF of several files each says how many channels there are, and holds one; or it has a label, too."""
    grey = LEVELS[2][..., 0]
    alone = tmp_path / "alone.ome.tif"
    tifffile.imwrite(alone, np.stack([grey, grey]), ome=True, metadata={"axes": "CYX"}, photometric="minisblack")
    told = str(tifffile.TiffFile(alone).ome_metadata)
    tifffile.imwrite(alone, grey, description=told.encode(), metadata=None, photometric="minisblack")
    assert find_source(alone).info.bands == 1
    labelled = tmp_path / "labelled.ome.tif"
    with tifffile.TiffWriter(labelled, ome=True) as file:
        for picture in (LEVELS[2], LEVELS[2][:90, :80]):
            file.write(picture, metadata={"axes": "YXS"}, photometric="rgb")
    assert find_source(labelled).info.bands == 3
