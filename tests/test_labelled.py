"""Labelled images: from label ids to channels, which file is labelled by which, what cannot be trained on."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine

from fcn_batch.pipeline.core.errors import FcnBatchError
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.recipe import Recipe
from fcn_batch.workflows.learning import labelled
from fcn_batch.workflows.learning.labelids import Translation
from fcn_batch.workflows.learning.labelled import band_statistics, label_counts, open_images
from tests.errors import refuses
from tests.rasters import noise, write_raster
from tests.recipes import COLS, FILES, GRID, ROWS, STRIP, TRAINED, opened, tiny_recipe, two_colours, write_pair

WHOLE = Window(0, 0, ROWS, COLS)


def _classes(*labels: tuple[int, ...]) -> list[dict[str, Any]]:
    return [
        {"id": 10 * k, "name": f"class {k}", "colour": "#102030", "labels": list(ids)} for k, ids in enumerate(labels)
    ]


BOTH = pytest.mark.parametrize("kept", [2**31, 0], ids=["kept", "read"])


# ids


@settings(max_examples=50)
@given(st.lists(st.integers(-3, 12) | st.sampled_from([255, 300, 65_535, 65_536, 70_000]), max_size=40))
def test_label_ids_become_classes(ids: list[int]) -> None:
    """A class wins over an id to ignore; NO_LABEL is ignored; -1 is for what nothing names."""
    found = Translation({7: 0, 300: 0, 70_000: 1, -3: 4, 0: 2}, [9, 255, 7]).of(np.array(ids, np.int32).reshape(1, -1))
    meant = {7: 0, 300: 0, 70_000: 1, -3: 4, 0: 2, 9: 255, 255: 255, -1: 255}
    assert found.tolist() == [[meant.get(i, -1) for i in ids]]


@BOTH
def test_ids_that_nobody_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    """They are an error unless they lie where nothing is used."""
    monkeypatch.setattr(labelled, "_KEPT_BYTES", kept)
    _, labels = two_colours(tmp_path)
    labels[:, 5 * STRIP : 6 * STRIP] = 77
    write_raster(tmp_path / "labels.tif", labels[None], **GRID)
    assert len(open_images(tiny_recipe(), tmp_path)) == 1
    labels[::2], labels[0, : 2 * STRIP] = 1, np.arange(2 * STRIP)
    write_raster(tmp_path / "labels.tif", labels[None], **GRID)
    with refuses("labels-unknown-ids", name="image.tif"):
        open_images(tiny_recipe(), tmp_path)
    open_images(tiny_recipe(images={"ignore": range(2, 256)}), tmp_path)


def test_an_id_to_ignore_teaches_nothing(tmp_path: Path) -> None:
    _, labels = two_colours(tmp_path)
    recipe = tiny_recipe(_classes((0,), (7,)), images={"ignore": [1, 255]})
    odd = np.arange(COLS, dtype=np.uint8) % 2
    write_raster(tmp_path / "labels.tif", np.where(labels == 0, odd * 7, labels)[None], **GRID)
    (image,), _ = opened(tmp_path, recipe)
    expected = np.where(labels == 0, odd, 255)
    assert np.array_equal(image.read_labels(WHOLE), expected)


# files


def _files(folder: Path, names: list[str], label: Callable[[str], str]) -> None:
    """Images in strips of two classes, each with its own number as brightness, and labels by their names."""
    for number, name in enumerate(names):
        for path in (folder / name, folder / label(name)):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_raster(folder / name, np.full((2, 8, 8), number + 1, np.uint8), **GRID)
        labels = np.full((1, 8, 8), 10 * number, np.uint8)
        labels[:, :4] += 1
        write_raster(folder / label(name), labels, **GRID)


@pytest.mark.parametrize(
    ("pattern", "labels", "label"),
    [
        ("images/*.tif", "labels/{stem}.tif", lambda name: name.replace("images", "labels")),
        ("*/*_rgb.tif", "{1}/{2}_label.tif", lambda name: name.replace("_rgb", "_label")),
        ("**/*_rgb.tif", "{parent}/{2}_label.tif", lambda name: name.replace("_rgb", "_label")),
        ("*/*_*_?g[ba].tif", "{1}/{3}-{2}.tif", lambda name: re.sub(r"/(.*)_(.*)_rgb", r"/\2-\1", name)),
    ],
)
def test_each_image_has_its_own_labels(tmp_path: Path, pattern: str, labels: str, label: Callable[[str], str]) -> None:
    folder = pattern.split("/", maxsplit=1)[0].replace("**", "any").replace("*", "any")
    names = [f"{folder}/{stem}_rgb.tif" for stem in ("test_1", "train_1", "train_2", "val_x")]
    _files(tmp_path, names, label)
    ids = tuple(range(100))
    recipe = tiny_recipe(
        _classes(ids[::2], ids[1::2]),
        images={"paths": [pattern], "labels": labels},
        split={**FILES, "never": ["*_label", "*-*"]},
    )
    images = open_images(recipe, tmp_path)
    assert [image.name for image in images] == names
    for number, image in enumerate(images):
        read = image.labels.read(Window(0, 0, 8, 8))
        assert read[0, 0] == 10 * number + 1, "the labels of another image"
        assert {use for use, regions in image.regions.items() if regions} == {image.name.split("/")[1].split("_")[0]}


def test_labels_that_cannot_be_found(tmp_path: Path) -> None:
    _files(tmp_path, ["a.tif", "val.tif", "test.tif"], lambda name: f"labels/{name}")
    for labels in ("labels/{2}.tif", "labels/{name}.tif", "labels/{stem.tif"):
        with refuses("labels-pattern", pattern=labels, name="a.tif"):
            open_images(tiny_recipe(images={"paths": ["*.tif"], "labels": labels}, split=FILES), tmp_path)
    with pytest.raises(FcnBatchError):
        open_images(tiny_recipe(images={"paths": ["*.tif"], "labels": "truth/{stem}.tif"}, split=FILES), tmp_path)


@BOTH
def test_a_grey_image_stands_for_all_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    image, labels = two_colours(tmp_path)
    write_pair(tmp_path, image[:1], labels)
    monkeypatch.setattr(labelled, "_KEPT_BYTES", kept)
    (found,), spec = opened(tmp_path, tiny_recipe(images={"bands": ["red", "green", "blue"]}))
    assert np.array_equal(found.read(WHOLE).values, image[[0, 0, 0]])
    assert [band.name for band in spec.bands] == ["red", "green", "blue"]
    assert len({(band.mean, band.std) for band in spec.bands}) == 1


@pytest.mark.parametrize("bands", [1, 2])
def test_kept_in_memory_or_not_the_windows_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bands: int
) -> None:
    image, labels = two_colours(tmp_path)
    image[:, 20:30, 30:90] = 0
    write_pair(tmp_path, image[:bands], labels, nodata=0)
    recipe = tiny_recipe()
    (kept,), spec = opened(tmp_path, recipe)
    monkeypatch.setattr(labelled, "_KEPT_BYTES", 0)
    (read,), again = opened(tmp_path, recipe)
    assert kept.kept is not None
    assert read.kept is None
    assert spec == again
    for window in (WHOLE, Window(7, 31, 20, 40)):
        one, other = kept.read(window), read.read(window)
        assert np.array_equal(one.values, other.values)
        assert np.array_equal(one.valid, other.valid)
        assert not one.valid.all()
        assert np.array_equal(kept.read_labels(window), read.read_labels(window))
        assert np.array_equal(kept.read_image(window, spec), read.read_image(window, spec))


def test_first_come_first_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _files(tmp_path, ["test.tif", "train.tif", "val.tif"], lambda name: f"labels/{name}")
    classes = _classes(tuple(range(0, 50, 2)), tuple(range(1, 50, 2)))
    recipe = tiny_recipe(classes, images={"paths": ["*.tif"], "labels": "labels/{stem}.tif"}, split=FILES)
    monkeypatch.setattr(labelled, "_KEPT_BYTES", 2 * 8 * 8 * 4)  # two bands, mask and channel, twice
    assert [image.kept is not None for image in open_images(recipe, tmp_path)] == [True, True, False]


# statistics


@pytest.mark.parametrize("part", [16, 1024])
def test_band_statistics_are_those_of_the_training_strips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    """Without pixels that have no data; a band more than the recipe's is left alone."""
    image, labels = two_colours(tmp_path, "uint16", scale=40)
    image = image.clip(1)
    image[:, :, 5:30] = 0
    write_pair(tmp_path, np.concatenate([image, image]), labels, nodata=0)
    monkeypatch.setattr(labelled, "_PART", part)
    recipe = tiny_recipe(images={"full_scale": 10000.0})
    images = open_images(recipe, tmp_path)
    assert np.array_equal(images[0].read(WHOLE).values, image)
    spec, counts = band_statistics(images, recipe), label_counts(images, "train")
    used = np.isin(np.arange(COLS) // STRIP, TRAINED)
    values = image[:, :, used].reshape(len(image), -1) / 10000.0
    values = values[:, values[0] > 0]
    assert [b.name for b in spec.bands] == ["red", "green"]
    assert [b.mean for b in spec.bands] == pytest.approx(values.mean(axis=1).tolist())
    assert [b.std for b in spec.bands] == pytest.approx(values.std(axis=1).tolist())
    assert (spec.dtype, spec.full_scale, spec.gsd_m) == ("uint16", 10000.0, 10.0)
    assert counts.tolist() == [(labels[:, used] == k).sum() for k in range(256)]


# what cannot be trained on


def _labels(**changes: Any) -> Callable[[Path], dict[str, Any]]:
    """Write labels of another kind."""
    grid = {**GRID, **changes.pop("grid", {})}
    size, value, strip = changes.pop("size", (ROWS, COLS)), changes.pop("value", None), changes.pop("strip", None)

    def write(folder: Path) -> dict[str, Any]:
        labels = noise(1, *size).astype(np.uint8) % 2 if value is None else np.full((1, *size), value, np.uint8)
        if strip is not None:
            labels[:, :, strip * STRIP : (strip + 1) * STRIP] = 255
        write_raster(folder / "labels.tif", labels, **grid)
        return {}

    return write


def _changed(**parts: Any) -> Callable[[Path], dict[str, Any]]:
    return lambda _: parts


def _split(**changes: Any) -> Callable[[Path], dict[str, Any]]:
    return _changed(split={**tiny_recipe().split.model_dump(), **changes})


def _empty_image(folder: Path) -> dict[str, Any]:
    write_raster(folder / "image.tif", np.zeros((2, ROWS, COLS), np.uint8), nodata=0, **GRID)
    return {}


def _two_types(folder: Path) -> dict[str, Any]:
    for name, dtype in (("val.tif", "uint8"), ("test.tif", "uint8"), ("train.tif", "uint16")):
        write_raster(folder / name, noise(2, ROWS, COLS, dtype), **GRID)
    return {"images": {"paths": ["t*.tif", "val.tif"]}, "split": FILES}


def _unlisted(folder: Path) -> dict[str, Any]:
    (folder / "split.json").write_text(json.dumps([{"name": "other", "split": "train"}]))
    return {"split": {"by": "files", "list": "split.json"}}


SPOILT: dict[str, tuple[Callable[[Path], dict[str, Any]], str | None]] = {
    "labels elsewhere": (_labels(grid={"transform": Affine(10, 0, 900000, 0, -10, 5000000)}), None),
    "labels of no class": (_labels(value=255), "split-unlabelled"),
    "labels of one class": (_labels(value=1), "labels-one-class"),
    "no val label": (_labels(strip=1), "split-unlabelled"),
    "test outside": (_split(test=[90]), "split-unlabelled"),
    "score rows outside": (_split(score_rows=[900, 901]), "split-unlabelled"),
    "unlabelled score rows": (_split(score_rows=[0, 3]), "split-unlabelled"),
    "nothing to train on": (_split(never=[0, 2, 4, 5]), "split-unlabelled"),
    "no file is listed": (_unlisted, "split-unlabelled"),
    "empty image": (_empty_image, "images-empty"),
    "two types": (_two_types, "images-types"),
    "too few bands": (_changed(images={"bands": ["red", "green", "blue"]}), "images-bands"),
    "no image": (_changed(images={"paths": ["none.tif"]}), None),
    "no package": (_changed(images={"paths": ["package:nobody_has_this/a.tif"]}), None),
    "no labels in the package": (_changed(images={"labels": "package:numpy/none.tif"}), None),
}
"""How data are spoilt, and the code of the error; None where others than the images' reader find it."""


@pytest.mark.parametrize(("spoil", "code"), SPOILT.values(), ids=SPOILT)
@BOTH
def test_data_that_cannot_train_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], dict[str, Any]],
    code: str | None,
    kept: int,
) -> None:
    two_colours(tmp_path)
    monkeypatch.setattr(labelled, "_KEPT_BYTES", kept)
    recipe: Recipe = tiny_recipe(**spoil(tmp_path))
    with pytest.raises(FcnBatchError) as caught:
        opened(tmp_path, recipe)
    assert caught.value.exit_code == 8
    assert code in (None, caught.value.code)


