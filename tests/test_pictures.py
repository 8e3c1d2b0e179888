"""What the pictures of docs/exactness.md are computed with."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bench import pictures

IMAGES = Path(__file__).parents[1] / "docs" / "img"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "CORE", 4)
    monkeypatch.setattr(pictures, "AROUND", 10)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("side", "reach"), [(1, 0), (5, 2), (13, 6)])
def test_gradients_reach_as_far_as_a_kernel(side: int, reach: int) -> None:
    found = pictures.looked_at(torch.nn.Conv2d(3, 2, side, padding=side // 2))
    assert found.shape == (24, 24)
    assert pictures.farthest(found) == reach


@pytest.mark.usefixtures("small")
def test_the_farthest_pixel_may_lie_on_any_side() -> None:
    for row, col, far in ((3, 12, 7), (12, 3, 7), (12, 22, 9), (22, 12, 9)):
        gradients = np.zeros((24, 24))
        gradients[row, col] = 1.0
        assert pictures.farthest(gradients) == far


def test_a_single_pixel_is_drawn_with_its_neighbours() -> None:
    wrong = np.zeros((6, 7), np.bool_)
    wrong[0, 3] = True
    assert np.argwhere(pictures._thicker(wrong)).tolist() == [[r, c] for r in (0, 1) for c in (2, 3, 4)]


def test_pictures_are_small() -> None:
    assert {path.name for path in IMAGES.glob("*.png")} >= {"reach.png", "ways.png"}
    assert all(path.stat().st_size < 150_000 for path in IMAGES.iterdir())
