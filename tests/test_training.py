"""Training: what is drawn, what is refused, and that a network does learn."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rasterio.transform import Affine

from fcn_batch.pipeline import predictor
from fcn_batch.pipeline.errors import FcnBatchError, OutputError, TrainingError
from fcn_batch.pipeline.fcn import Fcn
from fcn_batch.pipeline.geometry import Window
from fcn_batch.pipeline.metrics import Confusion
from fcn_batch.pipeline.model_card import InputSpec
from fcn_batch.pipeline.predictor import Scaling
from fcn_batch.pipeline.raster import Pixels, RasterioSource
from fcn_batch.pipeline.recipe import Recipe, Schedule
from fcn_batch.pipeline.training import Batch, Trainer, class_weights, rate_factor
from fcn_batch.pipeline.weights import load_model
from fcn_batch.workflows import labelled
from fcn_batch.workflows import train as training
from fcn_batch.workflows.labelled import LabelledRaster, bf16_disagreement, evaluate
from fcn_batch.workflows.train import band_statistics, batches, train
from tests.models import tiny_architecture, tiny_network
from tests.rasters import write_raster

GRID: dict[str, Any] = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500000, 0, -10, 5000000)}
STRIP, STRIPS, ROWS = 37, 7, 60  # strips that end off the network's grid of 8
COLS = STRIP * STRIPS - 11  # the last strip is cut off
Labels = NDArray[np.uint8]


def _recipe(classes: int = 2, **schedule: Any) -> Recipe:
    values = {
        "model": {"name": "tiny", "version": "1", "summary": "A test", "gsd_m": 10.0},
        "architecture": tiny_architecture(input_upsampling=4, dropout=0.0).model_dump(),
        "classes": [{"id": k, "name": f"class {k}", "colour": "#102030"} for k in range(classes)],
        "pair": {"image": "image.tif", "labels": "labels.tif", "bands": ["red", "green"]},
        "split": {"width": STRIP, "val": [1], "test": [3, 6], "never": [5]},
        "schedule": {"steps": 5, "batch": 4, "crop": 24, **schedule},
    }
    return Recipe.model_validate(values)


def _changed(recipe: Recipe, part: str, **changes: Any) -> Recipe:
    return Recipe.model_validate({**recipe.model_dump(), part: {**recipe.model_dump()[part], **changes}})


def _two_colours(folder: Path, dtype: str = "uint8", scale: int = 1) -> tuple[NDArray[Any], Labels]:
    """Squares of two classes whose colours overlap pixel by pixel, and no label in the first rows."""
    rng = np.random.default_rng(0)
    row, col = np.indices((ROWS, COLS))
    labels = ((row // 20 + col // 17) % 2).astype(np.uint8)
    image = 100 + np.array([30, -20])[:, None, None] * (2.0 * labels - 1) + rng.normal(0, 30, (2, ROWS, COLS))
    image = (image.clip(0, 255) * scale).astype(dtype)
    labels[:3] = 255
    write_raster(folder / "image.tif", image, **GRID)
    write_raster(folder / "labels.tif", labels[None], **GRID)
    return image, labels


def _columns(folder: Path) -> None:
    """Every pixel's class and colours are its column."""
    col = np.broadcast_to(np.arange(COLS, dtype=np.uint8), (1, ROWS, COLS))
    write_raster(folder / "image.tif", col.repeat(2, axis=0), **GRID)
    write_raster(folder / "labels.tif", col, **GRID)


def _opened(folder: Path, recipe: Recipe) -> tuple[LabelledRaster, InputSpec]:
    data = LabelledRaster.open(folder, recipe)
    return data, band_statistics(data, recipe)[0]


def _drawn(folder: Path, recipe: Recipe) -> list[Batch]:
    return list(batches(*_opened(folder, recipe), recipe, 8))


def _ignore(_: str) -> None:
    pass


# the pieces