def test_places_of_image_and_labels_can_be_given(tmp_path: Path) -> None:
    """Labels of twice the image's resolution, from files that say nothing of where they lie."""
    image, labels = two_colours(tmp_path)
    fine = np.repeat(np.repeat(labels, 2, axis=0), 2, axis=1)
    write_raster(tmp_path / "image.tif", image)
    write_raster(tmp_path / "labels.tif", fine[None])
    place = {"crs": "EPSG:4326", "transform": [0.5, 0, -20, 0, -0.5, 40]}
    finer = {"crs": "EPSG:4326", "transform": [0.25, 0, -20, 0, -0.25, 40]}
    (found,), _ = opened(tmp_path, tiny_recipe(images={"place": place, "labels_place": finer}))
    assert np.array_equal(found.read_labels(WHOLE), labels)
    with pytest.raises(FcnBatchError):
        open_images(tiny_recipe(images={"place": place}), tmp_path)


def test_labels_may_be_polygons(tmp_path: Path) -> None:
    pytest.importorskip("pyogrio")
    two_colours(tmp_path)
    left, right = 500000 + 5 * 10, 500000 + 200 * 10
    box = [[left, 4999900], [right, 4999900], [right, 4999700], [left, 4999700], [left, 4999900]]
    feature = {"type": "Feature", "properties": {"kind": "roof"}, "geometry": {"type": "Polygon", "coordinates": [box]}}
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    text = json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]})
    (tmp_path / "labels.geojson").write_text(text)
    polygons = {"field": "kind", "values": {"roof": 1}}
    (found,), _ = opened(tmp_path, tiny_recipe(images={"labels": "labels.geojson", "polygons": polygons}))
    expected = np.zeros((ROWS, COLS), np.uint8)
    expected[10:30, 5:200] = 1
    assert np.array_equal(found.read_labels(WHOLE), expected)
