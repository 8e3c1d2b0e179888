"""Scores over held-out regions: every pixel with all that it looks at, as in one pass over the whole image."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.metrics import Confusion
from fcn_batch.pipeline.core.model_card import Architecture, InputSpec
from fcn_batch.pipeline.core.recipe import Recipe
from fcn_batch.pipeline.core.source import Pixels
from fcn_batch.pipeline.network import predictor
from fcn_batch.pipeline.network.fcn import Fcn, FcnNetwork
from fcn_batch.pipeline.network.predictor import Scaling
from fcn_batch.workflows.learning import scoring
from fcn_batch.workflows.learning.labelled import LabelledImage
from fcn_batch.workflows.learning.scoring import bf16_disagreement, evaluate
from tests.models import tiny_network
from tests.recipes import COLS, ROWS, STRIP, TESTED, VALIDATED, opened, tiny_recipe, two_colours, write_pair

USES: list[tuple[Literal["val", "test"], tuple[int, ...]]] = [("val", VALIDATED), ("test", TESTED)]


def _network(recipe: Recipe, dtype: torch.dtype = torch.float32) -> Fcn:
    assert isinstance(recipe.architecture, Architecture)
    return tiny_network(recipe.architecture, bands=2, classes=len(recipe.classes), dtype=dtype)


def whole_image(network: FcnNetwork, image: LabelledImage, spec: InputSpec, recipe: Recipe, use: str) -> Confusion:
    """What `evaluate` counts, from one pass over the whole image."""
    everything = Window(0, 0, ROWS, COLS)
    pixels = image.read(everything)
    mean, std = (np.array([getattr(b, what) for b in spec.bands])[:, None, None] for what in ("mean", "std"))
    values = np.where(pixels.valid, (pixels.values / spec.full_scale - mean) / std, 0)
    padded = np.pad(values, ((0, 0), (0, -ROWS % network.stride), (0, -COLS % network.stride)))
    with torch.inference_mode():
        scores = network.eval()(torch.from_numpy(padded)[None].to(next(network.parameters()).dtype))
    channels = scores[0, :, :ROWS, :COLS].argmax(dim=0).numpy().astype(np.uint8)
    scored = np.isin(np.arange(COLS) // STRIP, dict(USES)[use])  # type: ignore[index]
    start, stop = getattr(recipe.split, "score_rows", None) or (0, ROWS)
    truth = image.read_labels(everything)
    return Confusion.count(truth[start:stop, scored], channels[start:stop, scored], len(recipe.classes))


def _watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Window, tuple[slice, slice]]]:
    """Windows that are read and cores kept from now on, in pairs; tiles run in double precision."""
    reads: list[Window] = []
    seen: list[tuple[Window, tuple[slice, slice]]] = []
    read, channels = LabelledImage.read, predictor.Tiles.channels

    def reading(self: LabelledImage, window: Window) -> Pixels:
        reads.append(window)
        return read(self, window)

    def predicting(self: Any, values: Any, valid: Any, core: tuple[slice, slice]) -> NDArray[np.uint8]:
        seen.append((reads[-1], core))
        return channels(self, values, valid, core)

    monkeypatch.setattr(LabelledImage, "read", reading)
    monkeypatch.setattr(predictor.Tiles, "channels", predicting)
    monkeypatch.setattr(scoring, "Scaling", lambda spec, device: Scaling(spec, device, torch.float64))
    monkeypatch.setattr(scoring, "graph_of", lambda _network, _bands: (None, ["tiles of modules stay in double"]))
    return seen


@pytest.mark.parametrize(("use", "tile", "rows"), [("val", 512, None), ("test", 24, [5, 43])], ids=str)
def test_scores_are_those_of_the_whole_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Literal["val", "test"], tile: int, rows: Any
) -> None:
    two_colours(tmp_path)
    architecture = {"input_upsampling": 4}
    recipe = tiny_recipe(architecture=architecture, split={**tiny_recipe().split.model_dump(), "score_rows": rows})
    (image,), spec = opened(tmp_path, recipe)
    network = _network(recipe, torch.float64)
    monkeypatch.setattr(scoring, "_TILE", tile)
    seen = _watched(monkeypatch)
    found = evaluate(network, [image], spec, 2, use)
    monkeypatch.undo()
    assert len(seen) >= len(dict(USES)[use])
    for window, core in seen:
        _sees_all(network, window, core)
    assert found.counts.sum() > 0
    assert np.array_equal(found.counts, whole_image(network, image, spec, recipe, use).counts)


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


def test_scores_in_single_precision_are_nearly_those(tmp_path: Path) -> None:
    """Also of a network that is being trained: no dropout when it is scored."""
    _, labels = two_colours(tmp_path)
    recipe = tiny_recipe(architecture={"dropout": 0.5})
    (image,), spec = opened(tmp_path, recipe)
    network = _network(recipe).train()
    found = evaluate(network, [image], spec, 2, "test").counts
    whole = whole_image(network, image, spec, recipe, "test").counts
    known = labels[:, np.isin(np.arange(COLS) // STRIP, TESTED)] != 255
    assert found.sum() == whole.sum() == known.sum()
    assert np.abs(found - whole).sum() <= 2e-3 * whole.sum()


@dataclass
class Bright:
    """Tiles whose class is 1 where the first band is brighter than a limit."""

    limit: int
    factor: int = 1

    def scores(self, values: Any, valid: Any) -> Any:
        raise NotImplementedError

    def channels(self, values: NDArray[Any], valid: Any, core: tuple[slice, slice]) -> NDArray[np.uint8]:  # noqa: ARG002
        return np.asarray((values[0] > self.limit)[core], np.uint8)


def test_the_cost_of_bfloat16_is_the_share_of_valid_test_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, labels = two_colours(tmp_path)
    image = image.clip(1)
    image[:, 10:30, 112:130] = 0
    write_pair(tmp_path, image, labels, nodata=0)
    recipe = tiny_recipe()
    images, spec = opened(tmp_path, recipe)
    limits = {"fp32": 100, "bf16": 120}
    monkeypatch.setattr(scoring, "tiles_of", lambda _net, _spec, precision: Bright(limits[precision]))
    tested = np.isin(np.arange(COLS) // STRIP, TESTED) & (image != 0).any(axis=0)
    differs = (image[0] > 100) & (image[0] <= 120)
    expected = differs[tested].mean()
    assert 0.1 < expected < 0.9
    assert bf16_disagreement(_network(recipe), images, spec) == pytest.approx(expected, rel=1e-12)
