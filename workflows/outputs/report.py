"""What a run says of itself when it is done: `NAME.run.json`, and the summary on standard error."""

import platform
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

from fcn_batch.pipeline.core.classes import NODATA, Legend
from fcn_batch.pipeline.core.geometry import round_up
from fcn_batch.pipeline.core.journal import Receipt
from fcn_batch.pipeline.core.plan import Plan

_MOST_DIFFERENCE = 0.001
"""Share of pixels that both rules for nodata may judge differently before it is worth a warning."""
_VERSIONS_OF = ("numpy", "torch", "rasterio", "pyproj", "zarr", "dask")


def make_report(
    plan: Plan, legend: Legend, notes: Sequence[str], made: list[str], receipts: Iterable[Receipt]
) -> dict[str, Any]:
    """Classes, cost, versions, the plan and the blocks' hashes, ready for JSON; the same for every run of one plan.

    `made`: names of the outputs.
    """
    done = sorted(receipts, key=lambda r: r.block)  # one order, so that sums have the same bits
    return {
        "complete": True,
        "fingerprint": plan.fingerprint,
        "exactness": plan.exactness,
        "precision": plan.kernel.precision,
        "outputs": made,
        "classes": _classes(legend, done),
        "nodata_pixels": sum(r.pixels.get(NODATA, 0) for r in done),
        "nodata": _nodata(plan, done),
        "padded": {
            "rows": round_up(plan.input.height, plan.cut.stride) - plan.input.height,
            "columns": round_up(plan.input.width, plan.cut.stride) - plan.input.width,
        },
        "skipped_pixels": sum(sum(r.pixels.values()) for r in done if not r.forwarded and set(r.pixels) <= {NODATA}),
        "unreadable": _unreadable(done),
        "notes": [
            *notes,
            *_notes_on_nodata(plan, done),
            *_notes_on_memory(plan.cut.tile, done),
            *_notes_on_mixing(done),
        ],
        "blocks": len(done),
        "forward_passes_per_pixel": round(sum(r.forwarded for r in done) / plan.input.size.pixels, 4),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _VERSIONS_OF}},
        "plan": plan.model_dump(mode="json"),
        "journal": {
            "sha256": [r.sha256 for r in done],
            "confidence_sha256": [r.confidence_sha256 for r in done] if plan.confidence else None,
        },
    }


def _nodata(plan: Plan, receipts: Sequence[Receipt]) -> dict[str, Any]:
    """Return what decided which pixels have data, and why the others have none."""
    why: Counter[str] = Counter()
    for receipt in receipts:
        why.update(receipt.missing)
    return {
        "values": plan.input.nodata,
        "rule": plan.input.nodata_rule,
        "why": dict(sorted(why.items())),
        "rules_differ_pixels": sum(receipt.rules_differ for receipt in receipts),
    }


def _notes_on_nodata(plan: Plan, receipts: Sequence[Receipt]) -> list[str]:
    """Return a warning where it matters which rule for several bands is taken."""
    share = sum(receipt.rules_differ for receipt in receipts) / plan.input.size.pixels
    if share <= _MOST_DIFFERENCE:
        return []
    taken, other = ("are data", "any") if plan.input.nodata_rule == "all" else ("have no class", "all")
    note = f"{100 * share:.1f} % of the pixels have the nodata value in some bands only: they {taken}"
    return [f"{note}; --nodata-rule {other} takes them the other way"]


def _notes_on_memory(tile: int, receipts: list[Receipt]) -> list[str]:
    lower = sorted({r.tile for r in receipts if r.tile != tile})
    if not lower:
        return []
    return [
        f"memory ran out: some rows were done in strips of {lower[0]} instead of {tile}; the same classes but at ties"
    ]


def _notes_on_mixing(receipts: list[Receipt]) -> list[str]:
    kinds = Counter(difference for receipt in receipts for difference in receipt.mixed)
    return [
        f"{count} blocks were computed by another kind of machine ({difference}): the same classes but at ties"
        for difference, count in sorted(kinds.items())
    ]


def _unreadable(receipts: list[Receipt]) -> list[dict[str, int]]:
    """Parts of the input that could not be read, each once."""
    windows = sorted({window for receipt in receipts for window in receipt.unreadable})
    return [dict(zip(("row", "col", "height", "width"), window, strict=True)) for window in windows]


def summary(report: dict[str, Any]) -> list[str]:
    """A table of the classes' shares and areas, a line each."""
    lines = []
    for entry in report["classes"]:
        area = f"{entry['area_km2']:16,.2f} km²" if entry["area_km2"] is not None else ""
        lines.append(f"  {entry['name']:<24} {100 * entry['share']:6.2f} % {entry['pixels']:14,} px {area}")
    why = ", ".join(f"{reason} {count:,}" for reason, count in report["nodata"]["why"].items())
    lines.append(f"  {'no data':<24} {'':8} {report['nodata_pixels']:14,} px{f' ({why})' if why else ''}")
    if skipped := report["skipped_pixels"]:
        share = skipped / (report["nodata_pixels"] + sum(entry["pixels"] for entry in report["classes"]))
        lines.append(f"  {'skipped as empty':<24} {100 * share:6.2f} % {skipped:14,} px in whole blocks")
    if unreadable := report["unreadable"]:
        pixels = sum(window["height"] * window["width"] for window in unreadable)
        lines.append(f"  {'could not be read':<24} {'':8} {pixels:14,} px in {len(unreadable)} parts of the input")
    if (timing := report["timing"])["pixels_per_s"]:
        of_all, of_classified = timing["pixels_per_s"], timing["classified_pixels_per_s"]
        classified = f", {of_classified / 1e6:.2f} MPx/s of pixels that have a class" if of_classified != of_all else ""
        lines.append(f"  {of_all / 1e6:.2f} MPx/s{classified}")
    return lines


def _classes(legend: Legend, receipts: list[Receipt]) -> list[dict[str, Any]]:
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
        for c in legend.classes
    ]
