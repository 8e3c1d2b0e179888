"""What a run says of itself when it is done: `NAME.run.json`, and the summary on standard error."""

import platform
from collections import Counter, defaultdict
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from fcn_batch.pipeline.classes import NODATA
from fcn_batch.pipeline.journal import Receipt
from fcn_batch.workflows.plan import Prepared

_VERSIONS_OF = ("numpy", "torch", "rasterio", "pyproj", "zarr", "dask")


def make_report(prepared: Prepared, made: list[str], receipts: Iterable[Receipt]) -> dict[str, Any]:
    """Classes, cost, versions, the plan and the blocks' hashes, ready for JSON; the same for every run of one plan.

    `made`: names of the outputs.
    """
    plan = prepared.plan
    done = sorted(receipts, key=lambda r: r.block)  # one order, so that sums have the same bits
    return {
        "complete": True,
        "fingerprint": plan.fingerprint,
        "exactness": "exact" if plan.cut.exact else "approximate",
        "precision": plan.kernel.precision,
        "outputs": made,
        "classes": _classes(prepared, done),
        "nodata_pixels": sum(r.pixels.get(NODATA, 0) for r in done),
        "notes": prepared.notes + _notes_on_memory(plan.cut.tile, done),
        "blocks": len(done),
        "forward_passes_per_pixel": round(sum(r.forwarded for r in done) / plan.input.size.pixels, 4),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _VERSIONS_OF}},
        "plan": plan.model_dump(mode="json"),
        "journal": {
            "sha256": [r.sha256 for r in done],
            "confidence_sha256": [r.confidence_sha256 for r in done] if plan.confidence else None,
        },
    }


def _notes_on_memory(tile: int, receipts: list[Receipt]) -> list[str]:
    lower = sorted({r.tile for r in receipts if r.tile != tile})
    if not lower:
        return []
    return [
        f"memory ran out: some rows were done in strips of {lower[0]} instead of {tile}; the same classes but at ties"
    ]


def summary(report: dict[str, Any]) -> list[str]:
    """A table of the classes' shares and areas, a line each."""
    lines = []
    for entry in report["classes"]:
        area = f"{entry['area_km2']:16,.2f} km²" if entry["area_km2"] is not None else ""
        lines.append(f"  {entry['name']:<24} {100 * entry['share']:6.2f} % {entry['pixels']:14,} px {area}")
    lines.append(f"  {'no data':<24} {'':8} {report['nodata_pixels']:14,} px")
    return lines


def _classes(prepared: Prepared, receipts: list[Receipt]) -> list[dict[str, Any]]:
    pixels: Counter[int] = Counter()
    areas: defaultdict[int, float] = defaultdict(float)
    for receipt in receipts:
        pixels.update(receipt.pixels)
        for class_id, area in (receipt.area_m2 or {}).items():
            areas[class_id] += area
    known = sum(count for class_id, count in pixels.items() if class_id != NODATA)
    located = all(receipt.area_m2 is not None for receipt in receipts)
    return [
        {
            "id": c.id,
            "name": c.name,
            "colour": c.colour,
            "pixels": pixels[c.id],
            "share": pixels[c.id] / known if known else 0.0,
            "area_km2": areas[c.id] / 1e6 if located else None,
        }
        for c in prepared.model.card.legend.classes
    ]
