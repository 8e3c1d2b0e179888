"""`fcn-batch train` as a whole: it learns, goes on after a crash bit by bit, and says what it did."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from click.testing import Result

from fcn_batch.pipeline.core.errors import TrainingError
from fcn_batch.pipeline.core.metrics import Confusion
from fcn_batch.pipeline.core.recipe import Recipe
from fcn_batch.pipeline.network.fcn import FcnNetwork
from fcn_batch.pipeline.network.training import Trainer, from_bytes
from fcn_batch.pipeline.network.weights import load_model
from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from fcn_batch.workflows.console.progress import Quiet
from fcn_batch.workflows.learning import train as training
from fcn_batch.workflows.learning.scoring import evaluate
from fcn_batch.workflows.learning.train import Order, train
from tests.patience import PATIENCE_S
from tests.recipes import (
    COLS,
    STRIP,
    TESTED,
    opened,
    recipe_values,
    tiny_recipe,
    two_colours,
    write_pair,
    write_toml,
)
from tests.runs import fcn_batch
from tests.test_scoring import whole_image

ROOT = Path(__file__).parents[1]
_DRIVER = """
import torch
from fcn_batch.commands.main import main
from fcn_batch.workflows.learning import train

torch.set_num_threads(1)
train._LEAST_SECONDS, train._SHARE_OF_TIME = 0.0, 1e9
main()
"""
STAGED: dict[str, Any] = {
    "architecture": {"dropout": 0.3},
    "augment": {"jitter": 0.1, "scale": 1.3},
    "schedule": {"steps": 4, "staged": True, "stage_rate": 0.5, "evaluate_every": 2, "patience": 5, "batch": 2},
}
"""A training that depends on everything that a checkpoint must hold: 12 steps in three stages."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The last bits of a sum depend on the number of threads, and these networks are too small for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with image and labels."""
    folder = tmp_path / "data"
    folder.mkdir()
    two_colours(folder)
    return folder


def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every step."""
    monkeypatch.setattr(training, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(training, "_SHARE_OF_TIME", 1e9)


def _train(recipe: Path, output: Path, *arguments: object) -> Result:
    return fcn_batch("train", recipe, "-o", output, "--device", "cpu", *arguments)


def _trained(recipe: Path, output: Path, *arguments: object) -> Result:
    result = _train(recipe, output, *arguments)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{output}\n"
    return result


def _losses(folder: Path) -> list[tuple[int, int, float]]:
    """Stage, step and loss of each line of loss.csv."""
    with (folder / "loss.csv").open(newline="") as file:
        return [(int(r["stage"]), int(r["step"]), float(r["loss"])) for r in csv.DictReader(file)]


def _written(output: Path) -> dict[str, bytes]:
    """Everything that a training leaves, by name without the model's."""
    files = [output, *output.with_suffix(".training").iterdir()]
    return {path.suffix if path == output else path.name: path.read_bytes() for path in files}


