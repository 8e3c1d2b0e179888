"""What is kept of a training: the best look, when it is stuck, and files that say it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fcn_batch.pipeline.core.metrics import Confusion
from fcn_batch.workflows.learning.history import History, Look
from tests.errors import refuses

_scores = st.lists(st.integers(0, 5), max_size=8)


def _history(folder: Path = Path()) -> History:
    return History(folder, "recipe")


def _looked(history: History, scores: list[int]) -> History:
    for step, right in enumerate(scores, start=1):
        history.losses[-1].append(1 / step)
        confusion = Confusion(np.array([[right, 10 - right, 0], [10 - right, right, 0]], np.int64))
        history.look(1 / step, confusion, {"step": torch.tensor(step)})
    return history


@given(_scores, _scores, st.integers(0, 4))
def test_looks_are_those_of_their_stage(first: list[int], second: list[int], patience: int) -> None:
    history = _looked(_history(), first)
    history.next_stage()
    assert (history.best, history.steps, history.stage) == (None, 0, 1)
    _looked(history, second)
    assert [look.stage for look in history.looks] == [0] * len(first) + [1] * len(second)
    best = second.index(max(second)) if second else 0
    assert history.is_stuck(patience) == (patience > 0 and len(second) - 1 - best >= patience)
    if second:
        assert history.best is not None
        assert second[int(history.best["step"]) - 1] == max(second)


def test_the_best_weights_are_copies() -> None:
    history, weights = _history(), torch.zeros(3)
    history.look(0.5, Confusion.count(np.zeros(1, int), np.zeros(1, int), 2), {"weights": weights})
    weights += 1
    assert history.best is not None
    assert history.best["weights"].tolist() == [0, 0, 0]


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    history = _looked(History.open(tmp_path, "recipe", restart=False), [3, 6])
    history.next_stage()
    _looked(history, [5]).stage_over = True
    history.losses[-1].append(0.1 + 0.2)
    history.save({"steps": 1, "weights": torch.arange(3)})
    again = History.open(tmp_path, "recipe", restart=False)
    assert (again.stage, again.stage_over, again.losses) == (1, True, [[1.0, 0.5], [1.0, 0.1 + 0.2]])
    assert again.looks == history.looks
    assert again.looks[-1] == Look(1, 1, 1.0, 0.5, 5 / 15)
    assert again.best is not None
    assert again.trainer is not None
    assert (int(again.best["step"]), again.trainer["weights"].tolist()) == (1, [0, 1, 2])
    assert (
        tmp_path / "loss.csv"
    ).read_text() == "stage,step,loss\n1,1,1.0\n1,2,0.5\n2,1,1.0\n2,2,0.30000000000000004\n"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    again.report({"model": "tiny"})
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["model"] == "tiny"
    assert [(look["stage"], look["step"]) for look in found["looks"]] == [(1, 1), (1, 2), (2, 1)]
    assert found["looks"][-1]["mean_iu"] == pytest.approx(1 / 3)
    again.close()
    assert not (tmp_path / "checkpoint.pt").exists()


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


@pytest.mark.parametrize(
    "change",
    [{"looks": None}, {"looks": [{"stage": 1}]}, {"speed": 3}, {"best": _Evil()}],
    ids=["looks", "look", "speed", "code"],
)
def test_checkpoints_of_another_make_or_recipe(tmp_path: Path, change: dict[str, Any]) -> None:
    _history(tmp_path).save({})
    path = tmp_path / "checkpoint.pt"
    with refuses("training-of-another", path=path):
        History.open(tmp_path, "other", restart=False)
    torch.save({**torch.load(path), **change}, path)
    with refuses("training-damaged", path=path):
        History.open(tmp_path, "recipe", restart=False)
    assert path.exists()
    assert History.open(tmp_path, "recipe", restart=True).losses == [[]]
    assert not path.exists(), "restarting forgets it"
