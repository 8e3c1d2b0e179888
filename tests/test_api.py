"""The names of the package do what the commands of the same names do."""

import inspect
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

import fcn_batch
from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.workflows.plan import Options
from tests.errors import refuses
from tests.models import save_tiny_model
from tests.runs import class_map, scene, segmented, small_blocks

xarray = pytest.importorskip("xarray")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small_blocks(monkeypatch)
    return scene(tmp_path / "a.tif")


def test_segment_is_the_command(image: Path, model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": model, "bands": [3, 2, 1], "pyramid": True, "confidence": True}
    (maps,) = fcn_batch.segment(image, tmp_path / "api", **options)
    told = segmented(image, "-o", tmp_path / "cli", "-m", model, "-b", "3,2,1", "--pyramid", "--confidence").stdout
    assert [Path(path).name for path in maps.paths] == [Path(line).name for line in told.splitlines()]
    assert (class_map(tmp_path / "api", "a") == class_map(tmp_path / "cli", "a")).all()
    assert (
        fcn_batch.plan(image, model=model, bands=[3, 2, 1], confidence=True).fingerprint
        == (fcn_batch.report(maps)["fingerprint"])
    )
    again = fcn_batch.segment([image], tmp_path / "api", **options)
    assert again == [maps]


def test_what_others_find_is_found(image: Path, model: Path, tmp_path: Path) -> None:
    """By path, or by the maps themselves."""
    (maps,) = fcn_batch.segment(str(image), tmp_path / "out", model=str(model))
    for given in (maps.report, maps):
        assert fcn_batch.validate(given).ok
        assert fcn_batch.verify(given, samples=1).ok
    for place in (tmp_path / "out", maps):
        assert [found.phase for found in fcn_batch.status(place)] == ["complete"]
    assert fcn_batch.evaluate(maps, maps.cog, boundary=0).numbers()["pixel_accuracy"] == 1
    assert fcn_batch.export(maps, "csv") == tmp_path / "out" / "a.classes.csv"
    same = fcn_batch.evaluate(maps.store, maps.cog, boundary=0)
    assert same.numbers()["pixel_accuracy"] == 1
    moved = fcn_batch.evaluate(maps.store, maps.cog, boundary=0, map={0: 10, 10: 0})
    assert moved.numbers()["pixel_accuracy"] < 1
    picture = fcn_batch.export(maps.report, "png", tmp_path / "a.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OptionError):
        fcn_batch.export(maps.report, "pgn")
    assert "landcover-world" in [card.name for card in fcn_batch.models()]


def test_open_classes(image: Path, model: Path, tmp_path: Path) -> None:
    (maps,) = fcn_batch.segment(image, tmp_path / "out", model=model)
    for source in (maps, maps.store, Path(maps.report), tmp_path / "out"):
        with fcn_batch.open_classes(source) as classes:
            assert classes.dtype == np.uint8
            assert (classes.values == class_map(tmp_path / "out", "a")).all()
            with rasterio.open(image) as dataset:
                left, top = dataset.transform @ (0.5, 0.5)
            assert classes["x"].values[0] == left
            assert classes["y"].values[0] == top
            names = {entry["id"]: entry["name"] for entry in fcn_batch.report(maps)["classes"]}
            assert classes.attrs["legend"] == names
    for wrong in (image, tmp_path / "none.classes.zarr", tmp_path / "none.run.json"):
        with refuses("map-missing"):
            fcn_batch.open_classes(wrong)
    with refuses("report-invalid"):
        fcn_batch.report(image)
    assert fcn_batch.report(tmp_path / "out") == fcn_batch.report(maps)
    with refuses("several-maps", count=1):
        fcn_batch.open_classes([maps])  # type: ignore[arg-type]  # what is easily forgotten


def test_options_are_those_of_the_command_line(image: Path) -> None:
    with refuses("option-unknown", option="modell", meant="model?"):
        fcn_batch.segment(image, modell="x")
    with refuses("option-unknown", option="overwrite"):
        fcn_batch.plan(image, overwrite=True)
    with refuses("option-unknown", option="truth"):
        fcn_batch.evaluate(image, image, truth=3)
    with refuses("option-unknown", option="majorit", meant="majority?"):
        fcn_batch.export(image, "png", majorit=3)
    with refuses("option-unknown", option="target"):
        fcn_batch.export(image, "png", target="csv")
    assert {field.name for field in fields(Options)} >= {"bands", "mpp", "tissue", "resample", "memory"}


def test_options_may_be_written_as_on_the_command_line(image: Path, model: Path, tmp_path: Path) -> None:
    words: dict[str, Any] = {"bands": "3,2,1", "memory": "2GB", "tile": "auto", "overlap": "auto", "precision": "auto"}
    words["bbox"] = "-20,30,-5,40"
    plain = fcn_batch.plan(image, model=model, bands=[3, 2, 1], memory=2_000_000_000, bbox=(-20, 30, -5, 40))
    assert fcn_batch.plan(image, model=model, **words).fingerprint == plain.fingerprint
    (maps,) = fcn_batch.segment(image, tmp_path / "out", workers="0", model=model, **words)
    assert fcn_batch.report(maps)["fingerprint"] == plain.fingerprint


@pytest.mark.parametrize(
    "option",
    [
        {"memory": "much"},
        {"bands": "1,,2"},
        {"tile": "wide"},
        {"precision": "fp8"},
        {"bbox": [1, 2, 3]},
        {"bbox": "1,2,3"},
        {"workers": "some"},
    ],
)
def test_values_that_mean_nothing_are_bad_options(image: Path, option: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        fcn_batch.segment(image, **option)


def test_every_name_says_what_it_does() -> None:
    assert len(fcn_batch.__all__) <= 13
    for name in fcn_batch.__all__:
        value = getattr(fcn_batch, name)
        assert name in dir(fcn_batch)
        assert name == "__version__" or len(inspect.getdoc(value) or "") > 20
    with pytest.raises(AttributeError):
        _ = fcn_batch.segmented


def test_the_import_is_light() -> None:
    code = "import sys, fcn_batch; print([m for m in ('numpy', 'torch', 'rasterio', 'zarr') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
