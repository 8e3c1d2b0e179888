"""`--model auto`: the nearest resolution, the bands that are there, and what is said about it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rasterio.transform import Affine

from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.source import RasterInfo
from fcn_batch.pipeline.network.weights import ModelFile, read_card
from fcn_batch.pipeline.raster.rasterfile import inspect
from fcn_batch.workflows.inputs.resolution import ground_sample_distance, metres
from fcn_batch.workflows.learning import choice
from fcn_batch.workflows.learning.choice import choose_model, is_near, misfit
from fcn_batch.workflows.plan import Options, prepare
from tests.errors import refuses
from tests.models import save_tiny_model, tiny_card, tiny_network
from tests.rasters import noise, write_raster
from tests.runs import scene, segmented

KINDS = {"landcover-world": 7421.0, "aerial": 1.0, "buildings": 0.132, "nuclei": 0.5e-6}
RGB = ("red", "green", "blue")


def _model(name: str, gsd_m: float, bands: tuple[str, ...] = RGB) -> ModelFile:
    network = tiny_network(bands=len(bands))
    card = tiny_card(network, name=name, gsd_m=gsd_m, bands=bands)
    return ModelFile(Path(f"{name}.safetensors"), "0" * 64, card)


@pytest.fixture(scope="module")
def models() -> list[ModelFile]:
    return [_model(name, gsd_m) for name, gsd_m in KINDS.items()]


def _raster(path: Path, gsd_m: float | None = None, bands: int = 3, **profile: Any) -> RasterInfo:
    """A raster whose pixels are so many metres, or that does not say."""
    if gsd_m is not None:
        profile |= {"crs": "EPSG:32633", "transform": Affine(gsd_m, 0, 500000, 0, -gsd_m, 1000)}  # near the equator
    return inspect(write_raster(path, noise(bands, 4, 4), **profile))


@pytest.mark.parametrize(
    ("gsd_m", "name"),
    [(5000, "landcover-world"), (100, "landcover-world"), (60, "aerial"), (0.5, "aerial"), (0.3, "buildings")],
)
def test_the_nearest_resolution_is_chosen(tmp_path: Path, models: list[ModelFile], gsd_m: float, name: str) -> None:
    """As a factor: 0.3 m is nearer to 0.132 m than to 1 m, 60 m is nearer to 1 m than to 7 km."""
    info = _raster(tmp_path / "a.tif", gsd_m)
    for order in (models, models[::-1]):
        model, why = choose_model(info, None, order)
        assert model.card.name == name
        near = 0.5 <= gsd_m / KINDS[name] <= 2
        assert is_near(gsd_m, model) == near
        assert (misfit(gsd_m, model) in why) != near
        for fact in (name, metres(KINDS[name]), metres(gsd_m)):
            assert fact in why


def test_degrees_are_metres_in_the_middle_row(tmp_path: Path) -> None:
    info = inspect(scene(tmp_path / "a.tif", 40, 50, transform=Affine(1 / 15, 0, 0, 0, -1 / 15, 62)))
    gsd = ground_sample_distance(info)
    assert gsd == pytest.approx(7421 * 0.5**0.5, rel=0.05), "half as wide at 60 degrees north"


def test_a_slide_says_its_micrometres(tmp_path: Path, models: list[ModelFile]) -> None:
    """As Aperio's scanners write them."""
    path = tmp_path / "slide.tif"
    _raster(path, TIFFTAG_IMAGEDESCRIPTION="")
    info = replace(inspect(path), microns=0.4990)
    assert ground_sample_distance(info) == pytest.approx(0.4990e-6)
    model, why = choose_model(info, None, models)
    assert model.card.name == "nuclei"
    assert "0.499 µm" in why


def test_nothing_says_how_large_a_pixel_is(tmp_path: Path, models: list[ModelFile]) -> None:
    info = _raster(tmp_path / "a.tif")
    assert ground_sample_distance(info) is None
    assert choose_model(info, None, models)[0].card.name == "aerial"
    others = [model for model in models if model.card.name != "aerial"]
    assert choose_model(info, None, others)[0].card.name == "landcover-world"


def test_models_whose_bands_are_not_there_are_left_out(tmp_path: Path, models: list[ModelFile]) -> None:
    near = _model("heat", 10.0, ("infrared",))
    info = _raster(tmp_path / "a.tif", 10.0)
    assert choose_model(info, None, [*models, near])[0].card.name == "aerial"
    assert choose_model(info, (2,), [*models, near])[0].card.name == "heat"
    four = _raster(tmp_path / "b.tif", 10.0, bands=4, photometric="MINISBLACK")
    with pytest.raises(InputError):
        choose_model(four, None, models)
    with refuses("model-none"):
        choose_model(info, None, [])


def test_the_reason_is_printed_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = [read_card(save_tiny_model(tmp_path / f"{n}.safetensors", gsd_m=g)) for n, g in (("a", 7000), ("b", 1))]
    monkeypatch.setattr(choice, "embedded", lambda: iter(shipped))
    raster = scene(tmp_path / "scene.tif", 40, 50)
    result = segmented(raster, "-o", tmp_path / "out", "--model", "auto", "--device", "cpu")
    (report,) = (tmp_path / "out").rglob("*run.json")
    notes = json.loads(report.read_text())["notes"]
    (why,) = [note for note in notes if "--model auto" in note and "7 km" in note]
    assert why in result.stderr


def test_a_misfit_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_tiny_model(tmp_path / "a.safetensors", gsd_m=1)
    monkeypatch.setattr(choice, "embedded", lambda: iter([read_card(path)]))
    raster = scene(tmp_path / "scene.tif", 40, 50)
    for name in ("auto", str(path)):
        notes = prepare(raster, Options(model=name, device="cpu")).notes
        assert len([note for note in notes if "1 m per pixel" in note]) == 1


def test_lengths_are_written_as_people_do() -> None:
    written = {1000: "1 km", 999: "999 m", 0.01: "0.01 m", 0.005: "5 mm", 9e-4: "900 µm", 2.5e-7: "0.25 µm"}
    assert {value: metres(value) for value in written} == written