class Crash(Quiet):
    """Dies when so many steps are done, before their checkpoint."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, amount: int) -> None:
        """One step less to live."""
        self.left -= amount
        if self.left == 0:
            raise KeyboardInterrupt


def _crashed(recipe: Recipe, folder: Path, output: Path, after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(Order(recipe, folder, output, device="cpu"), Crash(after))


# a training that learns


def test_a_small_training(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, labels = two_colours(data)
    tested: list[bool] = []

    def watched(network: Any, *arguments: Any) -> Confusion:
        if arguments[-1] == "test":
            tested.append(all((p.half().float() == p).all() for p in network.parameters()))
        return evaluate(network, *arguments)

    monkeypatch.setattr(training, "evaluate", watched)
    parts: dict[str, Any] = {
        "model": {"weights": "fp16"},
        "architecture": {"input_upsampling": 4},
        "schedule": {"steps": 60, "learning_rate": 0.01, "evaluate_every": 30},
        "augment": {"jitter": 0.05},
        "data": [{"name": "two colours", "source": "numpy", "licence": "CC0"}],
    }
    output, beside = tmp_path / "tiny.safetensors", tmp_path / "tiny.training"
    result = _trained(write_toml(data / "tiny.toml", recipe_values(**parts)), output)
    notes = [line.split(":")[0] for line in result.stderr.splitlines() if line.startswith("stage")]
    assert notes == ["stage 1, step 30", "stage 1, step 60"]
    recipe = tiny_recipe(**parts)

    model, network = load_model(output)
    card, scores = model.card, model.card.scores
    assert (card.name, card.legend.ids, card.architecture) == ("tiny", (0, 1), recipe.architecture)
    assert (card.stride, card.halo, card.input.dtype) == (8, 40, "uint8")
    assert card.training == recipe.data
    assert scores is not None
    assert isinstance(network, FcnNetwork)
    images, spec = opened(data, recipe)
    assert card.input == spec
    whole = whole_image(network, images[0], spec, recipe, "test")
    assert scores.mean_iu == pytest.approx(whole.mean_iu, abs=2e-3)
    assert scores.pixel_accuracy == pytest.approx(whole.pixel_accuracy, abs=2e-3)
    assert scores.class_iu == pytest.approx({f"class {k}": whole.iu[k] for k in (0, 1)}, abs=2e-3)
    assert tested == [True], "the weights were scored before they were rounded"
    again = evaluate(network, images, spec, 2, "test")
    assert scores.mean_iu == round(again.mean_iu, 4)
    assert all((p.half().float() == p).all() for p in network.parameters())
    known = labels[3:, np.isin(np.arange(COLS) // STRIP, TESTED)]
    constant = max(float((known == k).mean()) for k in (0, 1)) / 2  # mean IU of a map of one class
    assert scores.mean_iu > constant + 0.2
    assert scores.split == "held out by strips: 0.0 MPx of 1 images"
    assert card.bf16_disagreement is not None
    assert 0 <= card.bf16_disagreement < 0.1

    assert sorted(path.name for path in beside.iterdir()) == ["curves.png", "loss.csv", "metrics.json", "samples.png"]
    metrics = json.loads((beside / "metrics.json").read_text())
    assert metrics["test"]["mean_iu"] == again.mean_iu
    assert metrics["recipe"] == recipe.sha256
    assert [(look["stage"], look["step"]) for look in metrics["looks"]] == [(1, 30), (1, 60)]
    losses = _losses(beside)
    assert [(stage, step) for stage, step, _ in losses] == [(1, step) for step in range(1, 61)]
    assert np.mean([loss for *_, loss in losses[-10:]]) < 0.7 * losses[0][2]
    for name, least in (("curves.png", 400), ("samples.png", 200)):
        with accept_pixel_space(), rasterio.open(beside / name) as picture:
            assert picture.driver == "PNG"
            assert min(picture.shape) > least


# after a crash


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the staged training leaves when nothing happens to it."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    two_colours(folder)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    train(Order(tiny_recipe(**STAGED), folder, folder / "m.safetensors", device="cpu"), Quiet())
    torch.set_num_threads(before)
    return _written(folder / "m.safetensors")


@pytest.mark.parametrize("after", [(1,), (6, 3, 3)], ids=str)
def test_a_training_that_died_comes_to_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, bytes], after: tuple[int, ...]
) -> None:
    """It dies in the first step, within a stage, when a stage is over, and when it was gone on with."""
    _often(monkeypatch)
    output = tmp_path / "m.safetensors"
    for steps in after:
        _crashed(tiny_recipe(**STAGED), data, output, steps)
    assert not output.exists()
    train(Order(tiny_recipe(**STAGED), data, output, device="cpu"), Quiet())
    found = _written(output)
    assert (
        found.keys()
        == uninterrupted.keys()
        == {".safetensors", "loss.csv", "metrics.json", "curves.png", "samples.png"}
    )
    for name, content in found.items():
        assert content == uninterrupted[name], f"{name} differs"


def test_a_killed_program_goes_on_when_started_again(
    data: Path, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    output = tmp_path / "m.safetensors"
    recipe = write_toml(data / "tiny.toml", recipe_values(**STAGED))
    command = [sys.executable, "-c", _DRIVER, "train", str(recipe), "-o", str(output), "--device", "cpu"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        table = output.with_suffix(".training") / "loss.csv"
        until = time.monotonic() + PATIENCE_S
        while process.poll() is None and time.monotonic() < until:
            if table.exists() and "\n2,2," in table.read_text():
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.02)
        _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    result = _trained(recipe, output)
    assert re.search(r"^going on after step [234] of stage [23]$", result.stderr, re.MULTILINE), result.stderr
    assert _written(output) == uninterrupted


def test_to_begin_anew(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _often(monkeypatch)
    output = tmp_path / "m.safetensors"
    recipe = write_toml(data / "tiny.toml", recipe_values(schedule={"steps": 3}))
    _crashed(tiny_recipe(schedule={"steps": 3}), data, output, 2)
    result = _trained(recipe, output, "--restart")
    assert "going on" not in result.stderr
    assert len(_losses(tmp_path / "m.training")) == 3


def test_what_cannot_be_gone_on_with(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of another recipe, of other epochs, and one that is damaged."""
    _often(monkeypatch)
    output = tmp_path / "m.safetensors"
    recipe = write_toml(data / "tiny.toml", recipe_values(schedule={"steps": 3}))
    _crashed(tiny_recipe(schedule={"steps": 3, "seed": 9}), data, output, 2)
    checkpoint = tmp_path / "m.training" / "checkpoint.pt"
    before = checkpoint.read_bytes()
    for content in (before, before[:-100], b""):
        checkpoint.write_bytes(content)
        result = _train(recipe, output)
        assert result.exit_code == 7
        match = "another recipe" if content == before else "cannot be gone on from"
        assert match in result.stderr
        assert "give --restart to begin anew" in result.stderr
        assert str(checkpoint) in result.stderr
        assert result.stderr.count("\n") == 1
        assert checkpoint.read_bytes() == content, "it may still be of use"


