"""From a plan to empty stores, and from finished blocks to finished outputs: consolidated stores, a COG, a style."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import Legend
from fcn_batch.pipeline.core.conventions import ome_image
from fcn_batch.pipeline.core.durable import write_whole
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.core.plan import Plan
from fcn_batch.pipeline.core.qml import qgis_style
from fcn_batch.pipeline.core.tiling import BlockGrid
from fcn_batch.pipeline.raster.classmap import MapHead, write_cog
from fcn_batch.pipeline.raster.crs import authority_code, cf_grid_mapping, coordinate_attributes
from fcn_batch.pipeline.store.classstore import ARRAY, CONFIDENCE, ClassStore, ConfidenceStore, Layout


def create_store(path: Path, plan: Plan, legend: Legend) -> None:
    """An empty store for the map at `path`."""
    microns = plan.input.microns
    ome = {} if microns is None else ome_image(ARRAY, [(ARRAY, 1)], microns, legend)
    ClassStore.create(path, layout_of(plan, legend, ome))


def create_confidence(path: Path, plan: Plan, legend: Legend) -> None:
    """An empty store for how sure the network is of the map, at `path`."""
    microns, name = plan.input.microns, CONFIDENCE[0]
    ome = {} if microns is None else ome_image(name, [(name, 1)], microns, None)
    ConfidenceStore.create(path, layout_of(plan, legend, ome))


def layout_of(plan: Plan, legend: Legend, ome: dict[str, Any] | None = None) -> Layout:
    """Everything about the stores of a run but their pixels; `ome` is what viewers of slides are told."""
    told = {**provenance(plan), **_ground(plan), **(ome or {})}
    return located(plan.input.size, plan.input.georeference, legend, (plan.cut.chunk, plan.inner), told)


def located(
    size: Size,
    reference: GeoReference,
    legend: Legend,
    unit: tuple[int, int | None],
    provenance: Mapping[str, Any],
) -> Layout:
    """The layout of a store at `reference`, with what CF readers are told of the place.

    `unit`: side of what is written at once, and of the chunks in it when that is a shard.
    """
    y_attributes, x_attributes = coordinate_attributes(reference)
    return Layout(
        size=size,
        chunk=unit[0],
        inner=unit[1],
        legend=legend,
        georeference=reference,
        grid_mapping=cf_grid_mapping(reference),
        authority_code=authority_code(reference),
        y_attributes=y_attributes,
        x_attributes=x_attributes,
        provenance=provenance,
    )


def _ground(plan: Plan) -> dict[str, Any]:
    """Root attributes for ground control points, which zarr readers have no place for: row, col, x, y, z of each."""
    ground = plan.input.ground
    if ground is None:
        return {}
    return {"fcn:gcps": [list(point) for point in ground.points], "fcn:gcps_crs": ground.crs_wkt}


def provenance(plan: Plan) -> dict[str, str | int]:
    """How the map was made, for the attributes of every output."""
    return {
        "source": f"fcn-batch {plan.kernel.fcn_batch}, model {plan.model.name} {plan.model.version}",
        "fcn:model": plan.model.name,
        "fcn:model_sha256": plan.model.sha256,
        "fcn:fingerprint": plan.fingerprint,
        "fcn:exactness": plan.exactness,
        "fcn:precision": plan.kernel.precision,
        "fcn:way": plan.cut.way,
        "fcn:blend": plan.cut.blend or "none needed",
        "fcn:tile": plan.cut.tile,
        "fcn:overlap": plan.cut.overlap,
    }


def head_of(plan: Plan, legend: Legend) -> MapHead:
    """Everything about the COG but its pixels."""
    return MapHead(plan.input.georeference, plan.input.size, legend, provenance(plan), plan.input.ground)


def stitch(store: ClassStore, cog: Path, style: Path, plan: Plan, legend: Legend) -> None:
    """Consolidate `store`, copy it to the COG `cog` with its side file, and write the QGIS style of both."""
    store.consolidate()
    write_cog(cog, head_of(plan, legend), chunks(store))
    write_whole(style, qgis_style(legend))


def chunks(store: ClassStore) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
    """The map chunk by chunk, row by row; of a shard, the chunks that it holds."""
    grid = BlockGrid(store.size, store.inner, store.inner)
    for index in range(len(grid)):
        yield grid[index], store.read(grid[index])
