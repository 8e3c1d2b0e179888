"""`fcn-batch train`: a recipe and a folder of data in, a model file with held-out scores out.

recipe -> regions -> random windows -> Batch -> Trainer -> averaged network
                                                    every so often: mean IU over the val strips
network -> scores over the test strips -> ModelCard -> NAME.safetensors
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.classes import NODATA, Legend
from fcn_batch.pipeline.device import choose_device
from fcn_batch.pipeline.errors import OutputError, TrainingError
from fcn_batch.pipeline.fcn import Fcn
from fcn_batch.pipeline.geometry import Window, round_up
from fcn_batch.pipeline.metrics import Confusion
from fcn_batch.pipeline.model_card import Band, InputSpec, ModelCard, Scores
from fcn_batch.pipeline.recipe import Recipe, Schedule
from fcn_batch.pipeline.training import Batch, Trainer, class_weights, seed
from fcn_batch.pipeline.weights import save_model
from fcn_batch.workflows.labelled import LabelledRaster, bf16_disagreement, evaluate

_READ_AHEAD = 8
_PART = 512
"""Side of what is read at once to look at a whole region."""
_TRIES = 4

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Draw:
    """The random numbers of one training image, drawn ahead so that threads cannot change their order."""

    windows: list[Window]
    dice: NDArray[np.float64]


def train(recipe: Recipe, folder: Path, output: Path, *, device: str, overwrite: bool, report: Report) -> Path:
    """Train as `recipe` says on the data in `folder` and write the model to `output`."""
    if output.exists() and not overwrite:
        raise OutputError(f"{output}: exists already; give --overwrite to replace it")
    if not output.absolute().parent.is_dir():
        raise OutputError(f"{output}: there is no folder {output.absolute().parent}; create it first")
    seed(recipe.schedule.seed)
    data = LabelledRaster.open(folder, recipe)
    spec, counts = band_statistics(data, recipe)
    _check_scored(data, recipe)
    network = Fcn(recipe.architecture, len(spec.bands), len(recipe.classes))
    weights = class_weights(counts, recipe.schedule.class_balance)
    trainer = Trainer(network, recipe.schedule, weights, choose_device(device))
    trained = fit(trainer, data, spec, recipe, report)
    test = evaluate(trained, data, spec, recipe, "test")
    card = _card(recipe, spec, network, test)
    cost = bf16_disagreement(trained, data, spec, recipe)
    card = card.model_copy(update={"bf16_disagreement": round(cost, 6)})
    report(f"test: pixel accuracy {test.pixel_accuracy:.4f}, mean IU {test.mean_iu:.4f}")
    save_model(output, trained, card)
    return output


def band_statistics(data: LabelledRaster, recipe: Recipe) -> tuple[InputSpec, NDArray[np.int64]]:
    """Mean and standard deviation of each band over the training strips, and pixels of each class there."""
    total = np.zeros(len(data.bands))
    squares = np.zeros(len(data.bands))
    pixels = 0
    counts = np.zeros(len(recipe.classes), dtype=np.int64)
    for region in recipe.split.regions(data.image.info.size, "train"):
        for part in _parts(region):
            read = data.image.read(part, data.bands)
            values = read.values[:, read.valid].astype(np.float64) / recipe.pair.full_scale
            total += values.sum(axis=1)
            squares += (values**2).sum(axis=1)
            pixels += values.shape[1]
            labels = data.read_labels(part)
            counts += np.bincount(labels[labels != NODATA], minlength=len(counts))
    if not pixels:
        raise TrainingError(f"{data.image.info.path}: no valid pixel in the training strips; check [split]")
    if not counts.sum():
        raise TrainingError(f"{data.labels.info.path}: no labelled pixel in the training strips; check [split]")
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 1e-12))
    named = zip(recipe.pair.bands, mean.tolist(), std.tolist(), strict=True)
    return InputSpec(
        bands=tuple(Band(name=n, mean=m, std=s) for n, m, s in named),
        dtype=cast("Any", data.image.info.dtype),
        full_scale=recipe.pair.full_scale,
        gsd_m=recipe.model.gsd_m,
    ), counts


def _parts(region: Window) -> Iterator[Window]:
    """The region in pieces that fit into memory."""
    for row in range(region.row, region.stop_row, _PART):
        for col in range(region.col, region.stop_col, _PART):
            yield Window(row, col, _PART, _PART).intersection(region)


def _check_scored(data: LabelledRaster, recipe: Recipe) -> None:
    """TrainingError, before any training, when no label could score it."""
    for use in ("val", "test"):
        regions = recipe.split.regions(data.image.info.size, use)
        if not any((data.read_labels(part) != NODATA).any() for region in regions for part in _parts(region)):
            raise TrainingError(f"{data.labels.info.path}: no labelled pixel in the {use} strips; check [split]")


def fit(trainer: Trainer, data: LabelledRaster, spec: InputSpec, recipe: Recipe, report: Report) -> Fcn:
    """Run the schedule; the network with averaged weights. The val strips are watched, and choose nothing.

    (One strip is no fair judge: a class that is nearly absent there decides its mean IU.)
    """
    schedule = recipe.schedule
    losses: list[float] = []

    def after_step(step: int, loss: float) -> None:
        losses.append(loss)
        if step % schedule.evaluate_every and step != schedule.steps:
            return
        val = evaluate(trainer.averaged, data, spec, recipe, "val")
        report(
            f"step {step}/{schedule.steps}: loss {np.mean(losses):.4f}, "
            f"val pixel accuracy {val.pixel_accuracy:.4f}, mean IU {val.mean_iu:.4f}"
        )
        losses.clear()

    trainer.run(batches(data, spec, recipe, trainer.network.stride), after_step)
    return trainer.averaged


def batches(data: LabelledRaster, spec: InputSpec, recipe: Recipe, stride: int) -> Iterator[Batch]:
    """Random windows of the training strips, flipped and jittered at random; read ahead by threads.

    All random numbers are drawn in this thread, in order, so one seed gives one sequence of batches.
    """
    schedule = recipe.schedule
    rng = np.random.default_rng(schedule.seed)
    regions = recipe.split.regions(data.image.info.size, "train")
    smallest = min(min(r.height, r.width) for r in regions)
    side = min(round_up(schedule.crop, stride), smallest // stride * stride)
    if side < stride:
        raise TrainingError(f"the narrowest training strip has {smallest} pixels, the network needs {stride}")
    share = np.array([r.pixels for r in regions], dtype=np.float64)
    share /= share.sum()

    def draw() -> list[Draw]:
        """Chances for one batch: for each image some windows to choose from, and dice for what is done to it."""
        drawn = []
        for _ in range(schedule.batch):
            windows = []
            for index in rng.choice(len(regions), _TRIES, p=share):
                region = regions[index]
                row = region.row + rng.integers(region.height - side + 1)
                col = region.col + rng.integers(region.width - side + 1)
                windows.append(Window(int(row), int(col), side, side))
            drawn.append(Draw(windows, rng.random(4 + len(data.bands))))
        return drawn

    def read(drawn: list[Draw]) -> Batch:
        images, labels = zip(*(_sample(data, spec, one, schedule) for one in drawn), strict=True)
        return Batch(np.stack(images), np.stack(labels))

    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        ahead = [pool.submit(read, draw()) for _ in range(min(_READ_AHEAD, schedule.steps))]
        for step in range(schedule.steps):
            batch = ahead.pop(0).result()
            if step + _READ_AHEAD < schedule.steps:
                ahead.append(pool.submit(read, draw()))
            yield batch


def _sample(
    data: LabelledRaster, spec: InputSpec, drawn: Draw, schedule: Schedule
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Image and labels of the first window with a mix of classes, flipped, turned and jittered by the dice."""
    for window in drawn.windows:
        labels = data.read_labels(window)
        counts = np.bincount(labels[labels != NODATA], minlength=1)
        if counts.any() and counts.max() <= schedule.one_class_at_most * counts.sum():
            break
    image, dice = data.read_image(window, spec), drawn.dice
    if dice[0] < 0.5:
        image, labels = image[:, ::-1], labels[::-1]
    if dice[1] < 0.5:
        image, labels = image[:, :, ::-1], labels[:, ::-1]
    if dice[2] < 0.5:
        image, labels = image.transpose(0, 2, 1), labels.T
    shift = (2 * dice[3] - 1) * schedule.jitter
    gain = 1 + (2 * dice[4:] - 1) * schedule.jitter
    image = image * gain[:, None, None].astype(np.float32) + np.float32(shift)
    return np.ascontiguousarray(image), np.ascontiguousarray(labels)


def _card(recipe: Recipe, spec: InputSpec, network: Fcn, test: Confusion) -> ModelCard:
    names = [c.name for c in recipe.classes]
    return ModelCard(
        name=recipe.model.name,
        version=recipe.model.version,
        summary=recipe.model.summary,
        architecture=recipe.architecture,
        stride=network.stride,
        halo=network.halo,
        input=spec,
        legend=Legend(classes=recipe.classes),
        training=recipe.data,
        scores=Scores(
            split=f"strips {list(recipe.split.test)} of {recipe.split.width} columns, held out",
            pixel_accuracy=round(test.pixel_accuracy, 4),
            mean_iu=round(test.mean_iu, 4),
            class_iu={n: round(float(v), 4) for n, v in zip(names, test.iu, strict=True) if np.isfinite(v)},
            baseline=recipe.model.baseline,
        ),
    )