def test_the_rate_rises_then_falls() -> None:
    rates = [rate_factor(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 50)
    assert rates[49] == rates[50] == max(rates) == 1
    assert all(a < b for a, b in pairwise(rates[:50]))
    assert all(a > b for a, b in pairwise(rates[50:]))
    assert rates[525] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-4
    assert rate_factor(1000, 1000) == pytest.approx(0)
    assert rate_factor(0, 1) == 1


@pytest.mark.parametrize("balance", [0.0, 0.3, 1.0])
def test_class_weights(balance: float) -> None:
    counts = np.array([900, 90, 10])
    weights = class_weights(counts, balance)
    assert weights.dtype == np.float32
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(10**balance)
    assert weights[2] / weights[1] == pytest.approx(9**balance)


def test_a_class_that_is_not_there_has_a_finite_weight() -> None:
    assert np.isfinite(class_weights(np.array([0, 5]), 1.0)).all()


# batches


@pytest.mark.parametrize("crop", [24, 33, 500])
def test_batches_hold_nothing_outside_the_training_strips(tmp_path: Path, crop: int) -> None:
    _columns(tmp_path)
    recipe = _recipe(COLS, steps=30, crop=crop)
    data, spec = _opened(tmp_path, recipe)
    allowed = {col for col in range(COLS) if col // STRIP in (0, 2, 4)}
    assert [(w.col, w.width) for w in recipe.split.regions(data.image.info.size, "train")] == [
        (0, STRIP),
        (2 * STRIP, STRIP),
        (4 * STRIP, STRIP),
    ]
    side = {24: 24, 33: 32, 500: 32}[crop]  # a multiple of the stride that fits the narrowest strip
    seen: set[int] = set()
    drawn = list(batches(data, spec, recipe, 8))
    assert len(drawn) == 30
    for batch in drawn:
        assert batch.images.shape == (4, 2, side, side)
        assert batch.labels.shape == (4, side, side)
        assert batch.images.dtype == np.float32
        assert batch.labels.dtype == np.uint8
        seen |= {*np.unique(batch.labels).tolist()}
        for k, band in enumerate(spec.bands):  # image and labels are turned alike
            columns = (batch.images[:, k] * band.std + band.mean) * spec.full_scale
            assert np.allclose(columns, batch.labels, atol=1e-3)
    assert seen <= allowed
    assert len(seen) > 0.9 * len(allowed), "every training column comes up"


def test_windows_are_flipped_and_turned(tmp_path: Path) -> None:
    _columns(tmp_path)
    turns = set()
    for batch in _drawn(tmp_path, _recipe(COLS, steps=20)):
        for labels in batch.labels.astype(int):
            turns.add((labels[0, 1] - labels[0, 0], labels[1, 0] - labels[0, 0]))
    assert turns == {(1, 0), (-1, 0), (0, 1), (0, -1)}


def test_image_and_labels_are_turned_alike(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 2, (1, ROWS, COLS), dtype=np.uint8)
    write_raster(tmp_path / "image.tif", labels.repeat(2, axis=0) * 100, **GRID)
    write_raster(tmp_path / "labels.tif", labels, **GRID)
    for batch in _drawn(tmp_path, _recipe(steps=10)):
        for band in (0, 1):
            assert np.array_equal(batch.images[:, band] > 0, batch.labels == 1)


def test_one_seed_gives_one_sequence(tmp_path: Path) -> None:
    _two_colours(tmp_path)

    def digest(seed: int) -> list[bytes]:
        drawn = _drawn(tmp_path, _recipe(seed=seed, steps=20, jitter=0.1))
        return [b.images.tobytes() + b.labels.tobytes() for b in drawn]

    first = digest(1)
    assert digest(1) == first
    assert not {*first} & {*digest(2)}
    assert len({*first}) == 20


def test_jitter_changes_images_and_no_labels(tmp_path: Path) -> None:
    _two_colours(tmp_path)
    plain, jittered = (_drawn(tmp_path, _recipe(jitter=jitter)) for jitter in (0.0, 0.2))
    for one, other in zip(plain, jittered, strict=True):
        assert np.array_equal(one.labels, other.labels)
        difference = np.abs(one.images - other.images)
        assert 0 < difference.max() <= 0.2 * (1 + np.abs(one.images).max()) + 1e-5


def test_windows_of_one_class_are_drawn_again(tmp_path: Path) -> None:
    labels = np.zeros((1, ROWS, COLS), np.uint8)
    labels[:, :30, : STRIP // 2] = 1  # one corner of one training strip
    write_raster(tmp_path / "image.tif", labels.repeat(2, axis=0), **GRID)
    write_raster(tmp_path / "labels.tif", labels, **GRID)

    def mixed(share: float) -> float:
        drawn = _drawn(tmp_path, _recipe(steps=40, one_class_at_most=share))
        return float(np.mean([w.any() for batch in drawn for w in batch.labels]))

    assert mixed(0.99) > 1.5 * mixed(1.0) > 0


def test_strips_narrower_than_the_stride_are_refused(tmp_path: Path) -> None:
    _two_colours(tmp_path)
    recipe = _recipe()
    data, spec = _opened(tmp_path, recipe)
    with pytest.raises(TrainingError, match="narrowest training strip has 37 pixels, the network needs 64"):
        next(batches(data, spec, recipe, 64))


def test_band_statistics_are_those_of_the_training_strips(tmp_path: Path) -> None:
    image, labels = _two_colours(tmp_path, "uint16", scale=40)
    recipe = _changed(_recipe(), "pair", full_scale=10000.0)
    data = LabelledRaster.open(tmp_path, recipe)
    spec, counts = band_statistics(data, recipe)
    used = np.isin(np.arange(COLS) // STRIP, (0, 2, 4))
    values = image[:, :, used].reshape(2, -1) / 10000.0
    assert [b.name for b in spec.bands] == ["red", "green"]
    assert [b.mean for b in spec.bands] == pytest.approx(values.mean(axis=1).tolist())
    assert [b.std for b in spec.bands] == pytest.approx(values.std(axis=1).tolist())
    assert (spec.dtype, spec.full_scale, spec.gsd_m) == ("uint16", 10000.0, 10.0)
    assert counts.tolist() == [(labels[:, used] == k).sum() for k in (0, 1)]


# steps


def _trainer(network: Fcn | None = None, **schedule: Any) -> Trainer:
    network = network or tiny_network(tiny_architecture(dropout=0.0), bands=2, classes=2)
    values = Schedule(**{"steps": 3, "learning_rate": 0.01, **schedule})
    return Trainer(network, values, np.ones(network.score.out_channels, np.float32), "cpu")


def _batch(label: int = 1, value: float = 0.5) -> Batch:
    return Batch(np.full((2, 2, 32, 32), value, np.float32), np.full((2, 32, 32), label, np.uint8))


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    trainer = _trainer()
    with pytest.raises(TrainingError, match=r"loss became nan at step 2; lower schedule\.learning_rate") as caught:
        trainer.run([_batch(), _batch(value=math.nan)], lambda *_: None)
    assert caught.value.exit_code == 8
    assert all(p.isfinite().all() for p in trainer.network.parameters()), "the step is not taken"


def test_a_batch_without_labels_teaches_nothing() -> None:
    trainer = _trainer()
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    steps: list[tuple[int, float]] = []
    trainer.run([_batch(label=255)], lambda step, loss: steps.append((step, loss)))
    assert steps == [(1, 0.0)]
    assert all(torch.equal(v, before[k]) for k, v in trainer.network.state_dict().items())


def test_unlabelled_pixels_do_not_count() -> None:
    half = _batch()
    half.labels[:, :16] = 255
    half.labels[:, 16:] = 0
    wrong = _batch(label=1)
    wrong.labels[:, 16:] = 0
    losses = []
    for batch in (half, wrong):
        _trainer().run([batch], lambda _, loss: losses.append(loss))
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("steps", [1, 60])
def test_the_average_follows_a_short_training(steps: int) -> None:
    network = tiny_network(tiny_architecture(dropout=0.0), bands=2, classes=2)
    start = {k: v.clone() for k, v in network.state_dict().items()}
    trainer = _trainer(network, steps=steps)
    rng = np.random.default_rng(0)
    noise = [Batch(rng.normal(size=(2, 2, 32, 32)).astype(np.float32), _batch().labels) for _ in range(steps)]
    trainer.run(noise, lambda *_: None)
    end, average = trainer.network.state_dict(), trainer.averaged.state_dict()

    def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
        return math.sqrt(sum(float((one[k] - other[k]).square().sum()) for k in one))

    assert apart(average, end) < 0.5 * apart(start, end)


# the whole


@dataclass
class Seen:
    """Windows read and cores kept by `evaluate`, in pairs."""

    reads: list[Window]
    cores: list[tuple[slice, slice]]


def _double_model(recipe: Recipe) -> Fcn:
    return tiny_network(recipe.architecture, bands=2, classes=len(recipe.classes), dtype=torch.float64)


def _whole_image(network: Fcn, data: LabelledRaster, spec: InputSpec, recipe: Recipe, strips: list[int]) -> Confusion:
    """What `evaluate` counts, from one pass over the whole image."""
    size = data.image.info.size
    everything = Window(0, 0, size.height, size.width)
    pixels = data.image.read(everything, data.bands)
    mean, std = (np.array([getattr(b, what) for b in spec.bands])[:, None, None] for what in ("mean", "std"))
    image = np.where(pixels.valid, (pixels.values / spec.full_scale - mean) / std, 0)
    padded = np.pad(image, ((0, 0), (0, -size.height % network.stride), (0, -size.width % network.stride)))
    with torch.inference_mode():
        scores = network.eval()(torch.from_numpy(padded)[None].to(next(network.parameters()).dtype))[
            0, :, : size.height, : size.width
        ]
    channels = scores.argmax(dim=0).numpy().astype(np.uint8)
    truth = data.read_labels(everything)
    scored = np.isin(np.arange(COLS) // STRIP, strips)
    start, stop = recipe.split.score_rows or (0, size.height)
    return Confusion.count(truth[start:stop, scored], channels[start:stop, scored], len(recipe.classes))


@pytest.mark.parametrize("rows", [None, [5, 43]], ids=str)
@pytest.mark.parametrize(("use", "strips"), [("val", [1]), ("test", [3, 6])])
@pytest.mark.parametrize("tile", [8, 512])
def test_scores_are_those_of_the_whole_image(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    use: Literal["val", "test"],
    strips: list[int],
    tile: int,
    rows: Any,
) -> None:
    _two_colours(tmp_path)
    recipe = _changed(_recipe(), "split", score_rows=rows)
    data, spec = _opened(tmp_path, recipe)
    network = _double_model(recipe)
    monkeypatch.setattr(labelled, "_EVALUATION_TILE", tile)
    seen = Seen([], [])
    read, channels = RasterioSource.read, predictor._Tiles.channels

    def reading(self: RasterioSource, window: Window, bands: tuple[int, ...]) -> Pixels:
        if self is data.image:
            seen.reads.append(window)
        return read(self, window, bands)

    def predicting(self: Any, values: Any, valid: Any, core: tuple[slice, slice]) -> Labels:
        seen.cores.append(core)
        best: Labels = channels(self, values, valid, core)
        return best

    monkeypatch.setattr(RasterioSource, "read", reading)
    monkeypatch.setattr(predictor._Tiles, "channels", predicting)
    monkeypatch.setattr(labelled, "Scaling", lambda spec, device: Scaling(spec, device, torch.float64))
    monkeypatch.setattr(labelled, "graph_of", lambda _network, _bands: (None, ["tiles of modules stay in double"]))
    found = evaluate(network, data, spec, recipe, use)
    assert seen.cores
    for window, core in zip(seen.reads, seen.cores, strict=True):
        _sees_all(network, window, core)
    monkeypatch.undo()
    assert np.array_equal(found.counts, _whole_image(network, data, spec, recipe, strips).counts)


@pytest.mark.parametrize(("use", "strips"), [("val", [1]), ("test", [3, 6])])
def test_scores_in_single_precision_are_nearly_those(
    tmp_path: Path, use: Literal["val", "test"], strips: list[int]
) -> None:
    _two_colours(tmp_path)
    recipe = _recipe()
    data, spec = _opened(tmp_path, recipe)
    network = tiny_network(recipe.architecture, bands=2, classes=2)
    found = evaluate(network, data, spec, recipe, use).counts
    whole = _whole_image(network, data, spec, recipe, strips).counts
    assert found.sum() == whole.sum()
    assert np.abs(found - whole).sum() <= 2e-3 * whole.sum()


@dataclass
class Bright:
    """Tiles whose class is 1 where the first band is brighter than a limit."""

    limit: int
    factor: int = 1

    def scores(self, values: Any, valid: Any) -> Any:
        raise NotImplementedError

    def channels(self, values: NDArray[Any], valid: Any, core: tuple[slice, slice]) -> Labels:  # noqa: ARG002
        bright: Labels = (values[0] > self.limit)[core].astype(np.uint8)
        return bright


def test_the_cost_of_bfloat16_is_the_share_of_valid_test_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, _ = _two_colours(tmp_path)
    image[:, 10:30, 100:130] = 0
    write_raster(tmp_path / "image.tif", image, **GRID, nodata=0)
    recipe = _recipe()
    data, spec = _opened(tmp_path, recipe)
    monkeypatch.setattr(labelled, "_tiles", lambda _net, _spec, precision: Bright(100 if precision == "fp32" else 120))
    network = tiny_network(recipe.architecture, bands=2, classes=2)
    tested = np.isin(np.arange(COLS) // STRIP, [3, 6]) & (image != 0).any(axis=0)
    differs = (image[0] > 100) & (image[0] <= 120)
    expected = differs[tested].mean()
    assert 0.1 < expected < 0.9
    assert bf16_disagreement(network, data, spec, recipe) == pytest.approx(expected, rel=1e-12)


def _sees_all(network: Fcn, read: Window, core: tuple[slice, slice]) -> None:
    """Every pixel of the core has all that it looks at inside the read, or beyond the raster's edge."""
    sides = ((read.row, read.height, ROWS, core[0]), (read.col, read.width, COLS, core[1]))
    for start, length, end, part in sides:
        assert start % network.stride == 0
        turns, cell = np.divmod(np.arange(start + part.start, start + part.stop), network.stride)
        first = (network.reach.first[cell] + turns * network.stride).clip(0)
        last = (network.reach.last[cell] + turns * network.stride).clip(max=end - 1)
        assert start <= first.min()
        assert last.max() < start + length


def test_a_small_training(tmp_path: Path) -> None:
    _, labels = _two_colours(tmp_path)
    recipe = _recipe(steps=60, learning_rate=0.01, evaluate_every=30, jitter=0.05)
    lines: list[str] = []
    output = tmp_path / "tiny.safetensors"
    assert train(recipe, tmp_path, output, device="cpu", overwrite=False, report=lines.append) == output
    assert [line.split(":")[0] for line in lines] == ["step 30/60", "step 60/60", "test"]

    model, network = load_model(output)
    card = model.card
    assert (card.name, card.legend.ids, card.architecture) == ("tiny", (0, 1), recipe.architecture)
    assert (card.stride, card.halo, card.input.dtype) == (8, 40, "uint8")
    assert card.scores is not None
    data = LabelledRaster.open(tmp_path, recipe)
    assert isinstance(network, Fcn)
    again = _whole_image(network, data, card.input, recipe, [3, 6])
    assert card.scores.mean_iu == pytest.approx(again.mean_iu, abs=2e-3)
    assert card.scores.pixel_accuracy == pytest.approx(again.pixel_accuracy, abs=2e-3)
    assert card.scores.class_iu == pytest.approx({f"class {k}": again.iu[k] for k in (0, 1)}, abs=2e-3)
    known = labels[3:, np.isin(np.arange(COLS) // STRIP, (3, 6))]
    constant = max(float((known == k).mean()) for k in (0, 1)) / 2  # mean IU of a map of one class
    assert card.scores.mean_iu > constant + 0.2
    assert f"mean IU {card.scores.mean_iu:.4f}" in lines[-1]
    assert card.bf16_disagreement is not None
    assert 0 <= card.bf16_disagreement < 0.1


def _no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*_: Any) -> None:
        raise AssertionError("the training began")

    monkeypatch.setattr(training, "fit", fit)


def _labels(**changes: Any) -> Callable[[Path, Recipe], Recipe]:
    """Write labels of another kind."""
    dtype, grid = changes.pop("dtype", "uint8"), {**GRID, **changes.pop("grid", {})}
    size, value = changes.pop("size", (ROWS, COLS)), changes.pop("value", 1)

    def write(folder: Path, recipe: Recipe) -> Recipe:
        write_raster(folder / "labels.tif", np.full((1, *size), value, dtype), **grid)
        return recipe

    return write


def _split(**changes: Any) -> Callable[[Path, Recipe], Recipe]:
    return lambda _, recipe: _changed(recipe, "split", **changes)


def _pair(**changes: Any) -> Callable[[Path, Recipe], Recipe]:
    return lambda _, recipe: _changed(recipe, "pair", **changes)


def _unlabelled(strip: int) -> Callable[[Path, Recipe], Recipe]:
    def write(folder: Path, recipe: Recipe) -> Recipe:
        labels = np.ones((1, ROWS, COLS), np.uint8)
        labels[:, :, strip * STRIP : (strip + 1) * STRIP] = 255
        write_raster(folder / "labels.tif", labels, **GRID)
        return recipe

    return write


def _empty_image(folder: Path, recipe: Recipe) -> Recipe:
    write_raster(folder / "image.tif", np.zeros((2, ROWS, COLS), np.uint8), nodata=0, **GRID)
    return recipe


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (_labels(size=(ROWS, COLS - 1)), r"labels\.tif: labels of Size\(.*do not lie on the grid of .*image\.tif"),
        (_labels(grid={"transform": Affine(10, 0, 500005, 0, -10, 5000000)}), "do not lie on the grid"),
        (_labels(grid={"crs": "EPSG:32634"}), "do not lie on the grid"),
        (_labels(dtype="int16"), r"labels\.tif: labels must be uint8, got int16"),
        (_labels(value=7), r"labels\.tif: no labelled pixel in the training strips"),
        (_unlabelled(1), "no labelled pixel in the val strips"),
        (_split(test=[90]), "no labelled pixel in the test strips"),
        (_split(score_rows=[0, 3]), "no labelled pixel in the val strips"),
        (_split(score_rows=[900, 901]), "no labelled pixel in the val strips"),
        (_split(never=[0, 2, 4, 5]), "no .* pixel in the training strips"),
        (_empty_image, r"image\.tif: no valid pixel in the training strips"),
        (_pair(bands=["red", "green", "blue"]), r"image\.tif has 2 bands, \[pair\] names red, green, blue"),
        (_pair(image="none.tif"), r"none\.tif does not exist"),
    ],
    ids=[
        "labels of another size",
        "labels shifted",
        "labels in another system",
        "labels not uint8",
        "labels of no class",
        "no val label",
        "test outside",
        "score rows without labels",
        "score rows outside",
        "nothing to train on",
        "empty image",
        "too few bands",
        "no image",
    ],
)
def test_data_that_cannot_train_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path, Recipe], Recipe], match: str
) -> None:
    _two_colours(tmp_path)
    _no_training(monkeypatch)
    recipe = spoil(tmp_path, _recipe())
    with pytest.raises(FcnBatchError, match=match):
        train(recipe, tmp_path, tmp_path / "m.safetensors", device="cpu", overwrite=False, report=_ignore)


def test_an_output_that_exists_or_has_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _two_colours(tmp_path)
    _no_training(monkeypatch)
    there = tmp_path / "m.safetensors"
    there.write_text("mine")
    with pytest.raises(OutputError, match=f"{there}: exists already; give --overwrite"):
        train(_recipe(), tmp_path, there, device="cpu", overwrite=False, report=_ignore)
    with pytest.raises(OutputError, match=r"there is no folder .*nowhere; create it first"):
        train(_recipe(), tmp_path, tmp_path / "nowhere" / "m", device="cpu", overwrite=False, report=_ignore)
    assert there.read_text() == "mine"


def test_overwriting_when_asked_to(tmp_path: Path) -> None:
    _two_colours(tmp_path)
    there = tmp_path / "m.safetensors"
    there.write_text("mine")
    train(_recipe(steps=1), tmp_path, there, device="cpu", overwrite=True, report=_ignore)
    assert load_model(there)[0].card.name == "tiny"


def test_batches_stop_when_nobody_wants_more(tmp_path: Path) -> None:
    _two_colours(tmp_path)
    recipe = _recipe(steps=10_000)
    assert len(list(islice(batches(*_opened(tmp_path, recipe), recipe, 8), 3))) == 3
