"""Inputs that a STAC item, or a collection of items in one file, names: one asset of each."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from fcn_batch.pipeline.core.errors import InputError, OptionError
from fcn_batch.pipeline.core.limits import MAX_TEXT, read_bounded
from fcn_batch.pipeline.core.location import Url, input_of

_TYPES = ("image/tiff", "image/jp2", "image/jpeg", "image/png", "image/vnd.stac.geotiff", "application/vnd+zarr")
"""Media types of assets that may be inputs."""
_NOT_IMAGES = {"thumbnail", "overview", "metadata"}
"""Roles of assets that are not the image itself."""


@dataclass(frozen=True, slots=True)
class Found:
    """An input, and when it was taken."""

    place: Path | Url
    taken: datetime | None


def holds_items(path: Path) -> bool:
    """True for a file named as JSON that holds STAC items."""
    if path.suffix.lower() not in {".json", ".geojson"} or not path.is_file():
        return False
    return any(True for _ in _items(path))


def in_items(path: Path, asset: str | None) -> list[Found]:
    """The asset of each item of a file; by default the only one that is an image.

    Links are relative to the file. InputError when an item has no such asset, OptionError when it has several.
    """
    return [_found(path, item, asset) for item in _items(path)]


def _items(path: Path) -> Iterator[dict[str, Any]]:
    """Features that are STAC items; none of a file that is something else."""
    try:
        told = json.loads(read_bounded(path, MAX_TEXT))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON that can be read ({error}); give a raster, or STAC items") from error
    features = told.get("features", [told]) if isinstance(told, dict) else []
    for one in features if isinstance(features, list) else []:
        if isinstance(one, dict) and one.get("type") == "Feature" and isinstance(one.get("assets"), dict):
            yield one


def _found(path: Path, item: dict[str, Any], asset: str | None) -> Found:
    assets = {key: one for key, one in item["assets"].items() if isinstance(one, dict) and _is_link(one.get("href"))}
    named = f"{path}: item {str(item.get('id'))[:80]!r}"
    if asset is None:
        keys = [key for key, one in assets.items() if _is_image(one)]
        if len(keys) > 1:
            raise OptionError(f"{named} has several images; choose one with --asset {'|'.join(map(str, keys))[:200]}")
        if not keys:
            raise InputError(f"{named} has no asset that is an image; name one with --asset ({_keys(assets)})")
        asset = keys[0]
    if asset not in assets:
        raise InputError(f"{named} has no asset {asset!r}, but {_keys(assets)}")
    properties = item.get("properties")
    times = properties if isinstance(properties, dict) else {}
    taken = _moment(times.get("datetime") or times.get("start_datetime"))
    return Found(_place(assets[asset]["href"], path.absolute().parent), taken)


def _keys(assets: dict[str, Any]) -> str:
    return ", ".join(map(str, assets))[:200] or "none at all"


def _is_link(href: object) -> bool:
    """True for a text that can be a path or URL."""
    if not isinstance(href, str) or not href or "\0" in unquote(href):
        return False
    try:
        return bool(urlsplit(href))
    except ValueError:  # brackets that hold no address
        return False


def _is_image(asset: dict[str, Any]) -> bool:
    roles = asset.get("roles")
    return str(asset.get("type", "")).startswith(_TYPES) and _NOT_IMAGES.isdisjoint(
        map(str, roles if isinstance(roles, list) else ())
    )


def _place(href: str, folder: Path) -> Path | Url:
    """What a link of a file in `folder` leads to.

    >>> str(_place("../a%20b.tif", Path("/data/items"))), str(_place("s3://bucket/a.tif", Path("/data")))
    ('/data/items/../a b.tif', 's3://bucket/a.tif')
    """
    if urlsplit(href).scheme not in ("", "file"):
        return input_of(href)
    return folder / unquote(urlsplit(href).path)


def _moment(text: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found
