"""What `fcn-batch plan` prints."""

import json
from pathlib import Path

from fcn_batch.pipeline.core.plan import Cut, Plan
from fcn_batch.workflows.outputs.disk import describe_disk, disk_needed, free_room
from fcn_batch.workflows.plan import Prepared
from fcn_batch.workflows.processes.topology import describe_processes


def describe(
    prepared: Prepared, folder: Path | None = None, *, pyramid: bool = False, workers: int = 0
) -> list[tuple[str, str]]:
    """What `fcn-batch plan` prints: label and value, one pair a line.

    `folder` is that of the outputs, by default the input's; `workers` the processes of this machine, 0 for this one.
    """
    plan, info, card = prepared.plan, prepared.info, prepared.model.card
    cut, size = plan.cut, info.size
    kind = plan.exactness if cut.exact else f"windows, blended ({cut.blend})"
    crs = (info.georeference.crs_wkt or "none").split('"')
    lanes, rows = plan.grid.columns, -(-size.height // cut.segment)
    return [
        ("input", f"{info.path}: {size.height} x {size.width} px, {info.bands} bands of {info.dtype}"),
        ("crs", crs[1] if len(crs) > 1 else crs[0]),
        ("model", f"{card.name} {card.version}: {len(card.legend)} classes, stride {card.stride}"),
        ("bands", ", ".join(f"{b.name} = band {n}" for b, n in zip(card.input.bands, plan.bands, strict=True))),
        ("values", plan.scaling),
        ("result", kind),
        ("way", _describe_way(cut)),
        ("lanes", f"{lanes} of {min(cut.lane, size.width)} px, in {rows} segment{'s' if rows > 1 else ''} each"),
        *([("area", _describe_areas(plan))] if plan.areas else []),
        ("blocks", f"{len(plan.grid)} of {cut.chunk} rows: what an interruption loses at most, in each process"),
        ("cost", f"{prepared.forward_share:.2f} forward passes per pixel"),
        ("memory", f"about {prepared.memory / 2**30:.1f} GiB per process, beside the libraries"),
        ("output", _describe_output(plan)),
        ("disk", describe_disk(folder or Path(info.path).absolute().parent, plan, pyramid=pyramid)),
        (
            "device",
            f"{prepared.device} ({plan.kernel.instructions}), {plan.kernel.precision}, {plan.kernel.threads} threads",
        ),
        ("processes", describe_processes(workers, plan.kernel.threads)),
        ("fingerprint", plan.fingerprint),
        *(("note", note) for note in prepared.notes),
    ]


def to_json(prepared: Prepared, folder: Path | None = None, *, pyramid: bool = False) -> str:
    """What `fcn-batch plan --json` prints: the plan and, as `facts`, what is not part of it. Sizes are in bytes."""
    plan = prepared.plan
    facts = {
        "fingerprint": plan.fingerprint,
        "blocks": len(plan.grid),
        "exactness": plan.exactness,
        "device": prepared.device,
        "passes_per_pixel": prepared.forward_share,
        "memory": prepared.memory,
        "disk_needed": disk_needed(plan, pyramid=pyramid),
        "disk_free": free_room(folder or Path(prepared.info.path).absolute().parent),
        "notes": prepared.notes,
    }
    return json.dumps({**plan.model_dump(mode="json"), "facts": facts}, indent=2)


def _describe_output(plan: Plan) -> str:
    side = plan.inner or plan.cut.chunk
    stored = f"zarr in chunks of {side} px"
    if plan.inner is not None:
        per = (plan.cut.chunk // side) ** 2
        stored += f", {per} in a shard (a file) of {plan.cut.chunk} px, which GDAL reads from 3.13 on"
    sure = "; twice that again in the store of confidences" if plan.confidence else ""
    return f"{plan.input.size.pixels / 1e6:,.1f} MB before compression, in GeoTIFF and in {stored}{sure}"


def _describe_areas(plan: Plan) -> str:
    grid, parts = plan.grid, []
    if plan.area is not None:
        parts.append(f"{len(plan.area.polygons)} polygons")
    if plan.tissue is not None:
        share = min(1.0, plan.tissue.pixels / plan.input.size.pixels)  # its squares reach beyond the borders
        parts.append(f"{100 * share:.0f} % tissue")
    empty = [k for k in range(len(grid)) if not all(area.near(grid[k]) for area in plan.areas)]
    share = sum(grid[k].pixels for k in empty) / plan.input.size.pixels
    return f"{', '.join(parts)}: at least {len(empty)} of {len(grid)} blocks, {100 * share:.0f} %, are not even read"


def _describe_way(cut: Cut) -> str:
    if cut.way == "stream":
        return f"streamed in strips of {cut.tile} rows, with a halo of {cut.overlap} px where a lane or segment ends"
    if cut.way == "tiles":
        return f"tiles: cores of {cut.tile} px with a halo of {cut.overlap} px"
    return f"tiles of {cut.tile} px, overlapping by {cut.overlap} px"
