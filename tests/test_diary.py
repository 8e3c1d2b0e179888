"""What a training notes: the best look, when to give up, and files that say it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fcn_batch.pipeline.core.errors import MismatchError
from fcn_batch.pipeline.core.metrics import Confusion
from fcn_batch.workflows.learning.diary import Diary, Look

_scores = st.lists(st.integers(0, 5), max_size=8)


def _diary(folder: Path = Path()) -> Diary:
    return Diary(folder, "recipe")


def _confusion(right: int) -> Confusion:
    return Confusion(np.array([[right, 10 - right, 0], [10 - right, right, 0]], np.int64))


def _looked(diary: Diary, scores: list[int]) -> None:
    for step, right in enumerate(scores, start=1):
        diary.losses.append(1 / step)
        diary.look(step, 1 / step, _confusion(right), lambda step=step: {"step": torch.tensor(step)})  # type: ignore[misc]


@given(_scores, st.integers(0, 4))
def test_giving_up_is_for_looks_that_are_no_better(scores: list[int], patience: int) -> None:
    diary = _diary()
    _looked(diary, scores)
    best = scores.index(max(scores)) if scores else 0
    assert diary.give_up(patience) == (patience > 0 and len(scores) - 1 - best >= patience)


@given(_scores, _scores)
def test_the_best_look_is_that_of_this_stage(first: list[int], second: list[int]) -> None:
    diary = _diary()
    _looked(diary, first)
    diary.next_stage()
    assert diary.best is None
    assert diary.steps == 0
    _looked(diary, second)
    assert [look.stage for look in diary.looks] == [0] * len(first) + [1] * len(second)
    if second:
        assert diary.best is not None
        assert second[int(diary.best["step"]) - 1] == max(second)


def test_the_best_weights_are_copies() -> None:
    diary, weights = _diary(), torch.zeros(3)
    diary.look(1, 0.5, _confusion(7), lambda: {"weights": weights})
    weights += 1
    assert diary.best is not None
    assert diary.best["weights"].tolist() == [0, 0, 0]


def test_a_diary_is_read_as_it_was_written(tmp_path: Path) -> None:
    diary = Diary.open(tmp_path, "recipe", restart=False)
    assert (diary.stage, diary.steps, diary.trainer) == (0, 0, None)
    _looked(diary, [3, 6])
    diary.next_stage()
    _looked(diary, [5])
    diary.stage_over = True
    diary.save({"steps": 1, "weights": torch.arange(3)})
    again = Diary.open(tmp_path, "recipe", restart=False)
    assert (again.stage, again.stage_over, again.losses, again.past) == (1, True, [1.0], [[1.0, 0.5]])
    assert again.looks == diary.looks
    assert again.looks[-1] == Look(1, 1, 1.0, 0.5, again.looks[-1].mean_iu)
    assert again.looks[-1].mean_iu == pytest.approx(1 / 3)
    assert again.best is not None
    assert again.trainer is not None
    assert int(again.best["step"]) == 1
    assert again.trainer["weights"].tolist() == [0, 1, 2]
    assert Diary.open(tmp_path, "recipe", restart=True).losses == []
    assert not (tmp_path / "checkpoint.pt").exists()


def test_another_recipes_checkpoint_is_kept(tmp_path: Path) -> None:
    _diary(tmp_path).save({})
    with pytest.raises(MismatchError, match=r"checkpoint\.pt: an interrupted training of another recipe") as caught:
        Diary.open(tmp_path, "other", restart=False)
    assert caught.value.exit_code == 7
    assert (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize("change", [{"looks": None}, {"looks": [{"stage": 1}]}, {"speed": 3}], ids=str)
def test_checkpoints_of_another_make(tmp_path: Path, change: dict[str, Any]) -> None:
    diary = _diary(tmp_path)
    diary.save({})
    path = tmp_path / "checkpoint.pt"
    torch.save({**torch.load(path), **change}, path)
    with pytest.raises(MismatchError, match=r"cannot be gone on from: .*; give --restart to begin anew"):
        Diary.open(tmp_path, "recipe", restart=False)


def test_losses_are_written_to_the_last_bit(tmp_path: Path) -> None:
    diary = _diary(tmp_path)
    diary.losses += [0.1 + 0.2, 1e-17]
    diary.next_stage()
    diary.losses += [1 / 3]
    diary.save({})
    assert (tmp_path / "loss.csv").read_text() == (
        "stage,step,loss\n1,1,0.30000000000000004\n1,2,1e-17\n2,1,0.3333333333333333\n"
    )
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_counts_stages_from_one(tmp_path: Path) -> None:
    diary = _diary(tmp_path)
    _looked(diary, [5])
    diary.save({})
    diary.report({"model": "tiny"})
    diary.close()
    expected = {"stage": 1, "step": 1, "loss": 1.0, "pixel_accuracy": 0.5, "mean_iu": 1 / 3}
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found == {"model": "tiny", "looks": [pytest.approx(expected)]}
    assert not (tmp_path / "checkpoint.pt").exists()
