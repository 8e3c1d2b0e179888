"""A STAC item that describes a run's outputs, so that catalogues find them: plain JSON, made without a library.

STAC 1.1 with the extensions for projections, rasters, classes and processing, and the one for models as far as it
fits a map that a model made. pystac reads and checks it in the tests; for a dictionary of fifty keys a dependency
at runtime is not worth it.
"""

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fcn_batch.pipeline.core.classes import NODATA, Legend
from fcn_batch.pipeline.core.plan import Plan
from fcn_batch.pipeline.raster.crs import authority_code
from fcn_batch.pipeline.raster.ground import footprint, ground_of
from fcn_batch.pipeline.raster.picture import taken_at
from fcn_batch.workflows.outputs.publishing import Outputs

_EXTENSIONS = {
    "proj": "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "raster": "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "classification": "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "processing": "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "mlm": "https://stac-extensions.github.io/mlm/v1.4.0/schema.json",
}
_ZARR, _JSON, _XML = "application/vnd.zarr; version=3", "application/json", "application/xml"
_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_ASSETS = {
    ".classes.zarr": ("classes", "Class map (zarr)", _ZARR, ["data"]),
    ".classes.tif": ("cog", "Class map (cloud-optimised GeoTIFF)", _COG, ["data", "visual"]),
    ".pyramid.zarr": ("pyramid", "Class map at several resolutions (zarr)", _ZARR, ["data", "overview"]),
    ".confidence.zarr": ("confidence", "How sure the network is (zarr)", _ZARR, ["data"]),
    ".classes.tif.aux.xml": ("names", "Names and colours, for GDAL", _XML, ["metadata"]),
    ".classes.qml": ("style", "Names and colours, for QGIS", _XML, ["style", "metadata"]),
    ".run.json": ("report", "Report of the run", _JSON, ["metadata"]),
}
"""By the end of an output's name: key, title, media type and roles of the asset."""
_CONFIDENCE_SCALE = 1 / 250
_MODEL_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]")
_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(\+[0-9a-zA-Z.-]+)?")


def make_item(plan: Plan, legend: Legend, report: dict[str, Any], outputs: Outputs) -> dict[str, Any]:
    """The item of a finished run, ready for JSON; references are relative to the folder of the outputs.

    `report` is that of the run, with its times. Without a place on the Earth the item has no geometry, as STAC has
    it; the time is when the input says that it was taken, else when the run was finished.
    """
    place = footprint(plan.input.georeference, plan.input.size, plan.input.ground)
    model = _model(plan, legend, outputs)
    item: dict[str, Any] = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [uri for name, uri in _EXTENSIONS.items() if name != "mlm" or model],
        "id": outputs.stem,
        "geometry": None if place is None else place.geometry,
        "properties": _properties(plan, legend, report) | model.get("properties", {}),
        "links": [],
        "assets": _assets(plan, legend, report, outputs) | model.get("assets", {}),
    }
    if place is not None:
        item["bbox"] = list(place.bbox)
    return item


def _properties(plan: Plan, legend: Legend, report: dict[str, Any]) -> dict[str, Any]:
    finished = datetime.fromisoformat(report["timing"]["finished"]).astimezone(UTC)
    source = Path(plan.input.path)
    exactness = plan.exactness
    return {
        "datetime": _written(taken_at(plan.input.places[0]) or finished),
        "created": _written(finished),
        "title": f"Classes of {source.name}",
        "description": f"{len(legend)} classes: {', '.join(one.name for one in legend.classes)}",
        **_projection(plan),
        "processing:datetime": _written(finished),
        "processing:software": {
            "fcn-batch": plan.kernel.fcn_batch,
            "PyTorch": plan.kernel.torch,
            "GDAL": plan.kernel.gdal,
        },
        "processing:lineage": (
            f"{source.name}, bands {', '.join(map(str, plan.bands))}, classified by the network {plan.model.name} "
            f"{plan.model.version}: {exactness}, {plan.kernel.precision}"
        ),
    }


