"""What a training has done so far: its losses, its looks at the val split, its best network; and the checkpoint."""

import csv
import io
import json
from collections.abc import Callable
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
class Diary:
    """Grows with the training; all of it is in every checkpoint."""

    folder: Path
    recipe: str
    """Hash of the recipe."""
    stage: int = 0
    stage_over: bool = False
    losses: list[float] = field(default_factory=list)
    """Of each step of this stage."""
    past: list[list[float]] = field(default_factory=list)
    """Losses of the stages before."""
    looks: list[Look] = field(default_factory=list)
    best: dict[str, Any] | None = None
    """Weights of this stage's best look."""
    trainer: dict[str, Any] | None = None
    """State to go on from, when there was a checkpoint."""

    @classmethod
    def open(cls, folder: Path, recipe: str, *, restart: bool) -> "Diary":
        """The diary in `folder`, or an empty one; MismatchError when it is another recipe's or damaged."""
        path = folder / _CHECKPOINT
        if restart:
            path.unlink(missing_ok=True)
        if not path.exists():
            return cls(folder, recipe)
        try:
            state = from_bytes(path.read_bytes())
            looks = [Look(**look) for look in state.pop("looks")]
            diary = cls(folder=folder, looks=looks, **state)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise MismatchError(f"{path}: cannot be gone on from: {error}; give --restart to begin anew") from error
        if diary.recipe != recipe:
            raise MismatchError(
                f"{path}: an interrupted training of another recipe (or other --epochs) lies here; finish that one, "
                "or give --restart to begin anew"
            )
        return diary

    @property
    def steps(self) -> int:
        """Steps done in this stage."""
        return len(self.losses)

    @property
    def told(self) -> str:
        """How it goes, in a few words."""
        loss = f"loss {sum(self.losses[-_RECENT:]) / len(self.losses[-_RECENT:]):.3f}"
        return f"{loss}, val mean IU {self.looks[-1].mean_iu:.3f}" if self.looks else loss

    def look(self, step: int, loss: float, val: Confusion, state: Callable[[], dict[str, Any]]) -> None:
        """Note a look at the val split; `state` gives the weights, asked for when they are the best so far."""
        self.looks.append(Look(self.stage, step, loss, val.pixel_accuracy, val.mean_iu))
        mine = [one.mean_iu for one in self.looks if one.stage == self.stage]
        if val.mean_iu >= max(mine):
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in state().items()}

    def give_up(self, patience: int) -> bool:
        """True when the last `patience` looks of this stage were not better than one before them."""
        mine = [look.mean_iu for look in self.looks if look.stage == self.stage]
        return 0 < patience < len(mine) and max(mine[-patience:]) <= max(mine[:-patience])

    def next_stage(self) -> None:
        """This stage is over, and its result was taken."""
        self.past.append(self.losses)
        self.stage, self.stage_over, self.losses, self.best = self.stage + 1, False, [], None

    def save(self, trainer: dict[str, Any]) -> None:
        """Write a checkpoint, whole or not at all, and the curves for those who watch."""
        kept = ("recipe", "stage", "stage_over", "losses", "past", "best")
        state = {name: getattr(self, name) for name in kept}
        write_whole(
            self.folder / _CHECKPOINT, to_bytes({**state, "looks": [*map(asdict, self.looks)], "trainer": trainer})
        )
        self._write_curves()

    def _write_curves(self) -> None:
        curves = [*self.past, self.losses] if self.losses else self.past
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(["stage", "step", "loss"])
        for stage, losses in enumerate(curves):
            rows.writerows((stage + 1, step, repr(loss)) for step, loss in enumerate(losses, start=1))
        write_whole(self.folder / "loss.csv", table.getvalue())
        write_whole(self.folder / "curves.png", curves_png(curves, self.looks))

    def report(self, facts: dict[str, Any]) -> None:
        """Write metrics.json: the facts and the looks."""
        looks = [{**asdict(look), "stage": look.stage + 1} for look in self.looks]
        write_whole(self.folder / "metrics.json", json.dumps({**facts, "looks": looks}, indent=2) + "\n")
        self._write_curves()

    def close(self) -> None:
        """The model is written: the checkpoint is not needed any more."""
        (self.folder / _CHECKPOINT).unlink(missing_ok=True)