# stages and looks


class Watched(Trainer):
    """Keeps the weights that each stage began with, and ended with."""

    begun: list[dict[str, torch.Tensor]]
    ended: list[dict[str, torch.Tensor]]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.begun.append({name: tensor.clone() for name, tensor in self.network.state_dict().items()})

    @property
    def averaged(self) -> Any:
        """As it was last asked for."""
        network = super().averaged
        self.ended[self.stage : self.stage + 1] = [network.state_dict()]
        return network


def test_each_stage_starts_from_the_one_before(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Watched.begun, Watched.ended = [], []
    monkeypatch.setattr(training, "Trainer", Watched)
    recipe = tiny_recipe(schedule={"steps": 2, "staged": True, "batch": 2, "learning_rate": 0.02})
    train(Order(recipe, data, tmp_path / "m.safetensors", device="cpu"), Quiet())
    assert [len(stage) for stage in (Watched.begun, Watched.ended)] == [3, 3]
    for coarser, finer in zip(Watched.ended, Watched.begun[1:], strict=False):
        shared = [name for name in coarser if not name.startswith("up_final")]
        assert len(shared) > 20
        assert all(torch.equal(coarser[name], finer[name]) for name in shared)
        new = [name for name in finer if name not in coarser]
        assert any(name.startswith("score") for name in new)
        assert all((finer[name] == 0).all() for name in new if name.startswith("score"))
    for begun, ended in zip(Watched.begun, Watched.ended, strict=True):
        assert any(not torch.equal(begun[name], ended[name]) for name in begun), "a stage has learnt nothing"
    card = load_model(tmp_path / "m.safetensors")[0].card
    assert card.architecture == recipe.architecture
    assert [(stage, step) for stage, step, _ in _losses(tmp_path / "m.training")] == [
        (stage, step) for stage in (1, 2, 3) for step in (1, 2)
    ]


def _confusion(mean_iu: float) -> Confusion:
    """Two classes of 100 pixels each, confused as often as gives this mean IU."""
    wrong = round(100 * (1 - mean_iu) / (1 + mean_iu))
    return Confusion(np.array([[100 - wrong, wrong, 0], [wrong, 100 - wrong, 0]], np.int64))


def test_patience_takes_the_best_look(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, seen = iter([0.5, 0.8, 0.6, 0.7, 0.3]), []

    def scored(network: Any, *_: Any) -> Confusion:
        seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return _confusion(next(scores))

    monkeypatch.setattr(training, "evaluate", scored)
    recipe = tiny_recipe(schedule={"steps": 20, "evaluate_every": 1, "patience": 2, "batch": 2})
    train(Order(recipe, data, tmp_path / "m.safetensors", device="cpu"), Quiet())
    assert len(_losses(tmp_path / "m.training")) == 4, "two looks in a row were no better than the second"
    assert len(seen) == 5, "four looks, and the test"
    _, network = load_model(tmp_path / "m.safetensors")
    for number, state in enumerate(seen):
        same = all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in state.items())
        assert same == (number in (1, 4))


def test_epochs_instead_of_steps(data: Path, tmp_path: Path) -> None:
    recipe = write_toml(data / "tiny.toml", recipe_values(schedule={"steps": 10_000}))
    _trained(recipe, tmp_path / "m.safetensors", "--epochs", 2)
    assert len(_losses(tmp_path / "m.training")) == 2 * round(3 * 37 * 60 / (4 * 32**2)), "windows fit the network"


def test_a_training_starts_from_given_weights(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: dict[str, Any] = {"schedule": {"steps": 1, "batch": 2}}
    first = write_toml(data / "first.toml", recipe_values(**parts, model={"name": "first"}))
    _trained(first, data / "first.safetensors")
    Watched.begun, Watched.ended = [], []
    monkeypatch.setattr(training, "Trainer", Watched)
    second = write_toml(data / "second.toml", recipe_values(**parts, start="first.safetensors"))
    result = _trained(second, tmp_path / "second.safetensors")
    assert "starting from first.safetensors; newly made: nothing" in result.stderr
    _, network = load_model(data / "first.safetensors")
    assert all(torch.equal(tensor, Watched.begun[0][name]) for name, tensor in network.state_dict().items())


# what goes wrong


def test_a_loss_that_is_no_number_names_the_batch(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.step

    def spoilt(self: Trainer, batch: Any) -> float:
        if self.steps == 2:
            batch.images[1] = np.nan
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", spoilt)
    recipe = write_toml(data / "tiny.toml", recipe_values())
    output, beside = tmp_path / "m.safetensors", tmp_path / "m.training"
    for _ in range(2):  # what is wrong stays wrong, and nothing is stepped over
        result = _train(recipe, output)
        assert result.exit_code == 8
        error = result.stderr.splitlines()[-1]
        assert "the loss became nan at step 3; lower schedule.learning_rate" in error
        assert len(re.findall(r"image\.tif row \d+ col \d+", error)) == 4
        assert f"The weights of step 2 are kept in {beside}; --restart begins anew" in error
    assert len(_losses(beside)) == 2
    assert from_bytes((beside / "checkpoint.pt").read_bytes())["trainer"]["steps"] == 2
    monkeypatch.setattr(Trainer, "step", step)  # the file was repaired
    _trained(recipe, output)
    other = tmp_path / "other.safetensors"
    _trained(recipe, other)
    assert output.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("output", "match"),
    [
        ("there.safetensors", r"there\.safetensors: exists already; give --overwrite to replace it"),
        ("nowhere/m.safetensors", r"there is no folder .*nowhere; create it first"),
        ("m.pt", r"m\.pt: a model file's name ends in \.safetensors"),
    ],
)
def test_outputs_that_are_refused_at_once(data: Path, tmp_path: Path, output: str, match: str) -> None:
    (tmp_path / "there.safetensors").write_text("mine")
    result = _train(write_toml(data / "tiny.toml", recipe_values()), tmp_path / output)
    assert result.exit_code == 6
    assert re.search(match, result.stderr)
    assert (tmp_path / "there.safetensors").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "there.safetensors"]


def test_overwriting_when_asked_to(data: Path, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_text("mine")
    recipe = write_toml(data / "tiny.toml", recipe_values(schedule={"steps": 1, "batch": 1}))
    _trained(recipe, tmp_path / "m.safetensors", "--overwrite")
    assert load_model(tmp_path / "m.safetensors")[0].card.name == "tiny"


def test_data_that_cannot_train_leave_nothing_behind(data: Path, tmp_path: Path) -> None:
    image, labels = two_colours(data)
    write_pair(data, image, np.ones_like(labels))
    with pytest.raises(TrainingError, match="nothing to tell apart"):
        train(Order(tiny_recipe(), data, tmp_path / "m.safetensors", device="cpu"), Quiet())
    assert not (tmp_path / "m.training").exists()
    assert not (tmp_path / "m.safetensors").exists()


def test_the_data_lie_beside_the_recipe_unless_told(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = write_toml(tmp_path / "tiny.toml", recipe_values(schedule={"steps": 1, "batch": 1}))
    result = fcn_batch("train", recipe)
    assert result.exit_code == 8
    assert f"no file matches image.tif in {tmp_path}" in result.stderr
    result = fcn_batch("train", recipe, "--data", data, "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "tiny.safetensors\n", "")
    assert (tmp_path / "tiny.safetensors").exists()


# several processes


def test_two_processes_write_one_model(data: Path, tmp_path: Path) -> None:
    parts: dict[str, Any] = {"schedule": {"steps": 3, "evaluate_every": 2, "optimiser": "sgd"}}
    recipe = write_toml(data / "tiny.toml", recipe_values(**parts))
    output, alone = tmp_path / "m.safetensors", tmp_path / "alone.safetensors"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "fcn_batch", "train", recipe, "-o", output, "--device", "cpu"]
    run = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"{output}\n"
    assert run.stderr.count("stage 1, step 3: ") == 1
    _trained(recipe, alone)
    together, single = (_losses(path.with_suffix(".training")) for path in (output, alone))
    assert [loss for *_, loss in together] == pytest.approx([loss for *_, loss in single], rel=1e-5)
    weights = [load_model(path)[1].state_dict() for path in (output, alone)]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-5)
