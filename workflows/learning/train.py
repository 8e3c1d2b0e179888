"""`fcn-batch train`: a recipe and a folder of data in, a model file with held-out scores out.

recipe -> images, labels, regions -> random windows -> Batch -> Trainer -> averaged network, stage after stage
                                                       every so often: mean IU over the val regions, a checkpoint
network -> scores over the test regions -> ModelCard -> NAME.safetensors, and beside it NAME.training/

`NAME.training/checkpoint.pt` holds all that the next step depends on. After a crash the same command goes on from it,
and comes to the same weights as if nothing had happened.
"""

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fcn_batch.pipeline.core.claims import only_one
from fcn_batch.pipeline.core.errors import OutputError, TrainingError
from fcn_batch.pipeline.core.location import resolve
from fcn_batch.pipeline.core.metrics import Confusion
from fcn_batch.pipeline.core.model_card import InputSpec, ModelCard, Scores
from fcn_batch.pipeline.core.recipe import Recipe
from fcn_batch.pipeline.network.device import choose_device, keep_pages
from fcn_batch.pipeline.network.distributed import Peers, joined, local_device
from fcn_batch.pipeline.network.fcn import Fcn, build_network
from fcn_batch.pipeline.network.start import grow, start_from
from fcn_batch.pipeline.network.training import STORED, Trainer, class_weights, round_weights, seed
from fcn_batch.pipeline.network.weights import save_model
from fcn_batch.workflows.console.progress import STEPS, Quiet, RunProgress
from fcn_batch.workflows.learning.history import History
from fcn_batch.workflows.learning.labelled import LabelledImage, band_statistics, label_counts, open_images
from fcn_batch.workflows.learning.models import check_model_output
from fcn_batch.workflows.learning.sampling import Sampler
from fcn_batch.workflows.learning.scoring import bf16_disagreement, draw_samples, evaluate

_LEAST_SECONDS = 30.0
_SHARE_OF_TIME = 0.05
"""Share of the training's time for checkpoints: those of large networks are written less often."""


@dataclass(frozen=True, slots=True)
class Order:
    """A training: its recipe, its data and its output."""

    recipe: Recipe
    folder: Path
    output: Path
    device: str = "auto"
    epochs: float | None = None
    """Times the pixels of the training regions are seen in each stage, in place of the recipe's steps."""
    overwrite: bool = False
    restart: bool = False

    @property
    def beside(self) -> Path:
        """The folder for checkpoint, curves, samples and metrics."""
        return self.output.with_suffix(".training")


def train(order: Order, progress: RunProgress) -> Path | None:
    """Train as the recipe says, write the model and return the path of its file.

    Started by torchrun, all processes train together; the first one writes, and the others return None.
    """
    check_model_output(order.output, overwrite=order.overwrite)
    device = local_device(choose_device(order.device))
    with ExitStack() as stack:
        peers = stack.enter_context(joined(device))
        keep_pages()
        if peers.leads:
            try:
                stack.enter_context(only_one(order.beside.with_suffix(".lock")))
            except OSError as error:
                reason = error.strerror
                raise OutputError(
                    "output-unwritable", "{path} ({reason}): choose another -o FILE", path=order.output, reason=reason
                ) from error
        images = open_images(order.recipe, order.folder)
        spec = band_statistics(images, order.recipe)
        training = _Training(order, images, spec, device, peers, progress if peers.leads else Quiet())
        if peers.leads:
            order.beside.mkdir(exist_ok=True)
        stack.callback(training.progress.stop)
        network = training.run()
        if not peers.leads:
            return None
        training.finish(network)
    return order.output


