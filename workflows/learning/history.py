"""The history of a training: its losses, its looks at the val split, its best network; and the checkpoint."""

import csv
import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fcn_batch.pipeline.core.durable import write_whole
from fcn_batch.pipeline.core.errors import MismatchError
from fcn_batch.pipeline.core.metrics import Confusion
from fcn_batch.pipeline.network.training import from_bytes, to_bytes
from fcn_batch.workflows.learning.charts import curves_png

_CHECKPOINT = "checkpoint.pt"
_RECENT = 50
"""Steps whose mean loss is shown."""


@dataclass(frozen=True, slots=True)
class Look:
    """Scores on the val split at one step."""

    stage: int
    step: int
    loss: float
    """Mean over the steps since the last look."""
    pixel_accuracy: float
    mean_iu: float


@dataclass(slots=True)
class History:
    """Grows with the training; all of it is in every checkpoint."""

    folder: Path
    recipe: str
    """Hash of the recipe."""
    losses: list[list[float]] = field(default_factory=lambda: [[]])
    """The loss of each step, stage by stage; the last stage is the one under way."""
    stage_over: bool = False
    looks: list[Look] = field(default_factory=list)
    best: dict[str, Any] | None = None
    """Weights of this stage's best look."""
    trainer: dict[str, Any] | None = None
    """State to go on from, when there was a checkpoint."""

    @classmethod
    def open(cls, folder: Path, recipe: str, *, restart: bool) -> "History":
        """Return the history in `folder`, or an empty one; MismatchError when it is another recipe's or damaged."""
        path = folder / _CHECKPOINT
        if restart:
            path.unlink(missing_ok=True)
        if not path.exists():
            return cls(folder, recipe)
        try:
            state = from_bytes(path.read_bytes())
            history = cls(**{**state, "folder": folder, "looks": [Look(**look) for look in state["looks"]]})
        except Exception as error:  # torch raises errors of many kinds for a file that is damaged
            raise MismatchError(
                "training-damaged",
                "{path}: cannot go on from this checkpoint: {error}; give --restart to begin anew",
                path=path,
                error=error,
            ) from error
        if history.recipe != recipe:
            raise MismatchError(
                "training-of-another",
                "{path}: an interrupted training of another recipe (or other --epochs) lies here; finish that one, "
                "or give --restart to begin anew",
                path=path,
            )
        return history

    @property
    def stage(self) -> int:
        """Number of the stage under way, from 0."""
        return len(self.losses) - 1

    @property
    def steps(self) -> int:
        """Steps done in this stage."""
        return len(self.losses[-1])

    @property
    def summary(self) -> str:
        """The mean of the last losses, and the last mean IU."""
        recent = self.losses[-1][-_RECENT:]
        loss = f"loss {sum(recent) / len(recent):.3f}"
        return f"{loss}, val mean IU {self.looks[-1].mean_iu:.3f}" if self.looks else loss

    def look(self, loss: float, val: Confusion, weights: dict[str, Any]) -> None:
        """Note scores on the val split after the last step, and a copy of the weights when they are the best so far."""
        self.looks.append(Look(self.stage, self.steps, loss, val.pixel_accuracy, val.mean_iu))
        if val.mean_iu >= max(self._scores()):
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}

    def is_stuck(self, patience: int) -> bool:
        """True when the last `patience` looks of this stage were not better than one before them."""
        scores = self._scores()
        return 0 < patience < len(scores) and max(scores[-patience:]) <= max(scores[:-patience])

    def _scores(self) -> list[float]:
        return [look.mean_iu for look in self.looks if look.stage == self.stage]

    def next_stage(self) -> None:
        """Begin the next stage."""
        self.losses.append([])
        self.stage_over, self.best, self.trainer = False, None, None

    def save(self, trainer: dict[str, Any]) -> None:
        """Write a checkpoint, whole or not at all, and the curves for those who watch."""
        names = ("recipe", "losses", "stage_over", "best")
        state = {name: getattr(self, name) for name in names} | {"looks": [*map(asdict, self.looks)]}
        write_whole(self.folder / _CHECKPOINT, to_bytes({**state, "trainer": trainer}))
        self._write_curves()

    def _write_curves(self) -> None:
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(["stage", "step", "loss"])
        for stage, losses in enumerate(self.losses, start=1):
            rows.writerows((stage, step, repr(loss)) for step, loss in enumerate(losses, start=1))
        write_whole(self.folder / "loss.csv", table.getvalue())
        write_whole(self.folder / "curves.png", curves_png(self.losses, self.looks))

    def report(self, facts: dict[str, Any]) -> None:
        """Write metrics.json: the facts and the looks, with stages counted from 1."""
        looks = [{**asdict(look), "stage": look.stage + 1} for look in self.looks]
        write_whole(self.folder / "metrics.json", json.dumps({**facts, "looks": looks}, indent=2) + "\n")
        self._write_curves()

    def close(self) -> None:
        """Remove the checkpoint: the model is written."""
        (self.folder / _CHECKPOINT).unlink(missing_ok=True)
