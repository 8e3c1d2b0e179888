"""Training windows: from training regions only, in one order for a seed, whole batches whoever reads them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fcn_batch.pipeline.core.recipe import Recipe
from fcn_batch.pipeline.network.distributed import Peers
from fcn_batch.pipeline.network.training import Batch
from fcn_batch.workflows.learning import sampling
from fcn_batch.workflows.learning.sampling import Sampler
from tests.errors import refuses
from tests.rasters import noise, write_raster
from tests.recipes import (
    COLS,
    FILES,
    GRID,
    ROWS,
    STRIP,
    TRAINED,
    columns,
    opened,
    tiny_recipe,
    two_colours,
    write_pair,
)

STRIDE = 8


def _sampler(folder: Path, recipe: Recipe, **options: Any) -> Sampler:
    return Sampler(*opened(folder, recipe), recipe, STRIDE, **options)


def _drawn(folder: Path, recipe: Recipe) -> list[Batch]:
    return list(_sampler(folder, recipe).batches(0, 0, recipe.schedule.steps))


def _bytes(batch: Batch) -> tuple[bytes, bytes, tuple[str, ...]]:
    return batch.images.tobytes(), batch.labels.tobytes(), batch.origins


@pytest.mark.parametrize(("crop", "scale"), [(24, 1.0), (33, 1.0), (33, 1.5), (80, 1.5)])
def test_batches_hold_nothing_outside_the_training_strips(tmp_path: Path, crop: int, scale: float) -> None:
    columns(tmp_path)
    recipe = tiny_recipe(COLS, schedule={"steps": 30, "crop": crop}, augment={"scale": scale})
    sampler = _sampler(tmp_path, recipe)
    side = {24: 24, 33: 40, 80: 80}[crop]
    seen: set[int] = set()
    drawn = list(sampler.batches(0, 0, 30))
    assert len(drawn) == 30
    for batch in drawn:
        assert batch.images.shape == (4, 2, side, side)
        assert batch.labels.shape == (4, side, side)
        assert batch.images.dtype == np.float32
        assert batch.labels.dtype == np.uint8
        seen |= {*np.unique(batch.labels).tolist()}
        for k, band in enumerate(sampler.spec.bands):
            found = (batch.images[:, k] * band.std + band.mean) * sampler.spec.full_scale
            if scale == 1.0:  # image and labels are turned alike
                known = batch.labels != 255
                assert np.allclose(found[known], batch.labels[known], atol=1e-3)
                assert (batch.images[:, k][~known] == 0).all()
            inside = np.array([col // STRIP in TRAINED for col in found.round().astype(int).clip(0, COLS).ravel()])
            assert scale > 1 or crop > 24 or inside.all()
    allowed = {col for col in range(COLS) if col // STRIP in TRAINED}
    assert seen - {255} <= allowed, "a pixel of val or test was trained on"
    assert len(seen) > 0.9 * len(allowed), "every training column comes up"


def test_regions_smaller_than_the_window_are_padded(tmp_path: Path) -> None:
    """A strip of 37 columns and 60 rows, in windows of 80: the rest has no label and no data."""
    columns(tmp_path)
    for batch in _drawn(tmp_path, tiny_recipe(COLS, schedule={"crop": 80}, augment={"flips": False, "turns": False})):
        for image, labels in zip(batch.images, batch.labels, strict=True):
            assert (labels[:ROWS, :STRIP] == labels[0, 0] + np.arange(STRIP)).all()
            assert labels[0, 0] % STRIP == 0
            outside = np.ones(labels.shape, bool)
            outside[:ROWS, :STRIP] = False
            assert (labels[outside] == 255).all()
            assert (image[:, outside] == 0).all()


def test_scaled_windows_keep_image_and_labels_together(tmp_path: Path) -> None:
    """Large squares: away from their edges, colour and label are the same thing at any scale."""
    row, col = np.indices((ROWS, COLS))
    labels = ((row // 12 + col // 12) % 2).astype(np.uint8)
    write_pair(tmp_path, np.stack([labels, labels]) * 100, labels)
    recipe = tiny_recipe(schedule={"steps": 15, "crop": 24}, augment={"scale": 2.0, "turns": False})
    sizes = set()
    for batch in _drawn(tmp_path, recipe):
        for image, truth in zip(batch.images, batch.labels, strict=True):
            known = truth != 255
            wrong = ((image[0] > 0) != (truth == 1)) & known
            edges = np.zeros_like(wrong)
            for axis in (0, 1):
                for shift in (-1, 1):
                    edges |= truth != np.roll(truth, shift, axis)
            edges[[0, -1]] = edges[:, [0, -1]] = True  # what lies beyond is not seen
            assert not (wrong & ~edges).any()
            along = np.flatnonzero(np.diff(truth[12].astype(int)))
            sizes |= {*np.diff(along).tolist()}
    assert min(sizes) <= 8
    assert max(sizes) >= 18


def test_the_seed_the_stage_and_the_step_are_all_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_colours(tmp_path)

    def drawn(stage: int = 0, start: int = 0, **schedule: Any) -> list[tuple[bytes, bytes, tuple[str, ...]]]:
        recipe = tiny_recipe(schedule=schedule, augment={"jitter": 0.1, "scale": 1.3})
        return [_bytes(batch) for batch in _sampler(tmp_path, recipe).batches(stage, start, 12)]

    first = drawn(seed=1)
    assert len({*first}) == 12
    assert drawn(seed=1) == first
    assert not {*first} & {*drawn(seed=2)}
    assert not {*first} & {*drawn(seed=1, stage=1)}
    for start in (1, 7, 12):
        assert drawn(seed=1, start=start) == first[start:], "a resumed training sees other windows"
    for ahead in (1, 9):
        monkeypatch.setattr(sampling, "_READ_AHEAD", ahead)
        assert drawn(seed=1) == first, "threads change the order"


def test_peers_share_the_batch_of_one(tmp_path: Path) -> None:
    two_colours(tmp_path)
    recipe = tiny_recipe(augment={"scale": 1.4, "jitter": 0.1})
    alone, steps = _drawn(tmp_path, recipe), recipe.schedule.steps
    for world in (2, 4):
        peers = [Peers(rank, world) for rank in range(world)]
        shares = [list(_sampler(tmp_path, recipe, peers=one).batches(0, 0, steps)) for one in peers]
        for whole, *parts in zip(alone, *shares, strict=True):
            for rank, part in enumerate(parts):
                own = (whole.images[rank::world], whole.labels[rank::world], whole.origins[rank::world])
                assert _bytes(part) == _bytes(Batch(*own))
    for schedule, world in (({}, 3), ({"accumulate": 4}, 2)):
        with refuses("batch-shares", batch=4, world=world):
            _sampler(tmp_path, tiny_recipe(schedule=schedule), peers=Peers(0, world))


def test_origins_name_file_and_window(tmp_path: Path) -> None:
    columns(tmp_path)
    for batch in _drawn(tmp_path, tiny_recipe(COLS)):
        for origin, labels in zip(batch.origins, batch.labels, strict=True):
            name, row, first = origin.replace(" row ", "|").replace(" col ", "|").split("|")
            assert name == "image.tif"
            assert 0 <= int(row) <= ROWS - 24
            assert int(first) == labels.min()


def _mixed(folder: Path, **schedule: Any) -> float:
    """The share of windows that hold two classes."""
    drawn = _drawn(folder, tiny_recipe(schedule={"steps": 40, **schedule}))
    return float(np.mean([{0, 1} <= {*np.unique(w).tolist()} for batch in drawn for w in batch.labels]))


def test_windows_of_one_class_are_drawn_again(tmp_path: Path) -> None:
    labels = np.zeros((ROWS, COLS), np.uint8)
    labels[:30, : STRIP // 2] = 1  # one corner of one training strip
    write_pair(tmp_path, np.stack([labels, labels]), labels)
    assert _mixed(tmp_path, one_class_at_most=0.99) > 1.5 * _mixed(tmp_path) > 0


def test_windows_without_labels_are_drawn_again(tmp_path: Path) -> None:
    labels = np.full((ROWS, COLS), 255, np.uint8)
    labels[:, :STRIP] = labels[:, STRIP : 2 * STRIP] = labels[:, 3 * STRIP : 4 * STRIP] = np.arange(STRIP) % 2
    write_pair(tmp_path, noise(2, ROWS, COLS), labels)  # one training strip of three is labelled
    share = _mixed(tmp_path)
    assert share == pytest.approx(1 - (2 / 3) ** 4, abs=0.1)


def test_every_training_pixel_of_all_files_has_one_chance(tmp_path: Path) -> None:
    """A file four times as large is drawn four times as often."""
    for name, side in (("train_a", 32), ("train_b", 64), ("val", 32), ("test", 32)):
        write_raster(tmp_path / f"{name}.tif", noise(2, side, side), **GRID)
        write_raster(tmp_path / f"{name}.png", _halves(side)[None], driver="PNG", dtype="uint8")
    images = {"paths": ["*.tif"], "labels": "{stem}.png"}
    recipe = tiny_recipe(images=images, split=FILES, schedule={"steps": 150, "crop": 8})
    sampler = _sampler(tmp_path, recipe)
    assert sampler.steps_of_an_epoch == (32**2 + 64**2) / (4 * 8**2)
    origins = [origin.split(" ")[0] for batch in sampler.batches(0, 0, 150) for origin in batch.origins]
    assert {*origins} == {"train_a.tif", "train_b.tif"}
    assert origins.count("train_b.tif") / len(origins) == pytest.approx(0.8, abs=0.06)


def _halves(side: int) -> NDArray[np.uint8]:
    labels = np.zeros((side, side), np.uint8)
    labels[: side // 2] = 1
    return labels
