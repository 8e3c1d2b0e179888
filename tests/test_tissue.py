"""Slides: only tissue is computed, all of it, and where there is none, everything is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fcn_batch.pipeline.core.errors import DecodingError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.plan import InputIdentity, Plan
from fcn_batch.pipeline.core.tolerance import OnError
from fcn_batch.pipeline.raster.clip import inside, outlined, touched, within
from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from fcn_batch.workflows.blocks.cut import lane_for
from fcn_batch.workflows.inputs import area as module
from fcn_batch.workflows.inputs.area import find_tissue
from fcn_batch.workflows.inputs.identity import identify
from fcn_batch.workflows.inputs.sources import find_source
from tests.models import save_tiny_model
from tests.rasters import noise
from tests.runs import class_map, class_map_of_cog, fcn_batch, segmented, small_blocks
from tests.slides import pyramid, real_slide

GLASS = (243, 243, 242)
BANDS = (1, 2, 3)


def slide(path: Path, image: NDArray[np.uint8]) -> InputIdentity:
    """A plain TIFF of half a micrometre per pixel."""
    return identify(find_source(pyramid(path, [image])).info)


def stained(height: int = 900, width: int = 1000) -> NDArray[np.uint8]:
    """Glass with two patches of pink."""
    image = np.full((height, width, 3), GLASS, np.uint8)
    for rows, cols in ((slice(100, 330), slice(130, 420)), (slice(600, 700), slice(700, 760))):
        image[rows, cols] = np.moveaxis(noise(3, 900, 1000), 0, -1)[rows, cols] // 8 + np.array([190, 90, 150])
    return image


def test_all_tissue_of_the_real_slide_is_found(tmp_path: Path) -> None:
    """By another measure: pixels darker than the glass around them, those alone left out."""
    source = find_source(real_slide())
    values = np.moveaxis(source.read(Window(0, 0, 2967, 2220), BANDS).values, 0, -1)[600:2400, 300:1900]
    source.close()
    bright = values.reshape(-1, 3)[values.min(axis=-1).ravel() > 225]
    glass = np.median(bright, axis=0).astype(np.uint8) if len(bright) else np.array(GLASS, np.uint8)
    image = np.empty((4400, 4600, 3), np.uint8)
    image[:] = np.clip(glass + np.random.default_rng(0).normal(0, 1.5, image.shape), 0, 255)
    image[400:2200, 300:1900] = values
    image[2300:4100, 2500:4100] = values[::-1, ::-1]
    area, told = find_tissue(slide(tmp_path / "a.tif", image), BANDS)
    assert area is not None
    dark = (glass.astype(float).mean() - image.mean(axis=-1))[:4400, :4592]
    patches = dark.reshape(550, 8, 574, 8).mean(axis=(1, 3)) > 12
    certain = np.repeat(np.repeat(patches, 8, axis=0), 8, axis=1)
    assert certain.mean() > 0.05, "there is something to find"
    found = inside(area, Window(0, 0, 4400, 4592))
    assert found[certain].mean() > 0.999
    share = area.pixels / image[..., 0].size
    assert share < 0.36, "both copies are 28 %"
    assert f"tissue was found on {100 * share:.0f} % of the slide" in told


@pytest.mark.parametrize(
    ("image", "share"),
    [
        (np.full((300, 400, 3), GLASS, np.uint8), None),
        (np.full((300, 400, 3), 255, np.uint8), None),
        (np.zeros((300, 400, 3), np.uint8), None),
        (np.repeat(noise(1, 300, 400)[0][..., None], 3, axis=-1), None),
        (np.full((300, 400, 3), (200, 90, 160), np.uint8), 1.0),
    ],
    ids=["glass", "white", "black", "grey", "all"],
)
def test_slides_without_glass_or_tissue(tmp_path: Path, image: NDArray[np.uint8], share: float | None) -> None:
    area, told = find_tissue(slide(tmp_path / "a.tif", image), BANDS)
    if share is None:
        assert area is None
        assert told == "no tissue was found, so all of the slide is computed"
    else:
        assert area is not None
        assert inside(area, Window(0, 0, 300, 400)).all()


def test_what_is_no_slide_has_no_tissue(tmp_path: Path) -> None:
    identity = slide(tmp_path / "a.tif", stained())
    for change in ({"microns": None}, {"dtype": "uint16"}, {"crs_wkt": "anything"}):
        assert find_tissue(identity.model_copy(update=change), BANDS) == (None, "")
    assert find_tissue(identity, (1, 2)) == (None, "")


def test_a_slide_with_a_damaged_block(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pyramid(path, [stained()], compression="zlib")
    identity = identify(find_source(path).info)
    whole = find_tissue(identity, BANDS)[0]
    with accept_pixel_space(), rasterio.open(path) as dataset:
        at = int(dataset.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * 64)
    with pytest.raises(DecodingError):
        find_tissue(identity, BANDS)
    part = find_tissue(identity, BANDS, on_error=OnError(mask=True))[0]
    assert whole is not None
    assert part is not None
    assert 0 < part.pixels <= whole.pixels


def test_an_earlier_plan_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = slide(tmp_path / "a.tif", stained())
    area, told = find_tissue(identity, BANDS)
    base: dict[str, Any] = {"input": identity, "tissue": area, "bands": BANDS}
    known = Plan.model_construct(**base)
    monkeypatch.setattr(module, "thumbnail", lambda *_: pytest.fail("looked for again"))
    assert find_tissue(identity, BANDS, [known]) == (area, told)
    for other in ({"bands": (3, 2, 1)}, {"tissue": None}):
        with pytest.raises(pytest.fail.Exception):
            find_tissue(identity, BANDS, [Plan.model_construct(**{**base, **other})])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1, gsd_m=5e-7)


def test_maps_of_tissue(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the whole map where tissue is; no data elsewhere; with --aoi both must hold."""
    small_blocks(monkeypatch)
    identity = slide(tmp_path / "a.tif", stained())
    area, told = find_tissue(identity, BANDS)
    assert area is not None
    everything = Window(0, 0, 900, 1000)
    options = [tmp_path / "a.tif", "-m", model]
    assert told in segmented(*options, "-o", tmp_path / "tissue").stderr.replace("\n", " ")
    segmented(*options, "-o", tmp_path / "whole", "--tissue", "off")
    whole, found = class_map(tmp_path / "whole", "a"), class_map(tmp_path / "tissue", "a")
    assert (whole != 255).all()
    mask = inside(area, everything)
    assert 0.05 < mask.mean() < 0.3
    assert (found == np.where(mask, whole, 255)).all()
    assert (class_map_of_cog(tmp_path / "tissue", "a") == found).all()
    segmented(*options, "-o", tmp_path / "both", "--bbox", "150,0,300,900")
    box = np.zeros_like(mask)
    box[:, 150:300] = True
    assert (class_map(tmp_path / "both", "a") == np.where(mask & box, whole, 255)).all()
    for name in ("tissue", "both"):
        for command in ("validate", "verify"):
            result = fcn_batch(command, tmp_path / name / "a.run.json")
            assert result.exit_code == 0, result.stderr
    assert "complete already" in segmented(*options, "-o", tmp_path / "tissue").stderr
    assert "% tissue" in fcn_batch("plan", *options).stdout
    assert "% tissue" not in fcn_batch("plan", *options, "--tissue", "off").stdout
    slide(tmp_path / "full.tif", np.full((300, 410, 3), (200, 90, 160), np.uint8))
    assert " 100 % tissue" in fcn_batch("plan", tmp_path / "full.tif", "-m", model).stdout


