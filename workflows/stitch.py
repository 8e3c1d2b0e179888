"""From finished blocks to finished outputs: consolidate the store, copy it to a COG, window by window."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.classes import Legend
from fcn_batch.pipeline.classmap import MapHead, write_cog
from fcn_batch.pipeline.crs import authority_code, cf_grid_mapping, coordinate_attributes
from fcn_batch.pipeline.geometry import Window
from fcn_batch.pipeline.plan import Plan
from fcn_batch.pipeline.store import ClassStore, Layout
from fcn_batch.pipeline.tiling import BlockGrid


def create_store(path: Path, plan: Plan, legend: Legend) -> None:
    """An empty store for the map at `path`."""
    reference = plan.input.georeference
    y_attributes, x_attributes = coordinate_attributes(reference)
    layout = Layout(
        size=plan.input.size,
        chunk=plan.cut.chunk,
        legend=legend,
        georeference=reference,
        grid_mapping=cf_grid_mapping(reference),
        authority_code=authority_code(reference),
        y_attributes=y_attributes,
        x_attributes=x_attributes,
        provenance=provenance(plan),
    )
    ClassStore.create(path, layout)


def provenance(plan: Plan) -> dict[str, str | int]:
    """How the map was made, for the attributes of every output."""
    return {
        "source": f"fcn-batch {plan.kernel.fcn_batch}, model {plan.model.name} {plan.model.version}",
        "fcn:model": plan.model.name,
        "fcn:model_sha256": plan.model.sha256,
        "fcn:fingerprint": plan.fingerprint,
        "fcn:exactness": "exact" if plan.cut.exact else "approximate",
        "fcn:precision": plan.kernel.precision,
        "fcn:way": plan.cut.way,
        "fcn:blend": plan.cut.blend or "none needed",
        "fcn:tile": plan.cut.tile,
        "fcn:overlap": plan.cut.overlap,
    }


def stitch(store: ClassStore, cog: Path, plan: Plan, legend: Legend) -> None:
    """Consolidate `store` and copy it to the COG `cog` with its side file."""
    store.consolidate()
    write_cog(cog, MapHead(plan.input.georeference, plan.input.size, legend, provenance(plan)), chunks(store))


def chunks(store: ClassStore) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
    """The map chunk by chunk, row by row."""
    grid = BlockGrid(store.size, store.chunk, store.chunk)
    for index in range(len(grid)):
        yield grid[index], store.read(grid[index])
