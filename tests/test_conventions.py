"""The attribute blocks, checked by validators of others and by numbers worked out by hand."""

from typing import Any

import pytest
import zarr_cm
from ome_zarr_models.v05.image_label import ImageLabelAttrs

from fcn_batch.pipeline.core.classes import ClassInfo, Legend
from fcn_batch.pipeline.core.conventions import (
    Level,
    joined,
    microns_of,
    multiscales,
    ome_image,
    proj_attributes,
    spatial_attributes,
)
from fcn_batch.pipeline.core.geometry import Size
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.core.pyramid import levels_of

WKT = 'LOCAL_CS["drawing"]'
PLACE = GeoReference(WKT, (3.0, 4.0, 5.0, 4.0, -3.0, 7.0))
LEGEND = Legend(
    classes=(ClassInfo(id=3, name="bare soil", colour="#aa8866"), ClassInfo(id=0, name="water", colour="#1f78b4"))
)


def names(attributes: dict[str, Any]) -> list[str]:
    return [entry["name"] for entry in attributes["zarr_conventions"]]


def test_the_conventions_are_those_that_their_validator_knows() -> None:
    levels = levels_of(Size(1200, 700), PLACE)
    attributes = joined(multiscales(levels), spatial_attributes(PLACE, levels[0].size), proj_attributes(WKT, "EPSG:1"))
    assert names(attributes) == ["multiscales", "spatial", "proj"]
    for name, entry in zip(names(attributes), attributes["zarr_conventions"], strict=True):
        assert entry == zarr_cm.convention_metadata(name)  # type: ignore[arg-type]
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    for convention in (zarr_cm.multiscales, zarr_cm.spatial, zarr_cm.proj):
        convention.validate_node_metadata(group)


def test_blocks_can_be_changed_without_changing_others() -> None:
    first = proj_attributes(WKT, None)
    first["zarr_conventions"][0]["name"] = "mine"
    assert names(proj_attributes(WKT, None)) == ["proj"]


def test_a_system_with_and_without_code_and_none() -> None:
    assert proj_attributes(WKT, "EPSG:1")["proj:code"] == "EPSG:1"
    assert "proj:code" not in proj_attributes(WKT, None)
    assert proj_attributes(None, None) == {}


def test_the_bounds_of_a_rotated_map() -> None:
    # corners: (5, 7), 2 columns on (11, 15), 3 rows on (17, -2), both (23, 6)
    assert spatial_attributes(PLACE, Size(3, 2))["spatial:bbox"] == [5.0, -2.0, 23.0, 15.0]


def test_levels_say_how_they_lie_on_each_other() -> None:
    levels = [Level("a", 1, Size(9, 9), PLACE), Level("b", 4, Size(3, 3), PLACE), Level("c", 8, Size(2, 2), PLACE)]
    layout = multiscales(levels)["multiscales"]["layout"]
    assert [one.get("derived_from") for one in layout] == [None, "a", "b"]
    assert [one["transform"]["scale"] for one in layout] == [[1.0, 1.0], [4.0, 4.0], [2.0, 2.0]]


def test_the_ome_block_is_valid_and_counts_from_pixel_centres() -> None:
    block = ome_image("classes", [("0/classes", 1), ("1/classes", 2), ("2/classes", 4)], 0.5, LEGEND)["ome"]
    parsed = ImageLabelAttrs.model_validate(block)
    assert parsed.image_label is not None
    assert [axis.unit for axis in parsed.multiscales[0].axes] == ["micrometer", "micrometer"]
    datasets = block["multiscales"][0]["datasets"]
    # the centre of a level's first pixel, less that of the full map's: (f / 2 - 1 / 2) pixels of half a micrometre
    assert [[list(one.values())[1] for one in d["coordinateTransformations"]] for d in datasets] == [
        [[0.5, 0.5]],
        [[1.0, 1.0], [0.25, 0.25]],
        [[2.0, 2.0], [0.75, 0.75]],
    ]


def test_the_ome_block_names_and_colours_the_classes() -> None:
    label = ome_image("classes", [("classes", 1)], None, LEGEND)["ome"]["image-label"]
    assert {one["label-value"]: one["name"] for one in label["properties"]} == {
        3: "bare soil",
        0: "water",
        255: "no data",
    }
    assert {one["label-value"]: one["rgba"] for one in label["colors"]} == {
        3: [0xAA, 0x88, 0x66, 255],
        0: [0x1F, 0x78, 0xB4, 255],
        255: [0, 0, 0, 0],
    }
    assert "image-label" not in ome_image("classes", [("classes", 1)], None, None)["ome"]


def test_without_a_scale_lengths_are_pixels() -> None:
    image = ome_image("classes", [("classes", 1)], None, LEGEND)["ome"]["multiscales"][0]
    assert image["axes"] == [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    assert image["datasets"][0]["coordinateTransformations"] == [{"type": "scale", "scale": [1.0, 1.0]}]


@pytest.mark.parametrize("microns", [0.25, None])
def test_the_scale_is_read_back(microns: float | None) -> None:
    assert microns_of(ome_image("classes", [("classes", 1)], microns, LEGEND)) == microns


@pytest.mark.parametrize("attributes", [{}, {"ome": None}, {"ome": {"multiscales": []}}, {"ome": "0.5"}])
def test_no_scale_in_attributes_of_others(attributes: dict[str, Any]) -> None:
    assert microns_of(attributes) is None
