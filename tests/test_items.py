"""Inputs that STAC items name: which of their assets, where it is, and when it was taken."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pystac
import pytest

from fcn_batch.pipeline.core.errors import FcnBatchError
from fcn_batch.pipeline.core.location import Url
from fcn_batch.workflows.inputs.many import holds_items, in_items
from tests.errors import refuses

TAKEN = datetime(2024, 5, 17, 10, 30, tzinfo=UTC)


def item(**assets: pystac.Asset) -> pystac.Item:
    made = pystac.Item("scene", None, None, TAKEN, {})
    for key, asset in assets.items():
        made.add_asset(key, asset)
    return made


def tiff(href: str, roles: list[str] | None = None, media: str = pystac.MediaType.COG) -> pystac.Asset:
    return pystac.Asset(href, media_type=media, roles=roles)


def write(path: Path, *items: pystac.Item) -> Path:
    """One item, or several as an item collection."""
    made: Any = items[0] if len(items) == 1 else pystac.ItemCollection(items)
    told = made.to_dict(include_self_link=False) if len(items) == 1 else made.to_dict()
    path.write_text(json.dumps(told))
    return path


@pytest.mark.parametrize(
    ("href", "place"),
    [
        ("a.tif", "{folder}/a.tif"),
        ("./sub/a%20b.tif", "{folder}/sub/a b.tif"),
        ("../a%23%3F.tif", "{folder}/../a#?.tif"),
        ("/data/a.tif", "/data/a.tif"),
        ("file:///data/a%20b.tif", "/data/a b.tif"),
        ("https://host/a%20b.tif?version=1", None),
        ("s3://bucket/a.tif", None),
    ],
)
def test_links(tmp_path: Path, href: str, place: str | None) -> None:
    path = write(tmp_path / "item.json", item(image=tiff(href), small=tiff("t.png", ["thumbnail"], "image/png")))
    assert holds_items(path)
    (found,) = in_items(path, None)
    assert found.taken == TAKEN
    if place is None:
        assert found.place == Url(href)
    else:
        assert isinstance(found.place, Path)
        assert str(found.place) == place.format(folder=tmp_path)


def test_collections_of_items_are_all_taken(tmp_path: Path) -> None:
    first, second = item(image=tiff("a.tif")), item(image=tiff("b.tif"))
    second.datetime, second.common_metadata.start_datetime = None, datetime(2023, 1, 2, tzinfo=UTC)
    second.common_metadata.end_datetime = TAKEN
    found = in_items(write(tmp_path / "items.geojson", first, second), "image")
    assert [(str(one.place), one.taken) for one in found] == [
        (str(tmp_path / "a.tif"), TAKEN),
        (str(tmp_path / "b.tif"), datetime(2023, 1, 2, tzinfo=UTC)),
    ]


def test_several_images_or_none(tmp_path: Path) -> None:
    path = write(
        tmp_path / "item.json", item(red=tiff("r.tif"), visual=tiff("v.tif"), meta=tiff("m.xml", None, "text/xml"))
    )
    with refuses("asset-ambiguous", path=path, item="scene", assets="red|visual"):
        in_items(path, None)
    assert str(in_items(path, "visual")[0].place) == str(tmp_path / "v.tif")
    assert str(in_items(path, "meta")[0].place) == str(tmp_path / "m.xml"), "who names it, gets it"
    with refuses("asset-missing", path=path, assets="red, visual, meta"):
        in_items(path, "blue")
    none = write(tmp_path / "none.json", item(meta=tiff("m.xml", None, "text/xml"), small=tiff("t.tif", ["overview"])))
    with refuses("asset-missing", path=none, assets="meta, small"):
        in_items(none, None)


GOOD = {"type": "Feature", "id": "x", "assets": {"a": {"href": "a.tif", "type": "image/tiff"}}}


@pytest.mark.parametrize(
    "told",
    [
        "",
        "{",
        "[" * 100_000,
        '{"type": "Feature", "assets": {}}',
        json.dumps({**GOOD, "assets": {"a": 5}}),
        json.dumps({**GOOD, "assets": {"a": {"href": None, "type": "image/tiff"}}}),
        json.dumps({**GOOD, "assets": {"a": {"href": "", "type": "image/tiff"}}}),
        json.dumps({**GOOD, "assets": {"a": {"href": "http://[bad/a.tif", "type": "image/tiff"}}}),
        json.dumps({**GOOD, "assets": {"a": {"href": "a\0.tif", "type": "image/tiff"}}}),
        json.dumps({**GOOD, "assets": {"a": {"href": "a.tif", "type": ["image/tiff"]}}}),
        json.dumps({**GOOD, "assets": {"\ud800": {"href": "a.tif"}}}),
    ],
)
def test_what_is_no_item_is_an_error_with_its_name(tmp_path: Path, told: str) -> None:
    path = tmp_path / "item.json"
    path.write_text(told)
    with pytest.raises(FcnBatchError, match=r"item\.json"):
        in_items(path, None)


def test_other_json_holds_no_items(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    for told in (
        "5",
        "null",
        "[]",
        '{"features": 5}',
        '{"features": [5, {}, {"type": "Feature"}]}',
        '{"type": "Polygon"}',
    ):
        path.write_text(told)
        assert not holds_items(path)
        assert in_items(path, None) == []
    assert not holds_items(tmp_path / "none.json")
    assert not holds_items(tmp_path)


def test_odd_times_and_types_are_not_known(tmp_path: Path) -> None:
    odd: list[Any] = [None, 5, [], {}, {"datetime": 5}, {"datetime": "yesterday"}, {"datetime": None}]
    for properties in odd:
        (tmp_path / "a.json").write_text(json.dumps({**GOOD, "properties": properties}))
        assert in_items(tmp_path / "a.json", None)[0].taken is None
    for when in ("2024-05-17T10:30:00Z", "2024-05-17T12:30:00+02:00", "2024-05-17T10:30:00"):
        (tmp_path / "a.json").write_text(json.dumps({**GOOD, "properties": {"datetime": when}}))
        assert in_items(tmp_path / "a.json", None)[0].taken == TAKEN
