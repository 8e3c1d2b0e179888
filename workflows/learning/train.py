"""`fcn-batch train`: a recipe and a folder of data in, a model file with held-out scores out.

recipe -> images, labels, regions -> random windows -> Batch -> Trainer -> averaged network, stage after stage
                                                       every so often: mean IU over the val regions, a checkpoint
network -> scores over the test regions -> ModelCard -> NAME.safetensors, and beside it NAME.training/

`NAME.training/checkpoint.pt` holds all that the next step depends on. After a crash the same command goes on from it,
and comes to the same weights as if nothing had happened.
"""

import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fcn_batch.pipeline.core.claims import only_one
from fcn_batch.pipeline.core.errors import OutputError, TrainingError
from fcn_batch.pipeline.core.metrics import Confusion
from fcn_batch.pipeline.core.model_card import InputSpec, ModelCard, Scores
from fcn_batch.pipeline.core.places import resolve
from fcn_batch.pipeline.core.recipe import Recipe
from fcn_batch.pipeline.network.device import choose_device, keep_pages
from fcn_batch.pipeline.network.distributed import Peers, joined, local_device
from fcn_batch.pipeline.network.fcn import Fcn, build_network
from fcn_batch.pipeline.network.start import start_from
from fcn_batch.pipeline.network.surgery import grow
from fcn_batch.pipeline.network.training import STORED, Trainer, class_weights, round_weights, seed
from fcn_batch.pipeline.network.weights import save_model
from fcn_batch.workflows.console.progress import STEPS, Quiet, RunProgress
from fcn_batch.workflows.learning.diary import Diary
from fcn_batch.workflows.learning.labelled import LabelledImage, band_statistics, open_images
from fcn_batch.workflows.learning.models import check_model_output
from fcn_batch.workflows.learning.samples import draw_samples
from fcn_batch.workflows.learning.sampling import Sampler
from fcn_batch.workflows.learning.scoring import bf16_disagreement, evaluate

_LEAST_SECONDS = 30.0
_SHARE_OF_TIME = 0.05
"""Of the training, for writing checkpoints: those of large networks are written less often."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be trained, where it lies and where it goes."""

    recipe: Recipe
    folder: Path
    output: Path
    device: str = "auto"
    epochs: float | None = None
    """Instead of the recipe's steps: so many times the pixels of the training regions, for each stage."""
    overwrite: bool = False
    restart: bool = False

    @property
    def beside(self) -> Path:
        """The folder for checkpoint, curves, samples and metrics."""
        return self.output.with_suffix(".training")


@dataclass(frozen=True, slots=True)
class Data:
    """What is learnt from."""

    images: list[LabelledImage]
    spec: InputSpec
    weights: Any
    """Loss weight of each class."""


def train(order: Order, progress: RunProgress) -> Path | None:
    """Train as the recipe says and write the model; the path of the model file.

    Started by torchrun, all processes train together; the first one writes, and the others give None.
    """
    check_model_output(order.output, overwrite=order.overwrite)
    device = local_device(choose_device(order.device))
    with ExitStack() as stack:
        peers = stack.enter_context(joined(device))
        keep_pages()
        if peers.leads:
            _make_folder(order.beside)
            stack.callback(_remove_if_empty, order.beside)
            stack.enter_context(only_one(order.beside / ".lock"))
        images = open_images(order.recipe, order.folder)
        spec, counts = band_statistics(images, order.recipe)
        data = Data(images, spec, class_weights(counts, order.recipe.schedule.class_balance))
        heard = progress if peers.leads else Quiet()
        training = _Training(_with_epochs(order, data), data, device, peers, heard)
        stack.callback(heard.stop)
        network = training.run()
        if not peers.leads:
            return None
        _finish(training, network)
    return order.output


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made: {error.strerror}; choose another -o FILE") from error


def _remove_if_empty(folder: Path) -> None:
    """A training that was refused leaves nothing behind."""
    with suppress(OSError):
        folder.rmdir()


def _with_epochs(order: Order, data: Data) -> Order:
    """The order with epochs turned into steps."""
    if order.epochs is None:
        return order
    recipe = order.recipe
    network = build_network(recipe.architecture, len(data.spec.bands), len(recipe.classes))
    sampler = Sampler(data.images, data.spec, recipe, network.stride)
    steps = max(1, round(order.epochs * sampler.steps_of_an_epoch))
    schedule = recipe.schedule.model_copy(update={"steps": steps})
    return replace(order, recipe=recipe.model_copy(update={"schedule": schedule}))


