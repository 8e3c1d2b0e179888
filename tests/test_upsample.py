"""Fixed and learned upsampling are the same function at the start."""

import pytest
import torch
from torch.nn import functional

from fcn_batch.pipeline.network.fcn import LearnedUpsample, Upsample, bilinear_kernel


@pytest.mark.parametrize("factor", [2, 4, 8, 16, 32])
def test_the_kernel_is_the_papers(factor: int) -> None:
    kernel = bilinear_kernel(factor)
    assert kernel.shape == (2 * factor, 2 * factor)
    for i in range(2 * factor):
        for j in range(2 * factor):  # upsample_filt of the authors' surgery.py
            centre = factor - 0.5
            expected = (1 - abs(i - centre) / factor) * (1 - abs(j - centre) / factor)
            assert kernel[i, j] == pytest.approx(expected, abs=1e-7)
    assert kernel.sum() == pytest.approx(factor**2)


@pytest.mark.parametrize("factor", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (1, 5)])
def test_learned_upsampling_starts_as_bilinear_also_at_the_borders(factor: int, shape: tuple[int, int]) -> None:
    image = torch.randn(2, 3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(factor))
    learned = LearnedUpsample(3, factor).double()
    fixed = Upsample(factor)(image)
    assert fixed.shape == (2, 3, shape[0] * factor, shape[1] * factor)
    assert (learned(image) - fixed).abs().max() <= 1e-12


def test_nothing_fades_at_the_borders() -> None:
    ones = torch.ones(1, 2, 3, 3)
    assert torch.allclose(LearnedUpsample(2, 8)(ones), torch.ones(1, 2, 24, 24))
    faded = functional.conv_transpose2d(ones, LearnedUpsample(2, 8).weight, stride=8, padding=4)
    assert faded[0, 0, 0, 0] < 0.5  # what zero padding, the usual way, would give


def test_learned_upsampling_can_learn() -> None:
    learned = LearnedUpsample(2, 2)
    learned(torch.ones(1, 2, 2, 2)).sum().backward()
    assert learned.weight.grad is not None
    assert learned.weight.grad.abs().min() > 0, "weights between classes learn too"


def test_a_factor_of_one_is_the_identity() -> None:
    image = torch.randn(1, 2, 3, 3)
    assert Upsample(1)(image) is image


@pytest.mark.parametrize("factor", [1, 3, 7])
def test_odd_factors_cannot_be_learned(factor: int) -> None:
    with pytest.raises(ValueError, match=str(factor)):
        LearnedUpsample(2, factor)