def _written(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _projection(plan: Plan) -> dict[str, Any]:
    """Fields of the projection extension; a pixel space has only its shape and, if there is one, its transform."""
    ref = plan.input.georeference
    found: dict[str, Any] = {"proj:shape": [plan.input.height, plan.input.width]}
    if plan.input.ground is None:
        found["proj:transform"] = list(ref.transform)
    if ref.crs_wkt is not None:
        code = authority_code(ref)
        found |= {"proj:code": code} if code else {"proj:code": None, "proj:wkt2": ref.crs_wkt}
    return found


def _assets(plan: Plan, legend: Legend, report: dict[str, Any], outputs: Outputs) -> dict[str, Any]:
    """What the report says that there is, and the report itself, by the keys of _ASSETS."""
    there = {*report["outputs"], outputs.report}
    ground = ground_of(plan.input.georeference, plan.input.size, plan.input.microns)
    pixels: dict[str, Any] = {"data_type": "uint8", "nodata": NODATA, "raster:sampling": "area"}
    if ground is not None:
        pixels["raster:spatial_resolution"] = float(f"{ground.metres:.6g}")
    found = {}
    for ending, (key, title, media, roles) in _ASSETS.items():
        name = f"{outputs.stem}{ending}"
        if name not in there:
            continue
        asset: dict[str, Any] = {"href": f"./{quote(name)}", "title": title, "type": media, "roles": roles}
        if key == "confidence":
            asset |= pixels | {"bands": [{"name": "confidence"}, {"name": "margin"}], "raster:scale": _CONFIDENCE_SCALE}
        elif "data" in roles:
            asset |= pixels | {"classification:classes": _classes(legend, report)}
        found[key] = asset
    return found


def _classes(legend: Legend, report: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The classes, and what no data is; with counts and shares if the report is given."""
    counted = {one["id"]: one for one in report["classes"]} if report else {}
    names: set[str] = set()
    classes = []
    for one in legend.classes:
        name = re.sub(r"[^0-9A-Za-z_-]+", "_", one.name)
        name = f"{name}_{one.id}" if name in names else name
        names.add(name)
        entry = {
            "value": one.id,
            "name": name,
            "title": one.name,
            "description": one.name,
            "color_hint": one.colour.removeprefix("#").upper(),
        }
        if one.id in counted:
            entry |= {"count": counted[one.id]["pixels"], "percentage": round(100 * counted[one.id]["share"], 6)}
        classes.append(entry)
    if report:
        nodata = {"value": NODATA, "name": "nodata", "title": "no data", "description": "no data", "nodata": True}
        classes.append(nodata | {"name": "nodata_255"} if "nodata" in names else nodata)
    return classes


def _model(plan: Plan, legend: Legend, outputs: Outputs) -> dict[str, dict[str, Any]]:
    """What the mlm extension says of the network: properties and an asset; empty when the model is no file.

    The extension describes models: an item that uses it must have one among its assets.
    """
    path = Path(plan.model.path)
    if not path.is_file():
        return {}
    weights = path.suffix == ".safetensors"
    dimensions = ["batch", "channel", "height", "width"]
    name = plan.model.name
    properties: dict[str, Any] = {
        "mlm:name": name if _MODEL_NAME.fullmatch(name) else f"model {re.sub('[^a-zA-Z0-9]+', ' ', name).strip()}",
        "mlm:architecture": "FCN" if weights else "unknown",
        "mlm:tasks": ["semantic-segmentation"],
        "mlm:framework": "PyTorch",
        "mlm:input": [
            {
                "name": "image",
                "description": f"bands {', '.join(map(str, plan.bands))} of the raster; {plan.scaling}",
                "bands": [],
                "input": {"shape": [-1, len(plan.bands), -1, -1], "dim_order": dimensions, "data_type": "float32"},
            }
        ],
        "mlm:output": [
            {
                "name": "scores",
                "tasks": ["semantic-segmentation"],
                "result": {"shape": [-1, len(legend), -1, -1], "dim_order": dimensions, "data_type": "float32"},
                "classification:classes": _classes(legend),
            }
        ],
    }
    if _VERSION.fullmatch(plan.kernel.torch):
        properties["mlm:framework_version"] = plan.kernel.torch
    asset = {
        "href": quote(Path(os.path.relpath(path, outputs.folder)).as_posix()),
        "title": f"{name} {plan.model.version}, sha256 {plan.model.sha256}",
        "type": "application/octet-stream" if weights else "application/toml",
        "roles": ["mlm:model"],
        "mlm:artifact_type": "safetensors.torch.save_file" if weights else "python-factory",
    }
    return {"properties": properties, "assets": {"model": asset}}