class _Training:
    """The stages of one training, from its checkpoint on if there is one."""

    def __init__(
        self,
        order: Order,
        images: list[LabelledImage],
        spec: InputSpec,
        device: str,
        peers: Peers,
        progress: RunProgress,
    ) -> None:
        self.order, self.recipe, self.images, self.spec = order, order.recipe, images, spec
        self.device, self.peers, self.progress = device, peers, progress
        if order.epochs is not None:
            stride = build_network(self.recipe.architecture, len(spec.bands), len(self.recipe.classes)).stride
            steps = max(1, round(order.epochs * self._sampler(stride).steps_of_an_epoch))
            schedule = self.recipe.schedule.model_copy(update={"steps": steps})
            self.recipe = self.recipe.model_copy(update={"schedule": schedule})
        counts = label_counts(images, "train")[: len(self.recipe.classes)]
        self.weights = class_weights(counts, self.recipe.schedule.class_balance)
        self.history = History.open(order.beside, self.recipe.sha256, restart=order.restart)
        self._written, self._cost = time.monotonic(), 0.0

    def _sampler(self, stride: int) -> Sampler:
        return Sampler(self.images, self.spec, self.recipe, stride, peers=self.peers)

    def run(self) -> Any:
        """Train stage after stage and return the last one's network."""
        history, steps, stages = self.history, self.recipe.schedule.steps, self.recipe.stages
        done = history.stage * steps + history.steps
        if done:
            self.progress.note(f"going on after step {history.steps} of stage {history.stage + 1}")
        self.progress.start(f"training {self.recipe.model.name}", len(stages) * steps, done, STEPS)
        network = None
        for stage in range(history.stage, len(stages)):
            trainer = self._begin(stage, network)
            if history.trainer is not None:
                trainer.restore(history.trainer)
            if not history.stage_over:
                self._stage(trainer)
            network = trainer.averaged
            if self.recipe.schedule.patience and history.best is not None:
                network.load_state_dict(history.best)
            network.eval()
            history.next_stage()
        self.progress.stop()
        return network

    def _begin(self, stage: int, coarser: Any) -> Trainer:
        """Return a trainer for the network of `stage`, which starts from the coarser one or from given weights."""
        recipe = self.recipe
        seed(recipe.schedule.seed, stage)
        network = build_network(recipe.stages[stage], len(self.spec.bands), len(recipe.classes))
        if isinstance(coarser, Fcn) and isinstance(network, Fcn):
            grow(coarser, network)
        elif recipe.start is not None and self.history.trainer is None:
            fresh = start_from(network, resolve(recipe.start, self.order.folder), spec=self.spec)
            self.progress.note(f"starting from {recipe.start}; newly made: {', '.join(fresh) or 'nothing'}")
        return Trainer(network, recipe.schedule, self.weights, self.device, peers=self.peers, stage=stage)

    def _stage(self, trainer: Trainer) -> None:
        schedule, history = self.recipe.schedule, self.history
        for batch in self._sampler(trainer.network.stride).batches(trainer.stage, trainer.steps, schedule.steps):
            try:
                loss = trainer.step(batch)
            except TrainingError:
                self._save(trainer)  # the weights before the step
                raise
            history.losses[-1].append(loss)
            self.progress.say(history.summary)
            if trainer.steps % schedule.evaluate_every == 0 or trainer.steps == schedule.steps:
                self._look(trainer)
                if self.peers.sum(float(history.is_stuck(schedule.patience))):
                    break
            self.progress.advance(1)
            self._save(trainer, only_if_due=True)
        history.stage_over = True
        self._save(trainer)

    def _look(self, trainer: Trainer) -> None:
        """Score the averaged network on the val regions."""
        if not self.peers.leads:
            return
        val = evaluate(trainer.averaged, self.images, self.spec, len(self.recipe.classes), "val")
        loss = float(np.mean(self.history.losses[-1][-self.recipe.schedule.evaluate_every :]))
        self.history.look(loss, val, trainer.averaged.state_dict())
        self.progress.note(
            f"stage {trainer.stage + 1}, step {trainer.steps}: loss {loss:.4f}, "
            f"val pixel accuracy {val.pixel_accuracy:.4f}, mean IU {val.mean_iu:.4f}"
        )

    def _save(self, trainer: Trainer, *, only_if_due: bool = False) -> None:
        now = time.monotonic()
        due = now - self._written >= max(_LEAST_SECONDS, self._cost / _SHARE_OF_TIME)
        if self.peers.leads and (due or not only_if_due):
            self.history.save(trainer.state())
            self._written = time.monotonic()
            self._cost = self._written - now

    def finish(self, network: Any) -> None:
        """Score the network as it will be stored, and write everything."""
        order, recipe = self.order, self.recipe
        round_weights(network, recipe.model.weights)
        test = evaluate(network, self.images, self.spec, len(recipe.classes), "test")
        numbers = _numbers(test, recipe)
        self.history.report({"model": recipe.model.name, "recipe": recipe.sha256, "test": numbers})
        draw_samples(order.beside, network, self.images, self.spec, recipe.legend)
        save_model(order.output, network, self._card(network, numbers), dtype=STORED[recipe.model.weights])
        self.history.close()

    def _card(self, network: Any, numbers: dict[str, Any]) -> ModelCard:
        recipe = self.recipe
        files = [image.regions["test"] for image in self.images if image.regions["test"]]
        pixels = sum(region.pixels for regions in files for region in regions)
        iu = {name: round(value, 4) for name, value in numbers["iu"].items() if value is not None}
        return ModelCard(
            name=recipe.model.name,
            version=recipe.model.version,
            summary=recipe.model.summary,
            architecture=network.architecture,
            stride=network.stride,
            halo=network.halo,
            phase=network.phase,
            input=self.spec,
            legend=recipe.legend,
            training=recipe.data,
            scores=Scores(
                split=f"held out by {recipe.split.by}: {pixels / 1e6:.1f} MPx of {len(files)} images",
                class_iu=iu,
                baseline=recipe.model.baseline,
                **{name: round(value, 4) for name, value in numbers.items() if name != "iu"},
            ),
            bf16_disagreement=round(bf16_disagreement(network, self.images, self.spec), 6),
        )


def _numbers(confusion: Confusion, recipe: Recipe) -> dict[str, Any]:
    iu = {c.name: None if np.isnan(v) else float(v) for c, v in zip(recipe.classes, confusion.iu, strict=True)}
    return {**confusion.summary, "iu": iu}
