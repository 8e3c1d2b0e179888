"""Real files with one bit turned over, or cut off: a hole where nothing can be read, and every other pixel right (G6).

What a codec does not notice cannot be reported: `pytest -s` shows how many damages were, and how many were not.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from fcn_batch.pipeline.core.errors import DecodingError, InputError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.source import Pixels, RasterInfo, RasterSource
from fcn_batch.pipeline.core.tolerance import OnError, TolerantSource
from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from fcn_batch.pipeline.raster.rasterfile import RasterioSource, inspect
from tests.errors import refuses
from tests.rasters import write_raster

CODECS: dict[str, dict[str, Any]] = {
    "none": {},
    "deflate": {"compress": "deflate"},
    "lzw": {"compress": "lzw"},
    "zstd": {"compress": "zstd"},
    "jpeg": {"compress": "jpeg"},
    "lerc": {"compress": "lerc"},
    "packbits": {"compress": "packbits"},
    "webp": {"compress": "webp", "webp_lossless": True},
}
SIDE, BLOCK, FLIPS = 512, 128, 40
CUTS = (0.3, 0.55, 0.8, 0.97)
MASK, BANDS = OnError(mask=True), (1, 2, 3)
BLOCKS = [(row, col) for row in range(SIDE // BLOCK) for col in range(SIDE // BLOCK)]

TABLE: dict[str, tuple[int, int, int, int]] = {}
"""Of each codec: flips reported, silently wrong and harmless, and blocks reported behind cuts."""


@pytest.fixture(scope="module", autouse=True)
def _print_the_table() -> Iterator[None]:
    yield
    sys.stdout.write(
        f"\n{'':10}{FLIPS} flips: reported  silently wrong  harmless    {len(CUTS)} cuts: blocks reported\n"
    )
    for name, (errors, silent, harmless, cut) in TABLE.items():
        sys.stdout.write(f"{name:10}{errors:18}{silent:16}{harmless:10}{cut:27}\n")


@dataclass(frozen=True)
class Sound:
    """An undamaged file."""

    path: Path
    info: RasterInfo
    pixels: Pixels
    places: dict[tuple[int, int], list[tuple[int, int]]]
    """Offset and size in the file of the parts of each block: one, or one a band."""


def picture() -> NDArray[np.uint8]:
    """Slopes with a little noise: codecs make it smaller, but not trivial."""
    rows, cols = np.mgrid[:SIDE, :SIDE]
    slopes = np.stack([(rows * (band + 1) + cols) // 8 % 180 + 20 for band in range(3)])
    return (slopes + np.random.default_rng(0).integers(0, 6, slopes.shape)).astype(np.uint8)


def read(source: RasterSource) -> Pixels:
    """All of it, by windows that begin and end anywhere."""
    size, parts = source.info.size, []
    for row in range(0, size.height, 200):
        windows = [Window(row, col, 200, 300).clipped(size) for col in range(0, size.width, 300)]
        across = [source.read(window, BANDS) for window in windows]
        parts.append(tuple(np.concatenate([getattr(p, k) for p in across], axis=-1) for k in ("values", "valid")))
    values, valid = zip(*parts, strict=True)
    return Pixels(np.concatenate(values, axis=1), np.concatenate(valid))


def sound_file(path: Path, **options: Any) -> Sound:
    write_raster(path, picture(), tiled=True, blockxsize=BLOCK, blockysize=BLOCK, **options)
    with accept_pixel_space(), rasterio.open(path) as dataset:
        places = {}
        for row, col in BLOCKS:
            tags = [[f"BLOCK_{what}_{col}_{row}" for what in ("OFFSET", "SIZE")]] * dataset.count
            found = [[int(dataset.get_tag_item(t, "TIFF", bidx=b)) for t in tag] for b, tag in enumerate(tags, 1)]
            places[row, col] = sorted({(offset, size) for offset, size in found})
    source = RasterioSource(path)
    return Sound(path, source.info, read(source), places)


@pytest.fixture(scope="module")
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sound:
    return sound_file(tmp_path_factory.mktemp("sound") / "a.tif", **CODECS[request.param])


def block(row: int, col: int, size: Size) -> Window:
    return Window(row * BLOCK, col * BLOCK, BLOCK, BLOCK).clipped(size)


def check(path: Path, sound: Sound, damaged: set[tuple[int, int]]) -> tuple[set[Window], bool]:
    """What is reported of a damaged copy, which may concern `damaged` only; and whether its values are wrong."""
    everything = Window(0, 0, sound.info.size.height, sound.info.size.width)
    info = replace(sound.info, path=str(path))  # it was sound when the run began
    tolerant = TolerantSource(RasterioSource(path, info), MASK)
    pixels, reported = read(tolerant), set(tolerant.unreadable(everything))
    assert reported <= {block(*place, sound.info.size) for place in damaged}
    holes = np.zeros(pixels.valid.shape, dtype=np.bool_)
    for window in reported:
        holes[window.slices()] = True
    wrong = (pixels.values != sound.pixels.values).any(axis=0) & ~holes
    for place in damaged:
        wrong[block(*place, sound.info.size).slices()] &= False
    assert not wrong.any(), "pixels outside the damage are as in the sound file"
    for seen in (pixels, read(tolerant)):
        assert (seen.valid == sound.pixels.valid & ~holes).all()
        assert (seen.values[:, holes] == 0).all()
    strict = TolerantSource(RasterioSource(path, info), OnError())
    if not reported:
        assert (read(strict).values == pixels.values).all()
        return reported, bool((pixels.values != sound.pixels.values).any())
    with pytest.raises(DecodingError) as caught:
        read(strict)
    assert caught.value.code == "pixels-unreadable"
    told = caught.value.fields
    assert str(told["path"]) == str(path)
    row, col = int(told["first_row"]), int(told["first_col"])
    named = Window(row, col, int(told["last_row"]) - row + 1, int(told["last_col"]) - col + 1)
    assert tolerant.unreadable(named), "the window that it names holds a block that cannot be read"
    return reported, bool((pixels.values != sound.pixels.values).any())


@pytest.mark.parametrize("sound", CODECS, indirect=True)
def test_flips_and_cuts(sound: Sound, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    name, copy, whole = request.node.callspec.params["sound"], tmp_path / "b.tif", sound.path.read_bytes()
    rng, errors, silent = np.random.default_rng(7), 0, 0
    for _ in range(FLIPS):
        place = BLOCKS[rng.integers(len(BLOCKS))]
        ((offset, size),) = sound.places[place]
        content = bytearray(whole)
        content[offset + rng.integers(size)] ^= 1 << rng.integers(8)
        copy.write_bytes(content)
        reported, differs = check(copy, sound, {place})
        errors += bool(reported)
        silent += differs and not reported
    behind = 0
    for part in CUTS:
        cut = int(part * len(whole))
        copy.write_bytes(whole[:cut])
        lost = {place for place in BLOCKS if sum(sound.places[place][0]) > cut}
        reported, _ = check(copy, sound, lost)
        assert reported == {block(*place, sound.info.size) for place in lost}, "all behind the cut, and nothing else"
        behind += len(reported)
    TABLE[name] = errors, silent, FLIPS - errors - silent, behind
    assert behind > len(CUTS)
    assert name != "none" or errors == 0
    assert name != "deflate" or errors > 0
    assert name != "lerc" or errors == FLIPS, "every block has a checksum"


def test_a_block_is_bad_when_one_of_its_bands_is(tmp_path: Path) -> None:
    sound = sound_file(tmp_path / "a.tif", compress="lerc", interleave="band")
    content = bytearray(sound.path.read_bytes())
    offset, size = sound.places[2, 1][1]
    content[offset + size // 2] ^= 1
    copy = tmp_path / "b.tif"
    copy.write_bytes(content)
    reported, _ = check(copy, sound, {(2, 1)})
    assert reported == {block(2, 1, sound.info.size)}
    others = TolerantSource(RasterioSource(copy), MASK)
    values = others.read(block(2, 1, sound.info.size), (1, 3)).values
    assert (values == sound.pixels.values[[0, 2]][:, *block(2, 1, sound.info.size).slices()]).all()


def test_a_mask_that_cannot_be_decoded(tmp_path: Path) -> None:
    path, rng = tmp_path / "a.tif", np.random.default_rng(5)
    layout = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate", "dtype": "uint8"}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        accept_pixel_space(),
        rasterio.open(path, "w", driver="GTiff", count=3, height=SIDE, width=SIDE, **layout) as dataset,
    ):
        dataset.write(picture())
        dataset.write_mask(rng.random((SIDE, SIDE)) > 0.5)
    source = RasterioSource(path)
    sound, whole = Sound(path, source.info, read(source), {}), path.read_bytes()
    copy = tmp_path / "b.tif"
    copy.write_bytes(whole[:-1000])  # the mask comes last: nothing but its last blocks are lost
    assert not sound.pixels.valid.all()
    reported, _ = check(copy, sound, {(3, 2), (3, 3)})
    assert block(3, 3, sound.info.size) in reported


@pytest.mark.parametrize("layout", [{"blockysize": 100, "compress": "zstd"}, {"blockysize": SIDE, "compress": "lzw"}])
def test_strips_cut_off(tmp_path: Path, layout: dict[str, Any]) -> None:
    path = write_raster(tmp_path / "a.tif", picture(), interleave="pixel", **layout)
    info, right, content = inspect(path), read(RasterioSource(path)), path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.7)])
    tolerant = TolerantSource(RasterioSource(path, info), MASK)
    pixels, rows = read(tolerant), layout["blockysize"]
    reported = tolerant.unreadable(Window(0, 0, SIDE, SIDE))
    first = reported[0].row
    assert first == SIDE * 7 // 10 // rows * rows, "strips are about equally long"
    assert sum(window.pixels for window in reported) == (SIDE - first) * SIDE
    assert (pixels.values[:, :first] == right.values[:, :first]).all()
    assert pixels.valid.any(axis=1).tolist() == [row < first for row in range(SIDE)]


@pytest.mark.parametrize("driver", ["PNG", "JPEG"])
def test_pictures_cut_off(tmp_path: Path, driver: str) -> None:
    """Their drivers give grey or noise after an error, or instead of one, unless they are asked otherwise."""
    path = write_raster(tmp_path / f"a.{driver.lower()}", picture()[:, :330, :500], driver=driver)
    info, right, content = inspect(path), read(RasterioSource(path)), path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    for window in (Window(0, 0, 330, 500), Window(60, 7, 200, 80)):
        tolerant = TolerantSource(RasterioSource(path, info), MASK)
        pixels = tolerant.read(window, BANDS)
        first = int(np.argmin(pixels.valid.all(axis=1)))
        assert first > 0
        assert not pixels.valid[first:].any()
        rows, cols = window.slices()
        assert (pixels.values[:, :first] == right.values[:, rows, cols][:, :first]).all()
        assert len(tolerant.unreadable(window)) == math.ceil((window.height - first) / info.storage_block[0])


def test_errors_are_not_kept_quiet_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = sound_file(tmp_path / "a.tif")
    monkeypatch.setenv("GTIFF_IGNORE_READ_ERRORS", "YES")
    sound.path.write_bytes(sound.path.read_bytes()[: -BLOCK * BLOCK])
    with refuses("pixels-unreadable", first_row=200, last_row=399, first_col=300, last_col=511):
        read(RasterioSource(sound.path, sound.info))


def test_a_file_that_is_gone_or_was_cut_off_before_the_run_is_an_error(tmp_path: Path) -> None:
    sound = sound_file(tmp_path / "a.tif")
    moved = sound.path.rename(tmp_path / "b.tif")
    for policy in ("fail", "mask", "retry:1,mask"):
        tolerant = TolerantSource(RasterioSource(sound.path, sound.info), OnError.parse(policy), lambda _: None)
        with pytest.raises(InputError, match=r"a\.tif does not exist; check the name$") as caught:
            read(tolerant)
        assert not isinstance(caught.value, DecodingError)
    sound.path.write_bytes(moved.read_bytes()[:-1])
    with refuses("file-cut-off"):
        read(TolerantSource(RasterioSource(sound.path), MASK))


def test_a_file_cut_off_while_it_is_read(tmp_path: Path) -> None:
    sound = sound_file(tmp_path / "a.tif", compress="deflate")
    tolerant = TolerantSource(RasterioSource(sound.path), MASK)
    first, last = block(0, 0, sound.info.size), block(3, 3, sound.info.size)
    assert (tolerant.read(first, BANDS).values == sound.pixels.values[:, *first.slices()]).all()
    with sound.path.open("r+b") as file:
        file.truncate(sum(sound.places[3, 2][0]))
    assert (read(tolerant).valid.sum()) == SIDE * SIDE - last.pixels
    assert tolerant.unreadable(Window(0, 0, SIDE, SIDE)) == (last,)
