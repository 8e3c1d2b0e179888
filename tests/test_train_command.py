"""`fcn-batch train` as a whole: it learns, goes on after a crash bit by bit, and says what it did."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from click.testing import Result

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
from tests.errors import refused, refuses
from tests.patience import PATIENCE_S
from tests.recipes import COLS, STRIP, TESTED, opened, recipe_values, tiny_recipe, two_colours, write_pair, write_toml
from tests.runs import fcn_batch
from tests.test_scoring import whole_image

ROOT = Path(__file__).parents[1]
STAGED: dict[str, Any] = {
    "architecture": {"dropout": 0.3},
    "augment": {"jitter": 0.1, "scale": 1.3},
    "schedule": {"steps": 3, "staged": True, "stage_rate": 0.5, "evaluate_every": 2, "patience": 5, "batch": 2},
}
"""A training that depends on everything that a checkpoint must hold: 9 steps in three stages."""


@pytest.fixture(autouse=True, scope="module")
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


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
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


def _made(recipe: Recipe, folder: Path, output: Path) -> Path | None:
    return train(Order(recipe, folder, output, device="cpu"), Quiet())


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
        "schedule": {"steps": 40, "learning_rate": 0.01, "evaluate_every": 20},
        "augment": {"jitter": 0.05},
        "data": [{"name": "two colours", "source": "numpy", "licence": "CC0"}],
    }
    output, beside = tmp_path / "tiny.safetensors", tmp_path / "tiny.training"
    result = _trained(write_toml(data / "tiny.toml", recipe_values(**parts)), output)
    notes = [line.split(":")[0] for line in result.stderr.splitlines() if line.startswith("stage")]
    assert notes == ["stage 1, step 20", "stage 1, step 40"]
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
    for name, value in whole.summary.items():
        assert getattr(scores, name) == pytest.approx(value, abs=2e-3), name
    assert scores.class_iu == pytest.approx({f"class {k}": whole.iu[k] for k in (0, 1)}, abs=2e-3)
    assert tested == [True], "the weights were scored before they were rounded"
    again = evaluate(network, images, spec, 2, "test")
    assert scores.mean_iu == round(again.mean_iu, 4)
    assert all((p.half().float() == p).all() for p in network.parameters())
    known = labels[3:, np.isin(np.arange(COLS) // STRIP, TESTED)]
    constant = max(float((known == k).mean()) for k in (0, 1)) / 2  # mean IU of a map of one class
    assert scores.mean_iu > constant + 0.15
    assert scores.split == "held out by strips: 0.0 MPx of 1 images"
    assert card.bf16_disagreement is not None
    assert 0 <= card.bf16_disagreement < 0.1

    assert sorted(path.name for path in beside.iterdir()) == ["curves.png", "loss.csv", "metrics.json", "samples.png"]
    metrics = json.loads((beside / "metrics.json").read_text())
    assert metrics["test"]["mean_iu"] == again.mean_iu
    assert metrics["recipe"] == recipe.sha256
    assert [(look["stage"], look["step"]) for look in metrics["looks"]] == [(1, 20), (1, 40)]
    losses = _losses(beside)
    assert [(stage, step) for stage, step, _ in losses] == [(1, step) for step in range(1, 41)]
    assert np.mean([loss for *_, loss in losses[-10:]]) < 0.8 * losses[0][2]
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
    _made(tiny_recipe(**STAGED), folder, folder / "m.safetensors")
    return _written(folder / "m.safetensors")


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("after", [(1,), (5, 2, 2)], ids=str)
def test_a_training_that_died_comes_to_the_same_weights(
    data: Path, tmp_path: Path, uninterrupted: dict[str, bytes], after: tuple[int, ...]
) -> None:
    """It dies in the first step, within a stage, when a stage is over, and when it was gone on with."""
    output = tmp_path / "m.safetensors"
    for steps in after:
        _crashed(tiny_recipe(**STAGED), data, output, steps)
    assert not output.exists()
    _made(tiny_recipe(**STAGED), data, output)
    found = _written(output)
    names = {".safetensors", "loss.csv", "metrics.json", "curves.png", "samples.png"}
    assert found.keys() == uninterrupted.keys() == names
    for name, content in found.items():
        assert content == uninterrupted[name], f"{name} differs"


@pytest.mark.usefixtures("often")
def test_what_cannot_be_gone_on_with(data: Path, tmp_path: Path) -> None:
    """A checkpoint of another recipe, and one that is damaged; until `--restart`."""
    output, checkpoint = tmp_path / "m.safetensors", tmp_path / "m.training" / "checkpoint.pt"
    recipe = write_toml(data / "tiny.toml", recipe_values(schedule={"steps": 3, "batch": 1}))
    _crashed(tiny_recipe(schedule={"steps": 3, "batch": 1, "seed": 9}), data, output, 2)
    before = checkpoint.read_bytes()
    for content, code in ((before, "training-of-another"), (before[:-100], "training-damaged")):
        checkpoint.write_bytes(content)
        assert refused(_train(recipe, output), code, path=checkpoint).exit_code == 7
        assert checkpoint.read_bytes() == content, "it may still be of use"
    _trained(recipe, output, "--restart")
    assert [step for _, step, _ in _losses(tmp_path / "m.training")] == [1, 2, 3]


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


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> type[Watched]:
    Watched.begun, Watched.ended = [], []
    monkeypatch.setattr(training, "Trainer", Watched)
    return Watched


def test_each_stage_starts_from_the_one_before(data: Path, tmp_path: Path, watched: type[Watched]) -> None:
    recipe = tiny_recipe(schedule={"steps": 2, "staged": True, "batch": 2, "learning_rate": 0.02})
    _made(recipe, data, tmp_path / "m.safetensors")
    assert [len(stage) for stage in (watched.begun, watched.ended)] == [3, 3]
    for coarser, finer in zip(watched.ended, watched.begun[1:], strict=False):
        shared = [name for name in coarser if not name.startswith("up_final")]
        assert len(shared) > 20
        assert all(torch.equal(coarser[name], finer[name]) for name in shared)
        new = [name for name in finer if name not in coarser and name.startswith("score")]
        assert new
        assert all((finer[name] == 0).all() for name in new)
    for begun, ended in zip(watched.begun, watched.ended, strict=True):
        assert any(not torch.equal(begun[name], ended[name]) for name in begun), "a stage has learnt nothing"
    assert load_model(tmp_path / "m.safetensors")[0].card.architecture == recipe.architecture
    steps = [(stage, step) for stage, step, _ in _losses(tmp_path / "m.training")]
    assert steps == [(stage, step) for stage in (1, 2, 3) for step in (1, 2)]


def test_patience_takes_the_best_look(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, seen = iter([67, 89, 75, 82, 46]), []

    def scored(network: Any, *_: Any) -> Confusion:
        seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        n = next(right)
        return Confusion(np.array([[n, 100 - n, 0], [100 - n, n, 0]], np.int64))

    monkeypatch.setattr(training, "evaluate", scored)
    recipe = tiny_recipe(schedule={"steps": 20, "evaluate_every": 1, "patience": 2, "batch": 2})
    _made(recipe, data, tmp_path / "m.safetensors")
    assert len(_losses(tmp_path / "m.training")) == 4, "two looks in a row were no better than the second"
    assert len(seen) == 5, "four looks, and the test"
    _, network = load_model(tmp_path / "m.safetensors")
    for number, state in enumerate(seen):
        same = all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in state.items())
        assert same == (number in (1, 4))


def test_epochs_instead_of_steps_and_given_weights(data: Path, tmp_path: Path, watched: type[Watched]) -> None:
    first = write_toml(data / "first.toml", recipe_values(schedule={"steps": 10_000}, model={"name": "first"}))
    _trained(first, data / "first.safetensors", "--epochs", 2)
    assert len(_losses(data / "first.training")) == 2 * round(3 * 37 * 60 / (4 * 32**2)), "windows fit the network"
    second = tiny_recipe(schedule={"steps": 1, "batch": 2}, start="first.safetensors")
    _made(second, data, tmp_path / "second.safetensors")
    _, network = load_model(data / "first.safetensors")
    assert all(torch.equal(tensor, watched.begun[1][name]) for name, tensor in network.state_dict().items())


# what goes wrong


def test_a_loss_that_is_no_number_names_the_batch(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.step

    def spoilt(self: Trainer, batch: Any) -> float:
        if self.steps == 2:
            batch.images[1] = np.nan
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", spoilt)
    recipe = write_toml(data / "tiny.toml", recipe_values(schedule={"steps": 3}))
    output, beside = tmp_path / "m.safetensors", tmp_path / "m.training"
    for _ in range(2):  # what is wrong stays wrong, and nothing is stepped over
        error = refused(_train(recipe, output, "-q"), "loss-not-finite", step=3, loss="nan")
        assert error.exit_code == 8
        assert len(str(error.fields["origins"]).split("; ")) == 4
    assert len(_losses(beside)) == 2
    assert from_bytes((beside / "checkpoint.pt").read_bytes())["trainer"]["steps"] == 2
    monkeypatch.setattr(Trainer, "step", step)  # the file was repaired
    _trained(recipe, output)
    other = tmp_path / "other.safetensors"
    _trained(recipe, other)
    assert output.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("output", ["there.safetensors", "nowhere/m.safetensors", "m.pt"])
def test_outputs_that_are_refused_at_once(data: Path, tmp_path: Path, output: str) -> None:
    (tmp_path / "there.safetensors").write_text("mine")
    recipe = write_toml(data / "tiny.toml", recipe_values(schedule={"steps": 1, "batch": 1}))
    assert _train(recipe, tmp_path / output).exit_code == 6
    assert (tmp_path / "there.safetensors").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "there.safetensors"]
    if output == "there.safetensors":
        _trained(recipe, tmp_path / output, "--overwrite")
        assert load_model(tmp_path / output)[0].card.name == "tiny"


def test_data_that_cannot_train_leave_nothing_behind(data: Path, tmp_path: Path) -> None:
    image, labels = two_colours(data)
    write_pair(data, image, np.ones_like(labels))
    with refuses("labels-one-class", name="class 1"):
        _made(tiny_recipe(), data, tmp_path / "m.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_the_data_lie_beside_the_recipe_unless_told(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = write_toml(tmp_path / "tiny.toml", recipe_values(schedule={"steps": 1, "batch": 1}))
    assert fcn_batch("train", recipe).exit_code == 8
    result = fcn_batch("train", recipe, "--data", data, "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "tiny.safetensors\n", "")
    assert (tmp_path / "tiny.safetensors").exists()


# several processes


def test_two_processes_write_one_model(data: Path, tmp_path: Path) -> None:
    """Each holds half of a batch, and does it in two parts: the losses and weights of one process."""
    schedule = {"steps": 3, "evaluate_every": 2, "optimiser": "sgd", "momentum": 0.9, "bias_rate": 2.0}
    recipe = write_toml(data / "tiny.toml", recipe_values(schedule={**schedule, "accumulate": 2}))
    output, alone = tmp_path / "m.safetensors", tmp_path / "alone.safetensors"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "fcn_batch", "train", str(recipe), "-o", str(output), "--device", "cpu"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        command, cwd=ROOT, env=one_thread, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"{output}\n"
    assert run.stderr.count("stage 1, step 3: ") == 1
    _made(tiny_recipe(schedule=schedule), data, alone)
    together, single = (_losses(path.with_suffix(".training")) for path in (output, alone))
    assert [loss for *_, loss in together] == pytest.approx([loss for *_, loss in single], rel=1e-5)
    weights = [load_model(path)[1].state_dict() for path in (output, alone)]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-5)
