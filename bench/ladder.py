"""The paper's findings again, on open data: finer strides, other trunks, stages or all at once.

``python -m bench.ladder --data DIR`` trains 33 small networks (about two hours of one core), within a table for the
same number of steps, scores them on the held-out test split, and writes ``bench/ladder.json`` and ``bench/LADDER.md``.
What is in ladder.json already is not trained again. DIR holds the folders ``dubai``, ``nuclei`` and
``banepa_buildings``: configs/models/*.md say where they come from. The page also has the scores of the models that
ship.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.baselines import colour_table, otsu, report, score
from bench.coarser import coarser
from bench.ladder_table import write_table
from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.core.durable import write_whole
from fcn_batch.pipeline.core.metrics import Confusion
from fcn_batch.pipeline.core.recipe import Recipe, read_recipe
from fcn_batch.pipeline.network.device import set_threads
from fcn_batch.pipeline.network.weights import load_model
from fcn_batch.workflows.console.progress import Quiet
from fcn_batch.workflows.learning.labelled import LabelledImage, open_images
from fcn_batch.workflows.learning.models import find_model
from fcn_batch.workflows.learning.scoring import evaluate
from fcn_batch.workflows.learning.train import Order, train

HERE = Path(__file__).parent
SETS = {"aerial": "dubai", "nuclei": "nuclei"}
FOLDERS = {"landcover-world": ".", **SETS, "buildings": "banepa_buildings"}
STRIDES, SEEDS = (32, 16, 8), (1, 2, 3)
STEPS = {"strides": 300, "trunks": 100, "stages": 100}
"""Of each network of a comparison: the paper's main finding gets the most."""
_BITS = {"landcover-world": 6}
"""Of each band in the table of colours; 5 for the others, which have less to learn it from."""
_COARSER = 0.3
"""Metres per pixel that the buildings are scored at too."""
_TRUNKS: dict[str, dict[str, Any]] = {
    "vgg16": {"width": 0.25, "fc_kernel": 7, "fc_channels": 256},
    "alexnet": {"width": 0.5, "fc_kernel": 6, "fc_channels": 256},
    "googlenet": {"fc_channels": 0},
}


@dataclass(frozen=True, slots=True)
class Run:
    """One network to train."""

    data: str
    """A key of SETS."""
    what: str
    """Which comparison it belongs to: strides, trunks or stages."""
    name: str
    """Which side of the comparison."""
    seed: int

    @property
    def key(self) -> str:
        """Tells runs apart."""
        return "/".join(map(str, asdict(self).values()))


def runs() -> Iterator[Run]:
    """All that is compared, one seed after the other, so that an early stop still has every side."""
    for seed in SEEDS:
        for data in SETS:
            yield from (Run(data, "strides", f"FCN-{stride}s", seed) for stride in STRIDES)
        yield from (Run("nuclei", "trunks", trunk, seed) for trunk in _TRUNKS)
        yield from (Run("nuclei", "stages", name, seed) for name in ("staged", "at once"))


def base_recipe(data: str) -> Recipe:
    """The embedded model's recipe; nuclei without the class of boundaries, which no stride of 16 can show."""
    recipe = read_recipe(HERE.parent / "configs" / "models" / f"{data}.toml")
    if data != "nuclei":
        return recipe
    values = recipe.model_dump()
    background, nucleus, _ = values["classes"]
    return Recipe.model_validate({**values, "classes": [background, {**nucleus, "labels": (1, 2)}]})