class _Training:
    """The stages of one training, from its checkpoint on if there is one."""

    def __init__(self, order: Order, data: Data, device: str, peers: Peers, progress: RunProgress) -> None:
        self.order, self.recipe, self.data = order, order.recipe, data
        self._device, self._peers, self._progress = device, peers, progress
        self.diary = Diary.open(order.beside, self.recipe.sha256, restart=order.restart)
        self._written, self._cost = time.monotonic(), 0.0

    def run(self) -> Any:
        """Train stage after stage; the last one's network."""
        schedule, stages = self.recipe.schedule, self.recipe.stages
        done = self.diary.stage * schedule.steps + self.diary.steps
        if done:
            self._progress.note(f"going on after step {self.diary.steps} of stage {self.diary.stage + 1}")
        self._progress.start(f"training {self.recipe.model.name}", len(stages) * schedule.steps, done, STEPS)
        network = None
        for stage in range(self.diary.stage, len(stages)):
            trainer = self._begin(stage, network)
            if self.diary.trainer is not None:
                trainer.restore(self.diary.trainer)
                self.diary.trainer = None
            self._stage(trainer)
            network = self._result(trainer)
            self.diary.next_stage()
        self._progress.stop()
        return network

    def _begin(self, stage: int, coarser: Any) -> Trainer:
        """A trainer for the network of `stage`, which starts from the coarser one or from given weights."""
        recipe = self.recipe
        seed(recipe.schedule.seed, stage)
        network = build_network(recipe.stages[stage], len(self.data.spec.bands), len(recipe.classes))
        if isinstance(coarser, Fcn) and isinstance(network, Fcn):
            grow(coarser, network)
        elif recipe.start is not None and self.diary.trainer is None:
            fresh = start_from(network, resolve(recipe.start, self.order.folder), spec=self.data.spec)
            self._progress.note(f"starting from {recipe.start}; newly made: {', '.join(fresh) or 'nothing'}")
        return Trainer(network, recipe.schedule, self.data.weights, self._device, peers=self._peers, stage=stage)

    def _stage(self, trainer: Trainer) -> None:
        schedule = self.recipe.schedule
        stride = trainer.network.stride
        sampler = Sampler(self.data.images, self.data.spec, self.recipe, stride, peers=self._peers)
        if self.diary.stage_over:
            return
        for batch in sampler.batches(trainer.stage, trainer.steps, schedule.steps):
            try:
                loss = trainer.step(batch)
            except TrainingError as error:
                self._save(trainer)
                raise TrainingError(f"{error} (batch of {'; '.join(batch.origins)}). {self._kept(trainer)}") from error
            self.diary.losses.append(loss)
            self._progress.say(self.diary.told)
            if trainer.steps % schedule.evaluate_every == 0 or trainer.steps == schedule.steps:
                self._look(trainer)
                if self._peers.sum(float(self.diary.give_up(schedule.patience))):
                    break
            self._progress.advance(1)
            self._save(trainer, only_if_due=True)
        self.diary.stage_over = True
        self._save(trainer)

    def _kept(self, trainer: Trainer) -> str:
        return f"The weights of step {trainer.steps} are kept in {self.order.beside}; --restart begins anew"

    def _look(self, trainer: Trainer) -> None:
        """Score the averaged network on the val regions."""
        if not self._peers.leads:
            return
        val = evaluate(trainer.averaged, self.data.images, self.data.spec, len(self.recipe.classes), "val")
        recent = self.diary.losses[-self.recipe.schedule.evaluate_every :]
        self.diary.look(trainer.steps, float(np.mean(recent)), val, trainer.averaged.state_dict)
        self._progress.note(
            f"stage {trainer.stage + 1}, step {trainer.steps}: loss {np.mean(recent):.4f}, "
            f"val pixel accuracy {val.pixel_accuracy:.4f}, mean IU {val.mean_iu:.4f}"
        )

    def _save(self, trainer: Trainer, *, only_if_due: bool = False) -> None:
        now = time.monotonic()
        due = now - self._written >= max(_LEAST_SECONDS, self._cost / _SHARE_OF_TIME)
        if self._peers.leads and (due or not only_if_due):
            self.diary.save(trainer.state())
            self._written = time.monotonic()
            self._cost = self._written - now

    def _result(self, trainer: Trainer) -> Any:
        """The stage's network: the best one by the val regions when there is patience, else the last."""
        network = trainer.averaged
        if self.recipe.schedule.patience and self.diary.best is not None:
            network.load_state_dict(self.diary.best)
        return network.eval()


def _finish(training: _Training, network: Any) -> None:
    """Score the network as it will be stored, and write everything."""
    order, recipe, data = training.order, training.recipe, training.data
    round_weights(network, recipe.model.weights)
    test = evaluate(network, data.images, data.spec, len(recipe.classes), "test")
    card = _card(recipe, data, network, test)
    report = {"model": recipe.model.name, "recipe": recipe.sha256, "test": _numbers(test, recipe)}
    training.diary.report(report)
    draw_samples(order.beside, network, data.images, data.spec, recipe.legend)
    save_model(order.output, network, card, dtype=STORED[recipe.model.weights])
    training.diary.close()


def _numbers(confusion: Confusion, recipe: Recipe) -> dict[str, Any]:
    iu = {c.name: None if np.isnan(v) else float(v) for c, v in zip(recipe.classes, confusion.iu, strict=True)}
    return {
        "pixel_accuracy": confusion.pixel_accuracy,
        "mean_accuracy": confusion.mean_accuracy,
        "mean_iu": confusion.mean_iu,
        "frequency_weighted_iu": confusion.frequency_weighted_iu,
        "iu": iu,
    }


def _card(recipe: Recipe, data: Data, network: Any, test: Confusion) -> ModelCard:
    numbers = _numbers(test, recipe)
    files = sum(bool(image.regions["test"]) for image in data.images)
    pixels = sum(region.pixels for image in data.images for region in image.regions["test"])
    return ModelCard(
        name=recipe.model.name,
        version=recipe.model.version,
        summary=recipe.model.summary,
        architecture=network.architecture,
        stride=network.stride,
        halo=network.halo,
        phase=network.phase,
        input=data.spec,
        legend=recipe.legend,
        training=recipe.data,
        scores=Scores(
            split=f"held out by {recipe.split.by}: {pixels / 1e6:.1f} MPx of {files} images",
            pixel_accuracy=round(test.pixel_accuracy, 4),
            mean_iu=round(test.mean_iu, 4),
            mean_accuracy=round(test.mean_accuracy, 4),
            frequency_weighted_iu=round(test.frequency_weighted_iu, 4),
            class_iu={name: round(v, 4) for name, v in numbers["iu"].items() if v is not None},
            baseline=recipe.model.baseline,
        ),
        bf16_disagreement=round(bf16_disagreement(network, data.images, data.spec), 6),
    )