MASKS = st.builds(
    lambda height, width, share, seed: np.random.default_rng(seed).random((height, width)) < share,
    st.integers(1, 30),
    st.integers(1, 30),
    st.sampled_from([0.03, 0.3, 0.5, 0.9]),
    st.integers(0, 10**6),
)


@given(MASKS, st.integers(1, 7), st.sampled_from([8, 40, 10**6]))
def test_outlines_hold_all_of_a_mask(mask: NDArray[np.bool_], step: int, points: int) -> None:
    if not mask.any():
        mask[0, 0] = True
    area = outlined(mask, step, points)
    full = np.repeat(np.repeat(mask, step, axis=0), step, axis=1)
    found = inside(area, Window(0, 0, *full.shape))
    assert found[full].all()
    assert sum(len(ring) for polygon in area.polygons for ring in polygon) <= points
    if points == 10**6:
        assert (found == full).all()
        assert area.pixels == full.sum()


@given(st.lists(MASKS, min_size=1, max_size=2), st.integers(1, 9), st.integers(1, 9))
def test_squares_that_areas_touch(masks: list[NDArray[np.bool_]], step: int, side: int) -> None:
    for mask in masks:
        mask[0, 0] = True
    areas = [outlined(mask, step, 10**6) for mask in masks]
    height, width = (max(mask.shape[axis] for mask in masks) * step for axis in (0, 1))
    full = np.ones((height, width), np.bool_)
    for mask in masks:
        one = np.repeat(np.repeat(mask, step, axis=0), step, axis=1)
        full &= np.pad(one, ((0, height - one.shape[0]), (0, width - one.shape[1])))
    together = within(areas, Window(0, 0, height, width))
    assert together is not None
    assert (together == full).all()
    padded = np.pad(full, ((0, -height % side), (0, -width % side)))
    squares: NDArray[np.bool_] = np.logical_or.reduce(padded.reshape(len(padded) // side, side, -1, side), axis=(1, 3))
    found = touched(areas, Size(height, width), side)
    assert found.shape == squares.shape
    assert found[squares].all()
    assert within([], Window(0, 0, 3, 3)) is None


@given(MASKS, st.integers(0, 40))
def test_the_cheapest_lanes(mask: NDArray[np.bool_], halo: int) -> None:
    """Against a loop over lanes and blocks; `mask` says which chunks of 16 pixels are wanted."""
    chunk = 16
    mask[0, 0] = True
    area = outlined(mask, chunk, 10**6)
    size = Size(mask.shape[0] * chunk, mask.shape[1] * chunk)
    wanted = touched([area], size, chunk)
    costs = []
    for chunks in range(1, wanted.shape[1] + 1):
        cost = 0
        for first in range(0, wanted.shape[1], chunks):
            blocks = [bool(row[first : first + chunks].any()) for row in wanted]
            for number, block in enumerate(blocks):
                if block:
                    cost += chunk * (chunks * chunk + 2 * halo)
                    if not number or not blocks[number - 1]:
                        cost += 2 * halo * (chunks * chunk + 2 * halo)
        costs.append(cost)
    found = lane_for([area], size, chunk, halo)
    assert found is not None
    assert costs[found // chunk - 1] == min(costs)
    assert lane_for([], size, chunk, halo) is None