def recipe_of(run: Run) -> Recipe:
    """The embedded model's recipe with what the comparison changes."""
    values = base_recipe(run.data).model_dump()
    net, schedule = values["architecture"], values["schedule"]
    net["input_upsampling"], steps = 1, STEPS[run.what]
    schedule.update(steps=steps, batch=16, crop=192, evaluate_every=steps, patience=0, seed=run.seed)
    if run.what == "strides":
        net["stride"] = int(run.name.removeprefix("FCN-").removesuffix("s"))
    elif run.what == "trunks":  # from random weights: ImageNet's are at hand for none of the three
        net.update(trunk=run.name, **_TRUNKS[run.name])
        values["start"] = None
        schedule["trunk_rate"] = 1.0
    elif run.name == "staged":
        schedule.update(staged=True, steps=steps // len(STRIDES))
    else:
        net["skip_scales"] = (0.01, 0.0001)
    return Recipe.model_validate(values)


def train_one(run: Run, folder: Path) -> dict[str, Any]:
    """Train and score; what goes into ladder.json."""
    set_threads(1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "model.safetensors")
        train(Order(recipe_of(run), folder / SETS[run.data], output, "cpu"), Quiet())
        metrics = json.loads(Path(scratch, "model.training", "metrics.json").read_text("utf-8"))
    return {**asdict(run), "steps": STEPS[run.what], "seconds": round(time.monotonic() - started), **metrics["test"]}


def ceiling(images: list[LabelledImage], classes: int, stride: int) -> Confusion:
    """What an output of `stride` could reach: the labels of the test split, averaged to it and brought back up."""
    total = Confusion.empty(classes)
    for image in images:
        for part in image.regions["test"]:
            labels = image.read_labels(part)
            total += Confusion.count(labels, coarse(labels, classes, stride), classes)
    return total


def coarse(labels: NDArray[np.uint8], classes: int, stride: int) -> NDArray[np.uint8]:
    """Labels (rows, cols) as cells of `stride` pixels would have them: shares of classes, bilinear, the largest."""
    rows, cols = labels.shape
    down, across = -rows % stride, -cols % stride
    padded = np.pad(labels, ((0, down), (0, across)), constant_values=NODATA)
    cells = padded.reshape(padded.shape[0] // stride, stride, -1, stride)
    best, channel = np.full((rows, cols), -1.0), np.zeros((rows, cols), np.uint8)
    weights = [_bilinear(length, stride)[:size] for length, size in zip(cells.shape[::2], (rows, cols), strict=True)]
    for number in range(classes):
        share = weights[0] @ (cells == number).mean(axis=(1, 3)) @ weights[1].T
        better = share > best
        best[better], channel[better] = share[better], number
    return channel


def _bilinear(cells: int, stride: int) -> NDArray[np.float64]:
    """The matrix of bilinear upsampling along one axis, (cells * stride, cells); edges repeat."""
    position = ((np.arange(cells * stride) + 0.5) / stride - 0.5).clip(0, cells - 1)
    below = np.minimum(position.astype(int), max(cells - 2, 0))
    matrix = np.zeros((cells * stride, cells))
    pixels, rest = np.arange(cells * stride), position - below
    matrix[pixels, below] = 1 - rest
    matrix[pixels, np.minimum(below + 1, cells - 1)] += rest
    return matrix


def ceilings(folder: Path) -> dict[str, dict[str, float]]:
    """Mean IU of the ceiling of each stride on each set's test split."""
    found: dict[str, dict[str, float]] = {}
    for name, place in SETS.items():
        recipe = base_recipe(name)
        images = open_images(recipe, folder / place)
        found[name] = {str(s): round(ceiling(images, len(recipe.classes), s).mean_iu, 4) for s in STRIDES}
    return found


def embedded_models(folder: Path) -> dict[str, dict[str, Any]]:
    """Scores of the models that ship, and of what they have to beat, on the test split of each one's recipe."""
    found: dict[str, dict[str, Any]] = {}
    for name, place in FOLDERS.items():
        recipe = read_recipe(HERE.parent / "configs" / "models" / f"{name}.toml")
        images, classes = open_images(recipe, folder / place), len(recipe.classes)
        model, network = load_model(find_model(name).path)
        table = colour_table(images, classes, len(recipe.images.bands), _BITS.get(name, 5))
        sides = {
            name: evaluate(network, images, model.card.input, classes, "test"),
            "table of colours": score(images, classes, table),
        }
        if name == "nuclei":
            sides["Otsu's threshold"] = score(images, classes, lambda image: np.uint8(1) * otsu(image))
        if name == "buildings":
            with tempfile.TemporaryDirectory() as scratch:
                there = open_images(recipe, coarser(folder / place, _COARSER / model.card.input.gsd_m, Path(scratch)))
                seen = evaluate(network, there, model.card.input, classes, "test")
            sides[f"{name}, resampled to {_COARSER:g} m"] = seen
        found[name] = {side: report(confusion, recipe) for side, confusion in sides.items()}
    return found


def main() -> None:
    """Train what is missing, write the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.ladder", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of the folders dubai, nuclei and banepa_buildings"
    )
    parser.add_argument("--jobs", type=int, default=2, help="networks at once, one thread each")
    options = parser.parse_args()
    store = HERE / "ladder.json"
    known: dict[str, Any] = json.loads(store.read_text("utf-8")) if store.exists() else {"ceilings": {}, "runs": {}}
    known["ceilings"] = known["ceilings"] or ceilings(options.data)
    known["models"] = embedded_models(options.data)
    missing = [run for run in runs() if run.key not in known["runs"]]
    with ProcessPoolExecutor(options.jobs) as pool:
        futures = {pool.submit(train_one, run, options.data): run for run in missing}
        for future in as_completed(futures):
            run = futures[future]
            known["runs"][run.key] = future.result()
            write_whole(store, json.dumps(known, indent=1) + "\n")
            print(f"{run.key}: mean IU {known['runs'][run.key]['mean_iu']:.4f}", flush=True)
    write_table(known, HERE / "LADDER.md")


if __name__ == "__main__":
    main()
