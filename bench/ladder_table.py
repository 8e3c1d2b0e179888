"""LADDER.md from ladder.json."""

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fcn_batch.pipeline.core.durable import write_whole

_NUMBERS = {
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "mean_iu": "mean IU",
    "frequency_weighted_iu": "f.w. IU",
}

_HEAD = """# The ladder: what the paper found, on open data

Made by `python -m bench.ladder`; every number is of the held-out test split. Within a table each network was trained
for the same number of steps on windows of 192 pixels, sixteen a step, on one CPU thread; seeds {seeds}. A cell is
the mean over the seeds and, behind ±, half the distance from the worst to the best. These are small budgets: the
embedded models train longer (at the end of the page). For nuclei, the boundary class counts as nucleus. The ceiling is
what the labels themselves would score after averaging to cells of the stride and bilinear upsampling; networks can be
above it, because their coarse scores need not be averages.

An ordering is called *carried* when the worst seed of one side is better than the best seed of the other.
"""


def write_table(known: dict[str, Any], path: Path) -> None:
    """Write the page; `known` is the contents of ladder.json."""
    found = list(known["runs"].values())
    if not found:
        raise ValueError("no run to show: ladder.json is empty")
    seeds = ", ".join(sorted({str(run["seed"]) for run in found}))
    parts = [_HEAD.format(seeds=seeds)]
    for data in sorted({run["data"] for run in found if run["what"] == "strides"}):
        rows = _of(found, "strides", data)
        limits = known["ceilings"][data]
        title = f"## Strides: {data}\n\nTrunk EfficientNet-Lite0, ImageNet weights."
        parts.append(_table(title, rows, ("ceiling of mean IU", {f"FCN-{s}s": f"{v:.3f}" for s, v in limits.items()})))
    title = (
        "## Trunks: nuclei\n\nThe paper's three families, FCN-8s, narrow (VGG16 at a quarter of its width, AlexNet at "
        "half, GoogLeNet whole), from random weights. GoogLeNet is torchvision's, with batch norm; the other two have "
        "none, which costs them most of so short a training."
    )
    parts.append(_table(title, _of(found, "trunks", "nuclei"), None))
    title = (
        "## Stages: nuclei\n\nFCN-8s by way of FCN-32s and FCN-16s, a third of the steps each; or all at once, with "
        "the skips scaled by 0.01 and 0.0001. The FCN-8s of the tables above was trained at once without scales."
    )
    parts.append(_table(title, _of(found, "stages", "nuclei"), None))
    parts += [_models(name, sides) for name, sides in known["models"].items()]
    write_whole(path, "\n".join(part for part in parts if part))


def _models(name: str, sides: dict[str, dict[str, Any]]) -> str:
    """A model that ships, beside what it has to beat."""
    classes = list(sides[name]["iu"])
    heads = ["", *_NUMBERS.values(), *(f"IU {one}" for one in classes)]
    lines = [f"## The model `{name}`", "", f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for side, numbers in sides.items():
        cells = [side, *(f"{numbers[key]:.3f}" for key in _NUMBERS), *(f"{numbers['iu'][one]:.3f}" for one in classes)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _of(found: Iterable[dict[str, Any]], what: str, data: str) -> dict[str, list[dict[str, Any]]]:
    """Runs of a comparison by side, in order of first appearance."""
    sides: dict[str, list[dict[str, Any]]] = {}
    order = ("FCN-32s", "FCN-16s", "FCN-8s", "vgg16", "alexnet", "googlenet", "staged", "at once")
    for run in sorted(found, key=lambda r: (order.index(r["name"]), r["seed"])):
        if (run["what"], run["data"]) == (what, data):
            sides.setdefault(run["name"], []).append(run)
    return sides


def _table(title: str, sides: dict[str, list[dict[str, Any]]], extra: tuple[str, dict[str, str]] | None) -> str:
    if not sides:
        return ""
    heads = ["", *_NUMBERS.values(), "mean IU of each seed", *([extra[0]] if extra else []), "seconds"]
    budget = max(run["steps"] for runs in sides.values() for run in runs)
    lines = [title, f"{budget} steps.", "", f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for name, runs in sides.items():
        cells = [name, *(_spread([run[key] for run in runs]) for key in _NUMBERS)]
        cells.append(", ".join(f"{run['mean_iu']:.3f}" for run in runs))
        if extra:
            cells.append(extra[1][name])
        cells.append(f"{np.mean([run['seconds'] for run in runs]):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_orderings(sides), ""])


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ± {(max(values) - min(values)) / 2:.3f}"


def _orderings(sides: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Which neighbours, from best to worst, the spread lets us tell apart."""
    ranked = sorted(sides, key=lambda name: -np.mean([run["mean_iu"] for run in sides[name]]))
    lines = []
    for better, worse in pairwise(ranked):
        low = min(run["mean_iu"] for run in sides[better])
        high = max(run["mean_iu"] for run in sides[worse])
        lines.append(
            f"- {better} above {worse} in mean IU: {'carried' if low > high else 'not carried by the spread'}."
        )
    return lines
